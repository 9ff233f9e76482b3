"""The routes of the Open Inference Protocol (v2), what is measured, and the model behind them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import kubestill
from kubestill.errors import InvalidInput
from kubestill.runtime.serving import protocol
from kubestill.runtime.serving.batching import Batcher
from kubestill.runtime.serving.source import ModelSource, Served

log = logging.getLogger(__name__)

PLATFORM = "kubestill_pytorch"


@dataclass(frozen=True, kw_only=True)
class ServingSettings:
    """How a model is served."""

    name: str
    """Of the model, in addresses."""
    poll_seconds: float = 10.0
    """Time between two looks for a new champion; 0 never looks."""
    most_rows: int = 1024
    """Rows of a batch that is made of several requests."""
    most_bytes: int = 16 << 20
    """Bytes of a request."""


class _Metrics:
    """What Prometheus reads."""

    def __init__(self, name: str):
        self.registry = CollectorRegistry()
        labels: dict[str, Any] = {"labelnames": ["model"], "registry": self.registry}
        seconds = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
        self._requests = Counter(
            "kubestill_requests",
            "Requests for answers, by HTTP status.",
            ["model", "code"],
            registry=self.registry,
        )
        self._name = name
        self._answered = self._requests.labels(name, "200")
        self.seconds = Histogram(
            "kubestill_request_seconds", "Time to answer a request.", buckets=seconds, **labels
        ).labels(name)
        self.batch_rows = Histogram(
            "kubestill_batch_rows",
            "Rows that were computed together.",
            buckets=[1 << power for power in range(0, 15, 2)],
            **labels,
        ).labels(name)
        self.loads = Counter(
            "kubestill_model_loads",
            "Models that were loaded, by outcome.",
            ["model", "outcome"],
            registry=self.registry,
        )
        self.model = Gauge(
            "kubestill_model_info",
            "1 for the model that is served.",
            ["model", "version", "digest"],
            registry=self.registry,
        )
        self.served: Served | None = None
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield what the model itself counts, when Prometheus asks: a request pays nothing."""
        rows = CounterMetricFamily("kubestill_rows", "Rows that were read.", labels=["model"])
        unfamiliar = CounterMetricFamily(
            "kubestill_unfamiliar_rows",
            "Rows with a value that training never saw, by column.",
            labels=["model", "column", "what"],
        )
        if self.served is not None:
            familiar = self.served.predictor.familiar
            rows.add_metric([self._name], familiar.rows)
            for (column, what), count in familiar.counts.items():
                unfamiliar.add_metric([self._name, column, what], count)
        yield rows
        yield unfamiliar

    def count(self, code: int) -> None:
        (self._answered if code == 200 else self._requests.labels(self._name, str(code))).inc()

    def show(self, served: Served) -> None:
        self.served = served
        self.model.clear()
        self.model.labels(self._name, served.found.version, served.found.digest).set(1)


