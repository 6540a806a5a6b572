"""The HTTP client of the command line: calls a running server and reads its event streams.

An error response becomes a ValetError with the server's own sentence. No command logic here.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pv_lib.errors import ValetError


@dataclass(frozen=True)
class Event:
    """One server-sent event: its `name` (`message` where it has none) and its data."""

    name: str
    data: str


class Client:
    """A client of the server at `host`:`port`; `timeout` in seconds, for each read.

    `headers` are sent with every request.
    """

    def __init__(
        self, host: str, port: int, timeout: float = 30.0, headers: Mapping[str, str] | None = None
    ) -> None:
        self._where = (host, port)
        self._timeout = timeout
        self._headers = dict(headers or {})

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON of one response. Raises ValetError for an error or an unreachable server."""
        data = None if body is None else json.dumps(body).encode()
        headers = self._headers | ({} if data is None else {"Content-Type": "application/json"})
        connection = http.client.HTTPConnection(*self._where, timeout=self._timeout)
        try:
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            plain = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ValetError(f"the server at {self._where[0]}:{self._where[1]}: {error}") from error
        finally:
            connection.close()
        if response.status >= 400:
            raise ValetError(plain.get("detail", f"the server answered {response.status}"))
        return plain

    def stream(self, path: str) -> Iterator[Event]:
        """The events of one stream until the server ends it. Raises ValetError."""
        connection = http.client.HTTPConnection(*self._where, timeout=self._timeout)
        try:
            connection.request(
                "GET", path, headers={**self._headers, "Accept": "text/event-stream"}
            )
            response = connection.getresponse()
            if response.status != 200:
                raise ValetError(f"the stream of {path} was refused: {response.status}")
            name = "message"
            data: list[str] = []
            for raw in response:
                line = raw.decode("utf-8", "replace").rstrip("\n")
                field, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if not line:
                    if data:
                        yield Event(name, "\n".join(data))
                    name, data = "message", []
                elif field == "event":
                    name = value
                elif field == "data":
                    data.append(value)
        except (OSError, http.client.HTTPException) as error:
            raise ValetError(f"the stream of {path} broke off: {error}") from error
        finally:
            connection.close()
