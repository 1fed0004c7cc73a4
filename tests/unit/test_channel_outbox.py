"""The bounded outbox, the order on a link, and cutting."""

from __future__ import annotations

import pytest

from caterwaul.cluster.frames import CONTROL as CONTROL_FRAME
from caterwaul.cluster.frames import DATA as DATA_FRAME
from caterwaul.cluster.frames import MORE, FrameDecoder
from caterwaul.cluster.link import Link
from caterwaul.cluster.outbox import Outbox
from caterwaul.cluster.pipeline import PARCEL_COST, Pipeline, cost
from caterwaul.membership.channel import CONTROL, DATA, Message, Waiter
from caterwaul.membership.errors import RemoteError
from caterwaul.membership.member import Member

PIPELINE = Pipeline(chunk_bytes=1024, message_max_bytes=1 << 20, compress_above_bytes=0)
KEYS = [bytes([number]) * 16 for number in range(10)]


class Told:
    def __init__(self) -> None:
        self.told: list[str] = []

    def confirmed(self, uid: bytes) -> None:
        self.told.append("confirmed")

    def failed(self, uid: bytes) -> None:
        self.told.append("failed")


def message(size: int, *keys: bytes, lane: int = DATA, receiver: str = "s", waiters: tuple[Waiter, ...] = ()) -> Message:
    return Message(receiver, lane, bytes(size), keys, waiters)


def put(target: Outbox | Link, what: Message) -> object:
    parcels = PIPELINE.outbound(what)
    return target.put(parcels, what, cost(parcels))


def open_link(outbox_max_bytes: int = 1 << 20, message_max_bytes: int = 1 << 20) -> Link:
    link = Link(Member(b"p" * 16, "p", "h", 1), outbox_max_bytes=outbox_max_bytes, message_max_bytes=message_max_bytes)
    link.begin(b"a" * 8, b"b" * 8)
    return link


def test_over_the_bound_all_unsent_keyed_messages_of_both_lanes_become_dirty_keys() -> None:
    outbox = Outbox(4000)
    put(outbox, message(1000, KEYS[0]))
    put(outbox, message(500, KEYS[1], lane=CONTROL))
    put(outbox, message(700))
    put(outbox, message(3000, KEYS[2], KEYS[0]))
    assert [len(queue) for queue in outbox.queues] == [0, 1]
    assert outbox.backlog == 700 + PARCEL_COST
    assert outbox.dirty_count == 3
    assert outbox.dropped == 3
    outbox.refilled(1, 100)
    assert outbox.take_dirty() == ("s", [KEYS[1], KEYS[0], KEYS[2]], [])


def test_while_keys_are_dirty_other_keyed_messages_go_the_same_way_and_unkeyed_ones_are_kept() -> None:
    outbox = Outbox(4000)
    put(outbox, message(3900, KEYS[0]))
    put(outbox, message(10, KEYS[1]))
    put(outbox, message(10))
    assert outbox.dirty_count == 2
    assert outbox.backlog == 10 + PARCEL_COST


def test_refills_wait_for_a_quarter_of_the_bound_and_receivers_take_turns() -> None:
    outbox = Outbox(4000)
    for key in KEYS[:5]:
        put(outbox, message(9000, key, receiver="one"))
        put(outbox, message(9000, key, receiver="two"))
    put(outbox, message(1500))
    assert not outbox.wants_refill()
    assert outbox.take_dirty() is None
    outbox.backlog = 0
    outbox.refilled(1, 1000)
    assert outbox.take_dirty() == ("one", KEYS[0:2], [])
    assert outbox.take_dirty() == ("two", KEYS[0:2], [])
    assert outbox.take_dirty() == ("one", KEYS[2:4], [])


def test_waiters_of_dropped_messages_come_with_the_last_of_their_keys() -> None:
    outbox = Outbox(2000)
    told = Told()
    put(outbox, message(5000, KEYS[0]))
    put(outbox, message(5000, KEYS[1], KEYS[0], waiters=(told,)))
    outbox.refilled(1, 1000)
    assert outbox.take_dirty() == ("s", [KEYS[1]], [])
    assert outbox.take_dirty() == ("s", [KEYS[0]], [told])
    assert outbox.take_dirty() is None


def test_a_message_whose_first_piece_was_sent_is_not_torn_by_an_overflow() -> None:
    link = open_link(6000)
    put(link, message(3000, KEYS[0]))
    first = FrameDecoder().feed(link.pull(0, 100))
    put(link, message(1000, KEYS[1]))
    put(link, message(3000, KEYS[2]))
    rest = FrameDecoder().feed(link.pull(0, 100_000))
    assert [frame[3] & MORE for frame in first + rest] == [1, 1, 0]
    assert sum(len(frame[4]) for frame in first + rest) == 3000
    assert link.outbox.dirty_count == 2


