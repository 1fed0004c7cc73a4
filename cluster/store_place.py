"""What `caterwaul store` works on: a store by its URL, page by page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import click

from ..managers.kept import KeptEnd, joined_items, read_item
from ..managers.record import Record
from ..managers.stores.opening import has_password, open_store, without_password
from ..managers.stores.store import NOTHING, Save, Store, Stored
from ..membership.errors import LocalError, RemoteError
from .security.store_keys import read_url, store_secrets
from .store_clock import CLOCK

__all__ = ["BATCH", "Place", "Url", "is_good", "key_pages", "merge", "on_store", "pages"]

_F = TypeVar("_F", bound=Callable[..., Any])
_PAGE = 500
BATCH = 100  #: items whose bytes are not known before they are loaded
_TRIES = 20  # of a save that others get in the way of
_TIMEOUT_S = 10.0


class Url(click.ParamType[str]):
    """A store's URL, or ``@FILE`` for a file that holds it: a command line is no place for a password."""

    name = "URL"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value.startswith("@"):
            return read_url(Path(value[1:]))
        if has_password(value):
            self.fail(
                f"{without_password(value)} has a password in it, which every user of this machine sees: put it into a file of mode 0600, and give @FILE",
                param,
                ctx,
            )
        return value


class Place(NamedTuple):
    """Where a store is, and how its items are sealed."""

    url: str
    secrets: dict[str, Any]

    @contextmanager
    def opened(self, space: str, create: bool = False) -> Iterator[Store]:
        found = open_store(self.url, space, timeout_s=_TIMEOUT_S, **self.secrets)
        try:
            found.open(create)
            yield found
        finally:
            found.close()

    def spaces(self, space: str | None) -> list[str]:
        if space is not None:
            return [space]
        with self.opened("") as found:
            return [name for name in found.spaces() if not name.endswith(f"/{CLOCK}")]

    def length(self, space: str) -> int:
        with self.opened(space) as found:
            return sum(map(len, key_pages(found)))


def on_store(command: _F) -> _F:
    """The argument URL and the options of sealed stores, as `place`."""

    @wraps(command)
    def with_place(*arguments: Any, url: str, store_secret: Path | None, encrypt: bool, **keywords: Any) -> Any:
        return command(*arguments, place=Place(url, {**store_secrets(store_secret), "encrypt": encrypt}), **keywords)

    made = click.option("--encrypt", is_flag=True, help="What is written is encrypted, as `store.encrypt` of the configuration says.")(with_place)
    made = click.option("--store-secret", type=click.Path(path_type=Path), metavar="FILE", help="`store.secret_file` of the configuration, if there is one.")(
        made
    )
    return cast(_F, click.argument("url", metavar="URL", type=Url())(made))


def key_pages(found: Store, after: bytes = b"") -> Iterator[list[bytes]]:
    while keys := found.keys(after, _PAGE):
        yield keys
        after = keys[-1]


def pages(found: Store) -> Iterator[dict[bytes, Stored]]:
    """All items, those that cannot be read left out."""
    for some in key_pages(found):
        for at in range(0, len(some), BATCH):
            yield {key: item for key, item in found.load(some[at : at + BATCH]).items() if is_good(key, item)}


def is_good(key: bytes, item: Stored) -> bool:
    try:
        found = read_item(item.data)
        if not isinstance(found, KeptEnd):
            Record.unpack(found.body)
        return found.key == key
    except RemoteError:
        return False


def merge(there: Store, items: dict[bytes, Stored]) -> Counter[str]:
    """Into this store, by compare-and-set."""
    counts: Counter[str] = Counter()
    left = dict(items)
    for _ in range(_TRIES):
        if not left:
            return counts
        found = there.load(left)
        saves = []
        for key, item in left.items():
            old = found.get(key)
            data = item.data if old is None else joined_items(old.data, item.data)
            if old is not None and data == old.data:
                counts["there"] += 1
            else:
                saves.append(Save(key, data, max(item.until_ms, old.until_ms if old is not None else 0), old.revision if old is not None else NOTHING))
        saved = there.save_many(saves)
        counts.update("merged" if save.key in found else "added" for save in saves if save.key in saved)
        left = {save.key: items[save.key] for save in saves if save.key not in saved}
    if left:
        raise LocalError(f"{there.name}: others change {len(left)} sessions all the time; try again")
    return counts
