"""The simulator: whole clusters of production code in one thread, virtual time, one seed.

From the bottom: `clock` (virtual time, each process's view of it), `trace` (digest), `network` (paths, datagrams), `streams`
and `listening` (a kernel's TCP under Twisted's own transports), `reactor` (one process), `world` (a seed and what follows),
`faults` (what goes wrong, drawn from the seed), `node` (the cluster).

A node is the production `caterwaul.cluster.node.Node` (that is `MembershipService` + `GroupChannel` + one `DeltaManager`), given
a `SimReactor` as its reactor and ``world.rng(...).randbytes`` as its entropy, from which it seeds its own chance too. Its
settings come from `Settings.of`, with the admin socket and the web port off, so nothing of it touches the machine. A crash
is `SimReactor.end`: the process's timers and sockets are gone, its objects are left to the garbage collector; a restart is
another `Node`, on another `SimReactor`, on the same host and port: another incarnation.

What differs between two runs of one seed is a bug of the product: an iteration over a set, a clock that was asked, a
random number from elsewhere. The digest over everything that arrived anywhere shows it.
"""
