"""The statistics and the table of exceptions, by themselves."""

import lzma
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubestill.errors import CorruptData, InvalidInput
from kubestill.runtime.certification.coverage import check_coverage, largest_empty_box
from kubestill.runtime.certification.exceptions import Exceptions
from kubestill.runtime.certification.labels import check_conflicts, row_hashes
from kubestill.runtime.certification.quantiles import (
    covered_share,
    mean_bound,
    quantile_bound,
    samples_needed,
    share_above,
)
from kubestill.runtime.datasets.decode import RawLayout
from kubestill.runtime.datasets.schema import Schema
from kubestill.runtime.generation.covering import sobol
from kubestill.runtime.generation.systems.domain import Domain
from kubestill.runtime.generation.systems.inputs import Choice, Continuous, Integer, Levels


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.99])
def test_a_bound_holds_as_often_as_it_says(quantile):
    generator = np.random.default_rng(0)
    held = [
        bound >= quantile
        for _ in range(2000)
        if (bound := quantile_bound(generator.random(400), quantile, confidence=0.9)) is not None
    ]
    # Exact for a continuous distribution, up to the steps of the binomial: 90% to 92% or so.
    assert len(held) == 2000
    assert 0.885 < np.mean(held) < 0.94


@pytest.mark.parametrize(
    ("quantile", "confidence", "needed"),
    [(0.95, 0.95, 59), (0.99, 0.99, 459), (0.999, 0.95, 2995)],
)
def test_wilks_own_sample_sizes(quantile, confidence, needed):
    assert samples_needed(quantile, confidence=confidence) == needed
    errors = np.arange(needed, dtype=float)
    assert quantile_bound(errors, quantile, confidence=confidence) == needed - 1
    assert quantile_bound(errors[:-1], quantile, confidence=confidence) is None
    assert covered_share(needed, confidence=confidence) >= quantile


def test_the_share_above_a_tolerance_is_bounded_by_clopper_and_pearson():
    errors = np.zeros(1000)
    assert share_above(errors, 1.0, confidence=0.95) == (0.0, pytest.approx(1 - 0.05 ** (1 / 1000)))
    errors[:10] = 2.0
    share, bound = share_above(errors, 1.0, confidence=0.95)
    assert share == 0.01
    assert bound == pytest.approx(0.01691, abs=1e-4)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, -0.0, 1.0, 2.5]), st.integers(0, 300), st.floats(width=32)),
        max_size=60,
        unique_by=lambda point: (point[0] + 0.0, point[1], repr(point[2] + 0.0)),
    ),
    st.integers(2, 40000),
)
def test_exceptions_put_their_points_right_and_no_others(points, classes):
    raw = np.asarray(points, np.float32).reshape(-1, 3)
    codes = np.random.default_rng(len(raw)).integers(0, classes, len(raw))
    back = Exceptions.from_bytes(Exceptions(raw, codes).to_bytes())
    told = np.full(len(raw), -7)
    assert len(back) == len(raw)
    assert back.correct(raw, told).tolist() == codes.tolist()
    # Any other point keeps its answer, between the levels as well as on other combinations.
    known = {row.tobytes() for row in raw + np.float32(0)}
    others = np.stack([np.roll(raw[:, 0], 1), raw[:, 1], raw[:, 2]], 1) if len(raw) else raw
    others = np.concatenate([others, raw + np.array([0, 0.5, 0], np.float32)])
    new = np.array([row.tobytes() not in known for row in others + np.float32(0)], bool)
    others = others[new & ~np.isnan(others).any(1)]
    kept = back.correct(others, np.full(len(others), -7))
    assert (kept == -7).all()


def test_a_table_with_more_combinations_than_can_be_numbered_is_refused():
    points = np.random.default_rng(0).random((3000, 7), np.float32)
    with pytest.raises(InvalidInput, match="more than 2\\^62 points"):
        Exceptions(points, np.zeros(3000, np.int64))


@pytest.mark.parametrize("damage", [lambda b: b[:-2], lambda b: b"x" + b[1:], lambda b: b[:9]])
def test_damaged_exceptions_are_refused(damage):
    points = np.arange(100, dtype=np.float32).reshape(50, 2)
    content = Exceptions(points, np.arange(50) % 4).to_bytes()
    with pytest.raises(CorruptData, match="exceptions"):
        Exceptions.from_bytes(damage(content))


def _packed(*pieces: bytes, count: int, levels: tuple[int, ...] = (4,)) -> bytes:
    """Write a table of exceptions that says it holds so many; `pieces`: numbers, classes."""
    values = np.concatenate([np.arange(many, dtype="<f4") for many in levels]).tobytes()
    first = struct.pack(f"<{len(levels)}I", *levels) + values
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
    parts = [lzma.compress(part, lzma.FORMAT_RAW, filters=filters) for part in (first, *pieces)]
    head = struct.pack("<QBIII", count, False, len(levels), len(parts[0]), len(parts[1]))
    return b"KSX2" + head + b"".join(parts)


