"""Columns of images: files in folders, encoded bytes, IDX and arrays of bytes, decoded once.

Each becomes uint8 [C, H, W] in a temporary file, which the passes over a table map. Images have one
size and one mode. All that are refused are counted by the rule that they break, with the first few
names.
"""

# pyarrow comes without types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kubestill.errors import Problems, counted
from kubestill.runtime.datasets import columns as read
from kubestill.runtime.datasets.csvs import Notes
from kubestill.runtime.datasets.files import DataFile, format_of, is_image
from kubestill.runtime.datasets.idx import pair_up, read_idx
from kubestill.runtime.datasets.options import Reading
from kubestill.runtime.datasets.parts import workers
from kubestill.runtime.datasets.pixels import Broken, Picture, decode, only_headers_first
from kubestill.runtime.datasets.schema import MAX_WIDTH
from kubestill.runtime.datasets.stream import ahead

Batches = Callable[[list[str], int], Iterator[pa.RecordBatch]]
"""What yields the rows of some columns, so many at a time."""

_BATCH_ROWS = 256
_LOOKED_AT = 100
"""Values of a column of bytes whose beginnings say whether it holds images; null is none."""
_NAMED = 3
_MOST_CHANNELS = 4
_SAY_CHANNELS = (
    "settings={{'channels': {{{name!r}: 'last'}}}} or 'first' says where the channels of these "
    "images are"
)
_LARGEST_FILE = 1 << 28
"""Bytes of one file: more than any image within the bounds takes."""


@dataclass(frozen=True)
class Images:
    """The decoded images of a column."""

    pixels: NDArray[np.uint8]
    """[N, C, H, W]"""

    @property
    def shape(self) -> tuple[int, ...]:
        """[C, H, W]."""
        return self.pixels.shape[1:]

    @property
    def type(self) -> pa.DataType:
        """Of the column, as tables have it."""
        return pa.fixed_shape_tensor(pa.uint8(), list(self.shape))

    def between(self, start: int, stop: int) -> pa.Array:
        """Return the images of the rows from `start` up to `stop`, without a copy."""
        part = self.pixels[start:stop]
        flat = pa.Array.from_buffers(pa.uint8(), part.size, [None, pa.py_buffer(part)])
        return read.field_array(flat, self.shape)


def open_images(
    files: Sequence[DataFile], reading: Reading, problems: Problems, notes: Notes
) -> tuple[pa.Table, dict[str, Images]] | None:
    """Read image files: columns `image`, `path` and, of files in folders, `label`."""
    folders = [os.path.dirname(file.key) for file in files]
    classed = [os.path.basename(folder) for folder in folders]
    hive = [dict(file.partition) for file in files]
    if any(hive):
        classed = [""] * len(files)
    outside = [file.name for file, name in zip(files, classed, strict=True) if not name]
    if outside and len(outside) < len(files):
        remedy = "lie in no folder that names their class, and others do; move them"
        problems.add("source", _listed(len(outside), outside[:_NAMED], len(files)), remedy)
    items = [(file.key, partial(_content, file.path)) for file in files]
    found = _decode(items, "images", reading, problems, notes, column="image")
    if found is None:
        return None
    rows: dict[str, pa.Array] = {
        "image": pa.nulls(len(files), pa.binary()),
        "path": pa.array([file.key for file in files]),
    }
    for name in dict.fromkeys(name for parts in hive for name in parts):
        rows[name] = pa.array([parts.get(name) for parts in hive], pa.string())
    if not outside:
        rows["label"] = pa.array(classed)
        notes.of("label", "is the folder that an image lies in")
        if above := sorted({os.path.dirname(folder) for folder in folders} - {""}):
            notes.tell(
                f"folders above the classes ({', '.join(above[:_NAMED])}) are read together, and "
                "named in `path` only; import them one by one to keep them apart"
            )
    return pa.table(rows), {"image": found}


