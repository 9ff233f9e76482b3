"""Do intervals cover, and do verdicts err as seldom as they say? Simulated, so the truth is known.

Windows are drawn from a world in which every score is known: 0.5% to 50% positives, 100 to 10,000
rows, alone or in groups of two to five rows that share what a model does not see. An interval has
to cover the truth in 93% to 97% of the windows in which it is given, or not to be given: verdicts
are `insufficient` there. Years of windows in which nothing changes count false alarms and false
promotions.

    python -m bench.bench_truth [--windows 2000]
    python -m bench.bench_truth --windows 400 --only-reigns --cells "10.0% positives, 300 rows, ent"
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from bench.results import Measure, write
from kubestill.runtime.evaluation.decay import find_decay
from kubestill.runtime.evaluation.decision import Rules, judge_challenger
from kubestill.runtime.evaluation.expected import calibrate, expect
from kubestill.runtime.evaluation.pooling import Pool, gain_of, pool
from kubestill.runtime.evaluation.record import Mark, bias_of, marks_of
from kubestill.runtime.evaluation.settings import EvaluationSettings
from kubestill.runtime.metrics.catalog import BIAS, METRICS, TASKS, point
from kubestill.runtime.metrics.intervals import Interval, Measured, measure
from kubestill.runtime.metrics.outcome import Outcome
from kubestill.runtime.retraining.history import Gain

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BALANCES = (0.005, 0.02, 0.1, 0.5)
SIZES = (100, 300, 1000, 10_000)
NOMINAL, POINTS = 0.95, 0.02
SKILL = 1.5
SHARED = 0.7
"""Part of the variance of inputs, and of what no model sees, that the rows of a group share."""
MOSTLY = 0.5
"""Share of windows with an interval from which on its coverage among them is judged; where fewer
have one, it is the share of all windows that it misses in."""


@dataclass(frozen=True)
class World:
    """Rows with a base rate of positives, which the margin `intercept + SKILL z` states."""

    balance: float
    intercept: float

    @classmethod
    @cache
    def of(cls, balance: float) -> World:
        z, weight = grid()

        def rate(intercept: float) -> float:
            return float(weight @ logistic(intercept + SKILL * z)) - balance

        return cls(balance, float(optimize.brentq(rate, -30, 30)))

    def draw(self, rows: int, random: np.random.Generator, groups: Ints | None) -> Draw:
        z = shared(random, rows, groups)
        margin = self.intercept + SKILL * z
        luck = stats.norm.cdf(shared(random, rows, groups))
        return Draw(z=z, margin=margin, targets=(luck < logistic(margin)).astype(np.int64))


@dataclass(frozen=True)
class Draw:
    z: Floats
    margin: Floats
    targets: Ints

    def outcome(self, margin: Floats) -> Outcome:
        return Outcome.from_logits("binary", margin[:, None], self.targets)


def logistic(margin: Floats) -> Floats:
    return 1 / (1 + np.exp(-margin))


@cache
def grid() -> tuple[Floats, Floats]:
    """Return nodes and weights of a standard normal: dense, because bins have edges."""
    z = np.linspace(-8, 8, 200_001)
    weight = np.exp(-z * z / 2)
    return z, weight / weight.sum()


def shared(random: np.random.Generator, rows: int, groups: Ints | None) -> Floats:
    """Return [N] standard normals, which the rows of a group share a part of."""
    own = random.normal(size=rows)
    if groups is None:
        return own
    common = random.normal(size=int(groups.max()) + 1)[groups]
    return SHARED**0.5 * common + (1 - SHARED) ** 0.5 * own


def grouped(random: np.random.Generator, rows: int) -> Ints:
    """Return the [N] group of each row: of two to five rows."""
    sizes = random.integers(2, 6, size=rows // 2 + 1)
    return np.repeat(np.arange(len(sizes)), sizes)[:rows]


@dataclass
class Tally:
    """How often an interval was given, and how often it covered the truth."""

    windows: int = 0
    given: int = 0
    below: int = 0
    """Intervals that lie wholly below the truth."""
    above: int = 0

    def add(self, found: Interval, truth: float) -> None:
        self.windows += 1
        if found.known:
            self.given += 1
            # A score of 1 - 1e-16 is perfect.
            self.below += found.high < truth - 1e-12
            self.above += found.low > truth + 1e-12

    def measures(self, name: str) -> Iterator[Measure]:
        peer = f"{self.windows} windows, {self.given / self.windows:.0%} with an interval"
        missed = self.below + self.above
        if self.given < MOSTLY * self.windows:
            yield Measure(
                name=f"{name}: missed",
                value=missed / self.windows,
                bar=1 - NOMINAL + POINTS,
                at_least=False,
                unit="of windows",
                peer=peer,
            )
            return
        covered = 1 - missed / self.given
        yield Measure(
            name=f"{name}: covers", value=covered, bar=NOMINAL - POINTS, unit="share", peer=peer
        )


@dataclass
class Cells:
    """Every cell by name."""

    tallies: dict[str, Tally] = field(default_factory=dict[str, Tally])

    def add(self, name: str, found: Interval, truth: float) -> None:
        self.tallies.setdefault(name, Tally()).add(found, truth)

    def measures(self) -> list[Measure]:
        return [one for name, tally in self.tallies.items() for one in tally.measures(name)]


@cache
def truths(balance: float) -> dict[str, float]:
    """Return what every score of the stated probabilities is in the long run."""
    z, weight = grid()
    p = logistic(World.of(balance).intercept + SKILL * z)
    positive, negative = weight * p, weight * (1 - p)
    below = np.cumsum(negative) - negative / 2
    bent = logistic(bend(World.of(balance).intercept + SKILL * z))
    bins = np.minimum((bent * 15).astype(int), 14)
    held = np.bincount(bins, weight, minlength=15)
    gaps = np.bincount(bins, weight * (bent - p), minlength=15)
    square = np.divide(gaps**2, held, out=np.zeros(15), where=held > 0).sum()
    return {
        "accuracy": float(np.where(p > 0.5, positive, negative).sum()),
        "log_loss": float(-(positive * np.log(p) + negative * np.log1p(-p)).sum()),
        "brier": float((weight * p * (1 - p)).sum()),
        "auc": float(positive @ below / (positive.sum() * negative.sum())),
        "ece": 0.0,
        "ece, miscalibrated": float(np.sqrt(square)),
    }


def bend(margin: Floats) -> Floats:
    """Return the margin of a model that is too sure of itself."""
    return 1.4 * margin + 0.4


@cache
def turned(balance: float) -> tuple[float, float]:
    """Return how far two margins may be off, up and down, to have the same log loss."""
    z, weight = grid()
    margin = World.of(balance).intercept + SKILL * z
    p = logistic(margin)

    def loss(off: float) -> float:
        return float(weight @ (np.logaddexp(0, margin + off) - p * (margin + off)))

    down = -0.6
    return float(optimize.brentq(lambda off: loss(off) - loss(down), 0.05, 3)), down


def binary(cells: Cells, balance: float, rows: int, windows: int, *, in_groups: bool) -> None:
    """Draw windows of a binary task."""
    random = np.random.default_rng([int(1000 * balance), rows, in_groups])
    world, known = World.of(balance), truths(balance)
    up, down = turned(balance)
    cell = f"{balance:.1%} positives, {rows:,} rows{', in groups' if in_groups else ''}"
    for _ in range(windows):
        groups = grouped(random, rows) if in_groups else None
        drawn = world.draw(rows, random, groups)
        noise = [0.5 * random.normal(size=rows) for _ in range(2)]
        scores = scored(
            {
                "stated": (drawn.margin, ("accuracy", "log_loss", "auc", "brier", "ece")),
                "bent": (bend(drawn.margin), ("ece",)),
                "up": (drawn.margin + up, ("log_loss",)),
                "down": (drawn.margin + down, ("log_loss",)),
                "one": (drawn.margin + noise[0], ("accuracy", "auc")),
                "other": (drawn.margin + noise[1], ("accuracy", "auc")),
            },
            drawn,
            groups,
        )
        for metric in ("accuracy", "log_loss", "auc", "brier", "ece"):
            cells.add(f"{metric}, {cell}", scores.interval("stated", metric), known[metric])
        bent = scores.interval("bent", "ece")
        cells.add(f"ece, miscalibrated, {cell}", bent, known["ece, miscalibrated"])
        off = scores.improvement("down", "up", METRICS["log_loss"])
        cells.add(f"difference of log_loss, {cell}", off, 0.0)
        for metric in ("accuracy", "auc"):
            equal = scores.improvement("one", "other", METRICS[metric])
            cells.add(f"difference of {metric}, {cell}", equal, 0.0)


def scored(
    models: dict[str, tuple[Floats, tuple[str, ...]]], drawn: Draw, groups: Ints | None
) -> Measured:
    """Score margins as `measure` does, but only by the metrics that are asked for."""
    outcomes = {name: drawn.outcome(margin) for name, (margin, _) in models.items()}
    points = {
        name: {metric: point(METRICS[metric], outcomes[name]) for metric in metrics}
        for name, (_, metrics) in models.items()
    }
    return Measured(outcomes=outcomes, points=points, confidence=NOMINAL, groups=groups)


def regression(cells: Cells, rows: int, windows: int, *, in_groups: bool) -> None:
    """Draw windows of a regression with errors that have heavier tails than a normal's."""
    random = np.random.default_rng([rows, in_groups])
    cell = f"{rows:,} rows{', in groups' if in_groups else ''}"
    scale = (9 / 7) ** 0.5  # of Student's t with 9 degrees of freedom
    known = {
        "rmse": scale,
        "mae": float(stats.t.expect(abs, args=(9,))),
        "r2": 1 - scale**2 / (1 + scale**2),
    }
    for _ in range(windows):
        groups = grouped(random, rows) if in_groups else None
        answers = shared(random, rows, groups)

        def errors(groups: Ints | None = groups) -> Floats:
            return np.asarray(stats.t.ppf(stats.norm.cdf(shared(random, rows, groups)), 9))

        common, targets = errors(), answers
        targets = answers + common
        near = [answers + 0.5 * shared(random, rows, groups) for _ in range(2)]
        outcomes = {
            name: Outcome.from_logits("regression", one[:, None], targets[:, None])
            for name, one in zip(("model", "one", "other"), (answers, *near), strict=True)
        }
        scores = measure(outcomes, confidence=NOMINAL, groups=groups)
        for metric in ("rmse", "mae", "r2"):
            cells.add(f"{metric}, {cell}", scores.interval("model", metric), known[metric])
        equal = scores.improvement("one", "other", METRICS["rmse"])
        cells.add(f"difference of rmse, {cell}", equal, 0.0)


