"""What systemd is told, over a real datagram socket, and what the journal gets."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Valet, hung_watcher, program, until

from pv_lib.system.notify import ALIVE_SECONDS


class Manager:
    """systemd's end of the socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.said: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(20)

    def await_line(self, line: str) -> str:
        """The next message with a line that matches; TimeoutError without one for 20 s."""
        while True:
            text = self._socket.recv(4096).decode()
            self.said.append(text)
            if re.search(f"^{line}$", text, re.MULTILINE):
                return text

    def forget(self) -> None:
        """What was said so far."""
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self._socket.recv(4096):
                pass

    def silent_for(self, seconds: float) -> bool:
        self._socket.settimeout(seconds)
        try:
            return not self._socket.recv(4096)
        except TimeoutError:
            return True


@pytest.fixture
def manager(tmp_path: Path) -> Manager:
    return Manager(tmp_path / "notify")


@pytest.fixture
def valet(tmp_path: Path, manager: Manager) -> Iterator[Valet]:
    found = Valet(tmp_path / "root", program(), NOTIFY_SOCKET=str(manager.path))
    yield found
    found.clear()


def test_ready_counts_alive_and_stopping(valet: Valet, manager: Manager) -> None:
    valet.start()
    manager.await_line("READY=1")
    assert valet.get("/api/v1/healthz")["status"] == "ok"
    job_id = valet.submit("fake: wait go")["job_id"]
    text = manager.await_line("STATUS=0 created, 1 running, 0 succeeded, 0 failed, 0 aborted")
    assert text.startswith("WATCHDOG=1\n")
    environ = Path(f"/proc/{valet.job(job_id)['pid']}/environ").read_bytes()
    assert b"PV_JOB_ID=" in environ and b"NOTIFY_SOCKET" not in environ
    valet.stop()
    manager.await_line("STOPPING=1")


def test_a_watcher_without_http_says_so_too(valet: Valet, manager: Manager) -> None:
    valet.start("watch")
    manager.await_line("READY=1")
    manager.await_line("WATCHDOG=1")


def test_http_without_a_watcher_feeds_the_watchdog_itself(valet: Valet, manager: Manager) -> None:
    valet.start("serve", "--no-watcher")
    manager.await_line("READY=1")
    manager.await_line("WATCHDOG=1")


@pytest.mark.long
def test_a_long_poll_interval_starves_no_watchdog(valet: Valet, manager: Manager) -> None:
    valet.environ["PV_POLL_INTERVAL_SECONDS"] = "3600"
    valet.start()
    manager.await_line("WATCHDOG=1")
    manager.await_line("WATCHDOG=1")


@pytest.mark.long
def test_a_watcher_that_hangs_feeds_it_no_more(valet: Valet, manager: Manager) -> None:
    server = valet.start()
    manager.await_line("WATCHDOG=1")
    with hung_watcher(server.popen.pid):
        until(lambda: not valet.get("/api/v1/status")["watcher"]["alive"], "the hang told")
        assert valet.get("/api/v1/healthz")["status"] == "ok"
        manager.forget()
        assert manager.silent_for(ALIVE_SECONDS + 1)


def test_an_address_that_nobody_listens_on_stops_nobody(valet: Valet) -> None:
    valet.environ["NOTIFY_SOCKET"] = "@nobody-listens-here"
    valet.start()
    assert valet.await_end(valet.submit("x")["job_id"])["state"] in ("succeeded", "failed")


def test_the_access_log_is_off_unless_asked_for(valet: Valet) -> None:
    server = valet.start()
    valet.get("/api/v1/jobs")
    assert "/api/v1/jobs" not in server.said
    server.stop()
    valet.environ["PV_ACCESS_LOG"] = "on"
    server = valet.start()
    valet.get("/api/v1/jobs?state=running")
    valet.ask("GET", "/%1b[31m/nothing")
    server.await_line(r"127\.0\.0\.1 GET /api/v1/jobs\?state=running: 200 in \d+\.\d ms\n")
    server.await_line(r"127\.0\.0\.1 GET /%1b\[31m/nothing: 404 in \d+\.\d ms\n")
    with socket.create_connection(("127.0.0.1", valet.port)) as end:
        end.sendall(b"\x1b[31m\r\n\r\n")
        assert end.recv(100).startswith(b"HTTP/1.1 400 ")
    server.await_line(r"127\.0\.0\.1 what is no request: 400 in \d+\.\d ms\n")
    assert "\x1b" not in server.said


def test_the_journal_gets_priorities(valet: Valet) -> None:
    log = valet.root / "server.log"
    log.touch()
    valet.environ["JOURNAL_STREAM"] = f"{log.stat().st_dev}:{log.stat().st_ino}"
    server = valet.start()
    job_id = valet.submit("x")["job_id"]
    valet.await_end(job_id)
    server.await_line(rf"<6>job {job_id}: started ")
    server.await_line(rf"<6>job {job_id}: (succeeded|failed) ")
    assert all(re.match(r"<[3-7]>", line) for line in server.said.splitlines())
    valet.environ["PV_BIND_PORT"] = str(valet.port)
    with contextlib.suppress(AssertionError):
        valet.start()
    assert "<3>pv: PV_BIND_HOST=127.0.0.1 " in server.said


def test_a_journal_that_stderr_does_not_lead_to_gets_none(valet: Valet) -> None:
    valet.environ["JOURNAL_STREAM"] = "8:1"
    assert not re.search("^<", valet.start().said, re.MULTILINE)
