"""The client of the benchmarks: one thread, many kept connections, one request on each."""

from __future__ import annotations

import itertools
import re
import select
import socket
import time
from collections.abc import Iterator

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


class Client:
    """One connection, and what is still to come of the answer it waits for."""

    def __init__(self, port: int, requests: Iterator[bytes]) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self._requests = requests
        self._head = b""
        self._left = -1  # of the body; -1: its head is not complete

    def ask(self) -> None:
        """Send the next request."""
        self.sock.sendall(next(self._requests))

    def hear(self) -> bool:
        """Take in what has come; whether the answer is complete."""
        data = self.sock.recv(1 << 20)
        if not data:
            raise ConnectionError("the server ended a kept connection")
        if self._left < 0:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return False
            if self._head[9:10] != b"2":
                raise AssertionError(self._head[:200])
            found = _LENGTH.search(self._head, 0, end + 2)
            self._left = int(found[1]) - (len(self._head) - end - 4) if found else 0
            self._head = b""
        else:
            self._left -= len(data)
        if self._left > 0:
            return False
        self._left = -1
        return True


def rate(port: int, *requests: bytes, clients: int = 8, seconds: float = 2.0) -> float:
    """Answers a second that `clients` get who each send the next request after the last answer."""
    turns = itertools.cycle(requests)
    poll = select.epoll()
    everybody = {}
    for _ in range(clients):
        client = Client(port, turns)
        everybody[client.sock.fileno()] = client
        poll.register(client.sock.fileno(), select.EPOLLIN)
        client.ask()
    answers = 0
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        for fd, _ in poll.poll():
            client = everybody[fd]
            if client.hear():
                answers += 1
                client.ask()
    took = time.monotonic() - began
    for client in everybody.values():
        client.sock.close()
    poll.close()
    return answers / took


def get(path: str) -> bytes:
    """A request as small as curl's."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n\r\n".encode()


def post(path: str, body: str) -> bytes:
    """A submission of Markdown."""
    data = body.encode()
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/markdown\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    ).encode() + data


def once(port: int, path: str) -> float:
    """Seconds from the request on a new connection to the first byte of the answer's body."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        began = time.monotonic()
        sock.sendall(get(path))
        data = b""
        while not data.partition(b"\r\n\r\n")[2]:
            data += sock.recv(1 << 16)
        return time.monotonic() - began
