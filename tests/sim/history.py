"""What users did, what they were promised, and what they saw: the checkers' material.

A *token* is a value that is written once, ``user:attribute:number``; its `parent` is the token that its writer saw in its
place. So "older" is causal: a token is older than all that descend from it; two that do not descend from each other were
written concurrently, and either may stand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["Add", "Cookie", "Ended", "History", "Out", "Write", "token_in"]


@dataclass(slots=True)
class Write:
    token: str
    parent: str | None
    session_id: str
    attribute: str
    at: float
    holders: set[str] = field(default_factory=set)  #: lives of nodes that have it: the writer's, and whoever confirmed


class Cookie(NamedTuple):
    """What a browser sends: `token` is the product's, `wrote` what it stands for: ``{attribute: (token last written, uid of its author)}``."""

    id: str | None = None
    token: str = ""
    wrote: dict[str, tuple[str, bytes]] = {}  # noqa: RUF012  (a NamedTuple's default; nobody changes it)


@dataclass(slots=True)
class Add:
    """A commit that added one to the session's counter. `mark`: what it put into its set and offered to its maximum; and to its minimum the negative."""

    session_id: str
    at: float
    holders: set[str] = field(default_factory=set)  #: as of a write
    mark: int = 0


@dataclass(slots=True)
class Ended:
    """An id that was invalidated or changed. `refused_by`: lives that must not serve it any more."""

    session_id: str
    at: float
    refused_by: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Out:
    """All sessions of a user were ended: the `count`th end by the member `by`."""

    by: bytes
    count: int
    at: float
    known_by: set[str] = field(default_factory=set)  #: lives that must not serve such a session any more


def token_in(value: Any) -> str:
    """The token of an attribute's value: a text, with padding after a bar, or the last of a list."""
    text: str = value[-1] if isinstance(value, list) else value
    return text.partition("|")[0]


class History:
    def __init__(self) -> None:
        self.writes: dict[str, Write] = {}
        self.adds: dict[str, list[Add]] = {}  #: by session id
        self.carried: dict[str, int] = {}  #: what a new id's counter began with
        self.marked: dict[str, frozenset[int]] = {}  #: and its set
        self.ended: dict[str, Ended] = {}
        self.logins: dict[str, tuple[str, dict[bytes, int]]] = {}  #: session id -> (user, the ends that the member knew of where they logged in)
        self.outs: dict[str, list[Out]] = {}  #: by user
        self.successor: dict[str, str] = {}  #: old id -> new id
        self.shown: dict[tuple[str, str, str], str] = {}  #: (life, session id, attribute) -> the token last seen there
        self.versions: dict[tuple[str, tuple[int, bytes]], str] = {}  #: (session id, version) -> the token written under it
        self.used: dict[str, float] = {}  #: when an id was used last: it may expire after that
        self.known: set[str] = set()  #: ids of sessions of which all who should have heard a moment after they were made

    def outs_of(self, session_id: str) -> list[Out]:
        """The ends of all sessions of its user that its login did not know of."""
        user, knew = self.logins.get(session_id, ("", {}))
        return [out for out in self.outs.get(user, ()) if knew.get(out.by, 0) < out.count]

    def has_ended(self, session_id: str) -> bool:
        return session_id in self.ended or bool(self.outs_of(session_id))

    def is_kept(self, token: str, there: str | None) -> bool:
        """Whether a place that shows `there` has this token, or what replaced it."""
        return there is not None and (there == token or not self.is_older(there, token))

    def is_older(self, token: str, than: str) -> bool:
        """Whether `than` descends from `token`."""
        writes = self.writes
        number = int(token.rsplit(":", 1)[1])
        at: str | None = writes[than].parent
        while at is not None and int(at.rsplit(":", 1)[1]) >= number:
            if at == token:
                return True
            at = writes[at].parent
        return False
