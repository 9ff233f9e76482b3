"""What holds for every method, and what each one promises of its own."""

from dataclasses import fields

import numpy as np
import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.generation.frame import Frame, Originals, Tensor
from kubestill.runtime.generation.jitter import Jitter, JitterSettings, is_image, moved
from kubestill.runtime.generation.mixup import Mixup, MixupSettings
from kubestill.runtime.generation.munge import Munge, MungeSettings

COUNT = 200


@pytest.fixture(scope="module")
def originals() -> Originals:
    """Every kind of column: real, whole, constant, half missing, codes, image, vector with gaps."""
    random = np.random.default_rng(0)
    numeric = np.column_stack(
        [
            random.normal(size=COUNT),
            random.integers(0, 20, COUNT),
            np.full(COUNT, 0.1),
            np.where(random.random(COUNT) < 0.5, np.nan, random.normal(5, 2, COUNT)),
        ]
    )
    codes = np.column_stack([random.integers(0, 2, COUNT), random.integers(-1, 4, COUNT)])
    images = random.random((COUNT, 36), np.float32)
    vectors = random.normal(size=(COUNT, 3)).astype(np.float32)
    vectors[::7] = np.nan
    return Originals(
        numeric=numeric,
        codes=codes,
        tensors=(Tensor(values=images, shape=(6, 6)), Tensor(values=vectors, shape=(3,))),
    )


METHODS = {
    "munge": lambda rows, seed: Munge(rows, MungeSettings(), seed=seed),
    "mixup": lambda rows, seed: Mixup(rows, MixupSettings(), seed=seed),
    "jitter": lambda rows, seed: Jitter(rows, JitterSettings(), seed=seed),
}
every_method = pytest.mark.parametrize("method", METHODS)


def arrays(frame: Frame) -> list[np.ndarray]:
    return [frame.numeric, frame.codes, *(tensor.values for tensor in frame.tensors)]


def same(left: Frame, right: Frame) -> bool:
    return all(map(lambda a, b: a.tobytes() == b.tobytes(), arrays(left), arrays(right)))


@every_method
def test_rows_do_not_depend_on_the_cut(originals: Originals, method: str):
    make = METHODS[method](originals, 1)
    whole = make.rows(0, 450)
    pieces = [make.rows(a, b) for a, b in [(0, 1), (1, 199), (199, 201), (201, 450)]]
    for together, apart in zip(arrays(whole), zip(*map(arrays, pieces), strict=True), strict=True):
        assert together.tobytes() == np.concatenate(apart).tobytes()


@every_method
def test_a_row_can_be_made_alone_by_a_fresh_generator(originals: Originals, method: str):
    assert same(
        METHODS[method](originals, 1).rows(321, 322),
        METHODS[method](originals, 1).rows(0, 450).take(np.array([321])),
    )


@every_method
def test_seeds_and_passes_differ(originals: Originals, method: str):
    first = METHODS[method](originals, 1).rows(0, 2 * COUNT)
    other = METHODS[method](originals, 2).rows(0, COUNT)
    half = np.arange(COUNT)
    assert (first.numeric[half, 0] != other.numeric[:, 0]).mean() > 0.2
    assert (first.numeric[half, 0] != first.numeric[half + COUNT, 0]).mean() > 0.2


@every_method
def test_values_stay_valid(originals: Originals, method: str):
    made = METHODS[method](originals, 1).rows(0, 2000)
    assert np.isin(made.codes[:, 0], [0, 1]).all()
    assert np.isin(made.codes[:, 1], [-1, 0, 1, 2, 3]).all()
    assert np.array_equal(made.numeric[:, 1], np.rint(made.numeric[:, 1]))
    assert (made.numeric[:, 2] == 0.1).all()
    assert np.isfinite(made.numeric[:, :3]).all()
    low, high = np.nanmin(originals.numeric, axis=0), np.nanmax(originals.numeric, axis=0)
    assert (np.nanmin(made.numeric, axis=0) >= low).all()
    assert (np.nanmax(made.numeric, axis=0) <= high).all()


@every_method
def test_a_tensor_is_missing_whole_or_not_at_all(originals: Originals, method: str):
    vectors = METHODS[method](originals, 1).rows(0, 2000).tensors[1].values
    missing = np.isnan(vectors)
    assert (missing.all(axis=1) == missing.any(axis=1)).all()
    assert 0 < missing.all(axis=1).mean() < 0.5
    assert vectors.dtype == np.float32


@every_method
def test_originals_are_not_touched(originals: Originals, method: str):
    before = originals.take(np.arange(COUNT))
    METHODS[method](originals, 1).rows(0, 500)
    assert same(originals, before)


