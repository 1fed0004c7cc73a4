"""Two, three and five groups over a fake network in virtual time: the rows of the fault matrix that membership answers for."""

from __future__ import annotations

import heapq
from collections import Counter
from random import Random

import pytest

from caterwaul.membership.codec import decode
from caterwaul.membership.detector import MemberCleared, MemberSuspected
from caterwaul.membership.dialling import Dial
from caterwaul.membership.effects import Close, Notify, Send
from caterwaul.membership.group import Beat, Group, Slept
from caterwaul.membership.member import Member
from caterwaul.membership.messages import decode_control, decode_heartbeat
from caterwaul.membership.settings import MembershipSettings
from caterwaul.membership.view import ViewChanged

LATENCY_S, REDIAL_S = 0.001, 0.1


def host_of(name: str) -> str:
    """An address for the node of this name, of three letters at most."""
    return ".".join(map(str, (10, *name.encode().rjust(3, b"\0"))))


class Node:
    def __init__(self, world: World, member: Member, settings: MembershipSettings, cluster: str) -> None:
        self.world, self.member = world, member
        self.group = Group(member, settings, cluster, Random(member.uid))
        self.alive, self.paused, self.wake_at = True, False, None
        self.waiting: list = []  # what arrives while it is paused
        self.events: list[tuple[float, object]] = []

    def run(self, effects) -> None:
        for effect in effects:
            self.world.perform(self, effect)
        self.arm()

    def arm(self) -> None:
        deadline = self.group.deadline()
        if deadline is not None and deadline != self.wake_at:
            self.wake_at = deadline
            self.world.at(deadline, lambda: self.tick(deadline))

    def tick(self, planned: float) -> None:
        if not self.alive or self.paused or self.wake_at != planned:
            return
        self.wake_at = None
        self.run(self.group.tick(self.world.now))
        deadline = self.group.deadline()
        assert deadline is None or deadline > self.world.now

    def give(self, arrive) -> None:
        if self.alive:
            self.waiting.append(arrive) if self.paused else self.run(arrive(self.group))

    def names(self) -> str:
        return "".join(sorted(member.name for member in self.group.view))

    def changes(self) -> list[ViewChanged]:
        return [event for _, event in self.events if isinstance(event, ViewChanged)]

    def when_gone(self, name: str) -> float:
        return next(at for at, event in self.events if isinstance(event, ViewChanged) and name in [m.name for m in event.disappeared])


