"""The choice of a node, and the marks that probes and failures set: the proxy's core without I/O."""

from __future__ import annotations

from caterwaul.cluster.balancer.choice import Balancer, BalancerSettings, GiveUp, Node, NodeDown, NodeUp, Probe, route_of
from caterwaul.membership.effects import Notify

_SETTINGS = BalancerSettings(probe_interval_s=0.5, probe_timeout_s=1.0, response_timeout_s=4.0)
_NODES = [Node(f"node{number}", "127.0.0.1", 9000 + number) for number in (1, 2, 3)]


def _cookie(route: str, letter: str = "a") -> bytes:
    return (letter * 43 + "." + route).encode()


def _up(now: float = 0.0) -> Balancer:
    """Three nodes, all found ready."""
    balancer = Balancer(_SETTINGS)
    for node in _NODES:
        (probe,) = balancer.add(now, node)
        assert isinstance(probe, Probe)
        assert balancer.probed(now, probe.ticket, None) == [Notify(NodeUp(node.name))]
    return balancer


def _name(node: Node | None) -> str | None:
    return None if node is None else node.name


def test_the_route_is_what_follows_43_characters_and_a_dot() -> None:
    assert route_of(_cookie("node2")) == "node2"
    assert route_of(b"a" * 43 + b":token-_.node2") == "node2"
    assert route_of(b"a" * 43 + b":token") is route_of(b"a" * 43 + b":.") is None
    assert route_of(b"a" * 43) is None
    assert route_of(b"a" * 43 + b".") is None
    assert route_of(b"short.node2") is None
    assert route_of(None) is None
    assert route_of(_cookie("node2") + b"\xff") == "node2\ufffd"


def test_a_session_stays_with_the_node_that_its_cookie_names() -> None:
    balancer = _up()
    assert {_name(balancer.choose(_cookie("node2", letter))) for letter in "abcdef"} == {"node2"}


def test_requests_without_a_session_go_round() -> None:
    balancer = _up()
    assert sorted(str(_name(balancer.choose(None))) for _ in range(6)) == ["node1", "node1", "node2", "node2", "node3", "node3"]


def test_a_session_whose_node_is_down_goes_to_one_stand_in_until_it_is_back() -> None:
    balancer = _up()
    effects = balancer.failed(1.0, "node2", "refused")
    assert effects[0] == Notify(NodeDown("node2", "refused"))
    stand_ins = {_name(balancer.choose(_cookie("node2"))) for _ in range(10)}
    assert len(stand_ins) == 1
    assert stand_ins <= {"node1", "node3"}
    assert {_name(balancer.choose(b"a" * 43 + b":%d.node2" % number)) for number in range(10)} == stand_ins, "whatever its user wrote meanwhile"
    assert {_name(balancer.choose(_cookie("node2", letter))) for letter in "abcdefgh"} == {"node1", "node3"}
    probe = effects[1]
    assert isinstance(probe, Probe)
    assert balancer.probed(1.1, probe.ticket, None) == [Notify(NodeUp("node2"))]
    assert _name(balancer.choose(_cookie("node2"))) == "node2"


def test_where_one_of_several_processes_failed_the_node_is_up_and_is_asked_at_once() -> None:
    balancer = _up()
    for _ in range(2):
        asked = balancer.failed(1.0, "node2", "broken", one=True)
        assert _name(balancer.choose(_cookie("node2"))) == "node2"
        if asked:
            (probe,) = asked
    assert isinstance(probe, Probe), "one probe, whatever breaks meanwhile"
    assert balancer.probed(1.1, probe.ticket, "refused") == [Notify(NodeDown("node2", "refused"))]


def test_nodes_that_were_tried_are_not_chosen_again_and_a_down_one_is_the_last_resort() -> None:
    balancer = _up()
    balancer.failed(1.0, "node1", "refused")
    assert _name(balancer.choose(_cookie("node2"), {"node2"})) == "node3"
    assert _name(balancer.choose(_cookie("node2"), {"node2", "node3"})) == "node1"
    assert balancer.choose(_cookie("node2"), {"node1", "node2", "node3"}) is None
    assert Balancer(_SETTINGS).choose(None) is None


def test_while_no_node_is_ready_a_session_stays_where_it_is() -> None:
    """All say so while another joins."""
    balancer = _up()
    for node in _NODES:
        balancer.failed(1.0, node.name, "the probe was answered 503")
    assert {_name(balancer.choose(_cookie("node2", letter))) for letter in "abcdef"} == {"node2"}
    assert {_name(balancer.choose(_cookie("node2", letter), {"node2"})) for letter in "abcdef"} == {"node1", "node3"}


