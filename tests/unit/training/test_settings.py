import hashlib
import json

import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.training.fingerprint import ENGINE, canonical, fingerprint
from kubestill.runtime.training.settings import parse_settings


def problems(typed: dict, settings: dict | None = None) -> dict[str, str]:
    with pytest.raises(InvalidInput) as caught:
        parse_settings(typed, settings or {})
    return {problem.field: problem.remedy for problem in caught.value.problems}


def test_whole_floats_are_integers() -> None:
    parsed = parse_settings({"batch_size": 64.0, "steps": 10.0}, {"threads": 1.0})
    assert (parsed.batch_size, parsed.steps, parsed.threads) == (64, 10, 1)


@pytest.mark.parametrize(
    ("typed", "field", "hint"),
    [
        ({"optimizer": "Adm"}, "optimizer", "'Adam'"),
        ({"schedule": "CosineAnealingLR"}, "schedule", "'CosineAnnealingLR'"),
        ({"optimizer": "Muon"}, "optimizer", "nothing but matrices"),
        ({"schedule": "ReduceLROnPlateau"}, "schedule", "follows a metric"),
        ({"loss": "cross_entrpy"}, "loss", "'cross_entropy'"),
        ({"batch_size": 0}, "batch_size", "1 or more"),
        ({"batch_size": 1.5}, "batch_size", "whole number"),
        ({"learning_rate": "fast"}, "learning_rate", "number"),
        ({"temperature": 0}, "temperature", "above 0"),
        ({"hard_weight": 1.5}, "hard_weight", "in [0, 1]"),
        ({"seed": -1}, "seed", "in [0, "),
        ({"optimizer_args": {"weight_decai": 1}}, "optimizer_args.weight_decai", "'weight_decay'"),
        ({"optimizer_args": {"betas": [2.0, 0.9]}}, "optimizer_args", "beta"),
        ({"checkpoints": {"keep_lst": 2}}, "checkpoints.keep_lst", "unknown key"),
        ({"nodes": 3, "virtual_workers": 2}, "settings.nodes", "set virtual_workers to 4"),
        (
            {"nodes": 2, "virtual_workers": 4, "processes": 3},
            "settings.processes",
            "use 2 or a multiple",
        ),
        ({"trainjob": {"gpus": 4}}, "trainjob.gpus", "unknown key"),
        ({"trainjob": {"env": {"PET_NNODES": "2"}}}, "trainjob.env", "Kubeflow Trainer"),
        ({"trainjob": {"secrets": {"A": "key"}}}, "trainjob.secrets", "give 'secret/key'"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_problem_names_field_and_remedy(typed: dict, field: str, hint: str) -> None:
    assert hint in problems(typed)[field]


def test_everything_is_reported_at_once() -> None:
    found = problems(
        {"optimizer": "Adm", "batch_size": 0}, {"patiense": 3, "batch_size": 4, "precision": "f8"}
    )
    assert set(found) == {
        "optimizer",
        "batch_size",
        "settings.batch_size",
        "settings.patiense",
        "settings.precision",
    }
    assert "'patience'" in found["settings.patiense"]


def identity(typed: dict, settings: dict | None = None, **changes) -> str:
    base = {"data": {"dataset": "d1", "validation": "v1"}, "source": "s", "start": ""}
    return fingerprint(parse_settings(typed, settings or {}), **{**base, **changes})


@pytest.mark.parametrize(
    ("typed", "settings"),
    [
        ({"learning_rate": 0.01}, {}),
        ({"seed": 1}, {}),
        ({"network_args": {"hidden": [64]}}, {}),
        ({"batch_size": 64}, {}),
        ({}, {"patience": 3}),
        ({}, {"precision": "bf16"}),
        ({}, {"shuffle": "blocks"}),
        ({}, {"milestone_every": 2}),
        ({}, {"virtual_workers": 2}),
    ],
    ids=lambda value: next(iter(value), None),
)
def test_what_makes_another_training(typed: dict, settings: dict) -> None:
    assert identity(typed, settings) != identity({})


@pytest.mark.parametrize(
    "change",
    [{"data": {"dataset": "d2"}}, {"source": "t"}, {"start": "c"}],
    ids=["data", "source", "start"],
)
def test_data_source_and_start_make_another_training(change: dict) -> None:
    assert identity({}, **change) != identity({})


@pytest.mark.parametrize(
    ("typed", "settings"),
    [
        ({"device": "cpu"}, {}),
        ({"batch_size": 128.0}, {}),
        ({"network_args": {"b": 2.0, "a": {"d": 1, "c": 2}}}, {}),
        ({}, {"checkpoints": {"recovery_seconds": 5, "keep_last": 9}}),
        ({}, {"log_seconds": 1}),
        ({}, {"serving": "torch"}),
        ({}, {"threads": 1, "step_path": "autograd", "deterministic": False}),
        ({}, {"virtual_workers": 1, "rank_timeout": 5}),
    ],
    ids=[
        "device",
        "float",
        "order-of-keys",
        "checkpoints",
        "logging",
        "serving",
        "numerics",
        "one",
    ],
)
def test_what_must_not_make_another_training(typed: dict, settings: dict) -> None:
    plain = {"network_args": {"a": {"c": 2, "d": 1}, "b": 2}} if "network_args" in typed else {}
    assert identity(typed, settings) == identity(plain)


def test_processes_are_no_part_of_a_training_run_and_micro_batches_are() -> None:
    shared = [identity({}, {"virtual_workers": 4, "processes": count}) for count in range(5)]
    assert len(set(shared)) == 1
    assert identity({}, {"virtual_workers": 8}) != shared[0]


def test_settings_that_came_later_leave_earlier_training_runs_in_their_places() -> None:
    """The fingerprint that version 0.1 gave to these settings, by its own code."""
    settings = parse_settings({}, {}).model_dump(mode="json")
    later = {"virtual_workers", "processes", "rank_timeout", "class_weights", "nodes", "trainjob"}
    later |= {"augment", "imitate", "prune", "quantise_aware"}
    ignored = {"checkpoints", "deterministic", "device", "log_seconds", "serving"}
    ignored |= {"step_path", "threads", "recompute", "shard", "initial_weights"}
    content = {
        "engine": ENGINE,
        "settings": canonical({k: v for k, v in settings.items() if k not in later | ignored}),
        "data": {"dataset": "d1", "validation": "v1"},
        "source": "s",
        "start": "",
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert identity({}) == hashlib.sha256(text.encode()).hexdigest()[:32]


@pytest.mark.parametrize(
    ("typed", "settings", "field", "says"),
    [
        ({}, {"virtual_workers": 6}, "settings.virtual_workers", "not a power of two; use 4 or 8"),
        ({}, {"virtual_workers": 0}, "settings.virtual_workers", "1 or more"),
        ({"batch_size": 3}, {"virtual_workers": 4}, "settings.virtual_workers", "has 3 rows"),
        ({}, {"processes": 3}, "settings.processes", "set virtual_workers to 4"),
        ({}, {"virtual_workers": 2, "processes": 3}, "settings.processes", "one of 2"),
        (
            {"device": "cuda:0"},
            {"virtual_workers": 2, "processes": 2},
            "device",
            "one GPU, and 2 processes",
        ),
        ({}, {"rank_timeout": 0}, "settings.rank_timeout", "above 0"),
    ],
)
def test_what_processes_cannot_share(typed: dict, settings: dict, field: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_settings(typed, settings)
    (problem,) = caught.value.problems
    assert problem.field == field
    assert says in problem.remedy


@pytest.mark.parametrize(
    ("typed", "settings", "says"),
    [
        ({}, {"precision": "bf16"}, "whole numbers need float32"),
        ({}, {"step_path": "fused"}, "has no layers in 8 bits"),
        ({}, {"finish_steps": 3}, "L-BFGS needs a smooth loss"),
        ({}, {"recompute": "auto"}, "ranges would follow each batch twice"),
    ],
)
def test_what_layers_in_8_bits_have_no_place_for(typed: dict, settings: dict, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        parse_settings(typed, {"quantise_aware": 0.5, **settings})
    with pytest.raises(InvalidInput, match=r"quantise_aware.*= 1\.5"):
        parse_settings(typed, {"quantise_aware": 1.5})
