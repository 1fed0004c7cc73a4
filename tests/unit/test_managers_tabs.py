"""What belongs to one browser tab, inside the session that all tabs share."""

from __future__ import annotations

import pytest

from caterwaul.managers.errors import ValueRefused
from caterwaul.managers.settings import ManagerSettings
from caterwaul.managers.web.tabs import tab_id
from tests.doubles import Net


def test_tabs_do_not_see_each_other_and_replicate_by_attribute() -> None:
    net = Net(2)
    session_id = net.visit(0, user="ann")
    first, second = net.opened(0, session_id), net.opened(1, session_id)
    first.tab("a").update(step=1, cart=["tea"])
    second.tab("b")["step"] = 7
    for number, session in enumerate((first, second)):
        net.managers[number].commit(session)
    net.deliver()
    for number in range(2):
        session = net.opened(number, session_id)
        assert dict(session.tab("a")) == {"step": 1, "cart": ["tea"]}
        assert dict(session.tab("b")) == {"step": 7}
        assert len(session.tab("c")) == 0
        assert sorted(session.tabs) == ["a", "b"]
        assert session["user"] == "ann"


def test_a_change_inside_a_value_of_a_tab_is_found() -> None:
    net = Net(2)
    session = net.opened(0)
    session.tab("a")["cart"] = []
    net.managers[0].commit(session)
    net.deliver()
    other = net.opened(1, session.id)
    other.tab("a")["cart"].append("tea")
    net.managers[1].commit(other)
    net.deliver()
    assert net.opened(0, session.id).tab("a")["cart"] == ["tea"]


def test_looking_at_a_tab_makes_no_session() -> None:
    session = Net(1).opened(0)
    assert session.tab("a").get("step") is None
    assert session.tabs == []
    assert session.id is None


def test_the_tabs_not_written_to_for_longest_go() -> None:
    net = Net(1, ManagerSettings(tabs_max=3))
    session = net.opened(0)
    for name in "abc":
        session.tab(name)["n"] = name
    session.tab("a")["n"] = "again"
    session.tab("d")["n"] = "d"
    assert session.tabs == ["d", "a", "c"]
    assert [name for name in session if name.startswith("_tab.b")] == []
    assert session.tab("a")["n"] == "again"


def test_a_tab_that_is_closed_leaves_nothing() -> None:
    session = Net(1).opened(0)
    tab = session.tab("a")
    tab.update(x=1, y=2)
    del tab["x"]
    assert list(tab) == ["y"]
    tab.close()
    tab.close()
    assert dict(session) == {}


def test_writing_again_to_the_same_tab_writes_no_mark_again() -> None:
    net = Net(1)
    session_id = net.visit(0, a=1)
    session = net.opened(0, session_id)
    session.tab("a")["x"] = 1
    net.managers[0].commit(session)
    session.tab("a")["x"] = 2
    assert set(session.changes()) == {"_tab.a.x"}


def test_who_writes_to_one_tab_decodes_nothing_but_the_marks() -> None:
    net = Net(1)
    session = net.opened(0)
    session["big"] = ["x"] * 100
    for name in "ab":
        session.tab(name)["cart"] = ["tea"]
    net.managers[0].commit(session)
    later = net.opened(0, session.id)
    later.tab("a")["step"] = 1
    assert later.tabs == ["a", "b"]
    assert set(later._values) == {"_tab.a", "_tab.b", "_tab.a.step"}
    assert sorted(later.tab("a")) == ["cart", "step"]
    assert "_tab.b.cart" not in later._values


def test_a_mark_that_cannot_be_read_is_none() -> None:
    net = Net(1)
    session = net.opened(0)
    session.tab("a")["x"] = 1
    session.write("_tab.b", b"\xff")
    net.managers[0].commit(session)
    later = net.opened(0, session.id)
    assert later.tabs == ["a"]
    del later["_tab.a"]
    assert later.tabs == []


@pytest.mark.parametrize("name", ["", "a.b", "a b", "x" * 65, "ä", None, 7])
def test_what_is_no_id_is_refused(name: object) -> None:
    with pytest.raises(ValueRefused, match="use 1 to 64 letters"):
        Net(1).opened(0).tab(name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("header", "query", "found"),
    [
        ("abc", "_tab=def", "abc"),
        (None, "x=1&_tab=def", "def"),
        ("", b"_tab=def", "def"),
        ("no id", "", None),
        (None, "_tab=a&_tab=b", None),
        (None, "_tab=%00", None),
        (None, "&" * 2000 + "_tab=a", None),
        (" abc ", "", "abc"),
    ],
)
def test_a_request_says_which_tab_it_is_of(header: str | None, query: str | bytes, found: str | None) -> None:
    assert tab_id(header, query) == found
