"""Task of the component `plan-shards`: list a fan-out's shards, and check what comes after it."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kubestill.errors import InvalidInput, Problem, Problems, counted

if TYPE_CHECKING:
    import pandas as pd

    from kubestill.runtime.generation.request import Request
    from kubestill.runtime.generation.systems.system import System

MAX_SHARDS = 128
"""Every shard adds nodes to a workflow, and a workflow has room for about 160 of them."""
PROBED = 8
"""Rows that a system solves here."""
PROBED_MORE = 64
"""Rows that it solves where it fails on all of those."""


def plan_shards(
    shards: int = 1,
    method: str = "",
    rows: int = 0,
    settings: dict[str, Any] = {},  # noqa: B006
    system: str = "",
    system_args: dict[str, Any] = {},  # noqa: B006
    on_failure: str = "stop",
    network: str = "",
    network_args: dict[str, Any] = {},  # noqa: B006
    steps: int = 0,
    batch_size: int = 128,
    learning_rate: float = 0.001,
    student_settings: dict[str, Any] = {},  # noqa: B006
    assurance: str = "auto",
    tolerance: float = 0.0,
    statistic: str = "max",
    samples: int = 20_000,
    exceptions: bool = False,
    certificate_settings: dict[str, Any] = {},  # noqa: B006
    gate: dict[str, Any] = {},  # noqa: B006
) -> list[int]:
    """List the shard indices of a fan-out, after its system has solved a few rows.

    The component documents the parameters.

    Raises:
        InvalidInput: Everything that a later step would refuse, before any shard starts.
    """
    problems = Problems()
    if not 1 <= shards <= MAX_SHARDS:
        problems.add("shards", shards, f"give 1 to {MAX_SHARDS}")
    request = numerical = probed = None
    if method or system:
        # Only here: a plan without it starts in a fraction of the time.
        from kubestill.runtime.generation.request import parse_request

        asked = {"method": method or "auto", "rows": rows, "settings": settings}
        asked |= {"system": system, "system_args": system_args} if system else {}
        asked |= {"on_failure": on_failure}
        with problems.collect():
            request, numerical = parse_request(asked, has_original=not system)
    if request and numerical and not problems and request.method != "adaptive" and request.rows:
        with problems.collect():
            probed = _probe(request, numerical, shards)
    if network:
        typed = {"network": network, "network_args": network_args, "steps": steps}
        typed |= {"batch_size": batch_size, "learning_rate": learning_rate}
        certificate = {"assurance": assurance, "tolerance": tolerance, "statistic": statistic}
        certificate |= {"samples": samples, "exceptions": exceptions, "on_failure": on_failure}
        _check_later(
            probed, typed, student_settings, gate, certificate, certificate_settings, problems
        )
    problems.raise_if_any()
    return list(range(shards))


def _check_later(
    probed: _Probed | None,
    typed: dict[str, Any],
    student_settings: dict[str, Any],
    gate: dict[str, Any],
    certificate: dict[str, Any],
    certificate_settings: dict[str, Any],
    problems: Problems,
) -> None:
    """Note what gate, train-student and certify-surrogate would refuse once all rows are solved."""
    import inspect
    import math
    import tempfile

    from kubestill.runtime.base.artifacts import LocalArtifact
    from kubestill.runtime.base.settings import check_overlap, read
    from kubestill.runtime.certification import CertificateSettings
    from kubestill.runtime.certification.certify import check_bands, check_exceptions
    from kubestill.runtime.certification.plan import finite_points, plan_rows
    from kubestill.runtime.datasets.writer import DatasetWriter
    from kubestill.runtime.generation.systems.kept import SLOW
    from kubestill.runtime.steps.overfit_batch import check_gate, check_vouched
    from kubestill.runtime.steps.train_student import stop_settings, train_student
    from kubestill.runtime.steps.train_teacher import TYPED

    found = Problems()
    own = check_overlap(certificate_settings, certificate, found)
    asked = {**certificate_settings, **certificate}
    parsed = read(CertificateSettings, asked, found, prefixed=own)
    if parsed and probed:
        classes = bool(probed.system.output.classes)
        if parsed.exceptions:
            check_exceptions(probed.system, parsed, classes=classes, problems=found)
        check_bands(probed.system, parsed, classes=classes, problems=found)
        finite = finite_points(probed.system, parsed)
        points = math.prod(finite.values()) if finite else None
        with found.collect():
            plan = plan_rows(probed.system, probed.seconds, probed.of, parsed, points=points)
            ahead = plan.domain or plan.samples
            said = f"; the shards solve {ahead:,} of them" if probed.seconds >= SLOW else ""
            print(f"certify-surrogate, at that rate: {plan.said}{said}", flush=True)
    take(found, "certificate_settings", problems)
    found = Problems()
    stop = stop_settings("overfit", certificate["tolerance"], certificate["statistic"], found)
    parameters = inspect.signature(train_student).parameters
    typed = {**{name: parameters[name].default for name in TYPED}, **typed}
    with tempfile.TemporaryDirectory(prefix="kubestill-plan-") as folder:
        if probed:
            with DatasetWriter(folder, probed.system.schema, provenance={}) as writer:
                writer.write(probed.rows)
        dataset = LocalArtifact(folder, metadata={"kind": "dataset"})
        student = {**stop, **student_settings}
        check_gate(
            dataset, None, "overfit", typed, student, gate, {}, [], problems=found, here=False
        )
    check_vouched(typed["network"], found)
    take(found, "student_settings", problems)


def take(found: Problems, settings: str, problems: Problems) -> None:
    """Note what was found of a later step, in the words of its own parameters here.

    Args:
        found: As that step says it.
        settings: What its `settings` are called here.
        problems: Takes what is not noted yet.
    """
    noted = {problem.field for problem in problems}
    for problem in found:
        field = re.sub(r"^settings\b", settings, problem.field)
        # What the rows are is reported where they are requested.
        if field not in noted and field != "dataset":
            problems.add(field, problem.value, problem.remedy)


@dataclass(frozen=True)
class _Probed:
    """A system that has solved a few rows."""

    system: System
    rows: pd.DataFrame
    """With their labels."""
    seconds: float
    """For one row."""
    of: int
    """Rows that there are to be."""


def _probe(request: Request, system: System, shards: int) -> _Probed:
    """Solve a few rows twice: whether it works, how long it takes, and that nothing is random.

    Raises:
        InvalidInput: The system fails, or gives other bits for the same inputs.
    """
    import numpy as np
    import pandas as pd

    from kubestill.runtime.generation.covering import Covering, labelled
    from kubestill.runtime.reports.numbers import duration

    rows = Covering(
        system,
        request.method,
        request.settings,
        rows=request.rows,
        seed=request.seed,
        on_failure=request.on_failure,
    )
    first = inputs = None
    # Where inputs may be left out, the first few may be just those.
    for most in (PROBED, PROBED_MORE):
        count = min(most, request.rows)
        if request.method == "grid":
            # The first rows of a grid lie side by side, at the edge of its domain.
            places = np.unique(np.linspace(0, request.rows - 1, count).astype(np.int64))
            inputs = pd.concat([rows.inputs(at, at + 1) for at in places], ignore_index=True)
        else:
            inputs = rows.inputs(0, count)
        first = rows.solving(inputs)
        if not np.isnan(first).all():
            break
    assert first is not None
    assert inputs is not None
    if np.isnan(first).all():
        remedy = f"nothing is left: {rows.solving.failures.record(rows.solving.asked).said}"
        raise InvalidInput([Problem("system", system.name, remedy)])
    # Timed the second time: the first may load or compile something.
    began = time.perf_counter()
    second = rows.solving(inputs)
    seconds = time.perf_counter() - began
    if not np.array_equal(first, second, equal_nan=True):
        remedy = "gave the same inputs other labels the second time; take its randomness out"
        raise InvalidInput([Problem("system", system.name, remedy)])
    count, failed = len(inputs), int(np.isnan(first[:, 0]).sum())
    whole = duration(seconds / count * request.rows / shards)
    print(
        f"{counted(count, 'row')} solved in {duration(seconds)}; at that rate each of "
        f"{counted(shards, 'shard')} with {request.rows / shards:,.0f} rows takes {whole} at most"
        + (f"; the solver fails on {failed} of them, which are left out" if failed else ""),
        flush=True,
    )
    solved = labelled(system.output, inputs, first)
    return _Probed(system, solved, seconds / count, request.rows)