def open_idx(
    files: Sequence[DataFile], reading: Reading, problems: Problems, notes: Notes
) -> tuple[pa.Table, dict[str, Images]] | None:
    """Read IDX files: columns `image`, `label` where there are such files, and `path`."""
    before = len(problems)
    arrays: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.uint8]] = []
    paths: list[str] = []
    for pair in pair_up(list(files), problems):
        try:
            images = _channels_first(read_idx(pair.images), "image", reading)
        except ValueError as error:
            problems.add("source", pair.images.name, str(error))
            continue
        arrays.append(images)
        paths += [pair.images.key] * len(images)
        if pair.labels is not None:
            try:
                labels.append(_labels(read_idx(pair.labels), len(images)))
            except ValueError as error:
                problems.add("source", pair.labels.name, str(error))
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) > 1:
        remedy = "are the shapes of different files; import them one by one"
        problems.add("source", sorted(map(list, shapes)), remedy)
    if len(problems) > before:
        return None
    # Copied once where there are several files.
    pixels = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    rows: dict[str, pa.Array] = {"image": pa.nulls(len(pixels), pa.binary())}
    if labels:
        rows["label"] = pa.array(np.concatenate(labels))
    rows["path"] = pa.array(paths)
    notes.of("image", f"{_said(pixels.shape[1:])}, from IDX")
    return pa.table(rows), {"image": Images(np.ascontiguousarray(pixels))}


def decode_columns(
    schema: pa.Schema, batches: Batches, reading: Reading, problems: Problems, notes: Notes
) -> dict[str, Images]:
    """Decode the columns of a table that hold images: encoded, or arrays of bytes.

    Args:
        schema: Of the table; `{bytes, path}` is how Hugging Face writes an image.
        batches: Yields the rows of some columns, so many at a time.
        reading: What is said of images; columns whose role is `ignored` are passed over, unless
            `channels` names them.
        problems: Takes what keeps a column from being used.
        notes: Takes what was found.
    """
    found: dict[str, Images] = {}
    for name in reading.channels:
        at = schema.get_field_index(name)
        if at < 0 or not _is_array_of_bytes(schema.field(at).type):
            held = "there is no such column" if at < 0 else f"it holds {schema.field(at).type}"
            remedy = f"{held}; name columns of arrays of bytes (uint8) in three dimensions"
            problems.add(f"settings.channels[{name!r}]", reading.channels[name], remedy)
    for entry in schema:
        if reading.roles.get(entry.name) == "ignored" and entry.name not in reading.channels:
            continue
        images = None
        if _is_encoded(entry.type):
            if not _holds_images(batches, entry.name):
                continue
            items = _cells(batches, entry.name)
            field = f"column {entry.name!r}"
            images = _decode(items, field, reading, problems, notes, column=entry.name)
        elif entry.name in reading.channels and _is_array_of_bytes(entry.type):
            images = _arrays(batches, entry.name, reading, problems, notes)
        elif _is_array_of_bytes(entry.type):
            _ask_about_channels(batches, entry.name, problems)
        if images is not None:
            found[entry.name] = images
    return found


def _ask_about_channels(batches: Batches, name: str, problems: Problems) -> None:
    """Refuse bytes that look like images with their channels last: fields have them in front."""
    first = next(batches([name], _BATCH_ROWS), None)
    shape = () if first is None else _shape(first.column(0))
    if len(shape) == 3 and shape[0] > _MOST_CHANNELS and shape[2] in (1, 3, _MOST_CHANNELS):
        problems.add(f"column {name!r}", f"bytes {list(shape)}", _SAY_CHANNELS.format(name=name))


Item = tuple[str, Callable[[], bytes | None]]
"""What messages call an image, and what returns its bytes."""


class _Tally:
    """Images by something that they have in common, with the names of the first few."""

    def __init__(self) -> None:
        self.counts: dict[object, int] = {}
        self.names: dict[object, list[str]] = {}

    def add(self, key: object, name: str) -> None:
        self.counts[key] = self.counts.get(key, 0) + 1
        named = self.names.setdefault(key, [])
        if len(named) < _NAMED:
            named.append(name)

    def usual_first(self) -> list[object]:
        return sorted(self.counts, key=lambda key: -self.counts[key])

    def described(self, say: Callable[[object], str]) -> str:
        """Return all of them, and of the rarer ones the first names."""
        first, *others = self.usual_first()
        parts = [f"{say(first)} in {self.counts[first]:,}"]
        parts += [
            f"{say(key)} in {self.counts[key]:,} ({', '.join(self.names[key])})" for key in others
        ]
        return "; ".join(parts)


