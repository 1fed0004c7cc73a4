"""The group core by its inputs and effects."""

from __future__ import annotations

from random import Random

import pytest

from caterwaul.membership.codec import decode
from caterwaul.membership.detector import MemberCleared, MemberSuspected
from caterwaul.membership.dialling import ADDRESSES_MAX, Dial, Dialler
from caterwaul.membership.effects import Close, Notify, Send
from caterwaul.membership.errors import LocalError, RemoteError
from caterwaul.membership.group import Beat, EveryoneChanged, Group, Slept, Stopped
from caterwaul.membership.member import Member
from caterwaul.membership.messages import Alive, Announcement, Ask, Control, Farewell, Heartbeat, Known, Probe, Verdict, decode_control, to_message
from caterwaul.membership.settings import MembershipSettings
from caterwaul.membership.view import ViewChanged


def member(letter: str, **fields) -> Member:
    return Member(letter.encode() * 16, letter, **{"host": f"10.0.0.{ord(letter)}", "port": 7000, **fields})


ME, A, B, C, D = (member(letter) for letter in "mabcd")
NOW = 1000.0


def group_of(*others: Member, **settings) -> Group:
    """A group at NOW that has beaten once and is linked to these."""
    group = Group(ME, MembershipSettings(**settings), "shop", Random(1))
    group.tick(NOW)
    for other in others:
        group.linked(NOW, other)
    return group


def said(effects) -> list[tuple[bytes, Control]]:
    """What is sent to whom."""
    return [(uid, decode_control(decode(effect.message.payload))) for effect in effects if isinstance(effect, Send) for uid in effect.to]


def events(effects) -> list[object]:
    return [effect.event for effect in effects if isinstance(effect, Notify)]


def views(effects) -> list[ViewChanged]:
    return [event for event in events(effects) if isinstance(event, ViewChanged)]


def wire(control: Control) -> list:
    return decode(to_message(control).payload)


def run_until(group: Group, start: float, end: float) -> list:
    """Tick whenever the group wants it."""
    effects, now = [], start
    while (deadline := group.deadline()) is not None and deadline <= end:
        now = max(now, deadline)
        effects += group.tick(now)
        assert group.deadline() > now
    return effects


def names(group: Group) -> str:
    return "".join(sorted(m.name for m in group.view))


