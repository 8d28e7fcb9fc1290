"""An S3 server (moto) and a web server on loopback that count what is asked of them, and can fail."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

import pytest

GONE = "the connection ends"

_buckets = count()


@dataclass(frozen=True)
class Request:
    """What one request asked for."""

    method: str
    path: str
    sent: int  # bytes of the answer's body


class Counting:
    """What was asked of a server."""

    requests: list[Request]

    def asked(self, method: str | None = None) -> list[Request]:
        """Return the requests since the last `clear`, those with a method only if one is given."""
        return [request for request in self.requests if method in (None, request.method)]

    @property
    def sent(self) -> int:
        """How many bytes were sent."""
        return sum(request.sent for request in self.requests)

    def clear(self) -> None:
        """Forget all requests."""
        self.requests.clear()


class S3(Counting):
    """moto's S3 in threads of this process. Its objects outlive `stop`, and are there again after `start`."""

    def __init__(self) -> None:
        self.requests = []
        self.fault: Callable[[dict[str, Any]], str | None] | None = None  # of each request: what to answer instead
        self._port = 0
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen: at the same address as before, if there was one."""
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, *_: object) -> None: ...

        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", self._port, self._answer, threaded=True, request_handler=Quiet)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def bucket(self, monkeypatch: pytest.MonkeyPatch) -> str:
        """Return the URL of a new bucket, which this process and its children reach from now on."""
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "secret-of-someone",
            "AWS_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        import boto3

        name = f"bucket{next(_buckets)}-{self._port}"  # a process keeps its connections, by bucket
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self._port}", region_name="us-east-1")
        client.create_bucket(Bucket=name)
        client.close()
        self.clear()
        return f"s3://{name}"

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        status = self.fault(environ) if self.fault is not None else None
        if status == GONE:  # no answer: the connection ends
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError
        if status is not None:
            start_response(status, [("Content-Length", "0")])
            return []

        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            length = 0 if environ["REQUEST_METHOD"] == "HEAD" else int(dict(headers).get("Content-Length", 0))
            self.requests.append(Request(environ["REQUEST_METHOD"], environ["PATH_INFO"], length))
            return start_response(status, headers, *more)

        body: Iterable[bytes] = self._app(environ, start)
        return body


class WebServer(Counting):
    """A folder by HTTP, with ranges, as web servers do it: no other methods, no listing."""

    def __init__(self, folder: Path, *, etags: bool = True, ranges: bool = True) -> None:
        self.requests = requests = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or each answer would wait 40 ms for an acknowledgement

            def do_GET(self) -> None:
                path = folder / unquote(self.path).lstrip("/")
                if not path.is_file():
                    self.send_error(404)
                    requests.append(Request(self.command, self.path, 0))
                    return
                stat, status = path.stat(), 200
                tag, whole = f'"{stat.st_ino:x}-{stat.st_mtime_ns:x}"', stat.st_size
                start, stop = 0, whole
                if etags and self.headers.get("If-Match", tag) != tag:
                    self.send_error(412)
                    return
                asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
                if asked and ranges:
                    start = int(asked[1]) if asked[1] else max(0, whole - int(asked[2]))
                    stop = min(int(asked[2]) + 1, whole) if asked[1] and asked[2] else whole
                    status = 206
                with path.open("rb") as file:
                    file.seek(start)
                    content = file.read(stop - start)
                self.send_response(status)
                if status == 206:
                    self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{whole}")
                if etags:
                    self.send_header("ETag", tag)
                self.send_header("Last-Modified", formatdate(0, usegmt=True))
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)
                requests.append(Request(self.command, self.path, len(content) * (self.command == "GET")))

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
