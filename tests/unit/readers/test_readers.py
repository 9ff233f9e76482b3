"""Whatever a file from a store holds: it is read, or refused with a documented error.

`KUBESTILL_FUZZ_SECONDS=60 pytest tests/unit/readers` searches for longer.
"""

from __future__ import annotations

import json
import os
import time

import pytest
from damage import mutations
from files import Kind, kinds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubestill.errors import CorruptData, KubestillError

KINDS = [
    "ledger",
    "manifest",
    "checkpoint",
    "dataset",
    "model",
    "quantised",
    "registry",
    "history",
    "training",
    "decision",
    "record",
    "failure",
    "state",
    "bands",
]
SECONDS = float(os.environ.get("KUBESTILL_FUZZ_SECONDS", "0"))
"""For each kind of file; 0 for a few examples that are always the same."""
ALL = SECONDS > 0
# The readers that build and look at most take a sample of the mutations, unless time is given.
EVERY = {"ledger": 7, "model": 5, "quantised": 3, "registry": 3}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    return kinds(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize("name", [name for name in KINDS if name != "dataset"])
def test_a_valid_file_is_read(files: dict[str, Kind], name: str) -> None:
    files[name].read(files[name].content)


def test_of_a_valid_dataset_only_the_part_is_missing(files: dict[str, Kind]) -> None:
    with pytest.raises(CorruptData, match="part-00000.parquet is missing"):
        files["dataset"].read(files["dataset"].content)


@pytest.mark.parametrize("name", KINDS)
def test_every_mutation_of_every_node_is_read_or_refused(files: dict[str, Kind], name: str) -> None:
    kind = files[name]
    refused, undocumented = 0, []
    for number, (what, content) in enumerate(mutations(kind.form)):
        if number % EVERY.get(name, 1) and not ALL:
            continue
        try:
            kind.read(_sealed(kind, content))
        except KubestillError:
            refused += 1
        except Exception as error:
            undocumented.append(f"{what}: {type(error).__name__}: {error}"[:300])
    assert undocumented == []
    assert refused or name == "failure"  # whatever is no failure is passed over


def _sealed(kind: Kind, content: bytes) -> bytes:
    if kind.seal is None:
        return content
    try:
        form = json.loads(content)
        kind.seal(form)
    except (KubestillError, ValueError, TypeError, KeyError, RecursionError, AttributeError):
        return content
    return json.dumps(form).encode()


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([2**63, -1, 1e308, "../x", "gs://b/x", "2013-01-01T00:00:00", "0" * 64]),
)


@pytest.mark.parametrize("name", KINDS)
def test_any_json_is_read_or_refused(files: dict[str, Kind], name: str) -> None:
    """Grafts random JSON onto valid files, several places at a time."""
    kind = files[name]
    places = list(_places(kind.form))
    until = time.monotonic() + SECONDS
    json_values = st.recursive(
        LEAVES,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=5,
    )

    @settings(
        max_examples=200 if ALL else 30,
        derandomize=not ALL,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @given(
        st.lists(st.tuples(st.sampled_from(places), json_values), min_size=1, max_size=4),
        st.binary(max_size=3),
        st.integers(0, 10_000),
    )
    def fuzz(grafts: list[tuple[tuple[str | int, ...], object]], noise: bytes, at: int) -> None:
        form = json.loads(kind.content)
        for place, value in grafts:
            _graft(form, place, value)
        content = json.dumps(form).encode()
        if noise and at % 3 == 0:
            content = content[: at % len(content)] + noise + content[at % len(content) :]
        try:
            kind.read(_sealed(kind, content))
        except KubestillError:
            pass

    fuzz()
    while time.monotonic() < until:
        fuzz()


def _places(form: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [path] if path else []
    if isinstance(form, dict):
        for key, value in form.items():
            found += _places(value, (*path, key))
    elif isinstance(form, list):
        for number, value in enumerate(form):
            found += _places(value, (*path, number))
    return found


def _graft(form: object, place: tuple[str | int, ...], value: object) -> None:
    for key in place[:-1]:
        try:
            form = form[key]  # pyright: ignore
        except (KeyError, IndexError, TypeError):
            return
    try:
        form[place[-1]] = value  # pyright: ignore
    except (IndexError, TypeError):
        return
