"""A process that writes to a store, for tests: `python sql_worker.py add|generations URL ...`. What it has done it says on standard output, a line for each thing.

`add URL SEED ROUNDS`: says "ready", and in random batches adds one to the numbers in items that others write too, and says at the end how often for each key it was let.
`generations URL COUNT`: saves all of COUNT items again and again, with the number of the round in each, and says each number when it is saved, without end.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from random import Random

from caterwaul.managers.stores.opening import open_store
from caterwaul.managers.stores.store import NOTHING, Save, Store

FAR_MS = 4_000_000_000_000
KEYS = [bytes([number]) * 16 for number in range(24)]


def add(url: str, seed: str, rounds: str) -> None:
    store = open_store(url, "shop", timeout_s=20.0)
    store.open(create=True)
    say("ready")
    say(add_to(store, seed, int(rounds)))
    store.close()


def add_to(store: Store, seed: str, rounds: int) -> Counter[str]:
    chance = Random(seed)
    added: Counter[str] = Counter()
    for _ in range(rounds):
        keys = chance.sample(KEYS, 16)
        found = store.load(keys)
        saves = [
            Save(key, b"%d" % (int(found[key].data) + 1), FAR_MS, found[key].revision) if key in found else Save(key, b"1", FAR_MS, NOTHING) for key in keys
        ]
        added.update(key.hex() for key in store.save_many(saves))
    return added


def generations(url: str, count: str) -> None:
    store = open_store(url, "shop", timeout_s=20.0)
    store.open()
    keys = [b"%016d" % number for number in range(int(count))]
    there = {key: item.revision for key, item in store.load(keys).items()}
    generation = max((int(item.data.split()[0]) for item in store.load(keys).values()), default=0)
    while True:
        generation += 1
        there = store.save_many([Save(key, b"%d " % generation + bytes(2000), FAR_MS, there.get(key, NOTHING)) for key in keys])
        assert len(there) == len(keys)
        say(generation)


def say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    {"add": add, "generations": generations}[sys.argv[1]](*sys.argv[2:])