class TestHints:
    def test_at_first_there_is_only_me(self):
        group = Group(ME, MembershipSettings(), "shop", Random(1))
        assert (names(group), group.view.number, group.deadline()) == ("m", 1, 0.0)

    def test_the_first_tick_beats_and_then_one_tick_per_interval(self):
        group = Group(ME, MembershipSettings(), "shop", Random(1))
        assert group.tick(NOW) == [Beat(Heartbeat.of(ME, "shop").encode())]
        assert group.deadline() == NOW + 0.5
        assert len(run_until(group, NOW, NOW + 10)) == 20

    def test_an_unknown_heartbeat_causes_one_dial_a_second_and_no_member(self):
        group = group_of()
        effects = [effect for n in range(30) for effect in group.heard(NOW + n / 10, Heartbeat.of(A, "shop"))]
        assert effects == [Dial("10.0.0.97", 7000)] * 3
        assert names(group) == "m"

    def test_own_and_foreign_heartbeats_are_ignored(self):
        group = group_of()
        assert group.heard(NOW, Heartbeat.of(ME, "shop")) == []
        assert group.heard(NOW, Heartbeat.of(A, "crm")) == []
        assert group.heard(NOW, Heartbeat("shop", b"x" * 16, "x", ME.host, ME.port)) == []
        assert group.statistics()["foreign"] == 1

    def test_forged_heartbeats_cost_ten_dials_a_second_and_a_bounded_list(self):
        group = group_of()
        dials = []
        for n in range(5000):
            dials += group.heard(NOW, Heartbeat("shop", n.to_bytes(16), "x", f"10.0.{n >> 8}.{n & 255}", 1))
        dials += [effect for effect in run_until(group, NOW, NOW + 1) if isinstance(effect, Dial)]
        assert len(dials) <= 11
        assert group.statistics()["hints_dropped"] >= 5000 - ADDRESSES_MAX - 11

    def test_an_address_outside_the_allowed_networks_is_not_dialled_on_anybodys_word(self):
        group = group_of()
        for host in ("8.8.8.8", "2001:db8::1", "name.example", "224.0.0.1"):
            assert group.heard(NOW, Heartbeat("shop", host.encode().ljust(16)[:16], "x", host, 1)) == []
        assert group.statistics()["outside"] == 4
        assert group.found(NOW, "8.8.8.8", 1) == [Dial("8.8.8.8", 1)], "the operator's own word is enough"

    def test_a_member_that_is_admitted_no_more_is_gone_however_well_it_answers(self):
        group = group_of(A, B)
        effects = group.expel(NOW, A.uid)
        assert [effect.uid for effect in effects if isinstance(effect, Close)] == [A.uid]
        assert [member.uid for member in group.view] == sorted([ME.uid, B.uid])
        assert group.expel(NOW, A.uid) == []

    def test_a_member_outside_the_allowed_networks_is_sent_away(self):
        stranger = member("x", host="8.8.8.8")
        (closed,) = group_of().linked(NOW, stranger)
        assert (closed.uid, "allowed_networks" in closed.reason) == (stranger.uid, True)

    def test_a_found_address_is_dialled_unless_a_member_has_it(self):
        group = group_of(A)
        assert group.found(NOW, "10.0.0.97", 7000) == []
        assert group.found(NOW, "10.0.0.98", 7000) == [Dial("10.0.0.98", 7000)]

    def test_a_queued_dial_is_dropped_when_its_member_has_linked_meanwhile(self):
        group = group_of()
        assert group.found(NOW, "10.0.0.97", 7000) == [Dial("10.0.0.97", 7000)]
        assert group.heard(NOW, Heartbeat.of(B, "shop")) == []
        group.linked(NOW + 0.05, B)
        assert not [effect for effect in run_until(group, NOW, NOW + 0.3) if isinstance(effect, Dial)]

    def test_the_new_incarnation_at_a_members_address_is_dialled(self):
        group = group_of(A)
        assert group.heard(NOW, Heartbeat.of(member("x", host="10.0.0.97"), "shop")) == [Dial("10.0.0.97", 7000)]

    def test_who_is_told_of_dials_those_it_does_not_know(self):
        group = group_of(A, B)
        known = Known(tuple((m.uid, m.host, m.port) for m in (A, B, C, ME)))
        assert group.received(NOW, A.uid, wire(known)) == [Dial("10.0.0.99", 7000)]

    def test_the_dialler_forgets_rested_addresses(self):
        dialler = Dialler()
        for n in range(100):
            dialler.hint(NOW + n, ("h", n))
            assert dialler.take(NOW + n, lambda *_: False) == [Dial("h", n)]
        assert len(dialler._resting) <= 2


class TestLinks:
    def test_a_link_makes_a_member_and_everybody_is_told_of_everybody(self):
        group = group_of(A)
        effects = group.linked(NOW, B)
        assert [[m.name for m in change.appeared] for change in views(effects)] == [["b"]]
        assert said(effects) == [(B.uid, Known(((A.uid, "10.0.0.97", 7000),))), (A.uid, Known(((B.uid, "10.0.0.98", 7000),)))]
        assert [type(event) for event in events(effects)] == [ViewChanged, EveryoneChanged]

    def test_among_many_a_newcomer_is_made_known_to_the_nearest_and_they_tell_it_of_all(self):
        others = [Member(bytes([n]) * 16, f"n{n}", f"10.0.1.{n}", 7000) for n in range(120, 250)]
        group = group_of(*others)
        newcomer = Member(bytes([60]) * 16, "new", "10.0.1.60", 7000)
        told = said(group.linked(NOW, newcomer))
        nearest = sorted((m.uid for m in others), key=lambda uid: int.from_bytes(uid, "big") ^ int.from_bytes(newcomer.uid, "big"))[:4]
        assert [message for message in told if message[0] != newcomer.uid] == [(uid, Known(((newcomer.uid, "10.0.1.60", 7000),))) for uid in nearest]
        assert [len(known.members) for to, known in told if to == newcomer.uid] == [130]
        stranger = Member(bytes([249 ^ 1]) * 16, "far", "10.0.1.61", 7000)
        assert stranger.uid not in [to for to, _ in said(group.linked(NOW, stranger))]

    def test_a_link_that_comes_back_changes_no_view(self):
        group = group_of(A)
        group.unlinked(NOW, A.uid, False)
        assert views(group.linked(NOW + 1, A)) == []
        assert group.view.number == 2

    def test_a_handshake_with_a_new_announcement_is_a_change(self):
        group = group_of(A)
        (change,) = views(group.linked(NOW, A.with_payload(managers=["cart"])))
        assert [m.name for m in change.after.announcing("cart")] == ["a"]

    def test_an_older_incarnation_at_the_same_address_disappears_in_the_same_change(self):
        group = group_of(A)
        new = member("x", host="10.0.0.97")
        effects = group.linked(NOW, new)
        (change,) = views(effects)
        assert (change.appeared, change.disappeared, change.clean) == ((new,), (A,), frozenset())
        assert [effect.uid for effect in effects if isinstance(effect, Close)] == [A.uid]

    def test_members_over_the_bound_are_refused_but_a_restart_of_one_is_not(self):
        group = group_of(A, B, members_max=3)
        (close,) = group.linked(NOW, C)
        assert (close.uid, "members_max" in close.reason, names(group)) == (C.uid, True, "abm")
        group.linked(NOW, member("x", host="10.0.0.97"))
        assert names(group) == "bmx"

    def test_a_member_that_disappeared_and_links_again_is_a_member_again(self):
        group = group_of(A)
        group.unlinked(NOW, A.uid, True)
        assert names(group) == "m"
        assert len(views(group.linked(NOW + 1, A))) == 1
        assert names(group) == "am"

    def test_another_domain_changes_everyone_and_not_the_view(self):
        group = group_of(A)
        number = group.view.number
        effects = group.linked(NOW, member("x", domain="other"))
        assert [type(event) for event in events(effects)] == [EveryoneChanged]
        assert (group.view.number, len(group.everyone)) == (number, 3)

    def test_my_own_uid_is_never_linked(self):
        assert group_of().linked(NOW, ME) == []


