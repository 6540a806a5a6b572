"""The agent's events become a log, what the record needs, and a verdict."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

import pytest
from harness import TREE

from pv_lib.agent.adapter import Launch
from pv_lib.agent.codex import Codex, CodexTranscript
from pv_lib.agent.transcript import MAX_LINE, Transcript
from pv_lib.jobs.job import State
from pv_lib.settings import config

FIXTURES = sorted((TREE / "tests/fixtures/codex").glob("*.jsonl"))
judge = Codex(config.load({})).judge
TURN = b'{"type":"turn.completed","usage":{"input_tokens":3,"output_tokens":1}}'
TURN_LOG = "\ntokens: 3 in (0 cached), 1 out\n"
TIMED = "2026-11-22T16:15:10.418529Z ERROR codex_core::tools::router: error="
LOGS = {
    "plan": """
plan:
  [ ] Read
  [ ] Write
  [ ] Test

plan:
  [x] Read
  [ ] Write
  [ ] Test

$ true
[exit 0]

plan:
  [x] Read
  [x] Write
  [x] Test

All planned.

tokens: 6000 in (1000 cached), 170 out
""",
    "failing_command": """
$ sh -c 'echo out; echo err >&2; exit 3'
err
out
[exit 3]

The command failed.

tokens: 2400 in (400 cached), 68 out
""",
    "patch": """
* add /work/tree/new.txt

* update /work/tree/old.txt

* delete /work/tree/gone.txt

Patched.

tokens: 4800 in (800 cached), 136 out
""",
    "limit": (
        "error: You’ve hit your usage limit. Upgrade to Pro "  # noqa: RUF001 -- as Codex says it
        "(https://chatgpt.com/explore/pro), visit https://chatgpt.com/settings/usage "
        "to purchase more credits or try again later.\n"
    ),
    "fail_400": "error: The request is bad.\n",
    "no_home": (
        "WARNING: proceeding, even though we could not create PATH aliases: CODEX_HOME points to "
        '"/work/no-such-home", but that path does not exist\n'
        'Error finding codex home: CODEX_HOME points to "/work/no-such-home", but that path does '
        "not exist\n"
    ),
    "patch_failed": f"""\
{TIMED}apply_patch verification failed: Failed to find expected lines in /work/tree/old.txt:
not there

The patch failed.

tokens: 2400 in (400 cached), 68 out
""",
    "gpt5_say": """\
warning: Model metadata for `gpt-5` not found. Defaulting to fallback metadata; this can degrade \
performance and cause issues.

Hi.

