"""Raw bytes on a raw socket: what each is answered, on every Python, and that nothing slips behind.

Each case is sent with a second, valid request behind it, a submission. Where the first one is not
trusted, the second must not run: the statuses listed are all that may come back.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest
from harness import DEADLINE, REPO, Valet, program, until
from needs import python

HOST = b"Host: 127.0.0.1\r\n"
OK = b"GET /api/v1/healthz HTTP/1.1\r\n" + HOST
POST = b"POST /api/v1/jobs HTTP/1.1\r\n" + HOST
JSON = b"Content-Type: application/json\r\n"
TEXT = b'{"repo":"nova-rey/example","branch":"main","markdown_text":"fake: say smuggled"}'
SECOND = POST + JSON + b"Content-Length: %d\r\n\r\n" % len(TEXT) + TEXT
GOOD = b"GET /api/v1/healthz HTTP/1.1\r\nHost: localhost:1\r\nConnection: close\r\n\r\n"
END = b"\r\n"


def get(target: bytes) -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\n" + HOST + END


def head(*lines: bytes, start: bytes = OK) -> bytes:
    return start + b"".join(line + b"\r\n" for line in lines) + END


def post(*lines: bytes, body: bytes = b"") -> bytes:
    return head(JSON[:-2], *lines, start=POST) + body


def length(text: bytes) -> bytes:
    return post(b"Content-Length: " + text, body=b"{}")


# The connection is closed after the last of these answers, and nothing behind it is run.
REFUSED: list[tuple[str, bytes, int]] = [
    # the request line
    ("http 0.9", b"GET /api/v1/healthz\r\n", 400),
    ("http 0.9 with a blank line", b"GET /api/v1/healthz\r\n\r\n", 400),
    ("http 2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("http 2", b"GET / HTTP/2.0\r\n" + HOST + END, 505),
    ("http 2 without minor", b"GET / HTTP/2\r\n" + HOST + END, 400),
    ("http 3", b"GET / HTTP/3.0\r\n" + HOST + END, 505),
    ("http 1.2", b"GET / HTTP/1.2\r\n" + HOST + END, 505),
    ("http 1.10", b"GET / HTTP/1.10\r\n" + HOST + END, 400),
    ("lower-case http", b"GET / http/1.1\r\n" + HOST + END, 400),
    ("no version", b"GET /\r\n" + HOST + END, 400),
    ("only a method", b"GET\r\n" + HOST + END, 400),
    ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ("ssh", b"SSH-2.0-OpenSSH_9.2p1\r\n", 400),
    ("smtp", b"EHLO example\r\n", 400),
    ("redis", b"*1\r\n$4\r\nPING\r\n", 400),
    ("NULs", b"\x00" * 64, 400),
    ("high bytes", b"\xff\xfe\xfd\r\n\r\n", 400),
    ("two stray line ends", b"\r\n\r\n" + OK + END, 400),
    ("nothing but line ends", b"\r\n" * 9999, 400),
    ("leading space", b" " + OK + END, 400),
    ("two spaces", b"GET  / HTTP/1.1\r\n" + HOST + END, 400),
    ("a tab between", b"GET\t/\tHTTP/1.1\r\n" + HOST + END, 400),
    ("trailing space", b"GET / HTTP/1.1 \r\n" + HOST + END, 400),
    ("space in the target", b"GET /a b HTTP/1.1\r\n" + HOST + END, 400),
    ("bare LF lines", b"GET / HTTP/1.1\nHost: 127.0.0.1\n\n", 400),
    ("LF behind the request line", b"GET / HTTP/1.1\nHost: 127.0.0.1\r\n\r\n", 400),
    ("CR in the request line", b"GET /\r HTTP/1.1\r\n" + HOST + END, 400),
    ("CR CR LF", b"GET / HTTP/1.1\r\r\n" + HOST + END, 400),
    ("NUL in the target", get(b"/\x00"), 400),
    ("DEL in the target", get(b"/\x7f"), 400),
    ("UTF-8 in the target", get("/ä".encode()), 400),
    ("absolute form", get(b"http://127.0.0.1/api/v1/healthz"), 400),
    ("absolute form of another", get(b"http://evil.test/"), 400),
    ("absolute https form", get(b"https://127.0.0.1/"), 400),
    ("authority form", b"CONNECT 127.0.0.1:443 HTTP/1.1\r\n" + HOST + END, 400),
    ("asterisk for GET", get(b"*"), 400),
    ("no leading slash", get(b"api/v1/healthz"), 400),
    ("a relative path", get(b"../api/v1/healthz"), 400),
    ("only a query", get(b"?a=1"), 400),
    ("broken method", b"G(T / HTTP/1.1\r\n" + HOST + END, 400),
    ("method with a colon", b"GET: / HTTP/1.1\r\n" + HOST + END, 400),
    ("oversized line", get(b"/" + b"a" * 40_000), 431),
    ("endless line", b"GET /" + b"a" * 40_000, 431),
    # the target behind its percent-encoding
    ("half a percent", get(b"/api/v1/jobs/%"), 400),
    ("percent without hex", get(b"/api/v1/jobs/%zz"), 400),
    ("percent NUL", get(b"/api/v1/jobs/%00"), 400),
    ("percent not UTF-8", get(b"/api/v1/jobs/%ff"), 400),
    ("an overlong slash", get(b"/api/v1/jobs/%c0%af"), 400),
    ("a surrogate", get(b"/api/v1/jobs/%ed%a0%80"), 400),
    ("percent NUL in the query", get(b"/api/v1/jobs?repo=%00"), 400),
    ("a parameter twice", get(b"/api/v1/jobs?limit=1&limit=2"), 400),
    # the header block
    ("no Host", b"GET / HTTP/1.1\r\n\r\n", 400),
    ("two Hosts", head(b"Host: 127.0.0.1"), 400),
    ("two different Hosts", head(b"Host: evil.test"), 400),
    ("two Hosts in other case", head(b"hOST: 127.0.0.1"), 400),
    ("empty Host", b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 421),
    ("foreign Host", b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n", 421),
    ("foreign Host with our port", b"GET / HTTP/1.1\r\nHost: evil.test:8888\r\n\r\n", 421),
    ("Host that ends in ours", b"GET / HTTP/1.1\r\nHost: evil127.0.0.1\r\n\r\n", 421),
    ("Host that begins as ours", b"GET / HTTP/1.1\r\nHost: 127.0.0.1.evil.test\r\n\r\n", 421),
    ("Host with a user", b"GET / HTTP/1.1\r\nHost: me@127.0.0.1\r\n\r\n", 421),
    ("Host with a path", b"GET / HTTP/1.1\r\nHost: 127.0.0.1/x\r\n\r\n", 421),
    ("Host list", b"GET / HTTP/1.1\r\nHost: 127.0.0.1, evil.test\r\n\r\n", 421),
    ("Host with a trailing dot", b"GET / HTTP/1.1\r\nHost: localhost.\r\n\r\n", 421),
    ("Host with an odd port", b"GET / HTTP/1.1\r\nHost: localhost:80a\r\n\r\n", 421),
    ("Host with an empty port", b"GET / HTTP/1.1\r\nHost: localhost:\r\n\r\n", 421),
    ("Host with a digit of Latin-1", b"GET / HTTP/1.1\r\nHost: localhost:\xb2\r\n\r\n", 421),
    ("a number that is loopback", b"GET / HTTP/1.1\r\nHost: 2130706433\r\n\r\n", 421),
    ("http 1.0 without Host", b"GET / HTTP/1.0\r\n\r\n", 421),
    ("folded Host", b"GET / HTTP/1.1\r\nHost:\r\n 127.0.0.1\r\n\r\n", 400),
    ("obs-fold by space", head(b"X: a", b" b"), 400),
    ("obs-fold by tab", head(b"X: a", b"\tb"), 400),
    ("obs-fold first", b"GET / HTTP/1.1\r\n Host: 127.0.0.1\r\n\r\n", 400),
    ("space before the colon", head(b"X : a"), 400),
    ("tab before the colon", head(b"X\t: a"), 400),
    ("no colon", head(b"no colon here"), 400),
    ("no name", head(b": nothing"), 400),
    ("bare CR in a value", head(b"X: a\rTransfer-Encoding: chunked"), 400),
    ("bare LF in a value", head(b"X: a\nTransfer-Encoding: chunked"), 400),
    ("bare CR as line end", OK + b"X: a\r\r\n", 400),
    ("NUL in a value", head(b"X: a\x00b"), 400),
    ("ESC in a value", head(b"X: a\x1bb"), 400),
    ("NUL in a name", head(b"X\x00: a"), 400),
    ("high byte in a name", head(b"X\xe4: a"), 400),
    ("101 headers", head(*[b"X%d: a" % n for n in range(100)]), 431),
    ("oversized header", head(b"X: " + b"a" * 40_000), 431),
    ("oversized block", head(*[b"X%d: " % n + b"a" * 900 for n in range(60)]), 431),
    ("two Origins", head(b"Origin: http://127.0.0.1", b"Origin: http://evil.test"), 400),
    ("two Authorizations", head(b"Authorization: a", b"Authorization: b"), 400),
    ("two Content-Types", post(b"Content-Type: text/plain", b"Content-Length: 0"), 400),
    # where the body ends
    ("two equal lengths", post(b"Content-Length: 2", b"Content-Length: 2", body=b"{}"), 400),
    ("two lengths", post(b"Content-Length: 2", b"Content-Length: 9", body=b"{}"), 400),
    ("a list of lengths", length(b"2, 2"), 400),
    ("length with plus", length(b"+2"), 400),
    ("length below zero", length(b"-1"), 400),
    ("length with underscore", length(b"1_0"), 400),
    ("length in hex", length(b"0x2"), 400),
    ("length as a word", length(b"two"), 400),
    ("length with a point", length(b"2.0"), 400),
    ("length of Latin-1", length(b"\xb2"), 400),
    ("empty length", length(b""), 400),
    ("length with a space inside", length(b"1 0"), 400),
    ("length beyond all", length(b"9" * 30), 400),
    ("oversized body", length(b"99999999"), 413),
    ("chunked", post(b"Transfer-Encoding: chunked", body=b"2\r\n{}\r\n0\r\n\r\n"), 501),
    ("chunked in capitals", post(b"TRANSFER-ENCODING: CHUNKED", body=b"0\r\n\r\n"), 501),
    ("chunked and length", post(b"Transfer-Encoding: chunked", b"Content-Length: 2"), 501),
    ("length and chunked", post(b"Content-Length: 2", b"Transfer-Encoding: chunked"), 501),
    ("an odd coding", post(b"Transfer-Encoding: xchunked", b"Content-Length: 2"), 501),
    ("identity", post(b"Transfer-Encoding: identity", b"Content-Length: 2"), 501),
    ("two codings", post(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"), 400),
    ("empty coding", post(b"Transfer-Encoding:", b"Content-Length: 2", body=b"{}"), 501),
    ("chunked for GET", head(b"Transfer-Encoding: chunked") + b"0\r\n\r\n", 501),
    # the gate comes before the body
    ("form type", head(b"Content-Type: text/plain", b"Content-Length: 80", start=POST), 415),
    ("no type", head(b"Content-Length: 80", start=POST), 415),
    ("foreign origin", post(b"Origin: http://evil.test", b"Content-Length: 80"), 403),
    ("null origin", post(b"Origin: null", b"Content-Length: 80"), 403),
    ("cross-site", post(b"Sec-Fetch-Site: cross-site", b"Content-Length: 80"), 403),
    (
        "expect of a stranger",
        post(b"Expect: 100-continue", b"Origin: x", b"Content-Length: 9"),
        403,
    ),
    ("expect of too much", post(b"Expect: 100-continue", b"Content-Length: 99999999"), 413),
]
# The client says no more and waits: a 408 would mean that we waited for the rest of a head as well.
ALONE = [
    (f"{name}, alone", data, status)
    for name, data, status in REFUSED
    if name
    in ("http 0.9", "a TLS hello", "ssh", "smtp", "redis", "NULs", "bare LF lines", "endless line")
]
# These are answered and the connection stays: the request behind them runs.
NO_FIELDS = head(JSON[:-2], b"Content-Length: 2", start=POST) + b"{}"
TAKEN: list[tuple[str, bytes, list[int]]] = [
    ("plain", OK + END, [200]),
    ("a stray line end before", b"\r\n" + OK + END, [200]),
    ("cookies in two lines", head(b"Cookie: a=1", b"Cookie: b=2"), [200]),
    ("no space behind the colon", b"GET /api/v1/healthz HTTP/1.1\r\nHost:localhost\r\n\r\n", [200]),
    ("Host in capitals", b"GET /api/v1/healthz HTTP/1.1\r\nHOST: LOCALHOST:99\r\n\r\n", [200]),
    ("IPv6 Host", b"GET /api/v1/healthz HTTP/1.1\r\nHost: [::1]:8888\r\n\r\n", [200]),
    ("HEAD", b"HEAD /api/v1/healthz HTTP/1.1\r\n" + HOST + END, [200]),
    ("OPTIONS", b"OPTIONS /api/v1/jobs HTTP/1.1\r\n" + HOST + END, [204]),
    ("OPTIONS of the server", b"OPTIONS * HTTP/1.1\r\n" + HOST + END, [204]),
    ("TRACE", b"TRACE /api/v1/jobs HTTP/1.1\r\n" + HOST + END, [405]),
    ("a method nobody knows", b"BREW /api/v1/jobs HTTP/1.1\r\n" + HOST + END, [405]),
    ("lower-case method", b"get /api/v1/healthz HTTP/1.1\r\n" + HOST + END, [405]),
    ("two slashes", get(b"//api/v1/healthz"), [404]),
    ("two slashes with a host", get(b"//evil.test/api/v1/healthz"), [404]),
    ("a slash behind", get(b"/api/v1/healthz/"), [404]),
    ("dots", get(b"/api/v1/../v1/healthz"), [404]),
    ("an encoded slash", get(b"/api%2fv1/healthz"), [404]),
    ("a backslash", get(b"/api\\v1\\healthz"), [404]),
    ("a fragment", get(b"/api/v1/healthz#x"), [404]),
    ("encoded letters", get(b"/api/v1/h%65althz"), [200]),
    ("100 headers", head(*[b"X%d: a" % n for n in range(99)]), [200]),
    ("an empty value", head(b"X:"), [200]),
    ("Latin-1 in a value", head(b"X: caf\xe9"), [200]),
    ("length zero", head(b"Content-Length: 0"), [200]),
    ("length with zeros before", head(b"Content-Length: 000"), [200]),
    ("a body behind GET", head(b"Content-Length: 5") + b"hello", [200]),
    ("a body that is a request", head(b"Content-Length: %d" % len(SECOND)) + SECOND, [200]),
    ("a body of the wrong fields", NO_FIELDS, [400]),
    ("our own origin", head(b"Origin: http://127.0.0.1"), [200]),
    ("our own origin by TLS", head(b"Origin: https://127.0.0.1"), [200]),
    ("same-origin", head(b"Sec-Fetch-Site: same-origin"), [200]),
    ("expect", post(b"Expect: 100-continue", b"Content-Length: 2", body=b"{}"), [400]),
    ("an upgrade", head(b"Connection: Upgrade", b"Upgrade: websocket"), [200]),
    ("an upgrade to http 2", head(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"), [200]),
]
# The client ends in the middle and reads on.
CUT: list[tuple[str, bytes, list[int]]] = [
    ("nothing at all", b"", []),
    ("a line end", b"\r\n", []),
    (
        "expect of http 1.0",
        post(b"Expect: 100-continue", b"Content-Length: 9").replace(b"1.1", b"1.0"),
        [400],
    ),
    ("half a request line", b"GET /api", [400]),
    ("half a head", OK, [400]),
    ("half a body", post(b"Content-Length: 80", body=b"{"), [400]),
    ("a body of which nothing came", post(b"Content-Length: 80"), [400]),
    ("expect and no body", post(b"Expect: 100-continue", b"Content-Length: 80"), [100, 400]),
    ("http 1.0", b"GET /api/v1/healthz HTTP/1.0\r\n" + HOST + END, [200]),
    ("close", head(b"Connection: close"), [200]),
    ("close among others", head(b"Connection: x, Close"), [200]),
]


@pytest.fixture(scope="module", params=["3.10", "3.11", "3.12", "3.13"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Valet]:
    argv = [python(request.param), *program()[1:]]
    valet = Valet(tmp_path_factory.mktemp("corpus"), argv)
    valet.start()
    yield valet
    valet.stop()


def talk(valet: Valet, data: bytes, *, cut: bool = False) -> bytes:
    """Send all of it and read to the end of the connection."""
    with socket.create_connection(("127.0.0.1", valet.port), timeout=DEADLINE) as client:
        out = b""
        try:
            client.sendall(data)
            if cut:
                client.shutdown(socket.SHUT_WR)
            while more := client.recv(65536):
                out += more
        except ConnectionError:  # refused while it was still sending
            pass
        return out


def statuses(answers: bytes, *, heads: int = 0) -> list[int]:
    """The statuses of all answers in `answers`; the first `heads` have no body."""
    found = []
    while answers:
        start, blank, answers = answers.partition(b"\r\n\r\n")
        match = re.match(rb"HTTP/1\.1 (\d+) ", start)
        assert match and blank, start
        found.append(int(match[1]))
        size = re.search(rb"(?im)^Content-Length: (\d+)", start)
        if size and len(found) > heads:
            assert len(answers) >= int(size[1]), "a body is cut off"
            answers = answers[int(size[1]) :]
    return found


def test_there_are_enough_cases_and_no_two_have_one_name() -> None:
    names = [case[0] for case in (*REFUSED, *ALONE, *TAKEN, *CUT)]
    assert len(names) == len(set(names)) >= 100


@pytest.mark.long
def test_every_case_has_its_answer_and_leaves_nothing_behind(server: Valet) -> None:
    before = server.at_rest()
    faults = []
    for name, data, status in REFUSED:
        answers = talk(server, data + SECOND)
        marks = (b"\r\nConnection: close\r\n", b'"status": %d' % status)
        if statuses(answers) != [status] or not all(mark in answers for mark in marks):
            faults.append((name, answers))
    for name, data, status in ALONE:
        answers = talk(server, data)
        if statuses(answers) != [status]:
            faults.append((name, answers))
    for name, data, wanted in TAKEN:
        answers = talk(server, data + GOOD)
        heads = 1 if data.startswith(b"HEAD") else 0
        if statuses(answers, heads=heads) != [*wanted, 200]:
            faults.append((name, answers))
    for name, data, wanted in CUT:
        answers = talk(server, data, cut=True)
        if statuses(answers) != wanted:
            faults.append((name, answers))
    assert not faults
    assert server.get("/api/v1/jobs")["jobs"] == []
    assert not list(server.inbox.rglob("*.md"))
    until(lambda: server.held == before, f"{before} threads and files, not {server.held}")
    assert server.processes[-1].said.count("\n") == 1, "nothing but that it listens"
    assert (server.root / "repos" / REPO).is_dir()