class World:
    """Links are pairs of uids. A cut TCP path holds its frames back; a cut UDP path (one way) loses datagrams."""

    def __init__(self, multicast: bool = True) -> None:
        self.now, self.multicast, self.serial = 1000.0, multicast, 0
        self.queue: list = []
        self.nodes: dict[bytes, Node] = {}
        self.links: set[frozenset[bytes]] = set()
        self.cut_tcp: set[frozenset[str]] = set()
        self.cut_udp: set[tuple[str, str]] = set()
        self.held: list = []
        self.seeding = True
        self.dials: list[tuple[float, str, str]] = []
        self.sent: Counter[str] = Counter()

    def at(self, when: float, action) -> None:
        self.serial += 1
        heapq.heappush(self.queue, (max(when, self.now), self.serial, action))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.queue and self.queue[0][0] <= end:
            self.now, _, action = heapq.heappop(self.queue)
            action()
        self.now = end

    def start(self, name: str, seeds: str = "", cluster: str = "shop", domain: str = "", **settings) -> Node:
        self.serial += 1
        member = Member(Random(self.serial).randbytes(16), name, host_of(name), 7000, domain)
        node = self.nodes[member.uid] = Node(self, member, MembershipSettings(**settings), cluster)
        node.arm()
        for seed in seeds:
            self.seed(node, host_of(seed))
        return node

    def seed(self, node: Node, host: str) -> None:
        if self.seeding:
            node.give(lambda group: group.found(self.now, host, 7000))
        self.at(self.now + 5, lambda: self.seed(node, host))

    def perform(self, node: Node, effect) -> None:
        match effect:
            case Beat(datagram):
                for other in self.nodes.values():
                    if self.multicast and (node.member.name, other.member.name) not in self.cut_udp:
                        self.at(self.now + LATENCY_S, lambda o=other: o.give(lambda group: group.heard(self.now, decode_heartbeat(datagram))))
            case Dial(host, _):
                self.dials.append((self.now, node.member.name, host))
                self.at(self.now + LATENCY_S, lambda: self.dial(node, host))
            case Send(to, message):
                self.sent[type(decode_control(decode(message.payload))).__name__] += len(to)
                for uid in to:
                    self.at(self.now + LATENCY_S, lambda uid=uid: self.deliver(node, uid, message.payload))
            case Close(uid, _):
                self.break_link(node.member.uid, uid)
            case Notify(event):
                node.events.append((self.now, event))
            case _:
                raise AssertionError(effect)

    def path(self, one: Node, two: Node) -> bool:
        return frozenset((one.member.name, two.member.name)) not in self.cut_tcp

    def dial(self, node: Node, host: str) -> bool | None:
        """True: linked; False: refused; None: no answer."""
        others = [other for other in self.nodes.values() if other.member.host == host and other.alive]
        if not others:
            return False
        other = others[0]
        pair = frozenset((node.member.uid, other.member.uid))
        if other is node or pair in self.links or other.group._cluster != node.group._cluster:
            return True
        if other.paused or not self.path(node, other) or not node.alive or node.paused:
            return None
        self.links.add(pair)
        node.give(lambda group: group.linked(self.now, other.group.me))
        other.give(lambda group: group.linked(self.now, node.group.me))
        return True

    def deliver(self, node: Node, uid: bytes, payload: bytes) -> None:
        other = self.nodes[uid]
        if frozenset((node.member.uid, uid)) not in self.links:
            return
        if not self.path(node, other):
            self.held.append((node, uid, payload))
            return

        def arrive(group: Group):
            group.traffic(self.now, node.member.uid)
            return group.received(self.now, node.member.uid, decode(payload))

        other.give(arrive)

    def break_link(self, one: bytes, two: bytes) -> None:
        pair = frozenset((one, two))
        if pair in self.links:
            self.links.discard(pair)
            for mine, theirs in ((one, two), (two, one)):
                self.nodes[mine].give(lambda group, theirs=theirs: group.unlinked(self.now, theirs, False))
                self.at(self.now + REDIAL_S, lambda mine=mine, theirs=theirs: self.redial(mine, theirs))

    def redial(self, mine: bytes, theirs: bytes) -> None:
        """The channel's part: dial a member without a link again."""
        node = self.nodes[mine]
        if not node.alive or theirs not in node.group.everyone or frozenset((mine, theirs)) in self.links:
            return
        if not node.paused and self.dial(node, self.nodes[theirs].member.host) is False:
            node.give(lambda group: group.unlinked(self.now, theirs, True))
        self.at(self.now + REDIAL_S, lambda: self.redial(mine, theirs))

    def kill(self, node: Node) -> None:
        node.alive = False
        for pair in sorted(self.links, key=sorted):
            if node.member.uid in pair:
                self.break_link(*sorted(pair))

    def resume(self, node: Node) -> None:
        """As Twisted does: the timers that are due run first, then the sockets are read (trap T2)."""
        node.paused = False
        if node.wake_at is not None and node.wake_at <= self.now:
            node.tick(node.wake_at)
        waiting, node.waiting = node.waiting, []
        for arrive in waiting:
            node.give(arrive)

    def heal(self) -> None:
        self.cut_tcp.clear()
        self.cut_udp.clear()
        held, self.held = self.held, []
        for node, uid, payload in held:
            self.deliver(node, uid, payload)


def meet(names: str, multicast: bool = True, **settings) -> tuple[World, list[Node]]:
    """A world whose nodes all know each other; without multicast the first is everybody's seed."""
    world = World(multicast)
    nodes = [world.start(name, "" if multicast else names[0], **settings) for name in names]
    world.run(3)
    assert [node.names() for node in nodes] == [names] * len(names)
    return world, nodes


@pytest.mark.parametrize("multicast", [True, False])
def test_five_nodes_meet_by_multicast_or_by_one_seed_that_tells_them_of_each_other(multicast):
    world, nodes = meet("abcde", multicast)
    assert len(world.links) == 10
    assert [node.group.statistics()["members"] for node in nodes] == [5] * 5


@pytest.mark.parametrize("multicast", [True, False])
def test_a_healthy_group_is_silent_about_itself_for_ten_minutes(multicast):
    """No removal, no suspicion, no further change; without datagrams the links prove life."""
    world, nodes = meet("abc", multicast)
    events = [len(node.events) for node in nodes]
    world.run(600)
    assert [len(node.events) for node in nodes] == events


def test_multicast_lost_for_all_while_links_work_removes_nobody():
    """F8: a snooping switch without a querier."""
    world, nodes = meet("abcde")
    before = [len(node.changes()) for node in nodes]
    world.multicast = False
    world.run(300)
    assert [len(node.changes()) for node in nodes] == before
    assert not [event for node in nodes for _, event in node.events if isinstance(event, MemberSuspected)]
    late = world.start("f", "c")
    world.run(10)
    assert late.names() == "abcdef"