class TestVerdicts:
    def test_a_quiet_member_is_probed_once_until_it_answers(self):
        group = group_of(A)
        assert said(run_until(group, NOW, NOW + 0.99)) == []
        probes = said(run_until(group, NOW + 1, NOW + 2.5))
        assert [uid for uid, control in probes if isinstance(control, Probe)] == [A.uid]
        group.received(NOW + 2.6, A.uid, wire(Alive(probes[0][1].nonce)))
        assert [control for _, control in said(run_until(group, NOW + 2.6, NOW + 4.1)) if isinstance(control, Probe)] != []

    def test_traffic_alone_keeps_a_member(self):
        group = group_of(A)
        for n in range(100):
            group.traffic(NOW + n / 4, A.uid)
            assert said(run_until(group, NOW, NOW + n / 4)) == []
        assert names(group) == "am"

    def test_traffic_of_a_stranger_is_nothing(self):
        group = group_of(A)
        group.traffic(NOW, b"x" * 16)
        assert names(group) == "am"

    def test_a_silent_member_with_nobody_to_ask_goes_after_its_last_probe_had_its_time(self):
        group = group_of(A)
        effects = run_until(group, NOW, NOW + 3.29)
        assert [type(event) for event in events(effects)] == [MemberSuspected]
        effects = run_until(group, NOW + 3.29, NOW + 3.31)
        assert [m.name for change in views(effects) for m in change.disappeared] == ["a"]
        assert [effect.uid for effect in effects if isinstance(effect, Close)] == [A.uid]

    def test_a_refused_redial_in_a_pair_is_final_at_once(self):
        group = group_of(A)
        assert group.unlinked(NOW, A.uid, False) == []
        effects = group.unlinked(NOW + 0.1, A.uid, True)
        assert [m.name for change in views(effects) for m in change.disappeared] == ["a"]
        assert isinstance(effects[-1], Close)

    def test_up_to_three_are_asked_and_one_yes_clears_for_a_drop_time(self):
        group = group_of(A, B, C, D, member("e"))
        asked = said(group.unlinked(NOW, A.uid, True))
        assert len(asked) == 3
        assert A.uid not in [uid for uid, _ in asked]
        assert {type(control) for _, control in asked} == {Ask}
        uid, ask = asked[0]
        assert events(group.received(NOW + 0.1, uid, wire(Verdict(ask.nonce, A.uid, True)))) == [MemberCleared(A)]
        assert group.unlinked(NOW + 2.9, A.uid, True) == []
        assert len(said(group.unlinked(NOW + 3.2, A.uid, True))) == 3

    def test_it_goes_as_soon_as_all_that_were_asked_say_no(self):
        group = group_of(A, B, C)
        asked = said(group.unlinked(NOW, A.uid, True))
        assert views(group.received(NOW + 0.01, asked[0][0], wire(Verdict(asked[0][1].nonce, A.uid, False)))) == []
        effects = group.received(NOW + 0.02, asked[1][0], wire(Verdict(asked[1][1].nonce, A.uid, False)))
        assert [m.name for change in views(effects) for m in change.disappeared] == ["a"]

    def test_it_goes_when_nobody_answers_in_time(self):
        group = group_of(A, B, C)
        group.unlinked(NOW, A.uid, True)
        assert names(group) == "abcm"
        assert len(views(run_until(group, NOW, NOW + 0.31))) == 1
        assert names(group) == "bcm"

    def test_a_verdict_that_nobody_asked_for_is_nothing(self):
        group = group_of(A, B, C)
        (_, ask), *_ = said(group.unlinked(NOW, A.uid, True))
        assert group.received(NOW, B.uid, wire(Verdict(ask.nonce + 1, A.uid, True))) == []
        assert group.received(NOW, A.uid, wire(Verdict(ask.nonce, A.uid, True))) == []
        assert group.received(NOW, B.uid, wire(Verdict(ask.nonce, C.uid, True))) == []

    def test_after_a_refusal_a_late_datagram_does_not_clear_but_a_new_link_does(self):
        group = group_of(A, B)
        group.unlinked(NOW, A.uid, True)
        assert events(group.heard(NOW + 0.1, Heartbeat.of(A, "shop"))) == []
        assert events(group.linked(NOW + 0.2, A)) == [MemberCleared(A)]

    def test_a_datagram_clears_a_suspicion_of_silence(self):
        group = group_of(A)
        run_until(group, NOW, NOW + 3.1)
        assert events(group.heard(NOW + 3.2, Heartbeat.of(A, "shop"))) == [MemberCleared(A)]
        assert names(group) == "am"

    def test_a_frame_that_comes_during_the_inquiry_clears_it_at_its_end(self):
        group = group_of(A)
        run_until(group, NOW, NOW + 3.1)
        group.traffic(NOW + 3.2, A.uid)
        assert events(run_until(group, NOW + 3.2, NOW + 3.31)) == [MemberCleared(A)]

    def test_several_that_fall_silent_together_go_in_one_change(self):
        group = group_of(A, B, C)
        changes = views(run_until(group, NOW, NOW + 4))
        assert [len(change.disappeared) for change in changes] == [3]

    def test_a_slept_node_judges_nobody_and_gives_all_a_fresh_drop_time(self):
        """T2: the tick comes before the heartbeats that wait in the socket."""
        group = group_of(A, B)
        effects = group.tick(NOW + 6)
        assert events(effects) == [Slept(5.5)]
        assert group.deadline() > NOW + 6
        run_until(group, NOW + 6, NOW + 8.9)
        assert names(group) == "abm"
        run_until(group, NOW + 8.9, NOW + 9.6)
        assert names(group) == "m"

    def test_a_tick_late_by_less_than_two_heartbeats_is_no_sleep(self):
        assert events(group_of(A).tick(NOW + 0.5 + 0.99)) == []

    def test_sleeping_over_inquiries_and_questions_leaves_nothing_overdue(self):
        group = group_of(A, B, C)
        group.unlinked(NOW, A.uid, True)
        group.received(NOW, B.uid, wire(Ask(1, C.uid)))
        group.tick(NOW + 60)
        assert group.deadline() > NOW + 60
        assert names(group) == "abcm"


