"""Task of the component `overfit-batch`: check in seconds whether a training run can learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from kubestill.errors import CorruptData, InvalidInput, Problems, Refused, nearest
from kubestill.runtime.base.artifacts import Artifact, MetricsArtifact, write_record
from kubestill.runtime.base.settings import validate
from kubestill.runtime.base.trust import NETWORKS, TRUST, check_trusted
from kubestill.runtime.datasets.cache import load_decoded
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.datasets.decode import RawLayout
from kubestill.runtime.evaluation.slices import check_slices
from kubestill.runtime.evaluation.thresholds import parse_thresholds
from kubestill.runtime.reports.overfit_batch import gate_report
from kubestill.runtime.sanity import GateData, GateFindings, GateSettings, examine
from kubestill.runtime.steps.pages import write_pages
from kubestill.runtime.steps.train_student import MODES
from kubestill.runtime.steps.train_teacher import TYPED
from kubestill.runtime.training.device import arithmetic
from kubestill.runtime.training.job import Job, check_job
from kubestill.runtime.training.prepare import prepare


def overfit_batch(
    *,
    dataset: Artifact,
    metrics: MetricsArtifact,
    report: Artifact,
    summary: Artifact,
    findings: Artifact,
    validation: Artifact | None = None,
    mode: str = "hard",
    temperature: float = 4.0,
    hard_weight: float = 0.1,
    network: str = "mlp",
    network_args: dict[str, Any] = {},  # noqa: B006
    epochs: float = 20.0,
    steps: int = 0,
    batch_size: int = 128,
    optimizer: str = "AdamW",
    learning_rate: float = 0.001,
    schedule: str = "CosineAnnealingLR",
    seed: int = 0,
    device: str = "auto",
    settings: dict[str, Any] = {},  # noqa: B006
    strict: bool = True,
    gate: dict[str, Any] = {},  # noqa: B006
    thresholds: dict[str, Any] = {},  # noqa: B006
    slices: list[str] = [],  # noqa: B006
) -> tuple[str, str]:
    """Overfit one small batch, or find out why that fails; the component documents the parameters.

    Returns:
        verdict: `pass`, `fail` or `undetermined`.
        reason: Why, in sentences.

    Raises:
        InvalidInput: Everything wrong with parameters and data, at once.
        Refused: The verdict is not `pass`, and `strict` is set.
    """
    given = locals()
    typed = {name: given[name] for name in ("temperature", "hard_weight", *TYPED)}
    problems = Problems()
    job, asked = check_gate(
        dataset, validation, mode, typed, settings, gate, thresholds, slices, problems=problems
    )
    problems.raise_if_any()
    assert job
    assert asked
    found = examine_job(job, asked)
    write_record(findings, "findings", found.to_json())
    write_pages(gate_report(found, describe(job, asked)), report, summary, job.dataset)
    log_facts(found, metrics)
    for check in found.checks:
        print(f"{check.status}: {check.name}. {check.said}", flush=True)
    print(f"{found.verdict}: {found.reason}", flush=True)
    if strict and found.verdict != "pass":
        raise Refused(f"overfit-batch: {found.verdict}. {found.reason}")
    return found.verdict, found.reason


def check_gate(
    dataset: Artifact,
    validation: Artifact | None,
    mode: str,
    typed: Mapping[str, Any],
    settings: Mapping[str, Any],
    gate: Mapping[str, Any],
    thresholds: Mapping[str, Any],
    slices: Sequence[str],
    *,
    problems: Problems,
    here: bool = True,
) -> tuple[Job | None, GateSettings | None]:
    """Note every problem that can be found without reading features, and return the checked job.

    Takes the arguments of `overfit_batch`, with its typed training parameters in `typed`. Where the
    gate will run on another machine than this one (`here`), there is no job to return.
    """
    asked = None
    if mode not in MODES:
        problems.add("mode", mode, nearest(mode, MODES))
    with problems.collect():
        asked = validate(GateSettings, gate, prefix="gate.")
    job = check_job(
        MODES.get(mode, MODES["hard"]),
        typed,
        settings,
        problems,
        dataset=dataset,
        validation=validation,
        validation_known=validation is not None,
        here=here,
    )
    rows = None
    with suppress(InvalidInput, CorruptData):  # check_job has noted it
        rows = Dataset.open(dataset.path)
    if rows and rows.rows == 1:
        problems.add("dataset", "1 row", "give at least two")
    if rows and rows.schema.task:
        with problems.collect():
            parse_thresholds(thresholds, rows.schema.task)
        with problems.collect():
            check_slices(slices, rows.schema)
    return job, asked


def check_vouched(network: str, problems: Problems) -> None:
    """Note a network that later steps would refuse to import, before anything is trained."""
    try:
        check_trusted(network, field="network", group=NETWORKS)
    except InvalidInput:
        package = network.partition(":")[0].partition(".")[0]
        remedy = (
            f"the steps that load the trained model import only what their image trusts: set "
            f"{TRUST}={package} there (ENV {TRUST}={package}; SECURITY.md)"
        )
        problems.add("network", network, remedy)


def examine_job(job: Job, gate: GateSettings) -> GateFindings:
    """Run the gate on a checked training job."""
    with arithmetic(job.settings):
        # Whether anything can be learned does not depend on what a row counts for.
        prepared = prepare(
            job.dataset,
            None,
            job.settings,
            job.machine,
            loss_name=job.loss_name,
            weighted=False,
        )
        decoded = load_decoded(job.dataset, RawLayout(job.dataset.schema))
        rows = GateData(
            labels=decoded.target, soft=decoded.soft, complete=job.dataset.complete_domain
        )
        return examine(prepared, rows, job.settings, job.machine, gate)


def describe(job: Job, gate: GateSettings) -> dict[str, Any]:
    """Return the settings of the gate and its training run, for the report."""
    return {
        "network": job.settings.network,
        "arguments": job.settings.network_args,
        "loss": job.loss_name,
        "optimizer": job.settings.optimizer,
        "learning rate": job.settings.learning_rate,
        "device": job.machine.describe(),
        "dataset rows": job.dataset.rows,
        "gate": gate.model_dump(),
    }


def log_facts(findings: GateFindings, metrics: MetricsArtifact, prefix: str = "") -> None:
    """Record the gate's finite numbers as metrics."""
    found = (
        {**findings.facts, "steps_to_floor": findings.learned.steps[-1]}
        if findings.learned
        else findings.facts
    )
    for name, value in found.items():
        if isinstance(value, int | float) and abs(value) < float("inf"):
            metrics.log_metric(prefix + name, float(value))
    metrics.metadata["kind"] = "metrics"
