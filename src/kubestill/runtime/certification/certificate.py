"""The certificate as a typed record, and the verdict at its head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from kubestill.errors import CorruptData
from kubestill.runtime.base.values import Number, Value, Whole, check_format, read_as
from kubestill.runtime.certification.settings import CertificateSettings
from kubestill.runtime.generation.systems.left_out import LeftOut

FORMAT = "kubestill/certificate/2"
OLDER_FORMAT = "kubestill/certificate/1"

WHERE_ANSWERED = "where the solver answers"
"""Ends a verdict that holds only there."""
IF_DECLARED = "if what was declared holds"
"""Ends a verdict that rests on a promise of the user's, which nothing checks."""

Assurance = Literal["enumerated", "proven", "sampled"]
"""What a certificate rests on: every point of a finite domain, a bound over the whole of a
continuous one, or random points."""

CODES: dict[str, str] = {
    "stochastic": "the solver gives other answers to the same inputs",
    "noisy": "the labels are not what the solver gives",
    "inaccurate": "solver and reference solver disagree",
    "conflicts": "equal inputs have unlike labels",
    "holes": "the dataset has holes",
    "extrapolated": "the domain reaches further than the dataset",
    "outside": "the dataset has rows outside of the domain",
    "incomplete": "the dataset is not all there is, and no system tells of the rest",
    "assurance": "the assurance that was asked for cannot be given",
    "error": "the surrogate errs by more than the tolerance",
}
"""Every reason to refuse."""


class Condition(Value):
    """One thing that has to hold, and whether it was shown to."""

    name: str
    status: Literal["shown", "failed", "not shown"]
    said: str
    """What was seen."""
    code: str = ""
    """A key of `CODES` where it failed."""
    remedy: str = ""


class Box(Value):
    """An axis-parallel box of the domain that holds no row."""

    share: Number
    """Of the domain, as its inputs are mapped: along a log-scaled input, of its logarithm."""
    low: dict[str, Number]
    high: dict[str, Number]


class Levels(Value):
    """The values of a discrete input: which of them have rows."""

    drawn: Whole
    of: Whole
    never: tuple[str, ...] = ()
    """The first of those without a row."""


class LookedAt(Value):
    """What was examined to say that samples cover a domain, and what was not."""

    ends: tuple[str, ...] = ()
    """Inputs whose ends and inner gaps were examined, one input at a time."""
    pairs: bool = False
    """Whether every pair of them was examined on a grid of cells."""
    empty_box: Box | None = None
    """The largest box without a row that a search found, over all `ends` together; there may be a
    larger one. None where nobody searched."""
    levels: dict[str, Levels] = Field(default_factory=dict[str, Levels])
    never: tuple[str, ...] = ()
    """Inputs that nobody examined: fields."""


class Share(Value):
    """A share of random points, and its upper bound for the whole domain."""

    observed: Number
    bound: Number


class Quantile(Value):
    """A quantile of the error over the domain."""

    quantile: Number
    observed: Number
    bound: Number | None
    """Upper bound at the certificate's confidence; None where there are too few points."""
    samples_needed: Whole


class DomainErrors(Value):
    """Errors on rows that were all compared: of the dataset, or every point of a finite domain.

    Values stored as float32 count with half of the distance to the next one: the original number
    may be that far off.
    """

    rows: Whole
    max: Number
    p999: Number
    mean: Number
    rms: Number
    standardised_rms: Number | None = None
    relative_l2: Number | None = None
    """Mean over rows of |error| / |solution|, L2 over the outputs; None for one output."""
    disagreements: Whole | None = None
    """Rows of another class; None for regression."""
    against: str = "the labels as stored"
    """What the answers were compared with."""


class SampledErrors(Value):
    """Errors at independent random points of the domain."""

    rows: Whole
    max: Number
    p999: Number
    mean: Number
    mean_bound: Number | None = None
    """Upper bound of the mean over the domain, if no point errs by more than the worst found."""
    seed: Whole
    confidence: Number
    quantiles: tuple[Quantile, ...]
    covered_by_max: Number
    """Share of the domain that errs by no more than `max`, at this confidence."""
    above_tolerance: Share | None = None
    """Share that errs by more than the tolerance; of classes, that disagrees. None without one."""


class HuntedErrors(Value):
    """What a search around the worst points found: about the maximum, and no other statistic."""

    max: Number
    around: Whole


class Proven(Value):
    """A bound on the error over the whole domain, as `proof.Proof` holds it."""

    status: Literal["proven", "refuted", "unfinished"]
    upper: Number | None
    """No point of the domain errs by more; None where the proof reached no bound at all."""
    lower: Number
    """The largest error that it met at a point."""
    at: dict[str, str]
    """That point."""
    done: Number
    """Share of the domain on which the error is proven small enough."""
    boxes: Whole
    seconds: Number
    assumptions: tuple[str, ...]
    """What the bound rests on."""
    conditional: bool
    """Whether it rests on a promise of the user's (`lipschitz`) that nothing checks."""


class Errors(Value):
    """Errors in the output's unit, by where they were measured."""

    data: DomainErrors
    off_grid: SampledErrors | None = None
    hunted: HuntedErrors | None = None
    proven: Proven | None = None


class Worst(Value):
    """The worst point found."""

    found: str
    """Where: "on the dataset", "among all points", "between the rows of the dataset"."""
    error: Number
    row: Whole | None = None
    inputs: dict[str, Any] | None = None
    solution: Number | str | None = None
    surrogate: Number | str | None = None
    output: Whole | None = None
    """Which number of a tensor."""


