"""Access control: the checks on every request before its body is read. Pure.

Every page in the operator's browser and every local user can reach a loopback port. So each header
that identifies a request of a foreign page is checked, in a fixed order; in doubt it is refused.
No socket, no route, no job is known here.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
from dataclasses import dataclass

from pv_lib.errors import Forbidden, Misdirected, Unauthorized, Unsupported
from pv_lib.httpd.wire import Head, media_type

COOKIE = "pv_session"
COOKIE_SECONDS = 86400
_MOST_SESSIONS = 8  # cookies of our name that are checked: pages on other ports can set some
# What a foreign page cannot send without a preflight, and forms, which the Origin check covers.
BODY_TYPES = ("application/json", "text/markdown", "multipart/form-data")
_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::[0-9]{1,5})?")
_COOKIE = re.compile(rf"(?:^|;\s*){COOKIE}=([0-9]{{1,12}})\.([0-9a-f]{{64}})(?=;|$)")


@dataclass(frozen=True)
class Gate:
    """The rules. `hosts` are names without port; with `token` None, no token is needed."""

    hosts: frozenset[str]
    token: str | None

    def check(self, head: Head, now: float) -> float:
        """Raise if the request is refused, else return until when the same head is accepted.

        Both times are Unix time.

        In this order: Misdirected for the Host (DNS rebinding), Forbidden for Origin and
        Sec-Fetch-Site (foreign pages), Unsupported for a body that a form could send,
        Unauthorized for the token.
        """
        host = head.headers.get("host", "").lower()
        name = _HOST.fullmatch(host)
        if not name or name[1] not in self.hosts:
            raise Misdirected(
                f"the Host {host[:100]!r} is not served here: add it to PV_ALLOWED_HOSTS"
            )
        origin = head.headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            raise Forbidden("the request comes from a page of another origin")
        if head.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Forbidden("the browser says that the request comes from another site")
        if head.length and head.method not in _SAFE:
            kind = media_type(head.headers)
            if kind not in BODY_TYPES:
                wanted = ", ".join(BODY_TYPES)
                raise Unsupported(f"a body's Content-Type must be one of {wanted}")
        return math.inf if self.token is None else self._check_token(self.token, head, now)

    def session(self, now: float) -> str | None:
        """A cookie's value, valid for COOKIE_SECONDS from `now`; None if no token is needed."""
        if self.token is None:
            return None
        end = int(now) + COOKIE_SECONDS
        return f"{end}.{_mark(self.token, str(end))}"

    def _check_token(self, token: str, head: Head, now: float) -> float:
        given = head.headers.get("authorization")
        if given is not None:
            scheme, _, rest = given.partition(" ")
            right = hmac.compare_digest(rest.strip().encode("latin-1"), token.encode())
            if not right or scheme.lower() != "bearer":
                raise Unauthorized("the bearer token is not the right one", guess=True)
            return math.inf
        sessions = _COOKIE.findall(head.headers.get("cookie", ""))[:_MOST_SESSIONS]
        if not sessions:
            raise Unauthorized("a bearer token is needed: Authorization: Bearer …")
        ours = [int(end) for end, mark in sessions if hmac.compare_digest(mark, _mark(token, end))]
        if not ours:
            raise Unauthorized("the session is not one of this server: sign in anew", guess=True)
        if max(ours) < now:
            raise Unauthorized("the session is over: sign in anew")
        return max(ours)


def _mark(token: str, end: str) -> str:
    """The MAC of the session's end, with the token as key."""
    return hmac.new(token.encode(), f"pv session {end}".encode(), hashlib.sha256).hexdigest()
