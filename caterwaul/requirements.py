"""Refuses libraries that are known to be unsafe or too old, when Caterwaul is imported and before it imports them.

An installer sees to that as well, but not one that was told ``--no-deps``, a requirement pinned elsewhere, or a copied environment. cbor2
before 6.2.1 can be crashed by what a peer sends. Where a library brings no metadata (a frozen application) nothing can be said, and nothing is.
"""

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec

__all__ = ["REQUIRED", "check"]

#: By the name of the distribution: the module, and the oldest version that will do.
REQUIRED = {"cbor2": ("cbor2", "6.2.1"), "twisted": ("twisted", "26.10"), "pyOpenSSL": ("OpenSSL", "26")}

_version_line = re.compile(r"^Version: *(\S+)", re.MULTILINE)
_release = re.compile(r"\d+(?:\.\d+)*")


def check(required: Mapping[str, tuple[str, str]] = REQUIRED) -> None:
    """Raises `ImportError` that names all that has to be installed."""
    bad = []
    for name, (module, oldest) in required.items():
        found = _installed(name)
        if found is None:
            if find_spec(module) is None:
                bad.append((name, oldest, "is not installed"))
        elif _numbers(found) < _numbers(oldest):
            bad.append((name, oldest, f"{found} is installed"))
    if bad:
        said = ", ".join(f"{name} {oldest} or newer ({why})" for name, oldest, why in bad)
        install = " ".join(f"'{name}>={oldest}'" for name, oldest, _ in bad)
        raise ImportError(f"Caterwaul needs {said}: pip install {install}")


def _installed(name: str) -> str | None:
    try:
        metadata = distribution(name).read_text("METADATA")  # not `version`: that parses all of it as an e-mail
    except PackageNotFoundError:
        return None
    line = _version_line.search(metadata or "")
    return line[1] if line else None


def _numbers(version: str) -> tuple[int, ...]:
    release = _release.match(version)
    return tuple(map(int, release[0].split("."))) if release else ()


check()
