"""Branch and bound over the domain: split the boxes whose bounds are worst until none is."""

from __future__ import annotations

import heapq
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kubestill.errors import InvalidInput, Problem, Problems
from kubestill.runtime.certification.proof.activations import U64
from kubestill.runtime.certification.proof.bounds import GROW, Quadratics, pairs
from kubestill.runtime.certification.proof.record import Proof
from kubestill.runtime.certification.proof.sides import NetworkSide, Side, SystemSide
from kubestill.runtime.certification.proof.space import Boxes, Space
from kubestill.runtime.generation.systems.domain import Domain
from kubestill.runtime.generation.systems.inputs import Floats
from kubestill.runtime.generation.systems.system import System
from kubestill.runtime.models.predict import Predictor

BATCH = 2048
"""Boxes that are bounded at once; fewer where the outputs are many."""
TRIED = 32
"""Points of a batch that are really evaluated."""
SHARE = 0.2
"""Largest share of the time that evaluating them may take."""
SMALLEST = 1e-9
"""Boxes whose edges are all below this share of the domain's are not split: what is left of their
bound is rounding."""
CHECKED_FIRST, CHECKED = 16, 512
"""Boxes in which an enclosure is held against its solver before anything rests on it."""


def prove(
    predictor: Predictor,
    reference: System | Predictor,
    domain: Domain | None = None,
    *,
    tolerance: float | None = None,
    seconds: float = 600.0,
    boxes: int = 10_000_000,
    gap: float = 0.25,
) -> Proof:
    """Bound |network - reference| over a whole domain.

    Args:
        predictor: The network.
        reference: The system that it stands for, which needs an enclosure; or another network, such
            as its teacher.
        domain: Where; None takes the system's own. Its continuous inputs are split into boxes, all
            levels of the discrete ones are enumerated.
        tolerance: Stop as soon as no point can have a larger error, or one has. None goes on until
            the bound is within `gap` of the largest error found.
        seconds: Budget of time.
        boxes: Budget of boxes.
        gap: With no tolerance: how far above the largest error found the bound may stay, as a share
            of it.

    Raises:
        InvalidInput: Tolerance 0; an unbounded input, a field or class outputs; a layer that has no
            bounds, or weights that are not finite; a system with no enclosure, or with one that
            does not contain its own solutions.
    """
    started = time.monotonic()
    space, network, other = _sides(predictor, reference, domain, tolerance, seconds, boxes, gap)
    search = _Search(space, network, other, tolerance=tolerance, gap=gap)
    search.begin(seconds)
    while not search.over and search.counted < boxes:
        spent = time.monotonic() - started
        if spent >= seconds:
            break
        search.step(spent)
    return search.record(time.monotonic() - started)


def _sides(
    predictor: Predictor,
    reference: System | Predictor,
    domain: Domain | None,
    tolerance: float | None,
    seconds: float,
    boxes: int,
    gap: float,
) -> tuple[Space, Side, Side]:
    problems = Problems()
    if tolerance is not None and not (tolerance > 0 and math.isfinite(tolerance)):
        remedy = (
            "must be a finite number above 0: on a continuous domain a network is never exact; "
            "leave it out for the smallest bound that can be proven"
        )
        problems.add("tolerance", tolerance, remedy)
    for name, value in (("seconds", seconds), ("boxes", boxes), ("gap", gap)):
        if not value > 0:
            problems.add(name, value, "must be above 0")
    system = reference if isinstance(reference, System) else None
    where = domain or (system.domain if system else None)
    if where is None:
        problems.add("domain", None, "two networks have none of their own; give one")
    problems.raise_if_any()
    assert where is not None
    space = Space(where, system.breaks if system else None)
    network = NetworkSide(predictor, space)
    other = (
        SystemSide(reference, space)
        if isinstance(reference, System)
        else NetworkSide(reference, space)
    )
    if network.outputs != other.outputs:
        remedy = f"the other side has {other.outputs}; compare functions of the same outputs"
        raise InvalidInput([Problem("model.outputs", network.outputs, remedy)])
    return space, network, other


@dataclass(frozen=True, kw_only=True)
class _Bounded:
    """Boxes and the bounds of the error on them."""

    boxes: Boxes
    upper: Floats
    """[N]: no point of the box has a larger error, in any output."""
    along: NDArray[np.int64]
    """[N], the dimension that its slack comes from most."""
    corner: Floats
    """[N, d], where its bound is reached if the error is linear."""

    def __len__(self) -> int:
        return len(self.upper)

    def take(self, rows: NDArray[Any]) -> _Bounded:
        return _Bounded(
            boxes=self.boxes.take(rows),
            upper=self.upper[rows],
            along=self.along[rows],
            corner=self.corner[rows],
        )


