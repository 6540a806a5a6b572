"""The bytes of HTTP: what is taken, what is refused, and what can never be said."""

from __future__ import annotations

import random
import time

import pytest

from pv_lib.errors import BadVersion, Invalid, NotImplementedHere, ValetError
from pv_lib.httpd import wire
from pv_lib.httpd.wire import Part, Response

HOST = b"\r\nHost: pv"
GET = b"GET / HTTP/1.1"


@pytest.mark.parametrize(
    ("data", "target", "length"),
    [
        (GET + HOST, ("GET", "/", ""), 0),
        (b"GET / HTTP/1.0", ("GET", "/", ""), 0),
        (b"HEAD /a/b HTTP/1.1" + HOST, ("HEAD", "/a/b", ""), 0),
        (b"POST /a HTTP/1.1" + HOST + b"\r\nContent-Length: 12", ("POST", "/a", ""), 12),
        (b"PUT /a HTTP/1.1" + HOST + b"\r\ncontent-length:0", ("PUT", "/a", ""), 0),
        (b"PATCH /a HTTP/1.1" + HOST + b"\r\nContent-Length:\t 007 ", ("PATCH", "/a", ""), 7),
        (b"DELETE /a?b=c?d HTTP/1.1" + HOST, ("DELETE", "/a", "b=c?d"), 0),
        (b"OPTIONS * HTTP/1.1" + HOST, ("OPTIONS", "*", ""), 0),
        (b"TRACE /a HTTP/1.1" + HOST, ("TRACE", "/a", ""), 0),
        (b"get /a HTTP/1.1" + HOST, ("get", "/a", ""), 0),
        (b"GET //a%2F%zz HTTP/1.1" + HOST, ("GET", "//a%2F%zz", ""), 0),
        (b"GET /a? HTTP/1.1" + HOST, ("GET", "/a", ""), 0),
        (GET + HOST + b"\r\nX-Empty:", ("GET", "/", ""), 0),
        (GET + HOST + b"\r\nX: caf\xe9 \t in", ("GET", "/", ""), 0),
        (GET + HOST + b"\r\nContent-Length: 999999999999999", ("GET", "/", ""), 10**15 - 1),
    ],
)
def test_good_heads(data: bytes, target: tuple[str, str, str], length: int) -> None:
    head = wire.parse_head(data)
    assert (head.method, head.path, head.query) == target
    assert head.length == length


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", Invalid),
        (b"GET", Invalid),
        (b"GET /", Invalid),
        (b"GET / ", Invalid),
        (b" GET / HTTP/1.1" + HOST, Invalid),
        (b"\r\nGET / HTTP/1.1" + HOST, Invalid),
        (b"GET  / HTTP/1.1" + HOST, Invalid),
        (b"GET /  HTTP/1.1" + HOST, Invalid),
        (b"GET\t/ HTTP/1.1" + HOST, Invalid),
        (b"GET / HTTP/1.1 " + HOST, Invalid),
        (b"GET / http/1.1" + HOST, Invalid),
        (b"GET / HTTP/1" + HOST, Invalid),
        (b"GET / HTTP/11" + HOST, Invalid),
        (b"GET / HTTP/1.10" + HOST, Invalid),
        (b"GET /a b HTTP/1.1" + HOST, Invalid),
        (b"GET /\xe4 HTTP/1.1" + HOST, Invalid),
        (b"GET /\x00 HTTP/1.1" + HOST, Invalid),
        (b"GET /\x7f HTTP/1.1" + HOST, Invalid),
        (b"GET a HTTP/1.1" + HOST, Invalid),
        (b"GET * HTTP/1.1" + HOST, Invalid),
        (b"GET http://pv/ HTTP/1.1" + HOST, Invalid),
        (b"G(T / HTTP/1.1" + HOST, Invalid),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", Invalid),
        (GET + b"\nHost: pv", Invalid),
        (GET + b"\rHost: pv", Invalid),
        (GET, Invalid),
        (GET + b"\r\nhost:a\r\nHost: a", Invalid),
        (GET + b"\r\n Host: pv", Invalid),
        (GET + b"\r\nHost : pv", Invalid),
        (GET + HOST + b"\r\n", Invalid),
        (GET + HOST + b"\r\nno colon", Invalid),
        (GET + HOST + b"\r\n: no name", Invalid),
        (GET + HOST + b"\r\nX(Y): z", Invalid),
        (GET + HOST + b"\r\nX\xe4: z", Invalid),
        (GET + HOST + b"\r\nX: a\r\n folded", Invalid),
        (GET + HOST + b"\r\nX: a\r\n\tfolded", Invalid),
        (GET + HOST + b"\r\nX: a\nY: b", Invalid),
        (GET + HOST + b"\r\nX: a\rY: b", Invalid),
        (GET + HOST + b"\r\nX: a\x00b", Invalid),
        (GET + HOST + b"\r\nX: a\x0bb", Invalid),
        (GET + HOST + b"\r\nX: a\x7fb", Invalid),
        (GET + HOST + b"\r\nContent-Length:", Invalid),
        (GET + HOST + b"\r\nContent-Length: +5", Invalid),
        (GET + HOST + b"\r\nContent-Length: -5", Invalid),
        (GET + HOST + b"\r\nContent-Length: 5, 5", Invalid),
        (GET + HOST + b"\r\nContent-Length: 5 5", Invalid),
        (GET + HOST + b"\r\nContent-Length: 0x5", Invalid),
        (GET + HOST + b"\r\nContent-Length: 5.0", Invalid),
        (GET + HOST + b"\r\nContent-Length: 1_0", Invalid),
        (GET + HOST + b"\r\nContent-Length: \xb2", Invalid),
        (GET + HOST + b"\r\nContent-Length: 1000000000000000", Invalid),
        (GET + HOST + b"\r\nContent-Length: 5\r\nContent-Length: 5", Invalid),
        (GET + HOST + b"\r\nContent-Length: 5\r\ncontent-length: 6", Invalid),
        (GET + HOST + b"\r\nOrigin: a\r\nOrigin: b", Invalid),
        (GET + HOST + b"\r\nTransfer-Encoding: a\r\nTransfer-Encoding: b", Invalid),
        (GET + HOST + b"\r\nTransfer-Encoding: chunked", NotImplementedHere),
        (GET + HOST + b"\r\ntransfer-encoding: identity", NotImplementedHere),
        (GET + HOST + b"\r\nTransfer-Encoding:", NotImplementedHere),
        (
            GET + HOST + b"\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
            NotImplementedHere,
        ),
        (b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked", NotImplementedHere),
        (b"CONNECT pv:443 HTTP/1.1" + HOST, Invalid),
        (b"GET / HTTP/2.0" + HOST, BadVersion),
        (b"GET / HTTP/0.9" + HOST, BadVersion),
        (b"GET / HTTP/1.2" + HOST, BadVersion),
        (b"PRI * HTTP/2.0", BadVersion),
    ],
)
def test_bad_heads(data: bytes, error: type[ValetError]) -> None:
    with pytest.raises(ValetError) as caught:
        wire.parse_head(data)
    assert type(caught.value) is error
    assert caught.value.detail.isprintable()


