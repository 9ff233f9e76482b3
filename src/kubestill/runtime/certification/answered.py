"""Which part of the domain the solver answers: that is what a certificate is about."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kubestill.runtime.base.rounding import at_most, exact_percent
from kubestill.runtime.certification.certificate import Condition, Excluded
from kubestill.runtime.certification.coverage import Unanswered
from kubestill.runtime.certification.errors import OffGrid
from kubestill.runtime.certification.labels import row_hashes
from kubestill.runtime.certification.quantiles import share_above
from kubestill.runtime.certification.settings import CertificateSettings
from kubestill.runtime.certification.truth import Truth
from kubestill.runtime.datasets.decode import decode_features
from kubestill.runtime.generation.systems.left_out import LeftOut


def unanswered(truth: Truth, off_grid: OffGrid | None, missing: int) -> Unanswered | None:
    """Return what no dataset can hold; None where the solver answered every input.

    Args:
        truth: With the inputs on which its solver failed.
        off_grid: The random points that were solved.
        missing: Points that a grid lacks and that may be solved to see why.
    """
    failed, layout = truth.failed, truth.predictor.layout
    if failed is None and not missing:
        return None
    raw = np.zeros((0, layout.width), np.float32)
    if failed is not None:
        raw = decode_features(failed, layout)
    known, left = row_hashes(raw), missing

    def fails(inputs: pd.DataFrame) -> NDArray[np.bool_]:
        nonlocal left
        failed = np.isin(row_hashes(decode_features(inputs, layout)), known)
        asked = np.flatnonzero(~failed)[:left]
        left -= len(asked)
        failed[asked] = np.isnan(truth.solve(inputs.iloc[asked])[:, 0])
        return failed

    return Unanswered(raw=raw, density=off_grid.drawn if off_grid else 0, fails=fails)


def excluded(
    left_out: LeftOut | None, off_grid: OffGrid | None, *, finite: bool, confidence: float
) -> Excluded | None:
    """Describe the part of the domain on which the solver fails; None if it was met nowhere.

    Args:
        left_out: The inputs on which it failed.
        off_grid: The random points that were solved.
        finite: Whether these inputs are all there are.
        confidence: Of the bound on their share of a domain that is not finite.
    """
    if left_out is None or not left_out.rows:
        return None
    share = left_out.rows / left_out.of
    bound = share if finite else 1.0
    if off_grid is not None:
        failed = np.arange(off_grid.drawn) >= len(off_grid.errors)
        share, bound = share_above(failed.astype(np.float64), 0.5, confidence=confidence)
    return Excluded(left_out=left_out, share=share, bound=bound)


def check_answered(
    truth: Truth, outside: Excluded | None, settings: CertificateSettings
) -> Condition:
    """Say on which inputs the solver fails: of those a certificate says nothing."""
    name = "the solver answers every input"
    if outside is None:
        return Condition(name=name, status="shown", said=truth.left_out.said)
    said = f"{outside.left_out.said} Of these inputs the certificate says nothing."
    if outside.share < outside.bound < 1:
        said += (
            f" With {exact_percent(settings.confidence)} confidence they are at most "
            f"{at_most(100 * outside.bound, 3)}% of the domain."
        )
    return Condition(name=name, status="not shown", said=said)
