"""Questions for a session: who is asked, what the answers mean, and how long a request waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from caterwaul.managers import opening
from caterwaul.managers.backup import BackupManager
from caterwaul.managers.base import SessionManager
from caterwaul.managers.delta import DeltaManager
from caterwaul.managers.entry import Outcome
from caterwaul.managers.lookup import EARLY, SILENT, LookupEnded, Lookups, Question
from caterwaul.managers.messages import ABSENT, ELSEWHERE, FOUND, GONE, LOOKUP, UNSURE, Speaker
from caterwaul.managers.partitioned import PartitionedManager
from caterwaul.managers.placement import Ranked
from caterwaul.managers.record import Record
from caterwaul.managers.session import Session, key_of
from caterwaul.managers.settings import ManagerSettings
from caterwaul.membership.codec import decode
from caterwaul.membership.effects import Effect, Send
from tests.doubles import Net

KEY = b"k" * 16
A, B, C = (letter * 16 for letter in (b"a", b"b", b"c"))
TIMEOUT_MS = 500
BACKUP = ManagerSettings(type="backup", backups=2, idle_timeout_s=600, absolute_timeout_s=0, read_your_writes="cluster")


class Judge:
    """Keeps what it is asked to conclude, and ends the question with `verdict`; None: has it asked again."""

    def __init__(self, verdict: int | None = UNSURE) -> None:
        self.verdict = verdict
        self.heard: list[dict[bytes, int]] = []
        self.lookups = Lookups(Speaker("default"), TIMEOUT_MS, self)

    def __call__(self, key: bytes, question: Question, now_ms: int) -> list[Effect]:
        self.heard.append(dict(question.answers))
        if self.verdict is not None:
            return self.lookups.end(key, self.verdict)
        return self.lookups.again(key, now_ms)


def asked(effects: list[Effect]) -> list[bytes]:
    """Whom these ask for the key."""
    sends = [effect for effect in effects if isinstance(effect, Send)]
    assert all(decode(send.message.payload)[1:] == [LOOKUP, KEY] for send in sends)
    return [uid for send in sends for uid in send.to]


def ended(effects: list[Effect]) -> list[int]:
    return [effect.event[1] for effect in effects if isinstance(effect, LookupEnded)]


def test_all_are_asked_once_and_judged_when_the_last_has_answered() -> None:
    judge = Judge()
    lookups = judge.lookups
    assert asked(lookups.ask(KEY, [A, B], 0)) == [A, B]
    assert lookups.ask(KEY, [A, B], 10) == []
    assert lookups.answered(A, KEY, ABSENT, 20) == []
    assert ended(lookups.answered(B, KEY, UNSURE, 30)) == [UNSURE]
    assert judge.heard == [{A: ABSENT, B: UNSURE}]
    assert not lookups.is_pending(KEY)
    assert lookups.answered(B, KEY, FOUND, 40) == []


@pytest.mark.parametrize("verdict", [FOUND, GONE])
def test_one_who_knows_is_enough(verdict: int) -> None:
    judge = Judge()
    judge.lookups.ask(KEY, [A, B], 0)
    assert ended(judge.lookups.answered(B, KEY, verdict, 1)) == [verdict]
    assert judge.heard == []


def test_those_who_are_named_are_asked_too_and_each_but_once() -> None:
    judge = Judge()
    judge.lookups.ask(KEY, [A, B], 0)
    assert asked(judge.lookups.answered(A, KEY, ELSEWHERE, 1, [A, B, C])) == [C]
    question = judge.lookups.awaited(C, KEY)
    assert question is not None
    assert question.named == {B, C}
    assert judge.lookups.answered(B, KEY, ELSEWHERE, 2, [A, C]) == []
    judge.lookups.answered(C, KEY, UNSURE, 3)
    assert judge.heard == [{A: ELSEWHERE, B: ELSEWHERE, C: UNSURE}]


def test_with_nobody_to_ask_it_is_unknown_at_once() -> None:
    assert ended(Judge().lookups.ask(KEY, [], 0)) == [UNSURE]


def test_a_cut_link_is_an_answer_and_so_is_the_end_of_the_time() -> None:
    judge = Judge()
    judge.lookups.ask(KEY, [A, B], 0)
    assert judge.lookups.cut(A, 1) == []
    assert judge.lookups.deadline_ms == TIMEOUT_MS
    assert ended(judge.lookups.tick(TIMEOUT_MS)) == [UNSURE]
    assert judge.heard == [{A: SILENT, B: SILENT}]
    assert judge.lookups.timeouts == 1


def test_all_are_asked_again_and_only_what_they_say_then_counts() -> None:
    judge = Judge(None)
    judge.lookups.ask(KEY, [A, B], 0)
    judge.lookups.answered(A, KEY, ELSEWHERE, 1)
    judge.lookups.answered(B, KEY, ABSENT, 1)
    at = judge.lookups.deadline_ms
    assert at is not None
    assert asked(judge.lookups.tick(at)) == [A, B]
    question = judge.lookups.awaited(A, KEY)
    assert question is not None
    assert question.doubted  # "no" from both would not be gone, now that one has spoken of it
    assert not question.answers


def test_who_gave_the_session_and_could_not_say_so_is_believed_when_the_time_is_over() -> None:
    """A full outbox drops the answer and sends the record later (simulator, backup, seed 1707)."""
    judge = Judge()
    judge.lookups.ask(KEY, [A, B], 0)
    question = judge.lookups.awaited(A, KEY)
    assert question is not None
    question.shown.add(A)
    judge.lookups.tick(TIMEOUT_MS)
    assert judge.heard == [{A: EARLY, B: SILENT}]


def test_what_a_member_has_answered_counts_more_than_what_it_gave() -> None:
    judge = Judge(None)
    judge.lookups.ask(KEY, [A], 0)
    question = judge.lookups.awaited(A, KEY)
    assert question is not None
    question.shown.add(A)
    judge.lookups.answered(A, KEY, UNSURE, 1)
    judge.verdict = UNSURE
    judge.lookups.tick(TIMEOUT_MS)
    assert judge.heard == [{A: UNSURE}, {A: SILENT}]


def test_who_leaves_before_all_are_asked_again_is_not_waited_for() -> None:
    judge = Judge(None)
    judge.lookups.ask(KEY, [A, B], 0)
    judge.lookups.answered(A, KEY, ELSEWHERE, 1)
    judge.lookups.answered(B, KEY, UNSURE, 1)
    assert judge.lookups.cut(B, 2) == []
    at = judge.lookups.deadline_ms
    assert at is not None
    assert asked(judge.lookups.tick(at)) == [A]
    judge.lookups.answered(A, KEY, ELSEWHERE, 60)
    assert ended(judge.lookups.cut(A, 61)) == [UNSURE]


def test_nothing_is_asked_again_when_the_time_is_over() -> None:
    """Simulator, backup, seed 62: who was asked first had left, and who was asked in vain was asked again for four seconds."""
    judge = Judge(None)
    judge.lookups.ask(KEY, [A], 0)
    judge.lookups.widen(KEY, [B], frozenset())
    judge.lookups.answered(A, KEY, ELSEWHERE, 1)
    assert ended(judge.lookups.tick(TIMEOUT_MS)) == [UNSURE]
    assert not judge.lookups.is_pending(KEY)


# -- with members


@pytest.fixture
def net() -> Net:
    return Net(5, BACKUP, kind=BackupManager)


def holders(net: Net, session_id: str) -> list[int]:
    """The primary first."""
    core = net.managers[0]._core
    entries = (manager._core.replica.get(key_of(session_id)) for manager in net.managers)
    named = next(entry.primary for entry in entries if entry is not None and entry.head is not None)
    numbers = {m.uid: number for number, m in enumerate(net.members)}
    return [numbers[uid] for uid in core.placement.holders(key_of(session_id), named)]


def test_a_holder_serves_what_it_has_when_the_primary_does_not_answer(net: Net) -> None:
    session_id = net.visit(0, a=1)
    primary, *backups = holders(net, session_id)
    net.freeze(primary)
    for number in range(5):
        if number not in backups:
            net.freeze(number)
    session: list[Session] = []
    net.managers[backups[0]].open_deferred(session_id).addCallback(session.append)
    net.deliver()
    net.advance(BACKUP.lookup_timeout_s + 0.1)
    assert dict(session[0]) == {"a": 1}


def test_one_that_had_nothing_of_it_calls_it_unknown_then(net: Net) -> None:
    session_id = net.visit(0, a=1)
    other = next(number for number in range(5) if number not in holders(net, session_id))
    for number in range(5):
        if number != other:
            net.freeze(number)
    session: list[Session] = []
    net.managers[other].open_deferred(session_id).addCallback(session.append)
    net.deliver()
    net.advance(BACKUP.lookup_timeout_s + 0.1)
    assert session[0].unknown


def test_a_copy_in_doubt_that_nobody_could_judge_is_in_doubt_again_when_somebody_comes() -> None:
    """Simulator, partitioned, seed 1618: an older one went on being served after the partition had ended."""
    net = Net(3, replace(BACKUP, backups=1), kind=BackupManager)
    session_id = net.visit(0, a=1)
    key = key_of(session_id)
    holder = holders(net, session_id)[-1]
    handover = net.managers[holder]._core.moving.handover
    handover.recovering[key] = None
    net.managers[holder]._core.moving.near.hold(key)
    for number in range(3):
        if number != holder:
            net.kill(number)
    net.advance(2.0)
    assert key not in handover.recovering
    assert dict(net.opened(holder, session_id)) == {"a": 1}
    net.alive.update(net.channels)
    net.show_view(holder, net.view())
    assert key in handover.recovering


def test_a_request_waits_once_for_the_session_and_once_for_its_commits(net: Net) -> None:
    session_id = net.visit(0, a=1)
    session = net.opened(0, session_id)
    session["a"] = 2
    primary, *backups = holders(net, session_id)
    for backup in backups:
        net.hold(primary, backup)
    net.managers[primary].commit(session)
    token = session.token
    assert token
    for number in range(5):
        if number != backups[0]:
            net.freeze(number)
    found: list[Session] = []
    net.managers[backups[0]].open_deferred(session_id, token).addCallback(found.append)
    net.deliver()
    net.advance(BACKUP.lookup_timeout_s + BACKUP.read_your_writes_wait_s + 0.1)
    assert found[0].stale
    assert dict(found[0]) == {"a": 1}


def test_what_was_found_before_a_wait_is_not_replaced_by_less_that_came_meanwhile() -> None:
    """Simulator, partitioned, seed 2027: the reader had parted from its copy when the late answer of somebody who was behind came."""
    net = Net(5, replace(BACKUP, type="partitioned"), kind=PartitionedManager)
    session_id = net.visit(0, a=1)
    key = key_of(session_id)
    *others, author = holders(net, session_id)
    reader = next(number for number in range(5) if number not in (*others, author))
    entry = net.managers[author]._core.replica.get(key)
    assert entry is not None
    head, old = entry.head, net.managers[author]._core.replica.body_of(entry)
    assert old is not None
    net.visit(others[0], session_id, a=2)
    session = net.opened(author, session_id)
    session["b"] = 1
    for number in range(5):
        net.hold(author, number)
    net.managers[author].commit(session)
    token = session.token
    found: list[Session] = []
    net.managers[reader].open_deferred(session_id, token).addCallback(found.append)
    net.advance(0.3)
    assert not found  # it waits for what its browser has written
    replica = net.managers[reader]._core.replica
    replica.drop(key)
    net.managers[reader]._core.moving.near.forget(key)
    replica.merge_record(key, head, entry.created_ms, entry.touches, old, Record.unpack(old), Outcome())
    net.managers[reader]._core.moving.near.hold(key)
    net.advance(1.5)
    assert found[0]["a"] == 2


def test_whatever_comes_up_a_request_waits_for_some_time_only(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net.managers[0]._opening, "_go_on", lambda question, verdict: question)
    found = frozen_out(net, 0, "x" * 43)
    assert not found
    net.advance(opening._QUESTIONS_MAX * (BACKUP.lookup_timeout_s + 0.1))
    assert found[0].unknown


def frozen_out(net: Net, number: int, session_id: str, token: str = "") -> list[Session]:
    """A request on this member, while the others stand still; what it got is in the list, now or later."""
    for other in range(len(net.members)):
        if other != number:
            net.freeze(other)
    found: list[Session] = []
    net.managers[number].open_deferred(session_id, token).addCallback(found.append)
    net.deliver()
    return found


def test_a_near_copy_that_is_stale_is_not_served_when_its_reader_becomes_a_holder() -> None:
    """It becomes one with the change of view that ends the question; its copies are looked at after that."""
    settings = replace(BACKUP, type="partitioned", backups=1)
    net = Net(5, settings, kind=PartitionedManager)
    session_id = net.visit(0, a=1)
    held_by = holders(net, session_id)
    left = net.view()
    for holder in held_by:
        left = left.without(net.members[holder].uid)
    reader = next(number for number in range(5) if net.members[number].uid == Ranked(left, net.members[0].uid, 2).holders(key_of(session_id), b"")[0])
    assert dict(net.opened(reader, session_id)) == {"a": 1}
    for holder in held_by:
        net.hold(reader, holder)
    ended = net.opened(held_by[0], session_id)
    ended.invalidate()
    net.managers[held_by[0]].commit(ended)
    net.deliver()
    found: list[Session] = []
    for holder in held_by:
        net.freeze(holder)
    net.managers[reader].open_deferred(session_id).addCallback(found.append)
    net.deliver()
    net.advance(0.1)
    assert not found
    net.show_view(reader, left)
    assert found[0].unknown


def test_who_stood_still_while_it_waited_for_commits_asks_again(net: Net) -> None:
    session_id = net.visit(0, a=1)
    primary, backup, *_ = holders(net, session_id)
    session = net.opened(primary, session_id)
    session["a"] = 2
    for number in range(5):
        net.hold(primary, number)
    net.managers[primary].commit(session)
    found = frozen_out(net, backup, session_id, session.token)
    net.advance(BACKUP.lookup_timeout_s + 0.05)
    assert not found  # it waits for what its browser has written
    for number in range(5):
        net.thaw(number)
    net.let_go()
    net.freeze(backup)
    net.managers[backup]._driver.stop()
    ended = net.opened(primary, session_id)
    ended.invalidate()
    net.managers[primary].commit(ended)
    net.deliver()
    net.advance(30.0, step_s=0.5)
    net.managers[backup]._driver.start()
    net.clock.advance(0.002)
    assert not found  # its timer comes before what it was sent meanwhile


@pytest.mark.parametrize(("kind", "settings"), [(DeltaManager, replace(BACKUP, type="delta")), (BackupManager, BACKUP)])
def test_a_copy_whose_time_seems_over_is_unknown_while_those_who_may_know_better_are_silent(kind: type[SessionManager], settings: ManagerSettings) -> None:
    """It was used a moment before its primary stood still, which is told to the others only now and then."""
    net = Net(3, replace(settings, idle_timeout_s=30, save_period_s=60, read_your_writes="same-node"), kind=kind)
    session_id = net.visit(0, a=1)
    net.advance(2.5, step_s=0.25)
    net.visit(0, session_id)
    net.freeze(0)
    net.hold(0, 1)
    net.hold(0, 2)
    net.advance(27.7, step_s=0.25)
    found = frozen_out(net, 2, session_id)
    net.advance(BACKUP.lookup_timeout_s + 0.2)
    assert found[0].unknown


def test_the_last_member_does_not_call_a_session_over_that_one_it_has_lost_may_have_used() -> None:
    net = Net(2, ManagerSettings(idle_timeout_s=10, absolute_timeout_s=0, unknown_for_s=5))
    session_id = net.visit(0, a=1)
    net.advance(9.5, step_s=0.25)
    net.kill(1)
    net.clock.advance(0.5)
    found: list[Session] = []
    net.managers[0].open_deferred(session_id).addCallback(found.append)
    net.deliver()
    assert found[0].unknown


@pytest.mark.parametrize(("kind", "settings"), [(PartitionedManager, replace(BACKUP, type="partitioned", backups=1)), (BackupManager, BACKUP)])
def test_a_copy_whose_time_seems_over_is_no_answer_before_the_others_have_spoken(kind: type[SessionManager], settings: ManagerSettings) -> None:
    """One holder has heard of the last use, the other not yet, and is the first to answer (simulator, partitioned, seed 5)."""
    net = Net(5, replace(settings, idle_timeout_s=30, save_period_s=60, read_your_writes="same-node"), kind=kind)
    session_id = net.visit(0, a=1)
    user = holders(net, session_id)[0]
    outsider = next(number for number in range(5) if number not in holders(net, session_id))
    net.advance(20, step_s=0.25)
    for number in range(5):
        net.hold(user, number)
    used = net.opened(user, session_id)
    assert used["a"] == 1
    net.managers[user].commit(used)
    net.managers[user].release(used)
    net.advance(10.1, step_s=0.25)
    found: list[Session] = []
    net.managers[outsider].open_deferred(session_id).addCallback(found.append)
    net.deliver()
    assert not found
    net.let_go()
    net.deliver()
    assert dict(found[0]) == {"a": 1}


@pytest.mark.parametrize(("kind", "settings"), [(PartitionedManager, replace(BACKUP, type="partitioned", backups=1)), (BackupManager, BACKUP)])
def test_a_session_that_seems_over_is_unknown_while_a_loss_is_new(kind: type[SessionManager], settings: ManagerSettings) -> None:
    """Whoever is lost may have used it last, and go on using it beyond a cut (simulator, partitioned, seed 10)."""
    settings = replace(settings, idle_timeout_s=30, save_period_s=60, read_your_writes="same-node", unknown_for_s=5)
    net = Net(5, settings, kind=kind)
    session_id = net.visit(0, a=1)
    user, *others = holders(net, session_id)
    net.advance(29, step_s=0.25)
    net.kill(user)
    newcomer = net.join()  # knows of no loss, and asks those who do
    net.advance(1.1)
    found: list[Session] = []
    for number in (*others, newcomer):
        net.managers[number].open_deferred(session_id).addCallback(found.append)
    net.advance(settings.lookup_timeout_s + 0.1)
    assert len(found) == len(others) + 1
    assert all(session.unknown for session in found)
    net.advance(6)
    assert net.opened(others[0], session_id).new


class Meanwhile:
    """Stands for the `Event` on which a thread waits: others act first, all at once."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self._is_set = False

    def wait(self, timeout_s: float) -> None:
        self._act()

    def set(self) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set


