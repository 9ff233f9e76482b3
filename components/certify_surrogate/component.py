"""Prove that a network has become its solver or its table, or refuse to."""

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

    Rows are solved again to show that the labels repeat and that the solver is deterministic; only
    an independent reference solver shows that they are free of noise, and the certificate says
    which was shown. Conflicting duplicates and holes in the domain are looked for. The error is
    measured on every row of the dataset and, against the solver, at random points between them,
    with bounds on its quantiles that hold for any distribution (Wilks 1941).

    Args:
        model: The surrogate.
        dataset: What it was trained on: a complete grid, or samples of the domain.
        system: What labelled the rows, by name or import path; empty takes what the dataset says.
        system_args: Its arguments.
        tolerance: Largest error allowed, in the output's own unit; for classes the share of rows
            that may disagree.
        statistic: `max`, `p999` or `mean`: what the tolerance is held against.
        samples: Random points for the error between the rows of the dataset.
        exceptions: Classes only: write down every row that disagrees, and count it in the size.
        seed: Of the random points.
        strict: Fail where the certificate is refused.
        settings: Further options: docs/settings.md lists them.

    Returns:
        certificate: A folder with `certificate.json`, and `exceptions.bin` where asked for.
        metrics: Errors, size ratio and speed ratio.
        report: Solution beside surrogate, error map, worst case, size and speed, as a page.
        summary: The same in short.
        verdict: `certified` or `refused`.
        reason: What does not hold, in sentences.
    """
    return call_step("certify_surrogate", locals())
