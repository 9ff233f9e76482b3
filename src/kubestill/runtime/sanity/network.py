"""Checks of the network: does the loss reach every parameter, and can it say what is wanted?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from kubestill.runtime.models.embed import Embed
from kubestill.runtime.sanity.batch import Batch
from kubestill.runtime.sanity.findings import Check

ENORMOUS = 1e6
"""Outputs, or a loss in units of a constant answer's, that no initial weights should give."""


def check_trainable(network: nn.Module, untrained: Sequence[str]) -> Check:
    """Look for frozen parameters that nobody declared."""
    name = "all parameters may learn"
    frozen = [key for key, p in network.named_parameters() if not p.requires_grad]
    undeclared = _undeclared(frozen, untrained)
    if undeclared:
        return Check(
            name=name,
            status="fail",
            code="frozen",
            said=f"{_list(undeclared)} do not learn (requires_grad is False).",
            remedy=f"Unfreeze them, or declare them: gate.untrained = [{undeclared[0]!r}].",
        )
    total = len(list(network.parameters()))
    if frozen:
        said = f"{len(frozen)} of {total} parameters are frozen, as declared."
        return Check(name=name, status="note", said=said)
    return Check(name=name, status="ok", said=f"All {total} may.")


def check_gradients(looks: Sequence[Mapping[str, float | None]], untrained: Sequence[str]) -> Check:
    """Look for parameters that the loss never reaches, or reaches with nothing but zeros.

    Args:
        looks: Gradient norms by parameter at the start and after some steps; None: not reached.
        untrained: Parameters that are meant not to learn.
    """
    name = "gradients reach all parameters"
    names = _undeclared(list(looks[0]), untrained)
    numbers = [value for look in looks for value in look.values() if value is not None]
    if not torch.tensor(numbers).isfinite().all():
        return Check(
            name=name,
            status="fail",
            code="exploding",
            said="Gradients are infinite or not numbers within ten steps.",
            remedy="Look at the initial weights, add normalisation layers, or set gradient_clip.",
        )
    cut = [key for key in names if all(look[key] is None for look in looks)]
    if cut:
        return Check(
            name=name,
            status="fail",
            code="detached",
            said=f"The loss does not reach {_list(cut)}.",
            remedy="Look for .detach(), .data, no_grad or a layer that forward leaves out; or "
            f"declare: gate.untrained = [{cut[0]!r}].",
        )
    dead = [key for key in names if not any(look[key] for look in looks)]
    if dead:
        return Check(
            name=name,
            status="fail",
            code="dead",
            said=f"{_list(dead)} get a gradient of exactly 0 on every row, after ten steps too.",
            remedy="Look at the initial weights (all zero?) and for units that are never active.",
        )
    first = [value for value in looks[0].values() if value]
    said = f"Norms of {min(first):.2g} to {max(first):.2g} at the start."
    return Check(name=name, status="ok", said=said)


@torch.no_grad()
def check_rows_apart(network: nn.Module, batch: Batch) -> Check:
    """Check that a row gets the same answer whatever rows are in its batch."""
    name = "rows do not see each other"
    network = deepcopy(network).eval()
    half = batch.rows // 2
    together = network(batch.features).float()
    apart = torch.cat([network(batch.features[:half]), network(batch.features[half:])]).float()
    size = float(together.std()) + float(together.abs().mean()) + 1e-12
    moved = float((together - apart).abs().max()) / size
    # Not finite: that is another check's to say.
    if moved > 1e-2:
        return Check(
            name=name,
            status="fail",
            code="rows-mixed",
            said=f"Answers move by {100 * moved:.3g}% when half of the batch is left out.",
            remedy="Look for a mean, softmax or reshape over the first dimension.",
        )
    return Check(
        name=name, status="ok", said="Half a batch gets the answers that it gets in whole."
    )


