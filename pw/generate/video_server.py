"""An HTTP server on 127.0.0.1 that takes prompts as JSON and gives their state and videos (`pw.generate.serve`).

    POST videos            {"prompt": "a heron", "seed": 3}   -> 202 and the video's state, 400 and the reason
    GET  videos            all states, oldest first
    GET  videos/ID         one state: waiting, running, done or failed
    GET  videos/ID/file    the video; 409 until it is done

Paths begin with a random token, and a request must be addressed to this machine by its own name, so that pages in a
browser, and other users, cannot use it.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from pw.io.files import parse_json
from pw.io.host import HOST

MOST_BYTES = 1 << 16  # of a request
SECONDS = 60  # that a connection may be silent
TYPES = {".mp4": "video/mp4", ".mkv": "video/x-matroska", ".png": "image/png"}


@dataclass
class RequestedVideo:
    """One video. share: of its work, 0 to 1; part: what is being done; error: why it failed"""

    id: str
    prompt: str
    seed: int
    state: Literal["waiting", "running", "done", "failed"] = "waiting"
    part: str = ""
    share: float = 0.0
    error: str = ""


class QueueFullError(Exception):
    """No more prompts are taken."""


class VideoServer(ThreadingHTTPServer):
    """The server of `jobs` (id -> job). Raises OSError if the port is taken.

    add   (prompt, seed or None) -> the job, new or existing. Raises ValueError with a reason, QueueFullError
    file  job -> its video
    """

    daemon_threads = True

    def __init__(
        self,
        port: int,
        jobs: dict[str, RequestedVideo],
        add: Callable[[str, int | None], RequestedVideo],
        file: Callable[[RequestedVideo], Path],
    ) -> None:
        self.jobs, self.add, self.file = jobs, add, file
        self.token = secrets.token_urlsafe(16)
        super().__init__((HOST, port), _Handler)
        self.hosts = {f"{host}:{self.server_port}" for host in (HOST, "localhost")}

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that closes a connection is no event."""


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "pw", ""
    protocol_version = "HTTP/1.1"
    timeout = SECONDS

    def do_GET(self) -> None:
        parts = self._path()
        if parts is None:
            return
        job = self._videos.jobs.get(parts[1]) if len(parts) > 1 else None
        if parts == ["videos"]:
            self._answer(200, [asdict(job) for job in [*self._videos.jobs.values()]])
        elif parts[0] != "videos" or job is None or parts[2:] not in ([], ["file"]):
            self._answer(404, {"error": f"{'/'.join(parts)}: there is no such path; POST videos, GET videos/ID[/file]"})
        elif len(parts) == 2:
            self._answer(200, asdict(job))
        elif job.state != "done":
            self._answer(409, {"error": f"{job.id}: is {job.state}", **asdict(job)})
        else:
            self._send_file(self._videos.file(job))

    def do_POST(self) -> None:
        parts = self._path()
        if parts is None:
            return
        length = self.headers.get("Content-Length", "")
        if parts != ["videos"]:
            self._answer(404, {"error": f"{'/'.join(parts)}: prompts are posted to videos"})
        elif self.headers.get_content_type() != "application/json":
            self._answer(415, {"error": "Content-Type: expected application/json"})
        elif not length.isdecimal() or int(length) > MOST_BYTES:
            self._answer(413, {"error": f"Content-Length: expected at most {MOST_BYTES} bytes"})
        else:
            self._add(self.rfile.read(int(length)))

    def _add(self, content: bytes) -> None:
        try:
            job = self._videos.add(*read_prompt(content))
        except ValueError as error:
            self._answer(400, {"error": str(error)})
        except QueueFullError as error:
            self._answer(429, {"error": str(error)})
        else:
            self._answer(202, asdict(job))

    @property
    def _videos(self) -> VideoServer:
        assert isinstance(self.server, VideoServer)
        return self.server

    def _path(self) -> list[str] | None:
        """The parts of the path below the token; None after a refusal."""
        token, _, path = self.path.partition("?")[0].removeprefix("/").partition("/")
        origin = self.headers.get("Origin")
        is_ours = self.headers.get("Host") in self._videos.hosts and (
            origin is None or origin.removeprefix("http://") in self._videos.hosts
        )
        if not is_ours or not hmac.compare_digest(token.encode(), self._videos.token.encode()):
            self._answer(403, {"error": "use the address that pw serve printed"})
            return None
        return path.strip("/").split("/")

    def _answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        if status >= 400:
            self.close_connection = True  # what was not read is not the next request
        self._head(status, "application/json", len(body))
        self.wfile.write(body)

    def _send_file(self, path: Path) -> None:
        try:
            stream = path.open("rb")
        except OSError as error:
            self._answer(404, {"error": f"{path.name}: {error.strerror}"})
            return
        with stream:
            self._head(200, TYPES[path.suffix], os.fstat(stream.fileno()).st_size)
            shutil.copyfileobj(stream, self.wfile)

    def _head(self, status: int, kind: str, length: int) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        for name, value in {**headers, "Cross-Origin-Resource-Policy": "same-origin"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal shows the progress."""


def read_prompt(content: bytes) -> tuple[str, int | None]:
    """(prompt, seed) of a request. Raises ValueError with the field and what would do."""
    entry = parse_json(content.decode("utf-8"))
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise ValueError('expected an object with the text of a prompt: {"prompt": "a heron", "seed": 3}')
    if unknown := [name for name in entry if name not in ("prompt", "seed")]:
        raise ValueError(f"{unknown[0]}: is no field of a request, which has prompt and seed; pw serve takes the rest")
    seed = entry.get("seed")
    if seed is not None and type(seed) is not int:
        raise ValueError(f"seed={seed!r}: expected a whole number")
    return entry["prompt"], seed
