"""A folder that rows arrive in, a registry, and runs that take them: without Kubeflow or torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.retraining import Champion, Registry, open_registry, transitions
from kubestill.runtime.retraining.decision import DecisionRecord
from kubestill.runtime.retraining.history import Judgement, RunOutcome
from kubestill.runtime.retraining.outcomes import conclude
from kubestill.runtime.steps.collect_fresh import collect_fresh

QUICK = {"min_judge_rows": 0, "min_events": 0, "judge_gap": 0.0}
PORTS = ("dataset", "validation", "holdout", "fresh", "replay", "unlabelled", "whole", "summary")


def rows(first: int, count: int, *, day: str = "2013-01-01", **columns: Any) -> pd.DataFrame:
    """Rows `first` and on, an hour apart from `day`; `id` tells them apart."""
    times = pd.date_range(day, periods=count, freq="h")
    ids = range(first, first + count)
    made = {"t": times, "id": ids, "x": [float(i % 7) for i in ids], "y": ["no", "yes"] * count}
    made["y"] = made["y"][:count]
    return pd.DataFrame({**made, **columns})


class Scene:
    def __init__(self, folder: Path, registry: str = ""):
        self.folder = folder
        self.source = folder / "source"
        self.source.mkdir(parents=True, exist_ok=True)
        self.registry: Registry = open_registry(registry or str(folder / "registry"))
        self.number = 0

    def deliver(self, name: str, frame: pd.DataFrame) -> Path:
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".csv"):
            frame.to_csv(path, index=False)
        else:
            frame.to_parquet(path)
        return path

    def run(self, as_of: str, run_id: str = "", **given: Any) -> Taken:
        """Collect, as the first step of a run does."""
        self.number += 1
        run_id = run_id or f"run{self.number}"
        out = self.folder / "out" / f"{run_id}-{self.number}"
        out.mkdir(parents=True, exist_ok=True)
        ports = {name: LocalArtifact(str(out / name)) for name in PORTS}
        values = {
            "source": str(self.source),
            "timestamp": "t",
            "target": "y",
            "registry": self.registry.uri,
            "min_rows": 1,
            "validation_fraction": 0.0,
            **given,
            # Few rows are quick; `Request` waits for as many as judging needs.
            "settings": {**QUICK, **given.get("settings", {})},
        }
        told = collect_fresh(run_id=run_id, as_of=as_of, **ports, **values)
        return Taken(run_id, *told, out)

    def judged(
        self, taken: Taken, decision: str, *, unfit: Sequence[str] = (), succeeded: bool = True
    ) -> RunOutcome:
        """End a run that leaves the champion alone; `unfit` is what is wrong with its rows."""
        reason = f"It is {decision}."
        judged = Judgement(
            run_id=taken.run_id, step="judge", decision=decision, reason=reason, unfit=tuple(unfit)
        )
        self.registry.append(judged)
        return conclude(self.registry, taken.run_id, succeeded=succeeded)

    def promote(self, taken: Taken, *, refit: bool = False) -> RunOutcome:
        """End a run with a new champion, or with the refit of the one that was judged."""
        held = transitions.holding(self.registry.read(), taken.run_id)
        champion = self.champion(taken.run_id, held.window.id, refit=refit)
        self.registry.change(lambda state: transitions.promote(state, champion))
        return conclude(self.registry, taken.run_id, succeeded=True)

    def champion(self, run_id: str, window: str, *, refit: bool = False) -> Champion:
        folder = f"models/{window}"
        digest = self._model(f"{folder}/model", window)
        judged = self._model(f"{folder}/judged/model", f"{window}, judged") if refit else ""
        return Champion(
            version=1,
            run_id=run_id,
            window=window,
            promoted_at=datetime(2013, 1, 1).isoformat(),
            folder=folder,
            model_digest=digest,
            judged=judged,
            decision=DecisionRecord(
                decision="promote",
                reason="It is better.",
                model=judged or digest,
                baseline="",
                dataset="d",
            ),
        )

    def _model(self, folder: str, content: str) -> str:
        weights = content.encode()
        spec = json.dumps({"digest": hashlib.sha256(weights).hexdigest()}).encode()
        self.registry.store.put(f"{folder}/model.safetensors", weights)
        self.registry.store.put(f"{folder}/model.json", spec)
        return hashlib.sha256(spec).hexdigest()

    def started(self, *, refit: bool = False) -> Taken:
        """A registry with a champion, from a hundred rows of the first days of January."""
        self.deliver("first.parquet", rows(0, 100))
        taken = self.run("2013-01-20")
        self.promote(taken, refit=refit)
        return taken


class Taken:
    def __init__(self, run_id: str, status: str, reason: str, method: str, folder: Path):
        self.run_id, self.status, self.reason, self.folder = run_id, status, reason, folder
        self.method = method

    def ids(self, port: str = "fresh") -> list[int]:
        """The `id` of every row of an output, in order of `id`."""
        frame = Dataset.open(str(self.folder / port)).to_pandas()
        return sorted(int(value) for value in frame["id"])

    def frame(self, port: str = "fresh") -> pd.DataFrame:
        return Dataset.open(str(self.folder / port)).to_pandas()

    @property
    def summary(self) -> str:
        return (self.folder / "summary").read_text()