@pytest.mark.parametrize("names", ["ab", "abc", "abcde"])
def test_a_killed_process_is_known_to_all_in_half_a_second(names):
    """F1. Its last heartbeats, heard a moment ago, save it nowhere."""
    world, nodes = meet(names)
    killed_at = world.now
    world.kill(nodes[0])
    world.run(0.5)
    assert [node.names() for node in nodes[1:]] == [names[1:]] * (len(names) - 1)
    assert max(node.when_gone("a") for node in nodes[1:]) - killed_at < 0.5
    assert all(node.changes()[-1].clean == frozenset() for node in nodes[1:])


def test_two_processes_killed_at_once_are_known_in_a_second():
    world, nodes = meet("abcde")
    world.kill(nodes[0])
    world.kill(nodes[1])
    world.run(1)
    assert [node.names() for node in nodes[2:]] == ["cde"] * 3


def test_a_pause_shorter_than_the_drop_time_changes_nothing():
    """F2."""
    world, nodes = meet("abc")
    before = [len(node.changes()) for node in nodes]
    nodes[0].paused = True
    world.run(2)
    world.resume(nodes[0])
    world.run(5)
    assert [len(node.changes()) for node in nodes] == before


@pytest.mark.parametrize("multicast", [True, False])
def test_a_paused_process_is_removed_and_comes_back_when_it_wakes(multicast):
    """F3, T2: known after drop time and a failed probe; the woken one expires nobody, and all are members again."""
    world, nodes = meet("abc", multicast)
    paused_at, before = world.now, len(nodes[0].changes())
    nodes[0].paused = True
    world.run(10)
    assert [node.names() for node in nodes[1:]] == ["bc", "bc"]
    assert 3.0 <= nodes[1].when_gone("a") - paused_at <= 4.5
    world.resume(nodes[0])
    assert any(isinstance(event, Slept) and event.seconds == pytest.approx(9.5, abs=0.6) for _, event in nodes[0].events)
    world.run(5)
    assert [node.names() for node in nodes] == ["abc"] * 3
    assert len(nodes[0].changes()) == before


def test_a_restart_on_the_same_address_within_drop_time_is_one_change():
    """F4: the new incarnation replaces the old; no view ever holds two members at one address."""
    world, nodes = meet("abc")
    old = nodes[0]
    old.alive = False  # so fast that nobody noticed: the links still look up
    new = world.start("a")
    world.run(2)
    for node in nodes[1:]:
        assert node.names() == "abc"
        assert new.member.uid in node.group.view
        assert old.member.uid not in node.group.view
        assert all(len({member.address for member in change.after}) == len(change.after) for change in node.changes())
        last = node.changes()[-1]
        assert ([m.uid for m in last.appeared], [m.uid for m in last.disappeared]) == ([new.member.uid], [old.member.uid])


def test_a_farewell_is_a_clean_and_immediate_leave():
    world, nodes = meet("abc")
    nodes[0].run(nodes[0].group.stop(world.now))
    world.run(0.1)
    assert [node.names() for node in nodes[1:]] == ["bc", "bc"]
    assert [node.changes()[-1].clean for node in nodes[1:]] == [frozenset((nodes[0].member.uid,))] * 2
    assert not [event for node in nodes for _, event in node.events if isinstance(event, MemberSuspected)]


def test_datagrams_that_arrive_after_a_farewell_cause_no_dial():
    world, nodes = meet("ab")
    nodes[0].run(nodes[0].group.stop(world.now))
    world.run(0.1)
    dials = len(world.dials)
    world.perform(nodes[0], Beat(nodes[0].group._heartbeat))
    world.run(0.4)
    assert len(world.dials) == dials
    assert nodes[1].names() == "b"


def test_one_way_loss_does_not_flap():
    """F6: 1 does not reach 2 (so their link is dead, and 2 hears no heartbeat of 1); 3 reaches both, so both stay members."""
    world, nodes = meet("abc")
    before = [len(node.changes()) for node in nodes]
    world.cut_udp.add(("a", "b"))
    world.cut_tcp.add(frozenset("ab"))
    world.run(120)
    assert [len(node.changes()) for node in nodes] == before
    assert any(isinstance(event, MemberCleared) for _, event in nodes[1].events)


