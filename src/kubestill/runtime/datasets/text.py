"""Turn text into numbers: ids of its hashed n-grams, or its bytes where a model reads text itself.

The ids are defined on UTF-8 bytes alone, so that any language computes the same ones; docs/text.md
has the definition as a few lines of plain Python, and a test holds both equal.

- A word is a run of ASCII letters and digits and of bytes of 128 and more; A to Z become a to z.
- A word n-gram is n words in a row, joined by a space. A character n-gram is n characters of one
  word that has a space before and behind it.
- The hash of an n-gram starts at 1 for words and 2 for characters. Each byte makes it
  `hash * 0x9E3779B97F4A7C15 + byte + 1` modulo 2^64; murmur3's `fmix64` ends it, and the id is its
  upper 24 bits, which float32 holds exactly.
- The ids of a text are those of its words in order: of each word first the word n-grams that end at
  it, then its character n-grams, short ones first. What is beyond `length` is cut off.
"""

# pyarrow comes without types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kubestill.runtime.datasets.schema import MAX_TEXT, TextForm

PADDING = -1.0
"""Stands behind the last id of a text."""

_FACTOR = 0x9E3779B97F4A7C15
_START = {"words": 1, "chars": 2}
_MIX = (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)
_SPACE = 0x20
_PIECE_BYTES = 1 << 20
"""Text that is hashed at a time, so that temporaries stay small."""
_PACKED_LEAST, _PACKED_MOST = 6 << 10, 32 << 10
"""Bytes of a text that a foreign model gets, depending on the longest one: the rest is cut off."""

_PACKED_PADDING = 0xFFFFFF
"""Stands behind the last bytes of a packed text: three that are in no UTF-8, unlike 0."""

Ids = NDArray[np.uint64]
Places = NDArray[np.int64]


def describe_form(form: TextForm) -> dict[str, Any]:
    """Return a form of n-grams as JSON for programs that turn text into ids themselves."""
    example = "Hello, world: 42 caf\u00e9s"
    ids = text_rows(pa.array([example]), form)[0]
    return {
        "format": "kubestill/ngrams/1",
        "words": list(form.words),
        "chars": list(form.chars),
        "length": form.length,
        "padding": int(PADDING),
        "hash": {
            "factor": f"{_FACTOR:#x}",
            "start": _START,
            "mix": [f"{factor:#x}" for factor in _MIX],
        },
        "example": {"text": example, "ids": ids[ids != PADDING].astype(int).tolist()},
    }


