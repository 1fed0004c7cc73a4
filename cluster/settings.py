"""The whole configuration of a node: the tables, where they come from, and the checks between them.

Every table is a frozen dataclass of knobs (see `membership/knobs.py`), declared by the package it configures. They are read from one TOML file or from keywords of the same names, and checked as a
whole. Every mistake is one line ``FILE: table.key: what is wrong, and what to do``; all are reported at once, and nothing
is started.
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..managers.settings import ManagerSettings, MapSettings, SsoSettings
from ..managers.stores.settings import StoreSettings
from ..managers.web.cookies import CookieSettings
from ..managers.web.single import SsoCookieSettings
from ..membership.settings import MembershipSettings
from .config import Problems, build, nearest
from .crosschecks import (
    check_admin,
    check_channel,
    check_cluster,
    check_drain,
    check_manager,
    check_maps,
    check_membership,
    check_node,
    check_security,
    check_sso,
    check_store,
    check_web,
)
from .tables import AdminSettings, ChannelSettings, ClusterSettings, NodeSettings, SecuritySettings, WebSettings

__all__ = ["AdminSettings", "ChannelSettings", "ClusterSettings", "NodeSettings", "SecuritySettings", "Settings", "WebSettings", "load", "parse_overrides"]


#: Tables that exist once, by their name in the file.
_TABLES: dict[str, Any] = {
    "node": NodeSettings,
    "cluster": ClusterSettings,
    "security": SecuritySettings,
    "membership": MembershipSettings,
    "channel": ChannelSettings,
    "admin": AdminSettings,
    "web": WebSettings,
    "store": StoreSettings,
}
#: Tables that exist once for each name.
_NAMED_TABLES = ("managers", "maps", "sso")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")


@dataclass(frozen=True)
class Settings:
    """One checked configuration; immutable, so any thread may read it. Made by `Settings.of` or `load`, never by hand."""

    node: NodeSettings
    cluster: ClusterSettings
    security: SecuritySettings
    membership: MembershipSettings
    channel: ChannelSettings
    admin: AdminSettings
    web: WebSettings
    store: StoreSettings
    managers: Mapping[str, ManagerSettings]  #: by manager name, sorted
    cookies: Mapping[str, CookieSettings]  #: `[managers.NAME.cookie]`, by manager name
    maps: Mapping[str, MapSettings]  #: by map name, sorted
    sso: Mapping[str, SsoSettings]  #: by the name that managers give, sorted
    sso_cookies: Mapping[str, CookieSettings]  #: `[sso.NAME.cookie]`, likewise
    source: str = ""  #: the file it was read from, empty for keywords

    @staticmethod
    def of(**keywords: Any) -> Settings:
        """From keywords: a table each (``node={"name": "a"}``), or dotted names (``**{"membership.drop_time_s": 5.0}``).

        Raises `SettingsError` with a line for each mistake.
        """
        problems = Problems("")
        tables: dict[str, Any] = {}
        for name, value in keywords.items():
            _put(tables, name.split("."), value, problems)
        return _check(tables, problems)

    def changed(self, **keywords: Any) -> Settings:
        """The same configuration with some keys changed (named as in `of`), checked again."""
        tables = self.to_tables()
        problems = Problems(self.source)
        for name, value in keywords.items():
            _put(tables, name.split("."), value, problems)
        return replace(_check(tables, problems), source=self.source)

    def to_tables(self) -> dict[str, Any]:
        """Plain nested tables, as a TOML file would hold them."""
        tables: dict[str, Any] = {name: dict(vars(getattr(self, name))) for name in _TABLES}
        tables["managers"] = {name: {**vars(manager), "cookie": dict(vars(self.cookies[name]))} for name, manager in self.managers.items()}
        if self.sso:
            tables["sso"] = {name: {**vars(shared), "cookie": dict(vars(self.sso_cookies[name]))} for name, shared in self.sso.items()}
        if self.maps:
            tables["maps"] = {name: dict(vars(shared)) for name, shared in self.maps.items()}
        return tables


def load(path: str | os.PathLike[str], **keywords: Any) -> Settings:
    """Read and check one TOML file; keywords (named as in `Settings.of`) replace what it says. Raises `SettingsError` with a line for each mistake."""
    problems = Problems(os.fspath(path))
    tables: dict[str, Any] = {}
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        problems.add("", f"not valid TOML: {error}")
    except UnicodeDecodeError as error:
        problems.add("", f"not UTF-8 text (byte {error.start})")
    except OSError as error:
        problems.add("", f"cannot be read: {error.strerror or error}")
    problems.raise_if_any()
    for name, value in keywords.items():
        _put(tables, name.split("."), value, problems)
    return replace(_check(tables, problems), source=os.fspath(path))


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """``table.key=value`` texts of a command line, as keywords. Values are TOML (`5`, `true`, `["a"]`); anything else is text."""
    problems = Problems("")
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or "." not in key:
            problems.add("--set", f"{text!r} is not TABLE.KEY=VALUE")
            continue
        try:
            found[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key] = value
    problems.raise_if_any()
    return found


def host_name() -> str:
    """This machine's name, cut to what a node name may be."""
    legal = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname().split(".")[0])[:16].strip("-")
    return legal or "node"


