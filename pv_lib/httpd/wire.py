"""The bytes of HTTP/1.1: heads and forms parsed strictly, responses encoded. Pure.

Any doubt about where a message ends is an error: http.server's own parser accepts two
Content-Lengths, signs in numbers and folded lines, which makes request smuggling possible.
No socket, no route, no file is known here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, BinaryIO
from urllib.parse import unquote

from pv_lib.errors import BadVersion, HeadTooLarge, Invalid, NotImplementedHere, ValetError

MAX_HEADERS = 100
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rf"({_TOKEN}) (\S+) (HTTP/\d\.\d)")
_START = re.compile(rf"{_TOKEN}(?: [!-~]*(?: [!-~]{{0,10}})?)?\r?".encode())
_HEADER = re.compile(rf"({_TOKEN}):([^\x00-\x08\x0a-\x1f\x7f]*)")
_TARGET = re.compile(r"/[!-~]*|\*")
_QUERY_PAIR = re.compile(r"([^=&]*)(?:=([^&]*))?")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_FORM_PARAM = re.compile(r';\s*([A-Za-z*]+)=(?:"([^"\\]*(?:\\.[^"\\]*)*)"|([^;\s]*))')
_MAX_PART_HEAD = 8192
_BOUNDARY = re.compile(r"""[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]""")
_ONCE = frozenset(
    {
        *("host", "content-length", "transfer-encoding", "content-type", "origin"),
        *("sec-fetch-site", "authorization", "idempotency-key", "last-event-id", "expect"),
    }
)
_NO_REQUEST_LINE = "the request line is not METHOD TARGET HTTP/1.1"
_ALWAYS = (
    "Server: prompt-valet\r\nX-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n"
    "X-Frame-Options: DENY\r\nContent-Security-Policy: default-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n"
    "Cross-Origin-Resource-Policy: same-origin\r\nCache-Control: no-store\r\n"
)


@dataclass(frozen=True)
class Head:
    """A parsed request head. `headers` by lower-case name; `path` is still percent-encoded."""

    method: str
    path: str
    query: str
    version: str
    headers: dict[str, str]
    length: int  # of the body, in bytes

    @property
    def keep_alive(self) -> bool:
        """Whether the client wants another request on this connection."""
        wishes = {w.strip().lower() for w in self.headers.get("connection", "").split(",")}
        return self.version == "HTTP/1.1" and "close" not in wishes


@dataclass(frozen=True)
class Request:
    """What a route gets: decoded path segments, query parameters, headers and the whole body.

    `client` is the address it came from, without port.
    """

    method: str
    segments: tuple[str, ...]
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = b""
    client: str = ""


@dataclass
class Response:
    """What a route answers: `body`, or a longer one from elsewhere.

    With `file` the body is `length` bytes from its position; with `chunks` it is what they yield,
    of unknown length. The sender closes the file.
    """

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    file: BinaryIO | None = None
    length: int = 0
    chunks: Iterator[bytes] | None = None


@dataclass(frozen=True)
class Part:
    """One part of a form: the field's name, a file's name (None for a plain field), its bytes."""

    name: str
    filename: str | None
    data: bytes


def parse_head(data: bytes) -> Head:
    """A request head, from its first byte up to and without the blank line.

    Raises Invalid, BadVersion, NotImplementedHere or HeadTooLarge; the connection cannot be
    trusted then.
    """
    lines = data.decode("latin-1").split("\r\n")
    method, target, version = _request_line(lines[0])
    headers = _headers(lines[1:])
    if version == "HTTP/1.1" and "host" not in headers:
        raise Invalid("the Host header is missing")
    if "transfer-encoding" in headers:
        raise NotImplementedHere("transfer codings are not read here: send a Content-Length")
    path, _, query = target.partition("?")
    return Head(method, path, query, version, headers, _length(headers.get("content-length", "0")))


def check_start(data: bytes) -> None:
    """Check that `data` can be the beginning of a head.

    Raises as `parse_head`. A client of another protocol (TLS, HTTP/0.9) would otherwise wait for an
    answer as long as the server waits for its blank line.
    """
    line, end, _ = data.partition(b"\n")
    if not _START.fullmatch(line) or (end and not line.endswith(b"\r")):
        raise Invalid(_NO_REQUEST_LINE)
    if end:
        _request_line(line[:-1].decode("latin-1"))


def _request_line(line: str) -> tuple[str, str, str]:
    match = _REQUEST_LINE.fullmatch(line)
    if not match:
        raise Invalid(_NO_REQUEST_LINE)
    method, target, version = match.groups()
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise BadVersion(f"{version} is not spoken here: use HTTP/1.1")
    if not _TARGET.fullmatch(target) or (target == "*" and method != "OPTIONS"):
        raise Invalid("the request target must be a path that begins with /")
    return method, target, version


def media_type(headers: Mapping[str, str]) -> str:
    """The Content-Type's media type alone, in lower case; empty without the header."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def decode_path(path: str) -> tuple[str, ...]:
    """The path's segments, percent-decoded one by one. Raises Invalid."""
    return tuple(_decoded(segment) for segment in path[1:].split("/"))


