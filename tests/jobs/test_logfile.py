"""The last lines of a log are found from its end, as a reading of the whole would find them."""

from __future__ import annotations

import os
import random
import re
import time
from pathlib import Path

import pytest

from pv_lib.errors import Invalid
from pv_lib.jobs import logfile
from pv_lib.system import files

BLOCK = 64 << 10


def naive(data: bytes, lines: int) -> int:
    """Where the last `lines` lines begin, from the list of all lines."""
    return len(data) - sum(map(len, re.findall(rb"[^\n]*\n|[^\n]+", data)[-lines:]))


def tail(path: Path, data: bytes, lines: int) -> int:
    path.write_bytes(data)
    with files.open_regular(path) as log:
        start, size = logfile.tail_start(log, lines)
    assert size == len(data)
    return start


@pytest.mark.parametrize(
    ("data", "lines", "rest"),
    [
        (b"", 1, b""),
        (b"\n", 1, b"\n"),
        (b"\n\n\n", 2, b"\n\n"),
        (b"a", 1, b"a"),
        (b"a", 9, b"a"),
        (b"a\n", 1, b"a\n"),
        (b"a\nb", 1, b"b"),
        (b"a\nb\n", 1, b"b\n"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc\n", 3, b"a\nb\nc\n"),
        (b"a\nb\nc\n", 99, b"a\nb\nc\n"),
        (b"a\r\nb\rc\r\n", 1, b"b\rc\r\n"),
        (b"a\n\x00\xff\n", 1, b"\x00\xff\n"),
    ],
)
def test_the_last_lines(tmp_path: Path, data: bytes, lines: int, rest: bytes) -> None:
    assert data[tail(tmp_path / "job.log", data, lines) :] == rest


def test_random_short_logs_agree_with_the_whole_reading(tmp_path: Path) -> None:
    dice = random.Random(8)
    for _ in range(1000):
        data = bytes(dice.choices(b"\n\nab\r\x00", k=dice.randrange(40)))
        for lines in (1, 2, dice.randint(1, 45)):
            assert tail(tmp_path / "job.log", data, lines) == naive(data, lines), (data, lines)


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_random_long_logs_agree_with_the_whole_reading(tmp_path: Path, end: bytes) -> None:
    dice = random.Random(9)
    for longest in (1, 80, 5000, BLOCK + 5, 4 * BLOCK):
        data = bytearray()
        while len(data) < 4 * BLOCK:
            data += b"x" * dice.randrange(longest + 1) + b"\n"
        whole = bytes(data) + b"last" + end
        total = whole.count(b"\n") + (not end)
        for lines in {1, 2, 3, total // 2 or 1, total - 1 or 1, total, total + 1, 10 * total}:
            assert tail(tmp_path / "job.log", whole, lines) == naive(whole, lines)


@pytest.mark.parametrize("size", [k * BLOCK + d for k in (1, 2, 3) for d in (-2, -1, 0, 1, 2)])
def test_newlines_at_the_edge_of_a_block_are_counted_once(tmp_path: Path, size: int) -> None:
    for places in ((0,), (size - 1,), (size - BLOCK,), (size - BLOCK - 1, size - 1), (1, BLOCK)):
        data = bytearray(b"x" * size)
        for place in places:
            if 0 <= place < size:
                data[place] = ord("\n")
        for lines in (1, 2, 3, 4):
            assert tail(tmp_path / "job.log", bytes(data), lines) == naive(bytes(data), lines)


def test_a_huge_log_costs_only_its_end(tmp_path: Path) -> None:
    path = tmp_path / "job.log"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: a reading from the start would take hours
        file.seek(0, os.SEEK_END)
        file.write(b"\nalmost\nlast\n")
    with files.open_regular(path) as log:
        start, size = logfile.tail_start(log, 2)
    assert size - start == len(b"almost\nlast\n")


def test_a_log_is_not_opened_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "job.log").symlink_to("secret")
    with pytest.raises(Invalid, match="symbolic link"):
        files.open_regular(tmp_path / "job.log")


@pytest.mark.parametrize(
    ("data", "offset", "lines", "part"),
    [
        (b"a\nb\nc", 0, None, b"a\nb\nc"),
        (b"a\nb\nc", 2, 1, b"b\n"),
        (b"a\nb\nc", 2, 2, b"b\nc"),
        (b"a\nb\nc", 2, 99, b"b\nc"),
        (b"a\nb\nc", 1, 1, b"\n"),
        (b"a\nb\nc", 99, 1, b""),
        (b"", 0, 1, b""),
        (b"x" * BLOCK + b"\nb\nc\n", 0, 2, b"x" * BLOCK + b"\nb\n"),
    ],
)
def test_a_piece_from_an_offset_on(
    tmp_path: Path, data: bytes, offset: int, lines: int | None, part: bytes
) -> None:
    (tmp_path / "job.log").write_bytes(data)
    with files.open_regular(tmp_path / "job.log") as log:
        start, end = logfile.piece(log, offset, lines)
    assert data[start:end] == part


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("größe 🎉\n", "größe 🎉\n"),
        ("\x1b[31mred\x1b[0m\n", "red\n"),
        ("\x1b[38;5;196;48;2;1;2;3mred\x1b[m", "red"),
        ("\x1b[2J\x1b[1;1Hover", "over"),
        ("\x1b[?25l\x1b[?1049hhidden", "hidden"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://evil.test\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]52;c;ZXZpbA==\x07text", "text"),
        ("\x1b]no end\nnext", "no end\nnext"),
        ("\x1bP+q544e\x1b\\text", "text"),
        ("\x1b(Btext\x1b7\x1b8\x1bc", "text"),
        ("\x1b7H", "H"),
        ("\x9b31mred\x9d0;t\x9c", "red0;t"),
        ("bell\x07 back\x08 null\x00 del\x7f", "bell back null del"),
        ("a\x1b", "a"),
        ("a\x1b[", "a"),
        ("a\x1b[31", "a31"),
        ("\x1b\x1b[31mred", "red"),
        ("over\rwritten\r\nnext\r", "over\nwritten\r\nnext\n"),
        ("line\u2028separator\x85", "line\u2028separator"),
    ],
)
def test_what_a_terminal_would_obey_is_left_out(tmp_path: Path, data: str, shown: str) -> None:
    (tmp_path / "job.log").write_bytes(data.encode())
    with files.open_regular(tmp_path / "job.log") as log:
        assert b"".join(logfile.plain(log, 0, len(data.encode()))).decode() == shown


