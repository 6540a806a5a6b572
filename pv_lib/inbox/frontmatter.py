"""The `pv:` block in a prompt's front matter: read it, write it, remove it. Pure bytes.

Lines of other programs, and unknown keys inside the block, stay byte for byte. The block is valid
YAML, but only lines `key: scalar` below `pv:` are read, so that no YAML library is needed. Which
keys there are and what they mean stands in `rebuild`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping

_BOM = b"\xef\xbb\xbf"
_KEY = re.compile(rb"[ \t]+([A-Za-z_][A-Za-z0-9_-]*):(?:[ \t](.*)|\r?)\n?")
_BLOCK_START = re.compile(rb"pv:[ \t]*(?:#.*)?\r?\n?")
_PLAIN = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_./+@:-]*")
_NOT_PLAIN = frozenset({"true", "false", "null", "yes", "no", "on", "off"})


def read(data: bytes) -> dict[str, str]:
    """The keys and values of the `pv:` block, as text; empty where there is no block."""
    lines = _split(data)[1]
    first, last = _block(lines)
    indent = _base(lines[first:last])
    return {
        name: _scalar(value)
        for line in lines[first:last]
        if _indent(line) == indent
        for name, value in _pair(line)
    }


def write(data: bytes, keys: Mapping[str, str | int | float], owned: Collection[str] = ()) -> bytes:
    """`data` with `keys` set in its `pv:` block; the block is added where there is none.

    Keys in `owned` that are not in `keys` are removed.

    A new block comes last in the text's own front matter, or on top of a text without any. Every
    other byte stays. New lines end as the first line of the file does.
    """
    bom, lines, body = _split(data)
    if len(lines) == 2:  # two fences with nothing between them are text
        bom, lines, body = bom, [], data[len(bom) :]
    top = lines[0] if lines else body.partition(b"\n")[0] + b"\n"
    newline = b"\r\n" if top.endswith(b"\r\n") else b"\n"
    first, last = _block(lines)
    indent = _base(lines[first:last])
    fresh = [indent + f"{key}: {_quoted(value)}".encode() + newline for key, value in keys.items()]
    if not lines:
        return b"".join([bom, b"---", newline, b"pv:", newline, *fresh, b"---", newline, body])
    if not first:
        return b"".join([bom, *lines[:-1], b"pv:", newline, *fresh, lines[-1], body])
    kept = [
        line
        for line in lines[first:last]
        if _indent(line) != indent
        or not any(name in keys or name in owned for name, _ in _pair(line))
    ]
    return b"".join([bom, *lines[:first], *fresh, *kept, *lines[last:], body])


def strip(data: bytes) -> bytes:
    """`data` without its `pv:` block, and without front matter that is empty then.

    The agent is given this text. It is the submitted text, byte for byte.
    """
    bom, lines, body = _split(data)
    first, last = _block(lines)
    if first == last == 0:
        return data
    rest = lines[: first - 1] + lines[last:]
    if len(rest) == 2:  # only the two fences are left
        return bom + body
    return b"".join([bom, *rest, body])


def _split(data: bytes) -> tuple[bytes, list[bytes], bytes]:
    """The BOM, the lines of the front matter with both fences, and the rest of the text."""
    bom = _BOM if data.startswith(_BOM) else b""
    body = data[len(bom) :]
    lines = body.split(b"\n")
    if len(lines) < 2 or lines[0].rstrip(b" \t\r") != b"---":
        return bom, [], body
    for number, line in enumerate(lines[1:], 1):
        if line.rstrip(b" \t\r") == b"---":
            head = [text + b"\n" for text in lines[: number + 1]]
            if number + 1 == len(lines):  # the file ends at the closing fence, without a newline
                head[-1] = line
            return bom, head, b"\n".join(lines[number + 1 :])
    return bom, [], body


def _block(lines: list[bytes]) -> tuple[int, int]:
    """The slice of `lines` that is the block without its `pv:` line; (0, 0) where there is none.

    Blank lines and comments belong to the block when a key of it follows.
    """
    for number, line in enumerate(lines):
        if _BLOCK_START.fullmatch(line):
            last = number + 1
            for place in range(number + 1, len(lines) - 1):
                if lines[place].strip() and lines[place][:1] in (b" ", b"\t"):
                    last = place + 1
                elif lines[place].strip() and lines[place][:1] != b"#":
                    break
            return number + 1, last
    return 0, 0


def _indent(line: bytes) -> bytes:
    return line[: len(line) - len(line.lstrip(b" \t"))]


def _base(block: list[bytes]) -> bytes:
    """The indent of the block's keys; a line with another indent is no key of the block."""
    return next((_indent(line) for line in block if _pair(line)), b"  ")


def _pair(line: bytes) -> list[tuple[str, str]]:
    """The key and the raw value of a line, in a list; an empty list where it has none."""
    match = _KEY.fullmatch(line)
    return (
        [(match[1].decode(), (match[2] or b"").decode("utf-8", "replace").strip())] if match else []
    )


def _scalar(text: str) -> str:
    if text.startswith('"'):
        try:
            value, _ = json.JSONDecoder().raw_decode(text)
        except ValueError:
            return text
        return str(value)
    if text.startswith("'"):
        match = re.match(r"'((?:[^']|'')*)'", text)
        return match[1].replace("''", "'") if match else text
    return re.split(r"(?:^|\s)#", text, maxsplit=1)[0].rstrip()


def _quoted(value: str | int | float) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.fullmatch(value) and not value.endswith(":") and value.lower() not in _NOT_PLAIN:
        return value
    return json.dumps(value, ensure_ascii=False)
