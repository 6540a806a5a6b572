"""A page in a real browser attacks the server, from other origins and by DNS rebinding."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
from browser import EVIL, Chromium, Json, Site
from harness import REPO, Answer, Valet, program, until

pytestmark = [pytest.mark.together, pytest.mark.long]  # one Chromium for all
TOKEN = "a-token-that-no-page-knows"
HOSTS = ("127.0.0.1", "localhost")  # which the operator's browser may know the server by
# By label: the page's host, the host it attacks, the page's path.
PAGES = {
    "port": ("127.0.0.1", "127.0.0.1", "/"),  # of the same site to a browser
    "name": ("localhost", "localhost", "/"),
    "alias": ("localhost", "127.0.0.1", "/"),
    "evil": (EVIL, "127.0.0.1", "/"),
    "opaque": (EVIL, "127.0.0.1", "/sandboxed"),
}
SAME_SITE = {"port", "name"}
# What needs nothing but a browser that does not say who asks.
HARMFUL = {
    *("fetch-multipart", "blind-multipart", "blind-bounced", "blind-keepalive"),
    *("form-multipart-frame", "form-multipart-popup", "form-bounced-frame", "form-bounced-popup"),
    *("form-top", "beacon-multipart", "xhr-multipart", "session-in"),
    *("abort-fetch", "abort-form", "abort-form-multipart", "abort-beacon", "abort-xhr"),
    *("abort-running", "retry-fetch", "retry-form"),
}
OLD = ("sec-fetch-",)  # what a browser of 2019 does not send
MUTE = (*OLD, "origin")
ENDED = '/*\nfake: say SECRET of a job\n*/ SECRET = "SECRET of a prompt";'


class Victim(Valet):
    """A valet with an ended, a running and a queued job; asks with its token."""

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        token = self.environ.get("PV_API_TOKEN")
        own = {"Authorization": f"Bearer {token}"} if token else {}
        return super().ask(method, path, body, {**own, **(headers or {})})

    def prepare(self) -> None:
        self.start()
        self.ended = self.submit(ENDED)["job_id"]
        self.await_end(self.ended)
        self.running = self.submit("fake: say SECRET of a log\nfake: wait go")["job_id"]
        self.await_state(self.running, "running")
        log = f"/api/v1/jobs/{self.running}/log"
        until(lambda: b"SECRET" in self.ask("GET", log).body, "the running job's log")
        self.queued = self.submit("fake: say SECRET of a queue")["job_id"]
        self.files = self.inbox_files()

    def inbox_files(self) -> set[Path]:
        return {path for path in self.inbox.rglob("*") if path.is_file()}

    def jobs(self) -> dict[str, str]:
        return {record["job_id"]: record["state"] for record in self.get("/api/v1/jobs")["jobs"]}

    def assert_unharmed(self) -> None:
        """Nothing came, nothing was aborted, and the work goes on to its end."""
        states = {self.ended: "succeeded", self.running: "running", self.queued: "created"}
        assert self.jobs() == states
        assert self.inbox_files() == self.files
        (self.repo / "go").touch()
        for job_id in (self.running, self.queued):
            assert self.await_end(job_id)["state"] == "succeeded"
        assert self.jobs() == dict.fromkeys(states, "succeeded")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    browser = Chromium(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def make_victim(tmp_path: Path) -> Iterator[Callable[[str], Victim]]:
    made: list[Victim] = []

    def make(token: str) -> Victim:
        settings = {"PV_API_TOKEN": token} if token else {}
        made.append(Victim(tmp_path, program(), **settings))
        made[-1].prepare()
        return made[-1]

    yield make
    for victim in made:
        victim.clear()


def sign_in(chromium: Chromium, profile: str, victim: Valet) -> None:
    """A session in the browser, for every name it may know the server by."""
    for host in HOSTS:
        page = chromium.hold(f"http://{host}:{victim.port}/api/v1/healthz", profile)
        assert chromium.run(page, SIGN_IN.replace("TOKEN", TOKEN)) == 204
        assert chromium.run(page, "return (await fetch('/api/v1/jobs')).status") == 200


SIGN_IN = """
  const headers = {Authorization: "Bearer TOKEN"};
  return (await fetch("/api/v1/session", {method: "POST", headers})).status;