def test_a_line_longer_than_a_piece_is_cut_nowhere_that_shows(tmp_path: Path) -> None:
    for shift in range(12):
        text = "x" * ((1 << 18) - shift) + "größe日本🎉\x1b[31;44mred\x1b[0m" + "y" * (1 << 18)
        (tmp_path / "job.log").write_bytes(text.encode())
        with files.open_regular(tmp_path / "job.log") as log:
            shown = b"".join(logfile.plain(log, 0, len(text.encode()))).decode()
        assert shown == re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_bytes_that_are_no_text_are_shown_as_such(tmp_path: Path) -> None:
    (tmp_path / "job.log").write_bytes(b"a\xff\x9b31m\n")
    with files.open_regular(tmp_path / "job.log") as log:
        assert b"".join(logfile.plain(log, 0, 7)).decode() == "a\ufffd\ufffd31m\n"


def test_random_logs_hold_no_control_character_when_stripped(tmp_path: Path) -> None:
    dice = random.Random(5)
    atoms = [
        b"\x1b",
        b"[",
        b"]",
        b"31m",
        b"\x07",
        b"\\",
        b"P",
        b"\r",
        b"\n",
        b"a",
        b"\xc2\x9b",
        b"\x80",
    ]
    for _ in range(2000):
        data = b"".join(dice.choices(atoms, k=dice.randrange(30)))
        (tmp_path / "job.log").write_bytes(data)
        with files.open_regular(tmp_path / "job.log") as log:
            shown = b"".join(logfile.plain(log, 0, len(data))).decode()
        assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", shown), data
        assert "\r" not in shown.replace("\r\n", "")


@pytest.mark.parametrize("bad", ["\x1b]" * 200_000, "\x1b[" + "0" * 400_000, "\x1bP" * 100_000])
def test_stripping_takes_no_longer_for_what_never_ends(bad: str) -> None:
    began = time.process_time()
    logfile.strip(bad.encode())
    assert time.process_time() - began < 2  # quadratic would be minutes