WORLDS: dict[str, tuple[float, float, float]] = {
    "rows as they were": (0.0, 1.0, 1.0),
    "rows that move": (0.8, 1.0, 1.0),
    "rows that spread": (0.0, 1.5, 1.0),
    "labels that mean less": (0.0, 1.0, 0.5),
}
"""How far and how wide inputs move, and how much of their meaning for the label is left: below 1,
concept drift, which no estimate without labels can see."""


def expectations(windows: int) -> Iterator[Measure]:
    """Hold what is expected of rows without labels against the labels that they get after all."""
    for balance in BALANCES[1:]:
        for rows in (300, 1000):
            for in_groups in (False, True):
                for world, changed in WORLDS.items():
                    yield from expected(balance, rows, windows, world, changed, in_groups=in_groups)


def expected(
    balance: float,
    rows: int,
    windows: int,
    name: str,
    changed: tuple[float, float, float],
    *,
    in_groups: bool,
) -> Iterator[Measure]:
    random = np.random.default_rng([int(1000 * balance), rows, in_groups, 7])
    world, (moved, wide, left) = World.of(balance), changed
    hits = dict.fromkeys(("log_loss", "accuracy"), 0)
    given = 0
    for _ in range(windows):
        groups = [grouped(random, rows) if in_groups else None for _ in range(2)]
        drawn = world.draw(rows, random, groups[0])
        calibration = calibrate(drawn.outcome(bend(drawn.margin)), groups[0])
        if calibration is None:
            continue
        given += 1
        z = moved + wide * shared(random, rows, groups[1])
        luck = stats.norm.cdf(shared(random, rows, groups[1]))
        margin = world.intercept + SKILL * z
        targets = (luck < logistic(world.intercept + left * SKILL * z)).astype(np.int64)
        later = Draw(z=z, margin=margin, targets=targets).outcome(bend(margin))
        told = expect(later.predictions, calibration, confidence=NOMINAL)
        for metric in hits:
            truth = point(METRICS[metric], later)
            hits[metric] += told[metric].low - 1e-12 <= truth <= told[metric].high + 1e-12
    cell = f"{balance:.1%} positives, {rows:,} rows{', in groups' if in_groups else ''}"
    peer = f"{windows} windows, {given / windows:.0%} with enough events"
    for metric, count in hits.items():
        yield Measure(
            name=f"expected {metric}, {name}, {cell}: covers",
            value=count / max(1, given),
            bar=NOMINAL - POINTS if left == 1 and given >= MOSTLY * windows else None,
            unit="share",
            peer=peer,
        )


