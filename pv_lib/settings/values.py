"""Parsers: from the text of a setting to its value.

Each raises ValueError whose text says what would be accepted, to complete "it takes …". Pure: none
reads a file or the environment, and none knows which setting it parses.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

_HOST_NAME = re.compile(r"[a-z0-9_.-]+|\[[0-9a-f:.]+\]")
_AUTHOR = re.compile(r"([^<>]*[^<>\s]) <([^<>\s]+)>")
_CLONE_URL = re.compile(
    r"https?://[^\s@]+|(?:ssh://)?(?:[\w.-]+@)?[\w.-]+:[^\s@]+|ssh://[\w.-]+@[^\s@]+|(?:file://)?/\S+"
)
_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def path(text: str) -> Path:
    """An absolute path, without `..` and doubled slashes."""
    if not text.startswith("/") or "\0" in text:
        raise ValueError("an absolute path")
    return Path(os.path.normpath("/" + text.lstrip("/")))


def whole(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        plain = text.isascii() and text.isdigit() and len(text) < 16
        if not plain or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return parse


def seconds(low: float, high: float) -> Callable[[str], float]:
    """A parser of seconds from `low` to `high`, with a fraction or without."""

    def parse(text: str) -> float:
        plain = text.isascii() and text.replace(".", "", 1).isdigit()
        if not plain or not low <= float(text) <= high:
            raise ValueError(f"seconds from {low:g} to {high:g}")
        return float(text)

    return parse


def size(text: str) -> int:
    """A number of bytes."""
    for unit in ("KiB", "MiB", "GiB", ""):
        number = text.removesuffix(unit).rstrip() if unit else text
        if text.endswith(unit) and number.isascii() and number.isdigit() and len(number) < 16:
            return int(number) * _UNITS[unit]
    raise ValueError("bytes as a whole number, or with KiB, MiB or GiB behind it")


def switch(text: str) -> bool:
    """`on` or `off`."""
    if text not in ("on", "off"):
        raise ValueError("on or off")
    return text == "on"


def host(text: str) -> str:
    """An IP address in its canonical form, or `localhost`."""
    if text == "localhost":
        return text
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        raise ValueError("an IP address or localhost") from None


def hosts(text: str) -> tuple[str, ...]:
    """Host names as a Host header has them, in lower case."""
    listed = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    if not listed or not all(_HOST_NAME.fullmatch(name) for name in listed):
        raise ValueError("host names separated by commas, without scheme, port or wildcard")
    return listed


def one_of(*choices: str) -> Callable[[str], str]:
    """A parser that accepts one of `choices`."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError("one of " + ", ".join(choices))
        return text

    return parse


def word(text: str) -> str:
    """One printable word."""
    if any(c.isspace() or not c.isprintable() for c in text):
        raise ValueError("one word without spaces")
    return text


def words(text: str) -> tuple[str, ...]:
    """Arguments, split as a shell splits them."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"words as a shell would split them ({error})") from None


def names(text: str) -> tuple[str, ...]:
    """Names of environment variables, none of them PV_*."""
    found = tuple(text.replace(",", " ").split())
    if not all(name.isascii() and name.isidentifier() for name in found):
        raise ValueError("names of environment variables, separated by spaces")
    if any(name.startswith("PV_") for name in found):
        raise ValueError("names of variables other than PV_*, which never reach the agent")
    return found


def command(text: str) -> tuple[str, ...]:
    """A program and its arguments, split as a shell splits them."""
    argv = words(text)
    if not argv:
        raise ValueError("a program, perhaps with arguments")
    return argv


def author(text: str) -> tuple[str, str]:
    """The name and the address of a commit author."""
    found = _AUTHOR.fullmatch(text)
    if not found or not text.isprintable():
        raise ValueError("Name <address>")
    return found[1], found[2]


def clone_url(text: str) -> str:
    """A clone address with the placeholders {owner} and {repo}."""
    if "{repo}" not in text or not _CLONE_URL.fullmatch(text):
        raise ValueError(
            "an https, ssh or file address with {owner} and {repo} in it, without a password, "
            "as https://github.com/{owner}/{repo}.git"
        )
    return text


def token(text: str) -> str:
    """A bearer token."""
    if len(text) < 16 or not text.isascii() or any(c <= " " or c == "\x7f" for c in text):
        raise ValueError("at least 16 printable ASCII characters without spaces")
    return text


def program(text: str) -> str:
    """The name of a program in PATH, or its absolute path."""
    if "\0" in text or (os.sep in text and not text.startswith("/")):
        raise ValueError("the name of a program in PATH, or an absolute path")
    return text
