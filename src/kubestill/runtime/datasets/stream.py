"""Working one step ahead in the background, and cutting a stream of tables into blocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa

T = TypeVar("T")


def ahead(jobs: Iterable[Callable[[], T]], *, workers: int, depth: int) -> Iterator[T]:
    """Yield the jobs' results in order while up to `depth` later ones already run.

    At most `depth` results wait at any time, which bounds the memory.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="kubestill-data") as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(job))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def cut(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Cut a stream of tables of any length into tables of `rows` rows; the last may be short.

    A piece that lies within one input table shares its memory.
    """
    held: list[pa.Table] = []
    count = 0
    for table in tables:
        start = 0
        while count + table.num_rows - start >= rows:
            stop = start + rows - count
            held.append(table.slice(start, stop - start))
            yield _join(held)
            held, count, start = [], 0, stop
        if start < table.num_rows:
            held.append(table.slice(start))
            count += table.num_rows - start
    if held:
        yield _join(held)


def _join(tables: list[pa.Table]) -> pa.Table:
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables).combine_chunks()
