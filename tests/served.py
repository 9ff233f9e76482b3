"""A model that is served on loopback."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import uvicorn

from kubestill.runtime.serving.app import ServingSettings, build_app
from kubestill.runtime.serving.server import claim_port
from kubestill.runtime.serving.source import ModelSource


@contextmanager
def serving(uri: object, *, strict: bool = False, **settings: Any) -> Generator[str]:
    """Serve in a thread; gives the model's address."""
    source = ModelSource(str(uri), trust=("moody",), strict=strict)
    chosen = ServingSettings(**{"name": "m", "poll_seconds": 0.0, **settings})
    taken = claim_port("127.0.0.1", 0)
    app = build_app(source, source.load(source.find()), chosen)
    taken.listen()
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v2/models/{chosen.name}"
    finally:
        server.should_exit = True
        thread.join()
        taken.close()
