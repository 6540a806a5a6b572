"""Live streams: many at once, slow ones, long lines; and the stream of the records' changes."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import DEADLINE, Valet, until

from pv_lib.api.feeds import LogFeed, split_lines
from pv_lib.httpd.follow import END, Place
from pv_lib.jobs.index import Index
from pv_lib.jobs.store import Runs


@pytest.fixture
def unwatched(make_valet: Callable[..., Valet]) -> Valet:
    """A server without a watcher, which at its start would take up jobs that run by hand."""
    valet = make_valet()
    valet.start("serve", "--no-watcher")
    return valet


def open_stream(
    valet: Valet, path: str, *, buffer: int | None = None, last_event_id: str | None = None
) -> socket.socket:
    client = socket.socket()
    if buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.settimeout(DEADLINE)
    client.connect(("127.0.0.1", valet.port))
    last = f"Last-Event-ID: {last_event_id}\r\n" if last_event_id else ""
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{last}\r\n".encode())
    return client


def body(client: socket.socket) -> bytes:
    """All that comes until the server ends the stream, without the head."""
    data = bytearray()
    while more := client.recv(1 << 16):
        data += more
    return bytes(data.partition(b"\r\n\r\n")[2])


def lines_of(stream: bytes) -> tuple[list[str], list[int]]:
    """The lines that a client makes of a stream, and their ids; comments are left out."""
    lines, ids = [], []
    for event in stream.decode().split("\n\n"):
        fields = dict(re.findall(r"(?m)^(event|data|id): (.*)$", event))
        if "data" in fields and "event" not in fields:
            lines.append(fields["data"])
            ids.append(int(fields["id"]))
    return lines, ids


def resident(valet: Valet) -> int:
    """Bytes."""
    text = Path(f"/proc/{valet.processes[-1].popen.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert found
    return int(found[1]) << 10


def running_by_hand(valet: Valet, name: str, log: bytes) -> Path:
    run = valet.runs / name
    run.mkdir()
    (run / "job.log").write_bytes(log)
    (run / "job.json").write_text('{"state": "running"}')
    return run


def end_by_hand(run: Path) -> None:
    (run / "new").write_text('{"state": "succeeded"}')
    (run / "new").rename(run / "job.json")


def streams(valet: Valet) -> int:
    return int(valet.get("/api/v1/status")["limits"]["streams"]["now"])


def test_hundreds_follow_a_running_job_and_each_gets_every_line_once(unwatched: Valet) -> None:
    run = running_by_hand(unwatched, "by-hand", b"before\n" * 3000)
    clients = [open_stream(unwatched, "/api/v1/jobs/by-hand/log/stream") for _ in range(200)]
    found: list[bytes] = []
    readers = [threading.Thread(target=lambda c=c: found.append(body(c))) for c in clients]
    for reader in readers:
        reader.start()
    until(lambda: streams(unwatched) == 200, "all streams")
    with (run / "job.log").open("a") as log:
        for number in range(300):
            print(f"line {number}", file=log, flush=True)
            if number == 150:  # one that comes in the middle
                clients.append(open_stream(unwatched, "/api/v1/jobs/by-hand/log/stream"))
                readers.append(threading.Thread(target=lambda: found.append(body(clients[-1]))))
                readers[-1].start()
    end_by_hand(run)
    for reader in readers:
        reader.join()
    wanted = ["before"] * 3000 + [f"line {number}" for number in range(300)]
    assert len(found) == 201
    for stream in found:
        assert lines_of(stream)[0] == wanted
        assert stream.endswith(b"\n\n") and b"event: end\ndata: {" in stream
    until(lambda: streams(unwatched) == 0, "all given back")


@pytest.mark.long
def test_one_that_does_not_read_costs_nothing_delays_nobody_and_misses_nothing(
    quick: Callable[..., Valet],
) -> None:
    valet = quick(SEND_SECONDS=600)  # on a busy machine, reading 40 MB can take over a minute
    valet.stop()
    valet.start("serve", "--no-watcher")
    run = running_by_hand(valet, "slow", b"first\n")
    path = "/api/v1/jobs/slow/log/stream"
    slow = [open_stream(valet, path, buffer=4096) for _ in range(40)]
    until(lambda: streams(valet) == 40, "the slow ones")
    before = resident(valet)
    text = "".join(f"{number:07d} {'x' * 91}\n" for number in range(400_000))
    with (run / "job.log").open("a") as log:
        log.write(text)
    reader = open_stream(valet, path)
    seen = b""
    while b"0399999 xx" not in seen:
        seen = seen[-200:] + reader.recv(1 << 20)
    grown = resident(valet) - before
    assert grown < 8 << 20, f"{grown} bytes for 40 slow followers of 40 MB"
    for client in slow[1:]:
        client.close()
    end_by_hand(run)
    lines, ids = lines_of(body(slow[0]))
    assert ["first", *text.splitlines()] == lines
    assert ids == [6 + 100 * number for number in range(400_001)]
    reader.close()


@pytest.mark.parametrize("ansi", ["raw", "strip"])
def test_a_line_of_many_megabytes_comes_whole_and_is_not_held(unwatched: Valet, ansi: str) -> None:
    line = "\x1b[31mé€𝄞" * (1 << 21)
    run = running_by_hand(unwatched, "long", f"short\n{line}\r\nlast".encode())
    client = open_stream(unwatched, f"/api/v1/jobs/long/log/stream?ansi={ansi}")
    before = resident(unwatched)
    until(lambda: client.recv(1 << 16, socket.MSG_PEEK), "the stream")
    end_by_hand(run)
    lines, ids = lines_of(body(client))
    wanted = line if ansi == "raw" else line.replace("\x1b[31m", "")
    assert [len(found) for found in lines] == [5, len(wanted), 4]
    assert lines == ["short", wanted, "last"]
    size = len(line.encode())
    assert ids == [6, 6 + size + 2, 6 + size + 6]
    assert resident(unwatched) - before < 8 << 20


def test_what_is_not_utf_8_and_lone_ends_of_lines_reach_every_follower(unwatched: Valet) -> None:
    run = running_by_hand(unwatched, "odd", b"one\rtwo\r\nthree\n\n\xff\xe2\x82")
    client = open_stream(unwatched, "/api/v1/jobs/odd/log/stream")
    end_by_hand(run)
    assert lines_of(body(client))[0] == ["one", "two", "three", "", "\ufffd\ufffd"]


def test_a_stream_of_a_deleted_job_ends_and_says_so(unwatched: Valet) -> None:
    run = running_by_hand(unwatched, "gone", b"one\n")
    client = open_stream(unwatched, "/api/v1/jobs/gone/log/stream")
    until(lambda: b"data: one" in client.recv(1 << 16, socket.MSG_PEEK), "the line")
    shutil.rmtree(run)
    assert b'"reason": "deleted"' in body(client)


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize(
    "data", [b"", b"a", b"a\n", b"a\r", b"a\r\n", b"\r\r\n\n", b"a\x0bb\x85c\nd", b"\n\r"]
)
def test_lines_end_at_three_places_only(data: bytes, final: bool) -> None:
    lines = split_lines(data, final=final)
    whole = re.split(rb"\r\n|\n|\r", data)
    if not final and data.endswith(b"\r"):
        whole = [*re.split(rb"\r\n|\n|\r", data[:-1])[:-1], b""]
    wanted = whole[:-1] if not (final and whole[-1]) else whole
    assert [line for line, _ in lines] == wanted
    assert all(end <= len(data) for _, end in lines)


def test_the_same_place_gives_the_same_bytes_however_far_the_log_has_grown(tmp_path: Path) -> None:
    """What a follower took a part of is framed again from its place."""
    index = Index(Runs(tmp_path))
    run = tmp_path / "job"
    run.mkdir()
    (run / "job.json").write_text('{"state": "running"}')
    text = b"short\n" + b"long" * 50_000 + b"\r\n" + "é\n".encode() * 40_000 + b"no end"
    before: dict[Place, bytes] = {}
    feed = LogFeed(index, "job", strip=False)
    for size in range(0, len(text) + 1, 7777):
        (run / "job.log").write_bytes(text[:size])
        feed.look()
        place = Place(0)
        while True:
            data, after = feed.frames(place)
            known = before.get(place, b"")
            assert data.startswith(known)
            before[place] = data
            if after == place:
                break
            place = after
    feed.close()
    (run / "job.log").write_bytes(text)
    end_by_hand(run)
    index.look()
    feed = LogFeed(index, "job", strip=False)
    feed.look()
    place, whole = Place(0), b""
    while place != END:
        data, place = feed.frames(place)
        whole += data
    feed.close()
    lines = lines_of(whole)[0]
    assert "\n".join(lines) == text.decode().replace("\r\n", "\n")


def changes(
    valet: Valet, last_event_id: str | None = None
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """The stream of changes as (event, id, data), from when it is open."""
    connection = http.client.HTTPConnection("127.0.0.1", valet.port, timeout=DEADLINE)
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    connection.request("GET", "/api/v1/events", headers=headers)
    response = connection.getresponse()
    assert response.status == 200 and response.headers["Content-Type"] == "text/event-stream"

    def events() -> Iterator[tuple[str, int, dict[str, Any]]]:
        fields: dict[str, str] = {}
        with contextlib.closing(connection):
            for raw in response:
                name, _, value = raw.decode().rstrip("\n").partition(": ")
                if name:
                    fields[name] = value
                elif fields:
                    yield fields["event"], int(fields["id"]), json.loads(fields["data"])
                    fields = {}

    return events()


def test_every_change_of_a_record_is_streamed_as_the_record_is_shown(valet: Valet) -> None:
    stream = changes(valet)
    job_id = valet.submit("fake: say hello\n")["job_id"]
    seen = []
    for name, number, record in stream:
        assert name == "job" and record["job_id"] == job_id
        seen.append((number, record))
        if record["state"] == "succeeded":
            break
    states = list(dict.fromkeys(record["state"] for _, record in seen))
    assert states == ["created", "running", "succeeded"]
    numbers = [number for number, _ in seen]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    shown = valet.job(job_id)
    del shown["age_seconds"], seen[-1][1]["age_seconds"]
    assert seen[-1][1] == shown
    shutil.rmtree(valet.runs / job_id)
    assert next(stream) == ("gone", numbers[-1] + 1, {"job_id": job_id})
    again = changes(valet, str(numbers[1]))  # as a client that lost the stream there
    assert [next(again)[1] for _ in numbers[2:]] == numbers[2:]
    assert next(again)[0] == "gone"


def test_changes_too_far_back_or_of_another_server_are_a_reset(valet: Valet) -> None:
    for odd in ("1", str(1 << 49)):
        stream = changes(valet, odd)
        name, number, _ = next(stream)
        assert name == "reset"
        job_id = valet.submit("fake: say x\n")["job_id"]
        assert next(stream)[1:2] == (number + 1,)
        valet.await_end(job_id)
    assert valet.ask("GET", "/api/v1/events", headers={"Last-Event-ID": "x"}).status == 400


def test_what_another_process_changes_is_streamed_too(unwatched: Valet) -> None:
    stream = changes(unwatched)
    run = running_by_hand(unwatched, "by-hand", b"")
    name, _, record = next(stream)
    assert (name, record["state"]) == ("job", "running")
    end_by_hand(run)
    assert next(stream)[2]["state"] == "succeeded"


def test_all_streams_end_with_a_hint_when_the_server_stops(unwatched: Valet) -> None:
    running_by_hand(unwatched, "on", b"one\n")
    paths = ("/api/v1/jobs/on/log/stream", "/api/v1/events")
    clients = [open_stream(unwatched, path) for path in paths for _ in range(20)]
    until(lambda: streams(unwatched) == 40, "all streams")
    until(lambda: b"data: one" in clients[0].recv(1 << 16, socket.MSG_PEEK), "the line")
    process = unwatched.processes[-1]
    process.popen.terminate()
    for client in clients:
        assert b"retry: " in body(client)
    assert process.popen.wait(DEADLINE) == 0
