"""Compute a policy table: which way an aircraft should turn to avoid another."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kubestill.errors import Problems
from kubestill.runtime.generation.systems.domain import Domain
from kubestill.runtime.generation.systems.inputs import Choice, Integer, Levels
from kubestill.runtime.generation.systems.system import Axis, Output, System

ADVISORIES = ("clear", "weak-left", "weak-right", "strong-left", "strong-right")
TURNS = np.deg2rad([0.0, 1.5, -1.5, 3.0, -3.0])
"""Rate of turn that each advisory requests, to the left, in radians per second."""
SPEED = 200.0
"""Speed of both aircraft, in feet per second."""
CONFLICT = 500.0
"""Closer than this when vertical separation is lost is a near mid-air collision; feet."""
FARTHEST = 12_000.0
NOISE = ((-0.5, 0.25), (0.0, 0.5), (0.5, 0.25))
"""Deviation of both pilots' turns, in degrees per second, and its probability."""
ALERT = np.array([0.0, 0.002, 0.002, 0.004, 0.004])
"""Cost of each advisory per second; a collision costs 1."""
REVERSAL, CHANGE = 0.008, 0.001
"""Cost of turning the other way, and of any other change of the advisory."""

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


class CollisionAvoidance(System):
    """Horizontal collision avoidance after HorizontalCAS (Julian & Kochenderfer 2019, section II).

    A Markov decision process in the spirit of ACAS Xu: states are the distance and bearing of the
    intruder, its relative heading, the seconds until vertical separation is lost, and the advisory
    in force; actions are five advisories. Both aircraft fly 200 ft/s and deviate at random. It is
    solved here, exactly as defined, by value iteration backwards in time with multilinear
    interpolation between the points of the table:

        Q_0(s, a) = -[distance < 500 ft],
        Q_t(s, a) = -cost(a, advisory) + E max_a' Q_{t-1}(s', a')

    The dynamics, costs and noise are simpler than ACAS Xu's and fit for no aircraft. Of equal
    values the first advisory is chosen.

    Args:
        output: `action`, the advisory, or `values`, Q of all five.
        distances: Points along the distance, denser nearby.
        angles: Points along bearing and heading, odd: both ends and straight ahead.
        horizon: Seconds until vertical separation is lost, at most.
    """

    name = "collision-avoidance"

    def __init__(
        self,
        output: Literal["action", "values"] = "action",
        distances: int = 32,
        angles: int = 37,
        horizon: int = 15,
    ) -> None:
        problems = Problems()
        if distances < 4:
            problems.add("distances", distances, "give at least 4")
        if angles < 5 or angles % 2 == 0:
            problems.add("angles", angles, "give an odd number from 5 on")
        if horizon < 1:
            problems.add("horizon", horizon, "give at least 1")
        problems.raise_if_any()
        self._size = (distances, angles, horizon)
        self._distance = Levels(name="distance", values=_distances(distances), unit="ft")
        self._bearing = Levels(name="bearing", values=_angles(angles), unit="rad")
        self._heading = Levels(name="heading", values=_angles(angles), unit="rad")
        self.domain = Domain(
            [
                Integer(name="seconds", low=0, high=horizon, unit="s"),
                Choice(name="advisory", choices=ADVISORIES),
                self._distance,
                self._bearing,
                self._heading,
            ]
        )
        if output == "action":
            self.output = Output(name="action", classes=tuple(sorted(ADVISORIES)))
        else:
            places = tuple(float(place) for place in range(len(ADVISORIES)))
            self.output = Output(name="values", axes=(Axis(name="advisory", values=places),))

    @property
    def q_table(self) -> NDArray[np.float32]:
        """Q [seconds, advisory, distance, bearing, heading, action]: the table to be replaced."""
        return _solved(*self._size)

    @property
    def table_bytes(self) -> int:
        """Size of the Q-table in float32."""
        return self.q_table.nbytes

    def solve(self, inputs: pd.DataFrame) -> NDArray[Any]:
        """Return advisories [N], or Q [N, 5]."""
        advisory = pd.Index(ADVISORIES).get_indexer(inputs["advisory"].to_numpy().astype(str))
        values = self.q_table[
            inputs["seconds"].to_numpy().astype(np.int64),
            advisory,
            self._distance.index(inputs["distance"].to_numpy()),
            self._bearing.index(inputs["bearing"].to_numpy()),
            self._heading.index(inputs["heading"].to_numpy()),
        ]
        if self.output.classes:
            return np.asarray(ADVISORIES)[values.argmax(axis=1)]
        return values.astype(np.float64)


