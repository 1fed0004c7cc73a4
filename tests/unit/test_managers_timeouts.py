"""How long a session lives by its manager, its role and itself, whoever decides about its end; and how large it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from caterwaul import SettingsError
from caterwaul.cluster.describe import to_toml
from caterwaul.cluster.settings import Settings, load
from caterwaul.managers.errors import ValueRefused
from caterwaul.managers.limits import Role, limits_of, pack_limit, read_role
from caterwaul.managers.record import AGE_LIMIT, IDLE_LIMIT, ROLE
from caterwaul.managers.session import Session, key_of
from caterwaul.managers.settings import ManagerSettings
from tests.doubles import Net

ROLES = {"admin": [5.0, 20.0], "robot": [0.0, 0.0]}
SETTINGS = ManagerSettings(idle_timeout_s=60, absolute_timeout_s=600, role_timeouts=ROLES)


def logged_in(net: Net, number: int, role: str | None, **limits: float) -> str:
    session = net.opened(number)
    session.login("ann", role=role)
    for name, seconds in limits.items():
        setattr(session, name, seconds)
    net.managers[number].commit(session)
    net.deliver()
    assert session.id is not None
    return session.id


def lives(net: Net, session_id: str) -> bool:
    return any(manager._core.replica.held(key_of(session_id)) is not None for manager in net.managers)


def limits(net: Net, number: int, session_id: str) -> tuple[float, float]:
    session = net.opened(number, session_id)
    net.managers[number].release(session)
    return session.max_idle_s, session.max_age_s


def use(net: Net, number: int, session_id: str) -> None:
    net.visit(number, session_id, used=net.clock.seconds())


def test_a_session_has_the_idle_limit_of_its_role() -> None:
    net = Net(3, SETTINGS)
    admin, user = logged_in(net, 0, "admin"), logged_in(net, 1, None)
    assert [limits(net, 2, one) for one in (admin, user)] == [(5.0, 20.0), (60.0, 600.0)]
    net.advance(10)
    assert not lives(net, admin)
    assert lives(net, user)


def test_a_session_has_the_absolute_limit_of_its_role_however_it_is_used() -> None:
    net = Net(2, SETTINGS)
    admin = logged_in(net, 0, "admin")
    for _ in range(9):
        net.advance(2)
        use(net, 1, admin)
    net.advance(4)
    assert not lives(net, admin)


def test_whoever_decides_obeys_the_role_whatever_its_own_settings_say() -> None:
    settings = replace(SETTINGS, role_timeouts=dict(ROLES))
    net = Net(3, settings)
    ids = [logged_in(net, 0, "admin") for _ in range(12)]
    settings.role_timeouts.clear()
    net.advance(10)
    assert not any(lives(net, one) for one in ids)


def test_its_own_limits_come_before_those_of_the_role() -> None:
    net = Net(2, ManagerSettings(idle_timeout_s=60, absolute_timeout_s=600, role_timeouts={"admin": [5.0, 20.0]}))
    long = logged_in(net, 0, "admin", max_idle_s=30, max_age_s=0)
    short = logged_in(net, 0, None, max_age_s=4)
    assert [limits(net, 1, one) for one in (long, short)] == [(30.0, 0.0), (60.0, 4.0)]
    net.advance(10)
    assert lives(net, long)
    assert not lives(net, short)
    net.advance(40)
    assert not lives(net, long)


def test_an_age_begins_with_the_session_and_not_with_its_id() -> None:
    net = Net(2, ManagerSettings(idle_timeout_s=0, absolute_timeout_s=10))
    session_id = net.visit(0, a=1)
    net.advance(6)
    session = net.opened(1, session_id)
    session.cycle_id()
    net.managers[1].commit(session)
    net.deliver()
    assert session.id is not None
    net.advance(3)
    assert lives(net, session.id)
    net.advance(4)
    assert not lives(net, session.id)


def test_a_role_ends_with_the_login() -> None:
    net = Net(1, SETTINGS)
    session = net.opened(0)
    session.login("ann", role="admin")
    assert (session.role, session.max_idle_s) == ("admin", 5.0)
    session.principal = "bob"
    assert (session.role, session.max_idle_s) == (None, 60.0)
    session.role = "robot"
    assert (session.max_idle_s, session.max_age_s) == (0.0, 0.0)
    session.role = "unheard of"
    assert (session.role, session.max_idle_s) == ("unheard of", 60.0)
    session.principal = None
    assert session.role is None


@pytest.mark.parametrize("role", ["", "x" * 300, 7, "\ud800"])
def test_what_is_no_role_is_refused_and_changes_nothing(role: object) -> None:
    session = Net(1, SETTINGS).opened(0)
    with pytest.raises(ValueRefused, match="role"):
        session.login("ann", role=role)  # type: ignore[arg-type]
    assert session.principal is None
    assert session.id is None


@pytest.mark.parametrize("seconds", [-1, 1e12, float("nan")])
@pytest.mark.parametrize("name", ["max_idle_s", "max_age_s"])
def test_what_is_no_limit_is_refused(name: str, seconds: float) -> None:
    session = Net(1).opened(0)
    with pytest.raises(ValueRefused, match=f"session.{name} = "):
        setattr(session, name, seconds)


@pytest.mark.parametrize("value", [b"", b"\xff", b"\x80", b"\x83\x01\xf6\xf6", b"\x83\x61a\x20\xf6", b"\x83\x61a\xf6\x61b"])
def test_a_role_that_is_none_changes_no_limit(value: bytes) -> None:
    assert read_role(value) is None
    managers = Net(1, SETTINGS).managers[0]._core.expiry.limits
    assert limits_of({ROLE: (1, b"", value), IDLE_LIMIT: (1, b"", b"short"), AGE_LIMIT: (1, b"", None)}, managers) == managers


def test_a_role_comes_back_from_its_bytes() -> None:
    for role in (Role.of("admin", ROLES), Role.of("other", ROLES)):
        assert read_role(role.pack()) == role
    assert pack_limit("", 1.5) == (1500).to_bytes(8, "big")


# -- settings


def test_role_timeouts_are_a_table_that_reads_back(tmp_path) -> None:
    path = tmp_path / "node.toml"
    path.write_text("[managers.default.role_timeouts]\nadmin = [900, 28800]\n")
    settings = load(path)
    assert settings.managers["default"].role_timeouts == {"admin": [900, 28800]}
    again = tmp_path / "again.toml"
    again.write_text(to_toml(settings))
    assert load(again).managers == settings.managers


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"admin": [1]}, "is not two numbers"),
        ({"admin": [20, 10]}, "idle 20 is longer than absolute 10"),
        ({"admin": 5}, "5 is not a list"),
        ({"admin": [-1, 0]}, "below the least allowed"),
        ([], "is not a table"),
    ],
)
def test_wrong_role_timeouts_are_named(table: object, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint) as error:
        Settings.of(managers={"default": {"role_timeouts": table}})
    assert "managers.default.role_timeouts" in str(error.value)


# -- sizes


def test_the_largest_attributes_are_named_with_their_bytes() -> None:
    net = Net(1)
    session_id = net.visit(0, small=1, large="x" * 500, middle=[1] * 50)
    session: Session = net.opened(0, session_id)
    assert [name for name, _ in session.largest()] == ["large", "middle", "small"]
    assert session.largest(1) == [("large", 503)]
    assert session.size_bytes == sum(size + len(name) for name, size in session.largest())
    del session["large"]
    session["middle"] = 0
    assert session.largest() == [("middle", 1), ("small", 1)]


def test_who_sets_too_much_hears_what_is_large() -> None:
    session = Net(1, ManagerSettings(session_max_bytes=1024)).opened(0)
    session["basket"] = "x" * 800
    session["name"] = "ann"
    with pytest.raises(ValueRefused, match=r"the limit is 1024 \(session_max_bytes\); the largest attributes: 'basket' 803, 'history' 403, 'name' 4"):
        session["history"] = "y" * 400
    assert session["name"] == "ann"
