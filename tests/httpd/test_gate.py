"""Who gets in: a matrix over what browsers, rebound names and strangers send, and the token."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.cookies import SimpleCookie
from pathlib import Path
from typing import NamedTuple

import pytest
from harness import REPO, Answer, Process, Valet, program

from pv_lib.errors import Unauthorized
from pv_lib.httpd.connection import GUESS_SECONDS
from pv_lib.httpd.gate import COOKIE, COOKIE_SECONDS, Gate
from pv_lib.httpd.wire import parse_head

TOKEN = "the-right-token-0123456789"
WRONG = "the-wrong-token-0123456789"
FORM = "multipart/form-data; boundary=XX"


class Try(NamedTuple):
    """One request. Every field is a header's value, or None where it is not sent."""

    host: str
    origin: str | None
    site: str | None
    kind: str | None
    token: str | None
    action: str


HOSTS = ("127.0.0.1:{port}", "localhost", "evil.test:{port}", "127.0.0.1.evil.test")
ORIGINS = (None, "http://{host}", "http://evil.test", "http://127.0.0.1:1", "null", "")
SITES = (None, "none", "same-origin", "same-site", "cross-site", "odd")
KINDS = ("application/json", "text/markdown; charset=utf-8", FORM, "text/plain", None)
TOKENS = (None, f"Bearer {TOKEN}", f"Bearer {WRONG}", f"Basic {TOKEN}")


def matrix() -> Iterator[Try]:
    """Every host with every origin, site, kind and token for a submission; the same for an abort.

    Thinned where two headers are wrong at once: one of them would be enough.
    """
    for host, origin, site, kind, token in itertools.product(HOSTS, ORIGINS, SITES, KINDS, TOKENS):
        wrong = sum((HOSTS.index(host) > 1, ORIGINS.index(origin) > 1, SITES.index(site) > 2))
        if wrong + (KINDS.index(kind) > 2) + (TOKENS.index(token) > 1) < 2:
            yield Try(host, origin, site, kind, token, "submit")
        if wrong < 2 and kind is None:
            yield Try(host, origin, site, None, token, "abort")


def wanted(tried: Try, secured: bool) -> int:
    """What must come back, by the contract's order."""
    if HOSTS.index(tried.host) > 1:
        return 421
    if ORIGINS.index(tried.origin) > 1 or SITES.index(tried.site) > 2:
        return 403
    if tried.action == "submit" and KINDS.index(tried.kind) > 2:
        return 415
    if secured and tried.token != f"Bearer {TOKEN}":
        return 401
    return 201 if tried.action == "submit" else 200


def send(valet: Valet, number: int, tried: Try, job_id: str) -> Answer:
    host = tried.host.format(port=valet.port)
    headers = {
        "Host": host,
        "Origin": tried.origin.format(host=host) if tried.origin is not None else None,
        "Sec-Fetch-Site": tried.site,
        "Content-Type": tried.kind,
        "Authorization": tried.token,
    }
    given = {name: value for name, value in headers.items() if value is not None}
    text = f"fake: say {number}"
    if tried.action == "abort":
        return valet.ask("POST", f"/api/v1/jobs/{job_id}/abort", None, given)
    if tried.kind == FORM:
        parts = {"repo": REPO, "branch": "main", "files": text}
        body = "".join(
            f'--XX\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in parts.items()
        )
        return valet.ask("POST", "/api/v1/jobs/upload", f"{body}--XX--\r\n".encode(), given)
    if (tried.kind or "").startswith("text/markdown"):
        path = f"/api/v1/jobs?repo={REPO}&branch=main"
        return valet.ask("POST", path, text.encode(), given)
    plain = {"repo": REPO, "branch": "main", "markdown_text": text}
    return valet.ask("POST", "/api/v1/jobs", json.dumps(plain).encode(), given)


