"""What a node's stores do when it stops."""

from __future__ import annotations

from queue import SimpleQueue
from threading import Event
from threading import enumerate as all_threads
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from caterwaul.cluster.stores import NodeStores
from caterwaul.managers.principals import EPOCHS
from caterwaul.managers.settings import SSO
from caterwaul.managers.stores.settings import StoreSettings


class _Reactor(Clock):
    """Its thread is the test's, which runs `turn`."""

    def __init__(self) -> None:
        super().__init__()
        self.from_threads: SimpleQueue[tuple[Any, tuple[Any, ...]]] = SimpleQueue()

    def callFromThread(self, function: Any, *arguments: Any) -> None:
        self.from_threads.put((function, arguments))

    def turn(self) -> None:
        """Waits for the next call from a thread, and does it."""
        function, arguments = self.from_threads.get(timeout=10.0)
        function(*arguments)


def test_a_stop_closes_the_stores_and_does_not_wait_for_one_that_hangs() -> None:
    for hangs in (False, True):
        reactor, free, closing = _Reactor(), Event(), Event()
        stores = NodeStores(StoreSettings(url=f"memory:stop-{hangs}"), "shop", 60.0, reactor)
        given = stores.of("default")
        assert given is not None
        worker, _ = given
        reactor.turn()  # it has looked when the store was used
        worker.store.close = lambda: (closing.set(), hangs and free.wait())  # type: ignore[method-assign, assignment]  # noqa: B023
        stopped: list[None] = []
        with capturedLogs() as logs:
            stores.stop().addCallback(stopped.append)
            assert closing.wait(10.0)
            if hangs:
                assert not stopped
                reactor.advance(1.0)
            else:
                reactor.turn()
        assert stopped == [None]
        assert [event["store"] for event in logs if "is left behind" in event["log_format"]] == (["memory:stop-True"] if hangs else [])
        assert all(thread.daemon for thread in all_threads() if thread.name.startswith("PoolThread-caterwaul store"))
        free.set()
        if hangs:
            reactor.turn()  # comes late, and harms nobody
        assert stopped == [None]
        assert stores.stop().called, "again is harmless"


def test_nothing_is_asked_after_a_stop() -> None:
    reactor = _Reactor()
    stores = NodeStores(StoreSettings(url="memory:stop-after"), "shop", 60.0, reactor)
    given = stores.of("default")
    assert given is not None
    stores.stop()
    worker, _ = given
    failures: list[object] = []
    worker.call(worker.store.spaces).addErrback(failures.append)
    assert len(failures) == 1


def test_what_goes_with_sessions_of_a_shared_store_is_stored_before_it_is_confirmed() -> None:
    """Ends of all logins, and logins that applications share."""
    for is_shared in (False, True):
        stores = NodeStores(StoreSettings(url=f"memory:through-{is_shared}"), "shop", 60.0, _Reactor(), is_shared)
        given = {name: stores.of(name) for name in (EPOCHS, f"{SSO}main", "default", "map:prices")}
        written = {name: found[1].write for name, found in given.items() if found is not None}
        soon = "through" if is_shared else "behind"
        assert written == {EPOCHS: soon, f"{SSO}main": soon, "default": "behind", "map:prices": "behind"}
        stores.stop()
