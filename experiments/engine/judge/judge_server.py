"""Serves the page of one judge on 127.0.0.1, and keeps each answer before it says so.

Other pages in the same browser must not vote or look: every path begins with a random token, and a request must be
addressed to this machine by its own name (which a DNS name that is bound to 127.0.0.1 anew is not).
"""

from __future__ import annotations

import hmac
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from experiments.engine.judge.vote_files import VoteFile
from experiments.engine.judge.vote_media import Shown, page_text
from pw.io.files import parse_json
from pw.io.host import HOST

MOST_BYTES = 4096  # of an answer
TYPES = {".png": "image/png", ".mp4": "video/mp4", ".html": "text/html; charset=utf-8"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' data:; media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class JudgeServer(ThreadingHTTPServer):
    """The server of a plan. Raises OSError if the port is taken."""

    daemon_threads = True

    def __init__(self, file: VoteFile, shown: Shown, port: int) -> None:
        self.file, self.shown, self.lock = file, shown, threading.Lock()
        self.token = secrets.token_urlsafe(16)
        super().__init__((HOST, port), _Handler)
        self.hosts = {f"{host}:{self.server_port}" for host in (HOST, "localhost")}

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that closes a connection is no event."""


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "judge", ""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self._path()
        if path is None:
            return
        if path == "":
            with self._judge.lock:
                text = page_text(self._judge.file.plan, self._judge.shown, self._judge.file.answers)
            self._send(200, text.encode(), TYPES[".html"], "no-store")
            return
        name = path.removeprefix("media/")
        file = self._judge.shown.files.get(name) if name != path else None
        try:
            content = file.read_bytes() if file else None
        except OSError:
            content = None
        if file is None or content is None:
            self._send(404, b"not found")
        else:
            self._send(200, content, TYPES[file.suffix], "private, max-age=86400")

    def do_POST(self) -> None:
        path = self._path()
        if path is None:
            return
        length = self.headers.get("Content-Length", "")
        if path != "vote" or self.headers.get_content_type() != "application/json":
            self._send(404, b"not found")
            return
        if not length.isdecimal() or int(length) > MOST_BYTES:
            self._send(413, b"too long")
            return
        try:
            entry = parse_json(self.rfile.read(int(length)))
            with self._judge.lock:
                self._judge.file.add(entry["pair"], entry["choice"], entry["ms"])
        except OSError as error:
            self._send(507, (error.strerror or "the disk refuses it").encode())
        except (ValueError, LookupError, TypeError) as error:
            self._send(400, str(error).encode(errors="replace"))
        else:
            self._send(200, b"kept")

    @property
    def _judge(self) -> JudgeServer:
        assert isinstance(self.server, JudgeServer)
        return self.server

    def _path(self) -> str | None:
        """What is asked for, below the token; None after a refusal."""
        token, _, path = self.path.partition("?")[0].removeprefix("/").partition("/")
        origin = self.headers.get("Origin")
        is_ours = self.headers.get("Host") in self._judge.hosts and (
            origin is None or origin.removeprefix("http://") in self._judge.hosts
        )
        if not is_ours or not hmac.compare_digest(token.encode(), self._judge.token.encode()):
            self._send(403, b"open the address that the program printed")
            return None
        return path

    def _send(
        self, status: int, content: bytes, kind: str = "text/plain; charset=utf-8", cache: str = "no-store"
    ) -> None:
        if status >= 400:
            self.close_connection = True  # what was not read is not the next request
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Cache-Control": cache}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal is for people."""
