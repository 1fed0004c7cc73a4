"""Where items lie in Redis or Valkey, and the scripts that change them.

    caterwaul:{SPACE:BB}:KEY       an item: its revision (16 bytes), until when (8 bytes), data; it expires by itself
    caterwaul:{SPACE:BB}:keys      the bucket's keys, in order: a sorted set, all with the same score
    caterwaul:{SPACE:BB}:due       the same keys by when they expire
    caterwaul:{SPACE:BB}:bad:KEY   an item that was put out of the way, for a week

A Redis Cluster places a name by what stands in its braces, and a script runs in one place. So an item and what lists it have the same braces, and a script changes them
together: no item is ever listed and not there, or there and not listed, but those that expired. One pair of lists for a whole space would put all its sessions on one server.
BB is the first 6 bits of the key: buckets in ascending order are keys in ascending order. With 64 of them ten servers still get about the same; a batch is a script for each
bucket it has something of, and with 256 a batch of 500 items takes twice as long.

How long an item still has is what its server is told, not until when: no two clocks have to agree. Who saves also removes from the lists what expired meanwhile, two for each item
saved, so they stay as long as what they list. Space names are percent-encoded: what a brace, a colon
or an asterisk would mean there is no matter.

All scripts take the bucket's two lists first, then items. They name all that they touch, as a server wants it that moves a slot elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hashlib import sha1
from typing import NamedTuple
from urllib.parse import quote, unquote

from .store import Save, Stored, revision_of

__all__ = ["ALL_LISTS", "BUCKETS", "Command", "Layout", "space_of", "unpacked"]

BUCKETS = 64
ALL_LISTS = "caterwaul:{*}:keys"  #: the pattern of names, for SCAN
_ASIDE_MS = 7 * 24 * 3600 * 1000
_HEAD = 24  # bytes before the data
_list = re.compile(rb"caterwaul:\{([^{}:]*):[0-9a-f]{2}\}:keys")


class Script:
    """What a server runs without anything between, known to it by its hash once it has seen the text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = sha1(text.encode(), usedforsecurity=False).hexdigest()


class Command(NamedTuple):
    """`name`: of what it touches, for who knows where that is. `script`: the text behind the hash in `words`."""

    name: bytes
    words: tuple[bytes | str | int, ...]
    script: Script | None = None

    def in_full(self) -> Command:
        """The same with the script's text, for a server that has not seen it."""
        return self if self.script is None else self._replace(words=("EVAL", self.script.text, *self.words[2:]))


#: ARGV: whether this is said again; for each item its key, the revision it replaces, how many ms it has, all bytes. Answers 1 for each that was saved.
#: Said again, what is there already has been saved: the connection broke after it was.
#: SET comes before all other writes, because a full server refuses that, and refuses no more in a script that has written.
_SAVE = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answers = {}
for i = 3, #KEYS do
  local key, replaces, rest, item = ARGV[4 * i - 10], ARGV[4 * i - 9], ARGV[4 * i - 8], ARGV[4 * i - 7]
  local there = redis.call('GETRANGE', KEYS[i], 0, 15)
  answers[i - 2] = 1
  if there ~= replaces and not (ARGV[1] == '1' and there == string.sub(item, 1, 16)) then
    answers[i - 2] = 0
  elseif tonumber(rest) > 0 then
    redis.call('SET', KEYS[i], item, 'PX', rest)
    redis.call('ZADD', KEYS[1], 0, key)
    redis.call('ZADD', KEYS[2], string.format('%.0f', now + rest), key)
  else
    redis.call('UNLINK', KEYS[i])
    redis.call('ZREM', KEYS[1], key)
    redis.call('ZREM', KEYS[2], key)
  end