@every_method
def test_only_one_kind_of_column(method: str):
    values = np.arange(12.0).reshape(6, 2)
    bare = {"numeric": np.empty((6, 0)), "codes": np.empty((6, 0), np.int64), "tensors": ()}
    for field, value in [
        ("numeric", values),
        ("codes", values.astype(np.int64)),
        ("tensors", (Tensor(values=values.astype(np.float32), shape=(2,)),)),
    ]:
        frame = METHODS[method](Originals(**(bare | {field: value})), 0).rows(3, 8)
        assert [len(getattr(frame, f.name)) for f in fields(frame)][:2] == [5, 5]


def test_munge_takes_values_around_the_neighbour():
    rows = Originals(
        numeric=np.array([[0.0], [1.0], [10.0], [11.5]]),
        codes=np.array([[0], [1], [2], [3]]),
        tensors=(),
    )
    settings = MungeSettings(swap_probability=1.0, local_variance=4.0)
    made = Munge(rows, settings, seed=0).rows(0, 40_000)
    assert made.codes[:4, 0].tolist() == [1, 0, 3, 2]
    towards = made.numeric[2::4, 0]
    # Row 2 moves to N(11.5, 1.5 / 4), of which the half above the largest value seen is cut off.
    assert towards.max() == 11.5
    assert abs((towards == 11.5).mean() - 0.5) < 0.02
    below = towards[towards < 11.5]
    assert abs(np.sqrt(np.mean((below - 11.5) ** 2)) - 0.375) < 0.01


def test_munge_with_probability_zero_copies(originals: Originals):
    made = Munge(originals, MungeSettings(swap_probability=0.0), seed=0).rows(0, COUNT)
    assert same(made, originals)


def test_mixup_lies_between_its_two_rows():
    numeric = np.column_stack([np.arange(50) / 7, np.arange(50) / 3])
    rows = Originals(numeric=numeric, codes=np.arange(50)[:, None], tensors=())
    made = Mixup(rows, MixupSettings(alpha=1.0), seed=0).rows(0, 5000)
    # On a straight line, one share for the whole row keeps the ratio of the two columns.
    assert np.allclose(made.numeric[:, 1], made.numeric[:, 0] * 7 / 3)
    own = np.arange(5000) % 50
    kept = made.codes[:, 0] == own
    assert abs(kept.mean() - 0.5) < 0.03


def test_jitter_is_relative_to_the_spread_and_keeps_categories(originals: Originals):
    made = Jitter(originals, JitterSettings(noise=0.1), seed=0).rows(0, 100 * COUNT)
    own = np.arange(100 * COUNT) % COUNT
    difference = made.numeric[:, 0] - originals.numeric[own, 0]
    assert abs(difference.std() / originals.numeric[:, 0].std() - 0.1) < 0.005
    assert np.array_equal(made.codes, originals.codes[own])
    assert np.array_equal(np.isnan(made.numeric), np.isnan(originals.numeric[own]))


def test_jitter_of_nothing_copies(originals: Originals):
    still = JitterSettings(noise=0, shift=0, rotation=0, pixel_noise=0)
    assert same(Jitter(originals, still, seed=0).rows(0, COUNT), originals)


def test_motion_moves_pictures():
    picture = np.random.default_rng(0).random((1, 2, 5, 5), np.float32)
    still = np.zeros(1)
    by_pixels = moved(picture, shift=np.array([[1.0, -2.0]]), angle=still)
    assert np.allclose(by_pixels[0, :, 1:, :-2], picture[0, :, :-1, 2:])
    half = moved(picture, shift=np.array([[0.5, 0.0]]), angle=still)
    assert np.allclose(half[0, :, 1:], (picture[0, :, 1:] + picture[0, :, :-1]) / 2, atol=1e-6)
    quarter = moved(picture, shift=np.zeros((1, 2)), angle=np.array([np.pi / 2]))
    assert np.allclose(quarter[0], np.rot90(picture[0], axes=(1, 2)), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "answer"),
    [((8, 8), True), ((3, 32, 32), True), ((64,), False), ((2, 9), False), ((50, 8, 8), False)],
    ids=str,
)
def test_which_shapes_are_pictures(shape: tuple[int, ...], answer: bool):
    assert is_image(shape) is answer


@pytest.mark.parametrize("method", ["munge", "mixup"])
def test_one_row_is_not_enough(method: str):
    lonely = Originals(numeric=np.ones((1, 2)), codes=np.empty((1, 0), np.int64), tensors=())
    with pytest.raises(InvalidInput, match="at least 2"):
        METHODS[method](lonely, 0)
