"""Images: encoded in tables, as files in folders, IDX, and arrays of bytes."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.datasets.handover import write_dataset
from kubestill.runtime.datasets.options import Reading
from kubestill.runtime.datasets.pixels import MAX_PIXELS
from kubestill.runtime.datasets.sources import open_source, opened_table
from kubestill.runtime.datasets.tables import read_table
from kubestill.runtime.steps.import_dataset import import_dataset

ROWS = 60


def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(np.asarray(pixels[:ROWS]) * 255 / 16).astype(np.uint8)
    return images.reshape(-1, 8, 8), np.asarray(labels[:ROWS])


DIGITS, LABELS = _digits()


def encoded(pixels: NDArray[Any], format: str = "PNG", **options: Any) -> bytes:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, format=format, **options)
    return held.getvalue()


def colours(height: int = 6, width: int = 5, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def idx(array: NDArray[np.uint8]) -> bytes:
    sizes = b"".join(struct.pack(">I", size) for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def images_of(table: pa.Table, name: str = "image", **reading: Any) -> NDArray[np.uint8]:
    column = opened_table(table, reading=Reading(**reading)).to_table()[name]
    return column.combine_chunks().to_numpy_ndarray()


def imported(folder: Path, source: Path, target: str = "label", **asked: Any) -> list[Dataset]:
    names = ("dataset", "validation", "holdout", "report", "summary")
    artifacts = {name: LocalArtifact(str(folder / name)) for name in names}
    import_dataset(source=str(source), target=target, **artifacts, **asked)  # pyright: ignore[reportArgumentType]
    return [Dataset.open(artifacts[name].path) for name in names[:3]]


def _folders(root: Path) -> Path:
    for at, (image, label) in enumerate(zip(DIGITS, LABELS, strict=True)):
        (root / "png" / str(label)).mkdir(parents=True, exist_ok=True)
        (root / "png" / str(label) / f"{at:03}.png").write_bytes(encoded(image))
    (root / "png" / "README.md").write_text("digits")
    return root / "png"


# In the order of the files: by folder, then by name.
ORDER = np.lexsort((np.arange(ROWS), LABELS))


def _structs(root: Path) -> Path:
    cells = [{"bytes": encoded(DIGITS[at]), "path": f"{at}.png"} for at in ORDER]
    labels = [str(LABELS[at]) for at in ORDER]
    pq.write_table(pa.table({"image": cells, "label": labels}), root / "a.parquet")
    return root / "a.parquet"


def _bytes(root: Path) -> Path:
    cells = pa.array([encoded(DIGITS[at]) for at in ORDER], pa.large_binary())
    table = pa.table({"image": cells, "label": [str(LABELS[at]) for at in ORDER]})
    pq.write_table(table, root / "a.parquet", row_group_size=7)
    return root / "a.parquet"


def _idx(root: Path) -> Path:
    (root / "mnist").mkdir()
    (root / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(DIGITS[ORDER])))
    labels = idx(LABELS[ORDER].astype(np.uint8))
    (root / "mnist" / "train-labels-idx1-ubyte").write_bytes(labels)
    return root / "mnist"


@pytest.mark.parametrize("make", [_folders, _structs, _bytes, _idx])
def test_every_form_gives_the_same_rows_as_bytes(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    parts = imported(tmp_path, make(tmp_path), settings={"channels": {}})
    rows = [part.to_table(["image", "label"]) for part in parts]
    assert rows[0].schema.field("image").type == pa.fixed_shape_tensor(pa.uint8(), [1, 8, 8])
    # The split is that of a table without images, which is tested on its own.
    plain = pa.table({"row": ORDER, "label": [str(LABELS[at]) for at in ORDER]})
    pq.write_table(plain, tmp_path / "plain.parquet")
    for part, numbers in zip(
        rows, imported(tmp_path / "p", tmp_path / "plain.parquet"), strict=True
    ):
        at = numbers.to_pandas()["row"].to_numpy().astype(int)
        found = part["image"].combine_chunks().to_numpy_ndarray()
        assert np.array_equal(found[:, 0], DIGITS[at])
        assert part["label"].to_pylist() == [str(label) for label in LABELS[at]]
    assert parts[0].schema.column("image").pixels
    assert all(c.role != "feature" for c in parts[0].schema.columns if c.name == "path")


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_colour_is_read_with_its_channels_in_front(format: str) -> None:
    pixels = colours()
    found = images_of(pa.table({"image": [encoded(pixels, format)] * 2}))
    assert np.array_equal(found[1], pixels.transpose(2, 0, 1))


def test_what_is_done_to_images_is_told(tmp_path: Path) -> None:
    opaque = np.dstack([colours(), np.full((6, 5), 255, np.uint8)])
    turned = Image.Exif()
    turned[0x0112] = 6
    cells = [
        encoded(opaque),
        encoded(colours(5, 6), exif=turned.tobytes()),
        encoded(colours()[:, :, 0]),
    ]
    opened = opened_table(pa.table({"image": cells}), reading=Reading(image_mode="rgb"))
    told = " | ".join(opened.notes.columns["image"])
    assert "images of 6 x 5, RGB" in told
    assert "an alpha channel without a transparent pixel left out: 1 image (row 1)" in told
    assert "turned as its EXIF orientation says: 1 image (row 2)" in told
    assert "converted from grey to rgb: 1 image (row 3)" in told
    found = opened.to_table()["image"].combine_chunks().to_numpy_ndarray()
    assert np.array_equal(found[0], colours().transpose(2, 0, 1))
    assert np.array_equal(found[1], np.rot90(colours(5, 6), -1).transpose(2, 0, 1))
    assert np.array_equal(found[2], np.stack([colours()[:, :, 0]] * 3))


def test_grey_is_the_luma_of_the_standard() -> None:
    found = images_of(pa.table({"image": [encoded(colours())]}), image_mode="grey")
    luma = colours() @ np.array([0.299, 0.587, 0.114])
    assert np.abs(found[0, 0] - luma).max() < 1


def test_images_are_resized_where_that_is_said(tmp_path: Path) -> None:
    flat = [np.full((9, 7), 40, np.uint8), np.full((30, 20), 90, np.uint8)]
    table = pa.table({"image": [encoded(image) for image in flat]})
    found = images_of(table, image_size=(8, 6))
    assert found.shape == (2, 1, 8, 6)
    assert (found[0] == 40).all()
    assert (found[1] == 90).all()


def png(width: int, height: int, bits: int, colour: int, pixels: bytes) -> bytes:
    """Return a PNG with a header of one's own."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def _bomb(width: int, height: int) -> bytes:
    """Return a header of many pixels: decoding would fail, or take long."""
    return png(width, height, 8, 0, b"")


