"""Bound a deployed network over boxes: a quadratic about each centre, and a bound on the rest.

Forwards, every value of the network gets its Taylor polynomial of degree two in the inputs that
vary, and a first bound on what that leaves out. Backwards, from the outputs, the local remainder of
every operation is weighed by the outputs' own sensitivity to it: sums of signed products, as in
CROWN (Zhang et al. 2018, "Efficient neural network robustness certification with general
activation functions", section 3), where the forward bound multiplies absolute values.

Model of rounding. float32 and float64 follow the standard model fl(a op b) = (a op b)(1 + d),
|d| <= u with u = 2^-24 and 2^-53; a sum of n products, in any order, fused or not, is within
gamma_n sum |w x|, gamma_n = n u / (1 - n u) (Higham 2002, "Accuracy and stability of numerical
algorithms", section 3.1). Activation functions are assumed to be within 8 u (a |x| + b), with the
`size` of each, and the mean and the variance of a layer norm within 4 gamma_(n+8) of the root mean
square and of the mean square, however it sums them. What the *deployed* network loses in float32
enters as one more local remainder of each operation, so that every bound here is one of the numbers
that the network really computes. What these bounds themselves lose in float64 is an a-priori bound
of the same form with the other u, added to the same remainder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kubestill.runtime.certification.proof.activations import U32, U64
from kubestill.runtime.certification.proof.graph import (
    Add,
    Apply,
    Concat,
    Graph,
    Linear,
    Multiply,
    Operation,
    Scale,
)

TINY = 2.0**-120
"""Outweighs what float32 loses below its smallest normal numbers."""
HUGE = 2.0**126
"""Beyond this, float32 may overflow: nothing is known."""
GROW = 1 + 2.0**-30
"""Outweighs rounding in sums of numbers that are not negative."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features as affine functions of the d inputs that vary."""

    value: Tensor
    """[F, B], at the centres."""
    gradient: Tensor
    """[F, d]"""
    remainder: Tensor
    """[F, B]: how far the deployed encoder may be off."""
    radius: Tensor
    """[d, B]"""


@dataclass(frozen=True, kw_only=True)
class Quadratics:
    """T outputs on B boxes, as `Taylor` has it, in torch."""

    value: Tensor
    """[T, B]"""
    gradient: Tensor
    """[T, d, B]"""
    hessian: Tensor
    """[T, p, B], of the pairs i <= j in the order of `pairs`."""
    remainder: Tensor
    """[T, B]"""
    blame: Tensor
    """[d, B], which inputs the remainders come from, to split boxes by; nothing rests on it."""

    def at(self, shift: Tensor) -> Tensor:
        """Return the quadratics at these distances from the centres: [d, B] to [T, B]."""
        bent = (self.hessian * _products(shift)).sum(1)
        return self.value + (self.gradient * shift).sum(1) + bent


def pairs(width: int) -> tuple[Tensor, Tensor]:
    """Return the indices i <= j of the elements of a symmetric matrix."""
    first, second = torch.triu_indices(width, width)
    return first, second


def _products(shift: Tensor) -> Tensor:
    """Return what each element of a Hessian is multiplied by: [d, B] to [p, B]."""
    first, second = pairs(len(shift))
    return shift[first] * shift[second] * torch.where(first == second, 0.5, 1.0)[:, None]


class _Value:
    """One value of the network on every box."""

    def __init__(self, main: Tensor, rest: Tensor, radius: Tensor, weights: Tensor):
        self.main = main
        """[n, 1 + d + p, B]: value, gradient and Hessian."""
        self.rest = rest
        """[n, B], bounds what they leave out."""
        d = len(radius)
        self.linear = (self.gradient(d).abs() * radius).sum(1)
        bent = (main[:, 1 + d :].abs() * weights).sum(1)
        self.other = bent.add_(rest).mul_(GROW)
        self.size = main[:, 0].abs().add_(self.linear).add_(self.other).mul_(GROW)
        """Bounds the size of the deployed value."""

    def gradient(self, d: int) -> Tensor:
        return self.main[:, 1 : 1 + d]


