"""Source distributions of frameworks, whose own session tests are run against our backends: fetched by pip, kept in `.upstream`, never copied.

A source distribution is that of the version that is installed. Where it cannot be had the tests are skipped, and say so: on a build
server (`.ci/run`) that counts as a failure.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

KEPT = Path(__file__).parents[2] / ".upstream"


def source(name: str) -> Path:
    """The `.tar.gz` of the project `name`, in the version that is installed. Skips the test if it cannot be fetched."""
    wanted = version(name)
    kept = KEPT / f"{name.lower()}-{wanted}.tar.gz"
    if not kept.exists():
        KEPT.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=KEPT) as directory:
            command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps", "--no-binary", name, "--dest", directory]
            done = subprocess.run([*command, f"{name}=={wanted}"], capture_output=True, text=True, timeout=240, check=False)
            found = list(Path(directory).glob("*.tar.gz"))
            if done.returncode or len(found) != 1:
                pytest.skip(
                    f"the source distribution of {name} {wanted} cannot be fetched, so its own session tests were not run: {done.stderr.strip()[-500:]}"
                )
            os.replace(found[0], kept)
    return kept


def unpack(name: str, inside: str, into: Path) -> Path:
    """Unpack what is under the path `inside` of the project's root. Returns the directory that stands for the root."""
    with tarfile.open(source(name)) as archive:
        root = archive.getnames()[0].split("/")[0]
        for member in archive:
            content = archive.extractfile(member) if member.isfile() and member.name.startswith(f"{root}/{inside}") else None
            if content is not None and ".." not in member.name:
                path = into / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())
    assert (into / root / inside).exists(), f"{name} has no {inside} any more"
    return into / root


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python where `directory`, and the files here, can be imported; warnings are errors."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [directory, Path(__file__).parent, Path(__file__).parents[2]]))}
    command = [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", *arguments]
    return subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True, timeout=240, check=False)