@torch.no_grad()
def check_outputs(network: nn.Module, batch: Batch, task: str, wanted: Tensor | None) -> Check:
    """Look for a last layer that keeps outputs from what the loss wants.

    A cap holds whatever the features and the weights are, so outputs are looked at for features of
    growing size, with the network's own weights and with others drawn at random. Codes of
    categories must stay codes: features are moved behind the embedding that reads them.

    Args:
        network: Before it has learned anything.
        batch: Rows.
        task: multiclass, binary or regression.
        wanted: Outputs [B, K] that cost nothing; None where nobody knows them.
    """
    name = "outputs are free"
    network = deepcopy(network).eval()
    own: Tensor = network(batch.features).float()
    first = float(own.abs().max())
    if not first < ENORMOUS:
        return Check(
            name=name,
            status="fail",
            code="exploding",
            said=f"Before any training outputs reach {first:.3g}, where 1 is expected.",
            remedy="Look at the initial weights, and add normalisation layers.",
        )
    outputs = torch.cat([own, *_moved(network, batch.features)])
    finite = outputs[outputs.isfinite()]
    low, high = float(finite.min()), float(finite.max())
    if low == high:
        return Check(name=name, status="skipped", said="All answers are equal.")
    said = f"With other features and weights they range from {low:.2g} to {high:.2g}."
    free = Check(name=name, status="ok", said=said)
    sums = outputs[outputs.isfinite().all(1)].sum(1)
    if task == "multiclass" and low >= 0 and bool((sums - 1).abs().lt(1e-3).all()):
        low, high = 0.0, 1.0
        what = "every row's outputs are probabilities that sum to 1"
        return free if _fits(wanted, task, low, high) else _capped(name, "softmax", what)
    # A squashing layer saturates at an end of what it can put out, and a rectifier rests there.
    floored = low in (-1, 0) and int((finite == low).sum()) >= 3
    topped = high in (0, 1) and int((finite == high).sum()) >= 3
    capped = floored or topped
    if task == "multiclass":  # a softmax takes logits of one sign: only two ends are a cap
        capped = capped and low >= -1 and high <= 1
    if not capped or _fits(wanted, task, low, high):
        return free
    if task != "regression" and low >= 0 and high <= 1:
        return _capped(name, "softmax", "every output lies within 0 and 1")
    what = f"whatever the features and weights, outputs stay within {low:.3g} and {high:.3g}"
    return _capped(name, "bounded", what)


_REDRAWN = 8
"""Times weights are drawn: a network that is not capped shows outputs of one sign in 1 of 256."""


def _moved(network: nn.Module, features: Tensor) -> list[Tensor]:
    """Return outputs for large features, by the network's weights and by others; it may change."""
    if isinstance(network, nn.Sequential) and isinstance(embed := network[0], Embed):
        features, network = embed(features), network[1:]
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    learned = [p for p in network.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in learned]
    looks: list[Tensor] = []
    for scale in (10.0, *[1000.0] * (1 + _REDRAWN)):
        # Whole numbers may be all that a network takes, or other weights break it.
        with suppress(IndexError, RuntimeError, ValueError):
            looks.append(network(features * scale + noise(features)).float())
        if scale > 10:
            for parameter, before in zip(learned, kept, strict=True):
                parameter.copy_(noise(before) * (before.abs().mean() + 0.1))
    return looks


def _fits(wanted: Tensor | None, task: str, low: float, high: float) -> bool:
    """Return whether outputs within `low` and `high` can be what is wanted [B, K]."""
    if wanted is None:
        return False
    if task == "multiclass":  # equal logits more or less are the same answer
        return float((wanted.max(1).values - wanted.min(1).values).max()) <= high - low
    return float(wanted.min()) >= low and float(wanted.max()) <= high


def _capped(name: str, code: str, what: str) -> Check:
    remedies = {
        "softmax": "Remove it: the loss takes logits.",
        "bounded": "End in a Linear: logits and standardised targets take both signs.",
    }
    return Check(
        name=name,
        status="fail",
        code=code,
        said=f"The network's last layer caps it: {what}.",
        remedy=remedies[code],
    )


def _undeclared(names: Sequence[str], untrained: Sequence[str]) -> list[str]:
    return [key for key in names if not any(fnmatchcase(key, pattern) for pattern in untrained)]


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
