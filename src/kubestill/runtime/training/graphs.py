"""A fused step as one launch: recorded once for each size of batch, then played again.

A small student's step is some 25 kernels of a few microseconds, which a GPU does faster than a
processor can ask for them. A CUDA graph asks for all at once. It plays the same kernels on the
same memory, so whatever changes from step to step has to lie at a fixed place of the device: the
batch is copied there, and the learning rate, in float32. That rounding is why `graph` is a path of
its own among the steps: a run that began with it keeps it, and takes the same numbers kernel by
kernel where nothing can be recorded.

Each recording is played once beside the kernels themselves before it is relied on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from typing_extensions import override

from kubestill.runtime.training.batches import Part
from kubestill.runtime.training.steps import Batch, FusedStep, SplitStep

_WARM_UP = 3
"""Calls before a recording, in which libraries make their workspaces; torch's own number."""

Size = tuple[tuple[torch.Size, torch.dtype], ...]


class Recorder(Protocol):
    """Records the kernels of a call."""

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Return where `work` leaves its result, and what runs its kernels again.

        Raises:
            RuntimeError: Something in it cannot be recorded.
        """
        ...


def cuda_graph(work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """Record a call as a CUDA graph; a `Recorder`."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(_WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    # A save may copy from the device in another thread meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = work()
    return result, graph.replay


@dataclass(frozen=True)
class _Recording:
    """What one size of batch takes."""

    batch: Batch
    """Where a batch is copied to."""
    loss: Tensor
    play: Callable[[], None]


class GraphedStep(SplitStep):
    """A fused step with its learning rate on the device, played as one launch where that works.

    Args:
        step: What is recorded.
        say: Takes a line for the log.
        record: How.
    """

    def __init__(self, step: FusedStep, say: Callable[[str], None], record: Recorder = cuda_graph):
        self._step, self._say, self._record = step, say, record
        self._rate = step.weights.new_zeros(())
        self._recordings: dict[Size, _Recording | None] = {}

    @override
    def __call__(self, batch: Batch, learning_rate: float, part: Part = 1.0) -> Tensor:
        assert part == 1.0, "one process has all rows of a batch"
        self._rate.fill_(learning_rate)
        size = tuple((tensor.shape, tensor.dtype) for tensor in batch)
        if size not in self._recordings:
            self._recordings[size] = self._try(batch)
        recording = self._recordings[size]
        if recording is None:
            return self._step(batch, self._rate)
        for place, tensor in zip(recording.batch, batch, strict=True):
            place.copy_(tensor)
        recording.play()
        return recording.loss.clone()

    @override
    def gradient(self, batch: Batch, weight: float = 1.0) -> tuple[Tensor, list[Tensor]]:
        return self._step.gradient(batch, weight)

    @override
    def update(self, gradients: list[Tensor], learning_rate: float) -> None:
        self._step.update(gradients, self._rate.fill_(learning_rate))

    @override
    def state(self) -> dict[str, Tensor]:
        return self._step.state()

    @override
    def load_state(self, saved: Mapping[str, Tensor]) -> None:
        self._step.load_state(saved)

    def _try(self, batch: Batch) -> _Recording | None:
        """Record a step with a batch; None, and a line that says why, where that does not work."""
        live = [self._step.weights, *self._step.state().values()]
        begun = [tensor.clone() for tensor in live]
        own = tuple(tensor.clone() for tensor in batch)

        def after(step: Callable[[], Tensor]) -> list[Tensor]:
            """Return the loss and all that a step changes, and undo it."""
            found = [step().clone(), *(tensor.clone() for tensor in live)]
            _copy(live, begun)
            return found

        try:
            loss, play = self._record(lambda: self._step(own, self._rate))
        except RuntimeError as error:
            _copy(live, begun)
            self._say(f"the step is taken kernel by kernel: no graph of it ({error})")
            return None
        _copy(live, begun)

        def played() -> Tensor:
            play()
            return loss

        pairs = zip(after(played), after(lambda: self._step(own, self._rate)), strict=True)
        if not all(torch.equal(one, other) for one, other in pairs):
            self._say("the step is taken kernel by kernel: its graph gave other bits")
            return None
        return _Recording(own, loss, play)


def _copy(live: Sequence[Tensor], saved: Sequence[Tensor]) -> None:
    for tensor, before in zip(live, saved, strict=True):
        tensor.copy_(before)
