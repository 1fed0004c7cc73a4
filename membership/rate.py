"""How often something may happen for each of many keys: a token bucket for each, in a bounded table.

A key that is not in the table has a full bucket, so the one that was used longest ago is forgotten when there are too many: a
flood from many addresses is bounded by other limits, and no table of ours grows with it. (Token bucket: Turner 1986.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

__all__ = ["Rate"]

_KEYS_MAX = 4096


class Rate:
    """Core. `per_s`: how fast a bucket fills; `burst`: what it holds at most."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()  # tokens, and when they were counted

    def take(self, now: float, key: Hashable) -> bool:
        """Whether it may happen once more now."""
        tokens = self._filled(now, key)
        self._put(now, key, tokens - 1 if tokens >= 1 else tokens)
        return tokens >= 1

    def has(self, now: float, key: Hashable) -> bool:
        """Whether `take` would say yes."""
        return self._filled(now, key) >= 1

    def give_back(self, now: float, key: Hashable) -> None:
        """What was taken did not count after all."""
        if key in self._buckets:
            self._put(now, key, min(self._burst, self._filled(now, key) + 1))

    def _filled(self, now: float, key: Hashable) -> float:
        tokens, then = self._buckets.get(key, (self._burst, now))
        return min(self._burst, tokens + max(0.0, now - then) * self._per_s)

    def _put(self, now: float, key: Hashable, tokens: float) -> None:
        self._buckets[key] = (tokens, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > _KEYS_MAX:
            self._buckets.popitem(last=False)
