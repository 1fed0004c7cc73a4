"""The placement of sessions that live in a store which all servers share: each member holds what it happens to serve, and none is told of another's.

What is here is a cache of the store, so there are no keepers to ask, no backups to tell and nobody to compare with. Locks are granted as everywhere,
by one member for all: they are no copies.
"""

from __future__ import annotations

from ..membership.view import View
from .placement import NOTHING, WHOLE, Groups, Ranking, Uids, partition_of

__all__ = ["Alone"]


class Alone:
    """`PersistentManager`'s strategy: nobody besides this member holds anything, as far as it is concerned."""

    everywhere = uniform = True
    sees_all = moves_primary = False

    def __init__(self, view: View, me: bytes) -> None:
        self.view = view
        self._me = me
        self._mine: Uids = (me,)
        self._ranking = Ranking(view)

    def keepers(self, partition: int) -> Uids:
        return self._mine

    def granter(self, key: bytes, but: bytes = b"") -> bytes:
        return next((member.uid for member in self._ranking.rank(partition_of(key)) if member.uid != but), b"")

    def primary(self, key: bytes, named: bytes) -> bytes:
        return self._me

    def holders(self, key: bytes, named: bytes) -> Uids:
        return self._mine

    def others(self, key: bytes, named: bytes) -> Groups:
        return ()

    def heads(self, key: bytes, named: bytes) -> Groups:
        return ()

    def depth(self, uid: bytes, key: bytes, named: bytes) -> int:
        return WHOLE if uid == self._me else NOTHING

    def serves(self, key: bytes, named: bytes) -> bool:
        return True

    def appoint(self, key: bytes) -> bytes:
        return self._me

    def leads(self, named: bytes) -> bool:
        return False

    def is_lite(self, uid: bytes) -> bool:
        return False

    def is_orphan(self, named: bytes) -> bool:
        return False

    def vouches(self, uid: bytes, key: bytes, named: bytes) -> bool:
        return True

    def is_stray(self, author: bytes, named: bytes) -> bool:
        return False

    def peers(self) -> Uids:
        return ()
