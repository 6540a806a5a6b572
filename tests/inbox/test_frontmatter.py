"""The `pv:` block: what goes in comes out, and what is not ours stays byte for byte."""

from __future__ import annotations

import random

import pytest

from pv_lib.inbox import frontmatter

KEYS: dict[str, str | int | float] = {
    "job_id": "01a204052640" + "7c31b0fc677fff99cb5d",
    "repo": "nova-rey/example",
    "branch": "feature/one",
    "created_at": "2026-11-22T15:56:29.123Z",
    "priority": -3,
    "timeout_seconds": 1.5,
}
READ_BACK = {name: str(value) for name, value in KEYS.items()}
BOM = b"\xef\xbb\xbf"
PIECES = (
    *(b"---", b"--- ", b"----", b"...", b"pv", b"title: A plan", b"tags:", b"- one", b"# Heading"),
    *(b"", b"  indented: 1", b"\ttabbed", b"text: 'it''s'", b'"quoted": "x"', b"\xff\xfe", b"\x00"),
    *("größe: 1 µm".encode(), b"job_id: mine", b"  job_id: mine", b"model:", b"\r", b"pv:not"),
)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n",
        b"# Add a test\n",
        b"no newline at the end",
        b"one\r\ntwo\r\n",
        b"one\r\ntwo",
        b"mixed\nends\r\n",
        BOM + b"# With a BOM\n",
        BOM,
        b"---",
        b"---\n",
        b"---\r\n",
        b"---\nunclosed: 1\n",
        b"---\nunclosed: 1\n----\n",
        b"text first\n---\nkey: 1\n---\n",
        b"\n---\nkey: 1\n---\n",
        b" ---\nkey: 1\n---\n",
        b"\x00\xff binary \x80\n",
    ],
)
def test_a_file_without_front_matter_comes_back_as_it_was(text: bytes) -> None:
    written = frontmatter.write(text, KEYS)
    assert frontmatter.read(written) == READ_BACK
    assert frontmatter.strip(written) == text


@pytest.mark.parametrize(
    "text",
    [
        b"---\ntitle: A plan\n---\nbody\n",
        b"---\ntitle: A plan\n---",
        b"---\n\n# a comment\ntags:\n  - one\n  - two\nempty:\n---\n\nbody",
        b"---\r\ntitle: A plan\r\n---\r\nbody\r\n",
        BOM + b"---\ntitle: A plan\n---\nbody\n",
        b"--- \ntitle: A plan\n---\t\nbody\n---\nmore\n",
        b"---\ntext: |\n  pv:\n    job_id: not ours\n---\nbody\n",
        b"---\ninvalid: \xff\xfe\n---\nbody \xff\n",
        b"---\n\nA text between two rules.\n\n---\n\nAnd more.\n",
    ],
)
def test_a_file_with_foreign_front_matter_comes_back_as_it_was(text: bytes) -> None:
    written = frontmatter.write(text, KEYS)
    assert frontmatter.read(written) == READ_BACK
    assert frontmatter.strip(written) == text


@pytest.mark.parametrize(
    "text",
    [
        b"---\n  indented: 1\nplain: 2\n---\nbody\n",
        b"---\n    code under a rule\n\n---\nbody\n",
        b"---\n\ttabbed\n---\nbody\n",
    ],
)
def test_indented_lines_on_top_of_front_matter_do_not_fall_into_the_block(text: bytes) -> None:
    written = frontmatter.write(text, KEYS)
    assert frontmatter.read(written) == READ_BACK
    assert frontmatter.strip(written) == text


def test_a_text_cannot_bring_keys_into_the_block() -> None:
    text = b"---\n  job_id: another\n  model: dear\n---\nbody\n"
    assert frontmatter.read(frontmatter.write(text, KEYS)) == READ_BACK


