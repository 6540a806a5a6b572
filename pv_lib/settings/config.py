"""The table of settings, and the only reading of the environment.

A setting is a field of `Config` and a row of `SETTINGS`: name, field, default, parser, one line of
help, whether the status shows it. `--help` and the status are made from the table; ops/CONTRACT.md
and ops/env/pv.env.example are tested against it. What a setting does belongs where it is used,
never here.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pv_lib.errors import ConfigFault
from pv_lib.settings import values


@dataclass(frozen=True)
class Config:
    """Every setting, validated. Paths are absolute; times in seconds; sizes in bytes."""

    root: Path
    inbox_root: Path
    repos_root: Path
    work_root: Path
    runs_root: Path
    finished_root: Path
    bind_host: str
    bind_port: int
    stall_threshold_seconds: float
    heartbeat_seconds: float
    poll_interval_seconds: float
    api_user: str
    api_token: str | None
    allowed_hosts: tuple[str, ...]
    max_running: int
    job_timeout_seconds: float
    abort_grace_seconds: float
    watcher: bool
    codex_bin: str
    codex_model: str | None
    codex_sandbox: str
    codex_args: tuple[str, ...]
    codex_env: tuple[str, ...]
    publish: str
    pr_command: tuple[str, ...]
    git_author: tuple[str, str]
    git_clone_url: str | None
    max_prompt_bytes: int
    max_log_bytes: int
    min_free_bytes: int
    access_log: bool

    @property
    def roots(self) -> dict[str, Path]:
        """The five folders by their short names, in the order the data passes through them."""
        return {
            "inbox": self.inbox_root,
            "repos": self.repos_root,
            "work": self.work_root,
            "runs": self.runs_root,
            "finished": self.finished_root,
        }


@dataclass(frozen=True)
class Setting:
    """One row of the table; `parse` turns the text into the field's value or raises ValueError.

    The ValueError's text says what would be accepted. `default` is text as an operator would
    write it; None means unset. Defaults of the folders are relative to PV_ROOT.
    """

    name: str
    field: str
    default: str | None
    parse: Callable[[str], Any]
    help: str
    shown: bool = False  # whether the status shows the value


LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
SANDBOXES = ("read-only", "workspace-write", "danger-full-access")
IGNORED = frozenset({"PV_JOB_ID", "PV_URL", "PV_TOKEN"})
_USER_INFO = re.compile(r"//[^/\s]*@")


SETTINGS: tuple[Setting, ...] = (
    Setting("PV_ROOT", "root", "/srv/prompt-valet", values.path, "parent of the folders below"),
    Setting("PV_INBOX_ROOT", "inbox_root", "inbox", values.path, "the queue: prompts wait here"),
    Setting("PV_REPOS_ROOT", "repos_root", "repos", values.path, "your clones, as owner/name"),
    Setting("PV_WORK_ROOT", "work_root", "work", values.path, "the work trees of running jobs"),
    Setting("PV_RUNS_ROOT", "runs_root", "runs", values.path, "one folder a job: record and log"),
    Setting("PV_FINISHED_ROOT", "finished_root", "finished", values.path, "prompts of ended jobs"),
    Setting("PV_BIND_HOST", "bind_host", "127.0.0.1", values.host, "address to listen on"),
    Setting(
        "PV_BIND_PORT", "bind_port", "8888", values.whole(0, 65535), "port; 0 picks a free one"
    ),
    Setting(
        "PV_STALL_THRESHOLD_SECONDS",
        "stall_threshold_seconds",
        "60",
        values.seconds(0.1, 86400),
        "a running job with an older heartbeat is stalled",
        shown=True,
    ),
    Setting(
        "PV_HEARTBEAT_SECONDS",
        "heartbeat_seconds",
        "5",
        values.seconds(0.1, 3600),
        "how often a running job's heartbeat is written",
        shown=True,
    ),
    Setting(
        "PV_POLL_INTERVAL_SECONDS",
        "poll_interval_seconds",
        "1",
        values.seconds(0.05, 3600),
        "how often the inbox is looked at",
        shown=True,
    ),
    Setting("PV_API_USER", "api_user", "prompt-valet", values.word, "the units drop to this user"),
    Setting("PV_API_TOKEN", "api_token", None, values.token, "bearer token; needed off loopback"),
    Setting(
        "PV_API_TOKEN_FILE", "api_token", None, values.path, "the token in a file of mode 0600"
    ),
    Setting(
        "PV_ALLOWED_HOSTS",
        "allowed_hosts",
        ",".join(LOOPBACK_NAMES),
        values.hosts,
        "accepted Host headers; the bind host is always one",
    ),
    Setting("PV_MAX_RUNNING", "max_running", "2", values.whole(1, 256), "jobs at once", shown=True),
    Setting(
        "PV_JOB_TIMEOUT_SECONDS",
        "job_timeout_seconds",
        "7200",
        values.seconds(0, 31536000),
        "a job ends after this; 0 = never; a job may ask for less",
        shown=True,
    ),
    Setting(
        "PV_ABORT_GRACE_SECONDS",
        "abort_grace_seconds",
        "10",
        values.seconds(0, 3600),
        "SIGINT at once, SIGTERM at half of it, SIGKILL at its end",
        shown=True,
    ),
    Setting("PV_WATCHER", "watcher", "on", values.switch, "off: a `watch` runs the jobs elsewhere"),
    Setting(
        "PV_CODEX_BIN", "codex_bin", "codex", values.program, "the agent: a name in PATH or a path"
    ),
    Setting("PV_CODEX_MODEL", "codex_model", None, values.word, "model, where a job names none"),
    Setting(
        "PV_CODEX_SANDBOX",
        "codex_sandbox",
        "workspace-write",
        values.one_of(*SANDBOXES),
        "Codex's sandbox mode",
        shown=True,
    ),
    Setting("PV_CODEX_ARGS", "codex_args", "", values.words, "more arguments for `codex exec`"),
    Setting(
        "PV_CODEX_ENV", "codex_env", "", values.names, "further variables to hand to the agent"
    ),
    Setting(
        "PV_PUBLISH",
        "publish",
        "none",
        values.one_of("none", "push", "pr"),
        "what becomes of a branch",
    ),
    Setting(
        "PV_PR_COMMAND", "pr_command", "gh", values.command, "takes the arguments of `gh pr create`"
    ),
    Setting(
        "PV_GIT_AUTHOR",
        "git_author",
        "Prompt Valet <prompt-valet@localhost>",
        values.author,
        "author and committer of the jobs' commits",
    ),
    Setting(
        "PV_GIT_CLONE_URL",
        "git_clone_url",
        None,
        values.clone_url,
        "where a missing repository is cloned from",
    ),
    Setting(
        "PV_MAX_PROMPT_BYTES", "max_prompt_bytes", "1MiB", values.size, "largest prompt", shown=True
    ),
    Setting(
        "PV_MAX_LOG_BYTES",
        "max_log_bytes",
        "256MiB",
        values.size,
        "an agent that writes more ends",
        shown=True,
    ),
    Setting(
        "PV_MIN_FREE_BYTES",
        "min_free_bytes",
        "512MiB",
        values.size,
        "below it no job starts",
        shown=True,
    ),
    Setting(
        "PV_ACCESS_LOG", "access_log", "off", values.switch, "on: a line for each HTTP request"
    ),
)


def load(environ: Mapping[str, str]) -> Config:
    """The settings in `environ`. Raises ConfigFault with every fault that `read` finds."""
    config, faults = read(environ)
    if faults:
        raise ConfigFault(faults)
    return config


def read(environ: Mapping[str, str]) -> tuple[Config, list[str]]:
    """The settings in `environ`, with defaults in place of invalid values, and the faults.

    An empty value counts as unset. A fault is one sentence: the name, the value, and what would
    be accepted. Reads no file but the token file.
    """
    faults = _unknown_names(environ)
    found: dict[str, Any] = {}
    for setting in SETTINGS:
        text = environ.get(setting.name) or setting.default
        if text is None or (setting.name == "PV_API_TOKEN_FILE" and environ.get("PV_API_TOKEN")):
            found.setdefault(setting.field, None)
            continue
        if setting.field.endswith("_root") and not environ.get(setting.name):
            text = str(found["root"] / text)
        try:
            found[setting.field] = _read(setting, text)
        except ValueError as error:
            shown = "…" if setting.name == "PV_API_TOKEN" else _USER_INFO.sub("//…@", text)
            faults.append(f"{setting.name}={shown} is not valid: it takes {error}")
            found[setting.field] = _fallback(setting, found)
    if environ.get("PV_API_TOKEN") and environ.get("PV_API_TOKEN_FILE"):
        faults.append("PV_API_TOKEN and PV_API_TOKEN_FILE are both set: keep one of them")
    config = Config(**found)
    return config, faults + _contradictions(config)


def make_folders(config: Config) -> list[str]:
    """Make the folders that are missing and check that each can be written; the faults."""
    names = {setting.field: setting.name for setting in SETTINGS}
    faults = []
    for short, folder in config.roots.items():
        name = names[f"{short}_root"]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            faults.append(f"{name}={folder} cannot be made: {error.strerror}")
            continue
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            faults.append(f"{name}={folder} is not writable for this user")
    return faults


def describe() -> str:
    """The table as text for `--help`: name, default, meaning."""
    rows = [(s.name, s.default if s.default else "none", s.help) for s in SETTINGS]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"  {n:<{widths[0]}}  {d:<{widths[1]}}  {h}" for n, d, h in rows)


def _read(setting: Setting, text: str) -> Any:
    if " #" in text:
        raise ValueError(
            "a value alone; systemd keeps a comment behind a value as part of it, "
            "so put the comment on a line of its own"
        )
    value = setting.parse(text)
    return _token_from(value) if setting.name == "PV_API_TOKEN_FILE" else value


def _token_from(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) or mode & 0o077:
            raise ValueError(f"a regular file that only its owner can read (chmod 600 {path})")
        return values.token(path.read_text("ascii").strip())
    except UnicodeDecodeError:
        raise ValueError("a file with one ASCII token") from None
    except OSError as error:
        raise ValueError(f"a readable file ({path}: {error.strerror})") from None


def _fallback(setting: Setting, found: Mapping[str, Any]) -> Any:
    """The default in place of an invalid value, so that later faults are found as well."""
    if setting.default is None:
        return None
    if setting.field.endswith("_root"):
        return found["root"] / setting.default
    return setting.parse(setting.default)


def _unknown_names(environ: Mapping[str, str]) -> list[str]:
    known = {setting.name for setting in SETTINGS} | IGNORED
    faults = []
    for name in sorted(environ):
        if name.startswith("PV_") and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "see --help for the settings"
            shown = "…" if "TOK" in name else environ[name]
            faults.append(f"{name}={shown} is not a setting: {hint}")
    return faults


def _contradictions(config: Config) -> list[str]:
    faults = []
    folders = [(f"PV_{short.upper()}_ROOT", path) for short, path in config.roots.items()]
    for name, path in folders:
        for other, parent in folders:
            if name != other and (parent in path.parents or (path == parent and name < other)):
                faults.append(f"{name}={path} lies inside {other}={parent}: keep them apart")
    if not is_loopback(config.bind_host) and not config.api_token:
        faults.append(
            f"PV_BIND_HOST={config.bind_host} is reachable from the network: "
            "set PV_API_TOKEN or PV_API_TOKEN_FILE, or bind 127.0.0.1"
        )
    if config.heartbeat_seconds >= config.stall_threshold_seconds:
        faults.append(
            f"PV_STALL_THRESHOLD_SECONDS={config.stall_threshold_seconds:g} must be more than "
            f"PV_HEARTBEAT_SECONDS={config.heartbeat_seconds:g}, or every job looks stalled"
        )
    return faults


def is_loopback(host: str) -> bool:
    """Whether `host`, an IP address or `localhost`, is reachable from this machine only."""
    return host == "localhost" or ipaddress.ip_address(host).is_loopback
