"""One valid file of each kind that lies in stores, and what reads it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kubestill.runtime.base.artifacts import LocalArtifact, read_record
from kubestill.runtime.base.values import parse_json
from kubestill.runtime.checkpoints import Place
from kubestill.runtime.checkpoints.commits import LedgerCell
from kubestill.runtime.checkpoints.inspection import describe, show, verify
from kubestill.runtime.checkpoints.ledger import (
    Attempt,
    Checkpoint,
    Ledger,
    LedgerEntry,
    ManifestRef,
    Notice,
    read_checkpoint_artifact,
    read_ledger_artifact,
    write_checkpoint_artifact,
)
from kubestill.runtime.checkpoints.manifest import (
    Manifest,
    Stamp,
    StateFile,
    encode_manifest,
    parse_manifest,
)
from kubestill.runtime.checkpoints.reading import digests
from kubestill.runtime.checkpoints.restore import read_some, read_tensors
from kubestill.runtime.checkpoints.state import Layout
from kubestill.runtime.datasets.canonical import fingerprint
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.parts import Part
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.generation.gathering import gather_shards
from kubestill.runtime.models.bands import Bands, Scale, read_bands
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.encoder import ColumnEncoding, Encoder
from kubestill.runtime.models.model import Model, ModelSpec
from kubestill.runtime.retraining import Champion, Claim, Golden, State, Window, open_registry
from kubestill.runtime.retraining.decision import DecisionRecord, Score, read_decision
from kubestill.runtime.retraining.history import Judgement
from kubestill.runtime.retraining.state import Contract
from kubestill.runtime.steps.failures import read_failures
from kubestill.runtime.stores.local import LocalStore
from kubestill.runtime.training.record import AttemptRecord, KeptCheckpoint, read_training

DIGEST = "0123456789abcdef" * 4
FOLDER = "000000010-a1-abcdef-1"
SCHEMA = Schema(
    columns=(
        Column(name="size", kind="numeric"),
        Column(name="colour", kind="categorical", categories=("blue", "red")),
        Column(name="field", kind="tensor", shape=(1, 2, 2)),
        Column(name="price", kind="numeric", role="target"),
    ),
    task="regression",
)
ENTRY = LedgerEntry(
    step=10,
    epoch=0.5,
    examples=80,
    kind="milestone",
    metrics={"rmse": 0.25},
    phase=1,
    bytes=100,
    manifest=ManifestRef(key=f"{FOLDER}/manifest.json", sha256=DIGEST),
    created=1.7e9,
    attempt=1,
)
ATTEMPT = Attempt(number=1, id="a1-abcdef", owner="me", beat_at=1.7e9, began=1.7e9)
LEDGER = Ledger(
    uri="/nowhere",
    experiment="exp",
    fingerprint="f00",
    sequence=3,
    attempt=replace(ATTEMPT, number=2, resumed_from=10),
    past=(ATTEMPT,),
    entries=(ENTRY,),
    finished={"training": {"steps": 10}},
    notices=(Notice(at=1.7e9, attempt=1, text="hello"),),
)
MANIFEST = Manifest(
    stamp=Stamp(step=10, epoch=0.5, examples=80, kind="recovery", metrics={}, created=1.7e9),
    files=(StateFile(key=f"{FOLDER}/state", rank=0, bytes=100, sha256=DIGEST, crc32c=7),),
    attempt=1,
    attempt_id="a1-abcdef",
    experiment="exp",
    fingerprint="f00",
    numerics={"torch": "2"},
    meta={},
    rank_meta=(),
)
WINDOW = Window(
    id="20130101T000000-ab",
    run_id="run1",
    end="2013-01-02T00:00:00+00:00",
    first="2013-01-01T00:00:00+00:00",
    last="2013-01-01T09:00:00+00:00",
    rows=9,
    judge_rows=3,
    manifest=DIGEST,
    holdout=DIGEST,
    trained_by={"train": 1},
)
CHAMPION = Champion(
    version=1,
    run_id="run1",
    window=WINDOW.id,
    promoted_at="2013-01-02T00:00:00+00:00",
    folder="models/one",
    model_digest=DIGEST,
    decision=DecisionRecord(
        decision="promote",
        reason="It is better.",
        model=DIGEST,
        baseline="",
        dataset=DIGEST,
        scores={"rmse": Score(value=1.0, low=0.9, high=1.1, rows=3)},
    ),
)
STATE = State(
    sequence=4,
    contract=Contract(timestamp="t", target="y", keys=("id",), schema=Schema(columns=())),
    champion=CHAMPION,
    previous=(CHAMPION,),
    versions=1,
    golden=Golden(source="s", folder="golden/x", fingerprint=DIGEST, rows=3),
    claim=Claim(
        run_id="run2", at=1.7e9, lease_seconds=60, window=WINDOW, pool=((WINDOW.id, "train"),)
    ),
    windows=(WINDOW,),
)

TRAINING = {
    "format": "kubestill/training/1",
    "settings": {"seed": 0},
    "loss": "mse",
    "metric": "rmse",
    "device": "cpu",
    "step_path": "fused",
    "steps": 10,
    "epochs": 0.5,
    "examples": 80,
    "rows": 160,
    "seconds": 1.5,
    "stop": {"reason": "budget", "detail": "all steps done"},
    "chosen": {"step": 10, "why": "best"},
    "curves": {
        "train": [{"step": 10, "epoch": 0.5, "examples": 80, "loss": 0.5}],
        "validation": [{"step": 10, "epoch": 0.5, "examples": 80, "rmse": 0.5}],
    },
    "phases": {"boundaries": {"structure": 4, "detail": None}, "rule": "r", "why": "w"},
    "preset": "teacher",
    "fingerprint": "f00",
    "checkpoint_uri": "/nowhere",
    "attempts": [AttemptRecord.of(ATTEMPT).model_dump(mode="json")],
    "saving": {"saves": 1},
    "checkpoints": [KeptCheckpoint.of(ENTRY).model_dump(mode="json")],
}
DECISION = {
    "format": "kubestill/decision/1",
    "decision": "promote",
    "reason": "better",
    "model": DIGEST,
    "baseline": "",
    "dataset": DIGEST,
    "scores": {"rmse": {"value": 1.0, "low": 0.5, "high": None, "rows": 9}},
}


BANDS = Bands(
    model=DIGEST,
    samples=100,
    holds="For some inputs.",
    coverages=(0.5, 0.9),
    factors=((1.0, 2.0), (3.0, 4.0)),
    scale=Scale(
        feature=(1, -1, 0, -1, -1),
        threshold=(0.5, 0.0, 0.25, 0.0, 0.0),
        left=(1, -1, 3, -1, -1),
        right=(2, -1, 4, -1, -1),
        value=(1.0, 0.5, 2.0, 1.5, 3.0),
    ),
)
LEFT_OUT = {
    "rows": 3,
    "of": 8,
    "regions": [
        {
            "reason": "raises E",
            "rows": 3,
            "first": [{"x": 0.5, "c": "a", "f": [1.0]}],
            "box": {"x": {"low": 0.5, "high": 1.0, "start": 0.25, "end": 1.0}},
            "labels": {"c": ["a"]},
        }
    ],
}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of file."""

    content: bytes
    """A valid one."""
    read: Callable[[bytes], object]
    """Reads one in all the ways in which it is read."""
    seal: Callable[[dict[str, Any]], None] | None = None
    """Makes a changed one agree with itself again, as somebody who forges it would."""
    form: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "form", json.loads(self.content))