"""


def attack(
    chromium: Chromium, profile: str, victim: Victim, site: Site, wire: Site, *labels: str
) -> dict[str, Json]:
    """Let the pages of `site` loose at `wire`; their reports, once everything has arrived."""
    ids = {"ended": victim.ended, "running": victim.running, "queued": victim.queued}
    pages = {**PAGES, "rebound": (EVIL, EVIL, "/")}
    for label in labels:
        host, attacked, path = pages[label]
        target = f"http://{attacked}:{wire.server_port}"
        plan = {"label": label, "target": target, "repo": REPO, **ids}
        chromium.open(site.page(host, plan, path), profile)
    until(lambda: site.reports.keys() >= set(labels), "the pages' reports", 90)
    for label in labels:
        findings = site.reports[label]["findings"]
        assert len(findings) > 50
        for name, (saw, _) in findings.items():
            tag = f"{label}.{name}"
            answers = until(partial(wire.answers.get, tag), f"{tag} at the server")
            shown = ", ".join(f"{method} {status}" for method, status in answers)
            print(f"{label:8} {name:22} {shown:24} {saw}")
            assert saw != "nothing in time", tag
    site.go.set()
    for label in labels:
        until(partial(wire.answers.get, f"{label}.form-top"), f"{label}.form-top at the server")
    return {label: site.reports[label] for label in labels}


def harm_done(wire: Site, label: str) -> set[str]:
    """The attempts that were answered as if they had a right."""
    right = {200, 201, 204, 409}
    return {
        tag.partition(".")[2]
        for tag, answers in wire.answers.items()
        if tag.startswith(f"{label}.")
        for method, status in answers
        if method not in ("GET", "OPTIONS") and status in right
    }


@pytest.mark.parametrize("hides", [(), OLD], ids=["today", "of-2019"])
@pytest.mark.parametrize("token", ["", TOKEN], ids=["open", "session"])
def test_a_page_of_another_origin_changes_and_reads_nothing(
    chromium: Chromium, make_victim: Callable[[str], Victim], token: str, hides: tuple[str, ...]
) -> None:
    victim = make_victim(token)
    with chromium.profile() as profile, Site(0) as site, Site(victim.port, hides) as wire:
        if token:
            sign_in(chromium, profile, victim)
        labels = ("port", "evil", "opaque") if hides else tuple(PAGES)
        reports = attack(chromium, profile, victim, site, wire, *labels)
        for label, report in reports.items():
            read = {name: text for name, (_, text) in report["findings"].items() if text}
            assert (label, read) == (label, {})
            assert report["timings"] == ["none of the answers", ""]
            assert report["cookie"] == ""
        for tag, answers in wire.answers.items():
            for method, status in answers:
                allowed = {403}
                if hides and method == "GET":  # without Origin: the browser has to keep it
                    strict = token and tag.partition(".")[0] not in SAME_SITE
                    allowed = {403, 401} if strict else {403, 200}
                assert status in allowed, (tag, method, status)
        # Cookies know no ports: that is the web, and why Origin is looked at and not only Site.
        assert site.cookies == (
            {PAGES[label][0] for label in labels} & set(HOSTS) if token else set()
        )
        victim.assert_unharmed()
        if token:
            page = chromium.hold(f"http://127.0.0.1:{victim.port}/api/v1/healthz", profile)
            assert chromium.run(page, "return (await fetch('/api/v1/jobs')).status") == 200


@pytest.mark.parametrize("token", ["", TOKEN], ids=["open", "session"])
def test_the_same_page_does_harm_where_the_browser_does_not_say_who_asks(
    chromium: Chromium, make_victim: Callable[[str], Victim], token: str
) -> None:
    victim = make_victim(token)
    with chromium.profile() as profile, Site(0) as site, Site(victim.port, MUTE) as wire:
        if token:
            sign_in(chromium, profile, victim)
        reports = attack(chromium, profile, victim, site, wire, "port", "evil")
        kept_out = {"evil"} if token else set()  # the cookie is SameSite=Strict
        for label, report in reports.items():
            harm = HARMFUL - ({"session-in"} if token else set())  # the token alone opens that
            assert harm_done(wire, label) == (set() if label in kept_out else harm), label
            assert "SECRET" not in json.dumps(report)
        assert len(victim.jobs()) > 3
        assert victim.await_end(victim.queued)["state"] == "aborted"


def test_a_rebound_name_is_misdirected(
    chromium: Chromium, make_victim: Callable[[str], Victim]
) -> None:
    victim = make_victim("")
    with chromium.profile() as profile, Site(victim.port) as site:
        report = attack(chromium, profile, victim, site, site, "rebound")["rebound"]
        assert {s for answers in site.answers.values() for _, s in answers} == {421}
        problem = re.compile(
            r'(\{"type": "about:blank", "title": "[\w ]+", "status": 421, "detail": '
            rf""""the Host '{EVIL}:\d+' is not served here: [\w ]+"\}}\s*)?"""
        )
        read = {name: text for name, (_, text) in report["findings"].items()}
        assert "421" in read["read-jobs"] and "421" in read["popup"]
        assert {n: text for n, text in read.items() if not problem.fullmatch(text)} == {}
        victim.assert_unharmed()


def test_a_rebound_name_would_reach_everything_if_its_host_were_taken(
    chromium: Chromium, make_victim: Callable[[str], Victim]
) -> None:
    victim = make_victim("")
    host = f"127.0.0.1:{victim.port}"
    with chromium.profile() as profile, Site(victim.port, MUTE, host=host) as site:
        report = attack(chromium, profile, victim, site, site, "rebound")["rebound"]
        findings = report["findings"]
        for name in ("read-log", "read-prompt", "event-source"):
            assert "SECRET" in findings[name][1], name
        for name in ("read-jobs", "read-xhr", "read-preflight", "popup"):
            assert victim.queued in findings[name][1], name
        assert harm_done(site, "rebound") > HARMFUL | {"fetch-json", "fetch-markdown", "xhr-json"}


def test_a_page_of_its_own_origin_works_with_the_session_alone(
    chromium: Chromium, make_victim: Callable[[str], Victim]
) -> None:
    victim = make_victim(TOKEN)
    there = f"http://127.0.0.1:{victim.port}/api/v1/healthz"
    with chromium.profile() as profile:
        bound = chromium.hold(there, profile, csp=True)
        refused = "try { await fetch('/'); return '' } catch (error) { return error.name }"
        assert chromium.run(bound, refused) == "TypeError"  # an answer shown as a page runs nothing
        page = chromium.hold(there, profile)

        def status(method: str, path: str, more: str = "") -> int:
            options = f"{{method: '{method}', {more}}}"
            return int(chromium.run(page, f"return (await fetch('{path}', {options})).status"))

        text = json.dumps({"repo": REPO, "branch": "main", "markdown_text": "fake: say own"})
        as_json = f"body: {text!r}, headers: {{'Content-Type': 'application/json'}}"
        assert status("POST", "/api/v1/jobs", as_json) == 401
        assert chromium.run(page, SIGN_IN.replace("TOKEN", "a-guess")) == 401
        assert chromium.run(page, "return document.cookie") == ""
        assert status("GET", "/api/v1/jobs") == 401
        assert chromium.run(page, SIGN_IN.replace("TOKEN", TOKEN)) == 204
        assert chromium.run(page, "return document.cookie") == ""
        (cookie,) = chromium.ask("Network.getCookies", page)["cookies"]
        assert (cookie["name"], cookie["path"], cookie["domain"]) == (
            "pv_session",
            "/",
            "127.0.0.1",
        )
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        assert TOKEN not in cookie["value"]

        assert status("GET", "/api/v1/jobs") == 200
        assert status("POST", "/api/v1/jobs", as_json) == 201
        markdown = "body: 'fake: say own', headers: {'Content-Type': 'text/markdown'}"
        assert status("POST", f"/api/v1/jobs?repo={REPO}&branch=main", markdown) == 201
        assert chromium.run(page, UPLOAD) == 201
        assert len(victim.jobs()) == 6
        assert status("POST", f"/api/v1/jobs/{victim.ended}/retry") == 201
        stream = f"/api/v1/jobs/{victim.running}/log/stream"
        heard = chromium.run(page, LISTEN.replace("STREAM", stream))
        assert "SECRET of a log" in heard
        assert status("POST", f"/api/v1/jobs/{victim.queued}/abort") == 200
        assert victim.await_end(victim.queued)["state"] == "aborted"
        assert status("DELETE", "/api/v1/session") == 204
        assert not chromium.ask("Network.getCookies", page)["cookies"]
        assert status("GET", "/api/v1/jobs") == 401


UPLOAD = f"""
  const form = new FormData();
  form.append("repo", "{REPO}");
  form.append("branch", "main");
  form.append("files", new File(["fake: say own"], "own.md"));
  return (await fetch("/api/v1/jobs/upload", {{method: "POST", body: form}})).status;
"""
LISTEN = """
  return await new Promise((done, fail) => {
    const source = new EventSource("STREAM");
    let heard = "";
    source.onmessage = event => {
      heard += event.data + "\\n";
      if (heard.includes("SECRET")) { source.close(); done(heard); }
    };
    source.onerror = () => fail(new Error("the stream broke"));
  });
"""