def packed_form(form: TextForm) -> TextForm:
    """Return the form in which a foreign model gets texts that are like those of `form`."""
    held = min(max(form.longest, _PACKED_LEAST), _PACKED_MOST)
    return TextForm(form="bytes", length=-(-held // 3), longest=form.longest)


def text_strings(values: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return texts [n] as Arrow strings.

    Raises:
        ValueError: They are no text.
    """
    joined = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    kind, types = joined.type, pa.types
    if types.is_dictionary(kind):
        joined, kind = joined.dictionary_decode(), kind.value_type
    if types.is_null(kind):
        return pa.nulls(len(joined), pa.string())
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise ValueError(f"holds {kind}, not text")
    return pc.cast(joined, pa.string())


def oversized(texts: pa.Array) -> tuple[int, int] | None:
    """Return (row, bytes) of the first cell that is too large; None where none is."""
    sizes = pc.fill_null(pc.binary_length(texts), 0).to_numpy()
    large = np.flatnonzero(sizes > MAX_TEXT)
    return (int(large[0]), int(sizes[large[0]])) if len(large) else None


def least_ngrams(words: NDArray[Any], form: TextForm) -> NDArray[np.int64]:
    """Return how many n-grams texts of so many words have; of characters, at least so many."""
    counts = words.astype(np.int64)
    found = np.zeros_like(counts)
    for n in range(form.words[0], form.words[1] + 1) if form.words[1] else ():
        found += np.maximum(counts - n + 1, 0)
    for n in range(form.chars[0], form.chars[1] + 1) if form.chars[1] else ():
        found += counts * max(3 - n + 1, 0)  # a word of one character, and two spaces
    return found


def check_texts(texts: pa.Array) -> pa.Array:
    """Return the texts.

    Raises:
        ValueError: A cell is too large.
    """
    if found := oversized(texts):
        row, size = found
        raise ValueError(
            f"holds {size:,} bytes in row {row} of these, and a text has {MAX_TEXT:,} at most; "
            "cut it, or keep what it is in a file of its own"
        )
    return texts


def text_rows(values: pa.ChunkedArray | pa.Array, form: TextForm) -> NDArray[np.float32]:
    """Return texts as numbers [n, length]; NaN where missing.

    Raises:
        ValueError: They are no text.
    """
    texts = text_strings(values)
    fill = PADDING if form.form == "ngrams" else _PACKED_PADDING
    rows = np.full((len(texts), form.length), fill, np.float32)
    fill_rows = _ngram_rows if form.form == "ngrams" else _packed_rows
    start = 0
    while start < len(texts):
        # As many rows as fill a piece, one at least.
        offsets = _offsets(texts)
        stop = int(np.searchsorted(offsets, offsets[start] + _PIECE_BYTES, side="right")) - 1
        stop = min(max(stop, start + 1), len(texts))
        data = _bytes(texts)[offsets[start] : offsets[stop]]
        fill_rows(data, offsets[start : stop + 1] - offsets[start], form, rows[start:stop])
        start = stop
    if texts.null_count:
        rows[texts.is_null().to_numpy(zero_copy_only=False)] = np.nan
    return rows


def packed_texts(rows: NDArray[np.floating[Any]]) -> list[str | None]:
    """Return the texts of numbers [n, length] that `text_rows` packed; None where missing."""
    missing = np.isnan(rows[:, 0])
    numbers = np.where(missing[:, None], 0, rows).astype("<u4")
    cells = numbers.view(np.uint8).reshape(len(rows), -1, 4)[:, :, :3].reshape(len(rows), -1)
    # A character that was cut in half goes with the rest.
    texts = [cell.tobytes().rstrip(b"\xff").decode(errors="ignore") for cell in cells]
    return [None if gone else text for gone, text in zip(missing, texts, strict=True)]


def _offsets(texts: pa.Array) -> Places:
    place = np.frombuffer(texts.buffers()[1] or bytes(4), np.int32)
    return place[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)


def _bytes(texts: pa.Array) -> NDArray[np.uint8]:
    held = texts.buffers()[2]
    return np.frombuffer(held, np.uint8) if held is not None else np.zeros(0, np.uint8)


def _packed_rows(
    data: NDArray[np.uint8], offsets: Places, form: TextForm, out: NDArray[np.float32]
) -> None:
    for row, (start, stop) in enumerate(zip(offsets, offsets[1:], strict=False)):
        cell = data[start : min(stop, start + 3 * form.length)]
        if len(cell):
            whole = np.pad(cell, (0, -len(cell) % 3), constant_values=0xFF)
            three = whole.reshape(-1, 3).astype(np.float32)
            out[row, : len(three)] = three @ _BYTE


_BYTE = np.array([1, 1 << 8, 1 << 16], np.float32)
_WORD = np.array([chr(b).isalnum() if b < 128 else True for b in range(256)])
_LOWER = np.array([b + 32 if 65 <= b <= 90 else b for b in range(256)], np.uint8)


def _ngram_rows(
    data: NDArray[np.uint8], offsets: Places, form: TextForm, out: NDArray[np.float32]
) -> None:
    """Write the ids of texts into `out` [n, length], which holds padding."""
    inside = _WORD[data]
    starts, ends = _runs(inside, offsets)
    if not len(starts):
        return
    sizes = ends - starts
    row = np.searchsorted(offsets, starts, side="right") - 1
    first = np.searchsorted(row, np.arange(len(out)))  # word of each row
    place = np.arange(len(starts)) - first[row]  # of a word in its row
    letters = _LOWER[data[inside]].astype(np.uint64) + np.uint64(1)
    chars = _Characters(letters, data[inside], sizes) if form.chars[1] else None

    grams: list[tuple[Places, Places, Ids]] = []  # word, place behind its first gram, id
    made = np.zeros(len(starts), np.int64)  # grams of each word so far
    for n in range(form.words[0], form.words[1] + 1) if form.words[1] else ():
        last = np.flatnonzero(place >= n - 1)
        grams.append((last, made[last], _word_ngrams(letters, sizes, last, n)))
        made[last] += 1
    for n in range(form.chars[0], form.chars[1] + 1) if chars else ():
        assert chars
        word, at, ids = chars.ngrams(n)
        grams.append((word, made[word] + at, ids))
        made += np.maximum(chars.counts - n + 1, 0)
    before = np.concatenate([[0], np.cumsum(made)])
    base = before[:-1] - before[first[row]]
    for word, at, ids in grams:
        column = base[word] + at
        kept = column < form.length
        out[row[word[kept]], column[kept]] = (ids[kept] >> np.uint64(40)).astype(np.float32)


def _runs(inside: NDArray[np.bool_], offsets: Places) -> tuple[Places, Places]:
    """Return starts and ends of the runs of True that no row's boundary is in."""
    before, after = np.zeros_like(inside), np.zeros_like(inside)
    before[1:], after[:-1] = inside[:-1], inside[1:]
    before[offsets[offsets < len(inside)]] = False
    after[offsets[offsets > 0] - 1] = False
    return np.flatnonzero(inside & ~before), np.flatnonzero(inside & ~after) + 1


@lru_cache(maxsize=8)
def _powers(count: int) -> tuple[Ids, Ids]:
    """Return the first powers of the factor and of its inverse, modulo 2^64."""
    found: list[Ids] = []
    for one in (_FACTOR, pow(_FACTOR, -1, 1 << 64)):
        powers = np.full(count, one, np.uint64)
        powers[0] = 1
        found.append(np.multiply.accumulate(powers))
    return found[0], found[1]


def _prefixes(letters: Ids) -> tuple[Ids, Ids]:
    """Return what hashes of any part of `letters` follow from, and the powers of the factor."""
    powers, inverse = _powers(1 << max(10, int(len(letters)).bit_length()))
    sums = np.zeros(len(letters) + 1, np.uint64)
    np.cumsum(letters * inverse[: len(letters)], out=sums[1:])
    return sums, powers


def _hashes(prefixes: tuple[Ids, Ids], starts: Places, ends: Places) -> Ids:
    """Return the hash of each part, from 0."""
    sums, powers = prefixes
    return (sums[ends] - sums[starts]) * powers[ends - 1]


def _mixed(hashes: Ids) -> Ids:
    shift = np.uint64(33)
    for factor in _MIX:
        hashes = (hashes ^ (hashes >> shift)) * np.uint64(factor)
    return hashes ^ (hashes >> shift)


def _word_ngrams(letters: Ids, sizes: Places, last: Places, n: int) -> Ids:
    """Return the ids of n words in a row, by the last of them."""
    ends = np.cumsum(sizes)
    prefixes = _prefixes(letters)
    powers = prefixes[1]
    found = np.full(len(last), _START["words"], np.uint64)
    for back in range(n - 1, -1, -1):
        end, size = ends[last - back], sizes[last - back]
        found = found * powers[size] + _hashes(prefixes, end - size, end)
        found = found * powers[1] + np.uint64(_SPACE + 1) if back else found
    return _mixed(found)


class _Characters:
    """Words with a space before and behind them, character by character."""

    def __init__(self, letters: Ids, plain: NDArray[np.uint8], sizes: Places):
        padded = np.full(len(letters) + 2 * len(sizes), _SPACE + 1, np.uint64)
        word = np.repeat(np.arange(len(sizes)), sizes)
        padded[np.arange(len(letters)) + 2 * word + 1] = letters
        begins = np.ones(len(padded), bool)
        begins[np.arange(len(letters)) + 2 * word + 1] = (plain & 0xC0) != 0x80
        self._starts = np.append(np.flatnonzero(begins), len(padded))
        owner = np.repeat(np.arange(len(sizes)), sizes + 2)
        self._word = owner[begins]
        self.counts = np.bincount(self._word, minlength=len(sizes))
        """Characters of each word, spaces included."""
        self._first = np.cumsum(self.counts) - self.counts
        self._prefixes = _prefixes(padded)

    def ngrams(self, n: int) -> tuple[Places, Places, Ids]:
        """Return of each n-gram its word, its place among those of the word, and its id."""
        at = np.arange(len(self._word)) - self._first[self._word]
        there = np.flatnonzero(at + n <= self.counts[self._word])
        starts, ends = self._starts[there], self._starts[there + n]
        one = _hashes(self._prefixes, starts, ends)
        hashes = np.uint64(_START["chars"]) * self._prefixes[1][ends - starts] + one
        return self._word[there], at[there], _mixed(hashes)
