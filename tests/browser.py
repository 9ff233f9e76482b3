"""A browser without a window, asked through its DevTools what a person would see of a page."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from websocket import WebSocket, create_connection

CHROMIUM = next(
    filter(
        None,
        map(shutil.which, (os.environ.get("CHROMIUM", ""), "chromium", "google-chrome", "chrome")),
    ),
    None,
)
_QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--remote-debugging-port=0"
).split()

PAPER = {"a4": (8.27, 11.69), "letter": (8.5, 11.0)}
"""Width and height in inches."""
_MARGIN = 2 * 12 / 25.4
_PIXELS = 96


class Browser:
    """One page of a running browser."""

    def __init__(self, socket: WebSocket):
        self._socket = socket
        self._sent = 0

    def ask(self, method: str, **given: Any) -> Any:
        """Send a command of the DevTools protocol and return its result."""
        self._sent += 1
        command = {"id": self._sent, "method": method, "params": given}
        self._socket.send(json.dumps(command))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._sent:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, path: Path, *, width: int = 0, paper: str = "", dark: bool = False) -> None:
        """Show a page in a window of some width, or as it is laid out for paper."""
        if paper:
            width = int(_PIXELS * (PAPER[paper][0] - _MARGIN))
        metrics: dict[str, Any] = {"width": width, "height": 900, "deviceScaleFactor": 1}
        self.ask("Emulation.setDeviceMetricsOverride", mobile=False, **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        media = "print" if paper else "screen"
        self.ask("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.ask("Page.navigate", url=path.resolve().as_uri())
        self.run(
            "new Promise(done => document.readyState === 'complete' ? done()"
            " : addEventListener('load', () => done()))"
        )

    def run(self, script: str) -> Any:
        """Evaluate a script in the page and return its value."""
        given = {"expression": script, "returnByValue": True, "awaitPromise": True}
        result = self.ask("Runtime.evaluate", **given)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def picture(self, path: Path) -> None:
        """Write all of the page as a PNG, for a person to look at."""
        import base64

        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(profile: Path) -> Generator[Browser]:
    """Start the browser with an empty profile."""
    assert CHROMIUM
    command = [CHROMIUM, *_QUIET, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        told = profile / "DevToolsActivePort"
        end = time.monotonic() + 60
        while not (told.is_file() and "\n" in told.read_text()):
            assert process.poll() is None, "the browser ended"
            assert time.monotonic() < end, "the browser does not listen"
            time.sleep(0.05)
        port = told.read_text().split()[0]
        root = f"http://127.0.0.1:{port}/json"
        pages = requests.get(f"{root}/list", timeout=10).json()
        (page,) = [one for one in pages if one["type"] == "page"]
        socket = create_connection(page["webSocketDebuggerUrl"], timeout=60, suppress_origin=True)
        yield Browser(socket)
        socket.close()
    finally:
        process.terminate()
        process.wait(20)
