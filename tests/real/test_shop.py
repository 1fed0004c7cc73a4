"""`python -m examples.shop`: the whole of it by its one command, a customer in front of the balancer, and what dies behind it."""

from __future__ import annotations

import http.client
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .processes import _Child, until

ROOT = Path(__file__).parents[2]


class Shop(_Child):
    def __init__(self) -> None:
        super().__init__([sys.executable, "-m", "examples.shop", "0"], environ={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"})
        assert self._process.stdout is not None
        found = re.search(rb":(\d+)$", self._process.stdout.readline().strip())
        assert found is not None, self.log
        self.port = int(found[1])


class Customer:
    """A browser that shows what the page says."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self.cookie = ""
        self.page = ""

    def go(self, path: str = "/", method: str = "GET", body: str = "") -> Customer:
        connection = http.client.HTTPConnection("127.0.0.1", self._shop.port, timeout=20)
        headers = {"Content-Type": "application/x-www-form-urlencoded"} if body else {}
        connection.request(method, path, body or None, {**headers, **({"Cookie": f"sid={self.cookie}"} if self.cookie else {})})
        answer = connection.getresponse()
        text = answer.read().decode()
        for value in answer.headers.get_all("Set-Cookie", []):
            self.cookie = value.partition(";")[0].removeprefix("sid=")
        connection.close()
        if answer.status == 303:
            return self.go(answer.headers["Location"])
        assert answer.status == 200, (answer.status, text, self._shop.log)
        self.page = text
        return self

    @property
    def cart(self) -> dict[str, int]:
        return {title: int(number) for title, number in re.findall(r'class="title">([^<]+)<.*?class="number">(\d+)<', self.page, re.DOTALL)}

    @property
    def served_by(self) -> tuple[str, int]:
        found = re.search(r"<h1>(\w+)</h1>\s*<p>worker (\d+)", self.page)
        assert found is not None, self.page
        return found[1], int(found[2])

    @property
    def processes(self) -> list[tuple[str, str, int]]:
        """Host, what it is there, and its process id."""
        found = re.findall(r'data-pid="(\d+)" data-host="(\w+)" data-what="(\w+)"', self.page)
        return [(host, what, int(pid)) for pid, host, what in found]

    @property
    def states(self) -> list[str]:
        return re.findall(r'class="state[^>]*>([^<]+)<', self.page)

    def node(self, host: str) -> int | None:
        return next((pid for name, what, pid in self.processes if (name, what) == (host, "node")), None)


@pytest.fixture
def shop() -> Iterator[Shop]:
    made = Shop()
    try:
        yield made
    finally:
        made.end()


ALL_THERE = ["all there", "all there"]


def test_a_cart_outlives_a_worker_and_the_node_of_its_host_and_the_whole_host(shop: Shop) -> None:
    customer = Customer(shop)
    until(lambda: customer.go().states == ALL_THERE, 40, "two nodes and eight workers")
    assert len(customer.processes) == 10
    for name in ("yarn", "yarn", "bell", "cushion"):
        customer.go(f"/cart/{name}", "POST")
    cart = {"Ball of yarn": 2, "Small bell": 1, "Window cushion": 1}
    assert customer.cart == cart
    assert "€ 35" in customer.page
    host, pid = customer.served_by
    assert customer.cookie.endswith(f".{host}")
    for _ in range(8):
        assert customer.go().served_by[0] == host, "a customer stays on a host, whichever worker it is"

    customer.go("/kill", "POST", f"pid={pid}")
    assert f"Worker <b>{pid}</b> was killed" in customer.page
    assert customer.cart == cart
    until(lambda: pid not in [number for _, _, number in customer.go().processes], what="whichever worker got the form, that one is gone")
    until(lambda: customer.go().states == ALL_THERE, 40, "gunicorn has started another")
    before = customer.node(host)
    assert before is not None
    os.kill(before, signal.SIGKILL)
    until(lambda: customer.go().node(host) not in (None, before), 40, "the node was started again")
    assert customer.cart == cart
    customer.go("/cart/cushion", "POST", "less=1")
    cart = {"Ball of yarn": 2, "Small bell": 1}
    assert customer.cart == cart

    until(lambda: customer.go().states == ALL_THERE, 40, "all are back")
    host = customer.served_by[0]  # a worker that died with a request in its queue has sent us to the other one
    died = {pid for name, _, pid in customer.processes if name == host}
    customer.go("/kill", "POST", f"host={host}")
    other = customer.served_by[0]
    assert other != host
    assert f"Until now <b>{host}</b> served you. <b>{other}</b> took over" in customer.page
    assert customer.cart == cart
    until(lambda: not died & {pid for _, _, pid in customer.go().processes}, what="all of the host is gone")
    until(lambda: customer.go().states == ALL_THERE, 40, "all are back")
    assert customer.cart == cart

    pids = [pid for _, _, pid in customer.processes]
    shop.signal(signal.SIGTERM)
    assert shop.exit_code(30) in (0, -signal.SIGTERM), shop.log
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), what="nothing is left behind")


def test_a_page_of_another_site_kills_nothing(shop: Shop) -> None:
    customer = Customer(shop)
    until(lambda: customer.go().states == ALL_THERE, 40, "two nodes and eight workers")
    connection = http.client.HTTPConnection("127.0.0.1", shop.port, timeout=20)
    connection.request("POST", "/kill", f"host={customer.served_by[0]}", {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "cross-site"})
    assert connection.getresponse().status == 403
    connection.close()
    assert customer.go().states == ALL_THERE
