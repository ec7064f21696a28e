"""A TCP proxy between a client and PostgreSQL that cuts the connection at a chosen moment.

::

    with Proxy(database, cut_at=at_commit_after_it_was_done) as proxy:
        generate(…, proxy.url)
"""

from __future__ import annotations

import contextlib
import dataclasses
import select
import socket
import struct
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

if TYPE_CHECKING:
    from types import TracebackType

    from keikaku_snapshots.postgres.url import DatabaseURL

#: What to do when a chunk from the client arrives: pass it on; cut before the server gets
#: it; or hand it to the server, wait for the answer, and cut before the client gets that;
#: or not wait for it.
Verdict: TypeAlias = Literal["pass", "cut", "deliver-then-cut", "deliver-and-cut"]
#: Gets the chunk and all bytes that the client sent before it on this connection.
Rule: TypeAlias = Callable[[bytes, int], Verdict]

_CHUNK_BYTES = 65_536
_ANSWER_S = 10.0
#: A session begins with a startup message of version 3; only the question for SSL may come before it.
_VERSION, _SSL_REQUEST_BYTES = b"\0\3", 8


def at_commit_before_it_is_done(chunk: bytes, sent: int) -> Verdict:
    """Cut when COMMIT was sent and the server has not got it."""
    return "cut" if b"COMMIT\0" in chunk else "pass"


def at_commit_after_it_was_done(chunk: bytes, sent: int) -> Verdict:
    """Cut when the server has done COMMIT and the client has not heard of it."""
    return "deliver-then-cut" if b"COMMIT\0" in chunk else "pass"


def after_bytes(limit: int) -> Rule:
    """Cut when the client has sent this many bytes, such as in the middle of a COPY."""

    def rule(chunk: bytes, sent: int) -> Verdict:
        return "cut" if sent + len(chunk) > limit else "pass"

    return rule


class Proxy:
    """Forwards connections to the server of a URL.

    Args:
        target: The real database.
        cut_at: Decides about each chunk that a client sends.
        cuts: How many connections are cut; later ones pass, as after a short outage.
        cut_answer_at: The same for each chunk of the server's, which "cut" keeps from the client.
    """

    def __init__(
        self, target: DatabaseURL, cut_at: Rule, cuts: int = 1, *, cut_answer_at: Rule | None = None
    ) -> None:
        self._target, self._rule, self._cuts_left = target, cut_at, cuts
        self._answer_rule = cut_answer_at
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        #: Sessions that clients have begun; a connection that only asks to cancel a statement is none.
        self.connections = 0
        #: Connections that were cut.
        self.cuts = 0

    @property
    def url(self) -> DatabaseURL:
        """The same database through the proxy."""
        port: int = self._listener.getsockname()[1]
        return dataclasses.replace(self._target, host="127.0.0.1", port=port)

    def __enter__(self) -> Self:
        self._run(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(timeout=20)
        self._listener.close()

    def _run(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._ended.is_set():
            if select.select([self._listener], [], [], 0.05)[0]:
                client, _ = self._listener.accept()
                self._run(lambda client=client: self._serve(client))  # type: ignore[misc]

    def _serve(self, client: socket.socket) -> None:
        server = socket.create_connection((self._target.host, self._target.port or 5432))
        with client, server, contextlib.suppress(OSError):
            sent = answered = 0
            while not self._ended.is_set():
                for ready in select.select([client, server], [], [], 0.05)[0]:
                    chunk = ready.recv(_CHUNK_BYTES)
                    if not chunk:
                        return
                    if ready is server:
                        if self._cuts_left > 0 and self._answer_rule is not None:
                            if self._answer_rule(chunk, answered) != "pass":
                                self._cut(client, server, answered=False)
                                return
                            answered += len(chunk)
                        client.sendall(chunk)
                        continue
                    self.connections += sent <= _SSL_REQUEST_BYTES and chunk[4:6] == _VERSION
                    verdict = self._rule(chunk, sent) if self._cuts_left > 0 else "pass"
                    sent += len(chunk)
                    if verdict != "cut":
                        server.sendall(chunk)
                    if verdict != "pass":
                        self._cut(client, server, answered=verdict == "deliver-then-cut")
                        return

    def _cut(self, client: socket.socket, server: socket.socket, *, answered: bool) -> None:
        self._cuts_left -= 1
        self.cuts += 1
        if answered:
            server.settimeout(_ANSWER_S)
            server.recv(_CHUNK_BYTES)
        # A reset, as when a host or a balancer dies, and not an orderly end.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
