"""The settings of a certificate."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["CertificateSettings"]


class CertificateSettings(BaseModel):
    """Parameters of `certify-surrogate`; the last ones arrive in its `settings`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    tolerance: float = Field(default=0.0, ge=0)
    """Largest error allowed, in the output's own unit; for classes the share of rows that may
    disagree. 0 states no tolerance for numbers, and requires every row to agree for classes."""
    statistic: Literal["max", "p999", "mean"] = "max"
    """The error that is compared with the tolerance."""
    samples: int = Field(default=20_000, ge=0)
    """Random points of the domain, besides the dataset's rows, for the error between them."""
    exceptions: bool = False
    """Classes only: store every row that disagrees, and count it in the size."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seeds the samples."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence of the bounds between the rows."""
    resolve_rows: int = Field(default=2048, ge=16)
    """Rows of the dataset that are solved again."""
    reference_rows: int = Field(default=256, ge=16)
    """How many of these the reference solver solves as well; it is usually slow."""
    hunts: int = Field(default=16, ge=0)
    """Worst points around which worse ones are searched for; 0 turns the search off."""
    batch: int = Field(default=4096, ge=1)
    """Batch size, in rows, at which solver and surrogate are timed."""
    table_bytes: int = Field(default=0, ge=0)
    """Size of the table that is replaced; 0 uses the dataset's labels as float32, or what the
    system states about itself."""
