"""The log over HTTP: with and without what a terminal obeys, short and long."""

from __future__ import annotations

import http.client
import re
import shutil
import socket

from harness import DEADLINE, Valet

COLOURED = "\x1b[31mred\x1b[0m \x1b]0;title\x07end"


def test_escapes_are_left_out_unless_asked_for(valet: Valet) -> None:
    job_id = valet.submit(f"fake: plain\nfake: say {COLOURED}")["job_id"]
    valet.await_end(job_id)
    path = f"/api/v1/jobs/{job_id}/log"
    assert "\x1b[31mred" in (valet.runs / job_id / "job.log").read_text()
    stripped, raw = (valet.ask("GET", f"{path}?ansi={how}") for how in ("strip", "raw"))
    assert valet.ask("GET", path).body == stripped.body
    assert "red end\n" in stripped.body.decode() and b"\x1b" not in stripped.body
    assert raw.body == (valet.runs / job_id / "job.log").read_bytes()
    for name in ("X-Log-Offset", "X-Next-Offset"):
        assert stripped.headers[name] == raw.headers[name]
    streams = []
    for query in ("", "?ansi=strip"):
        connection = http.client.HTTPConnection("127.0.0.1", valet.port, timeout=DEADLINE)
        connection.request("GET", f"{path}/stream{query}")
        streams.append(connection.getresponse().read().decode())
        connection.close()
    assert "\x1b[31mred" in streams[0] and "\x1b" not in streams[1]
    ids = [re.findall(r"(?m)^id: \d+$", text) for text in streams]
    assert ids[0] == ids[1] and "data: red end\n" in streams[1]


def test_the_end_of_a_log_is_the_files_own_each_time(valet: Valet) -> None:
    job_id = valet.submit("fake: say x")["job_id"]
    valet.await_end(job_id)
    path, log = f"/api/v1/jobs/{job_id}/log?lines=1", valet.runs / job_id / "job.log"
    for text in ("one\n", "two\n", "three and more\n"):  # the same size twice
        for _ in range(2):
            log.write_text(text)
            assert valet.ask("GET", path).body.decode() == text
            assert valet.ask("GET", path).body.decode() == text
    shutil.rmtree(log.parent)
    assert valet.ask("GET", path).status == 404


def test_a_stream_of_many_short_lines_comes_whole_piece_by_piece(valet: Valet) -> None:
    job_id = valet.submit("fake: say x")["job_id"]
    valet.await_end(job_id)
    log = valet.runs / job_id / "job.log"
    log.write_bytes(b"\n" * 100_000 + b"a\r\rb\n" * 1000)
    events = list(valet.events(job_id))
    assert [data for _, _, data, _ in events[:-1]] == [""] * 100_000 + ["a", "", "b"] * 1000
    ids = [int(number) for _, number, _, _ in events[:-1]]
    assert ids == sorted(set(ids)) and ids[-1] == log.stat().st_size
    assert events[-1][0] == "end"


def test_a_long_log_comes_whole(valet: Valet) -> None:
    job_id = valet.submit("fake: say x")["job_id"]
    valet.await_end(job_id)
    log = valet.runs / job_id / "job.log"
    lines = [f"\x1b[3{n % 8}mline {n}\x1b[0m größe\r\n".encode() for n in range(60_000)]
    lines[30_000:30_000] = [b"\x00" * (1 << 20), b"\n"]  # a piece of which nothing is left
    log.write_bytes(b"".join(lines))
    wanted = b"".join(re.sub(rb"\x1b\[\d+m|\x00", b"", line) for line in lines)
    path = f"/api/v1/jobs/{job_id}/log?offset=0"
    answer = valet.ask("GET", path)
    assert answer.headers["Transfer-Encoding"] == "chunked" and answer.body == wanted
    assert valet.ask("GET", f"{path}&ansi=raw").body == log.read_bytes()
    assert valet.ask("HEAD", path).body == b""
    two = valet.ask("GET", f"{path}&lines=2")
    assert two.body.decode() == "line 0 größe\r\nline 1 größe\r\n"
    assert two.headers["X-Next-Offset"] == str(len(lines[0] + lines[1]))
    with socket.create_connection(("127.0.0.1", valet.port), timeout=DEADLINE) as old:
        old.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        data = b""
        while more := old.recv(1 << 20):
            data += more
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding" not in head and body == wanted