def kinds(folder: Path) -> dict[str, Kind]:
    """Return every kind of file; readers that want it on a disk find it in `folder`."""
    for name in ("place/exp/f00", "dataset", "registry/history", "run/failures"):
        (folder / name).mkdir(parents=True)
    model, weights = _model()
    quantised, steps = _model(quantised=True)
    write_checkpoint_artifact(Checkpoint.of(LEDGER, ENTRY), str(folder / "checkpoint"))
    judged = Judgement(
        run_id="run1",
        step="judge",
        at="2013",
        decision="healthy",
        reason="It is healthy.",
        scores={"rmse": Score(value=0.5, low=None, high=1, rows=30)},
        unfit=("x: in another unit.",),
    )
    failure = {"task": "train", "error": "E", "attempt": 1, "curable": False, "at": "2013"}
    layout = Layout.of({"model/w": torch.zeros(2, 3), "none": torch.zeros(0, 3)})
    return {
        "ledger": Kind(content=LEDGER.to_bytes(), read=partial(_read_ledger, folder)),
        "manifest": Kind(
            content=encode_manifest(MANIFEST, meta='{"step": 10}', rank_meta=["null"]),
            read=partial(parse_manifest, source="manifest"),
        ),
        "checkpoint": Kind(
            content=(folder / "checkpoint").read_bytes(),
            read=_from_file(folder / "checkpoint", read_checkpoint_artifact),
        ),
        "dataset": Kind(
            content=json.dumps(_dataset().to_json()).encode(),
            read=_from_file(
                folder / "dataset/dataset.json", lambda _: _read_dataset(folder / "dataset")
            ),
            seal=_seal_dataset,
        ),
        "model": Kind(
            content=json.dumps(model.spec.to_json()).encode(),
            read=partial(_read_model, weights),
        ),
        "quantised": Kind(
            content=json.dumps(quantised.spec.to_json()).encode(),
            read=partial(_read_model, steps),
        ),
        "registry": Kind(
            content=STATE.model_dump_json().encode(), read=partial(_read_registry, folder)
        ),
        "history": Kind(
            content=judged.to_bytes(),
            read=_from_file(
                folder / "registry/history/run1-judge.json",
                lambda _: open_registry(str(folder / "registry")).runs(),
            ),
        ),
        "training": Kind(
            content=json.dumps(TRAINING).encode(),
            read=_from_file(folder / "training.json", lambda _: _read_training_record(str(folder))),
        ),
        "decision": Kind(content=json.dumps(DECISION).encode(), read=_read_decision),
        "record": Kind(
            content=json.dumps({"verdict": "pass", "checks": [{"name": "x"}]}).encode(),
            read=_from_file(folder / "record", lambda path: read_record(LocalArtifact(path))),
        ),
        "failure": Kind(
            content=json.dumps(failure).encode(),
            read=_from_file(
                folder / "run/failures/train-1.json", lambda _: read_failures(str(folder / "run"))
            ),
        ),
        "state": Kind(content=layout.header[8:].rstrip(), read=partial(_read_state, folder)),
        "bands": Kind(
            content=json.dumps(BANDS.to_json()).encode(), read=partial(_read_bands, folder)
        ),
    }


