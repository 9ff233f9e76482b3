"""The two sides of a proof, network and reference, each as quadratics over boxes."""

from __future__ import annotations

from numbers import Real
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.certification.proof.activations import U32, U64
from kubestill.runtime.certification.proof.bounds import (
    HUGE,
    TINY,
    Features,
    Quadratics,
    bound_network,
    pairs,
)
from kubestill.runtime.certification.proof.graph import Linear, read
from kubestill.runtime.certification.proof.space import Boxes, Space
from kubestill.runtime.datasets.decode import decode_features
from kubestill.runtime.generation.systems.inputs import Floats
from kubestill.runtime.generation.systems.system import System
from kubestill.runtime.generation.systems.taylor import Taylor, boxed
from kubestill.runtime.models.predict import Predictor

SOLVER = 64 * U64
"""Relative rounding that is granted to a solver, and added to every bound."""


class Side(Protocol):
    """One of the two functions whose difference is bounded."""

    outputs: int
    assumptions: tuple[str, ...]
    conditional: bool
    """Whether its bounds are a promise that nothing checks."""
    answers: bool
    """Whether its bounds take an answer for every box."""
    evaluated: int
    """Points that it has answered."""

    def over(self, boxes: Boxes) -> Quadratics:
        """Bound it over boxes."""
        ...

    def at(self, points: Floats, boxes: Boxes) -> Floats:
        """Return what it really answers at points [N, d] of these boxes: [N, T]."""
        ...

    def refuse(self, point: dict[str, Any], answer: Floats) -> InvalidInput:
        """Return the error that its answer [T] at a point is outside of its bounds."""
        ...


class NetworkSide:
    """A deployed network.

    Raises:
        InvalidInput: Class outputs, features that the domain does not have, layers without bounds.
    """

    conditional: bool = False
    answers: bool = False
    assumptions: tuple[str, ...] = (
        "The network is evaluated in float32 by the standard model of rounding, sums in any order, "
        "neither TF32 nor half precision.",
        "Its activation functions are within 8 units of rounding of 1 (bounded ones and ELU), "
        "of |x| (GELU, SiLU, leaky ReLU) or of 1 + |x| (softplus).",
    )

    def __init__(self, predictor: Predictor, space: Space):
        if predictor.spec.task != "regression":
            remedy = "only numbers are proven; ask for the assurance 'enumerated' or 'sampled'"
            raise InvalidInput([Problem("model.task", predictor.spec.task, remedy)])
        self.graph = read(predictor)
        if any(isinstance(one, Linear) and one.moment for one in self.graph.operations):
            self.assumptions += (
                "The mean and the variance of a layer norm of n numbers are within 4 (n + 8) units "
                "of rounding of their root mean square and mean square.",
            )
        self.outputs = predictor.layout.outputs
        self.evaluated = 0
        self._predictor, self._space = predictor, space
        kinds = {column.name: column.kind for column in space.domain.columns}
        read_as = {column.name: column.kind for column in predictor.layout.features}
        if missing := sorted(set(read_as) - set(kinds)):
            remedy = f"no input of the domain; it has {', '.join(space.domain.names)}"
            raise InvalidInput([Problem("model.features", missing, remedy)])
        if unlike := sorted(name for name, kind in read_as.items() if kind != kinds[name]):
            said = ", ".join(f"{name} {read_as[name]}, not {kinds[name]}" for name in unlike)
            remedy = f"the model reads {said}; train it on rows of this domain"
            raise InvalidInput([Problem("model.features", unlike, remedy)])

    def over(self, boxes: Boxes) -> Quadratics:
        """Bound it over boxes."""
        return bound_network(self.graph, self.encode(boxes))

    def at(self, points: Floats, boxes: Boxes) -> Floats:
        """Predict: [N, T]."""
        self.evaluated += len(boxes)
        raw = decode_features(self._space.frame(points, boxes), self._predictor.layout)
        return self._predictor.logits(raw).astype(np.float64)

    def refuse(self, point: dict[str, Any], answer: Floats) -> InvalidInput:
        """Return the error that the assumed model of rounding does not hold here."""
        remedy = (
            f"the network answers {answer.tolist()}, outside of what float32 allows; turn off TF32 "
            "and half precision, and report this if neither is on"
        )
        return InvalidInput([Problem("model", point, remedy)])

    def encode(self, boxes: Boxes) -> Features:
        """Follow `Encoder.forward`, whose scaled columns come first and one-hot ones last."""
        space, layout = self._space, self._predictor.layout
        columns = {column.name: column for column in layout.features}
        centre, radius = boxes.centred
        inputs = space.columns(centre, boxes)
        ends = [space.columns(side, boxes) for side in (boxes.low, boxes.high)]
        value: list[Floats] = []
        lost: list[Floats] = []
        gradient: list[Floats] = []
        flat = np.zeros(len(space.names))
        encodings = self._predictor.model.encoder.columns
        for encoding in encodings:
            if not encoding.mean:
                continue
            mean, std = encoding.mean[0], encoding.std[0]
            offset = columns[encoding.name].offset
            value.append((inputs[encoding.name] - offset - mean) / std)
            # What an input is more than its offset is rounded to float32, and so are mean and
            # scale.
            low, high = (np.abs(side[encoding.name] - offset) for side in ends)
            size = np.maximum(low, high) + abs(mean)
            rounding = 8 * U32 * size / std + TINY * (1 / std + size + 1)
            # The encoder turns what overflows into 0.
            lost.append(np.where((size < HUGE) & (size / std < HUGE), rounding, np.inf))
            unit = np.array([name == encoding.name for name in space.names], np.float64)
            gradient.append(unit / std)
        indicators = sum(encoding.indicator for encoding in encodings)
        hot = [
            (inputs[encoding.name].astype(str) == category).astype(np.float64)
            for encoding in encodings
            if encoding.one_hot
            for category in columns[encoding.name].categories or ()
        ]
        nothing = np.zeros(len(boxes))
        for constant in (*[nothing] * indicators, *hot):
            value.append(constant)
            lost.append(nothing)
            gradient.append(flat)
        return Features(
            value=torch.from_numpy(np.stack(value)),
            gradient=torch.from_numpy(np.stack(gradient)),
            remainder=torch.from_numpy(np.stack(lost)),
            radius=torch.from_numpy(np.ascontiguousarray(radius.T)),
        )