def test_what_exceptions_are_packed_of_is_read():
    made = Exceptions.from_bytes(_packed(b"\0\1", b"\7\5", count=2, levels=(2, 2)))
    points = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    assert made.correct(points, np.arange(4)).tolist() == [7, 1, 5, 3]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (_packed(b"\0" * 4, bytes(1 << 20), count=4), "holds more than it says"),
        (_packed(bytes(1 << 20), b"\0" * 4, count=4), "numbers are damaged"),
        (_packed(b"\0" * 3, b"\0" * 4, count=4), "numbers are damaged"),
        (_packed(b"\0" * 4, b"\0" * 3, count=4), "differ in length"),
        (_packed(b"\x80" * 30 + b"\0", b"\0" * 4, count=4), "numbers are damaged"),
        (_packed(b"\0" * 3 + b"\xff" * 8 + b"\x7f", b"\0" * 4, count=4), "more than 62 bits"),
        (_packed(b"\0" * 3 + b"\2", b"\0" * 4, count=4), "beyond its 4 points"),
        (_packed(b"\0" * 4, b"\0" * 4, count=4, levels=(5,)), "levels are not those"),
        (_packed(b"\0" * 4, b"\0" * 4, count=4, levels=(4,) * 32), "levels are not those"),
        (_packed(b"\0", b"\0", count=1 << 40), "1,099,511,627,776; at most 4,194,304"),
    ],
    ids=[
        "classes",
        "numbers",
        "few-numbers",
        "few-classes",
        "long-number",
        "large-number",
        "beyond",
        "levels",
        "combinations",
        "count",
    ],
)
def test_exceptions_that_hold_other_than_they_say_are_refused(content, said):
    with pytest.raises(CorruptData, match=said):
        Exceptions.from_bytes(content)


def test_conflicts_are_told_from_repetitions():
    raw = np.array([[1, 2], [3, 4], [1, 2], [-0.0, 5], [0.0, 5]], np.float32)
    assert check_conflicts(raw, np.array([1, 2, 1, 3, 3])).status == "shown"
    assert check_conflicts(raw, np.array([1, 2, 0, 3, 3])).code == "conflicts"
    assert check_conflicts(raw, np.array([1, 2, 1, 3, 4])).code == "conflicts"


def test_unlike_rows_have_unlike_hashes():
    x, y = np.meshgrid(np.arange(500), np.arange(500))
    raw = np.stack([x.ravel(), y.ravel()], 1).astype(np.float32)
    assert len(np.unique(row_hashes(raw))) == 250_000


@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda g: g.random(300), id="uniform"),
        pytest.param(lambda g: g.beta(0.1, 3, 300), id="mostly-small"),
        pytest.param(lambda g: (g.random(300) < 0.02).astype(float), id="rare-and-large"),
    ],
)
def test_the_bound_of_a_mean_holds_as_often_as_it_says(draw):
    generator = np.random.default_rng(0)
    truth = float(np.mean([draw(generator).mean() for _ in range(2000)]))
    held = [mean_bound(draw(generator), 1.0, confidence=0.9) >= truth for _ in range(1000)]
    assert np.mean(held) >= 0.9


def test_a_mean_without_more_than_one_error_is_bounded_by_the_largest():
    assert mean_bound(np.array([0.25]), 1.0, confidence=0.95) == 1.0
    assert mean_bound(np.zeros(2), 0.0, confidence=0.95) == 0.0


@pytest.mark.parametrize(
    ("rows", "width"), [(400, 3), (1000, 5), (3000, 2)], ids=["3-d", "5-d", "2-d"]
)
def test_the_box_that_is_found_is_empty_and_large(rows, width):
    generator = np.random.default_rng(1)
    points = generator.random((rows, width))
    low, high = largest_empty_box(points)
    assert not ((points > low) & (points < high)).all(1).any()
    # A corner with a fifth of the volume is emptied.
    left = points[~(points > 1 - 0.2 ** (1 / width)).all(1)]
    low, high = largest_empty_box(left)
    assert not ((left > low) & (left < high)).all(1).any()
    assert np.prod(high - low) > 0.12


def covered(inputs, raw):
    domain = Domain(inputs)
    layout = RawLayout(Schema(columns=domain.columns))
    return check_coverage(domain, np.asarray(raw, np.float32), layout, None)


def plain(width):
    return [Continuous(name=f"x{i}", low=0.0, high=1.0) for i in range(width)]