def _decode(
    items: Sequence[Item] | Iterator[Item],
    field: str,
    reading: Reading,
    problems: Problems,
    notes: Notes,
    *,
    column: str,
) -> Images | None:
    """Decode images into a temporary file; note what keeps them from being used."""
    broken, sizes, modes, done = _Tally(), _Tally(), _Tally(), _Tally()
    count = 0
    shape: tuple[int, ...] = ()
    with tempfile.TemporaryFile(prefix="kubestill-images-") as file:
        for name, picture in _decoded(items, reading):
            count += 1
            if isinstance(picture, str):
                broken.add(picture, name)
                continue
            sizes.add(picture.size, name)
            modes.add(picture.mode, name)
            for note in picture.notes:
                done.add(note, name)
            shape = shape or picture.pixels.shape
            if picture.pixels.shape == shape and not broken.counts:
                file.write(picture.pixels.data)
        for rule in broken.usual_first():
            value = _listed(broken.counts[rule], broken.names[rule], count)
            problems.add(field, value, str(rule))
        height, width = shape[1:] or (0, 0)
        apart = False
        if reading.image_size is None and len(sizes.counts) > 1:
            usual = f"settings={{'image_size': [{_by(sizes.usual_first()[0], ', ')}]}}"
            remedy = f"differ in size; {usual} resizes all to that, whatever their proportions"
            problems.add(field, sizes.described(_by), remedy)
            apart = True
        if not reading.image_mode and len(modes.counts) > 1:
            remedy = "mix grey and colour; settings={'image_mode': 'grey'} or 'rgb' makes them one"
            problems.add(field, modes.described(str), remedy)
            apart = True
        if np.prod(shape) > MAX_WIDTH:
            remedy = f"are {height} x {width}, and a row holds {MAX_WIDTH:,} numbers at most; "
            remedy += "settings={'image_size': [height, width]} makes them smaller"
            problems.add(field, f"{np.prod(shape):,} numbers", remedy)
            apart = True
        if broken.counts or apart or not count:
            return None
        file.flush()
        pixels = np.memmap(file, np.uint8, "r", shape=(count, *shape))
    told = _said(shape)
    if reading.image_size is not None and set(sizes.counts) != {reading.image_size}:
        told += f", resized from {sizes.described(_by)}"
    notes.of(column, told)
    for note in done.counts:
        named = ", ".join(done.names[note])
        notes.of(column, f"{note}: {counted(done.counts[note], 'image')} ({named})")
    return Images(pixels)


def _decoded(
    items: Sequence[Item] | Iterator[Item], reading: Reading
) -> Iterator[tuple[str, Picture | str]]:
    """Yield each image, or the rule that it breaks, in order, decoded in threads."""

    def work(part: list[Item]) -> list[tuple[str, Picture | str]]:
        return [(name, _one(fetch, reading)) for name, fetch in part]

    threads = workers()
    jobs = (partial(work, part) for part in _parts(items))
    with only_headers_first():
        for results in ahead(jobs, workers=threads, depth=threads):
            yield from results


def _one(fetch: Callable[[], bytes | None], reading: Reading) -> Picture | str:
    try:
        return decode(fetch(), mode=reading.image_mode or None, size=reading.image_size)
    except Broken as error:
        return str(error)


def _parts(items: Sequence[Item] | Iterator[Item]) -> Iterator[list[Item]]:
    held: list[Item] = []
    for item in items:
        held.append(item)
        if len(held) == _BATCH_ROWS // 8:
            yield held
            held = []
    if held:
        yield held


def _content(path: str) -> bytes:
    if os.path.getsize(path) > _LARGEST_FILE:
        raise Broken(f"are files of more than {_LARGEST_FILE:,} bytes; shrink them first")
    with open(path, "rb") as file:
        return file.read()