def test_every_node_is_probed_each_interval_and_readmitted_only_when_ready() -> None:
    balancer = _up()
    assert balancer.deadline() == 0.5
    probes = balancer.tick(0.5)
    assert [probe.node.name for probe in probes if isinstance(probe, Probe)] == ["node1", "node2", "node3"]
    first = probes[0]
    assert isinstance(first, Probe)
    assert balancer.probed(0.6, first.ticket, "answered 503") == [Notify(NodeDown("node1", "answered 503"))]
    assert balancer.deadline() == 1.1
    (again,) = [effect for effect in balancer.tick(1.1) if isinstance(effect, Probe) and effect.node.name == "node1"]
    assert balancer.probed(1.2, again.ticket, None) == [Notify(NodeUp("node1"))]


def test_a_silent_probe_marks_the_node_down_and_gives_up_all_that_waits_for_it() -> None:
    balancer = _up()
    probes = {probe.node.name: probe for probe in balancer.tick(0.5) if isinstance(probe, Probe)}
    stuck, fine = balancer.sent(0.6, "node2"), balancer.sent(0.6, "node1")
    for name in ("node1", "node3"):
        balancer.probed(0.6, probes[name].ticket, None)
    balancer.tick(1.1)
    effects = balancer.tick(1.5)
    assert {effect.ticket for effect in effects if isinstance(effect, GiveUp)} == {stuck, probes["node2"].ticket}
    assert Notify(NodeDown("node2", "no answer to a probe")) in effects
    assert fine not in {effect.ticket for effect in effects if isinstance(effect, GiveUp)}
    assert balancer.probed(1.6, probes["node2"].ticket, None) == []
    assert not balancer.is_up("node2")


def test_a_request_without_an_answer_is_given_up_after_its_time_and_not_before() -> None:
    balancer = _up()
    ticket = balancer.sent(0.0, "node3")
    now, given_up = 0.0, None
    while given_up is None:
        deadline = balancer.deadline()
        assert deadline is not None
        assert deadline > now
        now = deadline
        for effect in balancer.tick(now):
            if isinstance(effect, Probe):
                balancer.probed(now, effect.ticket, None)
            if effect == GiveUp(ticket):
                given_up = now
    assert given_up == 4.0
    balancer.ended(ticket)
    assert not balancer.is_up("node3")


def test_an_answered_request_is_waited_for_no_more() -> None:
    balancer = _up()
    balancer.ended(balancer.sent(0.0, "node3"))
    assert balancer.statistics()["waiting"] == 0


def test_a_proxy_that_was_asleep_itself_blames_nobody() -> None:
    balancer = _up()
    balancer.sent(0.1, "node1")
    effects = balancer.tick(60.0)
    assert all(isinstance(effect, Probe) for effect in effects)
    assert balancer.is_up("node1")
    deadline = balancer.deadline()
    assert deadline is not None
    assert deadline > 60.0


def test_a_removed_node_gets_nothing_and_frees_who_waits_for_it() -> None:
    balancer = _up()
    ticket = balancer.sent(0.0, "node1")
    assert balancer.remove("node1") == [GiveUp(ticket)]
    assert balancer.remove("node1") == []
    assert _name(balancer.choose(_cookie("node1"))) in {"node2", "node3"}
    assert balancer.failed(1.0, "node1", "late") == []


def test_a_replaced_node_starts_down_and_the_old_probe_counts_for_nothing() -> None:
    balancer = _up()
    (old,) = [effect for effect in balancer.tick(0.5) if isinstance(effect, Probe) and effect.node.name == "node1"]
    effects = balancer.add(0.6, Node("node1", "127.0.0.1", 9999))
    assert GiveUp(old.ticket) in effects
    assert balancer.probed(0.7, old.ticket, None) == []
    assert not balancer.is_up("node1")


def test_choices_do_not_depend_on_the_order_in_which_nodes_came() -> None:
    forwards, backwards = Balancer(_SETTINGS), Balancer(_SETTINGS)
    for balancer, nodes in ((forwards, _NODES), (backwards, _NODES[::-1])):
        for node in nodes:
            balancer.add(0.0, node)
    cookies = [_cookie("gone", letter) for letter in "abcdefgh"]
    assert [_name(forwards.choose(cookie)) for cookie in cookies] == [_name(backwards.choose(cookie)) for cookie in cookies]
