"""A web server of a folder that answers ranges, counts what it is asked for, and fails when it is told to."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class RangeServer(ThreadingHTTPServer):
    """Serves `root`. Attributes may be changed while it runs."""

    daemon_threads = True

    def __init__(self, root: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.root = root
        self.lock = threading.Lock()
        self.bodies: Counter[str] = Counter()  # how often more than the end of a file was asked for, by its path
        self.asked: list[str] = []  # these paths, in order
        self.cut: int | None = None  # bytes of a body after which the connection breaks
        self.after_cut: Callable[[], object] = int  # what happens then
        self.delay = 0.0  # seconds before a body
        self.gate = threading.Event()  # bodies wait for it
        self.gate.set()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def count(self, path: str) -> None:
        """Note a request."""
        with self.lock:
            self.bodies[path] += 1
            self.asked.append(path)

    def die(self) -> None:
        """Answer nobody any more."""
        self.socket.close()
        self.cut = 0

    def shards(self) -> dict[str, int]:
        """Return how often each shard was asked for."""
        with self.lock:
            return {path: times for path, times in self.bodies.items() if path.endswith(".mmds")}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that have gone."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes, of which the second would wait for the first
    server: RangeServer

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path = self.server.root / self.path.lstrip("/")
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size, (start, stop), is_part = path.stat().st_size, (0, path.stat().st_size), False
        if (found := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))) is not None:
            is_part = True
            if found[1]:
                start, stop = int(found[1]), min(size, int(found[2]) + 1 if found[2] else size)
            else:
                start = max(0, size - int(found[2]))
        self.send_response(206 if is_part else 200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{path.stat().st_mtime_ns:x}-{size:x}"')
        self.send_header("Last-Modified", "Mon, 02 Nov 2026 00:00:00 GMT")
        self.send_header("Accept-Ranges", "bytes")
        if is_part:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        if not with_body:
            return
        if stop - start > 64:
            self.server.count(self.path.lstrip("/"))
            self.server.gate.wait()
            time.sleep(self.server.delay)
        with path.open("rb") as file:
            data = os.pread(file.fileno(), stop - start, start)
        cut = self.server.cut  # which may change at any moment
        if cut is not None and len(data) > cut:
            self.wfile.write(data[:cut])
            self.wfile.flush()
            self.server.after_cut()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet."""


@contextlib.contextmanager
def serving(root: Path, port: int = 0) -> Iterator[RangeServer]:
    """Serve a folder."""
    with RangeServer(root, port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.gate.set()
            server.shutdown()
            thread.join()
