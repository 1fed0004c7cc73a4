"""Which sessions would not survive the loss of these nodes? Asked of the running cluster, without harming anything.

What a node holds that is to be lost is listed page by page, and for each page all the other nodes say what they hold of it. A session
is *lost* where nobody else holds a copy, and *behind* where somebody does but not as it stands: its last changes would be lost. Changes
that are on their way look the same for a moment, so those are compared once more before they count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import deferLater

from ..managers.surveying import ABSENT, ITEM_BYTES, SAME
from ..membership.errors import LocalError, RemoteError
from ..membership.member import Member
from ..membership.view import View
from .errors import ChannelError

__all__ = ["Rehearsal", "Surveyed"]

_SERVICE = "survey"
_PAGE, _ITEMS, _COMPARE = range(3)
_PAGE_ITEMS = 2000
_KEY_BYTES = 16
_TIMEOUT_S = 10.0
_SETTLE_S = 0.5  # what is on its way arrives
_NAMED_MAX = 100_000  # sessions named in one answer


class Surveyed(Protocol):
    """What is asked of a session manager. Lists of items, see `managers/surveying.py`."""

    def survey_page(self, after: bytes, limit: int) -> list[bytes]: ...

    def survey_items(self, keys: Sequence[bytes]) -> list[bytes]: ...

    def survey_compare(self, items: Sequence[bytes]) -> bytes: ...


class Rehearsal:
    """One node's: answers the questions of others from the start on, and puts its own. Reactor thread."""

    def __init__(self, channel: Any, managers: Mapping[str, Surveyed], clock: Any) -> None:
        self._channel = channel
        self._managers = managers
        self._clock = clock
        channel.serve(_SERVICE, self._asked)

    def run(self, view: View, names: Sequence[str]) -> Deferred[dict[str, Any]]:
        """Fires with ``{"lose": names, "survivors": names, "managers": {name: {"sessions", "lost", "behind", "keys"}}}``, counts of sessions that the nodes
        to be lost hold; `keys` are those that would not survive (100,000 at most), hexadecimal, the first eight digits. Fails with `LocalError` for a name that is not here, and when somebody does not answer.
        """
        return ensureDeferred(self._run(view, names))

    async def _run(self, view: View, names: Sequence[str]) -> dict[str, Any]:
        here = sorted({member.name for member in view})
        for name in names:
            if name not in here:
                raise LocalError(f"no node {name!r} in this domain; there are {', '.join(here)}")
        lost = [member for member in view if member.name in names]
        others = [member for member in view if member.name not in names]
        found = {}
        for name in sorted(self._managers):
            found[name] = await self._of_manager(name, _taking_part(lost, name), _taking_part(others, name))
        return {"lose": sorted(names), "survivors": sorted(member.name for member in others), "managers": found}

    async def _of_manager(self, name: str, lost: Sequence[Member], others: Sequence[Member]) -> dict[str, Any]:
        verdicts: dict[bytes, int] = {}  # by key, for the copy that would be lost and is known least elsewhere, the best that any survivor holds
        for member in lost:
            after = b""
            while True:
                items = _split(await self._ask(member, _PAGE, [name, after, _PAGE_ITEMS]))
                for key, verdict in (await self._best(name, items, others)).items():
                    verdicts[key] = min(verdict, verdicts.get(key, SAME))
                if len(items) < _PAGE_ITEMS:
                    break
                if items[-1][:_KEY_BYTES] <= after:
                    raise LocalError(f"{member.name} gave no usable answer")
                after = items[-1][:_KEY_BYTES]
        doubtful = [key for key, verdict in verdicts.items() if verdict != SAME]
        if doubtful:
            await deferLater(self._clock, _SETTLE_S)
        for at in range(0, len(doubtful), _PAGE_ITEMS):
            await self._again(name, doubtful[at : at + _PAGE_ITEMS], lost, others, verdicts)
        bad = sorted((verdict, key) for key, verdict in verdicts.items() if verdict != SAME)
        gone = sum(verdict == ABSENT for verdict, _ in bad)
        return {"sessions": len(verdicts), "lost": gone, "behind": len(bad) - gone, "keys": [key.hex()[:8] for _, key in bad[:_NAMED_MAX]]}

    async def _again(self, name: str, keys: list[bytes], lost: Sequence[Member], others: Sequence[Member], verdicts: dict[bytes, int]) -> None:
        """What has ended meanwhile is not counted."""
        now: dict[bytes, int] = {}
        for member in lost:
            items = _split(await self._ask(member, _ITEMS, [name, keys]))
            for key, verdict in (await self._best(name, items, others)).items():
                now[key] = min(verdict, now.get(key, SAME))
        for key in keys:
            del verdicts[key]
        verdicts.update(now)

    async def _best(self, name: str, items: list[bytes], others: Sequence[Member]) -> dict[bytes, int]:
        best = {item[:_KEY_BYTES]: ABSENT for item in items}
        for member in others if items else ():
            said = await self._ask(member, _COMPARE, [name, b"".join(items)])
            for item, verdict in zip(items, said, strict=False):
                best[item[:_KEY_BYTES]] = max(verdict, best[item[:_KEY_BYTES]])
        return best

    async def _ask(self, member: Member, op: int, body: list[Any]) -> bytes:
        if member.uid == self._channel.me.uid:
            return self._asked(member, op, body)
        try:
            replies = await self._channel.request((member.uid,), _SERVICE, op, body, mode="all", timeout_s=_TIMEOUT_S)
        except ChannelError as error:
            raise LocalError(f"{member.name} does not answer: {'; '.join(error.failed.values()) or error}") from None
        reply: object = replies[member.uid]
        if type(reply) is not bytes or (op != _COMPARE and len(reply) % ITEM_BYTES):
            raise LocalError(f"{member.name} gave no usable answer")
        return reply

    def _asked(self, peer: Member, op: int, body: object) -> bytes:
        """A question. Raises `RemoteError` if it is malformed."""
        if type(body) is not list or not body or type(body[0]) is not str:
            raise RemoteError("survey: malformed")
        manager = self._managers.get(body[0])
        if manager is None:
            raise RemoteError("survey: no such manager here")
        if op == _PAGE and len(body) >= 3 and type(body[1]) is bytes and len(body[1]) in (0, _KEY_BYTES) and type(body[2]) is int:
            return b"".join(manager.survey_page(body[1], max(0, min(body[2], _PAGE_ITEMS))))
        if op == _ITEMS and len(body) >= 2 and type(body[1]) is list and all(type(key) is bytes and len(key) == _KEY_BYTES for key in body[1]):
            return b"".join(manager.survey_items(body[1][:_PAGE_ITEMS]))
        if op == _COMPARE and len(body) >= 2 and type(body[1]) is bytes and len(body[1]) % ITEM_BYTES == 0:
            return manager.survey_compare(_split(body[1])[:_PAGE_ITEMS])
        raise RemoteError("survey: malformed")


def _taking_part(members: Sequence[Member], manager: str) -> list[Member]:
    return [member for member in members if manager in member.managers]


def _split(items: bytes) -> list[bytes]:
    return [items[at : at + ITEM_BYTES] for at in range(0, len(items), ITEM_BYTES)]
