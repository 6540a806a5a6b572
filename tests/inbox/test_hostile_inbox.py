"""An inbox into which anybody may put anything: nothing leaks, and the watcher keeps its beat."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import NOBODY, REPO, Valet, folder, jobs, one_job, put_socket, until
from needs import need

SECRET = "hush-3c1f9e"
FLOOD = int(os.environ.get("TEST_FLOOD", "2000"))  # by hand also with 10,000


def lay_secret(valet: Valet) -> Path:
    """A folder outside the inbox whose files look like prompts."""
    place = valet.root / "secret"
    place.mkdir()
    for name in ("a.prompt.md", f"b-{'0' * 32}.prompt.md", f"c-{'1' * 32}.running.md"):
        (place / name).write_text(f"fake: append leaked.txt {SECRET}\n")
        os.utime(place / name, (1e9, 1e9))
    (place / f".old-{'2' * 32}.prompt.md.tmp").write_text(SECRET)
    os.utime(place / f".old-{'2' * 32}.prompt.md.tmp", (1e9, 1e9))
    return place


def state_of(place: Path) -> list[tuple[str, int, int, int]]:
    """What would show that somebody read (atime), moved or changed a file; we read none either."""
    found = [(path.name, path.lstat()) for path in sorted(place.iterdir())]
    return [(name, i.st_atime_ns, i.st_ctime_ns, i.st_size) for name, i in found]


def leaks(valet: Valet) -> list[Path]:
    """Files of ours in which the secret stands."""
    places = [valet.runs, valet.root / "finished", valet.root / "repos"]
    found = (path for place in places for path in place.rglob("*"))
    return [p for p in found if p.is_file() and p.stat().st_size < 1 << 30 and _tells(p)]


def _tells(path: Path) -> bool:
    """Not of a hard link, which was moved: that is the secret itself."""
    return path.stat().st_nlink == 1 and SECRET.encode() in path.read_bytes()


@contextlib.contextmanager
def longest_beat(valet: Valet) -> Iterator[list[float]]:
    """Watch the lock file: the gaps between its mtimes, and the one that is still open."""
    lock, over = valet.runs / ".watcher.lock", threading.Event()
    gaps: list[float] = []

    def look() -> None:
        last = lock.stat().st_mtime
        while not over.wait(0.02):
            beat = lock.stat().st_mtime
            gaps.append(beat - last if beat != last else time.time() - beat)
            last = beat

    watching = threading.Thread(target=look)
    watching.start()
    try:
        yield gaps
    finally:
        over.set()
        watching.join()


def lay_odd_things(place: Path, secret: Path) -> None:
    (place / "link.prompt.md").symlink_to(secret / "a.prompt.md")
    os.mkfifo(place / "fifo.prompt.md")
    os.mknod(place / "device.prompt.md", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    put_socket(place / "socket.prompt.md")
    for name in (b"\xff\xfe.prompt.md", b"two\nlines.prompt.md", b"n" * 252 + b".md"):
        Path(os.fsdecode(bytes(place) + b"/" + name)).write_text("fake: say odd\n")
    (place / "huge.prompt.md").touch()
    os.truncate(place / "huge.prompt.md", 1 << 40)


@pytest.mark.alone
def test_a_flood_of_files_and_traps_neither_leaks_nor_holds_up_the_watcher(
    make_valet: Callable[..., Valet],
) -> None:
    need("yes" if os.geteuid() == 0 else None, "root, to make a device node", "sudo pytest")
    valet = make_valet(PV_POLL_INTERVAL_SECONDS="1")
    process = valet.start()
    valet.await_state(valet.submit("fake: wait go")["job_id"], "running")  # the others queue up
    secret = lay_secret(valet)
    before = state_of(secret)
    place, stage = folder(valet), valet.root / "stage"
    stage.mkdir()
    for number in range(FLOOD):
        (stage / f"{number:05d}.md").write_text(f"fake: say {number}\n")
        os.utime(stage / f"{number:05d}.md", (1e9 + number, 1e9 + number))
    lay_odd_things(stage, secret)
    with longest_beat(valet) as gaps:
        (place.parent / "dev").symlink_to(secret)
        for path in stage.iterdir():
            path.rename(place / path.name)
        urgent = valet.submit("fake: say urgent")["job_id"]
        every = FLOOD + 4 + 2  # the odd names and the huge one; those over HTTP
        until(lambda: len(run_folders(valet)) == every, "a job for each", 120)
        looked = len(gaps)
        until(lambda: len(gaps) > looked + 150, "looks with all of them in the queue")
        assert valet.job(urgent)["state"] == "created"
    print(f"largest gap {max(gaps):.2f} s of {FLOOD} files")
    assert max(gaps) < 2 * 1.0
    failed = valet.get("/api/v1/jobs?state=failed")["jobs"]
    assert [job["filename"] for job in failed] == ["huge.prompt.md"]
    assert failed[0]["reason"] == "bad_prompt" and "the limit is" in failed[0]["error"]
    queued = sorted(valet.inbox.rglob("0*.prompt.md"), key=lambda p: p.name.rpartition("-")[2])
    assert [path.name[:5] for path in queued] == [f"{number:05d}" for number in range(FLOOD)]
    process.stop()
    assert state_of(secret) == before
    assert leaks(valet) == []
    strange = [path.name for path in place.iterdir() if not path.is_file() or path.is_symlink()]
    assert sorted(strange) == [f"{name}.prompt.md" for name in ("device", "fifo", "link", "socket")]


def run_folders(valet: Valet) -> list[str]:
    return [name for name in os.listdir(valet.runs) if not name.startswith(".")]


@pytest.mark.long
def test_a_folder_swapped_for_a_link_at_full_speed_is_not_followed(
    make_valet: Callable[..., Valet],
) -> None:
    valet = make_valet(PV_POLL_INTERVAL_SECONDS="0.05", PV_MAX_RUNNING="4")
    secret = lay_secret(valet)
    before = state_of(secret)
    place, aside = folder(valet), valet.root / "aside"
    real, link = valet.root / "real", valet.root / "link"
    link.symlink_to(secret)
    aside.mkdir()
    valet.start()
    over = threading.Event()

    def put(source: Path) -> None:
        """Into the folder's place; a submission may have made that anew just now."""
        while source.is_symlink() or source.exists():
            try:
                source.rename(place)
            except OSError:
                place.rename(aside / str(len(os.listdir(aside))))

    def swap() -> None:
        while not over.is_set():
            place.rename(real)
            put(link)
            place.rename(link)
            put(real)

    swapping = threading.Thread(target=swap)
    swapping.start()
    body = {"repo": REPO, "branch": "main", "markdown_text": "fake: say x"}
    refused = 0
    try:
        end = time.monotonic() + 4
        while time.monotonic() < end:
            with contextlib.suppress(OSError):  # there is no folder, or the link, just now
                fd = os.open(place, os.O_DIRECTORY | os.O_NOFOLLOW)
                Path(f"/proc/self/fd/{fd}/{time.monotonic_ns()}.md").write_text("fake: say x\n")
                os.close(fd)
            answer = valet.post_json("/api/v1/jobs", body)
            assert answer.status in (201, 409) or "No such file" in answer.detail
            refused += answer.status == 409
            time.sleep(0.05)  # a pace that the jobs can keep
    finally:
        over.set()
        swapping.join()
    assert refused, "the link was never met"
    assert state_of(secret) == before
    for path in aside.glob("*/*.md"):
        path.rename(place / path.name)
    until(lambda: not list(place.glob("*.md")), "all that was dropped ended", 60)
    assert "succeeded" in {job["state"] for job in jobs(valet)}
    assert state_of(secret) == before
    assert leaks(valet) == []
    assert "died" not in valet.processes[-1].said


