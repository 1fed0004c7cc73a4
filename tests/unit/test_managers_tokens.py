"""Tokens: what is written is read back, by whoever has the session's secret, and nothing else is believed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from caterwaul.managers.tokens import SECRET_BYTES, TOKEN_KEY, add_commit, authentic, claimed, is_of, secret_of, uncovered, write_token

SECRET, KEY = bytes(range(16)), b"k" * 16
UIDS = [bytes([number]) * 16 for number in range(1, 8)]
WRITTEN = st.dictionaries(st.binary(min_size=6, max_size=6), st.integers(1, 2**53), min_size=1, max_size=4)


@given(WRITTEN)
def test_what_is_written_is_read_back_in_its_order(written):
    text = write_token(written, SECRET, KEY)
    assert 22 <= len(text) <= 87
    assert list(authentic(text, SECRET, KEY).items()) == list(claimed(text).items()) == list(written.items())


@given(WRITTEN, st.data())
def test_whatever_is_changed_nothing_is_believed(written, data):
    text = write_token(written, SECRET, KEY)
    at = data.draw(st.integers(0, len(text) - 2))  # the last character may have bits that say nothing
    other = data.draw(st.sampled_from("abcXYZ019-_").filter(lambda character: character != text[at]))
    assert authentic(text[:at] + other + text[at + 1 :], SECRET, KEY) == {}
    assert authentic(text, SECRET, b"K" * 16) == authentic(text, b"s" * 16, KEY) == authentic(text, None, KEY) == {}
    assert authentic(text[:-2], SECRET, KEY) == {}


@given(st.text() | st.text("abcXYZ019-_", min_size=20, max_size=90))
def test_any_text_is_safe(text):
    assert authentic(text, SECRET, KEY) == {}
    assert len(claimed(text)) <= 4


def test_a_commit_takes_the_place_of_its_origins_last_one_and_becomes_the_latest():
    one = add_commit("", SECRET, KEY, UIDS[0], 1)
    assert len(one) == 22
    two = add_commit(one, SECRET, KEY, UIDS[1], 2)
    three = add_commit(two, SECRET, KEY, UIDS[0], 300)
    assert list(authentic(three, SECRET, KEY).items()) == [(UIDS[1][:6], 2), (UIDS[0][:6], 300)]


def test_counters_never_go_back():
    text = add_commit(add_commit("", SECRET, KEY, UIDS[0], 5), SECRET, KEY, UIDS[0], 3)
    assert authentic(text, SECRET, KEY) == {UIDS[0][:6]: 5}


def test_of_more_than_four_origins_the_oldest_is_left_out():
    text = ""
    for counter, uid in enumerate(UIDS, 1):
        text = add_commit(text, SECRET, KEY, uid, counter)
    assert list(authentic(text, SECRET, KEY)) == [uid[:6] for uid in UIDS[-4:]]


def test_a_token_that_is_not_believed_is_not_continued():
    forged = write_token({b"evil!!": 2**40}, b"x" * 16, KEY)
    assert authentic(add_commit(forged, SECRET, KEY, UIDS[0], 1), SECRET, KEY) == {UIDS[0][:6]: 1}


def test_a_record_covers_what_it_has_applied():
    written = {UIDS[0][:6]: 3, UIDS[1][:6]: 1}
    assert uncovered(written, {UIDS[0]: 3, UIDS[1]: 7}) == {}
    assert uncovered(written, {UIDS[0]: 2, UIDS[1]: 1}) == {UIDS[0][:6]: 3}
    assert uncovered(written, {}) == written
    assert uncovered({}, {}) == {}
    assert is_of(UIDS[0], written)
    assert not is_of(UIDS[2], written)


def test_a_secret_that_a_peer_made_of_another_size_is_none():
    assert secret_of({TOKEN_KEY: (1, UIDS[0], SECRET)}) == SECRET
    assert secret_of({TOKEN_KEY: (1, UIDS[0], b"s" * (SECRET_BYTES + 60))}) is secret_of({TOKEN_KEY: (1, UIDS[0], None)}) is secret_of({}) is None
