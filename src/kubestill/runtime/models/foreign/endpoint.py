"""A teacher behind HTTP, with a price, a pace and a memory."""

from __future__ import annotations

import hashlib
import json
import re
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kubestill.errors import InvalidInput, Problem, Problems, Refused, counted
from kubestill.runtime.base.settings import Settings
from kubestill.runtime.base.values import Number, Whole, parse_json, read_as
from kubestill.runtime.models.foreign.answers import AnswerCache, Outputs
from kubestill.runtime.models.foreign.asking import TOKEN, Client
from kubestill.runtime.models.foreign.dialects import (
    Asked,
    Dialect,
    LogProbabilities,
    OpenInference,
    Reply,
)
from kubestill.runtime.models.foreign.runtime import Block

PROBED = 4
"""Rows that are asked again, by which every process sees that it is the same model still."""
_PAGE = 256
"""Requests whose answers are kept together, at most."""
_NUMBERS = 500_000
"""Numbers that are, which is well within what a record may hold."""


class EndpointOptions(Settings):
    """How a teacher behind an address is asked."""

    model: str = ""
    """Log-probabilities: the name of the model, as the server has it."""
    prompt: str = ""
    """Log-probabilities: the question, with columns in braces, `{amount:.2f}`; missing values read
    `unknown`."""
    words: dict[str, list[str]] = {}
    """Log-probabilities: with which words the model may begin its answer for each class; empty
    takes the class labels."""
    extra: dict[str, Any] = {}
    """Log-probabilities: further fields of every request."""
    rows_per_request: int = Field(default=256, ge=1, le=8192)
    """Rows in a request. Chat completions take one."""
    parallel: int = Field(default=4, ge=1, le=64)
    """Requests at a time."""
    timeout_seconds: float = Field(default=60.0, gt=0, le=3600)
    """For one try."""
    retries: int = Field(default=5, ge=0, le=20)
    """Further tries of a request that times out, is throttled or meets a failing server."""
    requests_per_second: float = Field(default=0.0, ge=0)
    """Most requests that begin in a second, in each step; 0 is no limit."""
    token: str = Field(default=TOKEN, pattern=f"^{TOKEN}(_[A-Z0-9_]+)?$")
    """Environment variable with the bearer token; take it from a secret."""
    price_per_row: float = Field(default=0.0, ge=0)
    """In any currency."""
    price_per_million_tokens: float = Field(default=0.0, ge=0)
    """In the same currency, for every token that the server counts."""
    budget: float | None = Field(default=None, ge=0)
    """The most that may be spent, in that currency: by all who share `answers`, or else by each
    step."""
    answers: str = ""
    """Folder that keeps the answers, local, gs:// or s3://: what is there is not asked again."""
    tolerance: float = Field(default=0.01, ge=0)
    """Largest difference between two answers to the same row, of numbers above 1 as a share."""


class _Probe(Settings):
    body: str
    rows: Whole
    outputs: Outputs


class _Sealed(Settings):
    """The content of the file beside `model.json`."""

    format: Literal["kubestill/endpoint/1"] = "kubestill/endpoint/1"
    url: str
    output: str
    classes: tuple[str, ...]
    options: EndpointOptions
    described: dict[str, Any]
    """What a server of the Open Inference Protocol says of its model."""
    version: str
    tokens_per_row: Number
    probes: tuple[_Probe, ...]


def names_endpoint(source: str) -> bool:
    """Return whether a source is an address that is asked, and not one that is read."""
    return source.startswith(("http://", "https://"))