@pytest.mark.parametrize(("rows", "width", "hole"), [(500, 3, 0.2), (1500, 5, 0.15)])
def test_a_hole_in_several_dimensions_is_found(rows, width, hole):
    """No end, no slab and no pair of ranges is empty: only all inputs together show it."""
    points = np.random.default_rng(3).random((rows, width))
    assert covered(plain(width), points).condition.status == "shown"
    left = points[~((points > 0.05) & (points < 0.05 + hole ** (1 / width))).all(1)]
    found = covered(plain(width), left).condition
    assert (found.status, found.code) == ("failed", "holes")
    assert "A box of" in found.said


@pytest.mark.parametrize("method", ["sobol", "random"])
def test_a_covering_has_no_holes(method):
    unit = np.random.default_rng(0).random((4096, 3))
    if method == "sobol":
        unit = sobol(0, 4096, 3, seed=0, scramble=True)
    seen = covered(plain(3), np.clip(unit, 1e-7, 1 - 1e-7))
    assert seen.condition.status == "shown", seen.condition.said
    assert seen.looked_at
    assert seen.looked_at.ends == ("x0", "x1", "x2")
    assert seen.looked_at.pairs
    assert "Pairs of them: every cell has rows." in seen.condition.said
    assert "the largest empty box that a search found is" in seen.condition.said


def test_what_nobody_looked_at_is_said():
    inputs = [
        Choice(name="metal", choices=("iron", "gold", "tin")),
        Integer(name="n", low=1, high=1000),
        *plain(2),
    ]
    generator = np.random.default_rng(0)
    raw = np.stack(
        [
            generator.integers(0, 3, 300),
            generator.integers(1, 1001, 300),
            *generator.random((2, 300)),
        ],
        1,
    )
    seen = covered(inputs, raw)
    assert seen.condition.status == "shown"
    said = seen.condition.said
    assert "Pairs of them: nobody looked (from 1,920 rows on, for up to 12 inputs)." in said
    assert "All 3 values of metal have rows." in said
    drawn = np.unique(raw[:, 1]).astype(int)
    first = ", ".join(str(n) for n in np.setdiff1d(np.arange(1, 1001), drawn)[:10])
    missing = 1000 - len(drawn)
    assert f"{missing} of the 1,000 values of n ({first} and {missing - 10} more) are" in said
    assert "Nobody looked at the discrete inputs together with the others." in said


def test_a_level_that_random_rows_would_have_drawn_is_a_hole():
    inputs = [Choice(name="metal", choices=("iron", "gold", "tin")), *plain(1)]
    raw = np.stack([np.arange(200) % 2, np.linspace(0, 1, 200)], 1)
    found = covered(inputs, raw).condition
    assert (found.code, found.said) == (
        "holes",
        "1 of the 3 values of metal (tin) are without a row.",
    )


@pytest.mark.parametrize(
    ("given", "bad"),
    [
        pytest.param(Continuous(name="x", low=1e-8, high=1e3, mapping="log"), 9e-9, id="log-low"),
        pytest.param(Continuous(name="x", low=1e-8, high=1e3, mapping="log"), 0.0, id="log-zero"),
        pytest.param(Continuous(name="x", low=1e-8, high=1e3, mapping="log"), 1000.1, id="high"),
        pytest.param(Integer(name="x", low=0, high=9), 2.5, id="between-integers"),
        pytest.param(Levels(name="x", values=(0.1, 0.2, 0.7)), 0.3, id="no-level"),
        pytest.param(Choice(name="x", choices=("a", "b")), np.nan, id="no-choice"),
        pytest.param(Continuous(name="x", low=0.0, high=1.0), np.nan, id="missing"),
    ],
)
def test_rows_outside_of_the_domain_are_seen(given, bad):
    share = (np.arange(100) + 0.5)[:, None] / 100
    column = Domain([given]).at(share)["x"]
    values = column.to_numpy()
    if isinstance(given, Choice):
        values = values == "b"
    inside = values.astype(np.float32)[:, None]
    assert covered([given], inside).condition.status == "shown"
    found = covered([given], np.concatenate([inside, np.array([[bad]], np.float32)])).condition
    assert (found.code, found.said[:6]) == ("outside", "1 rows")


def test_a_bound_that_float32_rounds_outwards_is_inside():
    low, high = 0.1, 0.7  # float32 rounds 0.1 up and 0.7 down, their negatives the other way
    for sign in (1.0, -1.0):
        ends = sorted((sign * low, sign * high))
        given = Continuous(name="x", low=ends[0], high=ends[1])
        rows = np.linspace(ends[0], ends[1], 50)[:, None].astype(np.float32)
        assert covered([given], rows).condition.status == "shown"
