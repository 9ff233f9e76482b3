"""Datasets of a system and models of it, without any training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.certification import CertificateSettings
from kubestill.runtime.certification.certify import certify
from kubestill.runtime.datasets.decode import RawLayout, decode_features, decode_target
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.writer import DatasetWriter
from kubestill.runtime.generation.covering import Covering
from kubestill.runtime.generation.systems import System, load_system
from kubestill.runtime.generation.systems.solving import OnFailure
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.export import export_model, load_model
from kubestill.runtime.models.model import Model
from kubestill.runtime.reports.certificate import headline
from kubestill.runtime.steps.certify_surrogate import certify_surrogate

SYSTEMS = "certified_systems"


def make_dataset(
    folder: Path,
    system: System,
    *,
    method: str = "grid",
    points: int | None = 21,
    rows: int = 400,
    change: Callable[[pd.DataFrame], pd.DataFrame] = lambda frame: frame,
    told: dict[str, Any] | None = None,
    on_failure: OnFailure = "stop",
) -> LocalArtifact:
    """Cover the system's domain as generate-synthetic does, then change the rows."""
    settings: dict[str, Any] = {"scramble": True}
    if method == "grid":
        settings = {"points": system.domain.points(points, rows=rows)}
        rows = int(np.prod(list(settings["points"].values())))
    covering = Covering(system, method, settings, rows=rows, seed=0, on_failure=on_failure)
    provenance = {
        "system": f"{SYSTEMS}:{type(system).__name__}",
        "system_args": {},
        "method": method,
        "settings": settings,
    }
    provenance = {**provenance, **(told or {})}
    complete = method == "grid" and system.domain.complete(settings["points"])
    with DatasetWriter(
        str(folder), system.schema, provenance=provenance, complete_domain=complete
    ) as writer:
        writer.write(change(covering.make(0, rows)).reset_index(drop=True))
    return LocalArtifact(str(folder), metadata={"kind": "dataset"})


def make_model(folder: Path, dataset: LocalArtifact, network: str, **args: Any) -> LocalArtifact:
    """Build a network and set its only line to the least-squares solution."""
    opened = Dataset.open(dataset.path)
    layout = RawLayout(opened.schema)
    raw, target = decode_features(opened, layout), decode_target(opened, layout)
    regression = opened.schema.task == "regression"
    model = Model.create(
        opened.schema,
        encoder=Encoder.fit([raw], layout),
        decoder=Decoder.fit([target]) if regression else Decoder(),
        network=f"{SYSTEMS}:{network}",
        network_args=args,
    )
    line = getattr(model.network, "line", None)
    if line is not None:
        features = model.encoder(torch.from_numpy(np.array(raw))).double()
        wanted = model.decoder.standardise(torch.from_numpy(np.array(target))).double()
        design = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], 1)
        solved = torch.linalg.lstsq(design, wanted).solution.float()
        with torch.no_grad():
            line.weight.copy_(solved[:-1].T)
            line.bias.copy_(solved[-1])
    export_model(model, str(folder))
    return LocalArtifact(str(folder), metadata={"kind": "model"})


def examine(model: LocalArtifact, dataset: LocalArtifact, **given: Any) -> dict[str, Any]:
    """Certify without the task around it, and without its report, which takes seconds."""
    rows = Dataset.open(dataset.path)
    name = given.pop("system", "") or rows.provenance["system"]
    found = certify(
        load_model(model.path),
        rows,
        load_system(name, rows.provenance.get("system_args")) if name else None,
        CertificateSettings(**{"samples": 500, "batch": 16, **given}),
        weights=1000,
    )
    certificate = json.loads(json.dumps(found.certificate.to_json(), allow_nan=False))
    return {**certificate, **_sorted(certificate), "headline": headline(found)}


def run(
    tmp_path: Path, model: LocalArtifact, dataset: LocalArtifact, **options: Any
) -> dict[str, Any]:
    """Call the task; return the certificate it wrote."""
    names = ("certificate", "metrics", "report", "summary")
    outputs = {name: LocalArtifact(str(tmp_path / "out" / name)) for name in names}
    given = {"samples": 2000, "strict": False, "settings": {"batch": 64}, **options}
    verdict, reason = certify_surrogate(model=model, dataset=dataset, **outputs, **given)
    with open(tmp_path / "out" / "certificate" / "certificate.json", encoding="utf-8") as file:
        certificate = json.load(file)
    assert (certificate["verdict"], certificate["reason"]) == (verdict, reason)
    certificate["metrics"] = outputs["metrics"].metadata
    with open(tmp_path / "out" / "report", encoding="utf-8") as file:
        certificate["html"] = file.read()
    return {**certificate, **_sorted(certificate)}


def _sorted(certificate: dict[str, Any]) -> dict[str, Any]:
    conditions = certificate["conditions"]
    return {
        "failed": {c["code"] for c in conditions if c["status"] == "failed"},
        "statuses": {c["name"]: c["status"] for c in conditions},
    }


def system(name: str, **args: Any) -> System:
    return load_system(f"{SYSTEMS}:{name}", args)