def test_what_was_found_is_served_though_the_copy_would_go_before_the_waiting_thread_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a drained node dropped it in between, and called the session unknown (three requests of a rolling restart)."""
    net, session_id, asking = _held_elsewhere()
    core = net.managers[asking]._core

    def act() -> None:
        net.deliver()
        if not core.moving.handover.parting._keep(key_of(session_id)):
            core.replica.drop(key_of(session_id))

    monkeypatch.setattr(opening, "Event", lambda: Meanwhile(act))
    session = net.managers[asking].open(session_id)
    assert dict(session) == {"a": 1}
    assert core.in_use == {session.key: 1}


def test_a_session_that_is_given_after_the_thread_has_gone_is_not_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    net, session_id, asking = _held_elsewhere()
    monkeypatch.setattr(opening, "Event", lambda: Meanwhile(lambda: None))
    assert net.managers[asking].open(session_id).unknown
    net.deliver()
    assert net.managers[asking]._core.in_use == {}


def test_nothing_is_dropped_between_the_end_of_a_question_and_its_use() -> None:
    """Both may fall into one tick."""
    net, _, asking = _held_elsewhere()
    core = net.managers[asking]._core
    order: list[str] = []
    for part, name in ((core.moving, "moving"), (core.lookups, "look-ups")):
        real = part.tick
        part.tick = lambda now_ms, real=real, name=name: (order.append(name), real(now_ms))[1]  # type: ignore[method-assign,misc]
    core.tick(net.channels[net.members[asking].uid].now_ms())
    assert order == ["moving", "look-ups"]


def _held_elsewhere() -> tuple[Net, str, int]:
    """Five members, a session, and one that does not hold it."""
    net = Net(5, BACKUP, kind=BackupManager)
    session_id = net.visit(0, a=1)
    return net, session_id, next(number for number in range(5) if net.managers[number]._core.replica.get(key_of(session_id)) is None)


def test_a_session_whose_time_seems_over_is_unknown_while_those_who_hold_it_are_not_sure() -> None:
    """Who asks has seen no loss, and they have: whom they lost may have used it (simulator, partitioned, seed 5)."""
    net, session_id, asking = _held_elsewhere()
    key = key_of(session_id)
    core = net.managers[asking]._core
    holder = next(manager._core for manager in net.managers if manager._core.replica.held(key) is not None)
    net.deliver()
    core.finding.ask(key, 0)
    question = core.lookups._pending[key]
    entry = holder.replica.get(key)
    assert entry is not None
    core.replica.merge_record(key, entry.head, 0, (), holder.replica.body_of(entry), Record.unpack(holder.replica.body_of(entry)), Outcome())  # type: ignore[arg-type]
    core.moving.handover.parting._truth.add(key)
    over_ms = 10**9
    question.answers = dict.fromkeys(question.waiting, UNSURE)
    assert core.servable(key, over_ms) is None
    assert ended(core.finding._conclude(key, question, over_ms)) == [UNSURE]


@pytest.mark.parametrize("doubt", [UNSURE, SILENT])
def test_one_who_has_just_started_is_not_surer_that_a_session_is_over_than_one_who_knows_of_a_loss(doubt: int) -> None:
    """Two that have just joined know of no loss; the third holder has lost who used the session (simulator, backup, seed 3066)."""
    net, session_id, asking = _held_elsewhere()
    key = key_of(session_id)
    core = net.managers[asking]._core
    net.deliver()
    *others, last = (manager._core for manager in net.managers if manager._core.replica.held(key) is not None)
    entry = last.replica.get(key)
    assert entry is not None
    over_ms = 10**9
    core.finding.ask_for(key, [holder.me for holder in (*others, last)], over_ms, doubted=False)
    core.replica.merge_record(key, entry.head, 0, (), last.replica.body_of(entry), Record.unpack(last.replica.body_of(entry)), Outcome())  # type: ignore[arg-type]
    assert core.servable(key, over_ms) is None
    for holder in others:
        assert ended(core.lookups.answered(holder.me, key, doubt, over_ms)) == []
    assert ended(core.finding.answered(last.me, key, FOUND, over_ms)) == [UNSURE]