def _animated() -> bytes:
    held = io.BytesIO()
    frames = [Image.fromarray(colours(seed=seed)) for seed in (0, 1)]
    frames[0].save(held, format="GIF", save_all=True, append_images=frames[1:])
    return held.getvalue()


def _transparent() -> bytes:
    return encoded(np.dstack([colours(), np.full((6, 5), 128, np.uint8)]))


def _damaged() -> bytes:
    """Return a PNG whose last pixel is another, which decoding alone does not notice."""
    content = bytearray(encoded(colours(), compress_level=0))
    content[-30] ^= 1
    return bytes(content)


GOOD = encoded(colours())
GIF = encoded(colours(), "GIF")
AVIF = b"\0\0\0\x20ftypavif" + bytes(20)
BAD: dict[str, tuple[bytes | None, str]] = {
    "null": (None, "hold no image"),
    "empty": (b"", "hold no image"),
    "text": (b"not an image at all", "are no images"),
    "header only": (GOOD[:20], "are no images of a known format, or cut off"),
    "of another format": (AVIF, "are no images of a known format"),
    "truncated": (GOOD[:-40], "are cut off or damaged; copy them again"),
    "without its end": (GOOD[:-5], "are cut off or damaged"),
    "truncated jpeg": (encoded(colours(64, 64), "JPEG")[:-200], "are cut off or damaged"),
    "one bit": (_damaged(), "are cut off or damaged"),
    "a frame cut off": (GIF[:-1] + b",", "are cut off or damaged"),
    "an extension cut off": (GIF[:-1] + b"!", "are cut off or damaged"),
    "animated": (_animated(), "are animated"),
    "cmyk": (encoded(np.zeros((6, 5, 4), np.uint8), "TIFF"), "have transparent pixels"),
    "16 bit grey": (encoded(np.zeros((6, 5), np.uint16)), "have more than 8 bits a channel"),
    "16 bit rgb": (png(5, 6, 16, 2, (b"\0" + bytes(30)) * 6), "have more than 8 bits a channel"),
    "16 bit ppm": (b"P6 5 6 65535\n" + bytes(180), "have more than 8 bits a channel"),
    "float": (encoded(np.zeros((6, 5), np.float32), "TIFF"), "have more than 8 bits a channel"),
    "100 megapixels": (_bomb(10_000, 10_000), f"have more than {MAX_PIXELS:,} pixels"),
    "400 megapixels": (_bomb(20_000, 20_000), f"have more than {MAX_PIXELS:,} pixels"),
    "60 megapixels": (_bomb(10_000, 6_000), f"have more than {MAX_PIXELS:,} pixels"),
    "transparent": (_transparent(), "have transparent pixels"),
}
CMYK = io.BytesIO()
Image.new("CMYK", (5, 6)).save(CMYK, format="JPEG")
BAD["cmyk"] = (CMYK.getvalue(), "are CMYK, whose colours depend on a profile")