SETTINGS = EvaluationSettings()
PER_WINDOW, PER_YEAR = 1 - SETTINGS.confidence, SETTINGS.yearly_alarms
SCHEDULES = (1, 12, 52)
"""Windows a year: one window alone has the rate of a window."""


def year(
    balance: float, rows: int, looks: int, random: np.random.Generator, *, in_groups: bool
) -> tuple[bool, bool, int]:
    """Judge an unchanged champion and a challenger as good in every window of a year."""
    world, (up, down) = World.of(balance), turned(balance)
    alpha = min(PER_WINDOW, PER_YEAR / looks) if looks > 1 else PER_WINDOW
    rules = Rules(min_rows=100, confidence=1 - alpha)
    record: dict[tuple[str, str], Mark] = {}
    decayed = promoted = False
    silent = 0
    for look in range(looks + 1):
        groups = grouped(random, rows) if in_groups else None
        drawn = world.draw(rows, random, groups)
        champion = drawn.outcome(drawn.margin)
        scores = measure({"champion": champion}, groups=groups)
        marks = marks_of(scores, "champion", {n: METRICS[n] for n in TASKS["binary"].watched})
        bias = bias_of(champion, groups)
        now = {(name, "all rows"): mark for name, mark in marks.items()}
        now |= {("bias", "all rows"): bias} if bias else {}
        if not look:
            record = now
            continue
        pairs = {key: (record[key], now[key]) for key in now if key in record}
        silent += not pairs
        limits = {"tolerance": SETTINGS.min_decay, "max_bias": SETTINGS.max_bias}
        found = find_decay(pairs, {**METRICS, BIAS.name: BIAS}, alpha=alpha, **limits)
        decayed |= any(one.evident for one in found)
        rivals = {"champion": drawn.margin + up, "challenger": drawn.margin + down}
        both = measure({n: drawn.outcome(margin) for n, margin in rivals.items()}, groups=groups)
        told = judge_challenger(both, "challenger", "champion", rules, metric=METRICS["log_loss"])
        promoted |= told.verdict == "promote"
    return decayed, promoted, silent


