"""Bad input: each with its status and a sentence, and nothing is lost or kept by it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import REPO, Valet, git, make_repository, program, until
from needs import need

GOOD: dict[str, Any] = {"repo": REPO, "branch": "main", "markdown_text": "fake: say x"}

pytestmark = pytest.mark.together


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valet]:
    """One server for all the requests that must leave no trace."""
    valet = Valet(tmp_path_factory.mktemp("quiet"), program())
    valet.start()
    yield valet
    valet.stop()


def no_trace(valet: Valet) -> bool:
    return not list(valet.inbox.rglob("*.md")) and valet.get("/api/v1/jobs")["jobs"] == []


@pytest.mark.parametrize(
    ("change", "status", "detail"),
    [
        ({"repo": "nova-rey/missing"}, 404, "no repository nova-rey/missing"),
        ({"repo": "missing"}, 404, "no repository missing"),
        ({"repo": "../../etc"}, 400, "repo: must be owner/name"),
        ({"repo": "-x/y"}, 400, "repo: must be owner/name"),
        ({"branch": "nowhere"}, 404, "has no branch nowhere"),
        ({"branch": "../main"}, 400, "branch: is not a branch name"),
        ({"branch": "@{-1}"}, 400, "branch: is not a branch name"),
        ({"branch": "--upload-pack=x"}, 400, "branch: is not a branch name"),
        ({"markdown_text": " \n\t "}, 400, "markdown_text: must not be blank"),
        ({"markdown_text": None}, 400, "markdown_text: is missing"),
        ({"markdown_text": 5}, 400, "markdown_text: must be a string"),
        ({"markdown_text": "\ud800"}, 400, "markdown_text: holds half a surrogate pair"),
        ({"markdown_text": "x" * ((1 << 20) + 1)}, 413, "PV_MAX_PROMPT_BYTES is 1048576"),
        ({"repo": ["a"], "branch": 1}, 400, "repo: must be a string: owner/name; branch: must be"),
        ({"filename": "a/b.md"}, 400, "filename: must be a plain name"),
        ({"filename": "demo.txt"}, 400, "filename: must end in .md"),
        ({"filename": ".md"}, 400, "filename: must not begin with a dot"),
        ({"filename": "x" * 200 + ".md"}, 400, "filename: must not be longer than"),
        ({"filename": "a\nb.md"}, 400, "filename: must be a plain name"),
        ({"timeout_seconds": 0}, 400, "timeout_seconds: must be more than 0"),
        ({"timeout_seconds": True}, 400, "timeout_seconds: must be a number"),
        ({"timeout_seconds": float("inf")}, 400, "timeout_seconds: must be more than 0"),
        ({"timeout_seconds": float("nan")}, 400, "timeout_seconds: must be a number"),
        ({"priority": 1.5}, 400, "priority: must be a whole number"),
        ({"priority": 10**9}, 400, "priority: must lie between"),
        ({"model": "--yolo"}, 400, "model: must be a model's name"),
        ({"surprise": 1}, 400, "surprise: is not a field"),
    ],
)
def test_a_wrong_field(quiet: Valet, change: dict[str, Any], status: int, detail: str) -> None:
    answer = quiet.post_json("/api/v1/jobs", {**GOOD, **change})
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json")
    assert detail in answer.detail and answer.json["status"] == status
    if "is missing" in detail or ": must" in detail:
        assert answer.json["errors"][0]["field"] in change
    assert no_trace(quiet)


@pytest.mark.parametrize(
    ("body", "kind", "status", "detail"),
    [
        (b"{", "application/json", 400, "the body is not JSON"),
        (b"[]", "application/json", 400, "not a JSON object"),
        (b'{"repo":"\xff"}', "application/json", 400, "body: is not UTF-8 (byte 9)"),
        (b"[" * 100_000, "application/json", 400, "the body is not JSON"),
        (b"", "application/json", 400, "the body is not JSON"),
        (b"repo=a", "application/x-www-form-urlencoded", 415, "a body's Content-Type must be"),
        (b"{}", "", 415, "a body's Content-Type must be"),
        (b"{}", "multipart/form-data", 415, "submit as Content-Type"),
        (b"x" * (10 << 20), "application/json", 413, "the body has 10485760 bytes"),
    ],
)
def test_a_wrong_body(quiet: Valet, body: bytes, kind: str, status: int, detail: str) -> None:
    answer = quiet.ask("POST", "/api/v1/jobs", body, {"Content-Type": kind} if kind else {})
    assert answer.status == status and detail in answer.detail
    assert no_trace(quiet)


def test_many_faults_are_not_all_told(quiet: Valet) -> None:
    answer = quiet.post_json("/api/v1/jobs", {f"{'x' * 200}{n}": 0 for n in range(30_000)})
    assert answer.status == 400 and len(answer.body) < 20_000
    assert len(answer.json["errors"]) == 20 and answer.detail.endswith("and 29983 more")


def test_a_bare_name_serves_where_one_owner_has_it(valet: Valet) -> None:
    receipt = valet.submit("fake: say x", repo="example")
    assert receipt["repo"] == REPO
    make_repository(valet.root / "repos" / "other-owner" / "example")
    answer = valet.post_json("/api/v1/jobs", {**GOOD, "repo": "example"})
    assert answer.status == 400
    assert f"{REPO}, other-owner/example" in answer.detail


def test_markdown_as_the_body_with_the_rest_as_query(valet: Valet) -> None:
    path = f"/api/v1/jobs?repo={REPO}&branch=feature/one&filename=my%20job.md&priority=2"
    answer = valet.ask("POST", path, b"fake: say hi", {"Content-Type": "text/markdown"})
    assert answer.status == 201 and answer.json["filename"] == "my job.prompt.md"
    record = valet.await_end(answer.json["job_id"])
    assert (record["branch"], record["priority"]) == ("feature/one", 2)
    for query, detail in (("&priority=x", "priority: must be"), ("&color=red", "color: is not")):
        path = f"/api/v1/jobs?repo={REPO}&branch=main{query}"
        answer = valet.ask("POST", path, b"fake: say hi", {"Content-Type": "text/markdown"})
        assert answer.status == 400 and detail in answer.detail


def form(*parts: tuple[str, str | None, bytes]) -> tuple[bytes, dict[str, str]]:
    out = b""
    for name, filename, data in parts:
        file = f'; filename="{filename}"' if filename is not None else ""
        out += f'--XX\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        out += data + b"\r\n"
    return out + b"--XX--\r\n", {"Content-Type": "multipart/form-data; boundary=XX"}


def test_upload_takes_all_files(valet: Valet, tmp_path: Path) -> None:
    for name in ("one.md", "two.prompt.md"):
        (tmp_path / name).write_text(f"fake: append ran.txt {name}\n")
    url = f"http://127.0.0.1:{valet.port}/api/v1/jobs/upload"
    files = [f"-Ffiles=@{tmp_path / name}" for name in ("one.md", "two.prompt.md")]
    need(shutil.which("curl"), "curl", "apt-get install curl")
    argv = ["curl", "-s", f"-Frepo={REPO}", "-Fbranch=main", *files, url]
    jobs = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)["jobs"]
    assert [job["filename"] for job in jobs] == ["one.prompt.md", "two.prompt.md"]
    for job in jobs:
        assert valet.await_end(job["job_id"])["state"] == "succeeded"
    assert (valet.repo / "ran.txt").read_text() == "one.md\ntwo.prompt.md\n"


GOOD_PARTS: list[tuple[str, str | None, bytes]] = [
    ("repo", None, REPO.encode()),
    ("branch", None, b"main"),
]


@pytest.mark.parametrize(
    ("parts", "status", "detail"),
    [
        ([*GOOD_PARTS, ("files", "a.md", b"x"), ("files", "b.txt", b"x")], 400, "must end in .md"),
        ([*GOOD_PARTS, ("files", "a.md", b"x"), ("files", "b.md", b"\xff")], 400, "not UTF-8"),
        ([*GOOD_PARTS, ("files", "a.md", b"x"), ("files", "b.md", b" ")], 400, "not be blank"),
        ([*GOOD_PARTS, ("files", "a/../a.md", b"x")], 400, "plain name"),
        ([*GOOD_PARTS, ("files", "../a.md", b"x")], 400, "begin with a dot"),
        ([*GOOD_PARTS], 400, "files: is missing"),
        ([("files", "a.md", b"x")], 400, "repo: is missing; branch: is missing"),
        ([*GOOD_PARTS, ("color", None, b"red"), ("files", "a.md", b"x")], 400, "color: is not"),
        ([("repo", None, b"no/such"), GOOD_PARTS[1], ("files", "a.md", b"x")], 404, "no/such"),
    ],
)
def test_upload_keeps_nothing_of_a_bad_request(
    quiet: Valet, parts: list[tuple[str, str | None, bytes]], status: int, detail: str
) -> None:
    body, headers = form(*parts)
    answer = quiet.ask("POST", "/api/v1/jobs/upload", body, headers)
    assert answer.status == status and detail in answer.detail
    assert no_trace(quiet)


def test_broken_forms(quiet: Valet) -> None:
    body, headers = form(*GOOD_PARTS, ("files", "a.md", b"x"))
    wrong = {"Content-Type": "multipart/form-data"}
    for data, kind in ((body, wrong), (body[:-8], headers), (b"", headers), (b"junk", headers)):
        answer = quiet.ask("POST", "/api/v1/jobs/upload", data, kind)
        assert answer.status == 400 and answer.detail
    assert quiet.ask("POST", "/api/v1/jobs/upload", b"{}", {}).status == 415
    assert no_trace(quiet)


def test_questions_about_jobs_that_make_no_sense(valet: Valet) -> None:
    (valet.repo / "go").unlink(missing_ok=True)
    ended = valet.submit("fake: say x")["job_id"]
    valet.await_end(ended)
    job = f"/api/v1/jobs/{ended}"
    nobody = "/api/v1/jobs/01890000000070008000000000000000"
    cases = [
        ("GET", nobody, 404, "there is no job 0189"),
        ("GET", f"{nobody}/log", 404, "there is no job"),
        ("GET", f"{nobody}/log/stream", 404, "there is no job"),
        ("POST", f"{nobody}/abort", 404, "there is no job"),
        ("POST", f"{nobody}/retry", 404, "there is no job"),
        ("GET", "/api/v1/jobs/..%2f..%2fetc%2fpasswd", 404, "an id has letters"),
        ("GET", "/api/v1/jobs/%2e%2e", 404, "an id has letters"),
        ("GET", "/api/v1/jobs/%00", 400, "NUL"),
        ("GET", "/api/v1/jobs/%zz", 400, "two hex digits"),
        ("GET", "/api/v1/jobs/%ff", 400, "not UTF-8"),
        ("GET", f"{job}/log?lines=0", 400, "lines: must be a whole number from 1"),
        ("GET", f"{job}/log?lines=x", 400, "lines: must be"),
        ("GET", f"{job}/log?lines=-1", 400, "lines: must be"),
        ("GET", f"{job}/log?offset=-1", 400, "offset: must be"),
        ("GET", f"{job}/log?ansi=no", 400, "ansi: must be one of strip, raw"),
        ("GET", f"{job}/log?lines=1&lines=2", 400, "more than once"),
        ("GET", f"{job}/log?line=1", 400, "line: is not known here"),
        ("POST", f"{job}/abort", 409, "has ended already: it is succeeded"),
        ("GET", "/api/v1/jobs?state=done", 400, "state: must be one of created"),
        ("GET", "/api/v1/jobs?stalled=yes", 400, "stalled: must be true or false"),
        ("GET", "/api/v1/jobs?limit=0", 400, "limit: must be"),
        ("GET", "/api/v1/jobs?limit=501", 400, "limit: must be"),
        ("GET", "/api/v1/jobs?before=-", 400, "before: must be a job id"),
        ("GET", "/api/v1/nothing", 404, "there is nothing at"),
        ("GET", "//api/v1/healthz", 404, "there is nothing at"),
        ("PUT", "/api/v1/jobs", 405, "only GET, HEAD, OPTIONS, POST"),
        ("DELETE", f"{job}/abort", 405, "only OPTIONS, POST"),
    ]
    for method, path, status, detail in cases:
        answer = valet.ask(method, path)
        assert answer.status == status, (path, answer)
        assert detail in answer.detail, (path, answer.detail)
        if status == 405:
            assert answer.headers["Allow"] in answer.detail
    answer = valet.ask("GET", f"{job}/log/stream", headers={"Last-Event-ID": "x"})
    assert answer.status == 400 and "Last-Event-ID" in answer.detail


def test_the_log_of_a_job_that_has_none_yet(valet: Valet) -> None:
    valet.stop()
    valet.start("serve", "--no-watcher")
    job_id = valet.submit("fake: say x")["job_id"]
    for name in ("log", "message", "events"):
        answer = valet.ask("GET", f"/api/v1/jobs/{job_id}/{name}")
        assert answer.status == 404 and "it is created" in answer.detail
    assert valet.ask("POST", f"/api/v1/jobs/{job_id}/retry").status == 409
    assert valet.ask("GET", f"/api/v1/jobs/{job_id}/prompt").body == b"fake: say x"


def test_an_idempotency_key_makes_a_repeat_return_the_first_answer(valet: Valet) -> None:
    body = json.dumps({**GOOD, "markdown_text": "fake: append ran.txt x"}).encode()
    headers = {"Content-Type": "application/json", "Idempotency-Key": "order-66"}
    first = valet.ask("POST", "/api/v1/jobs", body, headers)
    assert first.status == 201
    valet.await_end(first.json["job_id"])
    assert valet.ask("POST", "/api/v1/jobs", body, headers).json == first.json
    valet.stop()
    valet.start()
    assert valet.ask("POST", "/api/v1/jobs", body, headers).json == first.json
    assert len(valet.get("/api/v1/jobs")["jobs"]) == 1
    other = valet.ask("POST", "/api/v1/jobs", json.dumps(GOOD).encode(), headers)
    assert other.status == 422 and "new key" in other.detail
    bad = valet.ask("POST", "/api/v1/jobs", body, {**headers, "Idempotency-Key": "a b"})
    assert bad.status == 400


def test_too_little_room_refuses_and_starts_nothing(valet: Valet) -> None:
    valet.stop()
    valet.environ["PV_MIN_FREE_BYTES"] = "900000GiB"
    process = valet.start()
    answer = valet.post_json("/api/v1/jobs", GOOD)
    assert answer.status == 507 and "PV_MIN_FREE_BYTES" in answer.detail
    assert no_trace(valet)
    assert "PV_MIN_FREE_BYTES" in str(valet.get("/api/v1/status")["problems"])
    place = valet.inbox / REPO / "main"
    place.mkdir(parents=True)
    (place / "a.prompt.md").write_text("fake: say x")
    job = until(lambda: valet.get("/api/v1/jobs")["jobs"], "the drop as a job")[0]
    process.await_line("no job starts")
    assert valet.job(job["job_id"])["state"] == "created"


def test_head_and_options_answer_as_they_should(valet: Valet) -> None:
    get, head = (valet.ask(method, "/api/v1/healthz") for method in ("GET", "HEAD"))
    assert head.status == 200 and head.body == b""
    assert head.headers["Content-Length"] == str(len(get.body))
    options = valet.ask("OPTIONS", "/api/v1/jobs")
    assert (options.status, options.body) == (204, b"")
    assert options.headers["Allow"] == "GET, HEAD, OPTIONS, POST"


def test_targets_are_the_pairs_that_would_be_accepted(valet: Valet) -> None:
    (valet.root / "repos" / "nova-rey" / "plain").mkdir()
    clone = valet.root / "repos" / "clones" / "example"
    git(valet.root, "clone", "--quiet", str(valet.repo), str(clone))
    targets = [(t["repo"], t["branch"]) for t in valet.get("/api/v1/targets")["targets"]]
    assert targets == [
        ("clones/example", "dev"),
        ("clones/example", "feature/one"),
        ("clones/example", "main"),
        (REPO, "dev"),
        (REPO, "feature/one"),
        (REPO, "main"),
        ("nova-rey/plain", "main"),
    ]
    assert valet.get("/api/v1/status")["targets"]["count"] == 7
    for repo, branch in targets:
        job_id = valet.submit("fake: say x", repo=repo, branch=branch)["job_id"]
        assert valet.await_end(job_id)["state"] == "succeeded"
