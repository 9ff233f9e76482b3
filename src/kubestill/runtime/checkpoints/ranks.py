"""The processes that train together, as far as checkpoints need to know them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.distributed as dist


def _alone(text: str) -> str:
    return text


def _only(text: str) -> list[str]:
    return [text]


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among its peers. Rank 0 decides and commits; all write their own state."""

    rank: int = 0
    world: int = 1
    share: Callable[[str], str] = _alone
    """Gives every rank the text that rank 0 passes in; all ranks call it at the same points."""
    gather: Callable[[str], list[str]] = _only
    """Gives every rank the texts of all, in order of rank; all call it at the same points."""

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
        )


def _broadcast(text: str) -> str:
    box = [text]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _all_gather(text: str) -> list[str]:
    texts = [""] * dist.get_world_size()
    dist.all_gather_object(texts, text)
    return texts
