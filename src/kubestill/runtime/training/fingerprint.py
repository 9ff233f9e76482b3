"""Identify a training run: equal fingerprints give equal results, and share one place.

A retried pod, a re-run driver and a re-submitted pipeline compute the same fingerprint and so find
the checkpoints of the one before. Where a training runs, how often it saves and what it prints are
not part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from kubestill.runtime.training.augment import AugmentSettings
from kubestill.runtime.training.imitate import ImitateSettings
from kubestill.runtime.training.settings import PruneSettings, TrainingSettings

ENGINE = "kubestill/engine/4"
"""Raised whenever the engine gives other results for the same settings and data."""

# The numerics key tells whether these changed, and a resume says so; they do not make another
# training.
_NO_INFLUENCE = {
    "checkpoints",
    "deterministic",
    "device",
    # What lies there decides, and is among the data.
    "initial_weights",
    "log_seconds",
    "nodes",
    "processes",
    "rank_timeout",
    "recompute",
    "serving",
    "shard",
    "step_path",
    "threads",
    "trainjob",
}

_AS_BEFORE: dict[str, Any] = {
    "augment": AugmentSettings().model_dump(mode="json"),
    "class_weights": "",
    "imitate": ImitateSettings().model_dump(mode="json"),
    "prune": PruneSettings().model_dump(mode="json"),
    "quantise_aware": 0.0,
    "virtual_workers": 1,
}
"""Settings that came later: at these values a training run is what it was, and keeps its place."""


def fingerprint(
    settings: TrainingSettings,
    *,
    data: Mapping[str, str],
    source: str = "",
    start: str = "",
) -> str:
    """Return 32 hex digits that stand for one training run.

    Args:
        settings: Validated, so that `3` and `3.0` are the same.
        data: Fingerprint of the content by role: `dataset`, `validation`.
        source: Digest of the user's own network source.
        start: Where fine-tuning starts: digest of the checkpoint and of what is kept of it.
    """
    content = {
        "engine": ENGINE,
        "settings": describe_influence(settings),
        "data": dict(data),
        "source": source,
        "start": start,
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def describe_influence(settings: TrainingSettings) -> dict[str, Any]:
    """Return the settings that decide the result, as JSON, without those that came later."""
    told = {
        name: value
        for name, value in settings.model_dump(mode="json").items()
        if name not in _NO_INFLUENCE and _AS_BEFORE.get(name) != value
    }
    return canonical(told)


def canonical(value: Any) -> Any:
    """Return JSON data with whole floats as integers: Kubeflow turns `3` in a dict into `3.0`."""
    match value:
        case bool():
            return value
        case float() if value.is_integer():
            return int(value)
        case dict():
            return {key: canonical(item) for key, item in value.items()}  # pyright: ignore
        case list() | tuple():
            return [canonical(item) for item in value]  # pyright: ignore
        case _:
            return value