tokens: 1200 in (200 cached), 34 out
""",
}


def fold(pieces: Iterable[bytes]) -> tuple[bytes, Transcript]:
    """The log of an output that came in `pieces`, and what was seen in it."""
    seen = CodexTranscript()
    log = b"".join([seen.feed(piece) for piece in pieces])
    return log + seen.finish(), seen


def log_of(data: bytes) -> str:
    return fold([data])[0].decode()


def fixture(name: str) -> bytes:
    return (FIXTURES[0].parent / f"{name}.jsonl").read_bytes()


def item(step: str, **fields: object) -> bytes:
    return json.dumps({"type": f"item.{step}", "item": {"id": "item_0", **fields}}).encode() + b"\n"


def known(seen: Transcript) -> tuple[object, ...]:
    told = (seen.spoke, seen.thread_id, seen.usage, seen.activity, seen.message, seen.turn)
    return (*told, seen.error, seen.first_text)


def random_pieces(data: bytes, dice: random.Random, most: int) -> list[bytes]:
    pieces, start = [], 0
    while start < len(data):
        end = start + dice.randint(1, most)
        pieces.append(data[start:end])
        start = end
    return pieces


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_the_log_is_the_same_however_the_output_is_cut(path: Path) -> None:
    data = path.read_bytes()
    whole, seen = fold([data])
    dice = random.Random(path.stem)
    cuts = [[data[i : i + 1] for i in range(len(data))], data.splitlines(keepends=True)]
    cuts += [random_pieces(data, dice, most) for most in (3, 50, 400, 400, 400)]
    for pieces in cuts:
        log, again = fold(pieces)
        assert log == whole
        assert known(again) == known(seen)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_a_log_ends_with_a_newline_and_shows_no_json(path: Path) -> None:
    log = log_of(path.read_bytes())
    assert log.endswith("\n") and "\r" not in log
    assert '{"type"' not in log


@pytest.mark.parametrize("name", LOGS)
def test_the_log_of_a_recorded_run(name: str) -> None:
    assert log_of(fixture(name)) == LOGS[name]


def test_what_a_run_leaves_for_the_record() -> None:
    seen = fold([fixture("write")])[1]
    assert seen.thread_id == "01a2040a-293a-76b2-98da-2dff96542981"
    assert seen.usage is not None and seen.usage["output_tokens"] == 68
    assert (seen.turn, seen.message, seen.error) == ("completed", "I wrote hello.txt.", None)


def test_the_activity_tells_what_the_agent_is_doing() -> None:
    seen = CodexTranscript()
    told = []
    for line in [*fixture("failing_command").splitlines(keepends=True)[1:], item("started")]:
        seen.feed(line)
        told.append(seen.activity)
    assert told == [
        "thinking",
        "running: sh -c 'echo out; echo err >&2; exit 3'",
        "thinking",
        "The command failed.",
        "finished",
        "working",
    ]


def test_the_activity_is_one_short_printable_line() -> None:
    seen = CodexTranscript()
    text = "\n\n  first\x1b[31m\tline " + "x" * 500 + "\nsecond"
    seen.feed(item("completed", type="agent_message", text=text))
    assert seen.activity is not None and seen.activity.startswith("first [31m line xxx")
    assert len(seen.activity) <= 160 and seen.activity.isprintable()


def test_output_without_events_is_the_log_itself() -> None:
    text = b"hello\n\n  {not json}\n[1, 2]\nlast"
    assert log_of(text) == text.decode() + "\n"
    assert log_of(b"one\r\ntwo\r\n") == "one\ntwo\n"


@pytest.mark.parametrize(
    ("name", "exit_code", "state", "reason"),
    [
        ("say", 0, State.SUCCEEDED, "completed"),
        ("plan", 0, State.SUCCEEDED, "completed"),
        ("failing_command", 0, State.SUCCEEDED, "completed"),
        ("patch_failed", 0, State.SUCCEEDED, "completed"),
        ("gpt5_say", 0, State.SUCCEEDED, "completed"),
        ("say", 1, State.FAILED, "exit_code"),
        ("say", 137, State.FAILED, "exit_code"),
        ("fail_400", 1, State.FAILED, "turn_failed"),
        ("fail_400", 0, State.FAILED, "turn_failed"),
        ("fail_401", 1, State.FAILED, "turn_failed"),
        ("fail_500", 1, State.FAILED, "turn_failed"),
        ("drop", 1, State.FAILED, "turn_failed"),
        ("limit", 1, State.FAILED, "usage_limit"),
        ("no_home", 1, State.FAILED, "spawn_failed"),
        ("broken_config", 1, State.FAILED, "spawn_failed"),
        ("wrong_type_config", 1, State.FAILED, "spawn_failed"),
        ("bad_flag", 2, State.FAILED, "spawn_failed"),
        ("no_provider", 1, State.FAILED, "spawn_failed"),
        ("not_a_repo", 1, State.FAILED, "spawn_failed"),
        ("empty_prompt", 1, State.FAILED, "spawn_failed"),
        ("no_dir", 1, State.FAILED, "spawn_failed"),
        ("abort", 0, State.FAILED, "turn_failed"),
        ("abort", 1, State.FAILED, "exit_code"),
        ("logged_out", 1, State.FAILED, "exit_code"),
        ("abort", None, State.FAILED, "lost"),
        ("say", None, State.FAILED, "lost"),
        ("no_home", None, State.FAILED, "lost"),
    ],
)
def test_the_verdict_on_a_recorded_run(
    name: str, exit_code: int | None, state: State, reason: str
) -> None:
    verdict = judge(fold([fixture(name)])[1], exit_code)
    assert (verdict.state, verdict.reason) == (state, reason)
    assert (verdict.error is None) == (state is State.SUCCEEDED)


@pytest.mark.parametrize(
    ("output", "exit_code", "state", "reason"),
    [
        (b"", 0, State.SUCCEEDED, "completed"),
        (b"done\n", 0, State.SUCCEEDED, "completed"),
        (b"", 1, State.FAILED, "spawn_failed"),
        (b"sh: 1: codex: not found\n", 127, State.FAILED, "spawn_failed"),
        (b"anything\n", 126, State.FAILED, "spawn_failed"),
        (b"working\nError at the end\n", 1, State.FAILED, "exit_code"),
        (b"", None, State.FAILED, "lost"),
    ],
)
def test_the_verdict_on_an_agent_that_speaks_no_events(
    output: bytes, exit_code: int | None, state: State, reason: str
) -> None:
    verdict = judge(fold([output])[1], exit_code)
    assert (verdict.state, verdict.reason) == (state, reason)


def test_a_usage_limit_told_in_an_error_alone_is_one() -> None:
    output = fixture("limit").rsplit(b"\n", 2)[0]  # the agent ends before its turn.failed
    assert judge(fold([output])[1], 1).reason == "usage_limit"


def test_a_turn_that_starts_after_a_failed_one_is_judged_by_its_own_end() -> None:
    failed = b'{"type":"turn.failed","error":{"message":"hit your usage limit"}}\n'
    started = b'{"type":"turn.started"}\n'
    seen = fold([started, failed, started])[1]
    assert (seen.turn, seen.error) == (None, None)
    assert judge(seen, 0).reason == "turn_failed" and judge(seen, 1).reason == "exit_code"
    seen = fold([started, failed, started, TURN])[1]
    assert judge(seen, 0).state is State.SUCCEEDED
    assert judge(fold([started, TURN, b"\n", failed])[1], 1).reason == "usage_limit"


def test_a_turn_that_starts_otherwise_takes_nothing_back() -> None:
    started = b'{"type":"turn.started"}\n'
    seen = fold([started, TURN, b"\n", started])[1]
    assert (seen.turn, seen.activity) == ("completed", "thinking")
    assert judge(seen, 0).state is State.SUCCEEDED
    limit = b'{"type":"error","message":"You hit your usage limit"}\n'
    assert judge(fold([limit, started])[1], 1).reason == "usage_limit"


def test_the_verdict_names_what_the_agent_said() -> None:
    assert judge(fold([fixture("fail_400")])[1], 1).error == "The request is bad."
    assert "CODEX_HOME points to" in (judge(fold([fixture("no_home")])[1], 1).error or "")
    assert "exit status 137" in (judge(fold([fixture("say")])[1], 137).error or "")


@pytest.mark.parametrize(
    ("line", "log"),
    [
        (TURN, TURN_LOG),
        (b"warn: x " + TURN, "warn: x \n" + TURN_LOG),
        (TURN + b"warn: x", TURN_LOG + "warn: x\n"),
        (b"before" + TURN + b"behind", "before\n" + TURN_LOG + "behind\n"),
        (b"50% \xc3\xa4" + TURN + "größe".encode(), "50% ä\n" + TURN_LOG + "größe\n"),
        (TURN + b"  " + TURN, TURN_LOG * 2),
        (b"bad \xff" + TURN + b"\xfe!", "bad \ufffd\n" + TURN_LOG + "\ufffd!\n"),
        (b'{"not":"one"}' + TURN, '{"not":"one"}\n' + TURN_LOG),
        (TURN + b"\r", TURN_LOG),
    ],
)
def test_text_glued_to_an_event_is_parted_from_it(line: bytes, log: str) -> None:
    for ends in (b"\n", b""):
        text, seen = fold([line + ends])
        assert text.decode() == log
        assert seen.turn == "completed"
    assert log_of(b"first\n" + line + b"\nlast\n") == f"first\n{log}last\n"


def test_text_behind_an_event_with_broken_bytes_stays_whole() -> None:
    event = b'{"type":"item.completed","item":{"type":"agent_message","text":"\xff\xfe\xff"}}'
    assert log_of(event + b"behind it\n") == "\n\ufffd\ufffd\ufffd\nbehind it\n"
    assert fold([event + TURN])[1].turn == "completed"


def test_an_event_cut_short_does_not_hide_the_next_one() -> None:
    assert fold([b'{"type":"item.started","it' + TURN + b"\n"])[1].turn == "completed"


def test_any_number_of_events_may_share_a_line() -> None:
    seen = CodexTranscript()
    seen.feed(b'{"type":"turn.started"}' * 2000 + TURN + b"\n")
    assert seen.turn == "completed"


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"item.completed","item":null}',
        b'{"type":"item.completed"}',
        b'{"type":"item.completed","item":[]}',
        b'{"type":"item.completed","item":{}}',
        b'{"type":"item.completed","item":{"type":null}}',
        b'{"type":"item.completed","item":{"type":["agent_message"]}}',
        b'{"type":"item.completed","item":{"type":"agent_message","text":5}}',
        b'{"type":"item.completed","item":{"type":"reasoning"}}',
        b'{"type":"item.completed","item":{"type":"command_execution","command":[],"exit_code":{}}}',
        b'{"type":"item.started","item":{"type":"command_execution","command":"\'unclosed"}}',
        b'{"type":"item.completed","item":{"type":"file_change","changes":{"a":1}}}',
        b'{"type":"item.completed","item":{"type":"file_change","changes":[null,5,{"path":1}]}}',
        b'{"type":"item.updated","item":{"type":"todo_list","items":"x"}}',
        b'{"type":"item.updated","item":{"type":"todo_list","items":[1,{"text":[]}]}}',
        b'{"type":"item.completed","item":{"type":"error","message":{}}}',
        b'{"type":"item.completed","item":{"type":"web_search","query":5}}',
        b'{"type":"item.","item":{"type":"agent_message"}}',
        b'{"type":"thread.started","thread_id":5}',
        b'{"type":"thread.unheard_of"}',
        b'{"type":"turn.completed","usage":5}',
        b'{"type":"turn.completed","usage":{"input_tokens":"many","output_tokens":null}}',
        b'{"type":"turn.failed","error":"text"}',
        b'{"type":"turn.failed"}',
        b'{"type":"turn.failed","error":{"message":{"deep":1}}}',
        b'{"type":"error"}',
        b'{"type":"error","message":null}',
        b'{"type":"error","message":"{"}',
        b'{"type":"error","message":"{\\"error\\":5}"}',
        b'{"type":"error","message":"{}"}',
        b'{"type":"error","message":"\\ud800 \\udfff"}',
        b'{"type":"errors"}',
        b'{"type":"error","type":null}',
        b'{"type":"item.completed","type":5}',
        b'{"type":"item.completed","item":{"type":"agent_message","text":"\\ud800\\u0000"}}',
        b'{"type":"turn.completed","usage":{"input_tokens":NaN,"output_tokens":1e999}}',
        b'{"type":"item.completed","item":' + b"9" * 5000 + b"}",
        b'{"type":"item.completed","item":' + b"[" * 100_000,
        b'{"type":"item.completed","item":' + b'{"item":' * 100_000 + b"1" + b"}" * 100_001,
        b'{"type":"error","message":"' + b'{\\"error\\":' * 20_000 + b'"}',
        b'{"type":"error","message":"\xff\x00\xc3"}',
        b'{"type":"turn.started"',
        b'{"type":',
        b"\x00\x00\x00",
        b"\xff\xfe{\xfd",
        b"{" * 100_000,
        b"",
    ],
    ids=lambda line: repr(line[:60]),
)
def test_nothing_an_agent_writes_stops_the_log(line: bytes) -> None:
    log, seen = fold([line + b"\n", TURN + b"\n"])
    assert log.decode().endswith(TURN_LOG)
    assert seen.turn == "completed"
    assert judge(seen, 0).state is State.SUCCEEDED
    assert isinstance(judge(fold([line])[1], 1).error, str)


def test_random_bytes_between_events_never_raise() -> None:
    dice = random.Random(3)
    parts = [*TURN.split(b","), b'{"type":"item.', b'"item":', b"null", b"{", b"}", b"\n", b"\r"]
    parts += [b"\xff", b"\x00", b'"', b"\\ud800", b"[", b" ", b'{"type":"error","message":"x"}']
    for _ in range(3000):
        data = b"".join(dice.choices(parts, k=dice.randrange(12)))
        log, seen = fold([data])
        assert fold(random_pieces(data, dice, 9))[0] == log
        assert log.decode() == log.decode("utf-8", "strict") and seen.finish() == b""


def test_a_line_over_the_limit_gives_the_same_log_however_it_is_cut() -> None:
    tail = b'"}}' + TURN + b"\nnext\n"
    data = b'{"type":"item.completed","item":{"text":"' + b"\xc3\xa4" * (MAX_LINE // 2) + tail
    whole, seen = fold([data])
    assert whole.endswith((TURN_LOG + "next\n").encode()) and seen.turn == "completed"
    for step in (MAX_LINE, 5_000_011):
        assert fold(data[i : i + step] for i in range(0, len(data), step))[0] == whole


def test_a_line_just_within_the_limit_is_still_an_event() -> None:
    start, end = b'{"type":"item.completed","item":{"type":"agent_message","text":"', b'"}}'
    text = b"x" * (MAX_LINE - len(start) - len(end))
    seen = fold([start, text, end, b"\n"])[1]
    assert seen.message is not None and len(seen.message) == len(text)


def test_the_agent_gets_only_what_is_on_the_list() -> None:
    given = {
        **{"PATH": "/bin", "HOME": "/home/x", "LANG": "C", "TERM": "dumb", "TMPDIR": "/tmp/x"},
        **{"HTTPS_PROXY": "p", "https_proxy": "q", "no_proxy": "r", "NO_PROXY": "s"},
        **{"CODEX_HOME": "/h", "CODEX_API_KEY": "k", "OPENAI_API_KEY": "o", "MY_KEY": "asked for"},
    }
    kept_back = {
        **{"PV_API_TOKEN": "secret", "PV_API_TOKEN_FILE": "/t", "PV_ROOT": "/r", "PV_TOKEN": "s"},
        **{"AWS_SECRET_ACCESS_KEY": "s", "GITHUB_TOKEN": "s", "SSH_AUTH_SOCK": "s", "path": "p"},
        **{"MY_KEY_2": "not asked for", "LD_PRELOAD": "x", "XCODEX_HOME": "x", "PYTHONPATH": "x"},
    }
    agent = Codex(config.load({"PV_CODEX_ENV": "MY_KEY,NOT_SET"}))
    assert agent.environ({**given, **kept_back}) == given


def test_the_command_line_of_a_run() -> None:
    settings = config.load({"PV_CODEX_ARGS": "-c 'a = \"b c\"'", "PV_CODEX_MODEL": "gpt-x"})
    tree, message = Path("/work/tree"), Path("/runs/1/last-message.md")
    argv = Codex(settings).argv("/bin/codex", Launch(tree, message, None, git=True))
    assert argv == [
        *("/bin/codex", "exec", "--json", "--color", "never", "--sandbox", "workspace-write"),
        *("--cd", "/work/tree", "--output-last-message", "/runs/1/last-message.md"),
        *("--model", "gpt-x", "-c", 'a = "b c"', "-"),
    ]
    argv = Codex(settings).argv("codex", Launch(tree, message, "own", git=False))
    assert argv[argv.index("--model") + 1] == "own"
    assert "--skip-git-repo-check" in argv and argv[-1] == "-"
    argv = Codex(config.load({})).argv("codex", Launch(tree, message, None, git=True))
    assert "--model" not in argv and "--skip-git-repo-check" not in argv
