"""Serving the report of a running sweep; by default to this machine only."""

import ipaddress
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from domainbed.core.text_table import printable
from domainbed.errors import UserError
from domainbed.reporting.page.html import Page, to_html
from domainbed.runs.load import Folders, as_paths, record_files

REFRESH = 15
"""Seconds after which the page reloads itself."""

_LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}
_SOURCES = (
    "plan.json",
    "sweep.yaml",
    "results.jsonl",
    "*/results.jsonl",
    "*/done",
    "*/err.txt",
    "packed",
)


def serve(render: Callable[[], str], folders: Folders, host: str, port: int) -> int:
    """Serves one page until Ctrl-C, and prints where; returns the exit status.

    Args:
        render: makes the page; its `UserError` is shown on a page that waits.
        folders: of the sweeps; the page is rebuilt when something in them has changed.
        host: the address to listen at.
        port: 0 for any that is free.

    Raises:
        UserError: a folder is no sweep's or run's, or nothing can listen there.
    """
    for root in as_paths(folders):
        if not (root / "plan.json").is_file():  # a sweep that has one may have no record yet
            record_files(root)
    with make_server(render, folders, host, port) as server:
        name = host if is_local(host) else server.server_name
        print(f"Report: http://{name}:{server.server_port}/ (Ctrl-C ends it)", flush=True)
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
    try:
        return _Server(render, folders, host, port)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot listen at --host {host} --port {port} ({reason}): choose others"
        ) from error


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(ThreadingHTTPServer):
    """With a thread for each connection: browsers open some on which they ask for nothing.

    `names` are the host names that a request may use: a website whose name was made to resolve to
    this machine must not read the report (DNS rebinding). None allows all.
    """

    daemon_threads = True
    request_queue_size = 1024  # connections that wait to be accepted; more are refused

    def __init__(self, render: Callable[[], str], folders: Folders, host: str, port: int) -> None:
        super().__init__((host, port), _Handler)
        self.names = _LOCAL_NAMES | {host} if is_local(host) else None
        self._render, self._roots = render, as_paths(folders)
        self._state: Any = None
        self._page = ""
        self._lock = threading.Lock()

    def page(self) -> str:
        """The page as it is now; made once for each state of the folders, by one thread."""
        with self._lock:
            state = self._state_of_folders()
            if state != self._state:
                try:
                    self._page = self._render()
                except UserError as error:
                    waiting = Page("Nothing to report yet", [], [printable(error)], [], [])
                    self._page = to_html(waiting, REFRESH)
                self._state = state
            return self._page

    def _state_of_folders(self) -> list[tuple[str, int, int]]:
        """Names, sizes and times of what the page is made from."""
        found = []
        for file in [file for root in self._roots for name in _SOURCES for file in root.glob(name)]:
            with suppress(OSError):  # it was removed meanwhile
                facts = file.stat()
                found.append((str(file), facts.st_size, facts.st_mtime_ns))
        return sorted(found)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A closed connection is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers `GET /` with the page, and nothing else."""

    server: _Server
    server_version = "domainbed"
    sys_version = ""
    timeout = 10  # seconds for a request

    def do_GET(self) -> None:
        called = (self.headers.get("Host") or "").rsplit(":", 1)[0]
        if self.server.names is not None and called not in self.server.names:
            self._answer(403, "text/plain", f"called {printable(called)!r}: use 127.0.0.1\n")
        elif self.path != "/":
            self._answer(404, "text/plain", "there is one page, at /\n")
        else:
            self._answer(200, "text/html", self.server.page())

    def _answer(self, status: int, kind: str, text: str) -> None:
        content = text.encode()
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        }
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Requests are not worth a line."""
