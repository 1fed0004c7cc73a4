"""Users of two applications that share their logins, with several browsers each, and a limit on how many.

They log in to one and look at the other, on any node; log out of one; log out everywhere; log in as somebody else. In a part of the seeds one application, or the shared login,
bounds the sessions of a principal; in a part one asks its users for their password again (`sso_reauthenticate`). What docs/logins.md promises, as checks:

- S1 nobody is anybody but who logged in with that browser;
- *one login*: who is logged in to one application is logged in to the other, or named to it if it asks again, where somebody can be asked who knows the shared login. **Not so**
  where a limit refuses it;
- *reauthenticate*: who is logged in to an application that asks again has logged in there; that login is one with the other that the application was told of, and the
  end of a session that nobody is logged in to there is no logout elsewhere;
- S2 *one logout*: who has confirmed the end of a shared login, or of all of a principal, shows nobody of it any more; after healing nothing of it lives, in any application;
- *limit*: a moment after healing no principal has more sessions than that.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from caterwaul.managers.errors import SessionError
from caterwaul.managers.heads import LIVE
from caterwaul.managers.identity import Offer
from caterwaul.managers.principals import principal_key
from caterwaul.managers.receipts import DROPPED
from caterwaul.managers.record import PRINCIPAL, RENEWED, SIGNED_ON, Record
from caterwaul.managers.session import Session, key_of
from caterwaul.managers.settings import SSO
from caterwaul.managers.web.cookies import Ticket
from caterwaul.managers.web.policy import Visit

from .browsers import Browser, Site, cookie_name
from .checkers import Checkers
from .copies import difference
from .history import Out
from .node import SimCluster, SimNode
from .world import World

__all__ = ["Visitors", "login_settings"]

_APPLICATIONS = ("shop", "blog")
_SHARED = f"{SSO}main"
_LIMITS = ("", "", "oldest", "refuse", "browsers")
_MOST = 2
_ASK_AGAIN = ("", "", "", "", *_APPLICATIONS)
_PRINCIPALS, _BROWSERS, _RATE = 4, 12, 14.0
_STICKY, _LOST = 0.5, 0.05
_KNOWN_S = 1.0


def login_settings(kind: dict[str, Any], rng: Random, again: Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """(tables of the applications, that of their shared logins). `again`: says which application asks for the password again."""
    limit = rng.choice(_LIMITS)
    settings = {**kind, "idle_timeout_s": 0.0, "expire_check_s": 0.5, "pack_after_s": 3.0, "read_your_writes": "cluster", "sso": "main"}
    applications = {name: {**settings, "cookie": {"name": cookie_name(name)}} for name in _APPLICATIONS}
    if limit in ("oldest", "refuse"):
        applications["shop"] |= {"principal_sessions_max": _MOST, "principal_sessions_policy": limit}
    asks = again.choice(_ASK_AGAIN)
    if asks:
        applications[asks]["sso_reauthenticate"] = True
    shared: dict[str, Any] = {"type": "delta"} if kind["type"] == "delta" else {"type": "partitioned", "backups": kind["backups"]}
    return applications, {**shared, "idle_timeout_s": 0.0, "principal_sessions_max": _MOST if limit == "browsers" else 0}


class _Shared:
    """A shared login. `knew`: the ends of all of its principal that were known where it was made. `outs`: its own end."""

    __slots__ = ("knew", "out", "principal")

    def __init__(self, principal: str, knew: dict[bytes, int]) -> None:
        self.principal, self.knew = principal, knew
        self.out: Out | None = None


class _Before(NamedTuple):
    """A login. `tag`: the shared login that the session was of. `told`: the one that the application was told of, with nobody here. `knew`: as of `_Shared`."""

    tag: bytes | None
    told: bytes | None
    knew: dict[bytes, int]


class Visitors:
    """From now on. A `Feature`."""

    def __init__(self, world: World, cluster: SimCluster, checkers: Checkers, until: float) -> None:
        self._world = world
        self._cluster = cluster
        self._until = until
        self._rng = world.rng("logins")
        self._sites = [Site(world, cluster, name, self._rng, _LOST) for name in _APPLICATIONS]
        self._browsers = [Browser(f"p{number % _PRINCIPALS}") for number in range(_BROWSERS)]
        self._checks = _Checks(world, cluster, checkers)
        self.over = self._checks.over
        world.queue.at(world.now, self._next, None)

    def healed(self) -> None:
        pass

    def difference(self) -> str:
        return next((wrong for name in (*_APPLICATIONS, _SHARED) if (wrong := difference(self._cluster, name))), "")

    def settled(self) -> None:
        pass

    def _next(self, _: None) -> None:
        now, rng = self._world.now, self._rng
        if now >= self._until:
            return
        self._world.queue.at(now + rng.uniform(0.5, 1.5) / _RATE, self._next, None)
        browser, site = rng.choice(self._browsers), rng.choice(self._sites)
        node = site.choose(browser, _STICKY)
        if node is None or browser.waits:
            return
        self._world.counters["login_requests"] += 1
        browser.serving = node.reactor
        ticket = site.ticket(node, browser.jar)
        dice, lasts_s = rng.random(), rng.uniform(0.02, 0.5) if rng.random() < 0.2 else 0.0
        site.open(node, ticket, lambda visit: self._serve(site, browser, node, ticket, visit, dice, lasts_s))

    def _serve(self, site: Site, browser: Browser, node: SimNode, ticket: Ticket, visit: Visit, dice: float, lasts_s: float) -> None:
        if visit.session.unknown:
            self._world.counters["login_unknown"] += 1
            site.give_up(browser, visit)
            return
        try:
            who = visit.session.principal
        except SessionError:
            site.give_up(browser, visit)
            return
        self._checks.sees(site.application, node, browser, ticket, visit, who)
        site.later(node, lasts_s, lambda: self._act(site, browser, node, visit, who, dice))

    def _act(self, site: Site, browser: Browser, node: SimNode, visit: Visit, who: str | None, dice: float) -> None:
        session, checks = visit.session, self._checks
        login = (who is None and dice < 0.5) or (who is not None and dice < 0.05)
        if login:
            browser.name = browser.name if dice < 0.49 else f"p{self._rng.randrange(_PRINCIPALS)}"
            manager = node.managers[site.application]
            knew = dict(node.epochs.current.get(principal_key(_SHARED, browser.name), {}))
            before = _Before(session.hidden(SIGNED_ON), session.offered and session.offered.tag, knew)

            def logged_in(_: Any) -> None:
                self._finish(site, browser, visit, lambda receipt: checks.logged_in(site.application, node, browser, session, before, receipt))

            def refused(failure: Any) -> None:
                failure.trap(SessionError)
                self._world.counters["logins_refused"] += 1
                site.give_up(browser, visit)

            assert node.channel is not None
            node.channel.wake(lambda: manager.login_deferred(session, browser.name).addCallbacks(logged_in, refused).addErrback(self._broken) and None)
            return
        tag, told, asks_again = session.hidden(SIGNED_ON), session.offered, node.managers[site.application].settings.sso_reauthenticate
        try:
            if told is not None and asks_again and not session.new and dice < 0.7:
                ends = dict(node.epochs.current.get(told.tag, {}))
                visit.end()
                self._finish(site, browser, visit, lambda receipt: checks.guest_left(site.application, node, told, ends))
                return
            if who is not None and dice < 0.10:
                if dice < 0.08:
                    visit.end()
                else:
                    session.principal = None
                self._finish(site, browser, visit, lambda receipt: checks.logged_out(node, tag, receipt))
                return
            if who is not None and dice < 0.105:
                checks.end_all(site.application, node, who)
            elif dice > 0.7:
                session["seen"] = dice
            self._finish(site, browser, visit, lambda receipt: None)
        except SessionError:
            site.give_up(browser, visit)

    def _finish(self, site: Site, browser: Browser, visit: Visit, saved: Callable[[Any], object]) -> None:
        def kept(receipt: Any) -> None:
            if receipt is not DROPPED:
                saved(receipt)

        try:
            site.finish(browser, visit, kept)
        except SessionError:
            self._world.counters["logins_failed"] += 1

    def _broken(self, failure: Any) -> None:
        self._world.fail(failure.getTraceback())


class _Checks:
    def __init__(self, world: World, cluster: SimCluster, checkers: Checkers) -> None:
        self._world = world
        self._cluster = cluster
        self._checkers = checkers
        self._shared: dict[bytes, _Shared] = {}  # by tag
        self._outs: dict[str, list[Out]] = {}  # by principal
        self._asked: set[bytes] = set()  # keys of sessions that were logged in to by their own application
        self._have: dict[Browser, tuple[bytes, int, float]] = {}  # the shared login that a browser should have, made by which node, when

    def _fail(self, promise: str, what: str) -> None:
        self._world.fail(f"logins {promise}: {what}")

    # -- requests

    def sees(self, application: str, node: SimNode, browser: Browser, ticket: Ticket, visit: Visit, who: str | None) -> None:
        life, session, counters = node.reactor.name, visit.session, self._world.counters
        told = session.offered
        named, tag = (who, session.hidden(SIGNED_ON)) if who is not None or told is None else (session.signed_on, told.tag)
        if named is None:
            self._is_nobody(application, node, browser, ticket, visit)
            return
        shared = self._shared.get(tag or b"")
        if shared is None or shared.principal != named:
            self._fail("S1", f"{life} shows {named}, and the login {tag and tag.hex()[:8]} is of {shared and shared.principal}")
            return
        counters["logins_seen" if who is not None else "logins_told"] += 1
        if who is not None and node.managers[application].settings.sso_reauthenticate:
            counters["reauthenticated_seen"] += 1
            if session.key not in self._asked:
                self._fail("reauthenticate", f"{life} shows {who} in {application}, who has not logged in there")
        for out in self._outs_of(tag or b""):
            if life in out.known_by:
                self._fail("S2", f"{life} shows {named} in {application}, and knows that this login was ended at {out.at:.3f}")

    def _is_nobody(self, application: str, node: SimNode, browser: Browser, ticket: Ticket, visit: Visit) -> None:
        """And nobody is named to it. Then nobody whom this node sees and hears has the shared login."""
        have, entry_id = self._have.get(browser), ticket.shared.id if ticket.shared is not None else None
        settings, sign_on = node.managers[application].settings, visit._sign_on
        if have is None or entry_id is None or sign_on is None or (settings.principal_sessions_max and not settings.sso_reauthenticate):
            return
        if sign_on._entry is None or sign_on._entry.session.unknown:
            return
        tag, author, at = have
        if self._world.now < at + _KNOWN_S or self._checkers.was_held_up(author, at) or list(self._outs_of(tag)):
            return
        core, key = node.engines[_SHARED]._core, key_of(entry_id)
        if core.placement.everywhere and not self._checkers.all_see_all():
            return
        near = [other for other in self._cluster.nodes.values() if other.managers and self._checkers.reaches(node, other, _SHARED)]
        if any(self._is_over(other, key) for other in near):
            return  # by a limit, or by who has not been heard everywhere yet
        self._world.counters["one_login_checked"] += 1
        for other in near:
            theirs = other.engines[_SHARED]
            if self._tag_of(other, _SHARED, key) == tag and theirs._core.servable(key, theirs._channel.now_ms()) is not None:
                self._fail("one login", f"{node.reactor.name} knows nobody in {application}, and {other.reactor.name} has the shared login of {browser.name}")

    def _is_over(self, node: SimNode, key: bytes) -> bool:
        core = node.engines[_SHARED]._core
        entry = core.replica.get(key)
        return entry is not None and ((entry.head is not None and entry.head.state != LIVE) or core.logins.is_over(key, entry))

    def logged_in(self, application: str, node: SimNode, browser: Browser, session: Session, before: _Before, receipt: Any) -> None:
        tag = session.hidden(SIGNED_ON)
        if tag is None:
            self._fail("one login", f"{node.reactor.name} has logged {browser.name} in to {application} alone")
            return
        self._world.counters["shared_logins"] += 1
        self._asked.add(session.key)
        made = self._shared.setdefault(tag, _Shared(browser.name, before.knew))
        made.knew |= before.knew  # of two logins of one browser, the later one may stand
        if made.principal != browser.name:
            self._fail("S1", f"{node.reactor.name} logs {browser.name} in as {made.principal}")
        for old in (before.tag, before.told):
            if old in self._shared and self._shared[old].principal != browser.name:
                self._out(node, old, receipt)  # a login as somebody else is a logout before
        told = self._shared.get(before.told or b"")
        if told is not None and told.principal == browser.name:
            self._world.counters["told_logins"] += 1
            if tag != before.told:
                self._fail("reauthenticate", f"{node.reactor.name} was told of {browser.name}, and has logged them in to {application} by a login of its own")
        self._have[browser] = tag, int(node.me.name[1:]), self._world.now

    def guest_left(self, application: str, node: SimNode, told: Offer, ends: dict[bytes, int]) -> None:
        self._world.counters["guests_left"] += 1
        if node.epochs.current.get(told.tag, {}) != ends:
            self._fail("reauthenticate", f"{node.reactor.name} has logged {told.principal} out, who was not logged in to {application}")

    def logged_out(self, node: SimNode, tag: bytes | None, receipt: Any) -> None:
        if tag is not None:
            self._world.counters["shared_logouts"] += 1
            self._out(node, tag, receipt)

    def _out(self, node: SimNode, tag: bytes, receipt: Any) -> None:
        shared = self._shared.get(tag)
        if shared is None:
            return
        shared.out = out = shared.out or Out(node.me.uid, 0, self._world.now)
        out.known_by.add(node.reactor.name)
        self._hear(out, receipt)

    def end_all(self, application: str, node: SimNode, principal: str) -> None:
        receipt = node.managers[application].end_all(principal)
        out = Out(node.me.uid, node.epochs.ended, self._world.now, {node.reactor.name})
        self._outs.setdefault(principal, []).append(out)
        self._world.counters["shared_end_alls"] += 1
        self._hear(out, receipt)

    def _hear(self, out: Out, receipt: Any) -> None:
        if receipt is not None:
            at = self._world.now
            receipt.deferred().addCallback(lambda done: out.known_by.update(self._checkers.lives(done.confirmed, at)))

    def _outs_of(self, tag: bytes) -> list[Out]:
        """The ends that this shared login should not outlast."""
        shared = self._shared.get(tag)
        if shared is None:
            return []
        everywhere = [out for out in self._outs.get(shared.principal, ()) if shared.knew.get(out.by, 0) < out.count]
        return [*everywhere, *([] if shared.out is None else [shared.out])]

    # -- after healing

    def over(self) -> None:
        alive = {node.reactor.name for node in self._cluster.nodes.values()}
        for name in (*_APPLICATIONS, _SHARED):
            of: dict[str, set[bytes]] = {}
            for node in self._cluster.nodes.values():
                for key, entry in node.engines[name]._core.replica.entries():
                    if entry.body is None or (entry.head is not None and entry.head.state != LIVE):
                        continue
                    registers = Record.unpack(node.engines[name]._core.replica.body_of(entry) or b"").registers
                    principal, tag = (registers[one][2] if one in registers else None for one in (PRINCIPAL, SIGNED_ON))
                    if principal is None or tag is None or RENEWED in registers:
                        continue
                    self._world.counters["logins_settled"] += 1
                    of.setdefault(principal.decode(), set()).add(key)
                    for out in self._outs_of(tag):
                        if out.known_by & alive:
                            self._fail("S2", f"{node.reactor.name} holds {key.hex()[:8]} of {name}, a login of {principal.decode()} that ended at {out.at:.3f}")
            self._is_in_limits(name, of)

    def _is_in_limits(self, name: str, of: dict[str, set[bytes]]) -> None:
        most = next(iter(self._cluster.nodes.values())).engines[name].settings.principal_sessions_max
        for principal, keys in of.items() if most else ():
            self._world.counters["limits_checked"] += 1
            if len(keys) > most:
                self._fail("limit", f"{principal} has {len(keys)} sessions of {name}, and may have {most}")

    def _tag_of(self, node: SimNode, name: str, key: bytes) -> bytes | None:
        replica = node.engines[name]._core.replica
        entry = replica.held(key)
        record = replica.record(key, entry) if entry is not None else None
        register = record.registers.get(SIGNED_ON) if record is not None else None
        return None if register is None else register[2]
