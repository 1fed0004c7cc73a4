"""The simulator: whole clusters of production code in one thread and virtual time, from one seed.

`python -m tests.sim --seeds 1000` runs seeds, `--seed 123` replays one. `world.py` is a universe, `network.py`, `streams.py` and
`listening.py` the kernels' half of UDP and TCP under Twisted's own transports, `faults.py` what goes wrong, `node.py` the
production `Node` on it, `workload.py` the users, `checkers.py` the promises, `planted.py` bugs that must be caught.
"""
