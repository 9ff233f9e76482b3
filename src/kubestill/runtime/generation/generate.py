"""One shard of a generated dataset: the originals first, then the new rows, cut on fixed blocks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.datasets.canonical import BLOCK_ROWS, storage_schema
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.schema import Schema
from kubestill.runtime.datasets.writer import DatasetWriter
from kubestill.runtime.generation.covering import Covering
from kubestill.runtime.generation.frame import Frame, Originals
from kubestill.runtime.generation.given import FilesSettings, Given
from kubestill.runtime.generation.jitter import Jitter, JitterSettings
from kubestill.runtime.generation.mixup import Mixup, MixupSettings
from kubestill.runtime.generation.munge import Munge, MungeSettings
from kubestill.runtime.generation.request import AUGMENTATIONS, GIVEN, Request
from kubestill.runtime.generation.source import Source, load_source
from kubestill.runtime.generation.systems.kept import SLOW, Keep
from kubestill.runtime.generation.systems.solving import Solving, probe_inputs
from kubestill.runtime.generation.systems.system import System
from kubestill.runtime.generation.tables import originals_of, table_of

if TYPE_CHECKING:
    from kubestill.runtime.generation.adaptive import Adaptive
    from kubestill.runtime.models.predict import Predictor

PROBED = 8
"""Rows that are solved to see whether the solver is slow."""
CHUNK_NUMBERS = 1 << 22
"""Random numbers drawn at a time (32 MiB of them): bounds memory where rows are wide."""


class Maker(Protocol):
    """Makes synthetic rows by number."""

    schema: Schema
    width: int
    """Numbers a row takes, roughly: what bounds the size of a call."""

    @property
    def solving(self) -> Solving | None:
        """What solves the rows, and knows which were left out; None where no system does."""
        ...

    def make(self, start: int, stop: int) -> pa.Table | pd.DataFrame:
        """Return synthetic rows `start` to `stop`, counted from the first that is no original."""
        ...


def generate(
    root: str,
    request: Request,
    original: Dataset | None,
    *,
    system: System | None = None,
    surrogate: Predictor | None = None,
    keep: Keep | None = None,
) -> Dataset:
    """Write the shard that the request asks for.

    Args:
        root: Where the dataset goes.
        request: What to make.
        original: Real rows to augment, or to put before those of a source or a system.
        system: What the request names.
        surrogate: Where it errs, the method `adaptive` looks closer.
        keep: Opens the rows of a slow system that were solved before.

    Raises:
        InvalidInput: The method cannot work on this dataset, or the source is not usable.
        CorruptData: The original dataset is damaged.
    """
    maker = _maker(request, system, surrogate)
    table, maker = _prepare(request, original, maker)
    if isinstance(maker, Given):
        request = request.model_copy(update={"rows": len(maker)})
    if system is not None and keep is not None and maker.solving is not None and request.rows:
        _reuse(maker.solving, system, keep)
    schema = maker.schema
    originals = table if request.include_original else table.slice(0, 0)
    start, stop = shard_rows(originals.num_rows + request.rows, request.shard, request.shards)
    complete = (
        request.method == "grid"
        and system is not None
        and system.domain.complete(request.settings["points"])
    )
    writing = DatasetWriter(
        root,
        schema,
        provenance=_provenance(request, original, surrogate, complete=complete),
        complete_domain=complete and request.shards == 1,
        unlabelled=isinstance(maker, _FromOriginals | Given) and not maker.keeps_label,
    )
    with writing as writer:
        if start < min(stop, originals.num_rows):
            writer.write(originals.slice(start, stop - start))
        for rows in _synthetic(maker, start - originals.num_rows, stop - originals.num_rows):
            writer.write(rows)
        if maker.solving is not None and request.on_failure == "leave-out":
            _leave_out(writer, maker.solving, request)
    return writer.dataset


def _reuse(solving: Solving, system: System, keep: Keep) -> None:
    """Find out whether the solver is slow, and which of its rows were solved before."""
    # Not every input of the domain need be one of the covering.
    inputs, probe = probe_inputs(system.domain, PROBED), Solving(system, "leave-out")
    began = time.perf_counter()
    answers = probe(inputs)
    seconds = time.perf_counter() - began
    if seconds > SLOW * PROBED:
        # The first time may have loaded or compiled something.
        began = time.perf_counter()
        answers = probe(inputs)
        seconds = time.perf_counter() - began
    said = keep.open(seconds / PROBED, inputs, answers)
    solving.reuse(keep)
    if said:
        print(said, flush=True)


def _leave_out(writer: DatasetWriter, solving: Solving, request: Request) -> None:
    """Record on which inputs the solver fails; without them, no domain is complete.

    Raises:
        InvalidInput: It fails on all of them.
    """
    found = solving.failures.record(solving.asked)
    print(f"left out: {found.said}", flush=True)
    if found.rows and found.rows == found.of and request.shards == 1:
        remedy = f"nothing is left: {found.said} Correct it, or name another domain"
        raise InvalidInput([Problem("system", request.system, remedy)])
    writer.leave_out(found.rows, found.model_dump())


def shard_rows(total: int, shard: int, shards: int) -> tuple[int, int]:
    """Return the first and one past the last global row of a shard: whole blocks, but for the end.

    Args:
        total: Rows of all shards together.
        shard: Counted from 0.
        shards: How many; those beyond the number of blocks are empty.
    """
    blocks = -(-total // BLOCK_ROWS)
    start, stop = (blocks * edge // shards * BLOCK_ROWS for edge in (shard, shard + 1))
    return min(start, total), min(stop, total)


def count_originals(dataset: Dataset) -> int:
    """Return how many rows of a dataset come first and were not made from others of it."""
    made = dataset.provenance
    copies = (
        made.get("made_by") == "generate-synthetic"
        and made.get("method") in AUGMENTATIONS
        and bool(made.get("include_original"))
        and made.get("shards") == 1
    )
    return max(0, dataset.rows - int(made["rows"])) if copies else dataset.rows


def rows_made_from(originals: int, start: int, stop: int) -> NDArray[np.int64]:
    """Return which original each row `start` to `stop` of a generated dataset is, or is made from.

    See `_FromOriginals`.
    """
    rows = np.arange(start, stop)
    return np.where(rows < originals, rows, (rows - originals) % max(1, originals))


def _maker(
    request: Request, system: System | None, surrogate: Predictor | None
) -> Covering | Adaptive | _FromSource | None:
    """Return what makes rows from nothing; None where they come from the originals."""
    if system is not None:
        if request.method == "adaptive":
            from kubestill.runtime.generation.adaptive import Adaptive

            assert surrogate is not None
            oversample = int(request.settings["oversample"])
            return Adaptive(
                system,
                surrogate,
                oversample=oversample,
                rows=request.rows,
                seed=request.seed,
                on_failure=request.on_failure,
            )
        return Covering(
            system,
            request.method,
            request.settings,
            rows=request.rows,
            seed=request.seed,
            on_failure=request.on_failure,
        )
    if request.from_source:
        return _FromSource(load_source(request.method, request.settings), request.seed)
    return None


def _prepare(
    request: Request, original: Dataset | None, maker: Maker | None
) -> tuple[pa.Table, Maker]:
    """Return the originals, without any soft outputs, and what makes new rows."""
    if original is None:
        assert maker is not None
        return storage_schema(maker.schema.columns).empty_table(), maker
    # A teacher's opinion of the original says nothing about what becomes of it.
    # What is generated from images lies between their whole numbers.
    columns = tuple(
        replace(c, pixels=c.pixels and c.role != "feature")
        for c in original.schema.columns
        if c.role != "soft"
    )
    schema = replace(original.schema, columns=columns)
    if maker is not None and maker.schema != schema:
        remedy = f"its schema differs from that of {request.system or request.method}; leave it out"
        raise InvalidInput([Problem("original", original.root, remedy)])
    table = original.to_table(schema.names)
    if request.method in GIVEN:
        return table, Given(FilesSettings(**request.settings), schema, most=request.rows)
    return table, maker or _FromOriginals(table, schema, request)


def _synthetic(maker: Maker, start: int, stop: int) -> Iterator[pa.Table | pd.DataFrame]:
    """Yield synthetic rows `start` to `stop`, of which those below 0 are originals."""
    step = max(1, min(BLOCK_ROWS, CHUNK_NUMBERS // max(maker.width, 1)))
    for at in range(max(start, 0), stop, step):
        yield maker.make(at, min(at + step, stop))


class _FromOriginals:
    """Varies the originals, over and over again: synthetic row s is made from original s mod N."""

    solving = None

    def __init__(self, table: pa.Table, schema: Schema, request: Request):
        check_varies(schema, method=request.method, rows=request.rows)
        originals = originals_of(table, schema)
        if not len(originals) and request.rows:
            raise InvalidInput([Problem("original", "0 rows", "there is nothing to augment")])
        self._table = table
        self._generator = _generator(originals, request)
        self.schema = schema
        self.keeps_label = self._generator.keeps_label
        self.width = self._generator.width

    def make(self, start: int, stop: int) -> pa.Table:
        source = self._table.take(np.arange(start, stop) % self._table.num_rows)
        frame = self._generator.rows(start, stop)
        return table_of(frame, source, self.schema, keeps_label=self.keeps_label)


def check_varies(schema: Schema, *, method: str, rows: int) -> None:
    """Check that new rows differ from the ones they are made from, and say what they copy.

    Raises:
        InvalidInput: There is nothing but text, so that new rows would repeat the old ones.
    """
    texts = [column.name for column in schema.features if column.kind == "text"]
    listed = ", ".join(map(repr, texts))
    if not texts or not rows:
        return
    if len(texts) == len(schema.features):
        remedy = (
            f"cannot vary text, and there is nothing else ({listed}); have the teacher label more "
            "texts, which need no target, by the method 'files', or set rows to 0"
        )
        raise InvalidInput([Problem("method", method, remedy)])
    print(f"text is not varied: new rows keep that of their original ({listed})", flush=True)


class _FromSource:
    """Asks the user's own source."""

    solving = None

    def __init__(self, source: Source, seed: int):
        self._source = source
        self._seed = seed
        self.schema = source.schema
        self.width = sum(column.width for column in source.schema.columns)

    def make(self, start: int, stop: int) -> pd.DataFrame:
        made: Any = self._source.sample(np.arange(start, stop), self._seed)
        if isinstance(made, pd.DataFrame) and len(made) == stop - start:
            return made
        found = f"{len(made)} rows" if isinstance(made, pd.DataFrame) else type(made).__name__
        remedy = f"`sample` was asked for {stop - start} rows as a DataFrame"
        raise InvalidInput([Problem("method", found, remedy)])


class _Generator(Protocol):
    keeps_label: bool
    width: int

    def rows(self, start: int, stop: int) -> Frame: ...


def _generator(originals: Originals, request: Request) -> _Generator:
    settings, seed = request.settings, request.seed
    if request.method == "munge":
        return Munge(originals, MungeSettings(**settings), seed=seed)
    if request.method == "mixup":
        return Mixup(originals, MixupSettings(**settings), seed=seed)
    return Jitter(originals, JitterSettings(**settings), seed=seed)


def _provenance(
    request: Request, original: Dataset | None, surrogate: Predictor | None, *, complete: bool
) -> dict[str, Any]:
    return {
        "made_by": "generate-synthetic",
        **request.model_dump(),
        "original": original.fingerprint if original else None,
        "surrogate": surrogate.digest if surrogate else None,
        # Of all shards together.
        "complete_domain": complete,
    }
