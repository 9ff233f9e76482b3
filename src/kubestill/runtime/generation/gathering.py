"""Many shards as one dataset: an index of their parts, with every row where it was.

A fan-out gives its results in no particular order, so the order is taken from what each shard says
about itself in its provenance, and so is the proof that none is missing, doubled or a stranger.
"""

# Provenance is JSON of any depth.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kubestill.errors import CorruptData, Problems
from kubestill.runtime.base.values import read_as
from kubestill.runtime.datasets.manifest import Dataset, gather
from kubestill.runtime.generation.systems.left_out import LeftOut

Provenance = Mapping[str, Any]

_MOST = 1_000_000
"""Shards of a whole."""


def gather_shards(uris: Sequence[str], root: str) -> Dataset:
    """Write an index of the shards at `uris`, in any order, to `root`.

    The result has the fingerprint that the same rows made in one shard would have. One dataset that
    is no shard at all passes as it is.

    Args:
        uris: Local folders or URIs of stores.
        root: Where the index goes.

    Raises:
        InvalidInput: Not a dataset, a damaged manifest, different schemas, teachers or settings,
            shards missing or doubled; all of them.
        CorruptData: Rows are damaged, where shards are so short that they must be read.
    """
    problems = Problems()
    shards: list[Dataset] = []
    if not uris:
        problems.add("uris", [], "give at least one")
    for uri in uris:
        with problems.collect("uris", uri):
            shard = Dataset.open(uri)
            _place(shard.provenance)
            shards.append(shard)
    if shards and (len(uris) > 1 or _place(shards[0].provenance)):
        shards = _in_order(shards, len(uris) - len(shards), problems)
    problems.raise_if_any()
    first = shards[0]
    provenance = _without_place(first.provenance)
    parts = [part for shard in shards if (part := _left_out(shard)) is not None]
    left_out = LeftOut.join(parts)
    if parts:
        provenance["left_out"] = left_out.model_dump()
    whole = first.complete_domain or _complete(first.provenance)
    return gather(shards, root, provenance=provenance, complete_domain=whole and not left_out.rows)


def _in_order(shards: Sequence[Dataset], unread: int, problems: Problems) -> list[Dataset]:
    """Return the shards by their number; note whatever keeps them from being one whole.

    Args:
        shards: Those whose manifests could be read.
        unread: How many could not, and may be any of those that are missing.
        problems: Takes what is wrong.
    """
    by_number: dict[int, Dataset] = {}
    first = shards[0]
    for shard in shards:
        place = _place(shard.provenance)
        if place is None:
            problems.add("uris", shard.root, "not a shard: its provenance names no number")
            continue
        number, _ = place
        if number in by_number:
            remedy = f"shard {number} is there twice, the other is {by_number[number].root}"
            problems.add("uris", shard.root, remedy)
        by_number.setdefault(number, shard)
        if shard.schema != first.schema:
            problems.add("uris", shard.root, f"its schema differs from that of {first.root}")
        for key in _differences(shard.provenance, first.provenance):
            problems.add("uris", shard.root, f"its {key} differs from that of {first.root}")
    place = _place(first.provenance)
    missing = sorted(set(range(place[1] if place else 0)) - by_number.keys())
    if len(missing) > unread:
        shown = ", ".join(map(str, missing[:20]))
        known = f"; {unread} of them may be among those that cannot be read" if unread else ""
        remedy = f"missing: {shown} (counted from 0){known}"
        problems.add("uris", f"{len(by_number)} shards", remedy)
    return [by_number[number] for number in sorted(by_number)]


def _place(provenance: Provenance) -> tuple[int, int] | None:
    """Return (number, count) of a shard, from itself or from the rows that it was made of.

    Raises:
        CorruptData: The provenance does not say it in whole numbers.
    """
    recorded = _telling(provenance, "shard")
    if recorded is None:
        return None
    number, count = recorded["shard"], recorded.get("shards")
    if (
        type(number) is not int
        or type(count) is not int
        or not (0 <= number <= _MOST and 0 < count <= _MOST)
    ):
        raise CorruptData(f"a shard's provenance says that it is {number!r:.40} of {count!r:.40}")
    return number, count


def _complete(provenance: Provenance) -> bool:
    """Tell whether all shards together, which are there by now, are a complete domain."""
    recorded = _telling(provenance, "complete_domain")
    return recorded is not None and bool(recorded["complete_domain"])


def _left_out(shard: Dataset) -> LeftOut | None:
    """Return which inputs of a shard were left out; None where none would have been.

    Raises:
        CorruptData: The provenance does not describe them.
    """
    recorded = _telling(shard.provenance, "left_out")
    if recorded is None:
        return None
    source = f"{shard.root}/dataset.json"
    return read_as(LeftOut, recorded["left_out"], source=source, what="record of what is left out")


def _telling(provenance: Provenance, key: str) -> Provenance | None:
    """Return the provenance that holds `key`: this, or that of the rows that these came from."""
    while key not in provenance:
        before = provenance.get("rows_from")
        if not isinstance(before, Mapping):
            return None
        provenance = before
    return provenance


def _without_place(provenance: Provenance) -> dict[str, Any]:
    """Return the provenance of the whole that a shard is part of."""
    own = {"shard", "shards", "left_out"}
    kept = {key: value for key, value in provenance.items() if key not in own}
    if isinstance(kept.get("rows_from"), Mapping):
        kept["rows_from"] = _without_place(kept["rows_from"])
    return kept


def _differences(left: Provenance, right: Provenance) -> list[str]:
    """Return which facts, other than their number, two shards disagree about."""
    different: list[str] = []
    for key in sorted((left.keys() | right.keys()) - {"shard", "left_out"}):
        ours, theirs = left.get(key), right.get(key)
        if key == "rows_from" and isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            different += _differences(ours, theirs)
        elif ours != theirs:
            different.append(key)
    return different
