"""Parameters that keep their values while the others learn."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from kubestill.errors import Problems, nearest

__all__ = ["freeze"]


def freeze(network: nn.Module, patterns: Sequence[str]) -> None:
    """Take parameters out of training by their names; `0.*` matches many.

    A frozen parameter keeps its bits: it gets no gradient, no weight decay and no optimizer state,
    and its moving average is itself. The running statistics of batch norm are no parameters, and
    follow the rows.

    Raises:
        InvalidInput: A pattern matches no parameter, or nothing is left to learn.
    """
    problems = Problems()
    named = dict(network.named_parameters())
    for i, pattern in enumerate(patterns):
        matched = [name for name in named if fnmatchcase(name, pattern)]
        if not matched:
            remedy = f"matches no parameter of the network; {nearest(pattern, named)}"
            problems.add(f"settings.freeze[{i}]", pattern, remedy)
        for name in matched:
            named[name].requires_grad_(False)
    if patterns and not problems and not any(p.requires_grad for p in named.values()):
        remedy = "leaves nothing to learn; name fewer parameters"
        problems.add("settings.freeze", list(patterns), remedy)
    problems.raise_if_any()