class TestQuestions:
    def test_a_probe_is_answered(self):
        assert said(group_of(A).received(NOW, A.uid, wire(Probe(9)))) == [(A.uid, Alive(9))]

    def test_asked_of_a_member_it_probes_and_says_yes_only_to_an_answer_newer_than_the_question(self):
        group = group_of(A, B)
        ((uid, probe),) = said(group.received(NOW, A.uid, wire(Ask(5, B.uid))))
        assert (uid, type(probe)) == (B.uid, Probe)
        assert said(group.received(NOW + 0.01, B.uid, wire(Alive(probe.nonce - 1)))) == []
        assert said(group.received(NOW + 0.02, B.uid, wire(Alive(probe.nonce)))) == [(A.uid, Verdict(5, B.uid, True))]

    def test_without_an_answer_a_link_heard_recently_still_counts_and_silence_does_not(self):
        for heard_at, reached in ((NOW + 1, True), (NOW, False)):
            group = group_of(A, B)
            group.traffic(heard_at, B.uid)
            run_until(group, NOW, NOW + 1.6)
            group.received(NOW + 1.7, A.uid, wire(Ask(5, B.uid)))
            assert (A.uid, Verdict(5, B.uid, reached)) in said(run_until(group, NOW + 1.7, NOW + 1.86))

    def test_without_a_link_only_a_datagram_newer_than_the_question_counts(self):
        for heard_at, reached in ((NOW + 0.1, False), (NOW + 0.25, True)):
            group = group_of(A, B)
            group.unlinked(NOW, B.uid, False)
            if heard_at < NOW + 0.2:
                group.heard(heard_at, Heartbeat.of(B, "shop"))
            assert said(group.received(NOW + 0.2, A.uid, wire(Ask(5, B.uid)))) == []
            if heard_at > NOW + 0.2:
                group.heard(heard_at, Heartbeat.of(B, "shop"))
            assert said(run_until(group, NOW + 0.25, NOW + 0.36)) == [(A.uid, Verdict(5, B.uid, reached))]

    def test_who_asks_about_a_member_that_goes_just_now_is_told_no_at_once(self):
        group = group_of(A, B)
        run_until(group, NOW, NOW + 2.9)
        group.traffic(NOW + 2.9, A.uid)
        run_until(group, NOW + 2.9, NOW + 3.2)
        group.received(NOW + 3.29, A.uid, wire(Ask(5, B.uid)))
        assert (A.uid, Verdict(5, B.uid, False)) in said(run_until(group, NOW + 3.29, NOW + 3.31))

    def test_it_says_no_at_once_of_a_stranger_and_of_whoever_refused_it_too(self):
        group = group_of(A, B, C)
        assert said(group.received(NOW, A.uid, wire(Ask(5, b"x" * 16)))) == [(A.uid, Verdict(5, b"x" * 16, False))]
        group.received(NOW, A.uid, wire(Ask(6, B.uid)))
        assert (A.uid, Verdict(6, B.uid, False)) in said(group.unlinked(NOW + 0.01, B.uid, True))
        assert said(group.received(NOW + 0.02, C.uid, wire(Ask(7, B.uid)))) == [(C.uid, Verdict(7, B.uid, False))]


