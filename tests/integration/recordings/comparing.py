"""Hold how a recorded step ended against how the same step ended in the story."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from replaying import Ended, Recording, find_component, output_parameters
from story import Story

MEASURED = re.compile(r"seconds|latency|speed")
"""Metrics that no two runs have in common."""


def summarise(ended: Ended, checkpoints: str) -> dict[str, Any]:
    """Tell how a step ended, without where its outputs and checkpoints lie and how long it took.

    Digests and fingerprints are among the metadata: where they are equal, so are models and rows.
    """
    told = {
        "parameters": ended.parameters,
        "artifacts": {
            port: {
                "metadata": {
                    name: value for name, value in one.metadata.items() if not MEASURED.search(name)
                },
                "files": _files(one.path),
            }
            for port, one in ended.artifacts.items()
        },
    }
    text = json.dumps(told, sort_keys=True, indent=1)
    # The longest first: `model` is a prefix of `model_2`.
    for port, one in sorted(ended.artifacts.items(), key=lambda item: -len(item[1].uri)):
        text = text.replace(one.uri, f"<{port}>")
    return json.loads(text.replace(checkpoints, "<checkpoints>"))


def _files(path: Path) -> list[str]:
    if not path.is_dir():
        return [path.name] if path.exists() else []
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def summarise_registry(content: Mapping[str, bytes]) -> dict[str, Any]:
    """Tell how a registry stands, without times and the ids that are made of them."""
    objects = {key.partition("/")[2]: body for key, body in content.items()}
    if "state.json" not in objects:
        return {}
    state = json.loads(objects["state.json"])
    champion = state.get("champion") or {}
    history = [
        (name.removeprefix("history/"), json.loads(body).get("outcome"))
        for name, body in sorted(objects.items())
        if name.startswith("history/")
    ]
    kept = ("run_id", "rows", "judge_rows", "holdout", "verdict", "train", "judge")
    return {
        "champion": {name: champion.get(name) for name in ("version", "run_id", "model_digest")},
        "windows": [{name: one.get(name) for name in kept} for one in state.get("windows", ())],
        "claimed by": (state.get("claim") or {}).get("run_id"),
        "history": history,
    }


def check_same(recording: Recording, ended: Ended, story: Story) -> None:
    """Assert that a recorded step ended as it did in the story."""
    told = summarise(story.told[recording.task].ended, story.root)
    assert summarise(ended, recording.parameters.get("checkpoint_uri") or story.root) == told


def check_registry(recording: Recording, story: Story) -> None:
    """Assert that a recorded step left its registry as it was left in the story."""
    if registry := recording.parameters.get("registry"):
        stands = summarise_registry(story.bucket.read(registry))
        assert stands == summarise_registry(story.told[recording.task].after)
        assert stands["history"]


def check_outputs(recording: Recording, ended: Ended) -> None:
    """Assert that every recorded output is told of, where the driver put it and nowhere else."""
    recorded = {port: one["uri"] for port, one in recording.outputs.items()}
    told = {port: one.uri for port, one in ended.artifacts.items()}
    assert recorded.items() <= told.items()
    assert ended.parameters.keys() >= recording.content["outputs"]["parameters"].keys()
    assert ended.parameters.keys() == set(output_parameters(find_component(recording.component)))
    assert not [port for port, one in ended.artifacts.items() if _nested(one.metadata)]
    uris = {name: value for name, value in ended.parameters.items() if name.endswith("_uri")}
    assert not [uri for uri in uris.values() if not re.match(r"minio://mlpipeline/", uri)]


def _nested(metadata: Mapping[str, Any]) -> bool:
    return any(not isinstance(value, str | int | float) for value in metadata.values())
