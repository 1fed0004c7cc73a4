"""A session as one request sees it."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import replace
from random import Random

import pytest

from caterwaul.managers.errors import SessionEnded, SessionError, SessionUnknown, ValueRefused
from caterwaul.managers.record import PRINCIPAL
from caterwaul.managers.session import ID_CHARACTERS, Session, key_of
from caterwaul.managers.settings import ManagerSettings
from caterwaul.managers.values import ValueTypes
from tests.doubles import Net

TYPES = ValueTypes()


def fresh(**settings):
    return Session(ManagerSettings(**settings), TYPES, Random(1).randbytes)


def stored(settings=None, **attributes):
    """A session of an earlier request, opened again."""
    registers = {name: (1, b"u" * 16, TYPES.encode(value, name)) for name, value in attributes.items()}
    size = sum(len(name) + len(register[2]) for name, register in registers.items())
    return Session(settings or ManagerSettings(), TYPES, Random(1).randbytes, "i" * 43, key_of("i" * 43), registers, 5, size)


def names(changes):
    return sorted(changes)


def test_it_is_a_mapping():
    session = fresh()
    assert isinstance(session, MutableMapping)
    session.update(a=1, b=[2])
    assert dict(session) == {"a": 1, "b": [2]}
    assert (len(session), "a" in session, session.get("z"), session.pop("a"), session.setdefault("c", 3)) == (2, True, None, 1, 3)
    session.clear()
    assert dict(session) == {}


def test_it_has_no_id_until_the_first_write_and_reading_makes_none():
    session = fresh()
    assert session.get("a") is None
    assert session.id is None
    assert session.changes() == {}
    session["a"] = 1
    assert len(session.id) == ID_CHARACTERS
    assert session.key == key_of(session.id)


def test_a_change_inside_a_value_is_found_and_a_mere_read_is_none():
    session = stored(cart=[1, {"n": 2}], name="x", other=[1])
    assert session["other"] == [1]
    assert session.changes() == {}
    session["cart"][1]["n"] = 3
    assert names(session.changes()) == ["cart"]


def test_setting_what_is_there_already_changes_nothing():
    session = stored(a=1)
    session["a"] = 1
    assert session.changes() == {}


def test_what_is_changed_after_a_commit_is_the_next_commits():
    session = stored(cart=[1])
    session["cart"].append(2)
    session.committed(session.changes(), (2, b"u" * 16))
    assert session.changes() == {}
    session["cart"].append(3)
    assert session.changes() == {"cart": TYPES.encode([1, 2, 3], "")}


@pytest.mark.parametrize(("mode", "expected"), [
    ("on_change", ["changed", "new"]), ("on_set", ["new", "same"]), ("on_get", ["changed", "new", "read", "same"]), ("always", ["changed", "idle", "new", "read", "same"]),
])  # fmt: skip
def test_save_modes(mode, expected):
    session = stored(ManagerSettings(save_mode=mode), changed=[1], read=[1], same=1, idle="x")
    session["changed"].append(2)
    assert session["read"] == [1]
    session["same"] = 1
    session["new"] = 1
    assert names(session.changes()) == expected


def test_a_value_that_cannot_be_decoded_is_absent_and_its_bytes_stay():
    session = stored(good=1)
    session._registers["bad"] = (1, b"u" * 16, b"\xd9\xff\xff\x00")
    assert dict(session) == {"good": 1}
    assert session.quarantined == {"bad"}
    assert "bad" not in session.changes()
    session.cycle_id()
    assert session.contents(session.changes(), session._registers, (2, b"u" * 16), (1, b"u" * 16))["bad"] == b"\xd9\xff\xff\x00"


def test_a_refusal_names_the_path_and_leaves_the_old_value():
    session = stored(cart=[1])
    with pytest.raises(ValueRefused, match=r"session\['cart'\]\[1\]\['when'\]"):
        session["cart"] = [1, {"when": object()}]
    assert session["cart"] == [1]
    assert session.changes() == {}


def test_a_nested_value_that_cannot_travel_is_refused_at_commit():
    session = stored(cart=[1])
    session["cart"].append(object())
    with pytest.raises(ValueRefused, match=r"session\['cart'\]\[1\]"):
        session.changes()


def test_the_size_limit_leaves_the_old_value_and_counts_what_is_removed():
    session = fresh(session_max_bytes=1024)
    session["a"] = "x" * 900
    with pytest.raises(ValueRefused, match="session_max_bytes"):
        session["b"] = "y" * 200
    with pytest.raises(ValueRefused, match="session_max_bytes"):
        session["a"] = "x" * 1100
    assert dict(session) == {"a": "x" * 900}
    del session["a"]
    session["b"] = "y" * 900
    assert dict(session) == {"b": "y" * 900}


def test_the_size_follows_growth_inside_values_over_commits():
    session = stored(ManagerSettings(session_max_bytes=1024), a=["x" * 100])
    session["a"].append("y" * 600)
    session.committed(session.changes(), (2, b"u" * 16))
    with pytest.raises(ValueRefused):
        session["b"] = "z" * 400
    session["a"].pop()
    session.committed(session.changes(), (3, b"u" * 16))
    session["b"] = "z" * 400
    assert len(session) == 2


def test_the_limit_of_attributes_counts_what_is_there_now():
    session = fresh(attributes_max=3)
    session.update(a=1, b=2, c=3)
    session["a"] = 9
    with pytest.raises(ValueRefused, match="attributes_max"):
        session["d"] = 4
    del session["a"]
    session["d"] = 4
    session.principal = "ann"
    assert names(session) == ["b", "c", "d"]


@pytest.mark.parametrize("name", ["", "\0principal", 5, None, "n" * 257, "ü" * 129, "\ud800" * 80])
def test_names_that_cannot_be(name):
    session = fresh()
    with pytest.raises(ValueRefused):
        session[name] = 1
    assert session.id is None


def test_reserved_registers_are_no_attributes():
    session = fresh()
    session.principal = "ann"
    session.max_idle_s = 60
    assert dict(session) == {}
    assert (session.principal, session.max_idle_s) == ("ann", 60.0)
    with pytest.raises(KeyError):
        session["\0principal"]
    session.principal = None
    session.max_idle_s = None
    assert (session.principal, session.max_idle_s) == (None, 1800.0)


def test_a_new_id_keeps_everything_and_says_what_the_old_one_was():
    session = stored(a=1, cart=[1])
    old = session.id
    session["cart"].append(2)
    session.cycle_id()
    assert (session.previous_id, len(session.id), session.key) == (old, ID_CHARACTERS, key_of(session.id))
    others = {"a": (2, b"v" * 16, TYPES.encode(5, "")), "gone": (2, b"v" * 16, None)}
    assert session.contents(session.changes(), others, (3, b"u" * 16), (1, b"u" * 16)) == {"a": TYPES.encode(5, ""), "cart": TYPES.encode([1, 2], "")}
    first = session.id
    session.cycle_id()
    assert session.previous_id == old
    assert session.id != first


def test_a_session_that_nobody_has_seen_changes_its_id_without_an_end():
    session = fresh()
    session["a"] = 1
    session.cycle_id()
    assert (session.previous_id, session.ending) == (None, 0)


def test_once_the_headers_are_sent_no_session_begins_and_no_id_changes():
    session = fresh()
    session.freeze_id()
    with pytest.raises(SessionError, match="headers"):
        session["a"] = 1
    assert session.id is None
    old = stored(a=1)
    old.freeze_id()
    with pytest.raises(SessionError, match="headers"):
        old.cycle_id()
    old["a"] = 2
    assert names(old.changes()) == ["a"]


def test_an_ended_session_reads_empty_and_refuses_writes():
    session = stored(a=1)
    session.invalidate()
    assert (dict(session), session.ended) == ({}, True)
    for write in (lambda: session.update(a=1), session.cycle_id, lambda: setattr(session, "principal", "ann")):
        with pytest.raises(SessionEnded):
            write()


def test_an_unknown_session_reads_empty_and_refuses_writes():
    session = Session(ManagerSettings(), TYPES, Random(1).randbytes, unknown=True)
    assert dict(session) == {}
    with pytest.raises(SessionUnknown):
        session["a"] = 1
    assert session.id is None


def test_each_request_has_its_own_view():
    net = Net(1)
    one = net.managers[0]
    first = one.open_local(None)
    first["cart"] = [1]
    one.commit(first)
    a, b = one.open_local(first.id), one.open_local(first.id)
    a["cart"].append(2)
    a["only"] = "a"
    one.commit(a)
    assert dict(b) == {"cart": [1]}
    b["other"] = 1
    one.commit(b)
    assert dict(one.open_local(first.id)) == {"cart": [1, 2], "only": "a", "other": 1}


def test_settings_of_a_session_do_not_leak_into_another():
    assert replace(ManagerSettings(), save_mode="always").save_mode == "always"
    assert stored(ManagerSettings(save_mode="on_set"), a=[1]).changes() == {}


def test_repr_never_shows_the_id_or_values():
    session = stored(secret="s3cret")
    assert "s3cret" not in repr(session)
    assert session.id not in repr(session)


def test_a_principal_that_is_no_text_does_not_raise_in_the_application():
    session = Session(ManagerSettings(), TYPES, bytes, "x" * 43, b"k" * 16, {PRINCIPAL: (1, b"o" * 16, b"\xff")})
    assert session.principal == "\ufffd"


def test_a_new_id_takes_along_what_other_requests_wrote_meanwhile():
    net = Net(2)
    manager = net.managers[0]
    first = manager.open_local(None)
    first["cart"] = [1]
    manager.commit(first)
    login, other = manager.open_local(first.id), manager.open_local(first.id)
    assert login["cart"] == [1]
    other["cart"].append(2)
    other["seen"] = True
    manager.commit(other)
    login.cycle_id()
    login.principal = "ada"
    manager.commit(login)
    net.deliver()
    for member in net.managers:
        assert dict(member.open_local(login.id)) == {"cart": [1, 2], "seen": True}
        assert member.open_local(first.id).new