def _put(tables: dict[str, Any], path: list[str], value: object, problems: Problems) -> None:
    """Set one value at a dotted path; a table given as a whole is merged into what is there."""
    at = tables
    for part in path[:-1]:
        at = at.setdefault(part, {})
        if not isinstance(at, dict):
            problems.add(".".join(path), "is inside something that is not a table")
            return
    if isinstance(value, Mapping):
        at.setdefault(path[-1], {})
        for key, inner in value.items():
            _put(tables, [*path, str(key)], inner, problems)
    else:
        at[path[-1]] = value


def _check(tables: Mapping[str, Any], problems: Problems) -> Settings:
    for name in tables:
        if name not in _TABLES and name not in _NAMED_TABLES:
            problems.add(name, f"no such table{nearest(name, [*_TABLES, *_NAMED_TABLES])}")
    built = {name: build(kind, tables.get(name, {}), name, problems) for name, kind in _TABLES.items()}
    managers, cookies = _with_cookies("managers", ManagerSettings, CookieSettings, tables.get("managers", {"default": {}}), problems)
    sso, sso_cookies = _with_cookies("sso", SsoSettings, SsoCookieSettings, tables.get("sso", {}), problems)
    maps = {name: build(MapSettings, table, f"maps.{name}", problems) for name, table in _named("maps", tables.get("maps", {}), problems)}
    if not built["node"].name:
        built["node"] = replace(built["node"], name=host_name())
    settings = Settings(**built, managers=managers, cookies=cookies, maps=maps, sso=sso, sso_cookies=sso_cookies)
    check_node(settings.node, problems)
    check_security(settings.security, settings.node, settings.membership, problems)
    check_cluster(settings.cluster, problems)
    check_membership(settings.membership, settings.node, problems)
    check_channel(settings.channel, problems)
    check_admin(settings.admin, settings.security, problems)
    check_web(settings.web, settings.managers, problems)
    for name, manager in settings.managers.items():
        check_manager(manager, f"managers.{name}", problems)
    check_store(settings.store, settings.managers, problems)
    check_sso(settings.sso, settings.sso_cookies, settings.managers, settings.cookies, problems)
    check_drain(settings.node, settings.managers, problems)
    check_maps(settings.maps, settings.channel, problems)
    problems.raise_if_any()
    return settings


def _with_cookies(kind: str, made: Any, cookie_made: Any, tables: object, problems: Problems) -> tuple[dict[str, Any], dict[str, CookieSettings]]:
    """`[KIND.NAME]` and `[KIND.NAME.cookie]` by name."""
    found: dict[str, Any] = {}
    cookies: dict[str, CookieSettings] = {}
    for name, table in _named(kind, tables, problems):
        where = f"{kind}.{name}"
        cookie = table.pop("cookie", {}) if isinstance(table, dict) else {}
        found[name] = build(made, table, where, problems)
        cookies[name] = build(cookie_made, cookie, f"{where}.cookie", problems)
    return found, cookies


def _named(kind: str, tables: object, problems: Problems) -> Iterator[tuple[str, Any]]:
    """(name, table) of `[managers.NAME]` or `[maps.NAME]`."""
    if not isinstance(tables, Mapping):
        problems.add(kind, f"{tables!r} is not a table of {kind}, [{kind}.NAME]")
        return
    for name, table in sorted(tables.items()):
        if not _NAME.fullmatch(name):
            problems.add(f"{kind}.{name}", "the name is 1 to 32 letters, digits, '_' or '-'")
        plain = dict(table) if isinstance(table, Mapping) else table
        if isinstance(plain, dict) and type(plain.get("acks")) is int:
            plain["acks"] = str(plain["acks"])  # `acks = 2` is how a number is written in TOML
        yield name, plain
