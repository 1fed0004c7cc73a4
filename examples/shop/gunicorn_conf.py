"""gunicorn for the shop: four workers of one host, each with a node of its own that holds nothing."""

from __future__ import annotations

from typing import Any

from examples.shop.app import cluster
from examples.shop.hosts import WORKERS

preload_app = True
workers = WORKERS
worker_class = "gthread"
threads = 4
keepalive = 60  # longer than the balancer keeps an unused connection
graceful_timeout = 2
control_socket_disable = True


def post_worker_init(worker: Any) -> None:
    cluster().start()
    cluster().wait_ready()
