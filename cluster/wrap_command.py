"""The command `caterwaul wrap`: an unchanged application, served by a node of its own.

WSGI is served by the node itself, as with a table `[web]` (`web.py`). ASGI is served by uvicorn, with the node's reactor in a thread beside it: its
server is worth having, and a second one of ours is not.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import click

from ..membership.errors import LocalError
from .crosschecks import split_address
from .foreground import configured, greet, log_to_stderr, read_settings, run_node
from .manager import ClusterManager
from .settings import Settings, host_name
from .web import load_application
from .wrapping import is_asgi, recognise, wrapped

__all__ = ["wrap"]

_BACKLOG = 2048  # as uvicorn has it


@click.command()
@click.argument("application", metavar="MODULE:CALLABLE")
@configured
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="IP address to listen on, whatever web.listen says.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="TCP port; 0: any free one.")
@click.option("--verbose", "-v", is_flag=True, help="Log what happens, not only what is wrong.")
def wrap(application: str, path: str | None, overrides: Sequence[str], host: str, port: int, verbose: bool) -> None:
    """Serve a WSGI or ASGI application with replicated sessions, unchanged.

    MODULE:CALLABLE is the application, or MODULE:make() a function that makes it. In Flask, Django, Pyramid, Starlette and FastAPI the
    framework's own sessions are replaced; any other application finds its session in environ["caterwaul.session"], or in the
    scope. What cannot be wrapped is refused. ASGI applications are served by uvicorn (pip install uvicorn).

    Two processes of one cluster on this machine, each of which goes on with the users of the other:

    \b
        caterwaul wrap shop:app --port 8001
        caterwaul wrap shop:app --port 8002

    An application that does not say what its cookie is like gets that of the settings, which browsers take over HTTPS only. To try it without:
    --set managers.default.cookie.name=sid --set managers.default.cookie.secure=false
    """
    settings = _settings(application, path, overrides, host, port)
    found = load_application(application)
    recognise(found)  # refuses before anything is started
    if is_asgi(found):
        _serve_asgi(settings, found, verbose)
    else:
        run_node(settings, verbose)


def _settings(application: str, path: str | None, overrides: Sequence[str], host: str, port: int) -> Settings:
    """Those of the file, with this application; without a file, with a name that tells processes of one machine apart."""
    keywords: dict[str, Any] = {"web.application": application, "web.wrap": True, "web.listen": f"[{host}]:{port}" if ":" in host else f"{host}:{port}"}
    if not path and port:
        keywords["node.name"] = f"{host_name()[:10].rstrip('-_')}-{port}"
    return read_settings(path, overrides, **keywords)


def _serve_asgi(settings: Settings, application: Any, verbose: bool) -> None:
    """Until SIGINT or SIGTERM; the node leaves after the last answer."""
    try:
        import uvicorn
    except ImportError:
        raise LocalError(
            f"{settings.web.application} is an ASGI application, and those are served by uvicorn, which is not installed: pip install uvicorn"
        ) from None
    log_to_stderr(verbose)
    address = split_address(settings.web.listen, None)
    assert address is not None, "checked with the settings"
    listening = _listen(*address)
    cluster = ClusterManager(settings.changed(**{"web.listen": "", "web.application": ""}))
    try:
        cluster.start()
        served = wrapped(application, cluster.manager(settings.web.manager), settings.cookies[settings.web.manager])
        cluster.wait_ready()
        server = uvicorn.Server(uvicorn.Config(served, log_level="info" if verbose else "warning"))
        host, port = listening.getsockname()[:2]
        greet(cluster.me, settings.cluster.name, f", serving http://[{host}]:{port}" if ":" in host else f", serving http://{host}:{port}")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises again what ended it: then as SIGINT, which is caught
        cluster.on_leave(lambda: setattr(server, "should_exit", True))
        with suppress(KeyboardInterrupt, SystemExit):  # the latter where it could not start
            server.run([listening])
        if not server.started:
            raise LocalError(f"{settings.web.application} did not start; uvicorn says why")
    finally:
        listening.close()
        cluster.stop()


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=_BACKLOG)
    except OSError as error:
        raise LocalError(f"TCP port {port} on {host} cannot be had: {error.strerror or error}") from None
