"""Live streams: many sockets, one thread.

A request's thread sends the head and hands its socket over. Followers of a feed that have been sent
everything are in step: new data is read once, framed once, and sent to each of them. A follower
that cannot take all of it, or joins later, is behind: only its place is stored, and it is sent a
chunk at a time from there until it is in step. It delays no other follower, and is dropped when it
has taken nothing for a minute. Nothing here parses requests or knows what is streamed: that is the
`Feed`'s.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from pv_lib.httpd.limits import KEEP_ALIVE, SEND_SECONDS
from pv_lib.system.journal import Journal

TICK = 0.02  # seconds between two looks at the feeds
_HEAR = select.EPOLLIN | select.EPOLLRDHUP
_SEND_BUFFER = 1 << 16  # bytes, which Linux doubles: all that a client costs that does not read
_COMMENT = b": keep-alive\n\n"
_RECONNECT = b"retry: 1000\n: the server is stopping, come back\n\n"
_CHECK_SECONDS = 1.0


class Place(NamedTuple):
    """A place in a feed: a byte offset in a log, or a sequence number.

    `inside`: within a line whose first part has been sent.
    """

    offset: int
    inside: bool = False


END = Place(-1)  # behind the last event


class Forgotten(Exception):
    """What follows a place is no longer remembered."""


class Feed(Protocol):
    """A source of events: it turns a place into the next events and the place after them.

    The same place always gives the same bytes; later there may be more of them. So for a client
    that took a part of them, only its place and a number of bytes have to be stored.
    """

    def look(self) -> None:
        """Find what is new. Raises OSError when that is not possible now."""

    def frames(self, place: Place) -> tuple[bytes, Place]:
        """One chunk of events after `place`, as of the last look, and the place after them.

        No bytes when there are no events yet. Raises Forgotten.
        """

    def close(self) -> None:
        """Release what is open: the last follower is gone."""


@dataclass(eq=False, slots=True)
class _Follower:
    """One client. While it is behind, `sent` bytes of what follows `place` have been sent."""

    sock: socket.socket
    channel: _Channel
    place: Place
    done: Callable[[], None]  # called once, after it was dropped
    sent: int = 0
    spoke: float = field(default_factory=time.monotonic)  # last sent to while behind
    stuck_since: float | None = None  # monotonic; its send buffer is full since then


@dataclass(eq=False, slots=True)
class _Channel:
    """A feed and its followers; `place` and `spoke` (the last send) are of those in step."""

    key: Hashable
    feed: Feed
    place: Place = END
    spoke: float = 0.0
    in_step: set[_Follower] = field(default_factory=set)
    behind: set[_Follower] = field(default_factory=set)
    troubled: bool = False  # a failure to read it has been logged


@dataclass(frozen=True)
class Arrival:
    """A new follower: `key` identifies its feed, `open` makes the feed if there is none yet.

    `done` is called when the socket has been closed.
    """

    key: Hashable
    open: Callable[[], Feed]
    place: Place
    done: Callable[[], None]


class Followers:
    """The thread and its sockets. `start` before the first `add`, `stop` ends every stream."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._epoll = select.epoll()
        self._arrivals: deque[tuple[socket.socket, Arrival]] = deque()
        self._wake_read, self._wake_write = socket.socketpair()
        for end in (self._wake_read, self._wake_write):
            end.setblocking(False)
        self._epoll.register(self._wake_read, select.EPOLLIN)
        self._channels: dict[Hashable, _Channel] = {}
        self._followers: dict[int, _Follower] = {}  # by file descriptor
        self._hasty = False  # there may be more to send at once
        self._next_check = 0.0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="follow", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def add(self, sock: socket.socket, arrival: Arrival) -> None:
        """Take over the socket, after its head was sent, and stream to it. From any thread."""
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._arrivals.append((sock, arrival))
        self._wake()

    def stop(self) -> None:
        """End every stream with a hint to reconnect, and the thread."""
        self._stopping = True
        self._wake()
        self._thread.join(timeout=1)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_write.send(b"!")

    def _run(self) -> None:
        while not self._stopping:
            pause = 0 if self._hasty else TICK if self._channels else None
            self._hasty = False
            for fd, events in self._epoll.poll(pause):
                follower = self._followers.get(fd)
                if follower is not None:
                    self._attend(follower, events)
                elif fd == self._wake_read.fileno():
                    with contextlib.suppress(BlockingIOError):
                        self._wake_read.recv(4096)
            self._admit()
            for channel in list(self._channels.values()):
                self._guard(channel, self._serve)
            self._drop_stuck()
        self._admit()
        for follower in list(self._followers.values()):
            in_step = follower in follower.channel.in_step
            place = follower.channel.place if in_step else follower.place
            if not place.inside and (in_step or not follower.sent):
                with contextlib.suppress(OSError):
                    follower.sock.send(_RECONNECT)
            self._drop(follower)

    def _admit(self) -> None:
        while self._arrivals:
            sock, arrival = self._arrivals.popleft()
            channel = self._channels.get(arrival.key)
            if channel is None:
                channel = _Channel(arrival.key, arrival.open())
                self._channels[arrival.key] = channel
            follower = _Follower(sock, channel, arrival.place, arrival.done)
            self._followers[sock.fileno()] = follower
            channel.behind.add(follower)
            self._epoll.register(sock, _HEAR)

    def _guard(self, channel: _Channel, step: Callable[[_Channel], None]) -> None:
        """Run `step`; a failing feed must not end all streams."""
        try:
            step(channel)
        except OSError as error:  # no descriptor, no folder: the next look may succeed
            self._complain(channel, error)
        except Exception as error:  # noqa: BLE001 - as the top of a thread: a decided outcome
            self._complain(channel, error)
            for follower in [*channel.in_step, *channel.behind]:
                self._drop(follower)

    def _complain(self, channel: _Channel, error: Exception) -> None:
        if not channel.troubled:
            self._journal.error(f"{channel.key} cannot be followed: {error}")
        channel.troubled = True

    def _serve(self, channel: _Channel) -> None:
        """Send what is new to every follower that can take it."""
        channel.feed.look()
        if channel.in_step:
            self._send_new(channel)
        known: dict[Place, tuple[bytes, Place]] = {}  # framed in this round, by place
        for follower in list(channel.behind):
            if follower.stuck_since is None:
                self._advance(follower, known)

    def _send_new(self, channel: _Channel) -> None:
        """Send what is new to the followers in step, or a comment after a long silence."""
        before, now = channel.place, time.monotonic()
        try:
            data, channel.place = channel.feed.frames(before)
        except Forgotten:
            for follower in list(channel.in_step):
                self._drop(follower)
            return
        if data:
            self._send_all(channel, data, before)
            self._hasty = True
        elif now - channel.spoke > KEEP_ALIVE and not before.inside:
            self._send_all(channel, _COMMENT, before)
        else:
            return
        channel.spoke = now

    def _send_all(self, channel: _Channel, data: bytes, before: Place) -> None:
        length, over = len(data), channel.place == END
        for follower in list(channel.in_step):
            try:
                sent = follower.sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._drop(follower)
                continue
            if sent < length:
                self._leave_behind(follower, before, sent, data is _COMMENT)
            elif over:
                self._drop(follower)

    def _leave_behind(self, follower: _Follower, place: Place, sent: int, comment: bool) -> None:
        """Move one that did not take all; half a comment cannot be completed, so it is dropped."""
        if comment and sent:
            self._drop(follower)
            return
        follower.place, follower.sent = place, sent
        follower.channel.in_step.discard(follower)
        follower.channel.behind.add(follower)
        self._stick(follower)

    def _advance(self, follower: _Follower, known: dict[Place, tuple[bytes, Place]]) -> None:
        """Send the next chunk to a follower that is behind."""
        channel, place = follower.channel, follower.place
        try:
            if place not in known:
                known[place] = channel.feed.frames(place)
        except Forgotten:
            self._drop(follower)
            return
        data, after = known[place]
        if not data and channel.in_step and after != channel.place:
            self._keep_alive(follower)
            return
        try:
            follower.sent += follower.sock.send(memoryview(data)[follower.sent :]) if data else 0
        except BlockingIOError:
            self._stick(follower)
            return
        except OSError:
            self._drop(follower)
            return
        if follower.sent < len(data):
            self._stick(follower, again=True)
            return
        follower.place, follower.sent, follower.spoke = after, 0, time.monotonic()
        self._free(follower)
        self._hasty = self._hasty or bool(data)
        if after == END:
            self._drop(follower)
        elif not channel.in_step or after == channel.place:
            channel.behind.discard(follower)
            if not channel.in_step:
                channel.place, channel.spoke = after, follower.spoke
            channel.in_step.add(follower)

    def _keep_alive(self, follower: _Follower) -> None:
        """Send a comment to one that waits at a place of its own, as after the end of the log."""
        now = time.monotonic()
        if follower.place.inside or now - follower.spoke <= KEEP_ALIVE:
            return
        follower.spoke = now
        try:
            whole = follower.sock.send(_COMMENT) == len(_COMMENT)
        except BlockingIOError:
            return
        except OSError:
            whole = False
        if not whole:
            self._drop(follower)

    def _stick(self, follower: _Follower, *, again: bool = False) -> None:
        """Wait until its send buffer has room; `again`: it has just taken something."""
        if follower.stuck_since is None:
            self._epoll.modify(follower.sock, _HEAR | select.EPOLLOUT)
        if follower.stuck_since is None or again:
            follower.stuck_since = time.monotonic()

    def _free(self, follower: _Follower) -> None:
        if follower.stuck_since is not None:
            follower.stuck_since = None
            self._epoll.modify(follower.sock, _HEAR)

    def _drop_stuck(self) -> None:
        """Drop the followers that have taken nothing for too long."""
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + _CHECK_SECONDS
        for channel in list(self._channels.values()):
            for follower in list(channel.behind):
                since = follower.stuck_since
                if since is not None and now - since > SEND_SECONDS:
                    self._drop(follower)

    def _attend(self, follower: _Follower, events: int) -> None:
        """Handle events of its socket: room to send, an end, or bytes, which are ignored."""
        if events & ~select.EPOLLOUT:
            try:
                gone = not follower.sock.recv(4096)
            except BlockingIOError:
                gone = False
            except OSError:
                gone = True
            if gone:
                self._drop(follower)
                return
        if events & select.EPOLLOUT:
            self._guard(follower.channel, lambda _: self._advance(follower, {}))

    def _drop(self, follower: _Follower) -> None:
        if self._followers.pop(follower.sock.fileno(), None) is None:
            return
        channel = follower.channel
        channel.in_step.discard(follower)
        channel.behind.discard(follower)
        self._epoll.unregister(follower.sock)
        with contextlib.suppress(OSError):
            follower.sock.shutdown(socket.SHUT_WR)
        follower.sock.close()
        follower.done()
        if not (channel.in_step or channel.behind):
            del self._channels[channel.key]
            channel.feed.close()
