"""A TCP line on loopback that breaks when it is told to: in front of a server, cut, reset or stalled after some bytes.

Knows nothing of what it carries. Used by benchmarks/store_storm.py and the tests of stores.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

KINDS = ("cut", "reset", "stall")
_PIECE_BYTES = 1 << 16
_POLL_S = 0.05
_AT_ONCE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Fault:
    """What happens to one connection once it carried so many bytes, both ways together."""

    kind: str
    after_bytes: int


class _Connection:
    def __init__(self, line: BadLine, client: socket.socket, fault: Fault | None) -> None:
        self.line, self.client, self.fault = line, client, fault
        self.server = socket.create_connection(("127.0.0.1", line.target_port))
        self.carried, self.is_closed, self.lock = 0, False, threading.Lock()
        for source, sink, way in ((client, self.server, "up"), (self.server, client, "down")):
            threading.Thread(target=self._pump, args=(source, sink, way), daemon=True).start()

    def close(self, *, reset: bool = False) -> None:
        """Both ends, once; a reset drops what is on its way."""
        with self.lock:
            is_closed, self.is_closed = self.is_closed, True
        for end in () if is_closed else (self.client, self.server):
            with suppress(OSError):
                if reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
                # Wakes the other thread, whose waiting would keep the socket open; for a reset without a farewell.
                end.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)
            with suppress(OSError):
                end.close()

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        with suppress(OSError):
            while piece := source.recv(_PIECE_BYTES):
                with self.lock:
                    allowed = len(piece) if self.fault is None else self.fault.after_bytes - self.carried
                    self.carried += len(piece)
                sink.sendall(piece[: max(0, allowed)])
                self.line.count(way, min(len(piece), max(0, allowed)))
                if self.fault is not None and allowed <= len(piece):
                    self.line.broken += 1
                    if self.fault.kind == "stall":
                        self._stall()
                    return self.close(reset=self.fault.kind == "reset")
        self.close()
        return None

    def _stall(self) -> None:
        """Take nothing more, until the line goes or the client gives up (which only some systems tell)."""
        waiting = select.poll() if hasattr(select, "POLLRDHUP") else None
        if waiting is not None:
            waiting.register(self.client, select.POLLRDHUP)
        while not self.line.stalls.wait(_POLL_S):
            if waiting is not None and waiting.poll(0):
                return


class BadLine:
    """Listens on `port` while open; `plan(number)` gives the fault of each new connection, or None for a good one."""

    def __init__(self, target_port: int, plan: Callable[[int], Fault | None] = lambda number: None) -> None:
        self.target_port, self.plan = target_port, plan
        self.carried_bytes = {"up": 0, "down": 0}
        self.broken = self.connections = 0
        self.stalls = threading.Event()
        self._open: list[_Connection] = []
        self._counting = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._listen, daemon=True).start()

    def count(self, way: str, n_bytes: int) -> None:
        """Some more bytes went this way: up to the server, or down to the client."""
        with self._counting:
            self.carried_bytes[way] += n_bytes

    def start_counting(self) -> None:
        """From 0."""
        with self._counting:
            self.carried_bytes = {"up": 0, "down": 0}
        self.broken = self.connections = 0

    def __enter__(self) -> BadLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stalls.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            connection.close()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                fault = self.plan(self.connections)
                self.connections += 1
                try:
                    self._open.append(_Connection(self, client, fault))
                except OSError:
                    client.close()
