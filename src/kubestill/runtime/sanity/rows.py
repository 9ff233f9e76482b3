"""Checks of the rows: is there anything to learn in them, and on a scale that can be learned?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.sanity.findings import Check

LIMIT = 30.0
"""Standardised values are about 1; ones this far out on average were not standardised."""
_FREQUENT = 256
"""N-grams of a column of text that learners for tables are shown."""


def check_labels(labels: NDArray[Any] | None) -> Check:
    """Look for a target that never varies; labels [N, ...] of the whole dataset."""
    name = "labels vary"
    if labels is None:
        return Check(name=name, status="skipped", said="There are no labels, only soft ones.")
    known = labels[labels >= 0] if labels.ndim == 1 else labels[np.isfinite(labels).all(1)]
    if len(known) == 0:
        return Check(name=name, status="skipped", said="No row has a label, only soft ones.")
    if labels.ndim == 1:
        count = len(np.unique(known))
        if count > 1:
            return Check(name=name, status="ok", said=f"{count} classes in {len(known):,} rows.")
    elif (known != known[0]).any():
        return Check(name=name, status="ok", said=f"Targets of {len(known):,} rows vary.")
    return Check(
        name=name,
        status="fail",
        code="labels-constant",
        said=f"All {len(known):,} rows have the same label.",
        remedy="Look at the query or join that made the target.",
    )


def with_words(features: NDArray[Any], encoder: Encoder) -> NDArray[Any]:
    """Return encoded features [n, F] in which text is whether it has each of its frequent n-grams.

    Of the ids of text, learners for tables could only ask what stands at one place. The order is
    that of numbers, texts, codes.
    """
    if not encoder.texts:
        return features
    codes = encoder.plain + len(encoder.vocabulary)
    found = [features[:, : encoder.plain]]
    for ids in np.split(features[:, codes:], np.cumsum(encoder.texts)[:-1], axis=1):
        values, counts = np.unique(ids[ids > 0], return_counts=True)
        often = np.sort(values[np.argsort(-counts, kind="stable")[:_FREQUENT]])
        has = np.zeros((len(ids), len(often)), features.dtype)
        row, place = np.nonzero(np.isin(ids, often))
        has[row, np.searchsorted(often, ids[row, place])] = 1.0
        found.append(has)
    return np.concatenate([*found, features[:, encoder.plain : codes]], axis=1)


def check_features(features: Tensor, encoder: Encoder) -> Check:
    """Look at encoded features [N, F] as the network gets them: do they vary, on a sane scale?"""
    name = "features vary, on a scale of about 1"
    values = features[:, : encoder.plain].double()
    varies = (features != features[0]).any(0)
    if not bool(varies.any()):
        return Check(
            name=name,
            status="fail",
            code="features-constant",
            said=f"All {len(features):,} rows look the same to the network.",
            remedy="Look at the join or import that made the features.",
        )
    size = values.square().mean(0).sqrt()
    if len(size) and float(size.max()) > LIMIT:
        return Check(
            name=name,
            status="fail",
            code="features-scale",
            said=(
                f"Features reach the network with a root mean square of up to "
                f"{float(size.max()):.3g}, where 1 is expected."
            ),
            remedy="Normalise them as the encoder does.",
        )
    still = int((~varies).sum())
    if still:
        said = f"{still} of {len(varies)} features never vary; the others are on a scale of 1."
        return Check(name=name, status="note", said=said)
    return Check(name=name, status="ok", said=f"All {len(varies)} features vary, at a scale of 1.")


def check_target_scale(targets: Tensor, labels: NDArray[Any] | None) -> Check:
    """Look at regression targets, as the loss gets them [n, T] and in their own units [N, T]."""
    name = "targets on a scale of about 1"
    known = targets[~targets.isnan().any(1)].double()
    size = float(known.square().mean(0).sqrt().max()) if len(known) else 0.0
    if size > LIMIT:
        return Check(
            name=name,
            status="fail",
            code="target-scale",
            said=f"Targets reach the loss with a root mean square of {size:.3g}, where 1 is "
            "expected.",
            remedy="Standardise them as the decoder does.",
        )
    swallowed = _swallowed(labels) if labels is not None else None
    if swallowed is not None:
        return Check(
            name=name,
            status="fail",
            code="target-scale",
            said=(
                f"A few extreme targets (up to {swallowed:.3g}) set the scale: the other 99% "
                "differ by less than a thousandth of it."
            ),
            remedy="Remove them (sentinels for 'missing'?), or learn a logarithm.",
        )
    return Check(name=name, status="ok", said=f"Root mean square {size:.2g}.")


def _swallowed(labels: NDArray[Any]) -> float | None:
    """Return the extreme value that dwarfs the spread of the other 99%, if there is one."""
    for column in labels.reshape(len(labels), -1).T[:64]:
        values = column[np.isfinite(column)].astype(np.float64)
        if len(values) < 20:
            continue
        centre = np.median(values)
        distance = np.abs(values - centre)
        bulk = values[distance <= np.quantile(distance, 0.99)]
        if 0 < bulk.std() < 1e-3 * values.std():
            return float(values[distance.argmax()])
    return None
