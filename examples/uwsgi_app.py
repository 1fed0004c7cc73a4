"""uWSGI with a node in each worker; it imports this module, which Python alone cannot:

    uwsgi --http-socket 127.0.0.1:8001 --master --die-on-term --processes 2 --enable-threads --module examples.uwsgi_app:app

`--enable-threads` lets Python's other threads run, the node's among them. The application is loaded once, before the workers are forked; each starts its node
after that, before it takes requests, and leaves the cluster when it ends, also when it is recycled. With `--threads` uWSGI may end a worker without Python's exit
handlers: then the others see a crash, and notice it at once.
"""

from __future__ import annotations

from uwsgidecorators import postfork

from examples.flask_app import app, manager

__all__ = ["app"]


@postfork
def start() -> None:
    manager()
