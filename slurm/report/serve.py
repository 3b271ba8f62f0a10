"""Serves a report to browsers on this machine only."""

from __future__ import annotations

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"


class _Handler(SimpleHTTPRequestHandler):
    """Serves files of one directory to those who ask for this machine by its own name."""

    def do_GET(self) -> None:
        """Send a file; a page of another name that leads here gets nothing (DNS rebinding)."""
        name = self.headers.get("Host", "").rpartition(":")[0]
        if name not in (HOST, "localhost"):
            self.send_error(403)
            return
        super().do_GET()

    do_HEAD = do_GET  # noqa: N815 (the name is http.server's)

    def end_headers(self) -> None:
        """Have browsers ask again each time."""
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


def start_server(directory: Path, port: int) -> ThreadingHTTPServer:
    """Serve a directory at 127.0.0.1 from a thread, which ends with the process.

    Args:
        directory: What is served; it may be replaced meanwhile.
        port: The port; 0 takes a free one, which `server_port` of the result has.

    Raises:
        ValueError: The port is taken, or none that this user may have.
    """
    handler = functools.partial(_Handler, directory=str(directory))
    try:
        server = ThreadingHTTPServer((HOST, port), handler)
    except (OSError, OverflowError) as error:
        raise ValueError(f"--port={port}: {error}; choose another, or leave it out") from None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
