"""Opening sessions: from memory where this member may answer, after asking others where it may not.

`open_local` never waits; None says that somebody has to be asked. `open` waits in a thread, `open_deferred` in the
reactor, `open_soon` nowhere. Two questions there are. *Where is the session?* goes to its keepers: an answer of *unknown* gives a session that reads
as empty and refuses writes; it stands for at most a second, and after `unknown_for_s` the session counts as gone. *Have you
what this browser wrote?* comes up when its token (`tokens.py`) names commits that are not here: `freshness.py` waits and asks, for
`read_your_writes_wait_s`; then the session is served as it is, counted, and marked `stale`.

A browser with a token has had a session, so a member does not call it gone from memory alone: it asks, the authors that the token names
among others, ten times a second at most. What made-up tokens cost is bounded for each client, as made-up ids are (`throttle.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from threading import Event
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ..membership.channel import Channel
from ..membership.effects import Effect
from .core import SessionCore
from .entry import Entry
from .fetching import Fetching
from .freshness import LATE, LOST
from .lock import PoliteLock
from .messages import FOUND, GONE, UNSURE
from .placement import Placement
from .record import RENEWED, Record
from .renewal import Renewed, read_renewed
from .session import Session, key_of
from .tokens import Written, authentic, claimed, latest_token, secret_of, uncovered, write_token

__all__ = ["Opening", "is_id"]

_log = Logger()
_STANDS_MS = 1000  # an answer that was no session
_DENIED_MS = 100  # that nobody has what a token speaks of; it may be on its way
_KEPT_MAX = 4096
_QUESTIONS_MAX = 6  # of one request: where it is, what its browser wrote, the first again; and the same once more, whatever the view does meanwhile
is_id = re.compile(r"[A-Za-z0-9_-]{43}").fullmatch  #: true for what may be a session's id


class _Question(NamedTuple):
    """A request for a session, and what somebody has to be asked before it can be given."""

    session_id: str
    key: bytes
    token: str  #: empty where tokens are not looked at
    missing: Written | None = None  #: commits to wait for; None: the session is looked for
    waited: int | None = None  #: how a wait has ended already: CAME, LATE or LOST
    placement: Placement | None = None  #: of when it came up
    left: int = _QUESTIONS_MAX
    needed: Written | None = None  #: commits that it is no use without
    replaced: bool = False  #: an older id says that there is a session
    in_store: bool = False  #: nobody has it, or the store knows better, and it is asked
    checked: bool = False  #: it was
    doubted: bool = False  #: but did not answer
    found: dict[bytes, int] | None = None  #: what a look-up has found already (`Record.applied`): unless less is here after the wait, nobody is asked again


class Opening:
    """`react` runs a step of the core and performs its effects (reactor thread); `made` builds a session (arguments after `entropy`);
    `lead(key)`: this member serves the session from now on and becomes its primary."""

    def __init__(
        self,
        core: SessionCore,
        channel: Channel,
        lock: PoliteLock,
        react: Callable[[Callable[[int], list[Effect]]], None],
        made: Callable[..., Session],
        lead: Callable[[bytes], None],
    ) -> None:
        self._core = core
        self._channel = channel
        self._lock = lock
        self._react = react
        self._made = made
        self._lead = lead
        settings = core.settings
        self._reads_tokens = settings.read_your_writes == "cluster"
        self._timeout_s = max(settings.lookup_timeout_s, settings.read_your_writes_wait_s)
        self._unknown_for_ms = settings.unknown_for_s * 1000
        self._lookups: dict[bytes, list[Callable[[int], None]]] = {}
        self._waits: dict[bytes, list[Callable[[int], None]]] = {}
        self._unknown: dict[bytes, tuple[int, int, Placement]] = {}  # key -> (first, last) time it was called unknown, and in which view
        self._denied: dict[bytes, tuple[int, Placement]] = {}  # key -> when, and in which view, nobody had a session that a token spoke of
        self._stopped = False
        self.store: Fetching | None = None  #: where sessions may be that no member has; the manager sets it
        self.stale_reads = 0

    def open_local(self, session_id: str | None, token: str = "") -> Session | None:
        """The session as far as this member may say by itself: found, or a new one. None: somebody must be asked. Any thread, never waits."""
        found = self._begin(session_id, token)
        return None if isinstance(found, _Question) else found

    def open(self, session_id: str | None, token: str = "") -> Session:
        """The same, asking others if need be. Any thread but the reactor's; waits `lookup_timeout_s` and `read_your_writes_wait_s`, and the first once more if
        what was found went meanwhile, or the view changed."""
        found = self._begin(session_id, token)
        return self._block(found) if isinstance(found, _Question) else found

    def open_deferred(self, session_id: str | None, token: str = "") -> Deferred[Session]:
        """The same in the reactor's thread."""
        result: Deferred[Session] = Deferred()
        self._follow(self._begin(session_id, token), result.callback)
        return result

    def open_soon(self, session_id: str | None, token: str, give: Callable[[Session], None]) -> None:
        """The same from any thread, which goes on at once; `give(session)` is called in the reactor's thread."""
        self._channel.wake(lambda: self._follow(self._begin(session_id, token), give))

    def reopen(self, session_id: str, needed: Written) -> Deferred[Session]:
        """The session with these commits in it, waited for as those of a token are: unknown if they are late. What nobody has that is left is not waited
        for, and the session is `stale`. Reactor's thread."""
        result: Deferred[Session] = Deferred()
        with self._lock:
            found = self._look(_Question(session_id, key_of(session_id), "", needed=needed), self._channel.now_ms())
        self._follow(found, result.callback)
        return result

    def unknown(self) -> Session:
        """The session of a request that nobody is asked for: it reads as empty, and refuses writes."""
        return self._made(unknown=True)

    def is_primary(self, session: Session) -> bool:
        """Whether this member is the session's primary: the one that other members ask first, and where a sticky balancer should send its requests."""
        with self._lock:
            entry = self._core.replica.held(session.key) if session.key else None
        return entry is not None and entry.primary == self._core.me

    def release(self, session: Session) -> None:
        """The request is over: the session is not in use by it any more, and if it had the turn, that is somebody else's. Repeats are harmless."""
        key, session.opened = session.opened, b""
        if session.turn is not None:
            session.turn.give_back()
            session.turn = None
        if key:
            with self._lock:
                self._core.in_use.add(key, -1)

    # -- from memory

    def _begin(self, session_id: str | None, token: str) -> Session | _Question:
        if session_id is None or not is_id(session_id):
            return self._made()
        key = key_of(session_id)
        now_ms = self._channel.now_ms()
        with self._lock:
            return self._look(_Question(session_id, key, token if self._reads_tokens else ""), now_ms)

    def _look(self, about: _Question, now_ms: int) -> Session | _Question:
        core, key = self._core, about.key
        if self.store is not None and self.store.is_shared and not about.checked and not core.replica.has_ended(key):
            return about._replace(in_store=True)
        entry, trusted = core.trusted(key, now_ms)
        if about.found is not None and not trusted and core.awake(now_ms):
            entry = core.servable(key, now_ms)
            record = core.replica.record(key, entry) if entry is not None else None
            trusted = record is not None and record.has_seen(about.found)
        if entry is None and (not trusted or (about.token and self._is_doubtful(key, about.token, now_ms)) or self._is_expected(about)):
            first, last, placement = self._unknown.get(key, (now_ms, now_ms - _STANDS_MS, core.placement))
            if now_ms - last < _STANDS_MS and placement is core.placement:  # who has come meanwhile may know
                return self._lost_or_unknown(first, now_ms)
            trusted = False
        if not trusted:
            return about._replace(placement=core.placement, found=None)
        if entry is not None and core.replica.unverified and key in core.replica.unverified and about.left and not about.checked:
            return about._replace(in_store=True)
        self._unknown.pop(key, None)
        return self._absent(about, now_ms) if entry is None else self._bind(about, entry, about.found is not None)

    def _absent(self, about: _Question, now_ms: int) -> Session | _Question:
        """No member has it. A store may, unless one has just said that it does not, or somebody here knows that the session has ended."""
        if (
            self.store is None
            or self.store.is_shared
            or not about.left
            or self._core.replica.get(about.key) is not None
            or not self.store.may_find(about.key, now_ms)
        ):
            return self._made()
        return about._replace(in_store=True)

    def _is_expected(self, about: _Question) -> bool:
        """Whether this session, of which nothing is here, was somewhere a moment ago."""
        return about.replaced and self._core.replica.get(about.key) is None and bool(self._core.placement.peers())

    def _is_doubtful(self, key: bytes, token: str, now_ms: int) -> bool:
        """Whether a browser says that it wrote this absent session, and nobody was asked about that just now."""
        core = self._core
        if core.replica.get(key) is not None or not core.placement.peers() or not claimed(token):
            return False
        denied = self._denied.get(key)
        return denied is None or denied[1] is not core.placement or now_ms - denied[0] >= _DENIED_MS

    def _bind(self, about: _Question, entry: Entry, asked: bool) -> Session | _Question:
        """`asked`: a look-up has just found it."""
        key, token, waited = about.key, about.token, about.waited
        record = self._core.replica.record(key, entry)
        assert record is not None
        missing: Written | None = None
        if token:
            missing, token = self._examine(key, token, waited, record)
            if missing and waited is None and token:
                return about._replace(token=token, missing=missing, found=dict(record.applied) if asked else None)
        if RENEWED in record.registers and (renewed := read_renewed(record.registers)) is not None:
            return self._renewed(about, entry, renewed)
        if about.needed:
            missing = uncovered(about.needed, record.applied)
            if missing and waited is None:
                return about._replace(missing=missing, found=dict(record.applied) if asked else None)
            if missing and waited == LATE:
                return self._made(unknown=True)
        session = self._made(about.session_id, key, record.registers.copy(), entry.created_ms, record.size)
        session.opened = key
        self._core.in_use.add(key, 1)
        if token:
            session.token = token
        elif about.replaced and self._reads_tokens:
            session.token = latest_token(record.registers, record.applied, key)
        if missing or about.doubted or self._is_behind(key):
            session.stale = True
            self.stale_reads += 1
        if not self._core.placement.everywhere and self._core.placement.leads(entry.primary):
            self._lead(key)
        return session

    def _renewed(self, about: _Question, entry: Entry, renewed: Renewed) -> Session | _Question:
        """This id was replaced: the session is found under the next one, until the grace is over."""
        session_id = self._core.renewals.next_of(about.session_id, about.key)
        now_ms = self._channel.now_ms()
        if session_id is None or key_of(session_id) != renewed.key or now_ms >= entry.created_ms + renewed.until_ms:
            return self._made()
        if not about.left:
            return self._made(unknown=True)  # replaced more often than one request may follow
        return self._look(_Question(session_id, renewed.key, "", left=about.left - 1, replaced=True, needed=about.needed), now_ms)

    def _is_behind(self, key: bytes) -> bool:
        """A copy that went from here had more in it. That is said once if nobody is left who could show it."""
        if not self._core.finding.is_behind(key):
            return False
        departed = self._core.replica.departed
        if not any(uid in self._core.placement.view for uid in departed.trusted(key)):
            departed.forget(key)
        return True

    def _examine(self, key: bytes, token: str, waited: int | None, record: Record) -> tuple[Written, str]:
        """(commits that this token names and the record lacks, the token that the browser is to keep)."""
        secret = secret_of(record.registers)
        if secret is None:  # its beginning is lost, or it is older than the setting: nothing can be believed or waited for
            return uncovered(claimed(token), record.applied), ""
        written = authentic(token, secret, key)
        missing = uncovered(written, record.applied)
        if missing and waited == LOST:  # said once; the browser forgets what nobody has
            return missing, write_token({short: counter for short, counter in written.items() if short not in missing}, secret, key)
        return missing, token if written else ""

    def _lost_or_unknown(self, first_ms: int, now_ms: int) -> Session:
        if now_ms - first_ms >= self._unknown_for_ms:
            return self._made()
        return self._made(unknown=True)

    # -- asking

    def _follow(self, found: Session | _Question, give: Callable[[Session], None]) -> None:
        """Ask until there is a session. Reactor's thread, so that nothing comes between an answer and the use of what it has brought."""
        if isinstance(found, _Question) and not found.left:
            give(self._made(unknown=True))
        elif isinstance(found, _Question):
            question = found._replace(left=found.left - 1)
            self._ask(question, lambda verdict: self._follow(self._try_on(question, verdict), give))
        else:
            give(found)

    def _try_on(self, question: _Question, verdict: int) -> Session | _Question:
        """`_go_on`; what one request runs into is not the others'."""
        try:
            return self._go_on(question, verdict)
        except Exception:
            _log.failure("session {key} cannot be opened", key=question.key.hex())
            return self._made(unknown=True)

    def _block(self, question: _Question) -> Session:
        given, gone = Event(), Event()
        sessions: list[Session] = []

        def give(session: Session) -> None:
            with self._lock:
                sessions.append(session)
            if gone.is_set():
                self.release(session)
            given.set()

        self._channel.wake(lambda: self._follow(question, give))
        given.wait(3 * self._timeout_s + 1.0)  # questions end by themselves sooner, if the reactor is alive
        with self._lock:
            if sessions:
                return sessions[0]
            gone.set()
        found = self._go_on(question, _nothing_heard(question))
        return self._made(unknown=True) if isinstance(found, _Question) else found

    def _ask(self, question: _Question, callback: Callable[[int], None]) -> None:
        key, missing = question.key, question.missing
        if self._stopped:
            callback(_nothing_heard(question))
        elif question.in_store and self.store is not None:
            self.store.fetch(key, callback)
        elif missing is None:
            self._lookups.setdefault(key, []).append(callback)
            self._react(lambda now_ms: self._core.finding.ask(key, now_ms, question.token))
        else:
            self._waits.setdefault(key, []).append(callback)
            self._react(lambda now_ms: self._core.finding.await_commits(key, missing, now_ms))

    def found(self, key: bytes, verdict: int) -> None:
        """The look-up of this key is over."""
        for callback in self._lookups.pop(key, ()):
            callback(verdict)

    def waited(self, key: bytes, verdict: int) -> None:
        """The wait for commits to this key is over."""
        for callback in self._waits.pop(key, ()):
            callback(verdict)

    def stop(self) -> None:
        """Nobody will answer any more: whoever waits, and whoever asks from now on, hears unknown."""
        self._stopped = True
        for key in list(self._lookups):
            self.found(key, UNSURE)
        for key in list(self._waits):
            self.waited(key, LATE)

    def _go_on(self, question: _Question, verdict: int) -> Session | _Question:
        """What the answer means for the request."""
        now_ms = self._channel.now_ms()
        with self._lock:
            if question.missing is not None:
                return self._look(question._replace(missing=None, waited=verdict), now_ms)
            if question.in_store:
                return self._fetched(question._replace(in_store=False), verdict, now_ms)
            return self._looked_up(question, verdict, now_ms)

    def _fetched(self, about: _Question, verdict: int, now_ms: int) -> Session | _Question:
        """What a store has said."""
        about = about._replace(checked=True, doubted=verdict == UNSURE)
        if verdict == UNSURE and self._core.trusted(about.key, now_ms)[0] is None:
            return self._unsure(about.key, now_ms)  # what is in memory is served from there
        return self._look(about, now_ms) if verdict != GONE else self._made()

    def _looked_up(self, about: _Question, verdict: int, now_ms: int) -> Session | _Question:
        core, key = self._core, about.key
        if verdict == GONE:
            core.finding.take_parts(key)
        entry = core.servable(key, now_ms)
        if verdict == UNSURE or (verdict == FOUND and entry is None and not core.finding.has_ended(key, now_ms)):
            return self._unsure(key, now_ms)
        self._unknown.pop(key, None)
        if entry is not None:
            return self._bind(about, entry, True)
        if about.token and about.placement is not core.placement and core.replica.get(key) is None:
            return about._replace(placement=core.placement)  # who has come meanwhile may be one that its browser wrote through
        if about.token:
            _keep(self._denied, key, (now_ms, core.placement))
        return self._absent(about, now_ms)

    def _unsure(self, key: bytes, now_ms: int) -> Session:
        """Nobody could say. That stands for a while."""
        placement = self._core.placement
        first, last, _ = self._unknown.pop(key, (now_ms, now_ms, placement))
        if now_ms - last >= self._unknown_for_ms:
            first = now_ms  # that was another time
        _keep(self._unknown, key, (first, now_ms, placement))
        return self._lost_or_unknown(first, now_ms)


def _nothing_heard(question: _Question) -> int:
    return UNSURE if question.missing is None else LATE


def _keep(table: dict[bytes, Any], key: bytes, value: Any) -> None:
    """As the newest; the oldest of too many goes."""
    table.pop(key, None)
    if len(table) >= _KEPT_MAX:
        table.pop(next(iter(table)))
    table[key] = value
