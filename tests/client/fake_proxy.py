"""Something between client and server that is no gRPC server: it answers in HTTP/2 frames, or in HTTP/1.1."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING = 0, 1, 3, 4, 6
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1

Respond = Callable[[socket.socket, int], None]
"""Answers the call on a stream of a connection."""


def page(status: int) -> Respond:
    """A page of nginx with an HTTP status."""
    body = f"<html><center><h1>{status}</h1></center><hr><center>nginx</center></html>".encode()
    headers = {":status": str(status), "server": "nginx", "content-type": "text/html"}

    def respond(connection: socket.socket, stream: int) -> None:
        block = b"".join(_literal(name, value) for name, value in headers.items())
        connection.sendall(_frame(_HEADERS, _END_HEADERS, stream, block) + _frame(_DATA, _END_STREAM, stream, body))

    return respond


def cut(error: int) -> Respond:
    """The stream ends with an HTTP/2 error."""

    def respond(connection: socket.socket, stream: int) -> None:
        connection.sendall(_frame(_RST_STREAM, 0, stream, struct.pack(">I", error)))

    return respond


@contextmanager
def answering(respond: Respond) -> Iterator[str]:
    """The address of a proxy that answers each call like this."""

    def serve(connection: socket.socket) -> None:
        _read(connection, 24)  # the preface of HTTP/2
        connection.sendall(_frame(_SETTINGS, 0, 0))
        while True:
            head = _read(connection, 9)
            payload = _read(connection, int.from_bytes(head[:3], "big"))
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
            if kind in (_SETTINGS, _PING) and not flags & _ACK:
                connection.sendall(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
            elif kind == _HEADERS:
                respond(connection, stream)

    with _listening(serve) as address:
        yield address


@contextmanager
def speaking(answer: bytes) -> Iterator[str]:
    """The address of something that says the same to everyone, as a server of HTTP/1.1 does."""

    def serve(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(answer)

    with _listening(serve) as address:
        yield address


@contextmanager
def _listening(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    opened: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def handle(connection: socket.socket) -> None:
        with connection, suppress(OSError, EOFError):
            serve(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                opened.append(listener.accept()[0])
                threads.append(threading.Thread(target=handle, args=(opened[-1],)))
                threads[-1].start()

    threads.append(threading.Thread(target=accept))
    threads[0].start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for each in (listener, *opened):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in threads:
            thread.join(20)


def _literal(name: str, value: str) -> bytes:
    """A header field without indexing and without Huffman coding (RFC 7541, 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (more := connection.recv(count - len(data))):
            raise EOFError
        data += more
    return data
