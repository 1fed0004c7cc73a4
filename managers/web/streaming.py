"""Bodies of responses that may write to the session after the headers have left, for frameworks that make headers before the body.

The server closes a body when it is over, also when the browser has gone: what was written is committed then, unless the body failed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator

from .policy import Visit, wait

__all__ = ["AsyncStream", "Stream"]


class _Ending:
    def __init__(self, visit: Visit, body: object) -> None:
        self._visit = visit
        self._body = body

    def close(self) -> None:
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
            wait(self._visit.save())
        finally:
            self._visit.release()


class Stream(_Ending):
    def __init__(self, body: Iterable[bytes], visit: Visit) -> None:
        super().__init__(visit, body)
        self._chunks = iter(body)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._chunks)
        except StopIteration:
            raise
        except BaseException:
            self._visit.fail()
            raise


class AsyncStream(_Ending):
    def __init__(self, body: AsyncIterator[bytes], visit: Visit) -> None:
        super().__init__(visit, body)
        self._chunks = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._chunks)
        except StopAsyncIteration:
            raise
        except BaseException:
            self._visit.fail()
            raise
