"""The table of settings, and the only reading of the environment.

Each setting stands here once: name, field, default, how it is read, one line of help. `--help`
comes from this table; ops/CONTRACT.md and ops/env/pv.env.example are tested against it. What a
setting does lives where it is used, never here.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import shlex
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pv_lib.errors import ConfigFault


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
        """The five folders by their short names, in the order the data goes through them."""
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


LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
SANDBOXES = ("read-only", "workspace-write", "danger-full-access")
IGNORED = frozenset({"PV_JOB_ID", "PV_URL", "PV_TOKEN"})
_HOST_NAME = re.compile(r"[a-z0-9_.-]+|\[[0-9a-f:.]+\]")
_USER_INFO = re.compile(r"//[^/\s]*@")
_AUTHOR = re.compile(r"([^<>]*[^<>\s]) <([^<>\s]+)>")
_CLONE_URL = re.compile(
    r"https?://[^\s@]+|(?:ssh://)?(?:[\w.-]+@)?[\w.-]+:[^\s@]+|ssh://[\w.-]+@[^\s@]+|(?:file://)?/\S+"
)
_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def _path(text: str) -> Path:
    if not text.startswith("/") or "\0" in text:
        raise ValueError("an absolute path")
    return Path(os.path.normpath("/" + text.lstrip("/")))


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        plain = text.isascii() and text.isdigit() and len(text) < 16
        if not plain or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return parse


def _seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        plain = text.isascii() and text.replace(".", "", 1).isdigit()
        if not plain or not low <= float(text) <= high:
            raise ValueError(f"seconds from {low:g} to {high:g}")
        return float(text)

    return parse


def _size(text: str) -> int:
    for unit in ("KiB", "MiB", "GiB", ""):
        number = text.removesuffix(unit).rstrip() if unit else text
        if text.endswith(unit) and number.isascii() and number.isdigit() and len(number) < 16:
            return int(number) * _UNITS[unit]
    raise ValueError("bytes as a whole number, or with KiB, MiB or GiB behind it")


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError("on or off")
    return text == "on"


def _host(text: str) -> str:
    if text == "localhost":
        return text
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        raise ValueError("an IP address or localhost") from None


def _hosts(text: str) -> tuple[str, ...]:
    names = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    if not names or not all(_HOST_NAME.fullmatch(name) for name in names):
        raise ValueError("host names separated by commas, without scheme, port or wildcard")
    return names


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError("one of " + ", ".join(words))
        return text

    return parse


def _word(text: str) -> str:
    if any(c.isspace() or not c.isprintable() for c in text):
        raise ValueError("one word without spaces")
    return text


def _argv(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"words as a shell would split them ({error})") from None


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.replace(",", " ").split())
    if not all(name.isascii() and name.isidentifier() for name in names):
        raise ValueError("names of environment variables, separated by spaces")
    if any(name.startswith("PV_") for name in names):
        raise ValueError("names of variables other than PV_*, which never reach the agent")
    return names


def _command(text: str) -> tuple[str, ...]:
    words = _argv(text)
    if not words:
        raise ValueError("a program, perhaps with arguments")
    return words


def _author(text: str) -> tuple[str, str]:
    found = _AUTHOR.fullmatch(text)
    if not found or not text.isprintable():
        raise ValueError("Name <address>")
    return found[1], found[2]


def _clone_url(text: str) -> str:
    if "{repo}" not in text or not _CLONE_URL.fullmatch(text):
        raise ValueError(
            "an https, ssh or file address with {owner} and {repo} in it, without a password, "
            "as https://github.com/{owner}/{repo}.git"
        )
    return text


def _token(text: str) -> str:
    if len(text) < 16 or not text.isascii() or any(c <= " " or c == "\x7f" for c in text):
        raise ValueError("at least 16 printable ASCII characters without spaces")
    return text


def _program(text: str) -> str:
    if "\0" in text or (os.sep in text and not text.startswith("/")):
        raise ValueError("the name of a program in PATH, or an absolute path")
    return text


SETTINGS: tuple[Setting, ...] = (
    Setting("PV_ROOT", "root", "/srv/prompt-valet", _path, "parent of the folders below"),
    Setting("PV_INBOX_ROOT", "inbox_root", "inbox", _path, "the queue: prompts wait here"),
    Setting("PV_REPOS_ROOT", "repos_root", "repos", _path, "your clones, as owner/name"),
    Setting("PV_WORK_ROOT", "work_root", "work", _path, "the work trees of running jobs"),
    Setting("PV_RUNS_ROOT", "runs_root", "runs", _path, "one folder a job: record and log"),
    Setting("PV_FINISHED_ROOT", "finished_root", "finished", _path, "prompts of ended jobs"),
    Setting("PV_BIND_HOST", "bind_host", "127.0.0.1", _host, "address to listen on"),
    Setting("PV_BIND_PORT", "bind_port", "8888", _whole(0, 65535), "port; 0 picks a free one"),
    Setting(
        "PV_STALL_THRESHOLD_SECONDS",
        "stall_threshold_seconds",
        "60",
        _seconds(0.1, 86400),
        "a running job with an older heartbeat is stalled",
    ),
    Setting(
        "PV_HEARTBEAT_SECONDS",
        "heartbeat_seconds",
        "5",
        _seconds(0.1, 3600),
        "how often a running job's heartbeat is written",
    ),
    Setting(
        "PV_POLL_INTERVAL_SECONDS",
        "poll_interval_seconds",
        "1",
        _seconds(0.05, 3600),
        "how often the inbox is looked at",
    ),
    Setting("PV_API_USER", "api_user", "prompt-valet", _word, "the units drop to this user"),
    Setting("PV_API_TOKEN", "api_token", None, _token, "bearer token; needed off loopback"),
    Setting("PV_API_TOKEN_FILE", "api_token", None, _path, "the token in a file of mode 0600"),
    Setting(
        "PV_ALLOWED_HOSTS",
        "allowed_hosts",
        ",".join(LOOPBACK_NAMES),
        _hosts,
        "accepted Host headers; the bind host is always one",
    ),
    Setting("PV_MAX_RUNNING", "max_running", "2", _whole(1, 256), "jobs at once"),
    Setting(
        "PV_JOB_TIMEOUT_SECONDS",
        "job_timeout_seconds",
        "7200",
        _seconds(0, 31536000),
        "a job ends after this; 0 = never; a job may ask for less",
    ),
    Setting(
        "PV_ABORT_GRACE_SECONDS",
        "abort_grace_seconds",
        "10",
        _seconds(0, 3600),
        "SIGINT at once, SIGTERM at half of it, SIGKILL at its end",
    ),
    Setting("PV_WATCHER", "watcher", "on", _switch, "off: a `watch` runs the jobs elsewhere"),
    Setting("PV_CODEX_BIN", "codex_bin", "codex", _program, "the agent: a name in PATH or a path"),
    Setting("PV_CODEX_MODEL", "codex_model", None, _word, "model, where a job names none"),
    Setting(
        "PV_CODEX_SANDBOX",
        "codex_sandbox",
        "workspace-write",
        _one_of(*SANDBOXES),
        "Codex's sandbox mode",
    ),
    Setting("PV_CODEX_ARGS", "codex_args", "", _argv, "more arguments for `codex exec`"),
    Setting("PV_CODEX_ENV", "codex_env", "", _names, "further variables to hand to the agent"),
    Setting(
        "PV_PUBLISH", "publish", "none", _one_of("none", "push", "pr"), "what becomes of a branch"
    ),
    Setting("PV_PR_COMMAND", "pr_command", "gh", _command, "takes the arguments of `gh pr create`"),
    Setting(
        "PV_GIT_AUTHOR",
        "git_author",
        "Prompt Valet <prompt-valet@localhost>",
        _author,
        "author and committer of the jobs' commits",
    ),
    Setting(
        "PV_GIT_CLONE_URL",
        "git_clone_url",
        None,
        _clone_url,
        "where a missing repository is cloned from",
    ),
    Setting("PV_MAX_PROMPT_BYTES", "max_prompt_bytes", "1MiB", _size, "largest prompt"),
    Setting("PV_MAX_LOG_BYTES", "max_log_bytes", "256MiB", _size, "an agent that writes more ends"),
    Setting("PV_MIN_FREE_BYTES", "min_free_bytes", "512MiB", _size, "below it no job starts"),
    Setting("PV_ACCESS_LOG", "access_log", "off", _switch, "on: a line for each HTTP request"),
)


def load(environ: Mapping[str, str]) -> Config:
    """The settings in `environ`. Raises ConfigFault with every fault that `read` finds."""
    config, faults = read(environ)
    if faults:
        raise ConfigFault(faults)
    return config


def read(environ: Mapping[str, str]) -> tuple[Config, list[str]]:
    """The settings in `environ`, with defaults in the place of wrong ones, and the faults.

    An empty value counts as unset. A fault is one sentence: the name, the value, and what would
    be accepted. Touches no folder, only the token file.
    """
    faults = _unknown_names(environ)
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        text = environ.get(setting.name) or setting.default
        if text is None or (setting.name == "PV_API_TOKEN_FILE" and environ.get("PV_API_TOKEN")):
            values.setdefault(setting.field, None)
            continue
        if setting.field.endswith("_root") and not environ.get(setting.name):
            text = str(values["root"] / text)
        try:
            values[setting.field] = _read(setting, text)
        except ValueError as error:
            shown = "…" if setting.name == "PV_API_TOKEN" else _USER_INFO.sub("//…@", text)
            faults.append(f"{setting.name}={shown} is not valid: it takes {error}")
            values[setting.field] = _fallback(setting, values)
    if environ.get("PV_API_TOKEN") and environ.get("PV_API_TOKEN_FILE"):
        faults.append("PV_API_TOKEN and PV_API_TOKEN_FILE are both set: keep one of them")
    config = Config(**values)
    return config, faults + _contradictions(config)


def make_folders(config: Config) -> list[str]:
    """Make the folders that are missing and see that each can be written; the faults."""
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
        return _token(path.read_text("ascii").strip())
    except UnicodeDecodeError:
        raise ValueError("a file with one ASCII token") from None
    except OSError as error:
        raise ValueError(f"a readable file ({path}: {error.strerror})") from None


def _fallback(setting: Setting, values: Mapping[str, Any]) -> Any:
    """A stand-in value, so that the faults behind this one are found as well."""
    if setting.default is None:
        return None
    if setting.field.endswith("_root"):
        return values["root"] / setting.default
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
    """Whether only this machine can reach `host`, an IP address or `localhost`."""
    return host == "localhost" or ipaddress.ip_address(host).is_loopback
