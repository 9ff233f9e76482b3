"""The process that serves: check all that can be checked, load, listen, end when told to."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import Callable

import torch
import uvicorn

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.serving.app import ServingSettings, build_app
from kubestill.runtime.serving.source import ModelSource


def claim_port(host: str, port: int) -> socket.socket:
    """Take an address before a model is loaded; nobody is answered yet.

    Args:
        host: Name or address of an interface.
        port: 0 takes a free one.

    Raises:
        InvalidInput: It is in use, not permitted, or not of this machine.
    """
    taken = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
    except (OSError, OverflowError) as error:
        taken.close()
        remedy = f"cannot be taken: {error}"
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            remedy = "is in use; end what listens there, or choose another --port (0: a free one)"
        elif isinstance(error, PermissionError):
            remedy = "is not permitted to this user; choose a --port above 1023"
        raise InvalidInput([Problem("port", f"{host}:{port}", remedy)]) from error
    return taken


def serve(
    source: ModelSource,
    settings: ServingSettings,
    *,
    host: str,
    port: int,
    threads: int,
    told: Callable[[str], None],
) -> None:
    """Serve until SIGINT or SIGTERM; requests under way are answered first.

    Args:
        source: Where the model comes from.
        settings: How it is served.
        host: Address to listen on.
        port: 0 takes a free one.
        threads: Threads of one computation.
        told: Is given a line once the model is loaded.

    Raises:
        InvalidInput: The address cannot be taken, or the model not be served.
        CorruptData: The model is damaged.
        StoreError: The store did not answer.
    """
    torch.set_num_threads(threads)
    with contextlib.closing(claim_port(host, port)) as taken:
        served = source.load(source.find())
        taken.listen(2048)  # from here on nobody is turned away
        address = f"http://{host}:{taken.getsockname()[1]}/v2/models/{settings.name}"
        told(f"version {served.found.version} of {served.found.uri}")
        told(f"{address}/infer")
        logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
        config = uvicorn.Config(
            build_app(source, served, settings),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=20,
        )
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[taken])
