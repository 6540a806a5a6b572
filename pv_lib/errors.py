"""The one tree of errors, each with the HTTP status it becomes at the edge.

Inside the house errors are raised; they turn into text at two edges only: `server` (problem
JSON) and `app` (one line on stderr). Nothing here knows of sockets, files or processes.
"""

from __future__ import annotations

from collections.abc import Sequence

_MOST_FAULTS = 20  # that one answer names


class ValetError(Exception):
    """Something a person should read.

    `detail` is one sentence: what happened, to what, what to do. `status` and `title` are what
    HTTP says; `fields` names the input fields at fault, each with the reason.
    """

    status = 500
    title = "Internal Server Error"

    def __init__(self, detail: str, fields: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fields = tuple(fields)


class Invalid(ValetError):
    """Input that can never work as it stands."""

    status, title = 400, "Bad Request"

    @classmethod
    def of(cls, fields: Sequence[tuple[str, str]]) -> Invalid:
        """One error that names every field at fault: `("branch", "must be a string")`."""
        shown = [(name[:100], why) for name, why in fields[:_MOST_FAULTS]]
        more = f"; and {len(fields) - len(shown)} more" if len(fields) > len(shown) else ""
        return cls("; ".join(f"{name}: {why}" for name, why in shown) + more, shown)


class Unauthorized(ValetError):
    """No token, or a wrong one: then it was a `guess`, which costs time."""

    status, title = 401, "Unauthorized"

    def __init__(self, detail: str, *, guess: bool = False) -> None:
        super().__init__(detail)
        self.guess = guess


class Forbidden(ValetError):
    """A request that a foreign page made the browser send."""

    status, title = 403, "Forbidden"


class NotFound(ValetError):
    """The named job, repository, branch, file or path is not there."""

    status, title = 404, "Not Found"


class MethodNotAllowed(ValetError):
    """The path exists, the method does not; `allow` lists those that do."""

    status, title = 405, "Method Not Allowed"

    def __init__(self, detail: str, allow: str) -> None:
        super().__init__(detail)
        self.allow = allow


class Timeout(ValetError):
    """The client did not send its request in time."""

    status, title = 408, "Request Timeout"


class Conflict(ValetError):
    """Right input at the wrong time: the job's state does not allow it."""

    status, title = 409, "Conflict"


class TooLarge(ValetError):
    """A body or prompt over its limit."""

    status, title = 413, "Content Too Large"


class Unsupported(ValetError):
    """A content type this route does not read."""

    status, title = 415, "Unsupported Media Type"


class Misdirected(ValetError):
    """A Host header that is not one of ours: DNS rebinding looks like this."""

    status, title = 421, "Misdirected Request"


class KeyReused(ValetError):
    """An Idempotency-Key that came before with another request."""

    status, title = 422, "Unprocessable Content"


class HeadTooLarge(ValetError):
    """A request line or header block over its limit."""

    status, title = 431, "Request Header Fields Too Large"


class NotImplementedHere(ValetError):
    """Part of HTTP that this server refuses: transfer codings."""

    status, title = 501, "Not Implemented"


class Busy(ValetError):
    """Too many at once, of connections, streams or bodies; the client may come back."""

    status, title = 503, "Service Unavailable"


class BadVersion(ValetError):
    """A request line that does not speak HTTP/1.0 or 1.1."""

    status, title = 505, "HTTP Version Not Supported"


class NoRoom(ValetError):
    """The disk is too full to promise anything."""

    status, title = 507, "Insufficient Storage"


class ConfigFault(ValetError):
    """Every fault in the settings at once; `faults` has one sentence each."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


class BadRecord(ValetError):
    """A job.json that cannot be understood."""


class WatcherHeld(ValetError):
    """Another watcher already owns this runs root."""


class JobFailed(ValetError):
    """A job ends here: `reason` is the record's stable word, `detail` its sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