def _is_encoded(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_struct(kind):
        held = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else None
        return held is not None and (_is_encoded(held) or types.is_null(held))
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _holds_images(batches: Batches, name: str) -> bool:
    """Tell whether some of the first values of a column that are there begin as images do.

    So does a path whose ending is that of an image, where there are no bytes.
    """
    seen = 0
    for batch in batches([name], _BATCH_ROWS):
        for cell in batch.column(0):
            # Of a large value only its beginning is copied.
            content, path = cell, None
            if cell.is_valid and pa.types.is_struct(cell.type):
                content = cell["bytes"]
                path = cell["path"].as_py() if "path" in cell else None
            start = content.as_buffer()[:32].to_pybytes() if content.is_valid else b""
            named = not start and path and format_of(str(path)) == "images"
            if named or is_image(start):
                return True
            seen += bool(start)
            if seen == _LOOKED_AT:
                return False
    return False


def _cells(batches: Batches, name: str) -> Iterator[Item]:
    count = 0
    for batch in batches([name], _BATCH_ROWS):
        for cell in batch.column(0):
            count += 1
            yield _cell(cell.as_py(), count)


def _cell(cell: object, number: int) -> Item:
    if not isinstance(cell, dict):
        return f"row {number}", lambda: cell  # pyright: ignore[reportReturnType]
    content, path = cell.get("bytes"), cell.get("path")  # pyright: ignore

    def fetch() -> bytes | None:
        if not content and path:
            raise Broken("have a path and no bytes; embed their bytes, or give the folder of files")
        return content  # pyright: ignore[reportUnknownVariableType]

    return f"row {number} ({path})" if path else f"row {number}", fetch


def _is_array_of_bytes(kind: pa.DataType) -> bool:
    """Tell whether a column holds bytes in three dimensions, which may be images."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return len(kind.shape) == 3 and kind.value_type == pa.uint8()
    depth = 0
    while read.is_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth == 3 and kind == pa.uint8()


def _arrays(
    batches: Batches, name: str, reading: Reading, problems: Problems, notes: Notes
) -> Images | None:
    """Copy a column of arrays into a temporary file, with their channels in front."""
    field = f"column {name!r}"
    shape: tuple[int, ...] = ()
    count = 0
    with tempfile.TemporaryFile(prefix="kubestill-images-") as file:
        for batch in batches([name], _BATCH_ROWS):
            values = batch.column(0)
            try:
                if values.null_count:
                    raise ValueError("holds null where an image is expected; drop these rows")
                shape = shape or _shape(values)
                if len(values) and shape:
                    part = read.tensors(values, shape, np.uint8).reshape(-1, *shape)
                    file.write(np.ascontiguousarray(_channels_first(part, name, reading)).data)
            except ValueError as error:
                at = f"rows {count + 1:,} to {count + len(values):,}"
                problems.add(field, at if count else str(values.type), str(error))
                return None
            count += len(values)
        if not count:
            return None
        file.flush()
        if reading.channels[name] == "last":
            shape = (*shape[2:], *shape[:2])
        pixels = np.memmap(file, np.uint8, "r", shape=(count, *shape))
    notes.of(name, f"{_said(shape)}, channels {reading.channels[name]}")
    return Images(pixels)


def _shape(values: pa.Array) -> tuple[int, ...]:
    if isinstance(values.type, pa.FixedShapeTensorType):
        return read.tensor_shape(values.type)
    return np.shape(values[0].as_py()) if len(values) else ()


def _channels_first(images: NDArray[np.uint8], name: str, reading: Reading) -> NDArray[np.uint8]:
    """Return images as [N, C, H, W].

    Raises:
        ValueError: Nobody said where their channels are.
    """
    if images.ndim == 3:
        return images[:, None]
    if images.ndim != 4:
        raise ValueError(f"holds values of shape {list(images.shape[1:])}; images are [H, W]")
    said = reading.channels.get(name)
    if said is None:
        held = f"holds bytes {list(images.shape[1:])}"
        raise ValueError(f"{held}; {_SAY_CHANNELS.format(name=name)}")
    return images.transpose(0, 3, 1, 2) if said == "last" else images


def _labels(labels: NDArray[np.uint8], images: int) -> NDArray[np.uint8]:
    if labels.ndim != 1 or len(labels) != images:
        raise ValueError(f"holds {list(labels.shape)} labels for {images:,} images; give one each")
    return labels


def _said(shape: Sequence[int]) -> str:
    channels, height, width = shape
    modes: Mapping[int, str] = {1: "grey", 3: "RGB"}
    mode = modes.get(channels, f"{channels} channels")
    return f"images of {height} x {width}, {mode}, as [{channels}, {height}, {width}] from 0 to 255"


def _by(size: object, mark: str = " x ") -> str:
    return mark.join(map(str, cast("tuple[int, int]", size)))


def _listed(count: int, names: Sequence[str], of: int) -> str:
    more = ", ..." if count > len(names) else ""
    return f"{count:,} of {of:,}: {', '.join(names)}{more}"
