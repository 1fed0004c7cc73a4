"""The lines with which the pages of Flask, Django, Klein and Pyramid begin work as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from .processes import free_port

DOCS = Path(__file__).parents[2] / "docs"
#: All are errors, but for those of Pyramid's own imports.
WARNINGS = ["error", "ignore::ResourceWarning", "ignore:'cgi' is deprecated", "ignore:pkg_resources is deprecated", "ignore:Deprecated call to"]

#: What the lines take for granted, and then two requests, the second with the cookie of the first: each prints a count.
AROUND = {
    "flask": (
        "",
        """
        from flask import session
        @app.route("/")
        def count():
            session["count"] = session.get("count", 0) + 1
            return str(session["count"])
        browser = app.test_client()
        print(browser.get("/").text, browser.get("/").text)
        """,
    ),
    "django": (
        "",
        """
        import django, sys
        from django.conf import settings
        settings.configure(**{name: value for name, value in list(globals().items()) if name.isupper()}, ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__)
        django.setup()
        from django.http import HttpResponse
        from django.test import Client
        from django.urls import path
        def count(request):
            request.session["count"] = request.session.get("count", 0) + 1
            return HttpResponse(str(request.session["count"]))
        urlpatterns = [path("", count)]
        browser = Client()
        print(browser.get("/").content.decode(), browser.get("/").content.decode())
        """,
    ),
    "klein": (
        """
        from klein import Authorization, Klein, Requirer
        from klein.interfaces import ISession
        from klein.storage.memory import declareMemoryAuthorizer
        from twisted.internet.address import IPv4Address
        from twisted.internet.testing import MemoryReactorClock, StringTransport
        from zope.interface import Interface
        from caterwaul import ClusterManager
        class ICart(Interface): ...
        @declareMemoryAuthorizer(ICart)
        def cart_of(interface, session, data):
            data["count"] = data.get("count", 0) + 1
            return data
        app, requirer, reactor = Klein(), Requirer(), MemoryReactorClock()
        cluster = ClusterManager("node.toml")
        cluster.start()
        manager = cluster.manager()
        """,
        """
        @requirer.prerequisite([ISession])
        def procure(request):
            return procurer.procureSession(request)
        @requirer.require(app.route("/"), cart=Authorization(ICart))
        def show(cart):
            return str(cart["count"])
        def ask(cookie):
            channel = reactor.tcpServers[0][1].buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
            transport = StringTransport()
            channel.makeConnection(transport)
            channel.dataReceived(b"GET / HTTP/1.0\\r\\nCookie: " + cookie + b"\\r\\n\\r\\n")
            return transport.value()
        first = ask(b"")
        again = ask(first.partition(b"Set-Cookie: ")[2].partition(b";")[0])
        print(first[-1:].decode(), again[-1:].decode())
        """,
    ),
    "pyramid": (
        """
        from pyramid.config import Configurator
        from pyramid.response import Response
        from pyramid.request import Request
        from caterwaul import ClusterManager
        cluster = ClusterManager("node.toml")
        cluster.start()
        manager, config = cluster.manager(), Configurator()
        """,
        """
        def count(request):
            request.session["count"] = request.session.get("count", 0) + 1
            return Response(str(request.session["count"]))
        config.add_route("all", "/")
        config.add_view(count, route_name="all")
        app = config.make_wsgi_app()
        first = Request.blank("/").get_response(app)
        again = Request.blank("/", headers={"Cookie": first.headers["Set-Cookie"].split(";")[0]}).get_response(app)
        print(first.text, again.text)
        """,
    ),
}


@pytest.mark.parametrize("page", sorted(AROUND))
def test_the_first_lines_of_a_page_work(page: str, tmp_path: Path) -> None:
    lines = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)[0]
    (tmp_path / "node.toml").write_text(f'[membership]\nmulticast_port = {free_port()}\n[admin]\nsocket = ""\n[cluster]\nname = "docs-{free_port()}"\n')
    before, after = map(textwrap.dedent, AROUND[page])
    command = [sys.executable, *(word for warning in WARNINGS for word in ("-W", warning)), "-c", "\n".join([before, lines, after])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout.split()) == (0, "", ["1", "2"])
