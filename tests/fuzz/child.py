"""One target in one process: ``python -m tests.fuzz.child NAME SECONDS FOLDER SEED``, started by ``python -m tests.fuzz``.

With atheris the product's bytecode is instrumented and libFuzzer keeps what reaches something new; without it (no wheel for this Python
or machine) inputs are mutated at random. Either way a part of them has an item of the decoded CBOR exchanged, which byte-wise mutation hardly
ever achieves. Instrumented code is several times slower, so a limit of time is only believed broken when an ordinary process says so, too.

Leaves in FOLDER: `NAME.json` (how far it is), `failed-*.cbor` (what to replay), and `corpus/NAME/`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

try:
    import atheris
except ImportError:
    atheris = None

with atheris.instrument_imports(include=["caterwaul"], enable_loader_override=False) if atheris else contextlib.nullcontext():
    from . import targets

from .forms import mutate
from .limits import Failed, Feeder, save

_STATUS_S = 1.0
FOUND, TIRED = 1, 0


class Campaign:
    def __init__(self, name: str, seconds: float, folder: Path, seed: int) -> None:
        self.name = name
        self.folder = folder
        self.target = targets.TARGETS[name]
        self.feeder = Feeder(self.target)
        self.corpus = folder / "corpus" / name
        self.corpus.mkdir(parents=True, exist_ok=True)
        for data in self.target.seeds():
            (self.corpus / sha256(data).hexdigest()[:16]).write_bytes(data)
        self.rng = Random(seed)
        self.begin = monotonic()
        self.end = self.begin + seconds
        self.status_at = 0.0

    def feed(self, data: bytes) -> None:
        """One input; ends the process when its time is over, or when one fails."""
        try:
            self.feeder.feed(data)
        except Failed as failed:
            path = self.folder / f"failed-{self.name}-{sha256(failed.inputs[-1]).hexdigest()[:12]}.cbor"
            path.write_bytes(save(self.name, failed.inputs))
            if not (atheris and "of CPU" in str(failed)) or _fails_elsewhere(path):
                sys.stderr.write(f"{failed}\nthe input is in {path}\n")
                self.leave(FOUND, str(path))
            path.unlink()  # the instrumentation was slow, not the code
        if not self.feeder.executions % 64:
            now = monotonic()
            if now >= self.end:
                self.leave(TIRED)
            if now >= self.status_at:
                self.status_at = now + _STATUS_S
                self.tell()

    def tell(self, failed: str = "") -> None:
        feeder = self.feeder
        status = {
            "executions": feeder.executions, "seconds": monotonic() - self.begin, "refused": feeder.refused, "slowest_ms": feeder.slowest_ms,
            "most_bytes": feeder.most_bytes, "guided": atheris is not None, "failed": failed,
        }  # fmt: skip
        (self.folder / f"{self.name}.json").write_text(json.dumps(status))

    def leave(self, code: int, failed: str = "") -> None:
        """Without the long good-bye of libFuzzer, which would call this a crash."""
        self.tell(failed)
        sys.stderr.flush()
        os._exit(code)

    def mutated(self, data: bytes, size_max: int, seed: int) -> bytes:
        """libFuzzer asks for one more."""
        if self.target.form is not None and seed % 3 == 0:
            return mutate(data, Random(seed), self.target.form)[:size_max]
        changed: bytes = atheris.Mutate(data, size_max)
        return changed

    def run_guided(self) -> None:
        arguments: list[str] = [
            "fuzz",
            str(self.corpus),
            f"-max_len={self.target.bytes_max}",
            f"-seed={self.rng.randrange(1, 2**31)}",
            "-rss_limit_mb=1024",
            "-timeout=30",
        ]
        atheris.Setup(arguments, self.feed, custom_mutator=self.mutated, internal_libfuzzer=True)
        atheris.Fuzz()

    def run_blind(self) -> None:
        pool: list[Any] = [path.read_bytes() for path in sorted(self.corpus.iterdir())]
        while True:
            data = self.rng.choice(pool)
            for _ in range(self.rng.choice((1, 1, 2, 3, 5))):
                data = mutate(data, self.rng, self.target.form)
            data = data[: self.target.bytes_max]
            self.feed(data)
            if self.rng.random() < 0.02:
                pool[self.rng.randrange(len(pool))] = data


def _fails_elsewhere(path: Path) -> bool:
    command = [sys.executable, "-m", "tests.fuzz", "--replay", str(path)]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode != 0


def main() -> None:
    name, seconds, folder, seed = sys.argv[1:]
    campaign = Campaign(name, float(seconds), Path(folder), int(seed))
    campaign.run_guided() if atheris else campaign.run_blind()


if __name__ == "__main__":
    main()