@pytest.mark.parametrize("secured", [False, True])
def test_no_mutation_gets_through_without_right(
    make_valet: Callable[..., Valet], secured: bool
) -> None:
    valet = make_valet(**({"PV_API_TOKEN": TOKEN} if secured else {}))
    valet.start("serve", "--no-watcher")  # everything that got in stays where it can be counted
    right = {"Content-Type": "text/markdown", "Authorization": f"Bearer {TOKEN}"}
    path = f"/api/v1/jobs?repo={REPO}&branch=main"
    victim = valet.ask("POST", path, b"fake: say victim", right).json["job_id"]
    tries = list(matrix())
    assert len(tries) > 400
    first_round = [n for n, tried in enumerate(tries) if wanted(tried, secured) != 200]
    let_in = {n for n in first_round if wanted(tries[n], secured) == 201}
    aborts = sorted(set(range(len(tries))) - set(first_round))
    with ThreadPoolExecutor(32) as pool:
        first = pool.map(lambda n: send(valet, n, tries[n], victim).status, first_round)
        answers = dict(zip(first_round, first, strict=True))
        assert not (valet.runs / victim / "ABORT").exists()
        rest = pool.map(lambda n: send(valet, n, tries[n], victim).status, aborts)
        answers |= dict(zip(aborts, rest, strict=True))
    assert not [(t, answers[n]) for n, t in enumerate(tries) if answers[n] != wanted(t, secured)]
    prompts = [path.read_text().split()[-1] for path in valet.inbox.rglob("*.prompt.md")]
    assert sorted(prompts) == sorted(["victim", *map(str, let_in)])
    assert aborts and (valet.runs / victim / "ABORT").exists()


