"""Whatever arrives, in whatever order: the laws that views and deadlines keep."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from caterwaul.membership.codec import decode
from caterwaul.membership.effects import Close, Notify, Send
from caterwaul.membership.group import EveryoneChanged, Group
from caterwaul.membership.member import Member
from caterwaul.membership.messages import Alive, Announcement, Ask, Farewell, Heartbeat, Known, Probe, Verdict, decode_control, decode_heartbeat, to_message
from caterwaul.membership.sealing import SealedDatagrams
from caterwaul.membership.secret import Secret
from caterwaul.membership.settings import MembershipSettings
from caterwaul.membership.view import ViewChanged

#: Incarnations: several share an address, some are of another domain.
MEMBERS = [Member(bytes([n]) * 16, f"n{n}", f"10.0.0.{n % 5 + 1}", 7000, "other" if n % 4 == 3 else "") for n in range(1, 10)]
ME = Member(b"\0" * 16, "me", "10.0.0.9", 7000)
someone = st.sampled_from(MEMBERS)
uids = st.sampled_from([member.uid for member in [*MEMBERS, ME]])
nonces = st.integers(0, 12)


class Inputs(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.group = Group(ME, MembershipSettings(members_max=6), "shop", Random(3))
        self.view = self.group.view
        self.everyone = self.group.everyone
        self.said_farewell: set[bytes] = set()
        self.stopped = False

    def take(self, effects) -> None:
        """Follow the events: they must tell exactly the views there are, one number at a time."""
        for effect in effects:
            if isinstance(effect, Notify) and isinstance(effect.event, ViewChanged):
                assert effect.event.before is self.view
                assert effect.event.after.number == self.view.number + 1
                self.view = effect.event.after
                assert set(effect.event.clean) <= {member.uid for member in effect.event.disappeared}
            elif isinstance(effect, Notify) and isinstance(effect.event, EveryoneChanged):
                assert effect.event.before is self.everyone
                self.everyone = effect.event.after
            elif isinstance(effect, Close):
                assert effect.uid not in self.group.everyone
            elif isinstance(effect, Send):
                decode_control(decode(effect.message.payload))
                assert ME.uid not in effect.to

    @rule(member=someone)
    def heard(self, member):
        self.take(self.group.heard(self.now, Heartbeat.of(member, "shop")))

    @rule(member=someone)
    def linked(self, member):
        self.take(self.group.linked(self.now, member))

    @rule(uid=uids, refused=st.booleans())
    def unlinked(self, uid, refused):
        self.take(self.group.unlinked(self.now, uid, refused))

    @rule(uid=uids)
    def traffic(self, uid):
        self.group.traffic(self.now, uid)

    @rule(uid=uids, control=st.one_of(
        st.builds(Probe, nonces), st.builds(Alive, nonces), st.builds(Ask, nonces, uids), st.builds(Verdict, nonces, uids, st.booleans()),
        st.lists(someone, max_size=4).map(lambda members: Known(tuple((member.uid, member.host, member.port) for member in members))),
    ))  # fmt: skip
    def received(self, uid, control):
        self.take(self.group.received(self.now, uid, decode(to_message(control).payload)))

    @rule(member=someone)
    def farewell(self, member):
        if member.uid in self.group.everyone and not self.stopped:
            self.said_farewell.add(member.uid)
        self.take(self.group.received(self.now, member.uid, decode(to_message(Farewell()).payload)))

    @rule(member=someone, load=st.integers(0, 3))
    def announced(self, member, load):
        self.take(self.group.received(self.now, member.uid, decode(to_message(Announcement(member.with_payload(load=load))).payload)))

    @rule(load=st.integers(0, 3))
    def announce(self, load):
        self.take(self.group.announce(self.group.me.with_payload(load=load)))

    @rule(ahead=st.sampled_from([0.0, 0.05, 0.15, 0.3, 0.5, 0.999, 1.0, 3.0, 60.0]))
    def tick(self, ahead):
        """On time, early or late."""
        self.now += ahead
        self.take(self.group.tick(self.now))
        assert (deadline := self.group.deadline()) is None or deadline > self.now

    @precondition(lambda self: not self.stopped)
    @rule(chance=st.integers(0, 30))
    def stop(self, chance):
        if chance == 0:
            self.stopped = True
            self.take(self.group.stop(self.now))

    @invariant()
    def views_are_what_the_events_said(self):
        assert self.group.view is self.view
        assert self.group.everyone is self.everyone

    @invariant()
    def i_am_always_there_and_no_other_domain_is(self):
        assert ME.uid in self.view
        assert ME.uid in self.everyone
        assert all(member.domain == ME.domain for member in self.view)
        assert {member.uid for member in self.view} == {member.uid for member in self.everyone if member.domain == ME.domain}

    @invariant()
    def no_address_holds_two_members_and_no_more_than_allowed_are_in(self):
        assert len({member.address for member in self.everyone}) == len(self.everyone) <= 6

    @invariant()
    def who_said_farewell_is_gone_for_good(self):
        assert not self.said_farewell & self.everyone.by_uid.keys()


TestInputs = Inputs.TestCase
TestInputs.settings = settings(max_examples=150, stateful_step_count=60)

texts = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=15)


@given(texts, st.binary(min_size=16, max_size=16), texts, st.ip_addresses().map(str), st.integers(1, 65535), texts)
def test_any_heartbeat_comes_back_from_its_bytes(cluster, uid, name, host, port, domain):
    heartbeat = Heartbeat(cluster, uid, name, host, port, domain)
    assert decode_heartbeat(heartbeat.encode()) == heartbeat


@given(st.lists(st.integers(0, 199), max_size=400))
def test_the_replay_window_agrees_with_a_set_and_a_maximum(order):
    """Only what is newer than all before is given; what is behind is counted as late once, and as a repeat afterwards, or from 64 behind the newest on."""
    sender = SealedDatagrams([Secret(b"s" * 32)], "shop", b"a" * 16, lambda n: bytes(n))
    sealed = [sender.seal(bytes([n])) for n in range(200)]
    receiver = SealedDatagrams([Secret(b"s" * 32)], "shop", b"b" * 16, lambda n: bytes(n))
    seen: set[int] = set()
    for n in order:
        newest = max(seen, default=-1)
        is_repeat = n in seen or n <= newest - 64
        before = receiver.statistics()
        assert receiver.open(sealed[n]) == (bytes([n]) if n > newest else None)
        counted = "repeated" if is_repeat else "opened" if n > newest else "late"
        assert receiver.statistics()[counted] == before[counted] + 1
        if not is_repeat:
            seen.add(n)
