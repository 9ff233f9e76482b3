"""Certify that a network can replace its solver or table."""

from typing import NamedTuple

from kfp import dsl

from kubestill.components._call import call_step
from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def certify_surrogate(
    model: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    certificate: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    system: str = "",
    system_args: dict = {},
    tolerance: float = 0.0,
    statistic: str = "max",
    samples: int = 20_000,
    exceptions: bool = False,
    seed: int = 0,
    strict: bool = True,
    settings: dict = {},
) -> NamedTuple("Outputs", [("verdict", str), ("reason", str)]):
    """Certify a surrogate: sound labels, a covered domain, an error within the tolerance.

    Rows are solved again to show that labels repeat and that the solver is deterministic; only an
    independent reference solver can show that labels are free of noise, and the certificate says
    which of these was shown. It looks for conflicting duplicates and for holes in the domain. It
    measures the error on every row of the dataset and, against the solver, at random points between
    them, with bounds on its quantiles that hold for any distribution (Wilks 1941).

    Args:
        model: The surrogate.
        dataset: The rows it was trained on: a complete grid, or samples of the domain.
        system: The system that labelled the rows, by name or import path; empty uses the one
            recorded in the dataset.
        system_args: Arguments of the system.
        tolerance: Largest error allowed, in the output's own unit; for classes the share of rows
            that may disagree.
        statistic: `max`, `p999` or `mean`: the error that is compared with the tolerance.
        samples: Random points for the error between the rows of the dataset.
        exceptions: Classes only: store every row that disagrees, and count it in the size.
        seed: Seeds the random points.
        strict: Fail if the certificate is refused.
        settings: Further options, listed in docs/settings.md.

    Returns:
        certificate: A folder with `certificate.json`, and `exceptions.bin` if requested.
        metrics: Errors, size ratio and speed ratio.
        report: Solution and surrogate, error map, worst case, size and speed, as an HTML page.
        summary: The same in short, as Markdown.
        verdict: `certified` or `refused`.
        reason: The conditions that do not hold, in sentences.
    """
    return call_step("certify_surrogate", locals())