def test_a_refusal_says_nothing_of_what_is_there(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet(PV_API_TOKEN=TOKEN)
    valet.start()
    for path in ("/api/v1/jobs", "/api/v1/jobs/x", "/api/v1/nothing", "/", "/api/v1/openapi.json"):
        answer = valet.ask("GET", path)
        assert answer.status == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
        assert set(answer.json) == {"type", "title", "status", "detail"}
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_a_wrong_token_costs_time_and_a_missing_one_does_not(
    make_valet: Callable[..., Valet],
) -> None:
    valet = make_valet(PV_API_TOKEN=TOKEN)
    valet.start()
    for headers in (
        {"Authorization": f"Bearer {WRONG}"},
        {"Authorization": TOKEN},
        {"Cookie": f"{COOKIE}=99999999999.{'0' * 64}"},
    ):
        began = time.monotonic()
        answer = valet.ask("GET", "/api/v1/jobs", headers=headers)
        assert answer.status == 401 and time.monotonic() - began >= GUESS_SECONDS
        assert WRONG not in answer.body.decode()
    good = {"Authorization": f"bearer {TOKEN}"}
    assert valet.ask("GET", "/api/v1/jobs", headers=good).status == 200
    assert WRONG not in valet.processes[-1].said and TOKEN not in valet.processes[-1].said


def test_a_session_opens_as_the_token_does_until_it_is_over(
    make_valet: Callable[..., Valet],
) -> None:
    valet = make_valet(PV_API_TOKEN=TOKEN)
    valet.start()
    token = {"Authorization": f"Bearer {TOKEN}"}
    assert valet.ask("POST", "/api/v1/session").status == 401
    answer = valet.ask("POST", "/api/v1/session", headers=token)
    morsel = SimpleCookie(answer.headers["Set-Cookie"])[COOKIE]
    assert answer.status == 204 and morsel["httponly"] and morsel["samesite"] == "Strict"
    assert TOKEN not in morsel.value and not morsel["secure"]
    cookie = {"Cookie": f"other=1; {COOKIE}={morsel.value}; more=2"}
    assert valet.ask("GET", "/api/v1/jobs", headers=cookie).status == 200
    valet.stop()
    valet.start()
    assert valet.ask("GET", "/api/v1/jobs", headers=cookie).status == 200
    assert valet.ask("POST", "/api/v1/session", headers=cookie).status == 401
    planted = f"{COOKIE}=99999999999.{'a' * 64}; {cookie['Cookie']}"  # by a page on another port
    assert valet.ask("GET", "/api/v1/jobs", headers={"Cookie": planted}).status == 200
    host = f"127.0.0.1:{valet.port}"
    by_tls = valet.ask("POST", "/api/v1/session", headers={**token, "Origin": f"https://{host}"})
    assert "; Secure" in by_tls.headers["Set-Cookie"]
    gone = valet.ask("DELETE", "/api/v1/session", headers=cookie)
    assert gone.status == 204 and f"{COOKIE}=; " in gone.headers["Set-Cookie"]
    assert "Max-Age=0" in gone.headers["Set-Cookie"]
    valet.stop()
    valet.environ["PV_API_TOKEN"] = WRONG
    valet.start()
    assert valet.ask("GET", "/api/v1/jobs", headers=cookie).status == 401


def test_a_session_ends_and_cannot_be_forged() -> None:
    gate = Gate(frozenset({"localhost"}), TOKEN)
    value = gate.session(1000.0) or ""
    end, _, mark = value.partition(".")

    def opens(value: str, now: float) -> bool:
        cookie = f"Cookie: {COOKIE}={value}"
        try:
            gate.check(parse_head(f"GET / HTTP/1.1\r\nHost: localhost\r\n{cookie}".encode()), now)
        except Unauthorized:
            return False
        return True

    assert opens(value, 1000.0) and opens(value, 1000.0 + COOKIE_SECONDS)
    assert not opens(value, 1001.0 + COOKIE_SECONDS)
    other = "1" if mark[-1] == "0" else "0"
    for forged in (f"{int(end) + 1}.{mark}", f"{end}.{mark[:-1]}{other}", f"0{end}.{mark}"):
        assert not opens(forged, 1000.0)
    for broken in (f"{end}.", f"{end}.{mark}0", f".{mark}", mark, "", f"{'9' * 5000}.{mark}"):
        assert not opens(broken, 1000.0)


def test_without_a_token_there_is_no_session_to_have(valet: Valet) -> None:
    answer = valet.ask("POST", "/api/v1/session")
    assert answer.status == 204 and "Set-Cookie" not in answer.headers


def test_every_answer_keeps_the_browser_out_of_mischief(valet: Valet) -> None:
    job_id = valet.submit("fake: say <script>alert(1)</script>")["job_id"]
    valet.await_end(job_id)
    for path in ("healthz", "nothing", f"jobs/{job_id}/log", f"jobs/{job_id}/prompt"):
        headers = valet.ask("GET", f"/api/v1/{path}").headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        policy = headers["Content-Security-Policy"].split("; ")
        assert {"default-src 'none'", "frame-ancestors 'none'", "form-action 'none'"} <= set(policy)
        assert not headers["Content-Type"].startswith("text/html")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_nothing_but_loopback_is_bound_without_a_token(
    make_valet: Callable[..., Valet], tmp_path: Path, host: str
) -> None:
    valet = make_valet(PV_BIND_HOST=host)
    process = Process([*program(), "serve"], valet.environ, tmp_path / "server.log")
    assert process.popen.wait(timeout=20) == 2
    assert f"PV_BIND_HOST={host} is reachable from the network" in process.said


def test_a_token_file_that_others_can_read_is_refused(
    make_valet: Callable[..., Valet], tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    valet = make_valet(PV_API_TOKEN_FILE=str(file))
    for mode in (0o640, 0o604, 0o644):
        os.chmod(file, mode)
        process = Process([*program(), "serve"], valet.environ, tmp_path / "server.log")
        assert process.popen.wait(timeout=20) == 2
        assert "only its owner can read" in process.said and TOKEN not in process.said
    os.chmod(file, 0o600)
    valet.start()
    assert valet.ask("GET", "/api/v1/jobs").status == 401
    good = {"Authorization": f"Bearer {TOKEN}"}
    assert valet.ask("GET", "/api/v1/jobs", headers=good).status == 200