class Endpoint:
    """A model that answers over HTTP."""

    def __init__(self, content: bytes):
        """Load what `seal` wrote; nothing is asked yet.

        Raises:
            CorruptData: It is damaged.
        """
        form = parse_json(content, source="the endpoint", what="endpoint")
        self._set(read_as(_Sealed, form, source="the endpoint", what="endpoint"))

    @classmethod
    def find(
        cls, url: str, options: EndpointOptions, classes: Sequence[str], output: str = ""
    ) -> Endpoint:
        """Look at an endpoint for the first time.

        Args:
            url: `http://host/v2/models/name`, or `https://host/v1/chat/completions`.
            options: How it is asked.
            classes: Of the target; for a model that has to be given its answers.
            output: Which output to learn from.

        Raises:
            InvalidInput: The address is of neither kind, or the options do not suit it.
            KubestillError: It does not answer.
        """
        url = re.sub(r"(/v2/models/[^?]+?)/(infer|ready)?$", r"\1", url)
        parts = urlsplit(url)
        problems = Problems()
        words = bool(re.search(r"/completions$", parts.path))
        if not words and "/v2/models/" not in parts.path:
            remedy = (
                "is neither a model of the Open Inference Protocol, 'http://host/v2/models/NAME', "
                "nor an address for log-probabilities, 'https://host/v1/chat/completions'"
            )
            problems.add("source", url, remedy)
        if parts.username or parts.password:
            remedy = f"holds credentials; put a token into the environment variable {TOKEN}"
            problems.add("source", f"{parts.scheme}://…@{parts.hostname}", remedy)
        for name in ("model", "prompt"):
            if words and not getattr(options, name):
                problems.add(f"endpoint.{name}", "", "an address for log-probabilities needs it")
        if words and len(classes) < 2:
            problems.add("source", url, "log-probabilities answer classes, and the target has none")
        unknown = sorted(set(options.words) - set(classes))
        if unknown:
            remedy = f"are no classes; those are {', '.join(map(repr, classes[:20]))}"
            problems.add("endpoint.words", unknown, remedy)
        if options.budget is not None and not options.price_per_row + _token_price(options):
            remedy = "needs a price; give price_per_row or price_per_million_tokens"
            problems.add("endpoint.budget", options.budget, remedy)
        problems.raise_if_any()
        found = cls.__new__(cls)
        found._set(
            _Sealed(
                url=url,
                output=output,
                classes=tuple(classes) if words else (),
                options=options,
                described={} if words else _client(options).ask(url),
                version="",
                tokens_per_row=0.0,
                probes=(),
            )
        )
        return found

    def _set(self, sealed: _Sealed) -> None:
        self._sealed = sealed
        options = self._options = sealed.options
        self._dialect: Dialect = _dialect(sealed)
        self.declared = self._dialect.declared
        identity = sealed.model_dump(include={"url", "output", "classes"})
        identity |= options.model_dump(include={"model", "prompt", "words", "extra"})
        text = json.dumps(identity, sort_keys=True).encode()
        self._answers = AnswerCache(
            options.answers, hashlib.sha256(text).hexdigest(), options.budget
        )
        self._client = _client(options)
        self._pool: ThreadPoolExecutor | None = None
        self._lock, self._comparing = threading.Lock(), threading.Lock()
        self._compared = False
        self._seconds: list[tuple[int, float]] = []
        """Rows and seconds of every request that was answered."""

    @property
    def url(self) -> str:
        """Its address."""
        return self._sealed.url

    def predict(self, rows: Block) -> NDArray[np.float64]:
        """Return what it answers, or answered before.

        Raises:
            InvalidInput: It refuses the rows, or is another model than it was.
            Refused: The answers cost more than is left of the budget.
            KubestillError: It does not answer.
        """
        asked = self._dialect.requests(rows)
        numbers = max(one.rows for one in asked) * (self.declared.outputs or 1)
        size = max(1, min(_PAGE, _NUMBERS // numbers))
        pages = range(0, len(asked), size)
        parts = [part for start in pages for part in self._read(asked[start : start + size])]
        return np.concatenate([np.asarray(part, np.float64) for part in parts])

    def announce(self, rows: int) -> None:
        """Say what so many rows may cost, before any is asked.

        Raises:
            Refused: It is more than the budget.
        """
        options = self._options
        cost = self._price(rows, rows * self._sealed.tokens_per_row)
        told = f"asking {self.url} about {counted(rows, 'row')}"
        if not cost:
            print(told, flush=True)
            return
        spent = self._answers.spent()
        limit = "" if options.budget is None else f" of a budget of {options.budget:g}"
        print(f"{told} costs {cost:.4g} at most; {spent:.4g} is spent{limit}", flush=True)
        # Kept answers were paid for out of the same budget, so that all rows have to fit into it.
        if options.budget is not None and cost + spent * (not self._answers.kept) > options.budget:
            raise Refused(
                f"endpoint.budget: {counted(rows, 'row')} cost about {cost:.4g}, more than "
                f"{options.budget:g}; raise it, or label fewer rows"
            )

    def latency(self, rows: int) -> float:
        """Return the seconds that so many rows take, as the requests so far took them."""
        self._compare()  # where all answers were kept, nothing was asked
        size = max(count for count, _ in self._seconds)
        each = statistics.median(seconds for count, seconds in self._seconds if count == size)
        return each * max(rows / (size * self._options.parallel), 1.0)

    def seal(self, rows: Block) -> bytes:
        """Ask some rows twice, and return the content of the file that `Endpoint` loads.

        Raises:
            InvalidInput: It does not answer the same question alike.
        """
        probes: list[_Probe] = []
        tokens = 0
        for asked in self._dialect.requests(rows):
            self._answers.spend(2 * self._expected(asked))
            first, second = self._ask(asked), self._ask(asked)
            self._alike(first.outputs, second.outputs, "answers the same rows differently")
            tokens += first.tokens
            outputs = _plain(first.outputs)
            probes.append(_Probe(body=asked.body.decode(), rows=asked.rows, outputs=outputs))
        changed = {"probes": tuple(probes), "tokens_per_row": tokens / max(len(rows), 1)}
        self._sealed = self._sealed.model_copy(update=changed)
        self._dialect = _dialect(self._sealed)
        self._compared = True
        return self._sealed.model_dump_json(indent=1).encode() + b"\n"

    def _read(self, asked: Sequence[Asked]) -> list[Outputs]:
        """Return the answers of one page."""
        page = self._answers.open([one.body for one in asked], self._sealed.version)
        missing = [
            place for place, one in enumerate(asked) if len(page.answers.get(place, ())) != one.rows
        ]
        if not missing:
            return [page.answers[place] for place in range(len(asked))]
        self._compare()
        page.version = self._sealed.version
        expected = {place: self._expected(asked[place]) for place in missing}
        self._answers.spend(sum(expected.values()))
        pool = self._threads()
        waiting: dict[Future[Reply], int] = {
            pool.submit(self._ask, asked[place]): place for place in missing
        }
        unspent, failure = 0.0, None
        try:
            # Of what is under way when one fails, the answers are kept: they are paid for.
            for future in as_completed(waiting):
                place = waiting[future]
                if future.cancelled():
                    unspent += expected[place]
                elif (error := future.exception()) is not None:
                    failure = failure or error
                    for other in waiting:
                        other.cancel()
                else:
                    reply = future.result()
                    page.answers[place] = _plain(reply.outputs)
                    unspent += expected[place] - self._price(asked[place].rows, reply.tokens)
                    self._answers.write(page, whole=False)
        finally:
            page.version = self._sealed.version
            self._answers.write(page, whole=True)
            self._answers.spend(-unspent)
        if failure is not None:
            raise failure
        return [page.answers[place] for place in range(len(asked))]

    def _ask(self, asked: Asked) -> Reply:
        begun = time.perf_counter()
        form = self._client.ask(self._dialect.address, asked.body)
        reply = self._dialect.read(form, asked, self.url)
        self._seconds.append((asked.rows, time.perf_counter() - begun))
        with self._lock:
            known = self._sealed.version
            if not known:
                self._sealed = self._sealed.model_copy(update={"version": reply.version})
            elif reply.version != known:
                remedy = (
                    f"{reply.version!r} answers now, and {known!r} was brought in; import the "
                    "model again, and label all rows with it"
                )
                raise InvalidInput([Problem("endpoint", self.url, remedy)])
        return reply

    def _compare(self) -> None:
        """Ask the rows of the import again, once in a process, before anything else is asked."""
        with self._comparing:
            if self._compared:
                return
            for probe in self._sealed.probes:
                asked = Asked(body=probe.body.encode(), rows=probe.rows)
                self._answers.spend(self._expected(asked))
                told = "answers otherwise than when it was brought in; import it again"
                known = np.asarray(probe.outputs, np.float64)
                self._alike(known, self._ask(asked).outputs, told)
            self._compared = True

    def _alike(self, first: NDArray[Any], second: NDArray[Any], told: str) -> None:
        far = np.abs(first - second) / np.maximum(np.abs(first), 1.0)
        if not far.max(initial=0.0) <= self._options.tolerance:
            at = tuple(np.argwhere(~(far <= self._options.tolerance))[0])
            remedy = (
                f"it {told}: {first[at]:.6g} and {second[at]:.6g}, further apart than the "
                f"tolerance {self._options.tolerance:g}"
            )
            raise InvalidInput([Problem("endpoint", self.url, remedy)])

    def _expected(self, asked: Asked) -> float:
        # A token is seldom shorter than two letters; what is too much is given back.
        known = asked.rows * self._sealed.tokens_per_row
        return self._price(asked.rows, 1.5 * known if known else len(asked.body) / 2)

    def _price(self, rows: int, tokens: float) -> float:
        return rows * self._options.price_per_row + tokens * _token_price(self._options)

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(
                    self._options.parallel, thread_name_prefix="kubestill-endpoint"
                )
            return self._pool


def _token_price(options: EndpointOptions) -> float:
    return options.price_per_million_tokens / 1e6


def _client(options: EndpointOptions) -> Client:
    return Client(
        parallel=options.parallel,
        timeout=options.timeout_seconds,
        retries=options.retries,
        per_second=options.requests_per_second,
        token=options.token,
    )


def _dialect(sealed: _Sealed) -> Dialect:
    options = sealed.options
    if not sealed.classes:
        return OpenInference(
            sealed.url, sealed.described, output=sealed.output, rows=options.rows_per_request
        )
    words: Mapping[str, Sequence[str]] = {
        name: options.words.get(name, [name]) for name in sealed.classes
    }
    return LogProbabilities(
        sealed.url,
        model=options.model,
        prompt=options.prompt,
        words=words,
        extra=options.extra,
        rows=options.rows_per_request,
        strict=not sealed.probes,
    )


def _plain(outputs: NDArray[np.float64]) -> Outputs:
    return tuple(map(tuple, outputs.tolist()))
