"""The processes that train together, as far as checkpoints need to know them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist


def _alone(text: str) -> str:
    return text


def _only(text: str) -> list[str]:
    return [text]


def _nobody(content: memoryview, rank: int) -> None:
    raise AssertionError("there is no other process")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among its peers. Rank 0 decides and commits; all write their own state."""

    rank: int = 0
    world: int = 1
    share: Callable[[str], str] = _alone
    """Gives every rank the text that rank 0 passes in; all ranks call it at the same points."""
    gather: Callable[[str], list[str]] = _only
    """Gives every rank the texts of all, in order of rank; all call it at the same points."""
    send: Callable[[memoryview, int], None] = _nobody
    """Sends bytes that can be written to, to the rank that receives as many at the same point."""
    receive: Callable[[memoryview, int], None] = _nobody
    """Fills bytes with what that rank sends."""

    @classmethod
    def current(cls) -> Ranks:
        """Return the ranks of `torch.distributed` where it is running, else a single process."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(
            rank=dist.get_rank(),
            world=dist.get_world_size(),
            share=_broadcast,
            gather=_all_gather,
            send=lambda content, rank: dist.send(_tensor(content), rank),
            receive=_receive,
        )


def _broadcast(text: str) -> str:
    box = [text]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _all_gather(text: str) -> list[str]:
    texts = [""] * dist.get_world_size()
    dist.all_gather_object(texts, text)
    return texts


def _receive(content: memoryview, rank: int) -> None:
    dist.recv(_tensor(content), rank)


def _tensor(content: memoryview) -> torch.Tensor:
    return torch.frombuffer(content, dtype=torch.uint8)
