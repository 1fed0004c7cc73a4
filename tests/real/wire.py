"""A wire to a server on loopback, that can lose its answers."""

from __future__ import annotations

import select
import socket
from contextlib import suppress
from threading import Thread

__all__ = ["Wire"]


class Wire(Thread):
    """`with Wire(port) as wire`: `wire.port` leads to that port."""

    def __init__(self, port: int) -> None:
        super().__init__(name=f"wire-{port}", daemon=True)
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.cuts = 0  #: how many connections are still to be cut when an answer comes
        self._swallows = False
        self._pairs: dict[socket.socket, socket.socket] = {}  # each end with the other
        self._servers: set[socket.socket] = set()
        self._ending, self._ended = socket.socketpair()

    def __enter__(self) -> Wire:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()
        self.join()

    def cut_answers(self, number: int) -> None:
        """The next `number` connections on which an answer comes are cut before it."""
        self.cuts = number

    def swallow_answers(self, swallows: bool) -> None:
        self._swallows = swallows

    def run(self) -> None:
        while True:
            readable = select.select([self._ended, self._listening, *self._pairs], [], [])[0]
            if self._ended in readable:
                break
            for one in readable:
                if one is self._listening:
                    self._accept()
                elif one in self._pairs:
                    self._carry(one)
        for one in [self._ended, self._listening, *self._pairs]:
            one.close()

    def _accept(self) -> None:
        client, _ = self._listening.accept()
        server = socket.create_connection(("127.0.0.1", self._to))
        self._pairs |= {client: server, server: client}
        self._servers.add(server)

    def _carry(self, source: socket.socket) -> None:
        data = b""
        with suppress(OSError):
            data = source.recv(1 << 16)
        is_cut = bool(data) and source in self._servers and self.cuts > 0
        if is_cut:
            self.cuts -= 1
        if not data or is_cut:
            for end in (source, self._pairs[source]):
                del self._pairs[end]
                self._servers.discard(end)
                end.close()
        elif not (source in self._servers and self._swallows):
            with suppress(OSError):
                self._pairs[source].sendall(data)
