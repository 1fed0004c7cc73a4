"""Settings of one session manager."""

from __future__ import annotations

from dataclasses import dataclass

from ..membership.knobs import knob
from ..membership.networks import PRIVATE_NETWORKS

__all__ = ["BUCKET_MAX_BYTES", "SSO", "ManagerSettings", "MapSettings", "SsoSettings"]

BUCKET_MAX_BYTES = 16 * 1024 * 1024  #: of a map; a bucket travels as one message, and two that merge may hold twice as much
SSO = "sso:"  #: with the name of a table `[sso.NAME]`: its manager, which no application can have
_NO_LIMIT = 2**40


@dataclass(frozen=True)
class ManagerSettings:
    """Table `[managers.NAME]` of the configuration file."""

    type: str = knob(
        "delta",
        "Which members hold a session. `delta`: every member of the domain; for a few nodes. `backup`: the one that serves it, and `backups` others; "
        "for sticky balancers and many nodes. `partitioned`: `backups` + 1 nodes by the session's key, others read from them; for many nodes without "
        "stickiness. `persistent`: none, they live in the `[store]`, which all nodes share, and each request asks it. The same on all nodes.",
        choices=("delta", "backup", "partitioned", "persistent"),
    )
    backups: int = knob(
        1,
        "Copies of a session besides the first, for types `backup` and `partitioned`. So many nodes may be lost at once without losing a session; each costs "
        "a message a write and the session's memory once more. The same on all nodes.",
        minimum=0,
        maximum=16,
    )
    near_cache_max: int = knob(
        10_000,
        "Sessions held elsewhere of which this node keeps a copy for reading, the least recently used dropped first. A copy is trusted until the "
        "node it came from says that it changed. 0: each read asks.",
        minimum=0,
    )
    watched_max: int = knob(
        1_000_000, "Sessions of which this node remembers who reads them from it; over it, readers are told to ask again. About 300 bytes each.", minimum=1000
    )
    acks: str = knob(
        "none",
        "Whose confirmation a commit waits for: `none`, `one`, `quorum`, `all`, or a number of members besides the writer. "
        "An override per commit exists. `one` survives the loss of the writer and costs a round trip.",
    )
    ack_timeout_s: float = knob(
        0.8, "Longest wait for confirmations; a member that misses it is degraded and waited for no more until it answers.", minimum=0.01, maximum=60.0
    )
    strict_acks: bool = knob(False, "Raise `NotConfirmed` when the wanted confirmations did not come, instead of only saying so in the receipt.")
    read_your_writes: str = knob(
        "node",
        "Where a browser surely reads what it wrote. `node`: on the node that served it. `cluster`: on every node; its cookie then also names its last commits "
        "(22 to 87 characters more, written again with each commit), and a node that has not applied them waits. Makes `acks = none` safe without a sticky balancer.",
        choices=("node", "cluster"),
    )
    read_your_writes_wait_s: float = knob(
        0.5,
        "With `cluster`, the longest wait for a browser's own commits; then what is here is served, counted, and marked `session.stale`.",
        minimum=0.0,
        maximum=30.0,
    )
    idle_timeout_s: float = knob(1800.0, "A session nobody used for this long expires. 0: never.", minimum=0.0)
    absolute_timeout_s: float = knob(43200.0, "A session this old expires whatever its use. 0: never.", minimum=0.0)
    renewal_timeout_s: float = knob(
        0.0,
        "An id this old is replaced by itself when the session is used, so that one that was stolen is of use for a while only. Needs this version on all nodes. 0: never.",
        minimum=0.0,
    )
    renewal_grace_s: float = knob(
        60.0,
        "How long requests with an id that was replaced still get the session, under its new id: parallel ones, and those of a browser that a response did not reach. "
        "Longer than the slowest request; a stolen id is good for that much longer.",
        minimum=10.0,
    )
    role_timeouts: dict[str, list[float]] = knob(
        {},
        "Idle and absolute seconds of sessions by role, `{ admin = [900, 28800] }`, instead of the two above; 0: never. A session gets its role with "
        "`session.login(..., role=)`. What counts is written into the session where it gets the role, and obeyed everywhere.",
        minimum=0.0,
    )
    save_period_s: float = knob(
        60.0,
        "Reads are replicated as touches at most this often (never less often than ten times an idle timeout; at once where the session would be over for others before they heard). Lower makes expiry exact and costs a small message a session.",
        minimum=0.1,
    )
    save_mode: str = knob(
        "on_change",
        "What a commit replicates: `on_change` what differs (nested changes are found), `on_set` only what was assigned, `on_get` also all mutable values that were read, `always` everything.",
        choices=("on_change", "on_set", "on_get", "always"),
    )
    write: str = knob(
        "deferred",
        "When a request's changes are committed. `deferred`: together, before its response leaves, so that others see all of them or none, and a request that fails "
        "has changed nothing. `immediate`: each assignment at once, besides: others see it while the request goes on, and keep it if it fails; each costs a message "
        "to every holder.",
        choices=("deferred", "immediate"),
    )
    retention_s: float = knob(
        86400.0,
        "How long the tombstone of an ended session is kept. Longer than the longest partition to survive. Costs about 0.4 KiB each, 0.9 KiB after an expiry, and no other limit bounds their number.",
        minimum=60.0,
    )
    unknown_for_s: float = knob(
        30.0, "After an unannounced loss, how long a session that is absent, or seems over, is called unknown (writes refused) and not gone.", minimum=0.0
    )
    lookup_timeout_s: float = knob(0.5, "Longest wait for the answer of keepers to a look-up.", minimum=0.05, maximum=30.0)
    reconcile_period_s: float = knob(
        30.0,
        "Each period every other member is compared with in the background. Lower heals sooner what nothing else noticed; a round costs 32 KiB, about "
        "4 microseconds for each session of a partition (of 4096) in which anything has changed, and 24 bytes for each in one that differs.",
        minimum=1.0,
    )
    tombstones_max: int = knob(
        1_000_000,
        "Tombstones kept at most, about 300 bytes each; over it the oldest go before their `retention_s` is over, and are counted.",
        minimum=1000,
    )
    session_max_bytes: int = knob(1024 * 1024, "Encoded attributes of one session at most; refused when set.", minimum=1024)
    attributes_max: int = knob(1000, "Attributes of one session at most.", minimum=1)
    tabs_max: int = knob(
        20, "Browser tabs (`session.tab`) of one session at most; those that were not written to for longest go, with what they hold.", minimum=1
    )
    transient: list[str] = knob(
        [],
        "Shell-style patterns (`_cache*`) of attributes that stay in the process that sets them: not replicated, not limited in kind or size, gone with the process. "
        "Any object may be one.",
    )
    transient_sessions_max: int = knob(10_000, "Sessions whose transient attributes are kept, the least recently used go first.", minimum=1)
    attribute_name_max_bytes: int = knob(256, "Length of an attribute's name in UTF-8 at most.", minimum=8, maximum=4096)
    principal_sessions_max: int = knob(
        0,
        "Sessions that one principal (`session.principal`) may have at once; for a login over it see `principal_sessions_policy`. 0: any number.",
        minimum=0,
    )
    principal_sessions_policy: str = knob(
        "oldest",
        "What a login over `principal_sessions_max` does. `oldest`: it ends the oldest, wherever that is. `refuse`: it raises `LoginRefused` (409), and those that there are stay; "
        "where not every node holds every session, it first asks the others, for `ack_timeout_s` at most. The same on all nodes.",
        choices=("oldest", "refuse"),
    )
    audit_log: str = knob(
        "",
        "File to which each login, its end and each refusal is added, as a line of JSON: who, when, on which node, from which address, and why. Made with mode 0600; opened anew when it "
        "has been renamed. Without it too they are events of Twisted's log, in the namespace `caterwaul.audit`. Empty: no file.",
    )
    expire_on_shutdown: bool = knob(
        False,
        "A node that stops in good order ends the sessions of which it is the primary, everywhere; without it the others have them. Not what crashes leave behind. "
        "About 30 microseconds each.",
    )
    sso: str = knob(
        "",
        "Name of a table `[sso.NAME]`: this application shares its logins with all others of that name. Who logs in to one is logged in to all, and who logs out of one is logged out "
        "of all; principals mean the same in all of them. Empty: logins are its own. The same on all nodes.",
    )
    sso_reauthenticate: bool = knob(
        False,
        "With `sso`: a login elsewhere logs nobody in here. The application is told of it (`session.signed_on`), and asks for the password; its logout counts for all.",
    )
    sessions_max: int = knob(1_000_000, "Sessions held at most; more are refused at creation. A merge never refuses.", minimum=1)
    memory_max_bytes: int = knob(
        0,
        "Bytes that sessions and tombstones held here may take, about. At nine tenths new sessions are refused (503, `sessions_refused`), after copies that are only cached went; "
        "those that exist are served and replicated on. 0: half of what the process may use, by its cgroup or the machine, in equal parts for the managers and maps of a node that name no budget. Several processes on a machine know nothing of each other.",
        minimum=0,
    )
    max_active: int = knob(
        0,
        "With a `[store]`: sessions in this node's memory at most, about; over it those used longest ago are left to the store (passivated), and loaded when they are asked for. A store "
        "that not all nodes share gives them back to its own node only. 0: no limit.",
        minimum=0,
    )
    max_active_bytes: int = knob(0, "The same in bytes, as `memory_max_bytes` counts them. 0: no limit.", minimum=0)
    max_idle_swap_s: float = knob(
        0.0,
        "With a `[store]`: a session not used for this long is passivated. 0: none is for that; with `persistent` half the idle timeout, 60 s at most.",
        minimum=0.0,
    )
    max_idle_backup_s: float = knob(
        0.0,
        "With a `[store]`: a change is stored only once its session was not used for this long: fewer saves of busy sessions, and more to lose with all members. 0: `store.write_behind_s` alone decides.",
        minimum=0.0,
    )
    min_idle_swap_s: float = knob(0.0, "One used within this time is not, whatever the limits.", minimum=0.0)
    no_session_paths: list[str] = knob(
        [],
        "Shell-style patterns (`/static/*`, `/health`) of paths for which no session is opened: it is empty there, and what is written goes with the request. "
        "Spares look-ups, and sessions for what never comes back.",
    )
    no_session_agents: list[str] = knob([], "Likewise of `User-Agent`, in any case (`*bot*`).")
    no_touch_paths: list[str] = knob(
        [], "Shell-style patterns (`/poll/*`) of paths on which reading a session does not postpone its expiry; writing does everywhere."
    )
    creations_per_s: float = knob(
        50.0,
        "Sessions that one client address may begin a second, ten times that at once; a request over it is answered with 429, and counted (`creations_refused`). "
        "Lower stops who drops every cookie sooner; too low stops many users behind one address. 0: no limit.",
        minimum=0.0,
    )
    misses_per_s: float = knob(
        20.0,
        "Ids of no session that one client address may show a second, ten times that at once; over it other nodes are not asked for what it shows, and its "
        "sessions that are not held here are *unknown* for the moment (`lookups_refused`). 0: no limit.",
        minimum=0.0,
    )
    trusted_proxies: list[str] = knob(
        PRIVATE_NETWORKS,
        "Networks whose `X-Forwarded-For` says who the client is, for the two limits above. A client in them that no proxy names is not limited.",
    )
    on_failure: str = knob(
        "error",
        "What a request gets where there is no running manager in the process (its node is not started, or was stopped), or a session cannot be opened for a reason "
        "that is not the request's. `error`: 503. `serve-empty`: an empty session that forgets what is written, and says so (`session.forgets`): for pages that "
        "are better shown without a login than not at all. The browser keeps its cookie.",
        choices=("error", "serve-empty"),
    )
    lock_timeout_s: float = knob(5.0, "Longest wait for `session.lock()`, unless the call says another; then the request gets 503.", minimum=0.0, maximum=600.0)
    lock_lease_s: float = knob(
        10.0,
        "How long `session.lock()` may be held, unless the call says another: what a holder that hangs, or is cut off, costs those who wait. A commit after nine "
        "tenths of it is refused (`LockLost`), so it must be longer than the slowest block under the lock.",
        minimum=0.1,
        maximum=3600.0,
    )
    turns: str = knob(
        "",
        "What requests of one session do on a node that come at the same time. `off`: they run side by side, and their changes merge by attribute. `queue`: one after the other, in their order; "
        "who has waited `lock_timeout_s` gets 503, and who comes when 100 wait 429. `refuse`: a second one gets 429 at once. A WebSocket, and an event stream once it has begun, hold nobody up. "
        "Empty: `queue` with type `persistent`, else `off`.",
        choices=("", "off", "queue", "refuse"),
    )
    locks_max: int = knob(
        100_000, "Requests that hold or await locks of sessions which this node grants, at most; about 500 bytes each. Others get 503.", minimum=1
    )
    pack_after_s: float = knob(
        5.0, "A session not used for this long is packed into one bytes object. Lower saves memory, higher saves unpacking.", minimum=0.1
    )
    expire_check_s: float = knob(1.0, "Granularity of expiry: sessions whose time has come are looked at this often.", minimum=0.05)

    @property
    def kind(self) -> str:
        """What all members of a manager must have in common: its type, and how many backups."""
        return self.type if self.type in ("delta", "persistent") else f"{self.type}/{self.backups}"

    def realm(self, name: str) -> str:
        """Under which name the principals of the manager of this name are known: those of applications that share logins are the same."""
        return f"{SSO}{self.sso}" if self.sso else name


