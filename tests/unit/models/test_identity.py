"""One digest identifies a model, wherever it is named, and what was named before is still known."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kubestill.errors import CorruptData
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.certification.certify import certify
from kubestill.runtime.certification.settings import CertificateSettings
from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.evaluation.inputs import check_inputs
from kubestill.runtime.generation.labelling import TeacherCopy, label
from kubestill.runtime.models.export import export_model, load_model
from kubestill.runtime.models.identity import read_digest
from kubestill.runtime.retraining import Champion, State, open_registry
from kubestill.runtime.retraining.champions import check_champion, copy_model
from kubestill.runtime.retraining.decision import DecisionRecord
from kubestill.runtime.stores import open_store

OLDER = Path(__file__).parents[2] / "older"
MODEL = str(OLDER / "model")
RECORDED = json.loads((OLDER / "recorded.json").read_text())


@pytest.fixture
def rows(tmp_path: Path) -> Dataset:
    """Rows that the older model can read."""
    x = np.linspace(-1, 1, 8, dtype=np.float32)
    folder = str(tmp_path / "rows")
    with DatasetWriter(folder, load_model(MODEL).spec.schema) as writer:
        writer.write(pd.DataFrame({"x": x, "y": 3 * x}))
    return writer.dataset


def certified(rows: Dataset, tmp_path: Path) -> str:
    settings = CertificateSettings()
    found = certify(load_model(MODEL), rows, None, settings, weights=1)
    return found.certificate.to_json()["about"]["model"]


def evaluated(rows: Dataset, tmp_path: Path) -> str:
    given: dict[str, Any] = {"thresholds": {}, "slices": (), "registry": "", "run_id": ""}
    model = LocalArtifact(MODEL, metadata={"kind": "model"})
    dataset = LocalArtifact(rows.root, metadata={"kind": "dataset"})
    job = check_inputs({"model": model}, dataset, None, **given, step="", settings={})
    return job.candidates["model"].digest


def labelled(rows: Dataset, tmp_path: Path) -> str:
    copy = TeacherCopy(load_model(MODEL))
    return label([copy], rows, str(tmp_path / "labelled")).provenance["teacher"]


def promoted(rows: Dataset, tmp_path: Path) -> str:
    return read_digest(open_store(MODEL))


def exported_again(rows: Dataset, tmp_path: Path) -> str:
    return export_model(load_model(MODEL).model, str(tmp_path / "again")).digest


@pytest.mark.parametrize("name", [certified, evaluated, labelled, promoted, exported_again])
def test_everybody_names_a_model_by_the_digest_of_its_spec(
    name: Callable[[Dataset, Path], str], rows: Dataset, tmp_path: Path
) -> None:
    content = (OLDER / "model" / "model.json").read_bytes()
    assert name(rows, tmp_path) == hashlib.sha256(content).hexdigest()


def test_a_registry_from_before_still_holds_its_champion(tmp_path: Path) -> None:
    """It recorded the same digest: what earlier versions promoted stays champion."""
    registry = open_registry(str(tmp_path / "registry"))
    copy_model(registry, MODEL, "models/w1")
    champion = Champion(
        version=1,
        run_id="r1",
        window="w1",
        promoted_at="2026-11-28T00:00:00+00:00",
        folder="models/w1",
        model_digest=(digest := RECORDED["registry"]),
        decision=DecisionRecord(
            decision="promote", reason="It is better.", model=digest, baseline="", dataset="d"
        ),
    )
    state = State(champion=champion)
    check_champion(registry, state)
    (tmp_path / "registry" / "models" / "w1" / "model" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(CorruptData, match=r"is not what model\.json names"):
        check_champion(registry, state)


def test_a_certificate_from_before_names_the_weights(rows: Dataset) -> None:
    """Its `model` is what a certificate of today calls `weights`."""
    older = json.loads((OLDER / "certificate.json").read_text())
    weights = hashlib.sha256((OLDER / "model" / "model.safetensors").read_bytes()).hexdigest()
    assert older["about"]["model"] == RECORDED["certificate"] == weights
    assert "weights" not in older["about"]
    today = certify(load_model(MODEL), rows, None, CertificateSettings(), weights=1)
    assert today.certificate.to_json()["about"]["weights"] == weights


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", b"other", r"model\.safetensors is not what model\.json names"),
        ("model.safetensors", None, "a file of the model is gone"),
        ("model.json", b"{", r"model\.json is not a model"),
        ("model.json", b"{}", r"names: its SHA-256 is \w{64}, not None"),
        ("model.json", None, "a file of the model is gone"),
    ],
    ids=["other weights", "no weights", "no JSON", "names none", "no spec"],
)
def test_a_damaged_model_has_no_digest(
    tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    shutil.copytree(MODEL, tmp_path / "model")
    path = tmp_path / "model" / file
    path.unlink() if content is None else path.write_bytes(content)
    for store, folder in ((str(tmp_path), "model"), (str(tmp_path / "model"), "")):
        with pytest.raises(CorruptData, match=message):
            read_digest(open_store(store), folder)
