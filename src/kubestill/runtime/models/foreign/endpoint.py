"""A teacher behind HTTP, with a price, a pace and a memory."""

from __future__ import annotations

import hashlib
import json
import math
import re
import statistics
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from itertools import islice
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kubestill.errors import InvalidInput, Problem, Problems, Refused, counted
from kubestill.runtime.base.redaction import redact
from kubestill.runtime.base.settings import Settings
from kubestill.runtime.base.values import Number, Whole, parse_json, read_as
from kubestill.runtime.models.foreign.answers import AnswerCache, Known, Outputs, Page
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
_AHEAD = 2.0
"""Seconds of requests for which the cost is set aside at a time: a step that is killed has counted
what it did not ask, and a store takes no more than a write of that each second."""
_FRESH = 600.0
"""Seconds for which a model is trusted to be the same still."""


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
    mark: str = ""
    """Under which its answers are kept, apart from those of another model at the same address."""
    tokens_per_row: Number
    """What the server counted, or half the letters that it was sent where it counts none."""
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
        elif redact(url) != url or _SECRET.search(f"&{parts.query}"):
            remedy = f"holds a secret, which files and logs would repeat; put it into {TOKEN}"
            problems.add("source", url.partition("?")[0] + "?…", remedy)
        secret = sorted(name for name in options.extra if _SECRET.search(f"&{name}="))
        if secret:
            remedy = f"a model remembers these fields; put a token into the variable {TOKEN}"
            problems.add("endpoint.extra", secret, remedy)
        own = sorted(_OWN & set(options.extra))
        if own:
            problems.add("endpoint.extra", own, "the package sets these itself; leave them out")
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
        self._compared = -math.inf
        """When it was last found to be the same still."""
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

    def announce(self, rows: int, *, most: bool = False) -> None:
        """Say what so many rows may cost, before any is asked.

        Args:
            rows: How many.
            most: It may be asked about fewer, so that nothing is refused yet.

        Raises:
            Refused: It is more than the budget.
        """
        options = self._options
        again = sum(probe.rows for probe in self._sealed.probes)
        cost = self._price(rows + again, (rows + again) * self._sealed.tokens_per_row)
        told = f"asking {self.url} about {counted(rows, 'row')}"
        if not cost:
            print(told, flush=True)
            return
        spent = self._answers.spent()
        limit = "" if options.budget is None else f" of a budget of {options.budget:g}"
        sure = "about {:.4g}" if _token_price(options) else "{:.4g} at most"
        print(f"{told} costs {sure.format(cost)}; {spent:.4g} is spent{limit}", flush=True)
        # Kept answers were paid for out of the same budget, so that all rows have to fit into it.
        left = math.inf if options.budget is None else options.budget * (1 + 1e-9)
        if not most and cost + spent * (not self._answers.kept) > left:
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
        tokens = 0.0
        for asked in self._dialect.requests(rows):
            first, second = self._ask_apart(asked), self._ask_apart(asked)
            self._alike(first.outputs, second.outputs, "answers the same rows differently")
            tokens += len(asked.body) / 2 if first.tokens is None else first.tokens
            outputs = _plain(first.outputs)
            probes.append(_Probe(body=asked.body.decode(), rows=asked.rows, outputs=outputs))
        changed = {"probes": tuple(probes), "tokens_per_row": tokens / max(len(rows), 1)}
        self._sealed = self._sealed.model_copy(update=changed | {"mark": self._mark(probes)})
        self._dialect = _dialect(self._sealed)
        self._compared = time.monotonic()
        return self._sealed.model_dump_json(indent=1).encode() + b"\n"

    def _mark(self, probes: Sequence[_Probe]) -> str:
        """Return the mark under which this model's answers are kept.

        It is that of the model which was brought in before, if this one answers as it did then.
        """
        if not self._answers.kept:
            return ""
        version, known = self._sealed.version, self._answers.known()
        mine = Known(
            version=version,
            mark="",
            bodies=tuple(probe.body for probe in probes),
            outputs=tuple(probe.outputs for probe in probes),
        )
        if known is not None and not self._is(known, mine):
            text = json.dumps(asdict(mine), sort_keys=True)
            mine = replace(mine, mark=hashlib.sha256(text.encode()).hexdigest()[:16])
        elif known is not None:
            mine = replace(mine, mark=known.mark)
        self._answers.know(mine)
        return mine.mark

    def _is(self, known: Known, mine: Known) -> bool:
        """Return whether the model that was brought in before is this one."""
        if not known.bodies or known.version != mine.version:
            return False
        now = dict(zip(mine.bodies, mine.outputs, strict=True))
        for body, said in zip(known.bodies, known.outputs, strict=False):
            if body not in now:
                now[body] = _plain(
                    self._ask_apart(Asked(body=body.encode(), rows=len(said))).outputs
                )
            if self._far(np.asarray(said), np.asarray(now[body])) is not None:
                return False
        return True

    def _read(self, asked: Sequence[Asked]) -> list[Outputs]:
        """Return the answers of one page."""
        # Before it is brought in, nobody knows whose answers those are that are kept.
        sealed = self._sealed
        page = Page("", "", {})
        if sealed.probes:
            page = self._answers.open([one.body for one in asked], self._version)
        width = len(sealed.probes[0].outputs[0]) if sealed.probes else 0
        missing = deque(
            place
            for place, one in enumerate(asked)
            if len(kept := page.answers.get(place, ())) != one.rows
            or any(len(row) != width for row in kept)
        )
        if missing:
            self._compare()
            self._fill(page, asked, missing)
        return [page.answers[place] for place in range(len(asked))]

    def _fill(self, page: Page, asked: Sequence[Asked], missing: deque[int]) -> None:
        """Ask what is missing in a page."""
        page.version = self._version
        expected = {place: self._expected(asked[place]) for place in missing}
        self._answers.check(sum(expected.values()))
        pool, waiting = self._threads(), dict[Future[Reply], int]()
        most = self._options.parallel
        paid, unspent = 0, 0.0
        """Requests whose cost is set aside, and what is set aside and not needed."""
        counted_at, failure = time.monotonic(), None
        try:
            while missing or waiting:
                while missing and failure is None and len(waiting) < 2 * self._options.parallel:
                    if not paid:
                        # Twice as many as the last time, if those took less than they may.
                        now = time.monotonic()
                        most = max(1, 2 * most if now - counted_at < _AHEAD else most // 2)
                        paid = min(most, len(missing))
                        some = sum(expected[place] for place in islice(missing, paid))
                        try:
                            self._answers.spend(some - unspent)
                        except Refused as error:  # others spend as well
                            failure, paid = error, 0
                            break
                        counted_at, unspent = now, 0.0
                    place = missing.popleft()
                    waiting[pool.submit(self._ask, asked[place])] = place
                    paid -= 1
                # Of what is under way when one fails, the answers are kept: they are paid for.
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    place = waiting.pop(future)
                    if (error := future.exception()) is not None:
                        failure = failure or error
                        continue
                    reply = future.result()
                    page.answers[place] = _plain(reply.outputs)
                    unspent += expected[place] - self._cost(asked[place], reply)
                    self._answers.write(page, whole=False)
                if failure is not None:
                    unspent += sum(expected[place] for place in islice(missing, paid))
                    missing.clear()
        finally:
            unspent += sum(expected[place] for place in islice(missing, paid))
            page.version = self._version
            self._answers.write(page, whole=True)
            self._answers.spend(-unspent)
        if failure is not None:
            raise failure

    @property
    def _version(self) -> str:
        """Of the model and its mark."""
        sealed = self._sealed
        return f"{sealed.version}|{sealed.mark}" if sealed.mark else sealed.version

    def _ask_apart(self, asked: Asked) -> Reply:
        """Ask, and count what it costs."""
        expected = self._expected(asked)
        self._answers.spend(expected)
        reply = self._ask(asked)
        self._answers.spend(self._cost(asked, reply) - expected)
        return reply

    def _ask(self, asked: Asked) -> Reply:
        """Ask; what one answer costs is set aside."""
        begun, expected = time.perf_counter(), self._expected(asked)
        form = self._client.ask(
            self._dialect.address, asked.body, lambda more: self._answers.spend(more * expected)
        )
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
        """Ask the rows of the import again, before anything else is asked and every ten minutes."""
        with self._comparing:
            if time.monotonic() - self._compared < _FRESH:
                return
            for probe in self._sealed.probes:
                asked = Asked(body=probe.body.encode(), rows=probe.rows)
                told = "answers otherwise than when it was brought in; import it again"
                known = np.asarray(probe.outputs, np.float64)
                self._alike(known, self._ask_apart(asked).outputs, told)
            self._compared = time.monotonic()

    def _alike(self, first: NDArray[Any], second: NDArray[Any], told: str) -> None:
        at = self._far(first, second)
        if at is not None:
            remedy = (
                f"it {told}: {_shown(first, at)} and {_shown(second, at)}, further apart than the "
                f"tolerance {self._options.tolerance:g}"
            )
            raise InvalidInput([Problem("endpoint", self.url, remedy)])

    def _far(self, first: NDArray[Any], second: NDArray[Any]) -> tuple[int, ...] | None:
        """Return where two answers differ by more than the tolerance; () where in their shapes."""
        if first.shape != second.shape:
            return ()
        apart = np.abs(first - second) / np.maximum(np.abs(first), 1.0)
        far = np.argwhere(~(apart <= self._options.tolerance))  # NaN is not within it either
        return tuple(far[0]) if len(far) else None

    def _expected(self, asked: Asked) -> float:
        # A token is seldom shorter than two letters; what is too much is given back.
        known = asked.rows * self._sealed.tokens_per_row
        return self._price(asked.rows, 1.5 * known if known else len(asked.body) / 2)

    def _cost(self, asked: Asked, reply: Reply) -> float:
        """Return what an answer cost: by the tokens that the server counted, if it counts any."""
        if reply.tokens is None:
            return self._expected(asked)
        return self._price(asked.rows, reply.tokens)

    def _price(self, rows: int, tokens: float) -> float:
        return rows * self._options.price_per_row + tokens * _token_price(self._options)

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(
                    self._options.parallel, thread_name_prefix="kubestill-endpoint"
                )
            return self._pool


_SECRET = re.compile(
    r"[?&](?:x[-_])?(?:api[-_]?key|key|(?:access[-_]?|auth[-_]?|bearer[-_]?)?token|secret|password"
    r"|authorization|sig|signature)=",
    re.IGNORECASE,
)
_OWN = frozenset(
    ("messages", "model", "n", "prompt", "logprobs", "top_logprobs", "stream", "best_of", "echo")
)
"""Fields without which an answer is not what it is read as."""


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


def _shown(outputs: NDArray[Any], at: tuple[int, ...]) -> str:
    return f"{outputs[at]:.6g}" if at else f"{list(outputs.shape)} numbers"


def _plain(outputs: NDArray[np.float64]) -> Outputs:
    return tuple(map(tuple, outputs.tolist()))
