"""Agents that are hard to end. The prompt is the shape's name; they say `ready`, then stay."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable

PR_SET_CHILD_SUBREAPER = 36
CHAIN_SECONDS = 8.0  # longer than any abort of it may take


def stay() -> None:
    while True:
        time.sleep(0.05)


def obeys() -> None:
    stay()


def ignores_int() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stay()


def ignores_both() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stay()


def setsid_child() -> None:
    if not os.fork():
        os.setsid()
        ignores_both()
    stay()


def daemon() -> None:
    if not os.fork():
        os.setsid()
        if os.fork():
            os._exit(0)
        ignores_both()
    os.wait()
    stay()


def forks_for_ever() -> None:
    """A chain beside the agent: each link starts its successor in a new session and ends.

    One link lives at a time. What nobody ends is over after a while: it leaves a zombie a link
    until init reaps it, and thousands of them make every look at /proc slow.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # as long as we live, no zombies
    if not os.fork():
        until = time.monotonic() + CHAIN_SECONDS
        while time.monotonic() < until:
            time.sleep(0.001)
            if os.fork():
                os._exit(0)
            os.setsid()
        os._exit(0)
    while True:
        os.wait()


def stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    ignores_both()


def closed() -> None:
    os.closerange(0, 3)
    stay()


SHAPES: dict[str, Callable[[], None]] = {
    "obeys": obeys,
    "ignores-int": ignores_int,
    "ignores-int-term": ignores_both,
    "setsid-child": setsid_child,
    "daemon": daemon,
    "forks-for-ever": forks_for_ever,
    "stopped": stopped,
    "closed-files": closed,
}


def bystander(notes: str) -> None:
    """Has nothing to do with a job: notes every signal that it gets."""

    def note(number: int, _: object) -> None:
        with open(notes, "a") as file:
            file.write(f"{number}\n")

    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        signal.signal(number, note)
    print("ready", flush=True)
    stay()


def main() -> None:
    if sys.argv[1:2] == ["bystander"]:
        bystander(sys.argv[2])
    shape = SHAPES[sys.stdin.read().strip()]
    print("ready", flush=True)
    shape()


if __name__ == "__main__":
    main()
