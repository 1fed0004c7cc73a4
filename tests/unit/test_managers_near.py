"""Near copies and their watchers, as tables."""

from __future__ import annotations

from caterwaul.managers.near import NearCache, Watchers

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16
SOURCE, OTHER = b"1" * 16, b"2" * 16


def test_a_fetched_copy_is_fresh_until_its_holder_says_otherwise_and_only_once() -> None:
    near = NearCache(10)
    near.fetched(A, SOURCE)
    assert (near.use(A), near.hits, near.fresh) == (True, 1, 1)
    assert near.changed([A, B]) == [A]
    assert near.changed([A]) == []
    assert (near.use(A), A in near, near.fresh, near.stale) == (False, True, 0, 1)


def test_holding_a_copy_makes_it_stale_but_not_one_that_is_watched() -> None:
    near = NearCache(10)
    near.hold(A)
    near.fetched(B, SOURCE)
    near.hold(B)
    assert (near.is_fresh(A), near.is_fresh(B)) == (False, True)


def test_the_loss_of_a_holder_makes_what_it_watched_stale_and_nothing_else() -> None:
    near = NearCache(10)
    near.fetched(A, SOURCE)
    near.fetched(B, OTHER)
    assert near.lost(SOURCE) == [A]
    assert near.is_fresh(B)
    near.expire()
    assert (near.fresh, len(near)) == (0, 2)


def test_the_bound_takes_the_least_recently_used_and_none_means_none() -> None:
    near = NearCache(2)
    for key in (A, B, C):
        near.fetched(key, SOURCE)
    near.use(A)
    assert near.trim() == [B]
    assert near.trim() == []
    none = NearCache(0)
    none.fetched(A, SOURCE)
    assert none.trim() == [A]


def test_forgetting_and_fetching_again_keep_the_count_of_fresh_copies() -> None:
    near = NearCache(10)
    near.fetched(A, SOURCE)
    near.fetched(A, OTHER)
    assert near.fresh == 1
    near.forget(A)
    near.forget(A)
    near.hold(B)
    near.forget(B)
    assert (near.fresh, len(near)) == (0, 0)


def test_watchers_are_told_once_and_the_author_goes_on_watching() -> None:
    watchers = Watchers(10)
    watchers.watch(A, SOURCE)
    watchers.watch(A, OTHER)
    watchers.changed([A], author=SOURCE)
    assert watchers.take() == [(OTHER, [A])]
    watchers.changed([A])
    assert watchers.take() == [(SOURCE, [A])]
    watchers.changed([A])
    assert watchers.take() == []
    assert not watchers


def test_over_the_bound_the_oldest_watch_ends_as_if_its_session_had_changed() -> None:
    watchers = Watchers(2)
    for key in (A, B, C):
        watchers.watch(key, SOURCE)
    assert watchers.take() == [(SOURCE, [A])]


def test_a_lost_reader_is_told_nothing_any_more() -> None:
    watchers = Watchers(10)
    watchers.watch(A, SOURCE)
    watchers.watch(B, SOURCE)
    watchers.watch(B, OTHER)
    watchers.changed([A])
    watchers.lost(SOURCE)
    watchers.changed([B])
    assert watchers.take() == [(OTHER, [B])]