def _from_file(path: Path, read: Callable[[str], object]) -> Callable[[bytes], object]:
    def reader(content: bytes) -> object:
        path.write_bytes(content)
        return read(str(path))

    return reader


def _read_ledger(folder: Path, content: bytes) -> None:
    """Look at it from outside, and as the next attempt: neither may fail for what a file holds."""
    root, place = folder / "place", folder / "place/exp/f00"
    for old in place.iterdir():
        old.unlink()
    store = LocalStore(str(place))
    store.cell("ledger.json").swap(content, expect="0")
    assert all(row.state for row in describe(str(root)))
    assert len(show(str(root))) == 1
    verify(str(root))
    cell = LedgerCell(Place(store=store, experiment="exp", fingerprint="f00", owner="me"))
    cell.read()[0].to_bytes()
    artifact = folder / "artifact"
    artifact.write_bytes(content)
    read_ledger_artifact(str(artifact)).to_bytes()


def _read_bands(folder: Path, content: bytes) -> None:
    store = LocalStore(str(folder / "bands"))
    store.put("bands.json", content)
    bands = read_bands(store, model=DIGEST, features=2, outputs=2)
    widths = bands.widths(np.array([[0.0, 0.0], [1.0, 1.0], [np.nan, 2.0]], np.float32))
    assert all(width.shape == (3, 2) for width in widths.values())