def test_a_cut_between_two_that_a_third_reaches_keeps_both():
    """F7, with links that broke."""
    world, nodes = meet("abc")
    world.cut_udp |= {("a", "b"), ("b", "a")}
    world.cut_tcp.add(frozenset("ab"))
    world.break_link(nodes[0].member.uid, nodes[1].member.uid)
    world.run(60)
    assert [node.names() for node in nodes] == ["abc"] * 3
    world.heal()
    world.run(5)
    assert len(world.links) == 3


def test_a_black_holed_link_with_multicast_alive_keeps_the_member():
    """F11 is the channel's to degrade, not membership's to remove."""
    world, nodes = meet("ab")
    world.cut_tcp.add(frozenset("ab"))
    world.run(60)
    assert [node.names() for node in nodes] == ["ab", "ab"]


@pytest.mark.parametrize("multicast", [True, False])
def test_a_partition_splits_the_view_once_and_heals_by_itself(multicast):
    """F5; without multicast and seeds only the memory of lost addresses brings the sides together."""
    world, nodes = meet("abcde", multicast)
    world.seeding = False
    before = [len(node.changes()) for node in nodes]
    for one in "ab":
        for two in "cde":
            world.cut_tcp.add(frozenset((one, two)))
            world.cut_udp |= {(one, two), (two, one)}
    world.run(5)
    assert [node.names() for node in nodes] == ["ab", "ab", "cde", "cde", "cde"]
    assert max(len(node.changes()) - n for node, n in zip(nodes, before, strict=True)) <= 3
    world.run(55)
    world.heal()
    world.run(10)
    assert [node.names() for node in nodes] == ["abcde"] * 5


def test_thirty_percent_of_datagrams_lost_changes_nothing():
    """F9, with links that still prove life."""
    world, nodes = meet("abcde")
    before = [len(node.changes()) for node in nodes]
    rng = Random(9)
    pairs = [(one.member.name, two.member.name) for one in nodes for two in nodes if one is not two]
    for _ in range(600):
        world.cut_udp = {pair for pair in pairs if rng.random() < 0.3}
        world.run(0.5)
    assert [len(node.changes()) for node in nodes] == before


def test_two_clusters_on_one_group_do_not_see_each_other():
    world = World()
    nodes = [world.start(name, cluster=cluster) for name, cluster in (("a", "shop"), ("b", "crm"), ("c", "shop"), ("d", "crm"))]
    world.run(5)
    assert [node.names() for node in nodes] == ["ac", "bd", "ac", "bd"]


def test_members_of_another_domain_are_in_everyone_and_not_in_the_view():
    world = World()
    nodes = [world.start(name, domain=domain) for name, domain in (("a", "x"), ("b", "y"), ("c", "x"))]
    world.run(5)
    assert [node.names() for node in nodes] == ["ac", "b", "ac"]
    assert [len(node.group.everyone) for node in nodes] == [3, 3, 3]


def test_a_join_storm_of_thirty_settles_without_a_storm_of_dials():
    """F22."""
    world = World()
    nodes = [world.start(f"n{n:02}") for n in range(30)]
    world.run(30)
    assert [len(node.group.view) for node in nodes] == [30] * 30
    assert len(world.links) == 30 * 29 // 2
    for node in nodes:
        times = [at for at, name, _ in world.dials if name == node.member.name]
        assert all(sum(start <= at < start + 0.999 for at in times) <= 10 for start in times)
    assert max(Counter((name, host, int(at * 1000) // 999) for at, name, host in world.dials).values()) <= 2


def test_forty_meet_by_one_seed_and_each_is_told_by_few():
    """One more costs every pair that meets a few messages, not one for every member."""
    world = World(multicast=False)
    nodes = [world.start(f"n{n:02}", "" if n == 0 else ("n00",)) for n in range(40)]
    world.run(4)  # a dozen dials a second each
    assert [len(node.group.view) for node in nodes] == [40] * 40
    assert world.sent["Known"] < 40 * 39 * 6
    before = world.sent["Known"]
    world.run(10)
    reminders, before = world.sent["Known"] - before, world.sent["Known"]
    last = world.start("new", ("n00",))
    world.run(10)
    assert [len(node.group.view) for node in [*nodes, last]] == [41] * 41
    assert world.sent["Known"] - before - reminders < 40 * 12


def test_a_changed_payload_reaches_all_as_a_new_view_of_the_same_members():
    world, nodes = meet("abc")
    me = nodes[0].group.me
    nodes[0].run(nodes[0].group.announce(me.with_payload(managers=["cart"])))
    world.run(0.1)
    for node in nodes:
        assert [m.name for m in node.group.view.announcing("cart")] == ["a"]
        assert (node.changes()[-1].appeared, node.changes()[-1].disappeared) == ((), ())
