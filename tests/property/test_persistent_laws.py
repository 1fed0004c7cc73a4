"""Laws of sessions that live in a shared store: whatever the servers, the store and time do, what was confirmed is read by the next request, wherever that is."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from caterwaul.managers.listeners import SessionDestroyed
from caterwaul.managers.persistent import PersistentManager
from caterwaul.managers.session import Session, key_of
from caterwaul.managers.settings import ManagerSettings
from caterwaul.managers.stores.settings import StoreSettings
from tests.doubles import Net

SERVERS = 3

Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "read", "both", "begin", "commit", "end", "time", "fail", "heal", "kill"]), st.integers(0, 11), st.integers(0, 2)
    ),
    max_size=40,
)


class Shop:
    """Three servers, what browsers were told that is stored, and requests that are under way."""

    def __init__(self) -> None:
        self.net = Net(SERVERS, ManagerSettings(idle_timeout_s=1e6, absolute_timeout_s=0.0), kind=PersistentManager, store=StoreSettings(url="memory:"))
        self.confirmed: dict[str, set[str]] = {}
        self.ending: set[str] = set()  # somebody has asked for that
        self.over: set[str] = set()
        self.open: list[tuple[int, Session, str]] = []
        self.count = 0
        self.told: list[bytes] = []
        for manager in self.net.managers:
            manager.listen(SessionDestroyed, lambda event: self.told.append(event.key))
        self.net.deliver()

    def server(self, number: int) -> int:
        alive = [n for n, member in enumerate(self.net.members) if member.uid in self.net.alive]
        return alive[number % len(alive)]

    def opened(self, number: int, session_id: str | None) -> Session:
        result: list[Session] = []
        self.net.managers[number].open_deferred(session_id).addCallback(result.append)
        self.net.wait(lambda: bool(result), 20.0)
        session = result[0]
        if session_id is not None and not session.unknown and not session.stale:
            assert (session.id is None) or session_id not in self.over, "it had ended"
            if session_id not in self.ending and self.confirmed[session_id]:
                assert session.id is not None, "it is lost"
                assert self.confirmed[session_id] <= set(session), "what was confirmed is not read"
        return session

    def settle(self, commits: list[tuple[int, Session, Any, str]]) -> None:
        """These requests end."""
        self.net.wait(lambda: not any(receipt.needs_wait for _, _, receipt, _ in commits), 20.0)
        for number, session, receipt, name in commits:
            self.net.managers[number].release(session)
            if session.id is not None:
                known = self.confirmed.setdefault(session.id, set())
                if receipt.satisfied:
                    known.add(name)

    def change(self, number: int, session: Session) -> tuple[int, Session, Any, str]:
        self.count += 1
        name = f"a{self.count}"
        session[name] = self.count
        return number, session, self.net.managers[number].commit(session), name

    def run(self, what: str, one: int, other: int) -> None:
        ids = [None, *self.confirmed]
        session_id, number = ids[one % len(ids)], self.server(other)
        if what in ("write", "both"):
            numbers = [number] if what == "write" else [number, self.server(other + 1)]
            sessions = [(n, self.opened(n, session_id)) for n in numbers]
            self.settle([self.change(n, session) for n, session in sessions if not session.unknown])
        elif what == "read":
            self.net.managers[number].release(self.opened(number, session_id))
        elif what == "begin":
            session = self.opened(number, session_id)
            if not session.unknown:
                self.open.append((number, session, ""))
        elif what == "commit" and self.open:
            number, session, _ = self.open.pop(one % len(self.open))
            if self.net.members[number].uid in self.net.alive:
                self.settle([self.change(number, session)])
        elif what == "end" and session_id is not None:
            session = self.opened(number, session_id)
            if session.id is not None:
                session.invalidate()
                receipt = self.net.managers[number].commit(session)
                self.net.wait(lambda: not receipt.needs_wait, 20.0)
                self.ending.add(session_id)
                if receipt.satisfied:
                    self.over.add(session_id)
                self.net.managers[number].release(session)
        elif what == "time":
            self.net.advance(20.0 * (1 + other), 0.5)
        elif what in ("fail", "heal"):
            self.net.store_fails = what == "fail"
        elif what == "kill" and len(self.net.alive) > 1 and not self.net.store_fails:
            self.net.kill(number)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_what_was_confirmed_is_read_and_what_has_ended_stays_ended(steps: list[Step]) -> None:
    shop = Shop()
    for step in steps:
        shop.run(*step)
    shop.net.store_fails = False
    shop.net.advance(30.0, 0.5)
    for session_id in shop.confirmed:
        for number in range(SERVERS):
            session = shop.opened(shop.server(number), session_id)
            assert not session.unknown
            assert not session.stale
            shop.net.managers[shop.server(number)].release(session)
    for session_id in shop.over:
        assert shop.told.count(key_of(session_id)) >= 1