class TestMessages:
    def test_a_farewell_is_clean_at_once_and_for_good(self):
        group = group_of(A, B)
        effects = group.received(NOW, A.uid, wire(Farewell()))
        (change,) = views(effects)
        assert (change.disappeared, change.clean) == ((A,), frozenset((A.uid,)))
        assert group.heard(NOW + 5, Heartbeat.of(A, "shop")) == []
        assert [type(effect) for effect in group.linked(NOW + 5, A)] == [Close]
        assert names(group) == "bm"

    def test_a_member_may_announce_something_new_but_not_be_somebody_else(self):
        group = group_of(A)
        assert len(views(group.received(NOW, A.uid, wire(Announcement(A.with_payload(load=1)))))) == 1
        assert views(group.received(NOW, A.uid, wire(Announcement(A.with_payload(load=1))))) == []
        for other in (B, member("a", host="10.0.0.1"), member("a", domain="x")):
            with pytest.raises(RemoteError):
                group.received(NOW, A.uid, wire(Announcement(other)))

    def test_my_announcement_goes_to_all_and_is_a_view_of_mine(self):
        group = group_of(A, B)
        effects = group.announce(ME.with_payload(load=1))
        assert [uid for uid, _ in said(effects)] == [A.uid, B.uid]
        assert [change.after.by_uid[ME.uid].payload for change in views(effects)] == [{"load": 1}]
        assert group.announce(ME.with_payload(load=1)) == []
        with pytest.raises(LocalError):
            group.announce(A)

    def test_a_message_of_nobody_known_is_nothing_and_a_malformed_one_an_error(self):
        group = group_of(A)
        assert group.received(NOW, b"x" * 16, wire(Farewell())) == []
        with pytest.raises(RemoteError):
            group.received(NOW, A.uid, ["", 99])

    def test_stop_says_farewell_waits_a_moment_and_ignores_the_rest(self):
        group = group_of(A, B)
        assert said(group.stop(NOW)) == [(A.uid, Farewell()), (B.uid, Farewell())]
        assert group.linked(NOW, C) == group.heard(NOW, Heartbeat.of(D, "shop")) == group.found(NOW, "h", 1) == group.unlinked(NOW, A.uid, True) == []
        assert run_until(group, NOW, NOW + 0.29) == []
        assert group.tick(NOW + 0.3) == [Notify(Stopped())]
        assert group.deadline() is None
        assert group.stop(NOW + 1) == []