@dataclass(frozen=True)
class MapSettings:
    """Table `[maps.NAME]` of the configuration file: a dictionary that the members share (`maps.py`)."""

    type: str = knob(
        "replicated",
        "Which members hold an entry. `replicated`: every member of the domain, so that reading never waits; for a few nodes, or small maps. "
        "`partitioned`: `backups` + 1 nodes by the entry's key. The same on all nodes.",
        choices=("replicated", "partitioned"),
    )
    backups: int = knob(1, "Copies of an entry besides the first, for type `partitioned`. The same on all nodes.", minimum=0, maximum=16)
    buckets: int = knob(
        64,
        "Parts into which the map is split by key; a part has its place, is read as a whole, and holds up to 16 MiB. "
        "More for large maps, fewer where all entries are read together. The same on all nodes.",
        minimum=1,
        maximum=4096,
    )
    acks: str = knob("none", "Whose confirmation a write waits for: as for a session manager.")
    ack_timeout_s: float = knob(0.8, "Longest wait for confirmations.", minimum=0.01, maximum=60.0)
    strict_acks: bool = knob(False, "Raise `NotConfirmed` when the wanted confirmations did not come, instead of only saying so in the receipt.")
    near_cache_max: int = knob(10_000, "Parts held elsewhere of which this node keeps a copy for reading. 0: each read asks.", minimum=0)
    lookup_timeout_s: float = knob(0.5, "Longest wait for a part that is held elsewhere.", minimum=0.05, maximum=30.0)

    def for_manager(self) -> ManagerSettings:
        """Of the manager underneath: nothing in it ends by itself."""
        return ManagerSettings(
            type="delta" if self.type == "replicated" else "partitioned", backups=self.backups, acks=self.acks, ack_timeout_s=self.ack_timeout_s,
            strict_acks=self.strict_acks, near_cache_max=self.near_cache_max, lookup_timeout_s=self.lookup_timeout_s, idle_timeout_s=0.0,
            unknown_for_s=0.0 if self.type == "replicated" else ManagerSettings.unknown_for_s,  # a part nobody has is empty: two creations of it merge
            absolute_timeout_s=0.0, session_max_bytes=BUCKET_MAX_BYTES, attributes_max=_NO_LIMIT,
        )  # fmt: skip

    @property
    def kind(self) -> str:
        """What all members of a map must have in common."""
        return f"{self.for_manager().kind}/{self.buckets}"


