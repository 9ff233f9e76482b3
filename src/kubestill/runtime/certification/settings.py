"""What a certificate can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["CertificateSettings"]


class CertificateSettings(BaseModel):
    """Parameters of `certify-surrogate`; the last ones arrive in its `settings`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    tolerance: float = Field(default=0.0, ge=0)
    """Largest error allowed, in the output's own unit; for classes the share of rows that may
    disagree. 0 states no tolerance for numbers, and wants all of them for classes."""
    statistic: Literal["max", "p999", "mean"] = "max"
    """Which error the tolerance is held against."""
    samples: int = Field(default=20_000, ge=0)
    """Random points of the domain, beside the dataset's own, for the error off the grid."""
    exceptions: bool = False
    """Classes only: write down every row that disagrees, and count it in the size."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the samples."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Of the bounds off the grid."""
    resolve_rows: int = Field(default=2048, ge=16)
    """Rows of the dataset that are solved again."""
    reference_rows: int = Field(default=256, ge=16)
    """Of these, rows that the reference solver solves too: it is usually slow."""
    hunts: int = Field(default=16, ge=0)
    """Worst points around which still worse ones are looked for; 0 does not look."""
    batch: int = Field(default=4096, ge=1)
    """Rows of a batch at which solver and surrogate are timed."""
    table_bytes: int = Field(default=0, ge=0)
    """Size of the table that is replaced; 0 takes the dataset's labels as float32, or what the
    system says of itself."""