@torch.no_grad()
def bound_network(graph: Graph, features: Features) -> Quadratics:
    """Bound the outputs of the deployed network on B boxes."""
    radius = features.radius
    d, boxes = radius.shape
    first, second = pairs(d)
    weights = _products(radius)
    main = torch.zeros(len(features.value), 1 + d + len(first), boxes, dtype=torch.float64)
    main[:, 0] = features.value
    main[:, 1 : 1 + d] = features.gradient[:, :, None]
    values = [_Value(main, features.remainder, radius, weights)]
    local: list[Tensor] = [features.remainder]
    slopes: list[Tensor | None] = [None]
    for operation in graph.operations:
        main, lost, slope = _forward(operation, values, d, (first, second))
        rest = _carried(operation, values, slope).add_(lost).mul_(GROW)
        # The signed products on the way back are rounded, too, relatively to the absolute ones.
        lost = lost + rest * _gamma(len(main) + 64, U64)
        values.append(_Value(main, rest, radius, weights))
        local.append(lost)
        slopes.append(slope)
    last = values[-1]
    remainder, blame = _backward(graph, values, local, slopes, d)
    remainder = torch.fmin(last.rest, remainder)
    # Infinite times zero, in a network that overflows: nothing is known.
    known = torch.isfinite(remainder) & torch.isfinite(last.main).all(1)
    main = torch.where(known[:, None], last.main, 0.0)
    return Quadratics(
        value=main[:, 0],
        gradient=main[:, 1 : 1 + d],
        hessian=main[:, 1 + d :],
        remainder=torch.where(known, remainder, math.inf),
        blame=torch.nan_to_num(blame * radius, nan=0.0, posinf=1e99),
    )


def _gamma(count: int, unit: float) -> float:
    return count * unit / (1 - count * unit)