@dataclass(kw_only=True)
class Champion:
    """A model that stands while challengers are tried in every window, as continuous-eval tries."""

    alpha: float
    """Chance of a false alarm that a window may spend."""
    pools: bool
    """Whether gains are added up over windows."""
    budget: float = PER_YEAR / 4
    gains: list[Gain] = field(default_factory=list[Gain])

    def falls(
        self, outcomes: dict[str, Outcome], groups: Ints | None, names: list[str] | None
    ) -> bool:
        """Return whether a challenger takes its place."""
        scores = measure(outcomes, groups=groups)
        metric, most = METRICS["log_loss"], PER_WINDOW / 4
        pooled = None
        if self.pools:
            gain = gain_of(scores, "challenger", "champion", metric, names)
            assert gain
            self.gains.append(gain)
            alone = len(self.gains) < 2
            added = Pool(windows=1) if alone else pool(self.gains, budget=self.budget, most=most)
            pooled = added
        rules = Rules(min_rows=100, confidence=1 - self.alpha)
        told = judge_challenger(
            scores, "challenger", "champion", rules, metric=metric, pooled=pooled
        )
        return told.verdict == "promote"


def reign(
    cell: tuple[float, int, int],
    random: np.random.Generator,
    *,
    pools: bool,
    entities: bool,
    better: bool,
) -> int:
    """Return the window of a year in which the champion is replaced; 0 if it never is.

    Args:
        cell: Share of positives, rows in a window, windows in a year.
        random: Draws the year.
        pools: Whether gains are added up over windows.
        entities: Whether rows belong to entities that come back in every window.
        better: Whether challengers are right and the champion is off, or both are off as much.
    """
    balance, rows, looks = cell
    world, (up, down) = World.of(balance), turned(balance)
    champion = Champion(alpha=min(PER_WINDOW, PER_YEAR / looks), pools=pools)
    groups = grouped(random, rows) if entities else None
    names = [str(code) for code in range(int(groups.max()) + 1)] if groups is not None else None
    lasting = [random.normal(size=len(names)) if names else None for _ in range(2)]

    def draw(common: Floats | None) -> Floats:
        own = random.normal(size=rows)
        if common is None:
            return own
        return SHARED**0.5 * common[groups] + (1 - SHARED) ** 0.5 * own

    for look in range(1, looks + 1):
        margin = world.intercept + SKILL * draw(lasting[0])
        luck = stats.norm.cdf(draw(lasting[1]))
        targets = (luck < logistic(margin)).astype(np.int64)
        drawn = Draw(z=margin, margin=margin, targets=targets)
        rivals = {
            "champion": drawn.outcome(margin + (down if better else up)),
            "challenger": drawn.outcome(margin + (0.0 if better else down)),
        }
        if champion.falls(rivals, groups, names):
            return look
    return 0


