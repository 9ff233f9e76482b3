"""Does the gate hold? False alarms, power, and bad months, on windows drawn from real flights.

A champion learns January to March; its record is taken on rows it has not seen, and windows are
drawn from further ones. Healthy windows must not raise more alarms than the stated rate, injected
decays must be flagged, better challengers promoted, and broken rows named. Windows of the other
seasons, which no model has seen, may show decay; their rows are sound and must not be called unfit.

    python -m bench.bench_gate [--rows 2000]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy import stats

from bench.flights import FEATURES, TARGET, by_month, flights
from bench.results import Measure, write
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.decode import decode_features
from kubestill.runtime.datasets.tables import read_table
from kubestill.runtime.datasets.writer import DatasetWriter
from kubestill.runtime.evaluation.decay import find_decay
from kubestill.runtime.evaluation.decision import Decision, Rules, judge_alone, judge_challenger
from kubestill.runtime.evaluation.fitness import Shift, compare_rows
from kubestill.runtime.evaluation.labels import check_labels, skill
from kubestill.runtime.evaluation.profile import Profile, sketch
from kubestill.runtime.evaluation.record import bias_of, marks_of
from kubestill.runtime.evaluation.settings import EvaluationSettings
from kubestill.runtime.metrics.catalog import BIAS, METRICS, TASKS, metrics_of
from kubestill.runtime.metrics.intervals import Measured, measure
from kubestill.runtime.metrics.outcome import Outcome
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.steps.train_teacher import train_teacher

HEALTHY, CASES, BAD, SEASONS = 200, 100, 25, 20
SETTINGS = EvaluationSettings()
METRIC = METRICS["log_loss"]
RULES = Rules(
    min_rows=SETTINGS.min_rows,
    min_improvement=SETTINGS.min_improvement,
    max_forgetting=SETTINGS.max_forgetting,
)
Spoil = Callable[[pd.DataFrame, np.random.Generator], pd.DataFrame]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4000, help="of each window")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        gate = Gate(Path(folder), told.rows)
        figures = [*gate.false_alarms(), *gate.power(), *gate.challengers(), *gate.bad_months()]
        write("gate", [*figures, *gate.seasons()])


def redraw_labels(frame: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    """A world with more chance in it: every fifth label is drawn anew."""
    drawn = random.permutation(frame[TARGET].to_numpy())
    return frame.assign(**{TARGET: np.where(random.random(len(frame)) < 0.2, drawn, frame[TARGET])})


def more_delays(frame: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    """A worse season: late flights are half as frequent again."""
    weights = np.where(frame[TARGET] == "late", 1.5, 1.0)
    chosen = random.choice(len(frame), len(frame), p=weights / weights.sum())
    return frame.iloc[chosen].reset_index(drop=True)


def shuffled(frame: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    return frame.assign(**{TARGET: random.permutation(frame[TARGET].to_numpy())})


def kilometres(frame: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    return frame.assign(distance=frame.distance * 1.609344)


def doubled(frame: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    return frame.assign(distance=frame.distance * 2)


def currency(frame: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    """As a price in Danish crowns would be where euros were."""
    return frame.assign(distance=frame.distance * 7.46)


def celsius(frame: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    return frame.assign(temp=(frame.temp - 32) / 1.8)


def missing(frame: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    return frame.assign(visib=frame.visib.mask(random.random(len(frame)) < 0.6))


def class_gone(frame: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    return frame[frame[TARGET] != "late"].reset_index(drop=True)


DECAYS: dict[str, Spoil] = {
    "a fifth of the labels redrawn": redraw_labels,
    "late flights half as frequent again": more_delays,
}
BAD_MONTHS: dict[str, tuple[Spoil, str]] = {
    "labels shuffled": (shuffled, "labels"),
    "miles to kilometres": (kilometres, "unit"),
    "twice what it was": (doubled, "unit"),
    "another currency": (currency, "unit"),
    "Fahrenheit to Celsius": (celsius, "unit"),
    "60% missing": (missing, "missing"),
    "a class gone": (class_gone, "class"),
}


@dataclass(frozen=True)
class Verdict:
    """What the gate said of one window."""

    decision: Decision
    shifts: tuple[Shift, ...]


class Gate:
    """The champion of a winter, its record, and rows to draw windows from."""

    def __init__(self, root: Path, rows: int):
        self.root, self.rows = root, rows
        self.months = {n: rows[[*FEATURES, TARGET]] for n, rows in by_month(flights()).items()}
        winter = pd.concat([self.months[1], self.months[2], self.months[3]])
        winter = winter.sample(frac=1, random_state=0).reset_index(drop=True)
        learn, recorded, self.pool = winter[:40_000], winter[40_000:50_000], winter[50_000:]
        self.schema = read_table(pa.Table.from_pandas(winter), target=TARGET).schema
        self.champion = self.train("champion", learn)
        self.weaker = self.train("weaker", learn[:10_000])
        self.twin = self.train("twin", learn, seed=1)
        outcome = self.outcome(self.champion, recorded)
        scores = measure({"champion": outcome})
        self.record = marks_of(scores, "champion", metrics_of("binary"))
        self.bias, self.skill = bias_of(outcome), skill(outcome)
        columns = {name: sketch(recorded[name]) for name in [*FEATURES, TARGET]}
        target = columns.pop(TARGET)
        self.profile = Profile(rows=len(recorded), target=target, columns=columns)

    def false_alarms(self) -> list[Measure]:
        """Judge healthy windows: whatever is not `healthy` is a false alarm."""
        rate = 1 - SETTINGS.confidence
        most = int(stats.binom.ppf(0.95, HEALTHY, rate))
        alarms = [
            found.decision.verdict
            for case in range(HEALTHY)
            if (found := self.judge(self.window(case))).decision.verdict != "healthy"
        ]
        print("false alarms:", alarms, flush=True)
        peer = f"{rate:.0%} stated, {HEALTHY} windows of {self.rows:,} rows"
        name = f"false alarms in {HEALTHY} healthy windows"
        return [
            Measure(
                name=name, value=len(alarms), bar=most, at_least=False, unit="alarms", peer=peer
            )
        ]

    def power(self) -> list[Measure]:
        """Judge windows in which the champion is really worse."""
        found: list[Measure] = []
        for name, spoil in DECAYS.items():
            verdicts = [
                self.judge(spoil(self.window(1000 + case), np.random.default_rng(case)))
                for case in range(CASES)
            ]
            flagged = np.mean([one.decision.verdict == "degraded" for one in verdicts])
            peer = f"{CASES} windows of {self.rows:,} rows"
            label = f"decay flagged: {name}"
            found.append(
                Measure(name=label, value=float(flagged), bar=0.8, unit="share", peer=peer)
            )
        return found

    def challengers(self) -> list[Measure]:
        """Judge a better challenger, and one that is no better."""
        better = self.promoted(self.champion, self.weaker)
        equal = self.promoted(self.twin, self.champion)
        gap = self.true_loss(self.weaker) - self.true_loss(self.champion)
        peer = f"log loss better by {gap:.3f}, {CASES} windows of {self.rows:,} rows"
        twins = f"the same training with another seed, {CASES} windows"
        return [
            Measure(
                name="better challengers promoted", value=better, bar=0.8, unit="share", peer=peer
            ),
            Measure(
                name="equal challengers promoted",
                value=equal,
                bar=0.07,
                at_least=False,
                unit="share",
                peer=twins,
            ),
        ]

    def bad_months(self) -> list[Measure]:
        """Judge broken rows: each must be rejected, and named for what it is."""
        found: list[Measure] = []
        for name, (spoil, kind) in BAD_MONTHS.items():
            named = 0
            for case in range(BAD):
                window = spoil(self.window(2000 + case), np.random.default_rng(case))
                told = self.judge(window)
                kinds = {shift.kind for shift in told.shifts if shift.unfit}
                named += told.decision.verdict == "unfit" and kind in kinds
            peer = f"{BAD} windows of {self.rows:,} rows"
            label = f"rejected and named: {name}"
            found.append(Measure(name=label, value=named / BAD, bar=1.0, unit="share", peer=peer))
        return found

    def seasons(self) -> list[Measure]:
        """Judge windows of the rest of the year, each after the month before it."""
        unfit: list[str] = []
        for month in range(4, 13):
            for case in range(SEASONS):
                window = self.months[month].sample(self.rows, random_state=case)
                window = window.sort_index().reset_index(drop=True)
                found = self.judge(window, last=self.months[month - 1])
                if found.decision.verdict == "unfit":
                    unfit.append(f"{month}: {found.decision.reason}")
        print("seasons called unfit:", unfit, flush=True)
        return [
            Measure(
                name="windows of other seasons called unfit",
                value=len(unfit) / (9 * SEASONS),
                bar=0.01,
                at_least=False,
                unit="share",
                peer=f"{9 * SEASONS} windows of {self.rows:,} rows, after a winter",
            )
        ]

    def window(self, case: int) -> pd.DataFrame:
        """Draw a window from rows that neither training nor record has seen."""
        return self.pool.sample(self.rows, random_state=case).reset_index(drop=True)

    def judge(self, window: pd.DataFrame, last: pd.DataFrame | None = None) -> Verdict:
        """Judge the champion as `continuous-eval` does; `last` are the sound rows before."""
        last = self.window(9000) if last is None else last
        outcome = self.outcome(self.champion, window)
        scores = measure({"champion": outcome})
        now = marks_of(scores, "champion", metrics_of("binary"))
        values = {name: window[name] for name in [*FEATURES, TARGET]}
        alpha = 1 - SETTINGS.confidence
        shifts = (
            *check_labels(outcome, self.skill, values, TARGET),
            *compare_rows(
                self.profile,
                values,
                target=TARGET,
                alpha=alpha,
                before=lambda: {name: last[name] for name in FEATURES},
            ),
        )
        pairs = {
            (name, "all rows"): (self.record[name], now[name])
            for name in TASKS["binary"].watched
            if name in now
        }
        bias = bias_of(outcome)
        if self.bias and bias:
            pairs["bias", "all rows"] = (self.bias, bias)
        decay = find_decay(
            pairs,
            {**METRICS, BIAS.name: BIAS},
            alpha=alpha,
            tolerance=SETTINGS.min_decay,
            max_bias=SETTINGS.max_bias,
        )
        return Verdict(judge_alone(scores, "champion", RULES, shifts=shifts, decay=decay), shifts)

    def promoted(self, challenger: Predictor, baseline: Predictor) -> float:
        """Return the share of windows on which `challenger` is promoted over `baseline`."""
        verdicts: list[str] = []
        for case in range(CASES):
            window = self.window(3000 + case)
            models = {"challenger": challenger, "champion": baseline}
            outcomes = {name: self.outcome(model, window) for name, model in models.items()}
            scores: Measured = measure(outcomes)
            told = judge_challenger(scores, "challenger", "champion", RULES, metric=METRIC)
            verdicts.append(told.verdict)
        return verdicts.count("promote") / CASES

    def true_loss(self, model: Predictor) -> float:
        outcome = self.outcome(model, self.pool)
        return float(METRIC.value(METRIC.mean(outcome)))

    def outcome(self, model: Predictor, frame: pd.DataFrame) -> Outcome:
        logits = model.logits(decode_features(frame[FEATURES], model.layout))
        classes = {label: code for code, label in enumerate(self.schema.classes)}
        return Outcome.from_logits("binary", logits, frame[TARGET].map(classes).to_numpy())

    def train(self, name: str, frame: pd.DataFrame, seed: int = 0) -> Predictor:
        rows = self.root / f"{name}-rows"
        with DatasetWriter(str(rows), self.schema) as writer:
            writer.write(pa.Table.from_pandas(frame, preserve_index=False))
        names = ("model", "ledger", "metrics", "report", "summary")
        ports = {one: LocalArtifact(str(self.root / name / one)) for one in names}
        with contextlib.redirect_stdout(io.StringIO()):
            train_teacher(
                dataset=LocalArtifact(str(rows), metadata={"kind": "dataset"}),
                network_args={"hidden": [64, 64]},
                epochs=3,
                batch_size=256,
                seed=seed,
                settings={"choose": "last"},
                **ports,
            )
        return load_model(ports["model"].path)


if __name__ == "__main__":
    main()