def decode_query(query: str) -> dict[str, str]:
    """The query's parameters. Raises Invalid for broken encoding and for a name given twice."""
    found: dict[str, str] = {}
    for pair in query.split("&") if query else []:
        match = _QUERY_PAIR.fullmatch(pair)
        name, value = (match[1], match[2] or "") if match else (pair, "")
        name = _decoded(name.replace("+", " "))
        if name in found:
            raise Invalid.of([(name, "is given more than once")])
        found[name] = _decoded(value.replace("+", " "))
    return found


def encode_head(response: Response, now: float, *, close: bool, version: str = "HTTP/1.1") -> bytes:
    """The response's head with its blank line; `now` is Unix time, `version` the client's."""
    parts = [_start(response.status, response.content_type, close), _date(int(now))]
    if response.chunks is not None:
        parts.append("Transfer-Encoding: chunked\r\n" if version == "HTTP/1.1" else "")
    elif response.status != 204:
        length = response.length if response.file else len(response.body)
        parts.append(f"Content-Length: {length}\r\n")
    for name, value in response.headers.items():
        parts.append(f"{_printable(name)}: {_printable(value)}\r\n")
    parts.append("\r\n")
    return "".join(parts).encode("latin-1", "replace")


@functools.lru_cache(maxsize=256)
def _start(status: int, content_type: str, close: bool) -> str:
    """The start of a response's head: the part that can be cached."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    kind = "" if status == 204 else f"Content-Type: {_printable(content_type)}\r\n"
    end = "Connection: close\r\n" if close else ""
    return f"HTTP/1.1 {status} {phrase}\r\n{_ALWAYS}{kind}{end}"


@functools.lru_cache(maxsize=2)
def _date(second: int) -> str:
    return f"Date: {formatdate(second, usegmt=True)}\r\n"


def encode_stream_head(now: float) -> bytes:
    """The head of an event stream, which ends with its connection."""
    return (
        f"{_start(200, 'text/event-stream', True)}{_date(int(now))}X-Accel-Buffering: no\r\n\r\n"
    ).encode()


def problem(error: ValetError) -> dict[str, Any]:
    """An error as an RFC 9457 object; `errors` names the invalid input fields."""
    plain: dict[str, Any] = {
        "type": "about:blank",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
    }
    if error.fields:
        plain["errors"] = [{"field": name, "detail": why} for name, why in error.fields]
    return plain


def parse_form(content_type: str, body: bytes) -> list[Part]:
    """The parts of a multipart/form-data body. Raises Invalid if it is malformed or incomplete."""
    params = _params(content_type)
    boundary = params.get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise Invalid("the Content-Type of a multipart body needs a boundary")
    mark = b"\r\n--" + boundary.encode("latin-1")
    first, *parts = (b"\r\n" + body).split(mark)
    if not parts or first not in (b"", b"\r\n") or parts[-1].strip(b"\r\n \t") != b"--":
        raise Invalid("the multipart body does not begin and end with its boundary")
    return [_part(part) for part in parts[:-1]]


def _part(data: bytes) -> Part:
    data = data.lstrip(b" \t")
    end = data.find(b"\r\n\r\n", 0, _MAX_PART_HEAD)
    head, content = data[2:end], data[end + 4 :]
    if not data.startswith(b"\r\n"):
        raise Invalid("the multipart body's boundary stands inside its data: choose another")
    if end < 0:
        raise Invalid(f"a part of the multipart body has no header block of {_MAX_PART_HEAD} bytes")
    for line in head.decode("utf-8", "replace").split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-disposition":
            params = _params(value)
            if "name" in params:
                return Part(params["name"], params.get("filename"), content)
    raise Invalid("a part of the multipart body has no name")


def _params(value: str) -> dict[str, str]:
    return {
        match[1].lower(): re.sub(r"\\(.)", r"\1", match[2]) if match[3] is None else match[3]
        for match in _FORM_PARAM.finditer(value)
    }


def _headers(lines: list[str]) -> dict[str, str]:
    if len(lines) > MAX_HEADERS:
        raise HeadTooLarge(f"the request has more than {MAX_HEADERS} header lines")
    headers: dict[str, str] = {}
    for line in lines:
        match = _HEADER.fullmatch(line)
        if not match:
            raise Invalid("a header line is not NAME: VALUE in printable characters")
        name, value = match[1].lower(), match[2].strip(" \t")
        if name in headers and name in _ONCE:
            raise Invalid(f"the header {name} is given more than once")
        between = "; " if name == "cookie" else ", "
        headers[name] = f"{headers[name]}{between}{value}" if name in headers else value
    return headers


def _length(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise Invalid("Content-Length is not a plain decimal number")
    return int(text)


def _decoded(text: str) -> str:
    if _BAD_PERCENT.search(text):
        raise Invalid("the request target has a % without two hex digits behind it")
    try:
        plain = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise Invalid("the request target is not UTF-8 behind its percent-encoding") from None
    if "\0" in plain:
        raise Invalid("the request target holds a NUL")
    return plain


def _printable(value: str) -> str:
    """A header's text without CR, LF and their like, which would begin another header."""
    return value if value.isprintable() else "".join(c for c in value if c.isprintable())