@pytest.mark.parametrize("value", [b" ", b"\t", b" x", b"x ", b"x"])
@pytest.mark.parametrize("before", [b"", b"x", b"x y"])
def test_a_bad_header_value_is_refused_at_once(before: bytes, value: bytes) -> None:
    for times in (1000, 10_000, 30_000):  # an expression that backtracks needs seconds, then hours
        began = time.process_time()
        with pytest.raises(Invalid):
            wire.parse_head(GET + HOST + b"\r\nX:" + before + value * times + b"\x01")
        assert time.process_time() - began < 0.1, times


def test_headers_are_found_by_lower_case_name_without_the_space_around() -> None:
    headers = wire.parse_head(GET + HOST + b"\r\nX-A: \t one \t\r\nx-a:two\r\nB: c:d").headers
    assert headers == {"host": "pv", "x-a": "one, two", "b": "c:d"}


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"keep-alive", True),
        (b"1.1", b"close", False),
        (b"1.1", b"Upgrade, Close", False),
        (b"1.1", b"closed", True),
        (b"1.0", b"", False),
    ],
)
def test_a_connection_is_kept_as_the_client_wishes(
    version: bytes, connection: bytes, kept: bool
) -> None:
    data = b"GET / HTTP/" + version + HOST + b"\r\nConnection: " + connection
    assert wire.parse_head(data).keep_alive is kept


