"""What users of sessions in a shared store did, and were promised: of each id and each request. More of that is in `history.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

from .history import Add

__all__ = ["Asked", "Known"]


@dataclass(slots=True)
class Known:
    """What is known of an id."""

    must: dict[str, set[str]] = field(default_factory=dict)  #: attribute -> tokens of which each must be there, or what replaced it
    adds: list[Add] = field(default_factory=list)
    stored_adds: int = 0
    carried: int = 0  #: what its counter began with
    carrier: str = ""  #: the life that gave it its first contents, from another id
    used_at: float = 0.0
    kept_at: float = -1e9  #: its last use that is stored
    end_asked: bool = False
    end_stored: bool = False
    told_at: float | None = None  #: its end by time
    refused_by: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Asked:
    """A request, and what was promised when it came."""

    life: str
    user: str
    session_id: str | None
    at: float
    number: int
    must: dict[str, tuple[str, ...]] = field(default_factory=dict)
    stored_adds: int = 0
    end_stored: bool = False
    kept_at: float = -1e9
