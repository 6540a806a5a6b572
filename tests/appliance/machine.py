"""A fresh Debian with a real systemd, in systemd-nspawn: made, booted, entered and thrown away.

It has the host's kernel, no network but its own loopback, and nothing installed but what PACKAGES
names. systemd is never started outside nspawn: its cleaning of temporary files would meet the
host's.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import until

SUITE = "bookworm"
# What the product needs, and sudo, which the guides' commands begin with. `systemd-sysv` and `dbus`
# are what makes systemd boot and answer.
PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3", "git", "curl", "jq", "sudo")
OPERATOR = "ada"
BOOT_SECONDS = 120.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NEEDED = {
    "debootstrap": "debootstrap",
    "systemd-nspawn": "systemd-container",
    "nsenter": "util-linux",
}


class Failed(Exception):
    """A command in the machine did not do what it should; the text has all it printed."""


@dataclass(frozen=True)
class Done:
    """What a command printed, and its exit status."""

    code: int
    out: str
    err: str


class Machine:
    """One machine in the folder `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._cgroup = _cgroup_mount() / f"pv-appliance-{os.getpid()}"
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def boot(self) -> None:
        """Start systemd in it and wait until it is up."""
        self._cgroup.mkdir(exist_ok=True)
        enter = f'echo $$ >{self._cgroup}/cgroup.procs; exec "$@"'
        argv = ["systemd-nspawn", "--directory", str(self.root), "--register=no", "--keep-unit"]
        argv += [f"--machine=pv-{os.getpid()}", "--private-network", "--boot"]
        with (self.root.parent / "console.log").open("wb") as console:
            self._nspawn = subprocess.Popen(
                ["sh", "-c", enter, "sh", *argv],
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        self._leader = until(self._find_leader, "systemd as nspawn's child", BOOT_SECONDS)
        state = ("systemctl", "is-system-running")
        until(
            lambda: self.try_run(*state).out.strip() == "running", "a booted system", BOOT_SECONDS
        )

    def _find_leader(self) -> int | None:
        """The machine's first process, once it is in namespaces of its own."""
        assert self._nspawn is not None
        pid = self._nspawn.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                apart = all(
                    os.readlink(f"/proc/{child}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
                    for kind in ("mnt", "pid", "uts")
                )
                if apart and Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                    return int(child)
        return None

    def namespace(self, kind: str, pid: int | None = None) -> str:
        """Which namespace a process, by the host's number, is in; its first one unless told."""
        return os.readlink(f"/proc/{pid or self._leader}/ns/{kind}")

    def stop(self) -> None:
        """Shut it down, and at last kill what is left."""
        if self._nspawn is None:
            return
        self._nspawn.send_signal(signal.SIGTERM)
        try:
            self._nspawn.wait(timeout=30)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._leader, signal.SIGKILL)
            self._nspawn.kill()
            self._nspawn.wait()
        self._nspawn = None
        for folder in sorted(self._cgroup.rglob("*/"), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            self._cgroup.rmdir()

    def argv(self, *command: str, user: str = "root") -> list[str]:
        """How the host runs a command in it, with the environment of a login."""
        home = "/root" if user == "root" else f"/home/{user}"
        environ = [f"PATH={_PATH}", f"HOME={home}", f"USER={user}", "LANG=C.UTF-8"]
        inner = ["/usr/bin/env", "-i", *environ, "SYSTEMD_PAGER=", *command]
        if user != "root":
            inner = ["/usr/sbin/runuser", "-u", user, "--", *inner]
        return ["nsenter", "--target", str(self._leader), "--all", *inner]

    def try_run(
        self, *command: str, user: str = "root", seconds: float = 120, text: str = ""
    ) -> Done:
        """Run a command; `text` is its input."""
        argv = self.argv(*command, user=user)
        try:
            done = subprocess.run(
                argv, input=text.encode(), capture_output=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise Failed(
                f"{shlex.join(command)}: not within {seconds:g} s\n{error.stdout!r}"
            ) from None
        return Done(
            done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )

    def run(self, *command: str, user: str = "root", seconds: float = 120, text: str = "") -> str:
        """What a command printed; Failed unless it exits 0."""
        done = self.try_run(*command, user=user, seconds=seconds, text=text)
        if done.code:
            raise Failed(f"{shlex.join(command)}: exit {done.code}\n{done.out}{done.err}")
        return done.out

    def sh(self, script: str, user: str = "root", seconds: float = 120) -> str:
        """What a line of bash printed; Failed unless each of its commands exits 0."""
        return self.run("bash", "-e", "-o", "pipefail", "-c", script, user=user, seconds=seconds)

    def add_packages(self, *names: str) -> None:
        """Install Debian packages, by the host's network; none of them is started."""
        apt = [*_inside(self.root), "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
        subprocess.run([*apt, "update"], check=True)
        install = [*apt, "install", "-y", "--no-install-recommends", *names]
        subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
        self.run("systemctl", "daemon-reload")

    @contextlib.contextmanager
    def background(self, *command: str, user: str = "root") -> Iterator[subprocess.Popen[str]]:
        """A command that runs meanwhile, its output to be read; ended with its children."""
        argv = self.argv(*command, user=user)
        with subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def path(self, inside: str) -> Path:
        """Where the host sees a file of the machine."""
        return self.root / inside.lstrip("/")


def make(root: Path, base: Path) -> Machine:
    """A machine in `root`, a copy of the installed system in `base`, made where it is missing."""
    if os.geteuid():
        sys.exit("tests/appliance: boots a machine, so it must run as root")
    for program, package in _NEEDED.items():
        if not shutil.which(program):
            sys.exit(f"tests/appliance: needs {program}: apt-get install {package}")
    if not base.exists():
        temp = base.with_suffix(".part")
        shutil.rmtree(temp, ignore_errors=True)
        argv = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        subprocess.run([*argv, SUITE, str(temp), _mirror()], check=True, stdout=subprocess.DEVNULL)
        temp.rename(base)
    subprocess.run(["cp", "-a", "--reflink=auto", str(base), str(root)], check=True)
    machine = Machine(root)
    machine.path("/etc/hostname").write_text("box\n")
    machine.path("/etc/hosts").write_text("127.0.0.1 localhost box\n::1 localhost\n")
    # Nobody logs in at a console, and its getty would fail again and again.
    machine.path("/etc/systemd/system/console-getty.service").symlink_to("/dev/null")
    machine.path(f"/etc/sudoers.d/{OPERATOR}").write_text(f"{OPERATOR} ALL=(ALL) NOPASSWD: ALL\n")
    subprocess.run(
        [*_inside(root), "useradd", "--create-home", "--shell", "/bin/bash", OPERATOR],
        check=True,
    )
    return machine


def _inside(root: Path) -> list[str]:
    """The beginning of a command in the machine's files, with nothing of our environment."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return ["chroot", str(root), "/usr/bin/env", "-i", f"PATH={path}"]


def _mirror() -> str:
    """The mirror that this machine's own apt takes the suite from."""
    for path in sorted(Path("/etc/apt").glob("sources.list.d/*.sources")):
        for block in path.read_text().split("\n\n"):
            fields = dict(re.findall(r"^(\w+): *(.+)$", block, re.MULTILINE))
            if SUITE in fields.get("Suites", "").split():
                return str(fields["URIs"].split()[0])
    for path in [Path("/etc/apt/sources.list"), *Path("/etc/apt").glob("sources.list.d/*.list")]:
        if path.exists():
            found = re.search(rf"^deb (?:\[.*?\] )?(\S+) {SUITE} ", path.read_text(), re.MULTILINE)
            if found:
                return str(found[1])
    sys.exit(f"tests/appliance: no apt source of this machine has {SUITE}")


def _cgroup_mount() -> Path:
    """Where the unified hierarchy is; nspawn needs a group of its own in it."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    sys.exit("tests/appliance: this kernel has no cgroup2 mounted, and systemd needs it")
