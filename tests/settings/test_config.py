"""The settings: every fault is named at once, with the value and what would be accepted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pv_lib.errors import ConfigFault
from pv_lib.settings import config
from pv_lib.settings.config import SETTINGS

TOKEN = "0123456789abcdef"
PATH = "an absolute path"
# Each setting with a value it does not take, and what the fault says would be accepted.
WRONG = {
    "PV_ROOT": ("srv/pv", PATH),
    "PV_INBOX_ROOT": ("inbox", PATH),
    "PV_REPOS_ROOT": ("./repos", PATH),
    "PV_RUNS_ROOT": ("~/runs", PATH),
    "PV_FINISHED_ROOT": ("../finished", PATH),
    "PV_WORK_ROOT": ("work", PATH),
    "PV_BIND_HOST": ("example.com", "an IP address or localhost"),
    "PV_BIND_PORT": ("65536", "a whole number from 0 to 65535"),
    "PV_STALL_THRESHOLD_SECONDS": ("soon", "seconds from 0.1 to 86400"),
    "PV_HEARTBEAT_SECONDS": ("-1", "seconds from 0.1 to 3600"),
    "PV_POLL_INTERVAL_SECONDS": ("nan", "seconds from 0.05 to 3600"),
    "PV_API_USER": ("prompt valet", "one word"),
    "PV_API_TOKEN": ("short", "at least 16 printable ASCII characters"),
    "PV_API_TOKEN_FILE": ("/no/such/file", "a readable file"),
    "PV_ALLOWED_HOSTS": ("*.example.com", "host names separated by commas"),
    "PV_MAX_RUNNING": ("0", "a whole number from 1 to 256"),
    "PV_JOB_TIMEOUT_SECONDS": ("1h", "seconds from 0 to"),
    "PV_ABORT_GRACE_SECONDS": ("inf", "seconds from 0 to 3600"),
    "PV_WATCHER": ("yes", "on or off"),
    "PV_ACCESS_LOG": ("yes", "on or off"),
    "PV_CODEX_BIN": ("bin/codex", "the name of a program in PATH, or an absolute path"),
    "PV_CODEX_MODEL": ("gpt 5", "one word"),
    "PV_CODEX_SANDBOX": ("none", "one of read-only, workspace-write, danger-full-access"),
    "PV_CODEX_ARGS": ("-c 'unclosed", "words as a shell would split them"),
    "PV_CODEX_ENV": ("A-B", "names of environment variables"),
    "PV_PUBLISH": ("yes", "one of none, push, pr"),
    "PV_PR_COMMAND": ("gh 'unclosed", "words as a shell would split them"),
    "PV_GIT_AUTHOR": ("somebody", "Name <address>"),
    "PV_GIT_CLONE_URL": ("git@host:{owner}", "with {owner} and {repo} in it, without a password"),
    "PV_MAX_PROMPT_BYTES": ("1MB", "bytes as a whole number, or with KiB, MiB or GiB"),
    "PV_MAX_LOG_BYTES": ("-5", "bytes as a whole number, or with KiB, MiB or GiB"),
    "PV_MIN_FREE_BYTES": ("1.5GiB", "bytes as a whole number, or with KiB, MiB or GiB"),
}


def faults_of(**environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigFault) as caught:
        config.load(environ)
    return caught.value.faults


def token_file(tmp_path: Path, text: str, mode: int = 0o600) -> str:
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize("name", [setting.name for setting in SETTINGS])
def test_a_wrong_value_is_named_with_what_is_accepted(name: str) -> None:
    value, accepted = WRONG[name]
    faults = faults_of(**{name: value})
    assert len(faults) == 1
    assert faults[0].startswith(f"{name}=")
    assert accepted in faults[0]
    assert (value in faults[0]) == (name != "PV_API_TOKEN")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("PV_BIND_PORT", value) for value in ("-1", "+1", "1.0", "0x10", "8888 ", "1_0", "²")),
        *(("PV_HEARTBEAT_SECONDS", value) for value in ("0", "1e2", "1.2.3", "1,5", ".", "5s")),
        *(("PV_MAX_LOG_BYTES", value) for value in ("MiB", "1 mib", "1KiBMiB", "1MiB ", "9" * 20)),
        *(("PV_WATCHER", value) for value in ("ON", "true", "1", " on")),
        *(("PV_BIND_HOST", value) for value in ("0.0.0", "127.0.0.1:80", "::1::", "http://x", "*")),
        *(("PV_ALLOWED_HOSTS", value) for value in (" , ", "http://a", "a@b", "a b")),
        *(("PV_CODEX_ENV", value) for value in ("1A", "A=B", "A;B", "Ä")),
        *(("PV_API_TOKEN", value) for value in ("a" * 15, "a b" * 9, "ä" * 20, "a" * 20 + "\x7f")),
        *(("PV_API_USER", value) for value in ("a\tb", "a\x00b", "\x1b[0m")),
    ],
)
def test_values_that_look_nearly_right_are_refused(name: str, value: str) -> None:
    faults = faults_of(**{name: value})
    assert len(faults) == 1 and faults[0].startswith(f"{name}=")
    assert WRONG[name][1].split(" from ")[0] in faults[0]


def test_a_number_of_any_length_is_told_what_is_accepted() -> None:
    for name in ("PV_BIND_PORT", "PV_MAX_RUNNING", "PV_JOB_TIMEOUT_SECONDS", "PV_MIN_FREE_BYTES"):
        (fault,) = faults_of(**{name: "9" * 5000})
        assert WRONG[name][1] in fault, fault[-200:]


def test_all_faults_are_told_together() -> None:
    faults = faults_of(PV_BIND_PORT="x", PV_WATCHER="maybe", PV_MAX_RUNNING="many", PV_ROOTS="/x")
    assert sorted(fault.partition("=")[0] for fault in faults) == [
        *("PV_BIND_PORT", "PV_MAX_RUNNING", "PV_ROOTS", "PV_WATCHER")
    ]
    with pytest.raises(ConfigFault) as caught:
        config.load({"PV_BIND_PORT": "x", "PV_WATCHER": "maybe"})
    assert all(fault in caught.value.detail for fault in caught.value.faults)


def test_a_fault_does_not_hide_a_contradiction_behind_it() -> None:
    faults = faults_of(PV_ROOT="relative", PV_RUNS_ROOT="/r", PV_INBOX_ROOT="/r/inbox")
    assert len(faults) == 2 and "PV_INBOX_ROOT=/r/inbox lies inside PV_RUNS_ROOT" in faults[1]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_comment_behind_a_value_is_a_fault_that_says_so(setting: config.Setting) -> None:
    faults = faults_of(**{setting.name: f"{setting.default or '/x'} # my comment"})
    assert len(faults) == 1 and faults[0].startswith(f"{setting.name}=")
    assert "comment" in faults[0].partition("takes")[2]


def test_an_unknown_name_is_a_fault_with_a_hint() -> None:
    assert faults_of(PV_MAX_RUNING="2") == (
        "PV_MAX_RUNING=2 is not a setting: did you mean PV_MAX_RUNNING?",
    )
    assert faults_of(PV_QQQQQQQQQQQQQQ="x") == (
        "PV_QQQQQQQQQQQQQQ=x is not a setting: see --help for the settings",
    )


def test_a_mistyped_token_is_not_printed() -> None:
    for name in ("PV_API_TOKN", "PV_TOKEN_API", "PV_APITOKEN"):
        (fault,) = faults_of(**{name: TOKEN})
        assert name in fault and TOKEN not in fault


def test_variables_of_others_are_ignored() -> None:
    plain = config.load({})
    others = {"PV_JOB_ID": "x # y", "PV_URL": "y", "PV_TOKEN": "z", "PVX": "1", "pv_root": "/x"}
    assert config.load({**others, "PATH": "/bin", "CODEX_HOME": "/h"}) == plain


def test_our_own_variables_cannot_be_passed_to_the_agent() -> None:
    for names in ("PV_API_TOKEN", "A,PV_X"):
        (fault,) = faults_of(PV_CODEX_ENV=names)
        assert fault.startswith(f"PV_CODEX_ENV={names} ") and "other than PV_*" in fault


def test_an_empty_value_counts_as_unset() -> None:
    assert config.load({setting.name: "" for setting in SETTINGS}) == config.load({})


def test_defaults() -> None:
    plain = config.load({})
    root = Path("/srv/prompt-valet")
    assert plain.root == root
    assert all(folder == root / short for short, folder in plain.roots.items())
    assert {"inbox", "repos", "runs", "finished"} <= set(plain.roots)
    assert (plain.bind_host, plain.bind_port, plain.api_token) == ("127.0.0.1", 8888, None)
    seconds = (plain.stall_threshold_seconds, plain.heartbeat_seconds, plain.poll_interval_seconds)
    assert seconds == (60, 5, 1)
    assert (plain.job_timeout_seconds, plain.abort_grace_seconds) == (7200, 10)
    assert (plain.api_user, plain.max_running, plain.watcher) == ("prompt-valet", 2, True)
    assert (plain.codex_bin, plain.codex_model) == ("codex", None)
    assert (plain.codex_sandbox, plain.codex_args, plain.codex_env) == ("workspace-write", (), ())
    sizes = (plain.max_prompt_bytes, plain.max_log_bytes, plain.min_free_bytes)
    assert sizes == (1 << 20, 256 << 20, 512 << 20)
    assert {"127.0.0.1", "localhost", "[::1]"} <= set(plain.allowed_hosts)


def test_every_setting_of_the_table_is_described() -> None:
    rows = {line.split()[0]: line for line in config.describe().splitlines()}
    assert list(rows) == [setting.name for setting in SETTINGS]
    assert all(s.help in rows[s.name] and (s.default or "none") in rows[s.name] for s in SETTINGS)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("0", 0), ("1", 1), ("4096", 4096), ("1KiB", 1024), ("64KiB", 65536), ("3MiB", 3 << 20)),
        *(("3 MiB", 3 << 20), ("2GiB", 2 << 30), ("0GiB", 0)),
    ],
)
def test_sizes_take_units(text: str, size: int) -> None:
    assert config.load({"PV_MIN_FREE_BYTES": text}).min_free_bytes == size


def test_values_are_read_into_their_types() -> None:
    read = config.load(
        {
            **{"PV_ROOT": "/a//b/../c/", "PV_RUNS_ROOT": "/elsewhere/runs", "PV_WATCHER": "off"},
            **{"PV_BIND_HOST": "[::1]", "PV_BIND_PORT": "0", "PV_HEARTBEAT_SECONDS": "0.25"},
            **{"PV_ALLOWED_HOSTS": "Pv.Example, localhost,", "PV_CODEX_ENV": "A, B C"},
            **{"PV_CODEX_ARGS": "-c 'x = \"a b\"' --y", "PV_CODEX_BIN": "/opt/codex"},
        }
    )
    assert (read.root, read.inbox_root) == (Path("/a/c"), Path("/a/c/inbox"))
    assert (read.runs_root, read.watcher) == (Path("/elsewhere/runs"), False)
    assert (read.bind_host, read.bind_port, read.heartbeat_seconds) == ("::1", 0, 0.25)
    assert read.allowed_hosts == ("pv.example", "localhost")
    assert (read.codex_env, read.codex_bin) == (("A", "B", "C"), "/opt/codex")
    assert read.codex_args == ("-c", 'x = "a b"', "--y")


def test_a_token_is_read_from_its_file(tmp_path: Path) -> None:
    path = token_file(tmp_path, TOKEN + "\n")
    assert config.load({"PV_API_TOKEN_FILE": path}).api_token == TOKEN
    assert config.load({"PV_API_TOKEN": TOKEN}).api_token == TOKEN


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o601])
def test_a_token_file_that_others_can_reach_is_a_fault(tmp_path: Path, mode: int) -> None:
    (fault,) = faults_of(PV_API_TOKEN_FILE=token_file(tmp_path, TOKEN, mode))
    assert fault.startswith("PV_API_TOKEN_FILE=") and f"chmod 600 {tmp_path / 'token'}" in fault


@pytest.mark.parametrize("text", ["", "\n", "short", TOKEN + "\n" + TOKEN, TOKEN + " x", "ä" * 20])
def test_a_token_file_without_one_token_is_a_fault(tmp_path: Path, text: str) -> None:
    (fault,) = faults_of(PV_API_TOKEN_FILE=token_file(tmp_path, text))
    assert fault.startswith("PV_API_TOKEN_FILE=") and "ASCII" in fault
    assert not text.strip() or text not in fault


def test_a_token_file_that_is_no_file_is_a_fault(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for name in (".", "fifo", "missing"):
        (fault,) = faults_of(PV_API_TOKEN_FILE=str(tmp_path / name))
        assert fault.startswith("PV_API_TOKEN_FILE=") and "file" in fault.partition("takes")[2]


def test_a_token_given_twice_is_a_fault(tmp_path: Path) -> None:
    path = token_file(tmp_path, TOKEN)
    (fault,) = faults_of(PV_API_TOKEN=TOKEN, PV_API_TOKEN_FILE=path)
    assert "PV_API_TOKEN and PV_API_TOKEN_FILE" in fault and TOKEN not in fault


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "fe80::1"])
def test_only_loopback_may_be_bound_without_a_token(host: str) -> None:
    (fault,) = faults_of(PV_BIND_HOST=host)
    assert fault.startswith(f"PV_BIND_HOST={host} ") and "PV_API_TOKEN" in fault
    assert config.load({"PV_BIND_HOST": host, "PV_API_TOKEN": TOKEN}).bind_host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_token(host: str) -> None:
    assert config.load({"PV_BIND_HOST": host}).bind_host == host.strip("[]")


@pytest.mark.parametrize("short", ["INBOX", "REPOS", "FINISHED"])
def test_a_root_inside_another_is_a_fault(short: str) -> None:
    inner, outer = f"PV_{short}_ROOT", "PV_RUNS_ROOT"
    for path in ("/r/deep/er", "/r/x", "/r/../r/x"):
        (fault,) = faults_of(**{inner: path, outer: "/r"})
        assert fault.startswith(f"{inner}=/") and f"{outer}=/r" in fault
    assert config.load({inner: "/rx", outer: "/r"}).runs_root == Path("/r")


def test_two_roots_in_one_folder_are_a_fault() -> None:
    for path in ("/r", "/r/", "/r/."):
        (fault,) = faults_of(PV_INBOX_ROOT="/r", PV_RUNS_ROOT=path)
        assert "PV_INBOX_ROOT=/r" in fault and "PV_RUNS_ROOT=/r" in fault


def test_two_slashes_in_front_do_not_hide_a_root() -> None:
    for path in ("//r", "//r/x"):
        assert len(faults_of(PV_INBOX_ROOT=path, PV_RUNS_ROOT="/r")) == 1


def test_a_heartbeat_slower_than_the_stall_threshold_is_a_fault() -> None:
    (fault,) = faults_of(PV_HEARTBEAT_SECONDS="90")
    assert "PV_STALL_THRESHOLD_SECONDS=60" in fault and "PV_HEARTBEAT_SECONDS=90" in fault


def test_missing_folders_are_made_and_bad_ones_named(tmp_path: Path) -> None:
    good = config.load({"PV_ROOT": str(tmp_path / "deep" / "root")})
    assert config.make_folders(good) == []
    assert all(folder.is_dir() for folder in good.roots.values())
    (tmp_path / "file").write_text("")
    bad = config.load({"PV_ROOT": str(tmp_path), "PV_RUNS_ROOT": str(tmp_path / "file" / "runs")})
    (fault,) = config.make_folders(bad)
    assert "PV_RUNS_ROOT=" in fault
