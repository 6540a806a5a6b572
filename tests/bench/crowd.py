"""The followers of the benchmarks, a process of its own: `crowd.py PORT PATH COUNT LINES`.

Opens COUNT streams and says `ready`, then takes in lines of the form `line NUMBER UNIX_TIME` until
each follower has LINES of them. Prints as JSON the seconds from each line's time to its first and
last receipt, and how many followers missed one, saw one twice or out of order.
"""

from __future__ import annotations

import json
import re
import resource
import select
import socket
import sys
import time

_LINE = re.compile(rb"data: line (\d+) (\d+[.,]\d+)\n")
_EACH = 4000  # streams from one address
_AT_ONCE = 64  # connections whose answer is awaited


class Follower:
    """One stream, and the number of the line that comes next."""

    def __init__(self, port: int, path: str, number: int) -> None:
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        self.sock.bind((f"127.0.0.{2 + number // _EACH}", 0))
        self.sock.connect(("127.0.0.1", port))
        self.sock.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        self.next = 0
        self.wrong = 0
        self.rest = b""
        self.open = False

    def hear(self) -> list[tuple[int, float]]:
        """The lines that have come: their numbers and times."""
        data = self.sock.recv(1 << 16)
        if not data:
            raise ConnectionError("the server ended a stream")
        self.open = True
        self.rest += data
        end = self.rest.rfind(b"\n") + 1
        whole, self.rest = self.rest[:end], self.rest[end:]
        found = []
        for match in _LINE.finditer(whole):
            number = int(match[1])
            self.wrong += number != self.next
            self.next = number + 1
            found.append((number, float(match[2].replace(b",", b"."))))
        return found


def main() -> None:
    """Connect, follow, count."""
    port, path, count, lines = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    poll = select.epoll()
    everybody: dict[int, Follower] = {}
    waiting = 0
    receipts: dict[int, list[float]] = {}  # line -> its time, first and last receipt

    def hear(pause: float) -> int:
        opened = 0
        for fd, _ in poll.poll(pause):
            follower = everybody[fd]
            opened += not follower.open
            lines = follower.hear()
            now = time.time()
            for number, written in lines:
                receipts.setdefault(number, [written, now, now])[2] = now
        return opened

    for number in range(count):
        follower = Follower(port, path, number)
        everybody[follower.sock.fileno()] = follower
        poll.register(follower.sock, select.EPOLLIN)
        waiting += 1
        while waiting >= _AT_ONCE:
            waiting -= hear(1)
    while waiting:
        waiting -= hear(1)
    print("ready", flush=True)
    while any(follower.next < lines for follower in everybody.values()):
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            hear(0.1)
    plain = {
        "first": [first - written for written, first, _ in receipts.values()],
        "last": [last - written for written, _, last in receipts.values()],
        "wrong": sum(follower.wrong > 0 for follower in everybody.values()),
    }
    print(json.dumps(plain), flush=True)


if __name__ == "__main__":
    main()
