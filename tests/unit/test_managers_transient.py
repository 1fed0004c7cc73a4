"""Attributes that stay in the process that sets them."""

from __future__ import annotations

from typing import Any

import pytest

from caterwaul.managers.errors import SessionEnded, ValueRefused
from caterwaul.managers.settings import ManagerSettings
from tests.doubles import Net


class Shop:
    """Two members; `request` is one request."""

    def __init__(self, **settings: Any) -> None:
        self.net = Net(2, ManagerSettings(transient=["_*", "cache.*"], **settings))
        self.id: str | None = None

    def request(self, number: int, act: Any, new: bool = False) -> Any:
        manager = self.net.managers[number]
        session = manager.open_local(None if new else self.id)
        assert session is not None
        found = act(session)
        manager.commit(session)
        manager.release(session)
        self.net.deliver()
        self.id = session.id
        return found

    def kept(self, number: int) -> int:
        return len(self.net.managers[number]._transients)


def begin(session: Any) -> object:
    thing = object()  # nothing that could travel
    session.update({"user": "ann", "_thing": thing, "cache.page": [1]})
    return thing


def test_they_are_seen_by_later_requests_here_and_by_nobody_else() -> None:
    shop = Shop()
    thing = shop.request(0, begin)
    assert shop.request(0, dict) == {"user": "ann", "_thing": thing, "cache.page": [1]}
    assert shop.request(1, dict) == {"user": "ann"}
    assert shop.request(1, lambda session: (len(session), "_thing" in session, session.get("_thing"))) == (1, False, None)
    shop.request(0, lambda session: session["cache.page"].append(2))
    shop.request(0, lambda session: session.pop("_thing"))
    assert shop.request(0, dict) == {"user": "ann", "cache.page": [1, 2]}


def test_setting_one_is_no_commit_and_begins_no_session() -> None:
    shop = Shop()
    shop.request(0, lambda session: session.update({"_a": 1}))
    assert shop.id is None
    shop.request(0, begin)
    commits = shop.net.managers[0].statistics()["commits"]
    shop.request(0, lambda session: session.update({"_a": 1}))
    assert (shop.request(0, lambda session: session["_a"]), shop.net.managers[0].statistics()["commits"]) == (1, commits)
    shop.request(0, lambda session: session.clear())
    assert shop.request(0, dict) == {}


def test_they_do_not_count_as_size_and_names_are_checked_all_the_same() -> None:
    shop = Shop(session_max_bytes=1024)
    shop.request(0, begin)
    shop.request(0, lambda session: session.update({"_large": "x" * 10_000}))
    with pytest.raises(ValueRefused, match="longer than"):
        shop.request(0, lambda session: session.update({"_" * 1000: 1}))
    with pytest.raises(ValueRefused, match="non-empty"):
        shop.request(0, lambda session: session.update({7: 1}))


def test_a_new_id_takes_them_along_and_an_end_anywhere_takes_them_away() -> None:
    shop = Shop()
    thing = shop.request(0, begin)
    shop.request(0, lambda session: session.cycle_id())
    assert (shop.request(0, lambda session: session["_thing"]), shop.kept(0)) == (thing, 1)
    shop.request(1, lambda session: session.invalidate())
    assert shop.kept(0) == 0


def test_an_end_here_takes_them_away_at_once() -> None:
    shop = Shop()
    shop.request(0, begin)

    def end(session: Any) -> None:
        session.invalidate()
        assert dict(session) == {}
        with pytest.raises(SessionEnded):
            session["_thing"] = 1

    shop.request(0, end)
    assert shop.kept(0) == 0


def test_two_requests_at_the_same_time_see_what_the_other_sets() -> None:
    shop = Shop()
    shop.request(0, lambda session: session.update({"user": "ann"}))
    manager = shop.net.managers[0]
    one, other = manager.open_local(shop.id), manager.open_local(shop.id)
    assert one is not None
    assert other is not None
    one["_a"], other["_b"] = 1, 2
    assert dict(one) == dict(other) == {"user": "ann", "_a": 1, "_b": 2}
    assert shop.request(0, dict) == {"user": "ann", "_a": 1, "_b": 2}


def test_of_too_many_sessions_the_least_recently_used_loses_them() -> None:
    shop = Shop(transient_sessions_max=2)
    ids = []
    for _ in range(2):
        shop.request(0, begin, new=True)
        ids.append(shop.id)
    shop.id = ids[0]
    shop.request(0, dict)
    shop.request(0, begin, new=True)
    assert shop.kept(0) == 2
    seen = []
    for shop.id in ids:
        seen.append(shop.request(0, lambda session: "_thing" in session))
    assert seen == [True, False]
    assert shop.request(0, dict) == {"user": "ann"}
