"""A language model's server, as small as its API allows: log-probabilities of yes and no."""

from __future__ import annotations

import json
import math
import re
import socket
import struct
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Fake:
    """How the server behaves, and what it was asked."""

    usage = True
    """Whether it says how many tokens it took."""

    def __init__(self) -> None:
        self.url = ""
        self.prompts: list[str] = []
        self.tokens: list[str | None] = []
        self.statuses: list[int] = []
        """What the next requests are answered with, in place of an answer."""
        self.headers: dict[str, str] = {}
        self.delay = 0.0
        self.shift = 0.0
        """Added to every logit: another model under the same name."""
        self.model = "small-1"
        self.fails_after: int | None = None
        """Requests after which it refuses."""
        self.words = ("Yes", " no")
        self.raw: bytes | None = None
        """What it says in place of any answer."""

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        chat = "messages" in body
        prompts = [body["messages"][0]["content"]] if chat else body["prompt"]
        choices: list[dict[str, Any]] = []
        for place, prompt in enumerate(prompts):
            self.prompts.append(prompt)
            logit = float(re.findall(r"-?\d+\.\d+", prompt)[0]) + self.shift
            yes, no = -math.log1p(math.exp(-logit)), -math.log1p(math.exp(logit))
            # A tenth of what it may say is something else.
            told = [(self.words[0], yes), (self.words[1], no)]
            told = [(word, value + math.log(0.9)) for word, value in told]
            told += [("The", math.log(0.06)), ("I", math.log(0.04))]
            if chat:
                top = [{"token": word, "logprob": value} for word, value in told]
                said: Any = {"content": [{"token": "x", "logprob": -1.0, "top_logprobs": top}]}
            else:
                said = {"top_logprobs": [dict(told)]}
            choices.append({"index": place, "logprobs": said})
        usage = {"total_tokens": 10 * len(prompts)}
        # A server may answer in any order.
        form = {"model": self.model, "choices": choices[::-1]}
        return form | ({"usage": usage} if self.usage else {})


@contextmanager
def language_model() -> Generator[Fake]:
    """Serve on loopback in a thread."""
    fake = Fake()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.tokens.append(self.headers.get("Authorization"))
            status = fake.statuses.pop(0) if fake.statuses else 200
            if fake.fails_after is not None and len(fake.prompts) >= fake.fails_after:
                status = 400
            time.sleep(fake.delay)
            said = (
                fake.raw
                or json.dumps(fake.answer(body) if status == 200 else {"error": "not now"}).encode()
            )
            self.send_response(status)
            for name, value in (fake.headers if status != 200 else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that gave up

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}/v1/chat/completions"
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def scripted(*answers: bytes | None) -> Generator[tuple[str, list[float]]]:
    """Answer each request with the next of these, byte for byte, the last one for good.

    What ends without a line end is torn off there, None resets the connection, and what begins
    with a blank is sent a byte at a time.

    Yields:
        The address, and when each request came.
    """
    came: list[float] = []
    script = iter(answers)
    last = answers[-1]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            came.append(time.monotonic())
            said = next(script, last)
            if said is None:
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            elif said.startswith(b" "):
                for byte in said.strip():
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.02)
            else:
                self.wfile.write(said)
            self.close_connection = said is None or not said.endswith(b"\n")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/completions", came
        finally:
            server.shutdown()
            thread.join()
