"""Three managers, any history of commits, ends, cuts, losses and joins: when the faults are over all copies are equal, and nothing is lost or foreign."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from caterwaul.managers.merging_types import Counter
from caterwaul.managers.settings import ManagerSettings
from tests.doubles import Net, wrong_sums

picks = st.integers(0, 10**6)
_EXAMPLES = int(os.environ.get("CATERWAUL_CLUSTER_EXAMPLES", "60"))


class Cluster(RuleBasedStateMachine):
    """The model: what each session's attributes may be. An attribute has one writer (``"m2"`` is written on node 2 only), so its values only grow; all write the counter."""

    overtaking = False

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(3, ManagerSettings(idle_timeout_s=3000, absolute_timeout_s=0, pack_after_s=0.5), overtaking=self.overtaking)
        self.ids: list[str] = []
        self.ended: list[tuple[str, int, object]] = []  # (session id, member that ended it, receipt)
        self.written: dict[tuple[str, str], int] = {}  # (owner, attribute) -> last value its writer wrote
        self.acked: dict[tuple[str, str], tuple[int, set[int]]] = {}  # (session id, attribute) -> value, members that have it
        self.waiting: list[tuple[object, str, str, int, int]] = []
        self.cuts: set[tuple[int, int]] = set()
        self.owner: dict[str, str] = {}  # id -> the name all its values carry, kept over id changes
        self.killed: list[int] = []
        self.began: dict[str, int] = {}  # id -> what its counter had when the id was new
        self.counted: dict[str, list[int]] = {}  # id -> the members that added one
        self.count = 0

    def alive(self) -> list[int]:
        return [n for n, m in enumerate(self.net.members) if m.uid in self.net.alive]

    def some(self, pick: int) -> int:
        alive = self.alive()
        return alive[pick % len(alive)]

    def open(self, pick: int, number: int):
        if not self.ids:
            return None
        session_id = self.ids[pick % len(self.ids)]
        session = self.net.managers[number].open_local(session_id)
        if session is None or session.unknown or session.id is None:
            return None
        self.check_contents(session_id, session)
        return session

    def check_contents(self, session_id: str, session) -> None:
        assert int(session.get("views", 0)) <= self.began.get(session_id, 0) + len(self.counted.get(session_id, ())), "an addition counts twice"
        for name, value in self.lists(session):
            assert value[0] == self.owner[session_id], "a foreign value"
            assert value[-1] <= self.written[self.owner[session_id], name], "a value that nobody wrote"

    def lists(self, session):
        return [(name, value) for name, value in session.items() if name != "views"]

    def settle_receipts(self) -> None:
        for receipt, session_id, name, value, writer in self.waiting:
            by = self.confirmed(receipt)
            if by and value >= self.acked.get((session_id, name), (0, set()))[0]:
                self.acked[session_id, name] = (value, by | {writer})

    def confirmed(self, receipt) -> set[int]:
        return {n for n, m in enumerate(self.net.members) if m.name in receipt.confirmed}

    @rule(pick=picks)
    def create(self, pick: int) -> None:
        number = self.some(pick)
        session = self.net.managers[number].open_local(None)
        self.count += 1
        owner = f"s{self.count}"
        session[f"m{number}"] = [owner, 1]
        self.net.managers[number].commit(session)
        self.ids.append(session.id)
        self.owner[session.id] = owner
        self.written[owner, f"m{number}"] = 1

    @rule(pick=picks, member=picks, nested=st.booleans(), remove=st.integers(0, 5), acks=st.sampled_from(["none", "one", "all"]))
    def write(self, pick: int, member: int, nested: bool, remove: int, acks: str) -> None:
        number = self.some(member)
        session = self.open(pick, number)
        if session is None:
            return
        manager = self.net.managers[number]
        name, owner = f"m{number}", self.owner[session.id]
        value = self.written.get((owner, name), 0) + 1
        dropped = manager._committing.dropped
        if not remove and name in session:
            del session[name]
        elif nested and name in session:
            session[name].append(value)
        else:
            session[name] = [owner, value]
        receipt = manager.commit(session, acks)
        manager.release(session)
        if manager._committing.dropped == dropped:
            self.written[owner, name] = value
            if remove or name in session:
                self.waiting.append((receipt, session.id, name, value, number))
            else:
                self.acked.pop((session.id, name), None)
                self.waiting = [w for w in self.waiting if w[1:3] != (session.id, name)]

    @rule(picks=st.lists(st.tuples(picks, picks), min_size=1, max_size=3))
    def count_at_the_same_time(self, picks: list[tuple[int, int]]) -> None:
        """Requests that are all open before the first of them commits."""
        members = [self.some(member) for _, member in picks]
        sessions = [(number, self.open(pick, number)) for (pick, _), number in zip(picks, members, strict=True)]
        for number, session in sessions:
            if session is None:
                continue
            manager = self.net.managers[number]
            dropped = manager._committing.dropped
            session.setdefault("views", Counter()).add(1)
            manager.commit(session)
            manager.release(session)
            if manager._committing.dropped == dropped:
                self.counted.setdefault(session.id, []).append(number)

    @rule(pick=picks, member=picks)
    def read(self, pick: int, member: int) -> None:
        number = self.some(member)
        session = self.open(pick, number)
        if session is not None:
            self.net.managers[number].commit(session)
            self.net.managers[number].release(session)

    @rule(pick=picks, member=picks)
    def invalidate(self, pick: int, member: int) -> None:
        number = self.some(member)
        session = self.open(pick, number)
        if session is not None:
            session.invalidate()
            receipt = self.net.managers[number].commit(session)
            self.net.managers[number].release(session)
            self.ended.append((self.ids[pick % len(self.ids)], number, receipt))

    @rule(pick=picks, member=picks)
    def change_id(self, pick: int, member: int) -> None:
        number = self.some(member)
        session = self.open(pick, number)
        if session is None or len(session) == 0:
            return
        old = session.id
        session.cycle_id()
        receipt = self.net.managers[number].commit(session)
        self.net.managers[number].release(session)
        self.ended.append((old, number, receipt))
        self.owner[session.id] = self.owner[old]
        self.ids.append(session.id)
        self.waiting += [(receipt, session.id, name, value[-1], number) for name, value in self.lists(session)]
        self.began[session.id] = int(session.get("views", 0))

    @rule(steps=st.integers(1, 12))
    def deliver_some(self, steps: int) -> None:
        for _ in range(steps):
            self.net.step()
        self.settle_receipts()

    @rule(seconds=st.sampled_from([0.05, 0.3, 1.2]))
    def pass_time(self, seconds: float) -> None:
        self.net.advance(seconds)
        self.settle_receipts()

    @rule(one=picks, other=picks)
    def cut(self, one: int, other: int) -> None:
        a, b = sorted((self.some(one), self.some(other)))
        if a != b and (a, b) not in self.cuts:
            self.cuts.add((a, b))
            self.net.part(a, b)

    @rule(pick=picks)
    @precondition(lambda self: self.cuts)
    def heal(self, pick: int) -> None:
        a, b = sorted(self.cuts)[pick % len(self.cuts)]
        self.cuts.discard((a, b))
        self.net.heal(a, b)

    @rule(pick=picks)
    @precondition(lambda self: len(self.killed) < 2 and len(self.alive()) > 2)
    def kill_and_join(self, pick: int) -> None:
        number = self.some(pick)
        self.settle_receipts()
        self.killed.append(number)
        self.cuts = {pair for pair in self.cuts if number not in pair}
        self.net.kill(number)
        self.net.join()

    def teardown(self) -> None:
        self.settle_receipts()
        for a, b in sorted(self.cuts):
            self.net.heal(a, b)
        self.net.deliver()
        self.net.advance(10, 0.1)
        bodies = self.net.bodies()
        assert all(other == bodies[0] for other in bodies), "copies differ"
        for number in self.alive():
            manager = self.net.managers[number]
            assert manager.in_sync
            assert manager._driver.errors == 0
            assert wrong_sums(manager) == [], "a change that is in no sum"
            told = {s for s, ender, receipt in self.ended if not ({ender} | self.confirmed(receipt)) <= set(self.killed)}
            for session_id in told:
                session = manager.open_local(session_id)
                assert session is None or session.id is None, "an ended id is served"
            for session_id in set(self.ids) - {s for s, _, _ in self.ended}:
                session = manager.open_local(session_id)
                counted = sum(1 for by in self.counted.get(session_id, ()) if by not in self.killed)
                acked = {name: value for (of, name), (value, by) in self.acked.items() if of == session_id and not by <= set(self.killed)}
                if session is None or session.id is None:
                    assert not acked, "an acknowledged session is lost"
                    assert not counted, "an addition is lost with its session"
                    continue
                self.check_contents(session_id, session)
                assert not counted or int(session["views"]) >= self.began.get(session_id, 0) + counted, "an addition is lost"
                for name, value in acked.items():
                    assert session[name][-1] >= value, "an acknowledged value is lost"


class OvertakingCluster(Cluster):
    overtaking = True


_settings = settings(max_examples=_EXAMPLES, stateful_step_count=40, suppress_health_check=list(HealthCheck))
TestCluster = Cluster.TestCase
TestCluster.settings = _settings
TestOvertakingCluster = OvertakingCluster.TestCase
TestOvertakingCluster.settings = _settings
