"""The runs of which there are recordings, told again on this machine by ordinary inputs.

Every step goes through Kubeflow's executor with what `kfp.local` hands to it, in the order of its
pipeline, on parameters that were recorded. What it makes is the recorded step's input, and how it
ends is how the recorded step has to end.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from replaying import (
    Bucket,
    Ended,
    Port,
    Recording,
    Volumes,
    execute,
    find_component,
    local_input,
    output_artifacts,
    output_parameters,
    producer,
)

SCALED: dict[str, dict[str, Any]] = {
    "distillation.train_teacher": {"steps": 150},
    "distillation.train_student": {"steps": 500},
    "surrogate.train_student": {"steps": 300},
}
"""Parameters of recordings that would take minutes, and what they are here."""


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """One step that was told, and the registry that its run keeps, around it."""

    ended: Ended
    registry: str
    before: dict[str, bytes]
    after: dict[str, bytes]


@dataclass
class Story:
    """Steps by the run and the task that they stand for."""

    folder: Path
    bucket: Bucket
    root: str
    """URI below which checkpoints are kept: not where the recorded runs keep theirs."""
    told: dict[str, Chapter] = field(default_factory=dict[str, Chapter])
    _registry: str = ""

    def recorded(self, name: str) -> Ended:
        """Tell a step of which there is a recording."""
        recording = Recording.read(name)
        inputs = {port: self.port(one["uri"]) for port, one in recording.inputs.items()}
        return self.step(
            recording.task,
            recording.component,
            **inputs,
            **{**recording.parameters, **SCALED.get(name, {})},
        )

    def step(self, task: str, component: str, /, **given: Any) -> Ended:
        """Tell a step of which there is none; artifacts and parameters by their names."""
        inputs = {name: one for name, one in given.items() if isinstance(one, Port)}
        parameters = {name: one for name, one in given.items() if name not in inputs}
        if parameters.get("checkpoint_uri"):
            parameters["checkpoint_uri"] = self.root
        if "uris" in parameters:
            parameters["uris"] = [self._share(uri) for uri in parameters["uris"]]
        found = find_component(component)
        # Steps that are not told of a registry may read what lies in it.
        registry = self._registry = parameters.get("registry") or self._registry
        before = self.bucket.read(registry) if registry else {}
        executor_input = local_input(found, self.folder / task, inputs, parameters)
        ended = execute(found, executor_input)
        after = self.bucket.read(registry) if registry else {}
        self.told[task] = Chapter(ended=ended, registry=registry, before=before, after=after)
        return ended

    def same(self, task: str, as_task: str) -> None:
        """Let a step of another run stand for one that would be the same again."""
        self.told[task] = self.told[as_task]

    def port(self, uri: str) -> Port:
        """Return what was made here in the place of a recorded artifact."""
        return self.told[producer(uri)].ended.artifacts[uri.rpartition("/")[2]]

    def _share(self, recorded: str) -> str:
        """Upload a shard that others read by its URI; return where it lies."""
        uri = f"{self.root}/shards/{producer(recorded)}"
        self.bucket.put(uri, self.port(recorded).path)
        return uri

    def prepare(self, recording: Recording, volumes: Volumes) -> dict[str, Any]:
        """Lay a recording's artifacts where they point; return its executor input.

        It is the recorded one, but for what depends on rows: numbers and digests in the metadata,
        and steps where `SCALED` says so. Outputs that the component has gained since are added as
        the driver does it.
        """
        content = copy.deepcopy(recording.content)
        content["inputs"].get("parameterValues", {}).update(SCALED.get(recording.name, {}))
        digests: dict[str, str] = {}
        for port in content["inputs"].get("artifacts", {}).values():
            (artifact,) = port["artifacts"]
            mine = self.port(artifact["uri"])
            volumes.lay(artifact["uri"], mine.path)
            metadata = artifact["metadata"]
            for name in metadata.keys() & mine.metadata.keys():
                if name in ("digest", "fingerprint"):
                    digests[metadata[name]] = mine.metadata[name]
                if not isinstance(metadata[name], dict):
                    metadata[name] = mine.metadata[name]
        for uri in recording.parameters.get("uris", ()):
            self.bucket.put(uri, self.port(uri).path)
        if recording.component == "promote_model":
            judged = content["inputs"]["artifacts"]["metrics"]["artifacts"][0]["metadata"]
            rows = self.told["3f640197/collect-fresh"].ended.artifacts["holdout"]
            digests[judged["decision_record"]["struct"]["dataset"]] = rows.metadata["fingerprint"]
        made = content["outputs"].setdefault("artifacts", {})
        folder = next(iter(made.values()))["artifacts"][0]["uri"].rpartition("/")[0]
        for name in output_artifacts(find_component(recording.component)).keys() - made.keys():
            kind = {"schemaTitle": "system.Artifact", "schemaVersion": "0.0.1"}
            made[name] = {"artifacts": [{"name": name, "type": kind, "uri": f"{folder}/{name}"}]}
        if "parameters" in content["outputs"]:
            for name in output_parameters(find_component(recording.component)):
                folder = content["outputs"]["outputFile"].rpartition("/")[0]
                place = {"outputFile": f"{folder}/{name}"}
                content["outputs"]["parameters"].setdefault(name, place)
        self.restore(recording)
        text = json.dumps(content)
        for recorded, mine in digests.items():
            text = text.replace(recorded, mine)
        return json.loads(text)

    def restore(self, recording: Recording) -> None:
        """Put the registry back to before this step, and take away what an earlier replay kept."""
        chapter = self.told[recording.task]
        if chapter.registry:
            self.bucket.restore(chapter.registry, chapter.before)
        if root := recording.parameters.get("checkpoint_uri"):
            self.bucket.restore(root, {})


def tell_distillation(story: Story) -> None:
    story.recorded("distillation.import_dataset")
    story.recorded("distillation.plan_shards")
    story.recorded("distillation.overfit_batch.hard")
    rows = story.told["432883dc/import-dataset"].ended.artifacts["dataset"]
    augment = {"method": "jitter", "rows": 16384, "seed": 3}
    story.step("432883dc/generate-synthetic", "generate_synthetic", original=rows, **augment)
    story.recorded("distillation.generate_synthetic")
    story.recorded("distillation.train_teacher")
    story.recorded("distillation.label_with_teacher")
    story.recorded("distillation.gather_shards")
    story.recorded("distillation.train_student.student")
    story.recorded("distillation.train_student.control")
    for task in ("import-dataset", "train-teacher", "train-student", "train-student-2"):
        story.same(f"17ab4def/{task}", f"432883dc/{task}")
    story.recorded("distillation.select_checkpoint")
    story.recorded("distillation.continuous_eval")
    imported = {"source": "digits", "validation_fraction": 0.15, "holdout_fraction": 0.2}
    story.step("8568dd0c/import-dataset", "import_dataset", **imported)
    story.recorded("distillation.overfit_batch")
    story.recorded("distillation.train_student")


def tell_surrogate(story: Story) -> None:
    story.recorded("surrogate.plan_shards")
    story.recorded("surrogate.generate_synthetic")
    story.recorded("surrogate.gather_shards")
    story.recorded("surrogate.overfit_batch.overfit")
    story.recorded("surrogate.train_student.surrogate")
    story.recorded("surrogate.certify_surrogate")
    many = story.step(
        "655a3d92/generate-synthetic", "generate_synthetic", system="heat", rows=32768
    )
    story.told["655a3d92/gather-shards"] = story.told["655a3d92/generate-synthetic"]
    assert many.artifacts["dataset"].metadata["rows"] == 32768
    story.recorded("surrogate.overfit_batch")
    story.recorded("surrogate.train_student")


SOURCES = {
    "data/april": ("2026-04-01", 1500, 0.0),
    "data/may": ("2026-05-01", 5600, 4.0),
    "steady/april": ("2026-04-01", 1500, 0.0),
    "steady/may": ("2026-05-01", 1500, 0.0),
}
"""Files of fresh rows below the bucket: their first time, how many, and how far they moved."""


def _rows(first: str, count: int, moved: float) -> pd.DataFrame:
    """Make rows whose label follows four columns, the last of them up to 2 only."""
    random = np.random.default_rng(count)
    values = random.normal(size=(count, 4))
    values[:, 3] += moved
    last = 2 - np.abs(2 - values[:, 3])
    score = 3 * (values[:, :3] @ [1.3, 1.0, 0.6] + last - last.mean())
    table = pd.DataFrame(values, columns=list("abcd"))
    table["when"] = pd.date_range(first, periods=count, freq="3min")
    table["late"] = np.where(random.random(count) < 1 / (1 + np.exp(-score)), "yes", "no")
    return table


def tell_retraining(story: Story) -> None:
    for name in ("promote_model", "record_outcome.failed"):
        given = Recording.read(f"continuous_retraining.{name}").parameters
        story.bucket.restore(given["registry"], {})
    for name, (first, count, moved) in SOURCES.items():
        body = _rows(first, count, moved).to_parquet()
        key = f"{name}.parquet"
        story.bucket.client.put_object(Bucket=story.bucket.name, Key=key, Body=body)
    _tell_first_champion(story)
    _tell_decay(story)
    _tell_outcomes(story)


def _tell_first_champion(story: Story) -> None:
    promoted = Recording.read("continuous_retraining.promote_model").parameters
    collected = _collect(story, "3f640197", as_of="2026-05-01", run_id=promoted["run_id"])
    story.recorded("continuous_retraining.overfit_batch.hard")
    first = story.recorded("continuous_retraining.train_teacher")
    _promote(story, "3f640197", first, collected, promoted)


def _tell_decay(story: Story) -> None:
    collected = story.recorded("continuous_retraining.collect_fresh")
    assert collected.parameters["status"] == "ready"
    champion = story.recorded("continuous_retraining.open_champion")
    recording = Recording.read("continuous_retraining.continuous_eval")
    judged = story.step(
        "cc693f83/continuous-eval",
        "continuous_eval",
        model=champion.artifacts["model"],
        dataset=collected.artifacts["fresh"],
        **{**recording.parameters, "step": "judge"},
    )
    assert judged.parameters["decision"] == "degraded", judged.parameters
    story.recorded("continuous_retraining.select_checkpoint")
    story.recorded("continuous_retraining.finetune_fresh")
    story.recorded("continuous_retraining.continuous_eval")


def _tell_outcomes(story: Story) -> None:
    """Tell a run that failed, one that found its champion healthy, and one without fresh rows."""
    failed = Recording.read("continuous_retraining.record_outcome.failed").parameters
    steady = {"source": "minio://mlpipeline/steady/", "registry": failed["registry"]}
    _collect(story, "80e06b6d", as_of="2026-05-01", run_id=failed["run_id"], **steady)
    story.recorded("continuous_retraining.overfit_batch")
    story.recorded("continuous_retraining.record_outcome.failed")
    between = {"registry": failed["registry"], "run_id": "between"}
    collected = _collect(story, "between", as_of="2026-05-01", run_id="between", **steady)
    first = story.told["3f640197/train-teacher"].ended
    _promote(story, "between", first, collected, between)
    for which in ("complete", "running"):
        recording = Recording.read(f"continuous_retraining.record_outcome.{which}")
        run, _, _ = recording.task.partition("/")
        run_id = recording.parameters["run_id"]
        collected = _collect(story, run, as_of="2026-05-20", run_id=run_id, **steady)
        if collected.parameters["status"] == "ready":
            own = {"registry": steady["registry"], "run_id": run_id}
            champion = story.step(f"{run}/open-champion", "open_champion", **own)
            rows = {"dataset": collected.artifacts["fresh"], "model": champion.artifacts["model"]}
            # The recorded run left it to the scores whether a challenger is tried.
            own |= {"settings": {"max_unlearned": 0.0}, "step": "judge"}
            story.step(f"{run}/continuous-eval", "continuous_eval", **rows, **own)
        story.recorded(recording.name)


def _collect(story: Story, run: str, **given: Any) -> Ended:
    asked = Recording.read("continuous_retraining.collect_fresh").parameters
    return story.step(f"{run}/collect-fresh", "collect_fresh", **{**asked, **given})


def _promote(
    story: Story, run: str, trained: Ended, collected: Ended, given: dict[str, Any]
) -> None:
    """Judge a first model, promote it, and end the run."""
    own = {name: given[name] for name in ("registry", "run_id")}
    model, rows = trained.artifacts["model"], collected.artifacts["holdout"]
    judged = story.step(
        f"{run}/continuous-eval-3",
        "continuous_eval",
        model=model,
        dataset=rows,
        **own,
        step="challenge",
    )
    assert judged.parameters["decision"] == "promote", judged.parameters
    inputs = {"model": model, "ledger": trained.artifacts["ledger"]}
    inputs["record"] = judged.artifacts["record"]
    story.step(f"{run}/promote-model-2", "promote_model", **inputs, **given)
    final_status = {"state": "COMPLETE", "error": {}, "pipelineTaskName": "exit-handler-1"}
    final_status["pipelineJobResourceName"] = run
    story.step(f"{run}/record-outcome", "record_outcome", final_status=final_status, **own)


TELLERS = {
    "continuous_retraining": tell_retraining,
    "distillation": tell_distillation,
    "surrogate": tell_surrogate,
}


def tell(pipeline: str, folder: Path, client: Any) -> Story:
    """Tell all runs of a pipeline of which there are recordings.

    Args:
        pipeline: As the recordings call it.
        folder: Where artifacts go.
        client: Of the server that `minio://` is on.
    """
    story = begin(pipeline, folder, client)
    TELLERS[pipeline](story)
    return story


def begin(name: str, folder: Path, client: Any) -> Story:
    """Begin a story; of one of that name, told earlier on the same server, nothing is left."""
    story = Story(folder=folder, bucket=Bucket(client), root=f"minio://mlpipeline/{name}")
    story.bucket.begin()
    story.bucket.restore(story.root, {})
    return story