@pytest.mark.parametrize(
    ("path", "segments"),
    [
        ("/", ("",)),
        ("/a", ("a",)),
        ("/a/", ("a", "")),
        ("//a", ("", "a")),
        ("/a%2Fb/c", ("a/b", "c")),
        ("/a+b", ("a+b",)),
        ("/%2e%2E/..", ("..", "..")),
        ("/gr%C3%B6%c3%9fe", ("größe",)),
        ("/%25%32%46", ("%2F",)),
        ("/%0d%0a", ("\r\n",)),
    ],
)
def test_a_path_is_decoded_once_segment_by_segment(path: str, segments: tuple[str, ...]) -> None:
    assert wire.decode_path(path) == segments


@pytest.mark.parametrize("text", ["%", "%4", "%zz", "a%", "%-1", "%ff", "%C3", "%ED%A0%80", "%00"])
def test_broken_percent_encoding_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        wire.decode_path(f"/ok/{text}")
    with pytest.raises(Invalid):
        wire.decode_query(f"a={text}")
    with pytest.raises(Invalid):
        wire.decode_query(f"{text}=a")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", {}),
        ("a=1", {"a": "1"}),
        ("a=1&b=2", {"a": "1", "b": "2"}),
        ("a", {"a": ""}),
        ("a=", {"a": ""}),
        ("a=b=c", {"a": "b=c"}),
        ("a+b=c+d", {"a b": "c d"}),
        ("a=%2B%26%3D", {"a": "+&="}),
        ("a%26b=1", {"a&b": "1"}),
        ("a=1;b=2", {"a": "1;b=2"}),
        ("repo=nova-rey/example&branch=feature%2Fone", {"repo": "nova-rey/example"}),
    ],
)
def test_a_query_is_decoded(query: str, found: dict[str, str]) -> None:
    assert found.items() <= wire.decode_query(query).items()
    assert len(wire.decode_query(query)) == (query.count("&") + 1 if query else 0)


@pytest.mark.parametrize("query", ["a=1&a=1", "a&a", "a=1&%61=2", "a=1&b=2&a="])
def test_a_name_given_twice_is_refused_by_name(query: str) -> None:
    with pytest.raises(Invalid) as caught:
        wire.decode_query(query)
    assert caught.value.fields[0][0] == "a"


def form(boundary: str, *parts: tuple[str, bytes], end: str = "--\r\n") -> bytes:
    """A body of `parts`, each the text behind `form-data` with further headers, and the data."""
    body = b""
    for disposition, data in parts:
        head = f"--{boundary}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n"
        body += head.encode() + data + b"\r\n"
    return body + f"--{boundary}{end}".encode()


def parsed(body: bytes, boundary: str = "abc") -> list[Part]:
    return wire.parse_form(f"multipart/form-data; boundary={boundary}", body)


@pytest.mark.parametrize("boundary", ["------------------------d74496d66958873e", "x'()+_,-./:=?y"])
def test_a_body_as_curl_sends_it(boundary: str) -> None:
    body = form(
        boundary,
        ('name="repo"', b"nova-rey/example"),
        ('name="branch"', b"main"),
        ('name="files"; filename="a.md"\r\nContent-Type: text/markdown', b"# A\n"),
        ('name="files"; filename="b.md"\r\nContent-Type: application/octet-stream', b""),
    )
    assert wire.parse_form(f'multipart/form-data; boundary="{boundary}"', body) == [
        Part("repo", None, b"nova-rey/example"),
        Part("branch", None, b"main"),
        Part("files", "a.md", b"# A\n"),
        Part("files", "b.md", b""),
    ]


