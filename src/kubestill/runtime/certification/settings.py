"""The settings of a certificate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kubestill.runtime.base.settings import Settings
from kubestill.runtime.generation.systems.solving import OnFailure


class CertificateSettings(Settings):
    """Parameters of `certify-surrogate`; the last ones arrive in its `settings`."""

    assurance: Literal["auto", "enumerated", "proven", "sampled"] = "auto"
    """What the certificate has to rest on. `auto` takes `enumerated` where the domain is finite,
    else `sampled`; anything less than what is named here is refused."""
    tolerance: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Largest error allowed, in the output's own unit; for classes the share of the domain that may
    disagree. 0 states no tolerance, except for classes on a finite domain: there it requires every
    point to agree."""
    statistic: Literal["max", "p999", "mean"] = "max"
    """The error that is compared with the tolerance; of random points, its upper bound."""
    samples: int = Field(default=20_000, ge=0)
    """Random points of the domain, besides the dataset's rows, for the error between them."""
    exceptions: bool = False
    """Classes on a finite domain only: store every point that disagrees, and count it in the
    size."""
    on_failure: OnFailure = "stop"
    """What to do about inputs on which the system raises or gives no finite answer. `leave-out`
    limits the verdict to the others."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seeds the samples."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence of the bounds between the rows."""
    solves: int = Field(default=0, ge=0)
    """Budget: rows that the solver solves at most, for all purposes together; 0 sets no limit. What
    is needed otherwise is printed before the first is solved."""
    resolve_rows: int = Field(default=2048, ge=16)
    """Rows of the dataset that are solved again."""
    reference_rows: int = Field(default=256, ge=16)
    """How many of these the reference solver solves as well; it is usually slow."""
    bands: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Error bands of the surrogate's answers, one for each of these coverages, such as `[0.9]`:
    calibrated on half of the random points and written with a copy of the model, in the folder
    `model` of the certificate. Numbers on a sampled domain only."""
    hunts: int = Field(default=16, ge=0)
    """Worst points around which worse ones are searched for; 0 turns the search off."""
    enumerate_rows: int = Field(default=1 << 24, ge=1)
    """A finite domain of more points than this is sampled."""
    proof_seconds: float = Field(default=600.0, gt=0)
    """Longest that a proof may take, in seconds."""
    batch: int = Field(default=4096, ge=1)
    """Batch size, in rows, at which solver and surrogate are timed."""
    table_bytes: int = Field(default=0, ge=0)
    """Size of the unpacked table that is replaced, for the report; 0 uses what the system states
    about itself. The size is compared with the packed answers, if there are any."""
