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
    assurance: str = "auto",
    tolerance: float = 0.0,
    statistic: str = "max",
    samples: int = 20_000,
    exceptions: bool = False,
    on_failure: str = "stop",
    seed: int = 0,
    strict: bool = True,
    checkpoint_uri: str = "",
    settings: dict = {},
) -> NamedTuple("Outputs", [("verdict", str), ("reason", str)]):
    """Certify a surrogate: sound labels, a covered domain, an error within the tolerance.

    A certificate says what it rests on. `enumerated`: every point of a finite domain is answered
    and held against the system's own float64 numbers. `proven`: a bound over the whole domain,
    rounding included, that no point exceeds; the system needs an enclosure. `sampled`: a share of
    the domain within the tolerance, at a confidence that holds for any distribution of the error
    (Wilks 1941), and the worst point found, between the rows and at corners of the domain too.

    Rows are solved again to show that labels repeat and that the solver is deterministic; only an
    independent reference solver can show that labels are free of noise, and the certificate says
    which of these was shown. It looks for conflicting duplicates and for holes in the domain, and
    says in which dimensions nobody looked.

    Args:
        model: The surrogate.
        dataset: The rows it was trained on: a complete grid, or samples of the domain.
        system: The system that labelled the rows, by name or import path; empty uses the one
            recorded in the dataset.
        system_args: Arguments of the system.
        assurance: `enumerated`, `proven` or `sampled`: less than that is refused. `auto` takes
            `enumerated` where the domain is finite, else `sampled`.
        tolerance: Largest error allowed, in the output's own unit; for classes the share of the
            domain that may disagree. 0 states no tolerance, and the verdict is `measured`; only
            for classes on a finite domain it requires every point to agree.
        statistic: `max`, `p999` or `mean`: the error that is compared with the tolerance; of
            random points, its upper bound.
        samples: Random points for the error between the rows of the dataset.
        exceptions: Classes on a finite domain only: store every point that disagrees, and count it
            in the size.
        on_failure: What to do about inputs on which the system raises or gives no finite answer:
            `stop`, or `leave-out` them. The verdict then holds for the other inputs, says so, and
            describes where the system fails.
        seed: Seeds the random points.
        strict: Fail if the certificate is refused.
        checkpoint_uri: Root, local, gs:// or s3://, below which the rows of a slow system are kept
            once solved, so that no retry solves them again; empty: beside the certificate.
        settings: Further options, listed in docs/settings.md.

    Returns:
        certificate: A folder with `certificate.json`, and `exceptions.bin` if requested.
        metrics: Errors, size ratio and speed ratio.
        report: Solution and surrogate, error map, worst case, size and speed, as an HTML page.
        summary: The same in short, as Markdown.
        verdict: `certified: enumerated`, `certified: proven`, `certified: sampled`, `measured` or
            `refused`; all but the last may end in `, where the solver answers`, and a proof on
            declared slopes in `, if what was declared holds`.
        reason: What was shown, or the conditions that do not hold, in sentences.
    """
    return call_step("certify_surrogate", locals())