@pytest.mark.parametrize(("content", "rule"), BAD.values(), ids=list(BAD))
def test_an_image_that_cannot_be_used_is_refused_by_row(content: bytes | None, rule: str) -> None:
    table = pa.table({"photo": pa.array([GOOD, content, GOOD], pa.binary())})
    with pytest.raises(InvalidInput) as caught:
        opened_table(table)
    (problem,) = caught.value.problems
    assert (problem.field, problem.value) == ("column 'photo'", "1 of 3: row 2")
    assert problem.remedy.startswith(rule)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    for name in "abcdefg":
        (tmp_path / "cat").mkdir(exist_ok=True)
        (tmp_path / "cat" / f"{name}.png").write_bytes(GOOD)
    for name, content in (("x", GOOD[:60]), ("y", _animated()), ("z", encoded(colours(9, 9)))):
        (tmp_path / "cat" / f"{name}.png").write_bytes(content)
    (tmp_path / "cat" / "grey.png").write_bytes(encoded(colours()[:, :, 0]))
    (tmp_path / "cat" / "h.png").write_bytes(b"")
    (tmp_path / "alone.png").write_bytes(GOOD)
    with pytest.raises(InvalidInput) as caught:
        open_source(str(tmp_path))
    said = {problem.remedy.split(";")[0]: str(problem.value) for problem in caught.value.problems}
    assert said == {
        "lie in no folder that names their class, and others do": "1 of 13: "
        + str(tmp_path / "alone.png"),
        "are cut off or damaged": "1 of 13: cat/x.png",
        "are animated or have several pages": "1 of 13: cat/y.png",
        "hold no image, null or without a byte": "1 of 13: cat/h.png",
        "differ in size": "6 x 5 in 9; 9 x 9 in 1 (cat/z.png)",
        "mix grey and colour": "rgb in 9; grey in 1 (cat/grey.png)",
    }


def test_the_first_names_are_given_and_the_rest_counted() -> None:
    table = pa.table({"image": pa.array([GOOD, *[b"?"] * 5], pa.binary())})
    with pytest.raises(InvalidInput, match=r"5 of 6: row 2, row 3, row 4, \.\.\."):
        opened_table(table)


def test_a_path_without_bytes_is_refused() -> None:
    cells = [{"bytes": GOOD, "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    with pytest.raises(InvalidInput, match=r"row 2 \(b.png\).*have a path and no bytes"):
        opened_table(pa.table({"image": cells}))


@pytest.mark.parametrize(
    ("cells", "rule"),
    [
        ([None] * 300 + [GOOD], "300 of 301: row 1, .*hold no image"),
        ([AVIF] * 3, "3 of 3: .*are no images of a known format"),
        ([{"bytes": None, "path": "a.png"}] * 3, r"3 of 3: row 1 \(a.png\).*no bytes"),
    ],
    ids=["first in row 301", "of another format", "paths alone"],
)
def test_a_column_of_images_that_begins_without_one_is_not_left_out(
    cells: list[Any], rule: str
) -> None:
    with pytest.raises(InvalidInput, match=rule):
        opened_table(pa.table({"image": cells}))


def test_an_orientation_that_does_not_exist_turns_nothing(tmp_path: Path) -> None:
    made = Image.Exif()
    made[0x0112] = 9
    table = pa.table({"image": [encoded(colours(), exif=made.tobytes())], "y": [1.0]})
    opened = opened_table(table)
    assert np.array_equal(opened.images["image"].pixels[0], colours().transpose(2, 0, 1))
    assert "EXIF" not in str(opened.notes.columns)


def test_bytes_that_are_no_images_are_left_out_as_ever() -> None:
    found = read_table(pa.table({"a": [1.0, 2.0], "b": [b"x", b"y"]}))
    assert found.left_out["b"] == "binary cannot be stored"


@pytest.mark.parametrize("nested", [False, True], ids=["tensor", "lists"])
def test_where_arrays_have_their_channels_is_said_and_not_guessed(nested: bool) -> None:
    pixels = np.stack([colours(seed=seed) for seed in range(4)])
    column: Any = pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)
    if nested:
        column = pa.array(pixels.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8()))))
    table = pa.table({"image": column})
    with pytest.raises(InvalidInput, match=r"bytes \[6, 5, 3\].*settings=.*'channels'"):
        opened_table(table)
    last = images_of(table, channels={"image": "last"})
    assert np.array_equal(last, pixels.transpose(0, 3, 1, 2))
    assert np.array_equal(images_of(table, channels={"image": "first"}), pixels)
    with pytest.raises(
        InvalidInput, match=r"settings.channels\['photo'\].*there is no such column"
    ):
        images_of(table, channels={"photo": "last"})


