"""Settings of the store that is behind all managers of a node."""

from __future__ import annotations

from dataclasses import dataclass

from ...membership.knobs import knob

__all__ = ["StoreSettings"]


@dataclass(frozen=True)
class StoreSettings:
    """Table `[store]` of the configuration file."""

    url: str = knob(
        "",
        "Where sessions are kept besides the members' memory, so that they outlive the whole cluster: `sqlite:///PATH`, `file:///DIRECTORY`, `postgresql://...`, `mysql://...`, "
        "`redis://...`. A database server is prepared once by `caterwaul store init URL`. One that all nodes reach brings back everything; a file of each node's own what that node saved. "
        "Empty: none, and sessions end with the last member.",
    )
    url_file: str = knob("", "File that holds the URL instead, readable by this user only: for one with a password, which stands in no configuration.")
    secret_file: str = knob(
        "",
        "File with a secret (`caterwaul secret new FILE`), the same on all nodes: what is stored carries an authentication code, and what somebody else has written or changed is put "
        "out of the way. Not that of `[security]`, which changes sooner. Empty: damage is noticed, forgery is not.",
    )
    encrypt: bool = knob(False, "With `secret_file`: what is stored is encrypted too.")
    write: str = knob(
        "behind",
        "When what a request changed is stored. `behind`: soon, many sessions at a time, and no request waits. `through`: before its response leaves, which costs the store's "
        "answer each time; a receipt says whether it was stored. Managers of type `persistent` always do.",
        choices=("behind", "through"),
    )
    write_behind_s: float = knob(
        2.0,
        "With `behind`, how old a change is at most when it is stored, while the store keeps up: what the loss of all members at once costs.",
        minimum=0.1,
        maximum=3600.0,
    )
    save_on_restart: bool = knob(
        True,
        "A node that stops in good order first saves what the store lacks, for five seconds at most, so that all nodes can be restarted, one by one or together. Without it a node stops at once; with "
        "`behind`, what is younger than `write_behind_s` is lost with the last member.",
    )
    timeout_s: float = knob(
        2.0,
        "How long one call of the store may take. After one that took longer, or failed, it is left alone for a while; requests go on from memory.",
        minimum=0.1,
        maximum=60.0,
    )
    load: bool = knob(
        True,
        "Load what is stored into memory at the start, in the background. Without it each session is loaded when it is asked for, as it is meanwhile anyway, and always with type `persistent`.",
    )