@pytest.mark.parametrize("text", [b"---\n---\n", b"---\n---", b"---\n---\n# Two rules\n"])
def test_empty_front_matter_comes_back_as_it_was(text: bytes) -> None:
    assert frontmatter.strip(frontmatter.write(text, KEYS)) == text


def test_without_a_block_there_is_nothing_to_read_or_strip() -> None:
    for text in (b"", b"# Hello\n", b"---\ntitle: x\n---\n", b"pv:\n  job_id: x\n", b"---\npv:\n"):
        assert frontmatter.read(text) == {}
        assert frontmatter.strip(text) == text


def test_a_block_goes_on_top_and_reads_as_yaml() -> None:
    written = frontmatter.write(b"# Hello\n", {"repo": "a/b", "priority": 5, "model": "a: b"})
    assert written == b'---\npv:\n  repo: a/b\n  priority: 5\n  model: "a: b"\n---\n# Hello\n'


def test_our_keys_are_replaced_and_foreign_keys_stay_byte_for_byte() -> None:
    text = (
        b"---\ntitle: A  plan   # mine\npv:\n  owner:   me  # why\n  repo: old/old\n"
        b"\todd: [1,  2]\n  # a comment\n  repo: older/older\nlast: 1\n---\nbody\n"
    )
    assert frontmatter.write(text, {"repo": "a/b"}) == (
        b"---\ntitle: A  plan   # mine\npv:\n  repo: a/b\n  owner:   me  # why\n"
        b"\todd: [1,  2]\n  # a comment\nlast: 1\n---\nbody\n"
    )


def test_what_hangs_below_a_foreign_key_is_foreign() -> None:
    nested = b"  mine:\n    model: another\n    repo: c/d\n"
    text = b"---\npv:\n" + nested + b"---\nbody\n"
    written = frontmatter.write(text, {"repo": "a/b"})
    assert nested in written
    assert frontmatter.read(written)["repo"] == "a/b"
    assert "model" not in frontmatter.read(written)


def test_strip_takes_the_block_alone() -> None:
    text = b"---\ntitle: x\npv:\n  repo: a/b\n  foreign: 1\ntags:\n  - one\n---\nbody\n"
    assert frontmatter.strip(text) == b"---\ntitle: x\ntags:\n  - one\n---\nbody\n"


def test_strip_takes_front_matter_that_held_only_the_block() -> None:
    assert frontmatter.strip(b"---\npv:\n  repo: a/b\n---\nbody\n") == b"body\n"
    assert frontmatter.strip(BOM + b"---\r\npv:\r\n  repo: a/b\r\n---\r\nbody") == BOM + b"body"
    assert frontmatter.strip(b"---\npv:\n---") == b""


def test_new_lines_end_as_the_first_line_does() -> None:
    keys = {"repo": "a/b"}
    assert frontmatter.write(b"x\r\ny\n", keys) == b"---\r\npv:\r\n  repo: a/b\r\n---\r\nx\r\ny\n"
    assert b"\r\npv:\r\n  repo: a/b\r\n" in frontmatter.write(b"---\r\nkey: 1\r\n---\r\n", keys)


def test_a_bom_stays_in_front() -> None:
    written = frontmatter.write(BOM + b"# Hello\n", KEYS)
    assert written.startswith(BOM + b"---\n") and written.count(BOM) == 1
    assert frontmatter.read(written) == READ_BACK


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        (b"plain", "plain"),
        (b"two words", "two words"),
        (b"  spaced out  ", "spaced out"),
        (b"a#b", "a#b"),
        (b"a # b", "a"),
        (b"a\t# b", "a"),
        (b"# only a comment", ""),
        (b"", ""),
        (b'"a # b" # c', "a # b"),
        (b'"tab\\t quote\\" uml\\u00e4ut"', 'tab\t quote" umläut'),
        (b"'it''s # one' # two", "it's # one"),
        (b"'a \\n b'", "a \\n b"),
        (b'"unclosed', '"unclosed'),
        (b"'unclosed", "'unclosed"),
        (b"http://x/y:z", "http://x/y:z"),
        ("größe".encode(), "größe"),
        (b"bad \xff byte", "bad \ufffd byte"),
        (b"-5", "-5"),
    ],
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_scalars_are_read_as_yaml_has_them(scalar: bytes, value: str, end: bytes) -> None:
    text = end.join([b"---", b"pv:", b"  model: " + scalar, b"---", b"body"])
    assert frontmatter.read(text) == {"model": value}