def reigns(years: int, cells: Sequence[str] = ("",)) -> Iterator[Measure]:
    """Count years with a false promotion, and windows until a true one, with and without a sum.

    Args:
        years: Of one window; a schedule of more has as many fewer.
        cells: Parts of the names of cells, to leave out those that have none of them.
    """
    if "" in cells:
        yield forgetful(100_000)
    for looks in SCHEDULES[1:]:
        for balance in BALANCES:
            for entities in (False, True):
                cell = (balance, 300, looks)
                name = f"{balance:.1%} positives, 300 rows{', entities' if entities else ''}"
                name += f", {looks} windows a year"
                if not any(part in name for part in cells):
                    continue
                count = years // looks
                seed = [int(1000 * balance), looks, entities, 19]
                for pools, better in ((True, False), (True, True), (False, True)):
                    how = "added up" if pools else "each window alone"
                    random = np.random.default_rng(seed)
                    kinds = {"pools": pools, "entities": entities, "better": better}
                    # Rare ends take more years to count.
                    drawn = count if better else 4 * count
                    ends = [reign(cell, random, **kinds) for _ in range(drawn)]
                    yield from told_of(ends, f"{how}, {name}", looks, better=better)


def forgetful(years: int) -> Measure:
    """Return how often a sum promotes that begins anew after a rejection, at a limit for each look.

    Gains are normal and their mean is zero. An improvement worth having is as large as the limit of
    one window, so that about half of the windows reject.
    """
    stated, looks = PER_YEAR / 4, 12
    reach = float(stats.norm.isf(stated / looks))
    random = np.random.default_rng(19)
    held, number, promoted = np.zeros(years), np.zeros(years), np.zeros(years, bool)
    for _ in range(looks):
        held, number = held + random.normal(size=years), number + 1
        z = held / np.sqrt(number)
        promoted |= z > reach
        rejected = z + reach < reach * np.sqrt(number)
        held, number = np.where(rejected, 0, held), np.where(rejected, 0, number)
    return Measure(
        name="false promotion by sums that forget rejected windows, 12 windows a year",
        value=float(promoted.mean()),
        unit="of years",
        peer=f"{stated:.3g} stated; {years} years; why sums do not",
    )


