"""Two nodes in one process: what one writes the other reads, also after the first has gone. Run it: `python examples/two_nodes.py`."""

from __future__ import annotations

import time

from caterwaul import ClusterManager

first, second = (ClusterManager(node={"name": name}, cluster={"name": "two-nodes"}) for name in ("first", "second"))
second.on_view_changed(lambda change: print("now here:", *(member.name for member in change.after)))
first.start()
second.start()
while not (first.is_ready and second.is_ready):  # they have met, and compared what they hold
    time.sleep(0.05)

sessions = first.manager()
session = sessions.open_local(None)  # a request without a cookie
session["cart"] = ["apple"]
receipt = sessions.commit(session, acks="all")
receipt.wait()
print("confirmed by:", *receipt.confirmed)

first.stop()
assert session.id is not None
print("second has:", second.manager().open(session.id)["cart"])
