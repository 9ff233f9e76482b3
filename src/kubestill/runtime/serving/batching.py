"""Answer requests that wait together in one batch: a network is hardly slower for several rows.

Nothing is held back to fill a batch. A request that comes alone is answered alone; those that
arrive in one turn of the event loop, or while a batch is computed, make the next batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kubestill.runtime.serving.source import Served

Answers: TypeAlias = "dict[str, NDArray[Any]]"
_Waiting: TypeAlias = "tuple[Served, NDArray[np.float32], asyncio.Future[Answers]]"


class Batcher:
    """Computes one batch at a time: here if it is quick, else in a thread beside the event loop."""

    def __init__(self, most_rows: int, observe: Callable[[int], None]):
        """Begin with nothing.

        Args:
            most_rows: Rows of a batch, unless one request alone has more.
            observe: Is given the rows of each batch.
        """
        self._most, self._observe = most_rows, observe
        self._waiting: deque[_Waiting] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._next: asyncio.Handle | None = None
        self._busy = False

    async def answer(self, served: Served, raw: NDArray[np.float32]) -> Answers:
        """Return what the model answers to raw rows [N, R].

        Raises:
            Exception: Whatever the model raises.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answers] = loop.create_future()
        self._waiting.append((served, raw, future))
        if self._next is None and not self._busy:
            self._next = loop.call_soon(self._start)
        return await future

    def close(self) -> None:
        """Stop the thread, once it is idle."""
        self._thread.shutdown(wait=False)

    def _start(self) -> None:
        """Take the next batch, all of one model, and compute it."""
        self._next = None
        while self._waiting and not self._busy:
            batch = [self._waiting.popleft()]
            rows = len(batch[0][1])
            while self._waiting and self._waiting[0][0] is batch[0][0]:
                rows += len(self._waiting[0][1])
                if rows > self._most:
                    rows -= len(self._waiting[0][1])
                    break
                batch.append(self._waiting.popleft())
            self._observe(rows)
            if rows <= batch[0][0].quick:
                self._finish(batch, _compute(batch))
                continue
            self._busy = True
            loop = asyncio.get_running_loop()
            done = loop.run_in_executor(self._thread, _compute, batch)
            done.add_done_callback(lambda done, batch=batch: self._end(batch, done))

    def _end(self, batch: list[_Waiting], done: asyncio.Future[list[Answers | Exception]]) -> None:
        self._busy = False
        self._finish(batch, done.result())
        self._start()

    def _finish(self, batch: list[_Waiting], answers: list[Answers | Exception]) -> None:
        for (_, _, future), answer in zip(batch, answers, strict=True):
            if future.done():  # the caller went away
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)


def _compute(batch: list[_Waiting]) -> list[Answers | Exception]:
    """Return the answers to each request, or what it raised."""
    predictor = batch[0][0].predictor
    try:
        if len(batch) == 1:
            return [predictor.answers(batch[0][1])]
        whole = predictor.answers(np.concatenate([raw for _, raw, _ in batch]))
    except Exception as error:
        if len(batch) == 1:
            return [error]
        # One of them is at fault: the others shall have their answers.
        return [one for waiting in batch for one in _compute([waiting])]
    parts: list[Answers | Exception] = []
    start = 0
    for _, raw, _ in batch:
        stop = start + len(raw)
        parts.append({name: values[start:stop] for name, values in whole.items()})
        start = stop
    return parts