@dataclass(frozen=True)
class SsoSettings:
    """Table `[sso.NAME]` of the configuration file: logins that applications share (`web/single.py`)."""

    type: str = knob(
        "delta",
        "Which members hold a shared login. `delta`: every member of the domain, so that no request asks. `partitioned`: `backups` + 1 nodes by its key; for many nodes. "
        "The same on all nodes.",
        choices=("delta", "partitioned"),
    )
    backups: int = knob(1, "Copies besides the first, for type `partitioned`. The same on all nodes.", minimum=0, maximum=16)
    idle_timeout_s: float = knob(
        1800.0,
        "A shared login that no application was used with for this long logs nobody in any more; sessions have limits of their own. 0: never.",
        minimum=0.0,
    )
    absolute_timeout_s: float = knob(43200.0, "Nor does one this old, whatever its use. 0: never.", minimum=0.0)
    principal_sessions_max: int = knob(
        0,
        "Shared logins that one principal may have at once, which is browsers; one more ends the oldest, with its sessions in all applications. 0: any number.",
        minimum=0,
    )

    def for_manager(self) -> ManagerSettings:
        """Of the manager underneath. A login is there for the request that follows it, wherever that goes."""
        return ManagerSettings(
            type=self.type, backups=self.backups, idle_timeout_s=self.idle_timeout_s, absolute_timeout_s=self.absolute_timeout_s,
            principal_sessions_max=self.principal_sessions_max, read_your_writes="cluster",
        )  # fmt: skip