end
local over = redis.call('ZRANGE', KEYS[2], '-inf', string.format('(%.0f', now), 'BYSCORE', 'LIMIT', 0, 2 * (#KEYS - 2))
for _, key in ipairs(over) do
  redis.call('ZREM', KEYS[1], key)
  redis.call('ZREM', KEYS[2], key)
end
return answers
""")

#: ARGV: whether any revision will do; for each item its key and revision.
_DELETE = Script("""
for i = 3, #KEYS do
  if ARGV[1] == '1' or redis.call('GETRANGE', KEYS[i], 0, 15) == ARGV[2 * i - 3] then
    redis.call('UNLINK', KEYS[i])
    redis.call('ZREM', KEYS[1], ARGV[2 * i - 4])
    redis.call('ZREM', KEYS[2], ARGV[2 * i - 4])
  end
end
""")

#: KEYS: each item and its new name. ARGV: ms it stays there; for each item its key, and its revision or nothing for any. Answers how many.
_QUARANTINE = Script("""
local moved = 0
for i = 3, #KEYS, 2 do
  if redis.call('EXISTS', KEYS[i]) == 1 and (ARGV[i] == '' or redis.call('GETRANGE', KEYS[i], 0, 15) == ARGV[i]) then
    redis.call('RENAME', KEYS[i], KEYS[i + 1])
    redis.call('PEXPIRE', KEYS[i + 1], ARGV[1])
    redis.call('ZREM', KEYS[1], ARGV[i - 1])
    redis.call('ZREM', KEYS[2], ARGV[i - 1])
    moved = moved + 1
  end
end
return moved
""")

#: ARGV: the items' keys. Answers 1 for each that is there, and takes the others out of the lists.
_PRESENT = Script("""
local answers = {}
for i = 3, #KEYS do
  answers[i - 2] = redis.call('EXISTS', KEYS[i])
  if answers[i - 2] == 0 then
    redis.call('ZREM', KEYS[1], ARGV[i - 2])
    redis.call('ZREM', KEYS[2], ARGV[i - 2])
  end
end
return answers
""")


class Layout:
    """Names and commands for the items of one space. What takes several keys takes those of one bucket."""

    def __init__(self, space: str) -> None:
        quoted = quote(space, safe="", errors="surrogatepass")
        self._begins = [f"caterwaul:{{{quoted}:{bucket:02x}}}:".encode() for bucket in range(BUCKETS)]

    @staticmethod
    def bucket(key: bytes) -> int:
        return key[0] >> 2 if key else 0

    def load(self, key: bytes) -> Command:
        name = self._item(key)
        return Command(name, ("GET", name))

    def save(self, bucket: int, saves: Sequence[Save], now_ms: int, again: bool = False) -> Command:
        arguments = [part for save in saves for part in (save.key, save.replaces, save.until_ms - now_ms, _packed(save))]
        return self._run(_SAVE, bucket, [self._item(save.key) for save in saves], int(again), *arguments)

    def delete(self, bucket: int, revisions: Mapping[bytes, bytes], whatever: bool = False) -> Command:
        return self._run(_DELETE, bucket, map(self._item, revisions), int(whatever), *(part for pair in revisions.items() for part in pair))

    def quarantine(self, bucket: int, revisions: Mapping[bytes, bytes]) -> Command:
        """Those with these revisions; an empty one means any."""
        names = [name for key in revisions for name in (self._item(key), self._begins[bucket] + b"bad:" + key.hex().encode())]
        return self._run(_QUARANTINE, bucket, names, _ASIDE_MS, *(part for pair in revisions.items() for part in pair))

    def page(self, bucket: int, after: bytes, limit: int) -> Command:
        name = self._begins[bucket] + b"keys"
        return Command(name, ("ZRANGE", name, b"(" + after if after else b"-", "+", "BYLEX", "LIMIT", 0, limit))

    def present(self, bucket: int, keys: Sequence[bytes]) -> Command:
        return self._run(_PRESENT, bucket, map(self._item, keys), *keys)

    def _item(self, key: bytes) -> bytes:
        return self._begins[key[0] >> 2] + key.hex().encode()

    def _run(self, script: Script, bucket: int, items: Sequence[bytes] | map[bytes], *arguments: bytes | int) -> Command:
        begin = self._begins[bucket]
        names = (begin + b"keys", begin + b"due", *items)
        return Command(names[0], ("EVALSHA", script.sha, len(names), *names, *arguments), script)


def space_of(name: bytes) -> str | None:
    """The space whose list this is the name of; None: it is none of ours."""
    found = _list.fullmatch(name)
    return None if found is None else unquote(found[1].decode("ascii", "replace"), errors="surrogatepass")


def _packed(save: Save) -> bytes:
    return b"%s%s%s" % (revision_of(save.data), save.until_ms.to_bytes(8, "big", signed=True), save.data)


def unpacked(item: bytes) -> Stored | None:
    """None: these are not the bytes that were saved."""
    revision, data = item[:16], item[_HEAD:]
    if len(item) < _HEAD or revision != revision_of(data):
        return None
    return Stored(data, int.from_bytes(item[16:_HEAD], "big", signed=True), revision)
