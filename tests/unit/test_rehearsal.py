"""Which sessions would not survive: what is asked, and what the answers mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from caterwaul.cluster.errors import ChannelError
from caterwaul.cluster.rehearsal import Rehearsal
from caterwaul.managers.surveying import ABSENT, ITEM_BYTES, OTHER, SAME
from caterwaul.membership.errors import LocalError, RemoteError
from caterwaul.membership.view import View
from tests.doubles import member


def item(key: int, version: int) -> bytes:
    return bytes([key]) * 16 + bytes([version]) * 8


class Holder:
    """A manager that holds these: ``{key: version}``."""

    def __init__(self, held: dict[int, int]) -> None:
        self.held = held

    def survey_page(self, after: bytes, limit: int) -> list[bytes]:
        return [item(key, version) for key, version in sorted(self.held.items()) if bytes([key]) * 16 > after][:limit]

    def survey_items(self, keys: Sequence[bytes]) -> list[bytes]:
        return [item(key[0], self.held[key[0]]) for key in keys if key[0] in self.held]

    def survey_compare(self, items: Sequence[bytes]) -> bytes:
        return bytes(ABSENT if one[0] not in self.held else SAME if self.held[one[0]] == one[16] else OTHER for one in items)


class World:
    """Members 1, 2, ...; each answers from its own table."""

    def __init__(self, *held: dict[int, int]) -> None:
        self.clock = Clock()
        self.members = [member(number) for number in range(1, len(held) + 1)]
        self.me = self.members[0]
        self.answers: dict[bytes, Any] = {}
        self.ends = {m.uid: Rehearsal(self, {"default": Holder(table)}, self.clock) for m, table in zip(self.members, held, strict=True)}

    def serve(self, name: str, handler: Any) -> None: ...

    def request(self, to: Sequence[bytes], name: str, op: int, body: Any, mode: str, timeout_s: float) -> Deferred[dict[bytes, Any]]:
        (uid,) = to
        if uid in self.answers:
            answer = self.answers[uid]
            return fail(answer) if isinstance(answer, Exception) else succeed({uid: answer})
        return succeed({uid: self.ends[uid]._asked(self.me, op, body)})

    def lose(self, *numbers: int) -> Any:
        found: list[Any] = []
        names = [self.members[number - 1].name for number in numbers]
        self.ends[self.me.uid].run(View.of(1, self.members), names).addBoth(found.append)
        self.clock.advance(1.0)
        return found[0]


def test_what_nobody_else_has_is_lost_and_what_others_have_otherwise_is_behind() -> None:
    found = World({1: 1, 2: 1, 3: 1}, {1: 1, 2: 1}, {2: 2}).lose(1)
    assert found["managers"]["default"] == {"sessions": 3, "lost": 1, "behind": 0, "keys": ["03030303"]}
    found = World({1: 1, 2: 1, 3: 1}, {1: 2}, {2: 1}).lose(1)
    assert found["managers"]["default"] == {"sessions": 3, "lost": 1, "behind": 1, "keys": ["03030303", "01010101"]}
    assert found["survivors"] == ["node2", "node3"]


def test_of_two_that_are_lost_the_newer_copy_counts() -> None:
    found = World({1: 2}, {1: 1}, {1: 1}).lose(1, 2)
    assert found["managers"]["default"] == {"sessions": 1, "lost": 0, "behind": 1, "keys": ["01010101"]}


def test_answers_that_make_no_sense_end_it_with_who_gave_them() -> None:
    world = World({1: 1}, {1: 1})
    for answer in (b"x", "text", item(1, 1) * 2000):
        world.answers = {world.members[1].uid: answer}
        failure = world.lose(2)
        assert failure.check(LocalError)
        assert "node2 gave no usable answer" in failure.getErrorMessage()
    world.answers = {world.members[1].uid: ChannelError("no", {b"": "timed out"}, {})}
    assert "node2 does not answer: timed out" in world.lose(2).getErrorMessage()
    assert "no node 'x'" in str(World({}).ends[b"\1" * 16].run(View.of(1, [member(1)]), ["x"]).addErrback(lambda failure: failure.value).result)


@pytest.mark.parametrize(
    "body", [None, [], [1], ["default"], ["default", b"short", 5], ["default", "x"], ["default", b"k" * (ITEM_BYTES + 1)], ["default", [1]], ["no", b"", 5]]
)
@pytest.mark.parametrize("op", [0, 1, 2, 9])
def test_malformed_questions_are_refused(op: int, body: Any) -> None:
    with pytest.raises(RemoteError):
        World({1: 1}).ends[b"\1" * 16]._asked(member(2), op, body)