def test_a_key_without_a_space_behind_the_colon_is_no_key() -> None:
    assert frontmatter.read(b"---\npv:\n  a:b\n  c: d\n---\n") == {"c": "d"}


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", " x ", "a b", "#x", "a # b", "a: b", "a:", ":a", "it's", '"x"', "'x'", "-x"),
        *("true", "No", "null", "NULL", "~", "on", "123", "0x1f", "1e5", "@x", "`x`", "%x", "&x"),
        *("---", "pv:", "a\nb", "a\r\nb", "\t", "\x00", "\x1b[31m", "\x7f", "ä", "日本", "\u2028"),
        *("\x85", "🎉", "\ufeff", "{a: b}", "[1]", "!x", "|", ">", "a,b", "*x", "\\", "x" * 5000),
    ],
)
def test_any_value_reads_back_as_it_was(value: str) -> None:
    for text in (b"body\n", b"body\r\n", b"---\ntitle: x\n---\nbody\n"):
        written = frontmatter.write(text, {"first": "1", "model": value, "last": 2})
        assert frontmatter.read(written) == {"first": "1", "model": value, "last": "2"}
        assert frontmatter.strip(written) == text


def test_writing_twice_is_writing_once() -> None:
    for text in (b"", b"# Hello\n", BOM + b"x\r\n", b"---\ntitle: x\n---\nbody\n"):
        once = frontmatter.write(text, KEYS)
        assert frontmatter.write(once, KEYS) == once
        newer = frontmatter.write(once, {**KEYS, "priority": 9})
        assert frontmatter.read(newer) == {**READ_BACK, "priority": "9"}


def _random_text(dice: random.Random) -> bytes:
    end = dice.choice([b"\n", b"\r\n"])
    lines = [dice.choice(PIECES) for _ in range(dice.randrange(8))]
    fenced = dice.random() < 0.5
    text = end.join([b"---", *lines, b"---", *dice.choices(PIECES, k=2)] if fenced else lines)
    return dice.choice([b"", b"", BOM]) + text + dice.choice([b"", end])


def test_random_texts_come_back_as_they_were() -> None:
    dice = random.Random(1)
    for _ in range(4000):
        text = _random_text(dice)
        written = frontmatter.write(text, KEYS)
        assert frontmatter.read(written) == READ_BACK, text
        assert frontmatter.strip(written) == text, text
        assert frontmatter.write(written, KEYS) == written, text


def test_random_blocks_keep_their_foreign_lines() -> None:
    dice = random.Random(2)
    foreign = (b"  mine: 1  # x", b"\tother: 'y'", b"  # note", b"  - item", b"  weird", b"  z:   ")
    for _ in range(2000):
        before = dice.choices((b"title: x", b"", b"# c", b"tags:", b"- a"), k=dice.randrange(3))
        kept = dice.choices(foreign, k=dice.randrange(5))
        after = [b"end: 1", *dice.choices((b"", b"  deep: 1"), k=dice.randrange(3))]
        lines = [b"---", *before, b"pv:", b"  repo: old/old", *kept, *after, b"---", b"body"]
        wanted = [b"---", *before, b"pv:", b"  repo: a/b", *kept, *after, b"---", b"body"]
        written = frontmatter.write(b"\n".join(lines), {"repo": "a/b"})
        assert written == b"\n".join(wanted)
        stripped = b"\n".join([b"---", *before, *after, b"---", b"body"])
        assert frontmatter.strip(written) == stripped
