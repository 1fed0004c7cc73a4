"""gunicorn with a node in each worker: `gunicorn -c examples/gunicorn_conf.py 'examples.flask_app:app'`.

The application is loaded once, before the workers are forked, and has no node then. Each worker starts its own before it takes
requests, and leaves the cluster when it ends, also when it is recycled.
"""

from __future__ import annotations

from typing import Any

from examples import flask_app

preload_app = True
workers = 2
worker_class = "gthread"
threads = 8


def post_worker_init(worker: Any) -> None:
    flask_app.manager()
