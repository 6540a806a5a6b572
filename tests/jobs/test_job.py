"""A job's states, its id, its record's bytes, its times, and the names it may carry."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import re
import threading
import uuid
from pathlib import Path

import pytest
from harness import git

from pv_lib.errors import BadRecord
from pv_lib.jobs import job
from pv_lib.jobs.job import BRANCH, OWNER, REPO, IllegalTransition, JobIds, Record, State

NOW = "2026-11-22T15:56:29.123Z"
OLD = "2026-11-22T15:00:00.000Z"
LEGAL = {
    *((State.CREATED, state) for state in (State.RUNNING, State.FAILED, State.ABORTED)),
    *((State.RUNNING, state) for state in (State.SUCCEEDED, State.FAILED, State.ABORTED)),
}
PAIRS = list(itertools.product(State, State))


def record(state: State = State.CREATED) -> Record:
    return Record("a" * 32, state=state, updated_at=OLD, started_at=OLD if state.terminal else None)


@pytest.mark.parametrize(("old", "new"), sorted(LEGAL))
def test_a_legal_transition_changes_the_state_and_its_stamps(old: State, new: State) -> None:
    before = record(old)
    after = job.advance(before, new, NOW, reason="why", error=None)
    assert (after.state, after.reason, after.updated_at) == (new, "why", NOW)
    assert after.finished_at == (NOW if new.terminal else None)
    starts = new is State.RUNNING
    assert (after.started_at, after.heartbeat_at) == ((NOW, NOW) if starts else (None, None))
    assert before == record(old)


@pytest.mark.parametrize(("old", "new"), [pair for pair in PAIRS if pair not in LEGAL])
def test_an_illegal_transition_raises_and_changes_nothing(old: State, new: State) -> None:
    before = record(old)
    with pytest.raises(IllegalTransition, match=f"{old.value} -> {new.value}"):
        job.advance(before, new, NOW, reason="why")
    assert before == record(old)


def test_a_state_is_terminal_where_nothing_follows() -> None:
    assert {s for s in State if s.terminal} == {State.SUCCEEDED, State.FAILED, State.ABORTED}


def test_only_advance_changes_a_state() -> None:
    with pytest.raises(IllegalTransition):
        record().with_(state=State.RUNNING)
    assert record().with_(phase="running").phase == "running"
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record(), "state", State.RUNNING)  # noqa: B010 -- mypy refuses the plain form


def test_the_queue_goes_by_priority_then_age() -> None:
    jobs = [
        Record("d", priority=0, created_at=OLD),
        Record("c", priority=5, created_at=NOW),
        Record("b", priority=-1, created_at=OLD),
        Record("a", priority=0, created_at=NOW),
        Record("e", priority=5, created_at=NOW),
        Record("f", priority=0),
    ]
    assert "".join(r.job_id for r in sorted(jobs, key=job.queue_order)) == "cefdab"


@pytest.mark.parametrize(
    "times",
    [
        [1000.0] * 10_000,
        [1000.0 - second for second in range(500)],
        [1000.0, 1000.0005, 1000.001, 999.0, 0.0, 1000.002, 5000.0, 1.0],
        [1795363000.123 + i / 10_000 for i in range(2000)],
    ],
    ids=["stands", "goes back", "jumps", "goes on"],
)
def test_ids_always_sort_by_submission(times: list[float]) -> None:
    ids = JobIds(iter(times).__next__)
    made = [ids.new() for _ in times]
    assert all(a < b for a, b in itertools.pairwise(made))
    for name in made[:: max(1, len(made) // 50)]:
        plain = uuid.UUID(hex=name)
        assert (plain.version, plain.variant) == (7, uuid.RFC_4122)
        assert re.fullmatch("[0-9a-f]{32}", name) and job.JOB_ID.fullmatch(name)


def test_an_id_begins_with_its_time() -> None:
    assert JobIds(lambda: 1795363000.123).new().startswith(f"{1795363000123:012x}7000")


def test_ids_of_many_threads_differ() -> None:
    ids = JobIds()
    made: list[list[str]] = [[] for _ in range(8)]

    def work(mine: list[str]) -> None:
        mine += [ids.new() for _ in range(500)]

    threads = [threading.Thread(target=work, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(mine == sorted(mine) for mine in made)
    assert len({name for mine in made for name in mine}) == 4000


def test_a_record_reads_back_as_it_was_written() -> None:
    full = Record(
        job_id="x1",
        state=State.RUNNING,
        error="größe 日本 \x1b",
        priority=-5,
        pid=12,
        exit_code=0,
        timeout_seconds=1.5,
        usage={"output_tokens": 3},
        result={"commit": None, "files_changed": 2},
        extra={"from_the_future": [1, {"a": None}]},
    ).with_(**job.split_repo("nova-rey/example"))
    for one in (full, Record("x1"), record(State.SUCCEEDED)):
        assert job.decode(job.encode(one), one.job_id) == one
    assert job.encode(full).endswith(b"\n}\n")
    assert "größe 日本" in job.encode(full).decode()


def test_a_record_of_state_alone_is_enough() -> None:
    assert job.decode(b'{"state":"failed"}', "x") == Record("x", state=State.FAILED)


def test_the_folder_gives_the_id() -> None:
    assert job.decode(b'{"state":"created","job_id":"../other"}', "x").job_id == "x"


def test_unknown_fields_are_kept() -> None:
    plain = {"state": "created", "new": {"deep": [1]}, "extra": 5, "": None}
    read = job.decode(json.dumps(plain).encode(), "x")
    assert read.extra == {"new": {"deep": [1]}, "extra": 5, "": None}
    assert job.decode(job.encode(read), "x") == read
    assert job.to_dict(read)["new"] == {"deep": [1]}


def test_a_repo_gives_its_owner_and_name() -> None:
    read = job.decode(b'{"state":"created","repo":"nova-rey/example"}', "x")
    assert (read.git_owner, read.repo_name) == ("nova-rey", "example")
    assert job.split_repo("alone") == {"repo": "alone", "git_owner": None, "repo_name": "alone"}


@pytest.mark.parametrize("field", dataclasses.fields(Record), ids=lambda field: field.name)
def test_a_field_of_a_wrong_type_gets_its_default(field: dataclasses.Field[object]) -> None:
    if field.name in ("job_id", "state", "extra"):
        return
    wrong: list[object] = [True, ["x"], [{}]]
    wrong += [1.5] if field.name != "timeout_seconds" else [-1, "5"]
    wrong += [{"a": 1}] if field.name not in ("usage", "result") else ["x", 5]
    for value in wrong:
        data = json.dumps({"state": "created", field.name: value}).encode()
        assert getattr(job.decode(data, "x"), field.name) == field.default


def test_null_gets_the_default_where_a_value_is_needed() -> None:
    for name in ("schema", "priority", "attempt"):
        assert job.decode(f'{{"state":"created","{name}":null}}'.encode(), "x") == Record("x")


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b" ", b"\x00", b"\xff\xfe", b"{", b'{"state":"cre', b"null", b"5", b'"created"'),
        *(b"[]", b'["state"]', b"{}", b'{"State":"created"}', b'{"state":null}', b'{"state":5}'),
        *(b'{"state":"Created"}', b'{"state":"lost"}', b'{"state":[]}', b'{"state":{"a":1}}'),
        *(b'{"state":"created"} x', b'{"state":"created","pid":' + b"9" * 5000 + b"}"),
        *(b"[" * 100_000, b'{"a":' * 100_000, b'{"state":"created","a":"\xff"}', b"not json"),
    ],
    ids=lambda data: repr(data[:30]),
)
def test_what_is_no_record_raises_bad_record(data: bytes) -> None:
    with pytest.raises(BadRecord, match="job x"):
        job.decode(data, "x")


def test_random_damage_is_a_record_or_a_bad_record() -> None:
    dice = random.Random(5)
    whole = job.encode(Record("x", error="some text", usage={"a": 1}, priority=3))
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(dice.randint(1, 4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        data = data[: dice.choice([len(data), dice.randrange(len(data))])]
        try:
            read = job.decode(bytes(data), "x")
        except BadRecord:
            continue
        assert job.decode(job.encode(read), "x").state is read.state


@pytest.mark.parametrize(
    "field", ['"timeout_seconds":1e999', '"usage":{"a":NaN}', '"new":[-Infinity]', '"new":1e999']
)
def test_what_a_record_shows_is_json_whatever_number_it_holds(field: str) -> None:
    shown = job.encode(job.decode(f'{{"state":"created",{field}}}'.encode(), "x"))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON: a browser cannot read the list any more")

    json.loads(shown, parse_constant=refuse)


def test_lone_surrogates_do_not_stop_a_record() -> None:
    for value in (Record("x", activity="\ud800"), Record("x", usage={"\udfff": "\ud800"})):
        assert job.decode(job.encode(value), "x").state is State.CREATED


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1795362989.123, "2026-11-22T15:56:29.123Z"),
        (1795362989.9996, "2026-11-22T15:56:29.999Z"),
        (951782400.5, "2000-02-29T00:00:00.500Z"),
    ],
)
def test_a_stamp_is_utc_with_milliseconds(seconds: float, text: str) -> None:
    assert job.stamp(seconds) == text
    assert job.seconds_of(text) == pytest.approx(seconds, abs=0.001)


def test_stamps_read_back_and_sort_as_their_times() -> None:
    dice = random.Random(6)
    times = sorted(dice.uniform(0, 4e9) for _ in range(2000))
    stamps = [job.stamp(moment) for moment in times]
    assert stamps == sorted(stamps)
    for moment, text in zip(times, stamps, strict=True):
        seconds = job.seconds_of(text)
        assert seconds is not None and -0.001 < seconds - moment < 0.000_001
        assert job.stamp(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *((None, None), ("", None), ("soon", None), ("Z", None), ("2026-13-01T00:00:00Z", None)),
        *(("\ud800", None), ("1795362989", None), ("2026-11-22T25:00:00Z", None)),
        ("1970-01-01T00:00:10Z", 10.0),
        ("1970-01-01T01:00:10+01:00", 10.0),
        ("1970-01-01T00:00:10", 10.0),
        ("1970-01-02", 86400.0),
        ("1970-01-01T00:00:10.123456+00:00", 10.123456),
    ],
)
def test_timestamps_of_other_programs_are_understood(
    text: str | None, seconds: float | None
) -> None:
    assert job.seconds_of(text) == seconds


ACCEPTED_BRANCHES = [
    *("main", "feature/one", "a/b/c", "v1.0", "release-1.2+fix", "user@host", "fix#12", "_x", "A"),
    *("a_b-c", "0", "a.b.c", "x.locked", "a.lockx/b", "feature/-x", "b" * 200),
]
REFUSED_BRANCHES = [
    *("", "-x", "--help", ".x", "..", ".", "/x", "x/", "/", "x.", "a..b", "a//b", "a/.b", "a/."),
    *("a.lock", "a.lock/b", "a/b.lock", "@{-1}", "a@{1}", "a b", " a", "a ", "a\n", "a\nb", "a\tb"),
    *("a~1", "a^", "a:b", "a?", "a*", "a[b", "a\\b", "a\x00b", "a\x7f", "größe", "#1", "+x", "a'b"),
    *('a"b', "a$b", "a;b", "a|b", "a&b", "a<b", "a(b)", "a`b`", "a!b", "a%b", "a,b", "b" * 201),
    *("../x", "x/..", "x/../y", "x/./y", "a..", "refs/heads/../x", "\u202ea", "a\u2028b", "@"),
]


@pytest.mark.parametrize("name", ACCEPTED_BRANCHES)
def test_a_branch_is_accepted(name: str) -> None:
    assert BRANCH.fullmatch(name)


@pytest.mark.parametrize("name", REFUSED_BRANCHES)
def test_a_branch_is_refused(name: str) -> None:
    assert not BRANCH.fullmatch(name)


def test_git_takes_every_branch_that_is_accepted(tmp_path: Path) -> None:
    dice = random.Random(7)
    atoms = ["a", "B", "0", "_", "-", ".", "/", "+", "#", "@", ".lock", "x"]
    made = {"".join(dice.choices(atoms, k=dice.randint(1, 7))) for _ in range(6000)}
    names = sorted(filter(BRANCH.fullmatch, {*made, *ACCEPTED_BRANCHES}))
    assert len(names) > 500
    git(tmp_path, "init", "--quiet", "--bare")
    for name in dice.sample(names, 150):
        assert git(tmp_path, "check-ref-format", "--branch", name) == name + "\n"


@pytest.mark.parametrize("name", ["nova-rey", "a", "_x", "A.b", "x_y-z", "0day", "a" * 100])
def test_an_owner_or_name_is_accepted(name: str) -> None:
    assert OWNER.fullmatch(name)
    assert REPO.fullmatch(f"{name}/{name}")


@pytest.mark.parametrize(
    "name",
    [
        *("", "-x", ".x", "..", ".", ".git", "a b", "a/b", "a\\b", "a\n", "a\x00", "größe"),
        *("a" * 101, "a:b", "a~b", "a$b", "@a", "+a", "a?b", "a%2fb", " a", "a ", "'a'"),
    ],
)
def test_an_owner_or_name_is_refused(name: str) -> None:
    assert not OWNER.fullmatch(name)
    assert not REPO.fullmatch(f"{name}/ok") and not REPO.fullmatch(f"ok/{name}")


def test_a_repo_is_one_owner_and_one_name() -> None:
    for text in ("", "/", "a", "a/", "/b", "a/b/c", "a//b", "a/b/", "https://x/y"):
        assert not REPO.fullmatch(text)


@pytest.mark.parametrize("name", ["a", "0", "A-b_c", "01a20405", "x" * 64])
def test_a_job_id_is_accepted(name: str) -> None:
    assert job.JOB_ID.fullmatch(name)


@pytest.mark.parametrize("name", ["", "-a", "_a", "..", "a/b", "a.b", "a b", "a\n", "ä", "x" * 65])
def test_a_job_id_is_refused(name: str) -> None:
    assert not job.JOB_ID.fullmatch(name)