def test_a_body_as_a_browser_sends_it() -> None:
    boundary = "----WebKitFormBoundary7MA4YWxkTrZu0gW"
    body = form(
        boundary,
        ('name="repo"', b"example"),
        ('name="text"', "größe\r\nline two".encode()),
        ('name="files"; filename="größe 1.md"\r\nContent-Type: text/markdown', b"one\r\n"),
        ('name="files"; filename=""\r\nContent-Type: application/octet-stream', b""),
    )
    assert wire.parse_form(f"Multipart/Form-Data;boundary={boundary}", body) == [
        Part("repo", None, b"example"),
        Part("text", None, "größe\r\nline two".encode()),
        Part("files", "größe 1.md", b"one\r\n"),
        Part("files", "", b""),
    ]


@pytest.mark.parametrize(
    ("disposition", "name", "filename"),
    [
        ("name=plain", "plain", None),
        ('name=""', "", None),
        ('name="a b;c"', "a b;c", None),
        ('name="a; filename=x"', "a; filename=x", None),
        ('filename="f"; name="n"', "n", "f"),
        ('name="n";filename=f.md', "n", "f.md"),
        ('NAME="n"; FileName="f"', "n", "f"),
        (r'name="a\"b"; filename="c\\d.md"', 'a"b', r"c\d.md"),
        ('name="a%22b%0D%0A"', "a%22b%0D%0A", None),
        ('name="n"; filename="../../etc/passwd"', "n", "../../etc/passwd"),
        ("name=\"n\"; filename*=UTF-8''x.md", "n", None),
        ('name="日本"; filename="🎉.md"', "日本", "🎉.md"),
    ],
)
def test_odd_names_are_taken_as_they_are(disposition: str, name: str, filename: str | None) -> None:
    assert parsed(form("abc", (disposition, b"data"))) == [Part(name, filename, b"data")]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n",
        b"\r\n\r\n",
        b"\n--abc\n",
        b"x --abc--\r\n",
        b"\r\n--ab\r\n",
        b"\r\n-abc--",
        b"\r\n --abc--",
        b"\r\n--ABC--\r\n",
        b'a\r\nContent-Disposition: form-data; name="b"\r\n\r\nc',
        bytes(range(256)) * 3,
        b"\xff\xfe\x00\r\r\n\n\r",
    ],
)
def test_binary_data_comes_through_untouched(data: bytes) -> None:
    parts = parsed(form("abc", ('name="f"; filename="x.md"', data), ('name="g"', b"last")))
    assert parts == [Part("f", "x.md", data), Part("g", None, b"last")]


def test_random_data_comes_through_untouched() -> None:
    dice = random.Random(4)
    atoms = [b"\r\n", b"\r", b"\n", b"--", b"-", b"abc", b"ab", b"\x00", b"\xff", b": ", b" "]
    for _ in range(1500):
        data = [b"".join(dice.choices(atoms, k=dice.randrange(12))) for _ in range(3)]
        parts = [(f'name="p{number}"', item) for number, item in enumerate(data)]
        if not any(b"\r\n--abc" in b"\r\n" + item for item in data):
            assert [part.data for part in parsed(form("abc", *parts))] == data


def test_a_part_with_an_endless_head_is_refused_at_once() -> None:
    for name in ('"' + "a" * (4 << 20), '"' + "\\a" * (2 << 20) + '"'):
        began = time.process_time()
        with pytest.raises(Invalid, match="header block"):
            parsed(form("abc", (f"name={name}", b"x")))
        assert time.process_time() - began < 1


def test_a_longer_boundary_in_the_data_never_begins_a_part() -> None:
    inner = b'1\r\n--abcd\r\nContent-Disposition: form-data; name="b"\r\n\r\n2'
    try:
        names = [part.name for part in parsed(form("abc", ('name="a"', inner)))]
    except Invalid:
        return  # refusing the body whole is right as well: the data holds the delimiter's start
    assert names == ["a"]


