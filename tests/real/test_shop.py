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
        return {title: int(number) for number, title in re.findall(r"<li><b>(\d+)</b> ([^\n]+)", self.page)}

    @property
    def served_by(self) -> tuple[str, int]:
        found = re.search(r"Answered by <b>(\w+)</b>, worker (\d+)", self.page)
        assert found is not None, self.page
        return found[1], int(found[2])

    @property
    def members(self) -> dict[str, int]:
        """Process ids by name, of who holds sessions and who serves."""
        return {name: int(pid) for name, pid in re.findall(r"<li>(\S+) <span.*?kill -9 (\d+)", self.page)}


@pytest.fixture
def shop() -> Iterator[Shop]:
    made = Shop()
    try:
        yield made
    finally:
        made.end()


def test_a_cart_outlives_a_worker_and_the_node_of_its_host(shop: Shop) -> None:
    customer = Customer(shop)
    until(lambda: len(customer.go().members) == 10, 40, "two nodes and eight workers")
    for name in ("yarn", "yarn", "bell", "cushion"):
        customer.go(f"/cart/{name}", "POST")
    cart = {"Ball of yarn": 2, "Small bell": 1, "Window cushion": 1}
    assert customer.cart == cart
    assert "€ 35" in customer.page
    host, _ = customer.served_by
    assert customer.cookie.endswith(f".{host}")
    for _ in range(8):
        assert customer.go().served_by[0] == host, "a customer stays on a host, whichever worker it is"

    customer.go("/kill", "POST")
    assert customer.cart == cart
    before = customer.members
    os.kill(before[host], signal.SIGKILL)
    until(lambda: customer.go().members.get(host, before[host]) != before[host], 40, "the node was started again")
    assert customer.cart == cart
    customer.go("/cart/cushion", "POST", "less=1")
    assert customer.cart == {"Ball of yarn": 2, "Small bell": 1}

    until(lambda: len(customer.go().members) == 10, 40, "all are back")
    pids = list(customer.members.values())
    shop.signal(signal.SIGTERM)
    assert shop.exit_code(30) in (0, -signal.SIGTERM), shop.log
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), what="nothing is left behind")