def test_a_submission_into_a_linked_folder_is_refused_with_the_remedy(valet: Valet) -> None:
    outside = valet.root / "outside"
    outside.mkdir()
    folder(valet, REPO).joinpath("main").symlink_to(outside)
    answer = valet.post_json(
        "/api/v1/jobs", {"repo": REPO, "branch": "main", "markdown_text": "fake: say x"}
    )
    assert answer.status == 409
    assert f"{valet.inbox}/{REPO}/main: is a symbolic link" in answer.detail
    assert "put a folder" in answer.detail
    assert list(outside.iterdir()) == [] and jobs(valet) == []


def test_a_queued_file_whose_folder_became_a_link_was_withdrawn(valet: Valet) -> None:
    valet.await_state(valet.submit("fake: wait go", branch="dev")["job_id"], "running")
    job_id = valet.submit("fake: append ran.txt x")["job_id"]
    place, outside = valet.inbox / REPO / "main", valet.root / "outside"
    place.rename(outside)
    place.symlink_to(outside)
    record = valet.await_end(job_id)
    assert (record["state"], record["reason"]) == ("aborted", "withdrawn")
    assert [path.name for path in outside.iterdir()] == [Path(record["inbox_path"]).name]
    assert valet.ask("GET", f"/api/v1/jobs/{job_id}/prompt").status == 404