def test_blanks_around_the_parts_are_no_data() -> None:
    body = b'\r\n--abc  \r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--abc--  \r\n\r\n'
    assert parsed(body) == [Part("a", None, b"1")]
    assert parsed(b"--abc--\r\n") == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"--abc",
        b"--abc\r\n",
        b"--abd--\r\n",
        b'--abc\r\nContent-Disposition: form-data; name="a"\r\n\r\n1',
        b'--abc\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--abc\r\n',
        b'--abc\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--abc-',
        b'--abc\r\nContent-Disposition: form-data; name="a"\r\n1\r\n--abc--',
        b"--abc\r\nContent-Disposition: form-data\r\n\r\n1\r\n--abc--",
        b"--abc\r\nContent-Type: text/plain\r\n\r\n1\r\n--abc--",
        b"--abc\r\n\r\n1\r\n--abc--",
        b'--abc\nContent-Disposition: form-data; name="a"\n\n1\n--abc--\n',
        form("abc", ('name="a"', b"1")) + b"behind",
        b"before" + form("abc", ('name="a"', b"1")),
        form("abc", ('name="a"', b"1")) + form("abc", ('name="b"', b"2")),
    ],
)
def test_a_body_that_is_not_whole_is_refused(body: bytes) -> None:
    with pytest.raises(Invalid):
        parsed(body)


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        'multipart/form-data; boundary="a\r\nb"',
        "multipart/form-data; boundary=ä",
        'multipart/form-data; boundary="ends with a space "',
        "multipart/form-data; boundary=" + "x" * 71,
        "multipart/form-data; xboundary=abc",
    ],
)
def test_a_form_without_a_proper_boundary_is_refused(content_type: str) -> None:
    with pytest.raises(Invalid):
        wire.parse_form(content_type, form("abc", ('name="a"', b"1")))


@pytest.mark.parametrize("evil", ["a\r\nX: y", "a\nb", "a\rb", "\r\n\r\n<html>", "\x85\u2028"])
@pytest.mark.parametrize("place", ["value", "name", "content type"])
def test_a_response_head_cannot_be_split(evil: str, place: str) -> None:
    response = Response(200, b"body")
    if place == "content type":
        response.content_type = evil
    headers = {"value": {"X-Y": evil}, "name": {evil: "z"}, "content type": {"X-Y": "z"}}
    response.headers.update(headers[place])
    head = wire.encode_head(response, 0, close=False)
    plain = wire.encode_head(Response(200, b"body", headers={"X-Y": "z"}), 0, close=False)
    assert head.endswith(b"\r\n\r\n") and head.count(b"\r\n\r\n") == 1
    for end in (b"\r", b"\n", b"\r\n"):
        assert head.count(end) == plain.count(end)


def test_a_response_head() -> None:
    response = Response(201, b"12345", headers={"Location": "/x", "X-Name": "größe 日本"})
    head = wire.encode_head(response, 0, close=True)
    assert head.startswith(b"HTTP/1.1 201 Created\r\nServer: prompt-valet\r\n")
    assert b"\r\nContent-Length: 5\r\n" in head and b"\r\nLocation: /x\r\n" in head
    assert b"\r\nX-Name: gr\xf6\xdfe ??\r\n" in head
    assert b"\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n" in head
    assert b"\r\nConnection: close\r\n" in head and head.endswith(b"\r\n\r\n")
    assert b"Connection" not in wire.encode_head(response, 0, close=False)


def test_a_response_without_content_has_no_length() -> None:
    assert b"Content-" not in wire.encode_head(Response(204), 0, close=False).replace(
        b"Content-Security-Policy", b""
    ).replace(b"X-Content-Type-Options", b"")


def test_an_unheard_of_status_still_makes_a_status_line() -> None:
    assert wire.encode_head(Response(299), 0, close=False).startswith(b"HTTP/1.1 299 \r\n")


def test_a_problem_names_the_fields_at_fault() -> None:
    plain = wire.problem(Invalid.of([("branch", "must be a string"), ("repo", "is missing")]))
    assert (plain["title"], plain["status"]) == ("Bad Request", 400)
    assert plain["detail"] == "branch: must be a string; repo: is missing"
    assert plain["errors"][1] == {"field": "repo", "detail": "is missing"}
    assert "errors" not in wire.problem(Invalid("x"))