def _read_training_record(folder: str) -> None:
    record = read_training(folder)
    assert record is not None
    json.dumps(record.to_json(), allow_nan=False)


def _read_decision(content: bytes) -> None:
    form = parse_json(content, source="decision", what="decision")
    json.dumps(read_decision(form, source="decision").to_json(), allow_nan=False)


def _dataset() -> Dataset:
    part = Part(path="part-00000.parquet", rows=5, bytes=100, sha256=DIGEST)
    provenance: dict[str, Any] = {"shard": 0, "shards": 1, "rows_from": {"complete_domain": True}}
    provenance["left_out"] = LEFT_OUT
    return Dataset(
        root="", schema=SCHEMA, parts=(part,), rows=5, blocks=(DIGEST,), provenance=provenance
    )


def _seal_dataset(form: dict[str, Any]) -> None:
    schema = Schema.from_json(form["schema"])
    form["fingerprint"] = fingerprint(schema, form["rows"], form["blocks"])


def _read_dataset(folder: Path) -> None:
    dataset = Dataset.open(str(folder))
    gather_shards([str(folder)], str(folder.parent / "index"))
    try:
        dataset.to_table()
    finally:
        dataset.to_json()


def _model(**more: Any) -> tuple[Model, Mapping[str, Tensor]]:
    encoder = Encoder(
        [
            ColumnEncoding(name="size", kind="numeric", mean=(1.0,), std=(2.0,), indicator=True),
            ColumnEncoding(name="colour", kind="categorical", categories=2),
            ColumnEncoding(name="field", kind="tensor", shape=(1, 2, 2), mean=(0.0,), std=(1.0,)),
        ]
    )
    decoder = Decoder([3.0], [4.0])
    args = {"hidden": [3]}
    model = Model.create(SCHEMA, encoder=encoder, decoder=decoder, network_args=args, **more)
    return model, model.state_dict()


@torch.no_grad()
def _read_model(weights: Mapping[str, Tensor], content: bytes) -> None:
    spec = ModelSpec.from_json(parse_json(content, source="model.json", what="model"))
    model = Model.from_spec(spec, weights=weights)
    model.load_state_dict(weights)
    rows = torch.from_numpy(np.zeros((2, spec.schema.features[0].width * 6), np.float32))
    assert model(rows).shape == (2, 1)


def _read_registry(folder: Path, content: bytes) -> None:
    path = folder / "registry/state.json"
    for old in path.parent.glob("state.json*"):
        old.unlink()
    registry = open_registry(str(folder / "registry"))
    registry.store.cell("state.json").swap(content, expect="0")
    state = registry.read()
    assert state.judged_through is not None
    state.model_dump_json().encode()
    for window in state.windows:
        datetime.fromisoformat(window.first).replace(tzinfo=UTC).timestamp()


def _read_state(folder: Path, header: bytes) -> None:
    """As a whole file, and in pieces, as a shard: both say the same."""
    content = len(header).to_bytes(8, "little") + header + bytes(24)
    (folder / "state").write_bytes(content)
    store = LocalStore(str(folder))
    sha256, crc = digests([content])
    file = StateFile(key="state", rank=0, bytes=len(content), sha256=sha256, crc32c=crc)
    tensors = read_tensors(store, file, "crc32c")
    some = read_some(store, file, "sha256", lambda name: True)
    assert some.keys() == tensors.keys()
    assert all(torch.equal(some[name], tensor) for name, tensor in tensors.items())
    assert sum(tensor.nbytes for tensor in tensors.values()) <= 24