def _forward(
    operation: Operation, values: Sequence[_Value], d: int, pair: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the polynomial of a result, its local remainder [n, B], and slopes if it has any."""
    match operation:
        case Linear():
            x = values[operation.of]
            m, n = operation.weight.shape
            main = (operation.weight @ x.main.reshape(n, -1)).view(m, *x.main.shape[1:])
            main[:, 0] += operation.bias[:, None]
            sums = operation.weight.abs() @ x.size + operation.bias.abs()[:, None]
            lost = sums * (_gamma(n + 1, U32) + 4 * _gamma(n + 64, U64)) + (n + 1) * TINY
            known = sums < HUGE
            if operation.moment:
                squares = values[operation.normed].size.square().sum(0, keepdim=True)
                lost += 4 * _gamma(n + 8, U32) * (squares / n) ** (operation.moment / 2)
                known &= squares < HUGE
            return main, torch.where(known, lost, math.inf), None
        case Scale():
            x = values[operation.of]
            main = operation.weight[:, None, None] * x.main
            main[:, 0] += operation.bias[:, None]
            slope = operation.weight.abs()[:, None]
            sums = slope * x.size + operation.size[:, None]
            # A slope that is no normal number of float32 is rounded absolutely.
            lost = operation.units * U32 * sums + TINY * (1 + x.size)
            return main, torch.where((sums < HUGE) & (slope < HUGE), lost, math.inf), None
        case Apply():
            x = values[operation.of]
            found = operation.function.over(x.main[:, 0], x.linear, x.other)
            main = x.main * found.slope[:, None]
            main[:, 0] = found.value
            if found.bend is not None:
                g = x.gradient(d)
                bent = g[:, pair[0]] * g[:, pair[1]]
                main[:, 1 + d :].addcmul_(bent, found.bend[:, None])
            scale, offset = operation.function.size
            lost = found.remainder + (8 * U32) * (scale * x.size + offset) + TINY
            # Kernels double a large input before they halve it: GELU's does on some processors.
            return main, torch.where(scale * x.size < HUGE, lost, math.inf), found.slope
        case Add():
            x, y = values[operation.of], values[operation.other]
            size = x.size + y.size
            lost = size * (2 * U32) + TINY
            return x.main + y.main, torch.where(size < HUGE, lost, math.inf), None
        case Multiply():
            x, y = values[operation.of], values[operation.other]
            main = x.main * y.main[:, :1] + y.main * x.main[:, :1]
            main[:, 0] /= 2
            g, h = x.gradient(d), y.gradient(d)
            main[:, 1 + d :] += g[:, pair[0]] * h[:, pair[1]] + g[:, pair[1]] * h[:, pair[0]]
            lost = x.linear * y.other + x.other * y.linear + x.other * y.other
            size = x.size * y.size
            lost = lost + size * (4 * U32) + TINY
            return main, torch.where(size < HUGE, lost, math.inf), None
        case Concat():
            parts = [values[part].main for part in operation.parts]
            main = torch.cat(parts)
            return main, torch.zeros_like(main[:, 0]), None


def _carried(operation: Operation, values: Sequence[_Value], slope: Tensor | None) -> Tensor:
    """Return how far the remainders of its arguments may carry into the result: [n, B]."""
    match operation:
        case Linear():
            return operation.weight.abs() @ values[operation.of].rest
        case Scale():
            return operation.weight.abs()[:, None] * values[operation.of].rest
        case Apply():
            assert slope is not None
            return slope.abs() * values[operation.of].rest
        case Add():
            return values[operation.of].rest + values[operation.other].rest
        case Multiply():
            x, y = values[operation.of], values[operation.other]
            return x.rest * y.main[:, 0].abs() + y.rest * x.main[:, 0].abs()
        case Concat():
            return torch.cat([values[part].rest for part in operation.parts])


def _backward(
    graph: Graph,
    values: Sequence[_Value],
    local: Sequence[Tensor],
    slopes: Sequence[Tensor | None],
    d: int,
) -> tuple[Tensor, Tensor]:
    """Return how far the local remainders may carry into the outputs, [T, B], and by whose slope.

    The latter, [d, B] for each unit of an input, shares out remainders by the linear parts of the
    arguments that they arise from.
    """
    width, boxes = len(values[-1].main), values[-1].main.shape[2]
    eye = torch.eye(width, dtype=torch.float64)
    total = torch.zeros(width, boxes, dtype=torch.float64)
    blame = torch.zeros(d, boxes, dtype=torch.float64)
    # Sensitivity of the outputs to each value: [T, n, B].
    found: dict[int, Tensor] = {len(values) - 1: eye[:, :, None].expand(-1, -1, boxes)}

    def give(number: int, sensitivity: Tensor) -> None:
        found[number] = found[number] + sensitivity if number in found else sensitivity

    for number in range(len(values) - 1, -1, -1):
        if number not in found:
            continue
        own = found.pop(number)
        carried = own.abs() * local[number]
        total += carried.sum(1)
        if number == 0:
            break
        operation = graph.operations[number - 1]
        if isinstance(operation, Apply | Multiply):
            x = values[operation.of]
            each = carried.sum(0) / (x.linear + 1e-300)
            blame += (x.gradient(len(blame)).abs() * each[:, None]).sum(0)
        match operation:
            case Linear():
                give(operation.of, torch.matmul(operation.weight.T, own))
            case Scale():
                give(operation.of, own * operation.weight[:, None])
            case Apply():
                slope = slopes[number]
                assert slope is not None
                give(operation.of, own * slope)
            case Add():
                give(operation.of, own)
                give(operation.other, own)
            case Multiply():
                x, y = values[operation.of], values[operation.other]
                give(operation.of, own * y.main[:, 0])
                back = own * x.main[:, 0]
                single = len(y.main) == 1 and len(x.main) > 1
                give(operation.other, back.sum(1, keepdim=True) if single else back)
            case Concat():
                sizes = [len(values[part].main) for part in operation.parts]
                for part, piece in zip(operation.parts, own.split(sizes, 1), strict=True):
                    give(part, piece)
    return total * GROW, blame