class Size(Value):
    """Bytes of the surrogate, and of what would be shipped in its place."""

    surrogate_bytes: Whole
    weights_bytes: Whole
    exceptions_bytes: Whole
    table: str
    """What would be shipped in its place, or why nothing would."""
    table_bytes: Whole | None = None
    """None where there is no table."""
    stated_bytes: Whole = 0
    """Size of the unpacked table, as the user or the system states it; 0 if neither does."""
    ratio: Number | None = None
    """`table_bytes` over `surrogate_bytes`."""


class TimedBatch(Value):
    """Seconds that both take for one batch."""

    batch: Whole
    solver: Number
    surrogate: Number
    ratio: Number


class Speed(Value):
    """Times of solver and surrogate, in turns and at equal batch."""

    batches: tuple[TimedBatch, ...]
    ratio: Number
    """At the largest batch."""
    batch: Whole
    threads: Whole


class Solves(Value):
    """Rows that the solver was asked for."""

    planned: dict[str, Whole]
    """By purpose, at most."""
    seconds: Number
    """For one row, as measured before."""
    done: Whole
    """Before the pictures of the report."""
    reused: Whole = 0
    """Rows that had been solved before, and were not solved again."""


class Excluded(Value):
    """The part of the domain that a certificate says nothing of: the solver fails there."""

    left_out: LeftOut
    """The inputs on which it failed, and where they lie."""
    share: Number
    """Share of all points, or of the random points, on which it fails."""
    bound: Number
    """Upper bound of that share of the domain, at the certificate's confidence."""


class Band(Value):
    """The error bands of one coverage."""

    coverage: Number
    mean: Number
    """Mean half-width over the random points, in the output's unit; of several outputs the
    largest."""
    largest: Number


class About(Value):
    """What was certified, and how."""

    coverage: str
    """`complete`: all inputs there are; `grid`; `samples`."""
    model: str
    """The digest that artifacts and registry name the model by. In a certificate without `weights`
    (format 1, before) it is that of the weights alone."""
    weights: str = ""
    dataset: str
    system: str | None
    domain: tuple[str, ...] | None
    unit: str
    parameters: Whole
    settings: CertificateSettings


class Certificate(Value):
    """What is certified, of which model, for which domain."""

    assurance: Assurance | None = None
    """None where nothing was shown of the domain, and in certificates before format 2."""
    conditions: tuple[Condition, ...]
    """The last one is about the error."""
    errors: Errors
    worst: Worst
    covered: LookedAt | None = None
    """Of samples of a domain; None for grids and tables."""
    size: Size
    speed: Speed | None = None
    solves: Solves | None = None
    """None without a system."""
    excluded: Excluded | None = None
    """None where the solver failed on no input."""
    bands: tuple[Band, ...] = ()
    """Those that were asked for; `bands.json` beside the copy of the model has all of them."""
    about: About

    @property
    def failed(self) -> list[Condition]:
        """What does not hold."""
        return [condition for condition in self.conditions if condition.status == "failed"]

    @property
    def verdict(self) -> str:
        """`certified: ` and the assurance, `measured` or `refused`.

        `measured` is a certificate with no tolerance to hold the error against. The first two end
        in `, where the solver answers` if it does not answer everywhere, and in `, if what was
        declared holds` if their proof is conditional.
        """
        if self.failed:
            return "refused"
        limited = f", {WHERE_ANSWERED}" if self.excluded else ""
        if self.conditional:
            limited += f", {IF_DECLARED}"
        if self.conditions[-1].status == "not shown":
            return f"measured{limited}"
        return f"certified: {self.assurance}{limited}" if self.assurance else "certified"

    @property
    def conditional(self) -> bool:
        """Whether it rests on a proof that holds if what the user declared of the system does."""
        proven = self.errors.proven
        return self.assurance == "proven" and proven is not None and proven.conditional

    @property
    def reason(self) -> str:
        """The verdict in sentences."""
        if self.failed:
            return " ".join(f"{c.code}: {c.said} {c.remedy}".rstrip() for c in self.failed)
        return self.conditions[-1].said

    def to_json(self) -> dict[str, Any]:
        """Return the content of `certificate.json`; what does not apply is left out."""
        form = self.model_dump(mode="json")
        for part in (form, form["errors"], form["worst"]):
            for name in [name for name, value in part.items() if value is None]:
                del part[name]
        return {"format": FORMAT, "verdict": self.verdict, "reason": self.reason, **form}


def read_certificate(form: Mapping[str, Any], *, source: str = "certificate.json") -> Certificate:
    """Read what `to_json` wrote, in this version's format or the one before.

    Args:
        form: Plain JSON, from `parse_json`.
        source: Where it comes from, for messages.

    Raises:
        CorruptData: It is no certificate.
        InvalidInput: A later version wrote it.
    """
    content = {name: form[name] for name in form if name not in ("format", "verdict", "reason")}
    if form.get("format") != OLDER_FORMAT:
        check_format(form.get("format"), FORMAT, source=source, what="certificate")
    elif not content.get("speed"):
        content.pop("speed", None)
    found = read_as(Certificate, content, source=source, what="certificate")
    if not found.conditions:
        raise CorruptData(f"{source} is not a certificate: it has no condition")
    return found
