"""Install, upgrade and uninstall, on good boxes and on those where something is wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.box import API, ENV, NEWS, ROOT, Box, build_variant
from appliance.machine import OPERATOR, Done
from appliance.restarts import judge, launch, prepare
from chaos.common import Figures, Task
from harness import until

UPGRADES = 10
_STATE = (
    "find /etc /opt /srv /usr/local /var/lib/systemd -xdev -printf '%p %y %m %u:%g %s %T@ %l\\n' "
    "| sort"
)


def install(box: Box, figures: Figures) -> None:
    """Twice, by hand and by itself, and away again."""
    dry = box.install("--dry-run")
    untouched = not box.machine.path("/opt/prompt-valet").exists()
    figures.say(
        "a dry run says what it would do, and does none",
        untouched,
        good=untouched and "would: " in dry,
    )
    first = box.install("--token")
    figures.say(
        "install: next commands it names",
        first.count("\n  sudo "),
        good=first.count("\n  sudo ") == 3,
    )
    before = box.sh(_STATE)
    second = box.install("--token")
    same = box.sh(_STATE) == before
    figures.say(
        "install twice: changes",
        "none" if same else "some",
        good=same and "Nothing was changed" in second,
    )
    box.set_env(PV_MAX_RUNNING="3")
    mine = box.machine.path(ENV).read_text()
    box.install()
    kept = box.machine.path(ENV).read_text() == mine
    figures.say("pv.env of the operator is left as it is", kept, good=kept)
    token = box.run("cat", "/etc/prompt-valet/token").strip()
    modes = box.sh(
        "stat -c '%a %U' /etc/prompt-valet/token /etc/prompt-valet/pv.env /srv/prompt-valet"
    )
    right = modes.split() == ["600", "prompt-valet", "644", "root", "700", "prompt-valet"]
    figures.say("modes and owners of token, settings, data", modes.split(), good=right)
    box.start()
    refused = box.machine.try_run("curl", "-sf", "http://127.0.0.1:8888/api/v1/jobs").code
    listed = box.ask("/api/v1/jobs", "-H", f"Authorization: Bearer {token}")
    figures.say(
        "the generated token is asked for", listed, good=refused == 22 and listed["jobs"] == []
    )
    said = box.run("sudo", "python3", "/opt/prompt-valet/pv.pyz", "uninstall", user=OPERATOR)
    gone = not any(
        box.machine.path(p).exists() for p in ("/opt/prompt-valet", f"/etc/systemd/system/{API}")
    )
    left = box.machine.path(f"{ROOT}/runs").is_dir() and box.machine.path(ENV).exists()
    figures.say(
        "uninstall leaves the data and says so",
        said.splitlines()[-2][:60],
        good=gone and left and f"left: {ROOT}" in said,
    )
    figures.say("and servers behind it", len(box.servers()), good=not box.servers())
    again = box.run("sudo", "python3", NEWS, "uninstall", user=OPERATOR)
    figures.say("uninstall twice: changes", again.count("done: "), good="done: " not in again)
    box.install()
    box.start()
    box.run("systemctl", "stop", API)


def refusals(box: Box, figures: Figures) -> None:
    """Boxes where something is wrong: one clear sentence each."""

    def sentence(name: str, done: Done, *words: str) -> None:
        text = done.err.strip() or done.out.strip()
        good = done.code != 0 and "\n" not in text and all(word in text for word in words)
        figures.say(name, text if good else f"exit {done.code}: {text}", good=good)

    box.sh("rm -r /etc/prompt-valet")  # it asked for a token
    box.install()

    def installing() -> Done:
        return box.machine.try_run("sudo", "python3", NEWS, "install", user=OPERATOR)

    sentence("not root", box.machine.try_run("python3", NEWS, "install", user=OPERATOR), "as root")
    with moved(box, "/usr/bin/git"):
        sentence("a box without git", installing(), "git is not on this machine")
    box.set_env(PV_API_USER="nobody-here")
    sentence("a wrong user, at install", installing(), "PV_API_USER=nobody-here is not a user")
    box.machine.try_run("systemctl", "start", API)
    told = [line for line in box.said().splitlines() if "nobody-here" in line]
    figures.say("a wrong user, at start", told[0] if told else box.said(), good=bool(told))
    box.run("systemctl", "stop", API)
    box.set_env(PV_API_USER="prompt-valet", PV_BIND_PORT="8888 # usual")
    sentence("a wrong setting", installing(), "PV_BIND_PORT=8888 # usual", "line of its own")
    box.set_env(PV_BIND_PORT="8888")
    with box.machine.background("python3", "-m", "http.server", "8888", "--bind", "127.0.0.1"):
        until(
            lambda: box.machine.try_run("curl", "-s", "http://127.0.0.1:8888").code == 0,
            "the other server",
        )
        note = [line for line in installing().out.splitlines() if line.startswith("NOTE: port")]
        figures.say("a taken port, at install", note, good=len(note) == 1)
        box.machine.try_run("systemctl", "start", API)
        told = [
            line for line in box.said().splitlines() if "PV_BIND_PORT=8888 cannot be bound" in line
        ]
        figures.say("a taken port, at start", told[0] if told else box.said(), good=bool(told))
        box.run("systemctl", "stop", API)
    box.run("sudo", "python3", NEWS, "uninstall", user=OPERATOR)
    box.sh("mkdir -p /opt/prompt-valet && mount -t tmpfs -o size=64k tmpfs /opt/prompt-valet")
    sentence(
        "a full disk, at install", installing(), "/opt/prompt-valet", "No space left on device"
    )
    left = box.sh("ls -A /opt/prompt-valet").split()
    figures.none("half-written files behind it", left, 1)
    box.sh("umount /opt/prompt-valet")
    installing()
    box.sh(f"mount -t tmpfs -o size=1m,mode=700 tmpfs {ROOT} && chown prompt-valet: {ROOT}")
    box.start()
    box.clone()
    answer = box.ask(
        "/api/v1/jobs?repo=nova-rey/example&branch=main",
        *("-H", "Content-Type: text/markdown", "--data-binary", "x"),
    )
    figures.say("a full disk, at a submission", answer["detail"], good=answer["status"] == 507)
    box.run("systemctl", "stop", API)
    box.sh(f"umount {ROOT}")


@contextmanager
def moved(box: Box, path: str) -> Iterator[None]:
    """The machine without one of its programs."""
    here = box.machine.path(path)
    away = here.with_name(here.name + ".away")
    here.rename(away)
    try:
        yield
    finally:
        away.rename(here)


def upgrades(box: Box, figures: Figures, folder: Path) -> None:
    """To newer builds under load, then to broken ones: no job is lost, and the old one is back."""
    prepare(box)
    jobs = launch(box, 6, 100)
    load = Load(box)
    slowest, wrong = 0.0, []
    for number in range(UPGRADES):
        new = build_variant(folder / f"pv-{number}.pyz", f"9.{number}", {})
        box.copy(new, NEWS)
        began = time.monotonic()
        box.run("sudo", "python3", "/opt/prompt-valet/pv.pyz", "upgrade", NEWS, user=OPERATOR)
        slowest = max(slowest, time.monotonic() - began)
        version = box.ask("/api/v1/healthz")["version"]
        if not version.startswith(f"9.{number}.") or len(box.servers()) != 1:
            wrong.append(f"upgrade {number}: {version}, servers {box.servers()}")
    figures.none("upgrades to a newer build that went wrong", wrong, UPGRADES)
    figures.say("slowest of them", f"{slowest:.1f} s, of which 3 are the time it must last")
    stay = version
    for name, change in BROKEN.items():
        bad = build_variant(folder / f"bad-{name}.pyz", "10.0", change)
        box.copy(bad, NEWS)
        done = box.machine.try_run(
            "sudo", "python3", "/opt/prompt-valet/pv.pyz", "upgrade", NEWS, user=OPERATOR
        )
        now = box.ask("/api/v1/healthz")["version"]
        good = (
            done.code == 1 and now == stay and len(box.servers()) == 1 and done.err.count("\n") == 1
        )
        figures.say(f"a build that {name}", f"exit {done.code}: {done.err.strip()}", good=good)
    files = sorted(p.name for p in box.machine.path("/opt/prompt-valet").iterdir())
    figures.say("files kept", files, good=len([f for f in files if f.startswith("pv-")]) <= 3)
    load.stop()
    figures.none("submissions under way that were not taken", load.refused, len(load.jobs))
    judge(box, figures, "upgrades: long jobs", jobs)
    judge(box, figures, "upgrades: jobs submitted meanwhile", load.jobs)


BROKEN = {
    "does not even start": {
        "pv_lib/httpd/wire.py": ("import re\n", "import re\nimport nothing_of_that_name\n")
    },
    "dies at once": {
        "pv_lib/app.py": (
            "    site.notifier.ready()\n    code",
            "    raise SystemExit('broken')\n    code",
        )
    },
    "never is ready": {"pv_lib/app.py": ("    site.notifier.ready()\n    code", "    code")},
    "has a watcher that does nothing": {
        "pv_lib/watcher/watcher.py": (
            "        recovered = False\n",
            "        threading.Event().wait()\n        recovered = False\n",
        )
    },
}


class Load:
    """Short jobs, one after the other, as fast as they are taken."""

    def __init__(self, box: Box) -> None:
        self.jobs: dict[str, Task] = {}
        self.refused: list[str] = []
        self._box = box
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._end.wait(0.2):
            number += 1
            task = Task(f"load-{number}", 20, 0.2, number % 250)
            end = time.monotonic() + 60
            while time.monotonic() < end:  # a client comes again when nobody is there
                try:
                    self.jobs[self._box.submit(task.prompt, key=task.token)] = task
                    break
                except Exception as error:  # noqa: BLE001 - refused while the server restarts
                    last = str(error)
                    time.sleep(0.1)
            else:
                self.refused.append(f"{task.token}: {last}")

    def stop(self) -> None:
        """Submit no more."""
        self._end.set()
        self._thread.join()


def run(box: Box, figures: Figures) -> None:
    """What stays on one machine."""
    install(box, figures)
    refusals(box, figures)


def run_upgrades(box: Box, figures: Figures) -> None:
    """On a machine of its own."""
    upgrades(box, figures, box.machine.root.parent)
