"""Prompts that a person drops into the inbox folder."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import REPO, Valet, folder, jobs, one_job, until


def test_a_file_copied_in_two_halves_is_run_once_and_whole(
    make_valet: Callable[..., Valet],
) -> None:
    valet = make_valet(PV_POLL_INTERVAL_SECONDS="1")
    valet.start()
    first, second = "# Two halves\nfake: append ran.txt one\n", "fake: append ran.txt two\n"
    target = folder(valet) / "halves.prompt.md"
    with target.open("w") as file:
        file.write(first)
        file.flush()
        time.sleep(1)  # the case itself: a copy that takes a second between its halves
        file.write(second)
    record = one_job(valet)
    assert record["state"] == "succeeded" and record["source"] == "inbox"
    assert (valet.runs / record["job_id"] / "prompt.md").read_text() == first + second
    assert (valet.repo / "ran.txt").read_text() == "one\ntwo\n"
    assert record["filename"] == "halves.prompt.md"


@pytest.mark.alone
def test_a_file_renamed_in_starts_within_two_poll_intervals(
    make_valet: Callable[..., Valet],
) -> None:
    valet = make_valet(PV_POLL_INTERVAL_SECONDS="1")
    valet.start()
    outside = valet.root / "new.md"
    outside.write_text("fake: now started.txt\n")
    renamed = time.time()
    outside.rename(folder(valet) / "new.prompt.md")
    record = one_job(valet)
    assert record["state"] == "succeeded"
    started = float((valet.repo / "started.txt").read_text())
    assert started - renamed < 2 * 1.0 + 0.5  # half a second for a loaded machine


def test_twelve_drops_run_once_each_in_order_within_the_limits(
    make_valet: Callable[..., Valet],
) -> None:
    valet = make_valet(PV_MAX_RUNNING="2")
    for name in ("one", "two"):  # without git: one job at a time in each
        (valet.root / "repos" / "nova-rey" / name).mkdir()
    valet.start()
    stage = valet.root / "stage"
    stage.mkdir()
    for number in range(12):
        steps = f"fake: append ../order.txt {number} begins\nfake: say {number}\n"
        steps += f"fake: append ../order.txt {number} ends\n"
        (stage / f"{number:02d}.prompt.md").write_text(steps)
        os.utime(stage / f"{number:02d}.prompt.md", (1e9 + number, 1e9 + number))
    places = [folder(valet, f"nova-rey/{name}/main") for name in ("one", "two")]
    for number in range(12):
        (stage / f"{number:02d}.prompt.md").rename(places[number % 2] / f"{number:02d}.prompt.md")
    until(lambda: len(jobs(valet)) == 12, "twelve jobs")
    most = 0

    def all_over() -> bool:
        nonlocal most
        running = [job for job in jobs(valet) if job["state"] == "running"]
        most = max(most, len(running))
        assert len({job["repo"] for job in running}) == len(running), "two in one folder"
        return all(job["state"] == "succeeded" for job in jobs(valet))

    until(all_over, "all succeeded")
    assert 1 <= most <= 2
    lines = (valet.root / "repos" / "nova-rey" / "order.txt").read_text().splitlines()
    assert len(lines) == 24
    for repository in (0, 1):
        own = [line for line in lines if int(line.split()[0]) % 2 == repository]
        wanted = [f"{n} {word}" for n in range(repository, 12, 2) for word in ("begins", "ends")]
        assert own == wanted


def test_what_is_no_prompt_is_left_alone(valet: Valet) -> None:
    place = folder(valet)
    secret = valet.root / "secret.md"
    secret.write_text("fake: append leaked.txt x\n")
    (place / ".hidden.prompt.md").write_text("x")
    (place / "unfinished.md.part").write_text("x")
    (place / "backup.prompt.md~").write_text("x")
    (place / "x.tmp").write_text("x")
    (place / "link.prompt.md").symlink_to(secret)
    os.mkfifo(place / "fifo.prompt.md")
    before = sorted(path.name for path in place.iterdir())
    (place / "real.prompt.md").write_text("fake: say hi\n")
    assert one_job(valet)["state"] == "succeeded"
    until(lambda: list((valet.root / "finished").rglob("*.done.md")), "the prompt archived")
    assert sorted(path.name for path in place.iterdir()) == before
    assert not (valet.repo / "leaked.txt").exists()


def test_a_prompt_for_nothing_fails_with_a_reason(valet: Valet) -> None:
    cases = {
        f"{REPO}/nowhere/a.prompt.md": "no branch nowhere",
        "nova-rey/missing/main/b.prompt.md": "no repository nova-rey/missing",
        "stray.prompt.md": "owner/name",
        "nova-rey/c.prompt.md": "owner/name/branch",
        f"{REPO}/main/blank.prompt.md": "must not be blank",
        f"{REPO}/main/latin1.prompt.md": "is not UTF-8",
    }
    for place, _ in cases.items():
        (valet.inbox / place).parent.mkdir(parents=True, exist_ok=True)
        data = b"  \n" if "blank" in place else b"caf\xe9" if "latin" in place else b"fake: say x"
        (valet.inbox / place).write_bytes(data)
    until(lambda: len(jobs(valet)) == len(cases), "a job for each")
    for job in jobs(valet):
        record = valet.await_end(job["job_id"])
        assert record["state"] == "failed"
        assert record["reason"] in ("unknown_target", "bad_prompt")
        wanted = next(why for place, why in cases.items() if place.endswith(job["filename"]))
        assert wanted in record["error"]
    until(lambda: not list(valet.inbox.rglob("*.md")), "an empty inbox")
    assert len(list((valet.root / "finished").rglob("*.error.md"))) == len(cases)


def test_front_matter_of_the_author_stays_and_options_are_heeded(
    make_valet: Callable[..., Valet],
) -> None:
    valet = make_valet(PV_MAX_RUNNING="1")
    valet.start()
    valet.await_state(valet.submit("fake: wait go")["job_id"], "running")
    text = "---\r\ntitle: Mine\r\npv:\r\n  priority: 7\r\n  note: keep me\r\n---\r\nfake: say x\r\n"
    (folder(valet) / "mine.prompt.md").write_bytes(text.encode())
    until(lambda: len(jobs(valet)) == 2, "the second job")
    record = jobs(valet)[0]
    assert record["priority"] == 7
    queued = Path(record["inbox_path"]).read_bytes()
    for line in (
        "title: Mine",
        "  note: keep me",
        "  priority: 7",
        f"  job_id: {record['job_id']}",
    ):
        assert f"{line}\r\n".encode() in queued
    assert queued.endswith(b"---\r\nfake: say x\r\n")
    (valet.repo / "go").touch()
    valet.await_end(record["job_id"])
    given = (valet.runs / record["job_id"] / "prompt.md").read_bytes()
    assert given == b"---\r\ntitle: Mine\r\n---\r\nfake: say x\r\n"


def test_a_finished_prompt_put_back_runs_again_as_a_new_job(valet: Valet) -> None:
    job_id = valet.submit("fake: append ran.txt x\n")["job_id"]
    valet.await_end(job_id)
    done = until(lambda: list((valet.root / "finished").rglob("*.done.md")), "the archive")[0]
    shutil.copy(done, folder(valet) / done.name)
    until(lambda: len(jobs(valet)) == 2, "a second job")
    again = jobs(valet)[0]
    assert again["job_id"] != job_id
    assert valet.await_end(again["job_id"])["state"] == "succeeded"
    assert (valet.repo / "ran.txt").read_text() == "x\nx\n"


def test_drops_made_while_nobody_watched_are_run(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet()
    (folder(valet) / "early.prompt.md").write_text("fake: say early\n")
    valet.start()
    assert one_job(valet)["state"] == "succeeded"


def test_a_queued_file_alone_rebuilds_its_record(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet()
    api = valet.start("serve", "--no-watcher")
    receipt = valet.submit("fake: say rebuilt\n", priority=3, timeout_seconds=60)
    api.stop()
    shutil.rmtree(valet.runs / receipt["job_id"])
    valet.start()
    record = one_job(valet)
    assert record["job_id"] == receipt["job_id"] and record["state"] == "succeeded"
    assert (record["priority"], record["timeout_seconds"]) == (3, 60)
    assert (record["source"], record["created_at"]) == ("api", receipt["created_at"])