class _Search:
    """Branch and bound, best first by batches."""

    def __init__(
        self, space: Space, network: Side, other: Side, *, tolerance: float | None, gap: float
    ):
        self.space, self.network, self.other = space, network, other
        self.tolerance, self.gap = tolerance, gap
        self.counted = 0
        self.lower, self.output = 0.0, 0
        self.at: dict[str, Any] = {}
        self.done, self._finished = 0.0, 0.0
        self._stuck = 0.0
        """Largest bound of the boxes that cannot be split any further."""
        self._open: list[tuple[float, int, _Bounded]] = []
        self._pushed = 0
        self._evaluating = 0.0
        """Seconds spent on evaluating points."""
        self._whole = space.whole
        self._batch = max(16, min(BATCH, (1 << 22) // (64 * network.outputs)))

    @property
    def threshold(self) -> float:
        """The bound at which a box is done."""
        return (1 + self.gap) * self.lower if self.tolerance is None else self.tolerance

    @property
    def upper(self) -> float:
        return max(self._finished, self._stuck, -self._open[0][0] if self._open else 0.0)

    @property
    def over(self) -> bool:
        """Whether more boxes cannot help."""
        refuted = self.tolerance is not None and self.lower > self.tolerance
        return refuted or not self._open or self._stuck >= -self._open[0][0]

    def begin(self, seconds: float) -> None:
        """Hold both sides against their own answers, in boxes of every size; bound the domain.

        Args:
            seconds: Allowed in all.

        Raises:
            InvalidInput: An answer lies outside of its enclosure.
        """
        random, start = np.random.default_rng(0), time.monotonic()
        for count in (CHECKED_FIRST, CHECKED - CHECKED_FIRST):
            self._check(count, random)
            each = (time.monotonic() - start) / count
            # A slow solver is asked for fewer answers at once, and the clock looked at between.
            if each * (CHECKED - CHECKED_FIRST) > seconds * SHARE:
                break
        if self.other.answers:
            self._batch = max(16, min(self._batch, int(seconds * SHARE / max(each, 1e-9))))
        count = math.ceil(len(self._whole) / self._batch)
        for rows in np.array_split(np.arange(len(self._whole)), count):
            self._bound(self._whole.take(rows), evaluate=False)

    def _check(self, count: int, random: np.random.Generator) -> None:
        """Evaluate both sides in so many boxes of every size."""
        boxes = self._whole.take(random.integers(0, len(self._whole), count))
        size = 0.5 ** random.integers(0, 12, (count, 1))
        width = (boxes.high - boxes.low) * size
        low = boxes.low + (boxes.high - boxes.low - width) * random.random(width.shape)
        boxes = Boxes(low=low, high=np.minimum(low + width, boxes.high), choice=boxes.choice)
        share = random.random(width.shape)
        # Half of them at corners, where curved functions are furthest from their centre.
        share[::2] = np.round(share[::2])
        points = np.clip(boxes.low + (boxes.high - boxes.low) * share, boxes.low, boxes.high)
        self._try(points, boxes, self.network.over(boxes), self.other.over(boxes))

    def step(self, spent: float) -> None:
        """Split the worst boxes, after so many seconds."""
        taken: list[_Bounded] = []
        room = self._batch // 2
        while self._open and room > 0:
            # The threshold has risen with the largest error found.
            worst = self._settle(heapq.heappop(self._open)[2])
            taken.append(worst.take(np.arange(min(room, len(worst)))))
            self._push(worst.take(np.arange(room, len(worst))))
            room -= len(taken[-1])
        boxes = Boxes.join([part.boxes for part in taken])
        if len(boxes):
            along = np.concatenate([part.along for part in taken])
            room = self.space.room(boxes)
            # The slack may come from where nothing lies between the ends.
            along = np.where(room[np.arange(len(along)), along] > 0, along, room.argmax(1))
            halves = self.space.halves(boxes, along)
            self._bound(halves, evaluate=self._evaluating <= SHARE * spent)

    def _bound(self, boxes: Boxes, *, evaluate: bool = True) -> None:
        ours, theirs = self.network.over(boxes), self.other.over(boxes)
        found = _difference(self.space, boxes, ours, theirs)
        self.counted += len(boxes)
        if evaluate:
            rows = np.argsort(-found.upper)[:TRIED]
            picked = torch.from_numpy(rows)
            sides = (
                Quadratics(**{name: values[..., picked] for name, values in vars(side).items()})
                for side in (ours, theirs)
            )
            self._try(found.corner[rows], boxes.take(rows), *sides)
        found = self._settle(found)
        for rows in np.array_split(np.argsort(-found.upper, kind="stable"), 8):
            self._push(found.take(rows))

    def _settle(self, found: _Bounded) -> _Bounded:
        """Count boxes as done, or stuck; return the others."""
        extents = self.space.extents(found.boxes)
        small = found.upper <= self.threshold
        stuck = ~small & (self.space.room(found.boxes).max(1) < SMALLEST)
        if small.any():
            self.done += float(extents[small].prod(1).sum()) / len(self._whole)
            self._finished = max(self._finished, float(found.upper[small].max()))
        if stuck.any():
            self._stuck = max(self._stuck, float(found.upper[stuck].max()))
        return found.take(~(small | stuck))

    def _push(self, found: _Bounded) -> None:
        if len(found):
            self._pushed += 1
            heapq.heappush(self._open, (-float(found.upper.max()), self._pushed, found))

    def _try(self, points: Floats, boxes: Boxes, ours: Quadratics, theirs: Quadratics) -> None:
        """Evaluate both sides at a point of each box.

        Raises:
            InvalidInput: An answer lies outside of its enclosure.
        """
        start = time.monotonic()
        answers = [side.at(points, boxes) for side in (self.network, self.other)]
        for side, answer, bounds in zip(
            (self.network, self.other), answers, (ours, theirs), strict=True
        ):
            outside = _outside(answer, bounds, points, boxes)
            if outside.any():
                row = int(outside.argmax())
                wrong = self.space.columns(points, boxes)
                point = {name: values[row].item() for name, values in wrong.items()}
                raise side.refuse(point, answer[row])
        apart = np.abs(answers[0] - answers[1])
        # An answer that is no number is as wrong as can be.
        apart[np.isnan(apart)] = math.inf
        row, output = np.unravel_index(int(apart.argmax()), apart.shape)
        if apart[row, output] > self.lower:
            self.lower, self.output = float(apart[row, output]), int(output)
            worst = self.space.columns(points, boxes)
            self.at = {name: values[row].item() for name, values in worst.items()}
        self._evaluating += time.monotonic() - start

    def record(self, seconds: float) -> Proof:
        """Return how far it came."""
        sides = (self.network, self.other)
        upper = max(self.upper, self.lower)
        refuted = self.tolerance is not None and self.lower > self.tolerance
        proven = not refuted and math.isfinite(upper) and upper <= self.threshold
        return Proof(
            status="refuted" if refuted else "proven" if proven else "unfinished",
            upper=upper,
            lower=self.lower,
            at=self.at,
            output=self.output,
            tolerance=self.tolerance,
            done=1.0 if proven else min(self.done, 1.0),
            boxes=self.counted,
            solves=self.other.evaluated,
            seconds=seconds,
            assumptions=tuple(dict.fromkeys(a for side in sides for a in side.assumptions)),
            conditional=any(side.conditional for side in sides),
        )


def _outside(answer: Floats, bounds: Quadratics, points: Floats, boxes: Boxes) -> NDArray[np.bool_]:
    """Return which answers [N, T] are not where their bounds say: [N]."""
    shift = torch.from_numpy((points - boxes.centred[0]).T.copy())
    away = np.abs(answer.T - bounds.at(shift).numpy())
    remainder = bounds.remainder.numpy()
    return np.logical_or.reduce(~(away <= remainder) & np.isfinite(remainder))


def _difference(space: Space, boxes: Boxes, ours: Quadratics, theirs: Quadratics) -> _Bounded:
    """Bound the difference of two quadratics: as one, so that what they share cancels."""
    radius = torch.from_numpy(boxes.centred[1].T.copy())
    d = len(radius)
    first, second = pairs(d)
    products = radius[first] * radius[second]
    diagonal = first == second
    size = torch.zeros_like(ours.value)
    for side in (ours, theirs):
        size += side.value.abs() + (side.gradient.abs() * radius).sum(1)
        size += (side.hessian.abs() * products).sum(1)
    value = ours.value - theirs.value
    signed = (ours.gradient - theirs.gradient) * radius
    linear = signed.abs()
    bent = (ours.hessian - theirs.hessian) * products
    # The sums below cancel down to the error: their rounding is relative to what cancels.
    rest = ours.remainder + theirs.remainder + (16 + len(first)) * U64 * size
    rest = rest + bent[:, ~diagonal].abs().sum(1)
    square = bent[:, diagonal]
    above = value + _peak(linear, square).sum(1) + rest
    below = -value + _peak(linear, -square).sum(1) + rest
    upper = torch.maximum(above, below) * GROW
    upper = torch.where(torch.isnan(upper), math.inf, upper)
    worst, output = upper.max(0)
    rows = torch.arange(len(worst))

    def of_worst(values: torch.Tensor) -> torch.Tensor:
        """Return [., B] of the worst output."""
        return values.permute(2, 0, 1)[rows, output].T

    # Slack by dimension: what is quadratic, and the share that it has in the remainders.
    touched = torch.stack([(first == place) | (second == place) for place in range(d)]).double()
    slack = touched @ of_worst(bent).abs()
    for side in (ours, theirs):
        share = side.blame / side.blame.sum(0).clamp(min=1e-300)
        slack += share * side.remainder[output, rows]
    along = slack.argmax(0).numpy()
    blind = ~(torch.isfinite(slack).all(0) & (slack.sum(0) > 0)).numpy()
    along = np.where(blind, space.extents(boxes).argmax(1), along)
    facing = torch.where(above[output, rows] >= below[output, rows], 1.0, -1.0)
    centre, reach = boxes.centred
    signs = (torch.sign(of_worst(signed)) * facing).numpy().T
    corner = np.clip(centre + reach * signs, boxes.low, boxes.high)
    return _Bounded(boxes=boxes, upper=worst.numpy(), along=along, corner=corner)


def _peak(linear: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
    """Return the maximum of a t + h t^2 / 2 over -1 <= t <= 1, for a >= 0."""
    inside = -square > linear
    top = linear.square() / (-2 * square).clamp(min=1e-300)
    return torch.where(inside, top, linear + square / 2)
