"""The bytes of session managers on the wire, one message of each operation. Changing one of these is a change of the protocol."""

from __future__ import annotations

import pytest

from caterwaul.managers.changes import batch_prefix, encode_batch, encode_delta
from caterwaul.managers.heads import EXPIRED, INVALIDATED, Cover, Head, live_head
from caterwaul.managers.merging import COUNTER, MAX, MIN, NEVER, NUMBER, SET, TEXT, Birth, State, build, parse
from caterwaul.managers.messages import DELTAS, GONE, HEAD_MARK, RECORD_MARK, Session, Speaker
from caterwaul.managers.record import Record
from caterwaul.membership.channel import CONTROL, DATA
from caterwaul.membership.codec import decode

KEY = bytes(range(16))
UID = b"\x11" * 16
OTHER = b"\x22" * 16
KEY_HEX, UID_HEX, OTHER_HEX = KEY.hex(), UID.hex(), OTHER.hex()
DIGEST = b"\xdd" * 8
SAY = Speaker("web")
NAME = "63776562"  # "web"

RECORD = Record()
RECORD.write(1, UID, {"a": b"\x01", "b": None})
RECORD.merge_delta(2, OTHER, 0, {UID: 1}, {"c": b"\x02"})
#: [origins, applied, floor, {name: [counter, index of origin, value]}]
BODY = "84" + "8250" + UID_HEX + "50" + OTHER_HEX + "820102" + "80" + "a3" + "6161" + "83010041" + "01" + "6162" + "830100f6" + "6163" + "83020141" + "02"

LIVE_HEAD = live_head(1, UID, UID)
ENDED = Head(INVALIDATED, 2, OTHER, UID, (), None, 1000)
EXPIRY = Head(EXPIRED, 2, OTHER, UID, (), Cover({UID: 1}, {UID: 900}), 1000)
#: [state, counter, origin, primary, holders, cover, ended ms]
LIVE_HEX = "870001" + "50" + UID_HEX + "50" + UID_HEX + "80f600"
ENDED_HEX = "870202" + "50" + OTHER_HEX + "50" + UID_HEX + "80f61903e8"
EXPIRY_HEX = "870102" + "50" + OTHER_HEX + "50" + UID_HEX + "80" + "82a150" + UID_HEX + "01a150" + UID_HEX + "190384" + "1903e8"

DELTA = encode_delta(KEY, 2, 1, {OTHER: 3}, {"a": b"\x01", "b": None}, 1000)
CREATION = encode_delta(KEY, 1, 0, {}, {"a": b"\x01"}, 1000, 999)
DELTA_HEX = "8650" + KEY_HEX + "0201" + "a150" + OTHER_HEX + "03" + "a2" + "61614101" + "6162f6" + "1903e8"
CREATION_HEX = "8750" + KEY_HEX + "0100" + "a0" + "a1" + "61614101" + "1903e8" + "1903e7"

#: operation, lane, message, bytes, and what they say
MESSAGES = [
    (1, DATA, encode_batch(batch_prefix("web", DELTAS, UID), [DELTA, CREATION]), "84" + NAME + "01" + "50" + UID_HEX + "82" + DELTA_HEX + CREATION_HEX,
     ["web", 1, UID, [[KEY, 2, 1, {OTHER: 3}, {"a": b"\x01", "b": None}, 1000], [KEY, 1, 0, {}, {"a": b"\x01"}, 1000, 999]]]),
    (2, DATA, SAY.records([Session(KEY, LIVE_HEAD, 999, (UID, 1000, 1000), RECORD.pack())]),
     "83" + NAME + "02" + "81" + "8550" + KEY_HEX + LIVE_HEX + "1903e7" + "8350" + UID_HEX + "1903e81903e8" + "583d" + BODY,
     ["web", 2, [[KEY, [0, 1, UID, UID, [], None, 0], 999, [UID, 1000, 1000], bytes.fromhex(BODY)]]]),
    (3, DATA, SAY.touches([(KEY, 1000)]), "83" + NAME + "03" + "81" + "8250" + KEY_HEX + "1903e8", ["web", 3, [[KEY, 1000]]]),
    (4, CONTROL, SAY.heads([(KEY, ENDED), (KEY, EXPIRY)]), "83" + NAME + "04" + "82" + "8250" + KEY_HEX + ENDED_HEX + "8250" + KEY_HEX + EXPIRY_HEX,
     ["web", 4, [[KEY, [2, 2, OTHER, UID, [], None, 1000]], [KEY, [1, 2, OTHER, UID, [], [{UID: 1}, {UID: 900}], 1000]]]]),
    (5, CONTROL, SAY.want([KEY]), "83" + NAME + "05" + "8150" + KEY_HEX, ["web", 5, [KEY]]),
    (6, DATA, SAY.offer(), "82" + NAME + "06", ["web", 6]),
    (7, DATA, SAY.inventory(9, 0, 512, [(KEY, DIGEST)]), "86" + NAME + "07" + "09" + "00" + "190200" + "5818" + KEY_HEX + DIGEST.hex(),
     ["web", 7, 9, 0, 512, KEY + DIGEST]),
    (8, DATA, SAY.covered(9, 512, [KEY]), "85" + NAME + "08" + "09" + "190200" + "50" + KEY_HEX, ["web", 8, 9, 512, KEY]),
    (9, DATA, SAY.synced(9), "83" + NAME + "09" + "09", ["web", 9, 9]),
    (10, CONTROL, SAY.lookup(KEY), "83" + NAME + "0a" + "50" + KEY_HEX, ["web", 10, KEY]),
    (11, DATA, SAY.answer(KEY, GONE), "84" + NAME + "0b" + "50" + KEY_HEX + "01", ["web", 11, KEY, 1]),
    (12, CONTROL, SAY.ask([KEY]), "83" + NAME + "0c" + "8150" + KEY_HEX, ["web", 12, [KEY]]),
    (13, CONTROL, SAY.access([(KEY, (UID, 1000, 1000), True)]), "83" + NAME + "0d" + "81" + "8350" + KEY_HEX + "8350" + UID_HEX + "1903e81903e8" + "f5",
     ["web", 13, [[KEY, [UID, 1000, 1000], True]]]),
    (14, DATA, SAY.sums(9, 0, b"\xcc" * 8 + bytes(8)), "87" + NAME + "0e" + "09" + "00" + "02" + "4101" + "48" + "cc" * 8, ["web", 14, 9, 0, 2, b"\x01", b"\xcc" * 8]),
    (15, DATA, SAY.differ(9, 0, 9, [0, 8]), "86" + NAME + "0f" + "09" + "00" + "09" + "42" + "0101", ["web", 15, 9, 0, 9, b"\x01\x01"]),
    (16, DATA, SAY.check([(KEY, RECORD_MARK + DIGEST)]), "83" + NAME + "10" + "5819" + KEY_HEX + "72" + DIGEST.hex(), ["web", 16, KEY + b"r" + DIGEST]),
    (17, DATA, SAY.checked([(KEY, HEAD_MARK + DIGEST)]), "83" + NAME + "11" + "5819" + KEY_HEX + "68" + DIGEST.hex(), ["web", 17, KEY + b"h" + DIGEST]),
    (18, DATA, SAY.changed([KEY]), "83" + NAME + "12" + "8150" + KEY_HEX, ["web", 18, [KEY]]),
    (19, DATA, SAY.ends([(KEY, ENDED, RECORD.pack())], ()), "83" + NAME + "13" + "81" + "8350" + KEY_HEX + ENDED_HEX + "583d" + BODY,
     ["web", 19, [[KEY, [2, 2, OTHER, UID, [], None, 1000], bytes.fromhex(BODY)]]]),
    (20, CONTROL, SAY.stored([(KEY, DIGEST, b"h" * 8)]), "83" + NAME + "14" + "5820" + KEY_HEX + DIGEST.hex() + "68" * 8, ["web", 20, KEY + DIGEST + b"h" * 8]),
]  # fmt: skip