def test_roots_that_are_links_are_the_operators_choice(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet()
    for name in ("inbox", "finished"):
        (valet.root / f"real-{name}").mkdir()
        (valet.root / name).symlink_to(f"real-{name}")
    valet.start()
    (folder(valet) / "drop.md").write_text("fake: say x\n")
    assert one_job(valet)["state"] == "succeeded"
    assert valet.await_end(valet.submit("fake: say y")["job_id"])["state"] == "succeeded"
    until(lambda: len(list((valet.root / "finished").rglob("*.done.md"))) == 2, "the archive")


def test_a_hard_link_is_not_read(valet: Valet) -> None:
    secret = lay_secret(valet)
    os.link(secret / "a.prompt.md", folder(valet) / "mine.md")
    os.link(secret / "b-{}.prompt.md".format("0" * 32), folder(valet) / f"x-{'0' * 32}.prompt.md")
    until(lambda: len(jobs(valet)) == 2, "a job for each")
    for job in jobs(valet):
        record = valet.await_end(job["job_id"])
        assert (record["state"], record["reason"]) == ("failed", "bad_prompt")
        assert "hard link" in record["error"] and "copy it instead" in record["error"]
        assert SECRET.encode() not in valet.ask("GET", f"/api/v1/jobs/{job['job_id']}/prompt").body
    until(lambda: not list(valet.inbox.rglob("*.md")), "an empty inbox")
    assert len(list((valet.root / "finished").rglob("*.error.md"))) == 2
    assert leaks(valet) == []


@pytest.mark.parametrize("name", ["mine.md", f"mine-{'3' * 32}.prompt.md"])
@pytest.mark.parametrize("open_folder", [REPO, f"{REPO}/main"])
def test_in_a_folder_for_everybody_only_root_and_the_service_may_drop(
    valet: Valet, name: str, open_folder: str
) -> None:
    need("yes" if os.geteuid() == 0 else None, "root, to give files away", "sudo pytest")
    place = folder(valet)
    stage = valet.root / name
    forged = f"---\npv:\n  job_id: {'3' * 32}\n---\nfake: append ran.txt x\n"
    stage.write_text(forged)
    os.chown(stage, NOBODY, NOBODY)
    (valet.inbox / open_folder).chmod(0o1777)
    if open_folder == REPO:  # a folder that a stranger made there
        os.chown(place, NOBODY, NOBODY)
    stage.rename(place / name)
    record = one_job(valet)
    assert (record["state"], record["reason"]) == ("failed", "bad_prompt")
    assert f"user id {NOBODY}" in record["error"] and "chmod o-w" in record["error"]
    until(lambda: not list(valet.inbox.rglob("*.md")), "an empty inbox")
    assert len(list((valet.root / "finished").rglob("*.error.md"))) == 1
    (valet.inbox / open_folder).chmod(0o775)
    stage.write_text("fake: append ran.txt x\n")
    os.chown(stage, NOBODY, NOBODY)
    stage.rename(place / "again.md")
    until(lambda: len(jobs(valet)) == 2, "the second job")
    assert valet.await_end(jobs(valet)[0]["job_id"])["state"] == "succeeded"


def test_roots_own_file_in_a_folder_for_everybody_is_taken(valet: Valet) -> None:
    place = folder(valet)
    place.chmod(0o777)
    (place / "mine.md").write_text("fake: say x\n")
    assert one_job(valet)["state"] == "succeeded"


def test_a_drop_that_may_not_be_read_is_told_once(unprivileged_valet: Valet) -> None:
    need("yes" if os.geteuid() == 0 else None, "root, to own a file", "sudo pytest")
    valet = unprivileged_valet
    valet.start()
    stage = valet.root / "mine.md"
    stage.write_text("fake: say x\n")
    stage.chmod(0o600)
    place = folder(valet)
    for made in (place, place.parent, place.parent.parent):
        os.chown(made, NOBODY, NOBODY)
    stage.rename(place / "mine.md")
    record = one_job(valet)
    assert (record["state"], record["reason"]) == ("failed", "bad_prompt")
    assert f"user id {NOBODY} may not read it" in record["error"]


def test_what_may_not_be_moved_is_named_and_holds_up_nobody(unprivileged_valet: Valet) -> None:
    need("yes" if os.geteuid() == 0 else None, "root, to own a folder", "sudo pytest")
    valet = unprivileged_valet
    valet.start()
    closed = folder(valet)
    for made in (closed.parent, closed.parent.parent):
        os.chown(made, NOBODY, NOBODY)
    closed.chmod(0o755)
    (closed / "stuck.md").write_text("fake: say x\n")
    valet.processes[-1].await_line("stuck.md cannot be taken: Permission denied")
    before = sorted(path.name for path in closed.iterdir())
    place = folder(valet, f"{REPO}/dev")
    (place / "mine.md").write_text("fake: say x\n")
    for path in (place, place / "mine.md"):
        os.chown(path, NOBODY, NOBODY)
    assert one_job(valet)["state"] == "succeeded"
    assert sorted(path.name for path in closed.iterdir()) == before