def test_control_goes_before_data_that_was_queued_earlier() -> None:
    link = open_link()
    put(link, message(5000))
    put(link, message(10, lane=CONTROL))
    assert [frame[0] for frame in FrameDecoder().feed(link.pull(0, 1500))] == [CONTROL_FRAME, DATA_FRAME, DATA_FRAME]
    put(link, message(20, lane=CONTROL))
    assert [frame[0] for frame in FrameDecoder().feed(link.pull(0, 100_000))] == [CONTROL_FRAME] + [DATA_FRAME] * 3


def test_without_a_connection_an_overflow_discards_everything_and_the_epoch() -> None:
    link = open_link(3000)
    told = Told()
    put(link, message(1000, KEYS[0], waiters=(told,)))
    link.pull(0, 5000)
    link.lost()
    assert put(link, message(100, KEYS[1], waiters=(told,))) == ()
    assert put(link, message(3000, KEYS[1], waiters=(told,))) == [told, told, told]
    assert link.epoch is None
    assert link.outbox.backlog == 0
    assert put(link, message(1, waiters=(told,))) == (told,)
    assert link.outbox.backlog == 0


def test_all_pieces_of_payloads_for_many_links_share_their_bytes() -> None:
    big = message(5000)
    pieces = PIPELINE.outbound(big)
    assert [len(piece) for piece, _, _ in pieces] == [1024, 1024, 1024, 1024, 904]
    assert all(isinstance(piece, memoryview) and piece.obj is big.payload for piece, _, _ in pieces)
    assert PIPELINE.outbound(message(1024))[0][0] is not None


def test_a_gap_an_acknowledgement_of_the_future_and_an_endless_message_are_remote_errors() -> None:
    link = open_link(message_max_bytes=1 << 20)
    with pytest.raises(RemoteError, match="frame 2 of lane 1 where 1 is next"):
        link.accept((DATA_FRAME, 2, 0, 0, b""))
    with pytest.raises(RemoteError, match="acknowledges frame 1"):
        link.acknowledged(0, 1)
    for number in range(1, 3):
        assert link.accept((DATA_FRAME, number, 0, MORE, bytes(400_000))) is None
    with pytest.raises(RemoteError, match="larger than"):
        link.accept((DATA_FRAME, 3, 0, MORE, bytes(400_000)))


def test_a_message_in_very_many_tiny_pieces_is_a_remote_error() -> None:
    link = open_link(message_max_bytes=1 << 20)
    for number in range(1, 2050):
        assert link.accept((CONTROL_FRAME, number, 0, MORE, b"x")) is None
    with pytest.raises(RemoteError, match="larger than"):
        link.accept((CONTROL_FRAME, 2050, 0, MORE, b"x"))


def test_a_link_that_begins_anew_forgets_half_a_message() -> None:
    link = open_link()
    link.accept((DATA_FRAME, 1, 0, MORE, b"old"))
    link.begin(b"c" * 8, b"d" * 8)
    assert link.accept((DATA_FRAME, 1, 0, 0, b"new")) == b"new"


def test_what_is_confirmed_before_it_was_repeated_is_not_repeated() -> None:
    """The peer may have got it over a connection that this one replaced."""
    link = open_link()
    for size in (1, 2, 3):
        put(link, message(size))
    link.pull(0, 1000)
    link.resume((0, 0))
    link.acknowledged(0, 2)
    assert [frame[1:] for frame in FrameDecoder().feed(link.pull(0, 1000))] == [(0, 0), (3, 0, 0, bytes(3))]


def test_a_repeat_is_dropped_counted_and_confirmed_again() -> None:
    link = open_link()
    frame = (DATA_FRAME, 1, 0, 0, b"x")
    assert link.accept(frame) == b"x"
    link.applied(frame)
    first = link.pull(0, 1000)
    assert link.accept(frame) is None
    assert link.repeats == 1
    assert link.pull(0, 1000) == first
    assert link.pull(0, 1000) == b""


def test_waiters_of_a_refill_that_does_not_fit_are_told_after_all_their_keys_have_gone() -> None:
    """The keys of one message were taken apart: the first with others, the last, which has the waiter, stayed. Put back, the first goes first."""
    outbox, told = Outbox(4000), Told()
    put(outbox, message(1500))
    put(outbox, message(3000, KEYS[0], KEYS[1], waiters=(told,)))
    outbox.backlog = 0
    outbox._record_bytes = 2000  # so that one key is taken at a time
    assert outbox.take_dirty() == ("s", [KEYS[0]], [])
    outbox.backlog = 3500
    large = message(1000, KEYS[0])
    assert not outbox.put_refilled(PIPELINE.outbound(large), large, cost(PIPELINE.outbound(large)))
    outbox.put_back([large, message(10, KEYS[2])])
    outbox.backlog = 0
    taken = [outbox.take_dirty() for _ in range(3)]
    assert taken == [("s", [KEYS[0]], []), ("s", [KEYS[2]], []), ("s", [KEYS[1]], [told])]
