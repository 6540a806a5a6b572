"""The exception classes, each with the HTTP status of its response.

Every module raises them; two places turn them into text: `httpd.connection` (problem JSON) and
`cli.main` (one line on stderr). Nothing here knows of sockets, files or processes.
"""

from __future__ import annotations

from collections.abc import Sequence

_MOST_FAULTS = 20  # named in one response


class ValetError(Exception):
    """The base class: an error with a message for a person.

    `detail` is one sentence: what happened, to what, what to do. `status` and `title` are those of
    the HTTP response; `fields` names the invalid input fields, each with the reason.
    """

    status = 500
    title = "Internal Server Error"

    def __init__(self, detail: str, fields: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fields = tuple(fields)


class Invalid(ValetError):
    """Input that is not valid."""

    status, title = 400, "Bad Request"

    @classmethod
    def of(cls, fields: Sequence[tuple[str, str]]) -> Invalid:
        """One error that names every invalid field: `("branch", "must be a string")`."""
        shown = [(name[:100], why) for name, why in fields[:_MOST_FAULTS]]
        more = f"; and {len(fields) - len(shown)} more" if len(fields) > len(shown) else ""
        return cls("; ".join(f"{name}: {why}" for name, why in shown) + more, shown)


class Unauthorized(ValetError):
    """No token, or a wrong one: a `guess`, which is answered with a delay."""

    status, title = 401, "Unauthorized"

    def __init__(self, detail: str, *, guess: bool = False) -> None:
        super().__init__(detail)
        self.guess = guess


class Forbidden(ValetError):
    """A cross-site request from a browser."""

    status, title = 403, "Forbidden"


class NotFound(ValetError):
    """The named job, repository, branch, file or path does not exist."""

    status, title = 404, "Not Found"


class MethodNotAllowed(ValetError):
    """The path does not support the method; `allow` lists the methods it supports."""

    status, title = 405, "Method Not Allowed"

    def __init__(self, detail: str, allow: str) -> None:
        super().__init__(detail)
        self.allow = allow


class Timeout(ValetError):
    """The client did not send its request in time."""

    status, title = 408, "Request Timeout"


class Conflict(ValetError):
    """A valid request that the job's present state does not allow."""

    status, title = 409, "Conflict"


class TooLarge(ValetError):
    """A body or prompt over its limit."""

    status, title = 413, "Content Too Large"


class Unsupported(ValetError):
    """A content type that the route does not accept."""

    status, title = 415, "Unsupported Media Type"


class Misdirected(ValetError):
    """A Host header that is not allowed, as in a DNS rebinding attack."""

    status, title = 421, "Misdirected Request"


class KeyReused(ValetError):
    """An Idempotency-Key that an earlier, different request has used."""

    status, title = 422, "Unprocessable Content"


class HeadTooLarge(ValetError):
    """A request line or header block over its limit."""

    status, title = 431, "Request Header Fields Too Large"


class NotImplementedHere(ValetError):
    """A part of HTTP that this server does not implement: transfer codings."""

    status, title = 501, "Not Implemented"


class Busy(ValetError):
    """Too many connections, streams or bodies at once; the client may retry."""

    status, title = 503, "Service Unavailable"


class BadVersion(ValetError):
    """A request line of a version other than HTTP/1.0 and 1.1."""

    status, title = 505, "HTTP Version Not Supported"


class NoRoom(ValetError):
    """The disk is too full to accept the request."""

    status, title = 507, "Insufficient Storage"


class ConfigFault(ValetError):
    """Every fault in the settings; `faults` has one sentence for each."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


class BadRecord(ValetError):
    """A job.json that is not a valid record."""


class WatcherHeld(ValetError):
    """Another watcher already owns this runs root."""


class JobFailed(ValetError):
    """The job has failed: `reason` is the record's machine-readable word, `detail` its sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
