"""Two requests never have the lock of one session at the same time, whatever comes in between, as long as nothing breaks: members join, drain and leave in
good order, links are slow, and time passes. And no addition made under the lock is lost."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ..lock_net import KINDS, Holder, LockNet

_MEMBERS_MAX = 5

_SESSIONS = 6
_STEPS = 120


class Story:
    def __init__(self, kind: str, seed: int) -> None:
        self.net = LockNet(3, kind, seed=seed, lock_lease_s=1000.0, backups=2)
        self.rng = Random(seed)
        self.sessions = [self.net.visit(0, n=0) for _ in range(_SESSIONS)]
        self.holders: list[tuple[int, Holder]] = []
        self.added = [0] * _SESSIONS

    def here(self, number: int) -> bool:
        return number < len(self.net.members) and self.net.members[number].uid in self.net.alive

    def go_on(self) -> None:
        """One step more."""
        rng, anyone = self.rng, range(_MEMBERS_MAX)
        what = rng.choices("alcpsqjwg", [30, 25, 40, 5, 6, 4, 3, 3, 1])[0]
        match what:
            case "a":
                self.ask(rng.choice(anyone), rng.randrange(_SESSIONS))
            case "l":
                self.leave(rng.randrange(100))
            case "c":
                self.carry(rng.randrange(1, 25))
            case "p":
                self.net.clock.advance(rng.choice([0.01, 0.05, 0.2]))
            case "s":
                self.slow(rng.choice(anyone), rng.choice(anyone))
            case "q":
                self.net.let_go()
            case "j":
                self.join(rng.sample(anyone, rng.randrange(4)))
            case "w":
                self.reweigh(rng.choice(anyone), rng.choice([0, 1, 3]))
            case "g":
                self.go(rng.choice(anyone))
        if rng.random() < 0.05:
            self.net.show_view(*self.some_view())
        self.check()

    def some_view(self) -> tuple[int, Any]:
        """A member that sees now what there is to see."""
        return self.rng.choice([number for number in range(len(self.net.members)) if self.here(number)]), self.net.view()

    def check(self) -> None:
        for at in range(_SESSIONS):
            assert sum(holder.held for which, holder in self.holders if which == at) <= 1, "two hold one lock"

    def ask(self, number: int, which: int) -> None:
        if self.here(number):
            opened = self.net.managers[number].open_local(self.sessions[which])
            if opened is not None and opened.id is not None:
                self.holders.append((which, Holder(self.net, number, opened)))

    def leave(self, at: int) -> None:
        held = [(which, holder) for which, holder in self.holders if holder.held]
        if held:
            which, holder = held[at % len(held)]
            holder.session["n"] = holder.session["n"] + 1
            holder.leave()
            assert holder.error is None
            self.added[which] += 1

    def carry(self, messages: int) -> None:
        for _ in range(messages):
            if not self.net.step():
                break
            self.check()

    def slow(self, sender: int, to: int) -> None:
        if sender != to and self.here(sender) and self.here(to):
            self.net.hold(sender, to)

    def join(self, early: list[int]) -> None:
        """The new member is seen by these first, and by the others later."""
        if len(self.net.members) < _MEMBERS_MAX:
            before = self.net.view()
            self.net.joining([number for number in early if self.here(number)], before)

    def reweigh(self, number: int, weight: int) -> None:
        if self.here(number) and (weight or self.others_hold(number)):
            self.net.members[number] = self.net.channels[self.net.members[number].uid].me = replace(self.net.members[number], weight=weight)
            self.net.show_view(number, self.net.view())  # the others hear of it later

    def others_hold(self, number: int) -> bool:
        """Somebody else has a weight."""
        return any(other != number and self.here(other) and member.weight for other, member in enumerate(self.net.members))

    def go(self, number: int) -> None:
        """In good order: its requests are over."""
        if self.here(number) and len(self.net.alive) > 2 and self.others_hold(number):
            self.net.let_go()
            self.net.show_views()
            self.net.advance(1.0)
            if not any(holder.number == number and holder.error is None and not holder.over for _, holder in self.holders):
                self.net.leave(number)

    def finish(self) -> None:
        self.net.let_go()
        self.net.show_views()
        for _ in range(400):
            self.net.advance(0.1)
            self.check()
            self.leave(0)
            if not any(holder.error is None and not holder.over for _, holder in self.holders):
                break
        self.net.advance(1.0)
        number = next(number for number in range(len(self.net.members)) if self.here(number))
        assert [self.read(number, session) for session in self.sessions] == self.added

    def read(self, number: int, session: str) -> int:
        found: list[Any] = []
        self.net.managers[number].open_deferred(session).addCallback(found.append)
        self.net.advance(2.0)
        assert not found[0].unknown
        return int(found[0]["n"])


@settings(max_examples=60)
@given(st.sampled_from(sorted(KINDS)), st.integers(0, 2**32))
def test_nobody_holds_a_lock_that_another_holds_and_nothing_is_lost(kind: str, seed: int) -> None:
    story = Story(kind, seed)
    for _ in range(_STEPS):
        story.go_on()
    story.finish()