@pytest.mark.parametrize(("op", "lane", "message", "golden", "decoded"), MESSAGES, ids=[str(case[0]) for case in MESSAGES])
def test_each_operation_has_these_bytes_which_say_this(op, lane, message, golden, decoded):
    payload = message if type(message) is bytes else message.payload
    assert payload.hex() == golden
    assert decode(payload) == decoded
    assert decoded[1] == op
    assert type(message) is bytes or message.lane == lane


def test_there_is_a_golden_message_of_every_operation():
    assert [case[0] for case in MESSAGES] == list(range(1, 21))


def test_an_inventory_of_some_partitions_has_these_bytes():
    golden = "87" + NAME + "07" + "09" + "00" + "190200" + "5818" + KEY_HEX + DIGEST.hex() + "5840" + "01" + "00" * 63
    assert SAY.inventory(9, 0, 512, [(KEY, DIGEST)], [0]).payload.hex() == golden


def test_what_is_covered_may_tell_the_digests_of_what_is_wanted():
    assert SAY.covered(9, 512, [KEY], [DIGEST]).payload.hex() == "86" + NAME + "08" + "09" + "190200" + "50" + KEY_HEX + "48" + DIGEST.hex()


def test_a_record_body_has_these_bytes_and_comes_back_from_them():
    assert RECORD.pack().hex() == BODY
    assert Record.unpack(bytes.fromhex(BODY)).registers == RECORD.registers


def test_a_pruned_record_body_names_its_floor():
    pruned = Record.unpack(bytes.fromhex(BODY))
    pruned.prune()
    assert pruned.pack().hex() == BODY.replace("82010280a3", "820102820102a2").replace("6162830100f6", "")


STATES = [
    (State(NEVER, {(1, UID): Birth((3, OTHER), COUNTER, {UID: (5, 0), OTHER: (0, 2)})}),
     "830040" + "8186" + "0150" + UID_HEX + "0350" + OTHER_HEX + "00" + "a250" + UID_HEX + "820500" + "50" + OTHER_HEX + "820002"),
    (State((4, OTHER), {(5, UID): Birth((7, UID), SET, ({UID: 7, OTHER: 6}, {b"aa": frozenset({(5, UID)}), b"ab": frozenset({(6, OTHER), (7, UID)})}))}),
     "830450" + OTHER_HEX + "8186" + "0550" + UID_HEX + "0750" + UID_HEX + "01"
     + "838250" + UID_HEX + "50" + OTHER_HEX + "820706" + "a2" + "426161" + "820500" + "426162" + "8406010700"),
    (State(NEVER, {(1, UID): Birth((1, UID), MAX, (NUMBER, 12)), (1, OTHER): Birth((2, OTHER), MAX, None)}),
     "830040" + "8286" + "0150" + UID_HEX + "0150" + UID_HEX + "02" + "82000c" + "86" + "0150" + OTHER_HEX + "0250" + OTHER_HEX + "02" + "80"),
    (State(NEVER, {(1, UID): Birth((1, UID), MIN, (TEXT, "a"))}), "830040" + "8186" + "0150" + UID_HEX + "0150" + UID_HEX + "03" + "82016161"),
]  # fmt: skip


@pytest.mark.parametrize(("state", "golden"), STATES)
def test_a_merging_value_has_these_bytes_and_comes_back_from_them(state, golden):
    assert build(state).hex() == "da4357000c" + golden
    assert parse(bytes.fromhex("da4357000c" + golden)) == state
