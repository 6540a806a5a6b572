"""What clients can take of the server at most, and that the others never notice."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from harness import DEADLINE, REPO, Valet, until
from needs import descriptors

from pv_lib.httpd.gate import Gate
from pv_lib.httpd.limits import MAX_CONNECTIONS, Limits, Quota
from pv_lib.httpd.server import Server
from pv_lib.httpd.wire import Request, Response
from pv_lib.system.journal import Journal

HEAD = b"GET /api/v1/healthz HTTP/1.1\r\nHost: localhost\r\n"
BODY = (
    b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 500\r\n\r\n"
)
FIXED_THREADS = 8  # main, accept, watcher, follow and a few that come and go


@contextlib.contextmanager
def connected(valet: Valet, *sent: bytes) -> Iterator[list[socket.socket]]:
    """A connection for each of `sent`, which it has sent."""
    with contextlib.ExitStack() as stack:
        clients = []
        for data in sent:
            client = socket.create_connection(("127.0.0.1", valet.port), timeout=DEADLINE)
            stack.enter_context(client)
            client.sendall(data)
            clients.append(client)
        yield clients


def read_all(client: socket.socket) -> bytes:
    data = bytearray()
    with contextlib.suppress(ConnectionError):
        while more := client.recv(65536):
            data += more
    return bytes(data)


def test_500_slow_and_idle_clients_stop_nobody_and_leave_nothing(valet: Valet) -> None:
    before = valet.at_rest()
    sent = [b"", b"GET /", HEAD, BODY, HEAD + b"\r\n"] * 100
    with connected(valet, *sent) as clients:
        for _ in range(50):
            assert valet.ask("GET", "/api/v1/healthz").status == 200
        job_id = valet.submit("fake: say x")["job_id"]
        assert valet.held[0] <= MAX_CONNECTIONS + FIXED_THREADS
        limits = valet.get("/api/v1/status")["limits"]
        assert 200 < limits["connections"]["now"] <= limits["connections"]["most"]
        assert valet.await_end(job_id)["state"] == "succeeded"
        strangers = [client for number, client in enumerate(clients) if number % 5 < 3]
        gave_way = [read_all(client) for client in strangers[:100]]
        for number, data in enumerate(gave_way):  # one that had asked for nothing hears nothing
            assert data.startswith(b"HTTP/1.1 503 ") if number % 3 else not data
            assert b"\r\nRetry-After: 1\r\n" in data or not number % 3
        for client in clients[-50:][4::5]:  # those that were served last keep their connection
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
            client.sendall(HEAD + b"\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
    until(lambda: valet.held == before, f"{before} threads and files")


def test_clients_that_were_served_and_stay_do_not_keep_others_out(
    quick: Callable[..., Valet],
) -> None:
    valet = quick(MAX_CONNECTIONS=8)
    with connected(valet, *[HEAD + b"\r\n"] * 20) as served:
        for client in served[-4:]:
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        with connected(valet, *[HEAD] * 4) as newcomers:
            for client in newcomers:
                client.sendall(b"\r\n")
                assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_clients_that_ask_and_do_not_read_make_room(quick: Callable[..., Valet]) -> None:
    valet = quick(MAX_CONNECTIONS=4)
    with connected(valet, *[b""] * 4) as deaf:
        for client in deaf:
            client.setblocking(False)
            request = b"GET /api/v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
            with contextlib.suppress(BlockingIOError):
                while True:
                    client.send(request * 100)
        for _ in range(8):
            assert valet.ask("GET", "/api/v1/healthz").status == 200


def test_a_first_download_is_not_cut_for_clients_that_say_nothing(
    quick: Callable[..., Valet],
) -> None:
    valet = quick(MAX_CONNECTIONS=8)
    job_id = valet.submit("fake: say x")["job_id"]
    valet.await_end(job_id)
    log = valet.runs / job_id / "job.log"
    log.write_bytes((b"x" * 99 + b"\n") * (1 << 19))
    request = f"GET /api/v1/jobs/{job_id}/log?offset=0&ansi=raw HTTP/1.1\r\nHost: localhost\r\n"
    with connected(valet, f"{request}Connection: close\r\n\r\n".encode()) as (client,):
        got = client.recv(1)
        with connected(valet, *[b""] * 40):  # each makes the oldest of the others go
            got += client.recv(1 << 20)
            assert valet.ask("GET", "/api/v1/healthz").status == 200
            got += read_all(client)
    assert got.partition(b"\r\n\r\n")[2] == log.read_bytes()


def test_git_works_beside_more_streams_than_select_can_count(
    make_valet: Callable[..., Valet],
) -> None:
    valet = make_valet()
    valet.start()
    waits = valet.submit("fake: wait go")["job_id"]
    follow = f"GET /api/v1/jobs/{waits}/log/stream HTTP/1.1\r\nHost: localhost\r\n\r\n"
    if valet.get("/api/v1/status")["limits"]["streams"]["most"] < 2200:
        pytest.skip("needs 2,700 open files: ulimit -n")
    with descriptors(1200), connected(valet, *[follow.encode()] * 1050):
        until(lambda: valet.get("/api/v1/status")["limits"]["streams"]["now"] == 1050, "streams")
        (valet.repo / "go").touch()
        record = valet.await_end(valet.submit("fake: write new.txt x")["job_id"])
        assert (record["state"], record["reason"]) == ("succeeded", "completed")


def test_a_slow_drip_ends_at_the_deadline(quick: Callable[..., Valet]) -> None:
    valet = quick(HEAD_SECONDS=0.5, BODY_SECONDS=0.7, IDLE_SECONDS=0.6)
    before = valet.at_rest()
    over = threading.Event()
    with connected(valet, HEAD, BODY, b"") as (head, body, idle):

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not over.wait(0.05):
                    head.sendall(b"X")
                    body.sendall(b" ")

        dripping = threading.Thread(target=drip)
        dripping.start()
        assert b" 408 " in read_all(head)[:13]
        assert b" 408 " in read_all(body)[:13]
        assert read_all(idle) == b""
        over.set()
        dripping.join()
    until(lambda: valet.held == before, "everything given back")


@pytest.mark.alone
def test_a_client_that_does_not_read_is_let_go(quick: Callable[..., Valet]) -> None:
    valet = quick(SEND_SECONDS=0.5, SEND_RATE=1 << 40)
    job_id = valet.submit("fake: say x")["job_id"]
    valet.await_end(job_id)
    until(lambda: valet.alone, "all others gone")
    with (valet.runs / job_id / "job.log").open("ab") as log:
        log.write((b"x" * 99 + b"\n") * (1 << 20))
    for query in ("ansi=raw", "ansi=strip"):
        request = (
            f"GET /api/v1/jobs/{job_id}/log?offset=0&{query} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        with connected(valet, request.encode()) as (client,):
            assert client.recv(1) == b"H"
            assert not valet.alone
            until(lambda: valet.alone, "the connection given up")
            assert len(read_all(client)) < 100 << 20


def test_streams_have_a_cap_for_all_and_for_each_client(quick: Callable[..., Valet]) -> None:
    valet = quick(_STREAMS=4, MAX_CONNECTIONS=64)
    job_id = valet.submit("fake: wait go")["job_id"]
    path = f"/api/v1/jobs/{job_id}/log/stream"

    def follow(source: str) -> socket.socket:
        address = ("127.0.0.1", valet.port)
        client = socket.create_connection(address, DEADLINE, source_address=(source, 0))
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return client

    with contextlib.ExitStack() as stack:
        first = [stack.enter_context(follow("127.0.0.2")) for _ in range(3)]
        heads = [client.recv(65536) for client in first]
        assert sorted(head.split(b" ")[1] for head in heads) == [b"200", b"200", b"503"]
        assert b"\r\nRetry-After: 1\r\n" in next(head for head in heads if b" 503 " in head)
        others = [stack.enter_context(follow(f"127.0.0.{n}")) for n in (3, 4, 5)]
        assert sorted(c.recv(65536).split(b" ")[1] for c in others) == [b"200", b"200", b"503"]
        shown = valet.get("/api/v1/status")["limits"]["streams"]
        assert shown == {"now": 4, "most": 4, "refused": 2, "most_per_client": 2}
        assert valet.ask("GET", path.replace("stream", "stream?ansi=no")).status == 400
    until(lambda: valet.get("/api/v1/status")["limits"]["streams"]["now"] == 0, "all given back")
    with follow("127.0.0.2") as again:
        assert b" 200 " in again.recv(65536)
        head = f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        with connected(valet, head) as (only_head,):
            assert b" 200 " in read_all(only_head)
        until(lambda: valet.get("/api/v1/status")["limits"]["streams"]["now"] == 1, "HEAD's place")
    (valet.repo / "go").touch()


def test_bodies_in_memory_have_a_cap(quick: Callable[..., Valet]) -> None:
    valet = quick({"PV_MAX_PROMPT_BYTES": "1024"}, _BODIES=1)
    most = valet.get("/api/v1/status")["limits"]["body_bytes"]["most"]
    large = most * 2 // 3
    start = BODY.replace(b"500", b"%d" % large)
    data = b" " * (large - 1)
    with connected(valet, start, start + data) as (declared, slow):
        until(
            lambda: valet.get("/api/v1/status")["limits"]["body_bytes"]["now"], "a body on its way"
        )
        with connected(valet, start) as (second,):
            with contextlib.suppress(ConnectionError):
                second.sendall(data)
            assert b" 503 " in read_all(second)[:13]
        assert valet.get("/api/v1/status")["limits"]["body_bytes"]["now"] == large - 1
        declared.sendall(b"{")  # it has only said that it is large
        small = {"repo": REPO, "branch": "main", "markdown_text": "fake: say x"}
        assert valet.post_json("/api/v1/jobs", small).status == 201
        slow.shutdown(socket.SHUT_WR)
        assert b" 400 " in read_all(slow)[:13]
    until(lambda: valet.get("/api/v1/status")["limits"]["body_bytes"]["now"] == 0, "given back")


def test_when_all_connections_are_at_work_a_new_one_is_told_to_come_back() -> None:
    go, limits = threading.Event(), Limits(1000)
    limits.connections = Quota(3)
    busy = threading.Semaphore(0)

    def slow(_: Request) -> Response:
        busy.release()
        go.wait(DEADLINE)
        return Response(200, b"{}")

    gate = Gate(frozenset({"localhost"}), None)
    server = Server(
        ("127.0.0.1", 0), slow, gate, limits, Journal(priorities=False), access_log=False
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(4):
            client = socket.create_connection(("127.0.0.1", server.server_port), DEADLINE)
            clients.append(stack.enter_context(client))
            client.sendall(HEAD + b"Connection: close\r\n\r\n")
            if len(clients) < 4:
                assert busy.acquire(timeout=DEADLINE)
        answer = read_all(clients[3])
        assert answer.startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: 1\r\n" in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == 503
        assert limits.connections.shown() == {"now": 3, "most": 3, "refused": 1}
        go.set()
        assert all(read_all(client).startswith(b"HTTP/1.1 200 ") for client in clients[:3])
    until(lambda: limits.connections.now == 0, "all given back")
    server.stop()
    thread.join()


def test_a_quota_counts_for_all_and_for_each() -> None:
    quota = Quota(3, 2)
    assert quota.take(1, "a") and quota.take(1, "a") and not quota.take(1, "a")
    assert quota.take(1, "b") and not quota.take(1, "c")
    quota.release(1, "a")
    assert quota.take(1, "c") and not quota.take(1, "c")
    for client in ("a", "b", "c"):
        quota.release(1, client)
    assert quota.shown() == {"now": 0, "most": 3, "refused": 0, "most_per_client": 2}
    assert not Quota(5).take(6) and Quota(5).take(5)
