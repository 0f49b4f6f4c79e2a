"""Serving the report of a running sweep, to this machine alone unless somebody says otherwise."""

from __future__ import annotations

import ipaddress
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from domainbed.core.text_table import printable
from domainbed.errors import UserError
from domainbed.reporting.page.html import waiting_html
from domainbed.runs.load import Folders, as_paths, record_files

REFRESH = 15
"""Seconds after which a page asks anew."""

_LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}


def serve(render: Callable[[], str], folders: Folders, host: str, port: int) -> int:
    """Serves one page until Ctrl-C, and prints where; returns the exit status.

    Args:
        render: makes the page; its `UserError` is shown on a page that waits.
        folders: what the page is about; it is made anew once something in them changed.
        host: the address to listen at.
        port: 0 for any that is free.

    Raises:
        UserError: a folder is no sweep's or run's, or nothing can listen there.
    """
    for root in as_paths(folders):
        if not (root / "plan.json").is_file():  # a sweep that has one may have no record yet
            record_files(root)
    with make_server(render, folders, host, port) as server:
        address = f"http://{server.server_name}:{server.server_port}/"
        shown = f"http://{host}:{server.server_port}/" if is_local(host) else address
        print(f"Report: {shown} (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def make_server(
    render: Callable[[], str], folders: Folders, host: str, port: int
) -> ThreadingHTTPServer:
    """A server of one page; it reads no file that a request names.

    Raises:
        UserError: nothing can listen there.
    """
    made = _Latest(render, as_paths(folders))

    class Handler(_Handler):
        latest = made
        names = _LOCAL_NAMES | {host} if is_local(host) else None

    try:
        return _Server((host, port), Handler)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot listen at --host {host} --port {port} ({reason}): choose others"
        ) from error


def is_local(host: str) -> bool:
    """Whether an address is of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(ThreadingHTTPServer):
    """With a thread for each connection: browsers open some that they ask nothing on."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader who has gone is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Latest:
    """The page as it is now; made once for each state of the folders, by one thread."""

    def __init__(self, render: Callable[[], str], roots: list[Path]) -> None:
        self._render, self._roots = render, roots
        self._state: Any = None
        self._page = ""
        self._lock = threading.Lock()

    def page(self) -> str:
        with self._lock:
            return self._made()

    def _made(self) -> str:
        state = [_state(root) for root in self._roots]
        if state != self._state:
            try:
                self._page = self._render()
            except UserError as error:
                self._page = waiting_html(printable(error), REFRESH)
            self._state = state
        return self._page


def _state(root: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of what the page is made from."""
    names = ("plan.json", "sweep.yaml", "results.jsonl")
    files = [*(root / name for name in names), *root.glob("*/results.jsonl"), *root.glob("*/done")]
    files += root.glob("*/err.txt")
    found = []
    for file in sorted(files):
        try:
            facts = file.stat()
            found.append((str(file), facts.st_size, facts.st_mtime_ns))
        except OSError:  # there is none
            continue
    return found


class _Handler(BaseHTTPRequestHandler):
    """Answers `GET /` with the page, and nothing else.

    `names` are those by which the server may be called: a page elsewhere whose name was made to
    lead to this machine must not read it. None for any.
    """

    latest: _Latest
    names: set[str] | None
    server_version = "domainbed"
    sys_version = ""
    timeout = 10  # seconds for a request

    def do_GET(self) -> None:
        called = (self.headers.get("Host") or "").rsplit(":", 1)[0]
        if self.names is not None and called not in self.names:
            self._answer(403, "text/plain", f"called {printable(called)!r}: use 127.0.0.1\n")
        elif self.path != "/":
            self._answer(404, "text/plain", "there is one page, at /\n")
        else:
            self._answer(200, "text/html", self.latest.page())

    def _answer(self, status: int, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Requests are not worth a line."""
