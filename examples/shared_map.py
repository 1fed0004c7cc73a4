"""Two nodes in one process that share a map: what one sets the other reads, and additions on both count.

python examples/shared_map.py
"""

from __future__ import annotations

import time

from caterwaul import ClusterManager, Counter


def main() -> None:
    common = {"cluster": {"name": "shared-map-example"}, "maps": {"hits": {}}, "admin": {"socket": ""}}
    nodes = [ClusterManager(node={"name": name}, **common) for name in ("a", "b")]
    for node in nodes:
        node.start()
    while not all(len(node.members) == 2 and node.is_ready for node in nodes):
        time.sleep(0.05)
    here, there = (node.map("hits") for node in nodes)
    there.listen(lambda event: print("b hears of", event.key))
    here.put("/", Counter(0), acks="all").wait()
    for each in (here, there):
        with each.entry("/") as entry:
            entry.value.add(1)
    while int(here["/"]) != 2:
        time.sleep(0.01)
    print("both count:", dict(here), dict(there))
    for node in nodes:
        node.stop()


if __name__ == "__main__":
    main()