def told_of(ends: list[int], name: str, looks: int, *, better: bool) -> Iterator[Measure]:
    share = sum(end > 0 for end in ends) / len(ends)
    peer = f"{len(ends)} years"
    if not better:
        bar = float(stats.binom.ppf(0.95, len(ends), PER_YEAR / 2)) / len(ends)
        yield Measure(
            name=f"false promotion, {name}",
            value=share,
            bar=max(bar, PER_YEAR / 2),
            at_least=False,
            unit="of years",
            peer=f"{PER_YEAR / 2:.3g} stated; {peer}",
        )
        return
    yield Measure(name=f"true promotion, {name}", value=share, unit="of years", peer=peer)
    yield Measure(
        name=f"windows until a true promotion, {name}",
        value=float(np.median([end or looks + 1 for end in ends])),
        unit="windows",
        peer=f"median of {peer}, {looks + 1} where there is none",
    )


def verdicts(windows: int, sizes: tuple[int, ...] = (300, 1000)) -> Iterator[Measure]:
    """Count years with a false alarm or a false promotion, at several schedules."""
    for looks in SCHEDULES:
        for balance in BALANCES:
            for rows in sizes:
                for in_groups in (False, True):
                    yield from false_rates(balance, rows, looks, windows // looks, in_groups)


def false_rates(
    balance: float, rows: int, looks: int, years: int, in_groups: bool
) -> Iterator[Measure]:
    random = np.random.default_rng([int(1000 * balance), rows, looks, in_groups])
    found = [year(balance, rows, looks, random, in_groups=in_groups) for _ in range(years)]
    decays, promotions, silent = (sum(one[place] for one in found) for place in range(3))
    rate = PER_WINDOW if looks == 1 else PER_YEAR
    unit = "of windows" if looks == 1 else "of years"
    cell = f"{balance:.1%} positives, {rows:,} rows{', in groups' if in_groups else ''}"
    cell += "" if looks == 1 else f", {looks} windows a year"
    peer = f"{years} {unit[3:]}, {silent / years / looks:.0%} of windows with too few events"
    for name, count, stated in (("decay", decays, rate), ("promotion", promotions, rate / 2)):
        # What chance adds to a rate that is exactly as stated, in one of twenty cells.
        bar = float(stats.binom.ppf(0.95, years, stated)) / years
        yield Measure(
            name=f"false {name}, {cell}",
            value=count / years,
            bar=max(bar, stated),
            at_least=False,
            unit=unit,
            peer=f"{stated:.3g} stated; {peer}",
        )


def simulate(windows: int, sizes: tuple[int, ...] = SIZES) -> list[Measure]:
    """Draw windows in every cell of the grid."""
    cells = Cells()
    for rows in sizes:
        for in_groups in (False, True):
            count = windows if rows < 10_000 else windows // 4
            for balance in BALANCES:
                binary(cells, balance, rows, count, in_groups=in_groups)
            regression(cells, rows, count, in_groups=in_groups)
    return cells.measures()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=2000, help="in each cell")
    parser.add_argument("--only-expected", action="store_true", help="leave the other cells")
    parser.add_argument("--only-reigns", action="store_true", help="leave the other cells")
    parser.add_argument("--cells", nargs="+", default=[""], help="of the reigns: parts of names")
    told = parser.parse_args()
    if told.only_reigns:
        write("truth", list(reigns(4 * told.windows, told.cells)), keep=True)
        return
    if not told.only_expected:
        write("truth", simulate(told.windows))
        write("truth", list(verdicts(told.windows)), keep=True)
        write("truth", list(reigns(4 * told.windows)), keep=True)
    write("truth", list(expectations(told.windows // 4)), keep=True)


if __name__ == "__main__":
    main()
