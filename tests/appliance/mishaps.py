"""Upgrades cut short, odd layouts, closed folders: what a second try or the status finds."""

from __future__ import annotations

import os
from pathlib import Path

from appliance.box import API, NEWS, ROOT, Box, build_variant
from appliance.machine import Done
from appliance.restarts import prepare
from appliance.upkeep import BROKEN
from chaos.common import Figures
from harness import until

LINK = "/opt/prompt-valet/pv.pyz"


def upgrade(box: Box, new: Path, *before: str) -> Done:
    """`upgrade` to this build by the installed one, `before` standing before the command."""
    box.copy(new, NEWS)
    return box.machine.try_run(*before, "python3", LINK, "upgrade", NEWS)


def version(box: Box) -> str:
    """Which version answers."""
    return str(box.ask("/api/v1/healthz")["version"]).partition(".")[0]


def cut_short(box: Box, figures: Figures, folder: Path) -> None:
    """SIGKILL behind the moved link, SIGTERM in the restart."""
    second = build_variant(folder / "second.pyz", "2", {})
    box.copy(second, NEWS)
    link = box.machine.path(LINK)
    before = os.readlink(link)
    with box.machine.background("python3", LINK, "upgrade", NEWS):
        until(lambda: os.readlink(link) != before, "the moved link")
    done = box.machine.try_run("python3", LINK, "upgrade", NEWS)
    found = version(box)
    good = done.code == 0 and found == "2" and len(box.servers()) == 1
    figures.say("killed behind the moved link, then again", f"version {found}", good=good)
    stuck = build_variant(folder / "stuck.pyz", "3", BROKEN["never is ready"])
    done = upgrade(box, stuck, "timeout", "-s", "TERM", "2")
    found = version(box)
    good = found == "2" and "it was interrupted): version 2" in done.err
    figures.say("SIGTERM in the restart", done.err.strip(), good=good)


def layouts(box: Box, figures: Figures, folder: Path) -> None:
    """A link that leads elsewhere; HTTP without a watcher; a unit in a restart loop."""
    box.sh(f"mkdir /data && mv $(realpath {LINK}) /data/mine.pyz && ln -sfn /data/mine.pyz {LINK}")
    bad = build_variant(folder / "bad.pyz", "4", BROKEN["dies at once"])
    done = upgrade(box, bad)
    good = (
        done.code == 1 and version(box) == "2" and box.machine.try_run("test", "-e", LINK).code == 0
    )
    figures.say("the file elsewhere, a broken build", done.err.strip(), good=good)
    box.set_env(PV_WATCHER="off")
    box.run("systemctl", "restart", API)
    done = upgrade(box, build_variant(folder / "fifth.pyz", "5", {}))
    good = done.code == 0 and version(box) == "5"
    figures.say("HTTP alone, no watcher anywhere", done.err.strip() or "version 5", good=good)
    box.set_env(PV_WATCHER="on", PV_BIND_PORT="99999")
    box.machine.try_run("systemctl", "restart", API)
    box.set_env(PV_BIND_PORT="8888")
    with box.machine.background("python3", "-m", "http.server", "8888", "--bind", "127.0.0.1"):
        until(lambda: "cannot be bound" in box.said(), "the restart loop", 30)
        done = upgrade(box, build_variant(folder / "sixth.pyz", "6", {}))
    good = done.code == 1 and "No unit is running" not in done.out
    figures.say("a unit in a restart loop is no stopped one", done.err.strip(), good=good)
    until(box.is_active, "the service, with its port free again", 30)
    box.await_health()


def closed(box: Box, figures: Figures) -> None:
    """A folder in the inbox that the service may not read is told, and taken back."""
    closed = f"{ROOT}/inbox/nova-rey/example/closed"

    def told() -> list[str]:
        problems = box.ask("/api/v1/status")["problems"]
        return [text for text in problems if f"{closed} cannot be read" in text]

    box.sh(f"install -d -m 0700 {closed} && echo x >{closed}/x.md")
    until(told, "the alarm")
    figures.say("a closed folder in the inbox", told()[0])
    box.run("systemctl", "stop", API)
    box.sh(f"chown -R prompt-valet: {ROOT}/inbox")
    box.start()
    until(lambda: not told(), "the alarm's end")
    until(lambda: box.ask("/api/v1/jobs")["jobs"], "its job")
    figures.say("opened while the service was down", "taken, and the alarm is gone")


def run(box: Box, figures: Figures) -> None:
    """All of it on one machine."""
    prepare(box)
    cut_short(box, figures, box.machine.root.parent)
    layouts(box, figures, box.machine.root.parent)
    closed(box, figures)
