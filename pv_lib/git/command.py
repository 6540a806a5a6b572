"""Runs git, and the programs that run git, without the commands that a repository configures.

Every call is an argument vector with its own process group, deadline and marker. It polls `tick`,
so that an abort or the end of the server stops it, and reports a failure in one line without the
credentials of a URL. Hooks, monitors, filters, and the commands named in a repository's own
configuration are disabled; those of the operator's configuration for the network (ssh,
credentials) are kept. Knows nothing of jobs, branches or work trees.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pv_lib.errors import ValetError

LOCAL_SECONDS = 1800.0  # a checkout of many gigabytes on a slow disk
NETWORK_SECONDS = 600.0  # a fetch or a push
_TICK = 0.1
_GRACE = 1.0  # seconds git gets to remove its lock files
_OUTPUT = 64 << 20  # bytes of output that are read; far more than any call here prints
_OFF = (
    ("core.fsmonitor", "false"),
    ("core.hooksPath", "/dev/null"),
    ("core.pager", "cat"),
    ("commit.gpgSign", "false"),
    ("push.gpgSign", "false"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("protocol.ext.allow", "never"),
    ("submodule.recurse", "false"),
    ("fetch.recurseSubmodules", "false"),
    ("push.recurseSubmodules", "no"),
    ("push.followTags", "false"),
    ("core.safecrlf", "false"),
    ("core.sparseCheckout", "false"),  # files outside of it would not be committed
)
# Keys of a repository's own configuration that name a command, and the value that disables each.
_COMMANDS = (
    (re.compile(r"core\.(sshcommand|askpass|alternaterefscommand)|credential\..*helper"), ""),
    (re.compile(r"core\.gitproxy"), "none"),
    (re.compile(r"diff\.external|diff\..*\.(command|textconv)|remote\..*\.vcs|gpg\..*program"), ""),
)
# git takes the first value of these, so they cannot be overridden; `fetch` and `push` pass theirs.
_PACK = re.compile(r"remote\..*\.(uploadpack|receivepack)")
_LAZY = re.compile(r"remote\..*\.promisor|extensions\.partialclone")
_FILTER = re.compile(r"(filter\..*)\.(?:clean|smudge|process|required)", re.DOTALL)
# Variables that would point git at another repository than that of the call.
_LOCAL = frozenset(
    {
        *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE"),
        *("GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_COMMON_DIR", "GIT_PREFIX", "GIT_EXTERNAL_DIFF"),
    }
)
# What git, ssh, credential helpers and forge programs need; no other variable reaches them.
_PASSED_ON = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|TERM|TMPDIR|TZ|LANG|LC_\w+|XDG_\w+|DBUS_SESSION_BUS_ADDRESS|"
    r"(?:GIT|SSH|GH|GITHUB|GITLAB|GITEA|KRB5)\w*|SSL_CERT_(?:FILE|DIR)|CURL_CA_BUNDLE|PV_JOB_ID|"
    r"(?i:https?|no|all)_(?i:proxy)"
)
_NOTHING: Mapping[str, str] = {}
_CREDENTIALS = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s]*@", re.IGNORECASE)


class GitFailed(ValetError):
    """git, or a program that runs git, failed; `detail` is the reason it gave."""


@dataclass(frozen=True)
class Done:
    """The result of a call that ended."""

    status: int
    output: bytes
    complaint: str  # its stderr, without credentials

    @property
    def text(self) -> str:
        """The output as one line of text."""
        return self.output.decode("utf-8", "replace").strip()


class Git:
    """git with one environment, and with `tick`, which is polled and may raise to end a call."""

    def __init__(
        self,
        environ: Mapping[str, str],
        tick: Callable[[], None] = lambda: None,
        overrides: Sequence[tuple[str, str]] = _OFF,
    ) -> None:
        self._plain = {
            name: value
            for name, value in environ.items()
            if _PASSED_ON.fullmatch(name) and name not in _LOCAL
        }
        self.tick = tick
        self._overrides = tuple(overrides)
        self.settings: dict[str, str] = {}  # of the repository it is hardened against
        self.environ = {
            **self._plain,
            **_as_variables(overrides, self._plain.get("GIT_CONFIG_COUNT", "0")),
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_OPTIONAL_LOCKS": "0",
            "LC_ALL": "C.UTF-8",
        }
        if not {"GIT_SSH_COMMAND", "GIT_SSH"} & self.environ.keys():
            self.environ["GIT_SSH_COMMAND"] = "ssh -oBatchMode=yes"

    def hardened(self, repository: Path, env: Mapping[str, str] = _NOTHING) -> Git:
        """A copy with every command disabled that the configuration of `repository` names.

        What an earlier call has disabled stays disabled: parts of a configuration can apply in one
        work tree (`env` points at it) and not in another; see `has_conditional_includes`.
        Raises GitFailed.
        """
        done = self.run("config", "--list", "--show-scope", "-z", cwd=repository, env=env)
        if done.status:
            raise GitFailed(reason(done))
        found = list(_configured(done.output.decode("utf-8", "surrogateescape")))
        own = ("local", "worktree")
        operators = [(key, value) for scope, key, value in found if scope not in own]
        wanted = dict.fromkeys(key for scope, key, _ in found if scope in own)
        if any(map(_PACK.fullmatch, wanted)) and any(map(_LAZY.fullmatch, wanted)):
            raise GitFailed(
                "it is a partial clone whose configuration names a program for uploadpack or "
                "receivepack: remove that setting"
            )
        overrides = list(self._overrides)
        for key in wanted:
            for pattern, harmless in _COMMANDS:
                if pattern.fullmatch(key):
                    overrides.append((key, harmless))
                    overrides += [pair for pair in operators if pair[0] == key]
        for name in dict.fromkeys(m[1] for _, key, _ in found if (m := _FILTER.fullmatch(key))):
            overrides += [(f"{name}.{part}", "") for part in ("clean", "smudge", "process")]
            overrides.append((f"{name}.required", "false"))
        environ = dict(self._plain)
        ssh = [value for key, value in operators if key == "core.sshcommand"]
        if ssh:
            environ.setdefault("GIT_SSH_COMMAND", ssh[-1])
        hardened = Git(environ, self.tick, overrides)
        hardened.settings = dict(self.settings)
        for _, key, value in found:
            hardened.settings.setdefault(key, value)  # of several addresses the first
        return hardened

    @property
    def has_conditional_includes(self) -> bool:
        """Whether the repository's configuration can differ between its work trees."""
        return any(key.startswith("includeif.") for key in self.settings)

    def ask(self, *argv: str, cwd: Path, env: Mapping[str, str] = _NOTHING) -> str:
        """The output of a git call as text; `env` adds variables. Raises GitFailed."""
        done = self.run(*argv, cwd=cwd, env=env)
        if done.status:
            raise GitFailed(reason(done))
        return done.text

    def run(
        self,
        *argv: str,
        cwd: Path,
        seconds: float = LOCAL_SECONDS,
        feed: bytes = b"",
        into: IO[bytes] | None = None,
        env: Mapping[str, str] = _NOTHING,
    ) -> Done:
        """One git call, `argv` without `git`; its output goes to `into`, or is in the result.

        Raises GitFailed when it takes longer than `seconds` or is not installed, OSError where
        the system cannot start it now, and whatever `tick` raises. The process is killed then.
        """
        return self.call(["git", *argv], cwd, seconds=seconds, feed=feed, into=into, env=env)

    def call(
        self,
        argv: Sequence[str],
        cwd: Path,
        *,
        seconds: float,
        feed: bytes = b"",
        into: IO[bytes] | None = None,
        env: Mapping[str, str] = _NOTHING,
    ) -> Done:
        """As `run`, for another program: `argv` begins with its name."""
        with contextlib.ExitStack() as stack:
            given, said, noise = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
            given.write(feed)
            given.seek(0)
            try:
                child = subprocess.Popen(
                    argv,
                    executable=_program(argv[0], self.environ.get("PATH")),
                    cwd=cwd,
                    stdin=given,
                    stdout=into or said,
                    stderr=noise,
                    env={**self.environ, **env},
                    start_new_session=True,
                )
            except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
                if isinstance(error, FileNotFoundError) and cwd.is_dir():
                    raise GitFailed(f"{argv[0]} is not there: install it") from error
                raise GitFailed(f"{cwd} cannot be used: {error.strerror}") from error
            self._await(child, " ".join(argv[:2]), seconds)
            said.seek(0)
            noise.seek(0)
            complaint = scrub(noise.read(1 << 20).decode("utf-8", "replace"))
            return Done(child.returncode, said.read(_OUTPUT), complaint)

    def _await(self, child: subprocess.Popen[bytes], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        handle = -1
        try:
            handle = os.pidfd_open(child.pid)  # ready at its end; wait() would poll
            poll = select.poll()  # select() takes no descriptor above 1023
            poll.register(handle, select.POLLIN)
            while not poll.poll(_TICK * 1000):
                self.tick()
                if time.monotonic() > deadline:
                    raise GitFailed(f"{what} took longer than {seconds:g} s and was ended")
            child.wait()
        finally:
            if handle >= 0:
                os.close(handle)
            if child.poll() is None:
                _end(child)


@functools.lru_cache(maxsize=16)
def _program(name: str, path: str | None) -> str:
    """The program's path, cached so that a call need not search a long PATH again."""
    return shutil.which(name, path=path) or name


def reason(done: Done) -> str:
    """Why a call failed: the first line of its stderr marked as an error, else the first line."""
    lines = [line.strip() for line in done.complaint.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("fatal:", "error:", "ERROR:"))]
    return (telling or lines or [f"exit status {done.status}"])[0][:1000]


def scrub(text: str) -> str:
    """`text` without user names and passwords in URLs."""
    return _CREDENTIALS.sub(r"\1", text)


def _end(child: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=_GRACE)
            return
    child.wait()


def _as_variables(overrides: Sequence[tuple[str, str]], before: str) -> dict[str, str]:
    """Settings as variables, which programs started by git inherit too (git-config(1))."""
    first = int(before) if before.isdigit() else 0
    variables = {"GIT_CONFIG_COUNT": str(first + len(overrides))}
    for number, (key, value) in enumerate(overrides, first):
        variables[f"GIT_CONFIG_KEY_{number}"] = key
        variables[f"GIT_CONFIG_VALUE_{number}"] = value
    return variables


def _configured(listing: str) -> Iterator[tuple[str, str, str]]:
    """(scope, key, value) of `git config --list --show-scope -z`."""
    parts = listing.split("\0")
    for scope, pair in zip(parts[::2], parts[1::2], strict=False):
        key, _, value = pair.partition("\n")
        yield scope, key, value