class SystemSide:
    """A system that can be enclosed.

    Raises:
        InvalidInput: There is no enclosure, or outputs are classes.
    """

    def __init__(self, system: System, space: Space):
        if system.output.classes:
            remedy = "classes: only numbers are proven; ask for 'enumerated' or 'sampled'"
            raise InvalidInput([Problem("system", system.name, remedy)])
        self.system, self._space = system, space
        self.outputs = max(1, int(np.prod(system.output.shape)))
        self.conditional = self.answers = False
        self.evaluated = 0
        if system.expand is not None or system.enclose is not None:
            way = "expand" if system.expand is not None else "enclose"
            self.assumptions = (
                f"Over every box the solutions of {system.name} are where its own `{way}` says; "
                "samples found none outside.",
            )
        elif system.lipschitz is not None:
            if missing := sorted(set(space.names) - set(system.lipschitz)):
                remedy = "has no constant for these inputs: give the largest slope along each"
                raise InvalidInput([Problem("system.lipschitz", missing, remedy)])
            self.conditional = self.answers = True
            for name in space.names:
                slope: object = system.lipschitz[name]
                if not (isinstance(slope, Real) and 0 <= slope < np.inf):
                    remedy = "is no size of a slope; give a finite number, 0 or more"
                    raise InvalidInput([Problem(f"system.lipschitz.{name}", slope, remedy)])
            slopes = ", ".join(f"{name} {system.lipschitz[name]:g}" for name in space.names)
            self.assumptions = (
                f"Conditional: the slopes of {system.name} are at most what its author declares "
                f"({slopes}); samples contradict it nowhere.",
            )
        else:
            remedy = (
                "nothing bounds its solutions over a box. There are three ways: `expand` writes "
                "the solution in Taylor arithmetic, `enclose` returns the lowest and highest "
                "solution, `lipschitz` declares the largest slope along each input and makes the "
                "proof conditional. Add one, or ask for the assurance 'sampled'"
            )
            raise InvalidInput([Problem("system", system.name, remedy)])

    def over(self, boxes: Boxes) -> Quadratics:
        """Bound its solutions over boxes."""
        with np.errstate(all="ignore"):
            if self.system.expand is not None:
                return self._expanded(boxes)
            if self.system.enclose is not None:
                low, high = self._enclosed(boxes)
                return self._constant(
                    low / 2 + high / 2, (high - low) / 2, self._space.extents(boxes), boxes
                )
            assert self.system.lipschitz is not None
            centre, radius = boxes.centred
            slopes = np.array([self.system.lipschitz[name] for name in self._space.names])
            reach = radius * slopes
            middle = self.at(centre, boxes)
            whole = reach.sum(1)[:, None] + np.zeros_like(middle)
            return self._constant(middle, whole, reach, boxes)

    def at(self, points: Floats, boxes: Boxes) -> Floats:
        """Solve: [N, T]."""
        self.evaluated += len(boxes)
        solved = self._call("solve", self._space.frame(points, boxes))
        return self._shaped("solve", solved, len(boxes))

    def _call(self, way: str, *given: Any) -> Any:
        """Call a method of the system.

        Raises:
            InvalidInput: It raises.
        """
        try:
            return getattr(self.system, way)(*given)
        except (Exception, SystemExit) as error:
            remedy = f"raises {type(error).__name__}: {error}"
            raise InvalidInput([Problem(f"system.{way}", self.system.name, remedy)]) from error

    def _shaped(self, way: str, values: Any, boxes: int) -> Floats:
        """Return what a method of the system gave for so many boxes: [B, T].

        Raises:
            InvalidInput: It has another shape.
        """
        numbers = np.asarray(values)
        fits = numbers.shape[:1] == (boxes,) and numbers.size == boxes * self.outputs
        if not fits or numbers.dtype.kind not in "fiub":
            expected = [boxes, *self.system.output.shape]
            remedy = f"returns {numbers.dtype} {list(numbers.shape)}, not float64 {expected}"
            raise InvalidInput([Problem(f"system.{way}", self.system.name, remedy)])
        return numbers.astype(np.float64).reshape(boxes, -1)

    def refuse(self, point: dict[str, Any], answer: Floats) -> InvalidInput:
        """Return the error that the system's own bounds do not hold."""
        ways = ("expand", "enclose", "lipschitz")
        way = next(way for way in ways if getattr(self.system, way) is not None)
        remedy = (
            f"{self.system.name} solves it to {answer.tolist()}, outside of what its `{way}` says; "
            "correct that, nothing can be proven with it"
        )
        return InvalidInput([Problem(f"system.{way}", point, remedy)])

    def _enclosed(self, boxes: Boxes) -> tuple[Floats, Floats]:
        lower, upper = (self._space.frame(ends, boxes) for ends in (boxes.low, boxes.high))
        found = self._call("enclose", lower, upper)
        if not isinstance(found, tuple | list) or len(found) != 2:  # pyright: ignore
            remedy = "returns no pair; return (lower, upper)"
            raise InvalidInput([Problem("system.enclose", self.system.name, remedy)])
        low, high = (self._shaped("enclose", ends, len(boxes)) for ends in found)  # pyright: ignore
        if (low > high).any():
            row = int(np.argmax((low > high).any(1)))
            value = {"lower": low[row].tolist(), "upper": high[row].tolist()}
            where = f"{lower.iloc[row].to_dict()} to {upper.iloc[row].to_dict()}"
            remedy = f"lower is above upper on the box {where}; return (lower, upper)"
            raise InvalidInput([Problem("system.enclose", value, remedy)])
        return low, high

    def _constant(self, middle: Floats, reach: Floats, blame: Floats, boxes: Boxes) -> Quadratics:
        count, width = len(self._space.names), middle.shape[1]
        known = np.isfinite(middle) & np.isfinite(reach)
        # Wide enough for both ends, however the middle was rounded.
        reach = reach + 4 * U64 * (np.abs(middle) + reach) + SOLVER * np.abs(middle)
        zeros = torch.zeros(width, count, len(boxes), dtype=torch.float64)
        return Quadratics(
            value=torch.from_numpy(np.where(known, middle, 0.0).T.copy()),
            gradient=zeros,
            hessian=zeros.new_zeros(width, count * (count + 1) // 2, len(boxes)),
            remainder=torch.from_numpy(np.where(known, reach, np.inf).T.copy()),
            blame=torch.from_numpy(blame.T.copy()),
        )

    def _expanded(self, boxes: Boxes) -> Quadratics:
        space = self._space
        lower, upper = (space.columns(ends, boxes) for ends in (boxes.low, boxes.high))
        numeric = [name for name, values in lower.items() if values.dtype.kind == "f"]
        inputs = boxed({n: lower[n] for n in numeric}, {n: upper[n] for n in numeric})
        labels = {name: values for name, values in lower.items() if name not in numeric}
        found = self._call("expand", {**inputs, **labels})
        outputs = [found] if isinstance(found, Taylor) else found
        right = isinstance(outputs, list | tuple) and len(outputs) == self.outputs  # pyright: ignore
        if not right or any(
            not isinstance(one, Taylor) or one.value.shape != (len(boxes),)
            for one in outputs  # pyright: ignore
        ):
            remedy = f"returns something else than a Taylor of the boxes for each of {self.outputs}"
            raise InvalidInput([Problem("system.expand", self.system.name, f"{remedy} outputs")])
        place = np.array([numeric.index(name) for name in space.names])
        first, second = (index.numpy() for index in pairs(len(space.names)))

        def stacked(parts: list[NDArray[np.float64]]) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(np.stack(parts)))

        size = [np.abs(f.value) + f.slope + f.bend for f in outputs]
        rest = [f.remainder + SOLVER * s for f, s in zip(outputs, size, strict=True)]
        return Quadratics(
            value=stacked([f.value for f in outputs]),
            gradient=stacked([f.gradient[:, place].T for f in outputs]),
            hessian=stacked([f.hessian[:, place[first], place[second]].T for f in outputs]),
            remainder=stacked(rest),
            blame=stacked([f.blame[:, place].T for f in outputs]).sum(0),
        )
