"""The simulator: whole clusters of production code in one thread and virtual time, from one seed.

`python -m tests.sim --seeds 1000` runs seeds, `--seed 123` replays one. `world.py` is a universe, `network.py`, `streams.py` and
`listening.py` the kernels' half of UDP and TCP under Twisted's own transports, `faults.py` what goes wrong, `node.py` the
production `Node` on it, `workload.py` the users, `checkers.py` the promises, `planted.py` bugs that must be caught. A part of the seeds has more: `features.py`
says how they are drawn, `renewals.py`, `locks.py` and `logins.py` are users and promises of ids that are replaced, of `session.lock()`, and of logins that applications share; `browsers.py`
carries their cookies through the product's own fronts. `scenes.py` has stories with one point each; in `stored.py` and `persistent.py` there is a store.
"""