@lru_cache(maxsize=2)
def _solved(distances: int, angles: int, horizon: int) -> NDArray[np.float32]:
    """Iterate backwards in time; read-only."""
    grid = _distances(distances), _angles(angles), _angles(angles)
    distance = np.asarray(grid[0])
    shape = (distances, angles, angles)
    actions = len(ADVISORIES)
    table = np.empty((horizon + 1, actions, *shape, actions), np.float32)
    collision = np.where(distance < CONFLICT, -1.0, 0.0)
    table[0] = np.broadcast_to(collision[:, None, None, None], (*shape, actions))
    moves = [_successors(grid, turn) for turn in TURNS]
    for second in range(1, horizon + 1):
        for action in range(actions):
            value = table[second - 1, action].max(axis=-1).astype(np.float64).ravel()
            expected = np.zeros(shape)
            for corners, weights in moves[action]:
                for corner, weight in zip(corners, weights, strict=True):
                    expected += weight * value[corner]
            for before in range(actions):
                table[second, before, ..., action] = expected - _cost(before, action)
    table.setflags(write=False)
    return table


def _cost(before: int, action: int) -> float:
    reversal = TURNS[before] * TURNS[action] < 0
    change = CHANGE if before != action and action else 0.0
    return float(ALERT[action] + (REVERSAL if reversal else change))


def _successors(
    grid: tuple[tuple[float, ...], ...], turn: float
) -> list[tuple[list[Indices], list[Floats]]]:
    """Return, for each pair of deviations, the 8 corners around every next state, and weights."""
    distance, bearing, heading = np.meshgrid(*grid, indexing="ij")
    found: list[tuple[list[Indices], list[Floats]]] = []
    for (own, p), (other, q) in product(NOISE, NOISE):
        # The own aircraft flies along x and then turns; the frame turns with it.
        own_turn = turn + np.deg2rad(own)
        x = distance * np.cos(bearing) + SPEED * np.cos(heading) - SPEED
        y = distance * np.sin(bearing) + SPEED * np.sin(heading)
        reached = np.hypot(x, y), _wrapped(np.arctan2(y, x) - own_turn)
        turned = _wrapped(heading + np.deg2rad(other) - own_turn)
        corners, weights = _corners(grid, (*reached, turned))
        found.append((corners, [p * q * weight for weight in weights]))
    return found


def _corners(
    grid: tuple[tuple[float, ...], ...], states: tuple[Floats, Floats, Floats]
) -> tuple[list[Indices], list[Floats]]:
    """Return flat indices of the 8 grid points around each state, and their weights."""
    lower: list[Indices] = []
    share: list[Floats] = []
    for points, values in zip(grid, states, strict=True):
        axis = np.asarray(points)
        inside = np.clip(values, axis[0], axis[-1])
        place = np.clip(np.searchsorted(axis, inside, side="right") - 1, 0, len(axis) - 2)
        lower.append(place)
        share.append((inside - axis[place]) / (axis[place + 1] - axis[place]))
    sizes = tuple(len(points) for points in grid)
    corners: list[Indices] = []
    weights: list[Floats] = []
    for up in product((0, 1), repeat=3):
        index = tuple(place + step for place, step in zip(lower, up, strict=True))
        corners.append(np.ravel_multi_index(index, sizes))
        parts = [part if step else 1 - part for part, step in zip(share, up, strict=True)]
        weights.append(parts[0] * parts[1] * parts[2])
    return corners, weights


def _distances(count: int) -> tuple[float, ...]:
    """Points from 0 to `FARTHEST`, denser nearby."""
    return tuple(float(x) for x in FARTHEST * np.linspace(0, 1, count) ** 1.5)


def _angles(count: int) -> tuple[float, ...]:
    return tuple(float(x) for x in np.linspace(-np.pi, np.pi, count))


def _wrapped(angle: Floats) -> Floats:
    return (angle + np.pi) % (2 * np.pi) - np.pi
