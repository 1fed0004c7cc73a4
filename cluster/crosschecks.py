"""What one knob's bounds cannot say: values that must fit each other, addresses, paths and names.

Each check adds one line for each mistake and looks at everything, so that a user mends a file in one go.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Container, Mapping

from ..managers.settings import BUCKET_MAX_BYTES, ManagerSettings, MapSettings, SsoSettings
from ..managers.stores.opening import has_password, open_store
from ..managers.stores.settings import StoreSettings
from ..managers.web.cookies import CookieSettings
from ..membership.errors import LocalError
from ..membership.member import require_name
from ..membership.networks import in_networks, parse_networks
from ..membership.settings import MembershipSettings
from .config import Problems
from .security.keyring import VARIABLE
from .tables import AdminSettings, ChannelSettings, ClusterSettings, NodeSettings, SecuritySettings, WebSettings

__all__ = [
    "check_acks",
    "check_admin",
    "check_channel",
    "check_cluster",
    "check_drain",
    "check_manager",
    "check_maps",
    "check_membership",
    "check_node",
    "check_security",
    "check_sso",
    "check_store",
    "check_web",
    "split_address",
]

_SOCKET_PATH_MAX = 107  # sun_path of Linux, less its final zero
_LABEL_MAX = 255  # what a member may announce, see membership/member.py


def check_node(node: NodeSettings, problems: Problems) -> None:
    try:
        require_name(node.name)
    except LocalError as error:
        problems.add("node.name", str(error))
    for key in ("domain", "zone", "machine"):
        label = getattr(node, key)
        if len(label) > _LABEL_MAX or not label.isprintable():
            problems.add(f"node.{key}", f"{label!r} is not a label of up to {_LABEL_MAX} printable characters")
    address = _address(node.host)
    if address is None:
        problems.add("node.host", f"{node.host!r} is not an IP address of this machine (names are not resolved here)")
    elif address.is_unspecified or address.is_multicast:
        problems.add("node.host", f"{node.host} cannot be dialled by other members; give the address of one interface")


def check_security(security: SecuritySettings, node: NodeSettings, membership: MembershipSettings, problems: Problems) -> None:
    address = _address(node.host)
    outside = address is not None and not address.is_loopback and not address.is_unspecified and not address.is_multicast
    has_key = bool(security.secret_file or security.certificates or os.environ.get(VARIABLE, "").split())
    if security.secret_file and security.certificates:
        problems.add("security.certificates", "is given, and secret_file too: a node has one way to know others, choose")
    if node.insecure and has_key:
        problems.add("node.insecure", "is set, and a secret or certificates are given too: whoever has them never talks in the clear, take it away")
    if outside and not has_key and not node.insecure:
        problems.add(
            "node.host",
            f"{node.host} is outside loopback, and this cluster has no secret: anyone on that network could read and forge sessions; "
            "make one with `caterwaul secret new FILE` and name it in security.secret_file on every node, or keep 127.0.0.1",
        )
    if outside and node.insecure and not has_key and "multicast" in membership.discovery:
        problems.add(
            "membership.discovery", 'names "multicast", which is never in the clear outside loopback: give a secret, or use "static" with membership.seeds'
        )
    if (outside or (address is not None and address.is_loopback)) and not in_networks(node.host, membership.allowed_networks):
        problems.add("membership.allowed_networks", f"does not hold node.host {node.host}, so no other node would dial it")


def check_drain(node: NodeSettings, managers: Mapping[str, ManagerSettings], problems: Problems) -> None:
    for name, manager in managers.items():
        if node.drain_on_term and manager.expire_on_shutdown:
            problems.add(f"managers.{name}.expire_on_shutdown", "is set, and node.drain_on_term hands over what this would end; choose")
    if node.drain_on_term and node.drain_notice_s >= node.drain_timeout_s:
        problems.add(
            "node.drain_notice_s", f"{node.drain_notice_s:g} is not shorter than drain_timeout_s ({node.drain_timeout_s:g}), so no drain would end in time"
        )


def check_maps(maps: Mapping[str, MapSettings], channel: ChannelSettings, problems: Problems) -> None:
    for name, shared in maps.items():
        check_acks(shared.acks, f"maps.{name}", problems)
    if maps and channel.message_max_bytes < 3 * BUCKET_MAX_BYTES:
        problems.add(
            "channel.message_max_bytes", f"{channel.message_max_bytes} is too little for maps, whose parts travel whole; at least {3 * BUCKET_MAX_BYTES}"
        )


def check_cluster(cluster: ClusterSettings, problems: Problems) -> None:
    if not 0 < len(cluster.name) <= 64 or not cluster.name.isprintable():
        problems.add("cluster.name", f"{cluster.name!r} is not a name of 1 to 64 printable characters")


def check_membership(membership: MembershipSettings, node: NodeSettings, problems: Problems) -> None:
    beats = 2 * membership.heartbeat_interval_s
    if membership.drop_time_s < beats:
        problems.add("membership.drop_time_s", f"{membership.drop_time_s:g} is shorter than two heartbeats ({beats})")
    for method, key in (("static", "seeds"), ("dns", "dns_names"), ("file", "seeds_file")):
        given, used = bool(getattr(membership, key)), method in membership.discovery
        if used and not given:
            problems.add(f"membership.{key}", f'is empty, and discovery "{method}" needs it')
        if given and not used:
            problems.add(f"membership.{key}", f'is not used, because discovery does not name "{method}"')
    for seed in membership.seeds:
        where = split_address(seed, node.port or None)
        if where is None or not where[0] or not where[1]:
            problems.add("membership.seeds", f"{seed!r} is not host:port (the port may be left out only when node.port is set)")
    try:
        parse_networks(membership.allowed_networks)
    except LocalError as error:
        problems.add("membership.allowed_networks", str(error))
    group = _address(membership.multicast_address)
    if group is None or not group.is_multicast:
        problems.add("membership.multicast_address", f"{membership.multicast_address!r} is not a multicast address (224.0.0.0 to 239.255.255.255)")
    if membership.multicast_interface and _address(membership.multicast_interface) is None:
        problems.add("membership.multicast_interface", f"{membership.multicast_interface!r} is not an IP address of this machine")


def check_channel(channel: ChannelSettings, problems: Problems) -> None:
    if channel.reconnect_max_s < channel.reconnect_min_s:
        problems.add("channel.reconnect_max_s", f"{channel.reconnect_max_s:g} is shorter than reconnect_min_s ({channel.reconnect_min_s:g})")
    if channel.outbox_max_bytes < channel.ahead_bytes:
        problems.add("channel.outbox_max_bytes", f"{channel.outbox_max_bytes} is less than ahead_bytes ({channel.ahead_bytes})")


def check_acks(acks: str, where: str, problems: Problems) -> None:
    if acks not in ("none", "one", "quorum", "all") and not (acks.isascii() and acks.isdecimal() and len(acks) < 6):
        problems.add(f"{where}.acks", f"{acks!r} is none of none, one, quorum, all, and no number of members")


def check_manager(manager: ManagerSettings, where: str, problems: Problems) -> None:
    check_acks(manager.acks, where, problems)
    check_times(manager, where, problems)
    for role, times in manager.role_timeouts.items():
        if len(times) != 2:
            problems.add(f"{where}.role_timeouts.{role}", f"{times!r} is not two numbers, the idle and the absolute seconds")
        elif times[1] and times[0] > times[1]:
            problems.add(f"{where}.role_timeouts.{role}", f"idle {times[0]:g} is longer than absolute {times[1]:g}")


def check_times(manager: ManagerSettings | SsoSettings, where: str, problems: Problems) -> None:
    if manager.idle_timeout_s and manager.absolute_timeout_s and manager.idle_timeout_s > manager.absolute_timeout_s:
        problems.add(f"{where}.idle_timeout_s", f"{manager.idle_timeout_s:g} is longer than absolute_timeout_s ({manager.absolute_timeout_s:g})")


def check_sso(
    shared: Mapping[str, SsoSettings],
    shared_cookies: Mapping[str, CookieSettings],
    managers: Mapping[str, ManagerSettings],
    cookies: Mapping[str, CookieSettings],
    problems: Problems,
) -> None:
    for name, settings in shared.items():
        check_times(settings, f"sso.{name}", problems)
    for name, manager in managers.items():
        if manager.sso and manager.sso not in shared:
            problems.add(f"managers.{name}.sso", f"there is no table [sso.{manager.sso}]")
        elif manager.sso and cookies[name].name == shared_cookies[manager.sso].name:
            problems.add(f"managers.{name}.cookie.name", f"{cookies[name].name} is that of [sso.{manager.sso}.cookie] too; a browser keeps one of each")
        if manager.sso_reauthenticate and not manager.sso:
            problems.add(f"managers.{name}.sso_reauthenticate", "is set, and sso names no table of shared logins")


def check_admin(admin: AdminSettings, security: SecuritySettings, problems: Problems) -> None:
    if admin.listen:
        where = split_address(admin.listen, None)
        address = _address(where[0]) if where is not None else None
        if address is None:
            problems.add("admin.listen", f"{admin.listen!r} is not address:port, such as 127.0.0.1:7001")
        elif security.certificates:
            if admin.token_file:
                problems.add("admin.token_file", "is given, and certificates too: whoever asks over TCP shows a certificate, take the token away")
        elif not address.is_loopback:
            problems.add(
                "admin.listen", f"{admin.listen} is outside loopback, where a token could be overheard: give security.certificates, or listen on 127.0.0.1"
            )
        elif not admin.token_file:
            problems.add("admin.token_file", "is missing, and admin.listen is given; `caterwaul secret new FILE` makes a token")
    elif admin.token_file:
        problems.add("admin.token_file", "is not used, because admin.listen names no address")
    if admin.socket not in ("", "auto"):
        if not os.path.isabs(admin.socket):
            problems.add("admin.socket", f"{admin.socket!r} is not an absolute path")
        if len(os.fsencode(admin.socket)) > _SOCKET_PATH_MAX:
            problems.add("admin.socket", f"is longer than {_SOCKET_PATH_MAX} bytes, which is what the system takes as the path of a socket")


def check_store(store: StoreSettings, managers: Mapping[str, ManagerSettings], problems: Problems) -> None:
    if store.url and store.url_file:
        problems.add("store.url_file", "is given, and url too: a node has one store")
    if has_password(store.url):
        problems.add("store.url", "has a password in it: put it into a file of mode 0600, and name that with url_file")
    elif store.url:
        try:
            open_store(store.url, "")
        except LocalError as error:
            problems.add("store.url", str(error))
    for name, manager in managers.items():
        if manager.type == "persistent" and not (store.url or store.url_file):
            problems.add(f"managers.{name}.type", '"persistent" keeps sessions in a store and nowhere else: give [store] a url')
        if manager.type == "persistent" and manager.expire_on_shutdown:
            problems.add(
                f"managers.{name}.expire_on_shutdown", 'is set, and with type "persistent" any other node goes on with the sessions of one that stops; choose'
            )
    if store.encrypt and not store.secret_file:
        problems.add("store.encrypt", "needs secret_file")


def check_web(web: WebSettings, managers: Container[str], problems: Problems) -> None:
    if not web.listen and not web.application:
        return
    if not web.listen or not web.application:
        missing, given = ("application", "listen") if web.listen else ("listen", "application")
        problems.add(f"web.{missing}", f"is missing, and web.{given} is given")
    if web.listen:
        where = split_address(web.listen, None)
        if where is None or _address(where[0]) is None:
            problems.add("web.listen", f"{web.listen!r} is not address:port, such as 127.0.0.1:8080")
    if web.application and not all(web.application.partition(":")[::2]):
        problems.add("web.application", f"{web.application!r} is not module:callable")
    if web.manager not in managers:
        problems.add("web.manager", f"there is no table [managers.{web.manager}]")


def split_address(text: str, port: int | None) -> tuple[str, int] | None:
    """``host:port``, ``[v6]:port``, or ``host`` where `port` is given; None: it is none of these."""
    host, colon, digits = text.rpartition(":")
    if not colon or (host.count(":") and not host.startswith("[")):
        host, digits = text, ""
    if digits and not (digits.isascii() and digits.isdecimal() and int(digits) < 65536):
        return None
    number = int(digits) if digits else port
    return None if number is None or (colon and not digits and host != text) else (host.strip("[]"), number)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
