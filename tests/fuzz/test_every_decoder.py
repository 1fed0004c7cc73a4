"""Whatever the bytes, a decoder raises what it may, or understands them: all of `targets.py`, at random and near what is valid.

Few examples of each by default; CATERWAUL_FUZZ_EXAMPLES=20000 as `make fuzz` sets it for many.
"""

from __future__ import annotations

import contextlib
import os
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .forms import mutate
from .limits import Feeder
from .targets import TARGETS, Target

_EXAMPLES = int(os.environ.get("CATERWAUL_FUZZ_EXAMPLES", "2000"))
each = pytest.mark.parametrize("name", TARGETS)

#: Made once: a fixture of a manager takes milliseconds.
_SEEDS: dict[str, list[bytes]] = {}


def seeds(name: str) -> list[bytes]:
    if name not in _SEEDS:
        _SEEDS[name] = TARGETS[name].seeds()
    return _SEEDS[name]


def run(target: Target, data: bytes) -> None:
    with contextlib.suppress(*target.may_raise):
        target.fresh()(data)


@each
def test_what_we_encode_is_understood(name: str) -> None:
    """Else the examples exercise nothing. A target can take all of its examples but those of another state."""
    target, understood = TARGETS[name], 0
    for seed in seeds(name):
        with contextlib.suppress(*target.may_raise):
            target.fresh()(seed)
            understood += 1
    assert understood == len(seeds(name)) or (understood and name in ("hello-accepted", "hello-dialled", "inbound", "pipeline"))


@each
@settings(max_examples=max(20, _EXAMPLES // 50), suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=1300))
def test_any_bytes(name: str, data: bytes) -> None:
    run(TARGETS[name], data)


@each
@settings(max_examples=max(20, _EXAMPLES // 50), suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_valid_example_with_a_few_bytes_changed_cut_or_added(name: str, data: st.DataObject) -> None:
    changed = bytearray(data.draw(st.sampled_from(seeds(name))))
    for position, byte in data.draw(st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=4)):
        if changed:
            changed[position % len(changed)] = byte
    keep = data.draw(st.integers(0, len(changed)) | st.just(len(changed)))
    run(TARGETS[name], bytes(changed[:keep]) + data.draw(st.binary(max_size=20) | st.just(b"")))


@each
def test_a_burst_of_mutations(name: str) -> None:
    """Deeper: bytes and items of values changed several times over, with what one input may cost."""
    target, rng, pool = TARGETS[name], Random(name), list(seeds(name))
    feeder = Feeder(target)
    for _ in range(_EXAMPLES // 4):
        data = rng.choice(pool)
        for _ in range(rng.choice((1, 1, 2, 3, 5))):
            data = mutate(data, rng, target.form)
        feeder.feed(data[: target.bytes_max])
        if rng.random() < 0.05:
            pool[rng.randrange(len(pool))] = data
    assert feeder.executions == _EXAMPLES // 4