@pytest.mark.parametrize(
    ("images", "labels", "rule"),
    [
        (idx(DIGITS)[:-1], idx(LABELS.astype(np.uint8)), "says 3,840 bytes and holds 3,839"),
        (idx(DIGITS) + b"x", idx(LABELS.astype(np.uint8)), "says 3,840 bytes and holds more"),
        (b"\0\0\x0d" + idx(DIGITS)[3:], idx(LABELS.astype(np.uint8)), "values of type 0x0d"),
        (idx(DIGITS)[:9], idx(LABELS.astype(np.uint8)), "is cut off in its header"),
        (b"\0\0\x08\x03" + b"\xff" * 12, idx(LABELS.astype(np.uint8)), "values a row; at most"),
        (idx(DIGITS), idx(LABELS[:-1].astype(np.uint8)), r"holds \[59\] labels for 60 images"),
        (gzip.compress(idx(DIGITS))[:-9], idx(LABELS.astype(np.uint8)), "cannot be unpacked"),
        (gzip.compress(bytes(1 << 20)), idx(LABELS.astype(np.uint8)), "is no IDX file"),
    ],
    ids=["short", "long", "type", "header", "claims", "labels", "cut gzip", "zeros"],
)
def test_a_damaged_idx_file_is_refused(
    tmp_path: Path, images: bytes, labels: bytes, rule: str
) -> None:
    (tmp_path / "t10k-images.idx3-ubyte").write_bytes(images)
    (tmp_path / "t10k-labels.idx1-ubyte").write_bytes(labels)
    with pytest.raises(InvalidInput, match=rule):
        open_source(str(tmp_path))


def test_images_beside_tables_are_left_out_and_told(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1.0]}), tmp_path / "rows.parquet")
    (tmp_path / "plot.png").write_bytes(GOOD)
    opened = open_source(str(tmp_path))
    assert opened.rows.schema.names == ["a"]
    assert "1 image file beside tables left out" in opened.notes.told[0]
    only = open_source(str(tmp_path), reading=Reading(format="images"))
    assert only.types["image"] == pa.fixed_shape_tensor(pa.uint8(), [3, 6, 5])


def test_images_are_written_from_a_dataframe_and_read_as_arrays(tmp_path: Path) -> None:
    frame = pd.DataFrame({"photo": [GOOD, GOOD, GOOD, GOOD], "kind": list("abab")})
    dataset = write_dataset(frame, str(tmp_path / "d"), target="kind")
    cell = dataset.to_pandas()["photo"][0]
    assert cell.dtype == np.uint8
    assert np.array_equal(cell, colours().transpose(2, 0, 1))
    # Rows of the same schema: arrays of whole numbers are bytes, others are refused.
    as_floats = frame.assign(photo=[cell.astype(np.float32)] * 4)
    again = write_dataset(as_floats, str(tmp_path / "e"), schema=dataset.schema)
    assert again.fingerprint == dataset.fingerprint
    between = frame.assign(photo=[cell + np.float32(0.5)] * 4)
    with pytest.raises(InvalidInput, match="among their numbers, and its images are whole ones"):
        write_dataset(between, str(tmp_path / "f"), schema=dataset.schema)