class _Server:
    def __init__(self, source: ModelSource, served: Served, settings: ServingSettings):
        self.source, self.served, self.settings = source, served, settings
        self.metrics = _Metrics(settings.name)
        self.metrics.show(served)
        self.batcher = Batcher(settings.most_rows, self.metrics.batch_rows.observe)
        self.said = ""

    async def follow(self) -> None:
        """Serve each new champion from the moment on that it has answered a first request."""
        while True:
            await asyncio.sleep(self.settings.poll_seconds)
            # Any failure: the model that is there goes on, and the next look may find it mended.
            try:
                found = await asyncio.to_thread(self.source.find)
                if found.digest == self.served.found.digest:
                    self.said = ""
                    continue
                served = await asyncio.to_thread(self.source.load, found)
            except Exception as error:
                self.metrics.loads.labels(self.settings.name, "failed").inc()
                if str(error) != self.said:  # once, not every few seconds
                    log.warning("version %s stays: %s", self.served.found.version, error)
                self.said = str(error)
                continue
            before, self.served, self.said = self.served.found.version, served, ""
            self.metrics.loads.labels(self.settings.name, "loaded").inc()
            self.metrics.show(served)
            log.warning("version %s is served instead of %s", found.version, before)

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncGenerator[None]:
        task = asyncio.create_task(self.follow()) if self.settings.poll_seconds else None
        try:
            yield
        finally:
            if task is not None:
                task.cancel()
            self.batcher.close()

    async def infer(self, request: Request) -> Response:
        """Answer rows."""
        begun = time.perf_counter()
        response = await self._infer(request)
        self.metrics.seconds.observe(time.perf_counter() - begun)
        self.metrics.count(response.status_code)
        return response

    async def _infer(self, request: Request) -> Response:
        # One model from reading to answering, whatever comes in between.
        served, name = self.served, self.settings.name
        try:
            self._check(request, served)
            body = await self._body(request)
            arrow = request.headers.get("content-type", "").startswith(protocol.ARROW)
            asked = (protocol.read_arrow if arrow else protocol.read_request)(body, served)
            answers = await self.batcher.answer(served, asked.raw)
            if protocol.ARROW in request.headers.get("accept", ""):
                return Response(protocol.write_arrow(answers), media_type=protocol.ARROW)
            body = protocol.write_response(name, served, asked, answers)
        except HTTPException as error:
            return _error(error.status_code, error.detail)
        except ClientDisconnect:
            return _error(499, "the client went away")
        except InvalidInput as error:
            return _error(400, str(error))
        except ValueError:
            return _error(500, "the model's answer is not finite; its inputs may be far from any")
        except Exception:
            log.exception("a request failed")
            return _error(500, "the model failed on these rows; the server's log says why")
        return Response(body, media_type="application/json")

    async def _body(self, request: Request) -> bytes:
        most = self.settings.most_bytes
        body, more = b"", True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message.get("body", b"")
            if len(body) > most:
                raise HTTPException(413, f"a request may have {most:,} bytes; send fewer rows")
            more = message.get("more_body", False)
        return body

    def _check(self, request: Request, served: Served) -> None:
        asked = request.path_params
        if asked["model"] != self.settings.name:
            told = f"there is no model {asked['model']!r:.100} here, only {self.settings.name!r}"
            raise HTTPException(404, told)
        version = asked.get("version", served.found.version)
        if version != served.found.version:
            told = f"there is no version {version!r:.100} here, only {served.found.version!r}"
            raise HTTPException(404, told)

    async def describe(self, request: Request) -> Response:
        """Say what the model takes and gives."""
        served = self.served
        self._check(request, served)
        form = {
            "name": self.settings.name,
            "versions": [served.found.version],
            "platform": PLATFORM,
            **served.signature.to_json(),
        }
        return JSONResponse(form)

    async def ready(self, request: Request) -> Response:
        """Say that the model is loaded: without one the server does not begin to listen."""
        if "model" in request.path_params:
            self._check(request, self.served)
            return JSONResponse({"name": self.settings.name, "ready": True})
        return JSONResponse({"ready": True})


def _error(code: int, told: str) -> Response:
    return JSONResponse({"error": told}, status_code=code)


async def _live(_: Request) -> Response:
    return JSONResponse({"live": True})


async def _about(_: Request) -> Response:
    form = {"name": "kubestill", "version": kubestill.__version__, "extensions": list[str]()}
    return JSONResponse(form)


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail)


def build_app(source: ModelSource, served: Served, settings: ServingSettings) -> Starlette:
    """Return the application that serves a model, and goes on with each that follows it.

    Args:
        source: Where the model came from.
        served: The model, loaded.
        settings: How.
    """
    server = _Server(source, served, settings)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    routes = [
        Route("/v2", _about),
        Route("/v2/health/live", _live),
        Route("/v2/health/ready", server.ready),
        Route("/metrics", metrics),
    ]
    for base in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        routes = [
            Route(f"{base}/infer", server.infer, methods=["POST"]),
            *routes,
            Route(base, server.describe),
            Route(f"{base}/ready", server.ready),
        ]
    app = Starlette(
        routes=routes, lifespan=server.lifespan, exception_handlers={HTTPException: _refuse}
    )
    app.state.server = server
    return app
