"""The floor of the benchmarks: a bare http.server handler that answers 40 bytes."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BODY = b'{"status": "ok", "version": "0.0.0+x"}\r\n'


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.1 with kept connections and one write a response; nothing else is tuned."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """The 40 bytes."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    """Says nothing of clients that go."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing."""


if __name__ == "__main__":
    with Server(("127.0.0.1", 0), Handler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()
