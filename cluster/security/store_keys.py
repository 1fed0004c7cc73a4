"""What a node needs to reach its store, out of files that nobody else can read: the URL, if it has a password in it, and the secret that items are sealed with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...managers.stores.settings import StoreSettings
from ...membership.errors import LocalError
from .keyring import read_secrets
from .private_files import read_private

__all__ = ["read_url", "store_secrets", "store_url"]


def store_url(settings: StoreSettings) -> str:
    """Empty: there is no store. Raises `LocalError`."""
    return read_url(Path(settings.url_file)) if settings.url_file else settings.url


def read_url(path: Path) -> str:
    """Raises `LocalError` if the file is open to others, or holds something else."""
    try:
        lines = read_private(path, "file of a store's URL").decode("ascii").split()
    except UnicodeDecodeError:
        lines = []
    if len(lines) != 1:
        raise LocalError(f"{path} does not hold a URL, in a line of its own")
    return lines[0]


def store_secrets(path: Path | None) -> dict[str, Any]:
    """What `open_store` is told: the first of the file seals, the others open too. Raises `LocalError`."""
    if path is None:
        return {}
    first, *older = read_secrets(path)
    return {"secret": first, "older": older}
