"""One contiguous host buffer that state is copied into, again and again, at the speed of memory."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Mapping
from typing import Any, cast

import torch

from kubestill.runtime.checkpoints.state import Layout

_PAGE = 2 << 20


class Arena:
    """A reused copy of the state that is at the same time the content of its file.

    The copy is all that training waits for. The buffer is anonymous memory in large pages where the
    system has them, and registered with CUDA where a tensor lives there, so that its copy runs
    behind the kernels of training. Or it lies on local disk, in a file without a name, which is
    gone when the arena or the process is.
    """

    def __init__(self, folder: str = "") -> None:
        """Make an empty arena.

        Args:
            folder: Where its file lies; empty: it has none, and lies in memory.
        """
        self.layout: Layout | None = None
        self._folder = folder
        self._memory: mmap.mmap | None = None
        self._data = torch.empty(0, dtype=torch.uint8)
        self._views: list[torch.Tensor] = []
        self._pinned = False
        self._copied: torch.cuda.Event | None = None

    def reserve(self, tensors: Mapping[str, torch.Tensor]) -> Layout:
        """Make room for tensors like these, and return how they will lie.

        Raises:
            OSError: The disk has none.
        """
        layout = self.layout
        if layout is None or not layout.fits(tensors):
            layout = Layout.of(tensors)
            self._grow(layout.size)
            self.layout, self._views = layout, layout.views(self._data)
        return layout

    def fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy tensors in; those on a GPU are copied in stream order, `parts` waits for them."""
        layout = self.reserve(tensors)
        on_gpu = any(tensor.is_cuda for tensor in tensors.values())
        if on_gpu and not self._pinned and not self._folder:
            self._pin()
        with torch.no_grad():
            for slot, view in zip(layout.slots, self._views, strict=True):
                view.copy_(tensors[slot.name], non_blocking=on_gpu)
        if on_gpu:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def parts(self) -> tuple[bytes, memoryview]:
        """Return the file's content, header and data, once every copy has arrived."""
        assert self.layout is not None, "filled before"
        if self._copied is not None:
            self._copied.synchronize()
        whole = memoryview(self._memory) if self._memory else memoryview(b"")
        return self.layout.header, whole[: self.layout.size]

    def _grow(self, size: int) -> None:
        if size <= len(self._data):
            return
        self._unpin()
        self._memory = memory = self._on_disk(size) if self._folder else self._in_memory(size)
        self._data = torch.frombuffer(memory, dtype=torch.uint8)

    def _in_memory(self, size: int) -> mmap.mmap:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        memory = mmap.mmap(-1, -(-size // _PAGE) * _PAGE, flags=flags)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        return memory

    def _on_disk(self, size: int) -> mmap.mmap:
        with tempfile.TemporaryFile(dir=self._folder) as file:
            # Now, not when a page is written back: that would end the process.
            os.posix_fallocate(file.fileno(), 0, size)
            return mmap.mmap(file.fileno(), size)

    def _pin(self) -> None:
        if len(self._data):
            runtime = cast(Any, torch.cuda.cudart())
            done = runtime.cudaHostRegister(self._data.data_ptr(), len(self._data), 0)
            # Without it the copy is as right, only slower, and training waits for it.
            self._pinned = int(done) == 0

    def _unpin(self) -> None:
        if self._pinned:
            runtime = cast(Any, torch.cuda.cudart())
            runtime.cudaHostUnregister(self._data.data_ptr())
            self._pinned = False
