"""Text as numbers, and what an import says about it."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.options import Reading
from kubestill.runtime.datasets.schema import MAX_TEXT, Column, Schema, TextForm
from kubestill.runtime.datasets.tables import read_table
from kubestill.runtime.datasets.text import describe_form, packed_form, packed_texts, text_rows
from kubestill.runtime.datasets.writer import DatasetWriter

PAGE = Path(__file__).parents[3] / "docs" / "text.md"
FORMS = [
    TextForm(),
    TextForm(words=(1, 3), chars=(2, 4), length=40),
    TextForm(words=(0, 0), chars=(1, 5), length=7),
    TextForm(words=(2, 2), chars=(3, 3), length=64),
]


def reference() -> dict[str, Any]:
    """Return what the page tells strangers to write."""
    code = next(c for c in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "def" in c)
    found: dict[str, Any] = {}
    exec(code, found)
    return found


def texts(count: int = 600) -> list[str | None]:
    letters = "ab cDé ß日本. -_9  \n\x00\U0001f600"
    dice = random.Random(0)
    made = ["".join(dice.choices(letters, k=dice.randrange(40))) for _ in range(count)]
    return [None, "", "Hello World", "a", " ", *made]


@pytest.mark.parametrize("form", FORMS, ids=["words", "both", "chars", "bigrams"])
def test_ids_are_those_of_the_page(form: TextForm) -> None:
    ids = reference()["ids"]
    given = pa.chunked_array([pa.array(texts()[:9]), pa.array(texts()[2:]).slice(7)])
    for text, row in zip(given.to_pylist(), text_rows(given, form), strict=True):
        if text is None:
            assert np.isnan(row).all()
            continue
        wanted = ids(text, form.words, form.chars, form.length)
        assert row.tolist() == wanted + [-1] * (form.length - len(wanted))


def test_a_stranger_can_check_the_description() -> None:
    for form in FORMS:
        told = describe_form(form)
        found = reference()["ids"](
            told["example"]["text"], told["words"], told["chars"], told["length"]
        )
        assert found == told["example"]["ids"]


def test_ids_never_change() -> None:
    """Models that lie somewhere depend on these."""
    assert text_rows(pa.array(["The cat, THE cat"]), TextForm(length=8)).tolist() == [
        [11519466, 3830257, 7636035, 11519466, 3893097, 3830257, 7636035, -1]
    ]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_text_is_the_same_however_it_is_stored(kind: pa.DataType) -> None:
    plain = pa.array(texts())
    for form in (TextForm(), packed_form(TextForm())):
        found, wanted = text_rows(plain.cast(kind), form), text_rows(plain, form)
        assert found.tobytes() == wanted.tobytes()


def test_foreign_models_get_the_text_back() -> None:
    given = [*texts(), "\0", "a\0", "ab\0\0"]
    assert packed_texts(text_rows(pa.array(given), packed_form(TextForm()))) == given
    long = "é" * 20_000
    (cut,) = packed_texts(text_rows(pa.array([long]), packed_form(TextForm(longest=40_000))))
    assert cut is not None
    assert len(cut.encode()) in (32 << 10, (32 << 10) + 1)
    assert long.startswith(cut)


def frame(rows: int = 120) -> pd.DataFrame:
    dice = random.Random(1)
    words = "a pity the parcel came late thank you it is whole".split()
    made = [" ".join(dice.choices(words, k=dice.randrange(3, 12))) for _ in range(rows)]
    return pd.DataFrame(
        {"body": made, "size": range(rows), "mood": ["good", "bad"] * (rows // 2)}
    ).astype({"body": object})


def test_an_import_keeps_the_strings(tmp_path: Path) -> None:
    rows = frame()
    rows.loc[3, "body"], rows.loc[5, "body"] = None, "?!"
    rows.to_parquet(tmp_path / "rows.parquet")
    found = read_table(
        str(tmp_path / "rows.parquet"),
        target="mood",
        kinds={"body": "text"},
        reading=Reading.model_validate({"text": {"body": {"chars": [3, 3], "length": 20}}}),
    )
    story = found.stories[0]
    assert (story.kind, story.missing) == ("text", 1)
    assert "1 text without a word" in story.notes[0]
    with DatasetWriter(str(tmp_path / "set"), found.schema) as writer:
        for table in found.tables():
            writer.write(table)
    dataset = Dataset.open(str(tmp_path / "set"))
    form = dataset.schema.column("body").text
    assert form == TextForm(chars=(3, 3), length=20, longest=rows["body"].str.len().max())
    assert dataset.to_pandas(["body"])["body"].tolist()[:3] == rows["body"].tolist()[:3]
    layout = RawLayout(dataset.schema)
    assert layout.width == 21
    assert form is not None
    expected = text_rows(pa.array(rows["body"]), form)
    np.testing.assert_array_equal(decode_features(dataset, layout)[:, :20], expected)


@pytest.mark.parametrize("form", FORMS, ids=["words", "both", "chars", "bigrams"])
def test_an_import_counts_the_texts_that_are_cut_off(form: TextForm) -> None:
    ids = reference()["ids"]
    rows = frame().assign(body=[one or "?" for one in texts(115)])
    options = {"words": form.words, "chars": form.chars, "length": 9}
    found = read_table(
        pa.Table.from_pandas(rows, preserve_index=False),
        target="mood",
        kinds={"body": "text"},
        reading=Reading.model_validate({"text": {"body": options}}),
    )
    cut = sum(len(ids(text, form.words, form.chars, 10)) > 9 for text in rows["body"])
    (said,) = (note for note in found.stories[0].notes if "cut off" in note)
    told = int(re.findall(r"(\d+) texts? cut off after 9 n-grams", said)[0])
    assert told == cut if form.chars == (0, 0) else 0 < told <= cut


def test_text_that_is_left_out_says_how_it_is_read() -> None:
    found = read_table(pa.Table.from_pandas(frame(), preserve_index=False), target="mood")
    assert "kinds={'body': 'text'}" in found.left_out["body"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_cell_that_is_too_large_is_named(kind: str, tmp_path: Path) -> None:
    for name, size in (("a", 3), ("b", MAX_TEXT + 1)):
        rows = frame(20)
        rows.loc[7, "body"] = "x" * size
        path = tmp_path / f"{name}.{kind}"
        rows.to_csv(path, index=False) if kind == "csv" else rows.to_parquet(path)
    with pytest.raises(InvalidInput) as caught:
        read_table(str(tmp_path), target="mood", kinds={"body": "text"})
    said = (
        f"column 'body' = '1,048,577 bytes in row 8 of {tmp_path}/b.{kind}': a text has 1,048,576"
    )
    assert said in str(caught.value)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kinds": {"size": "text"}}, "holds int64, not text"),
        ({"kinds": {"mood": "text"}}, "cannot be predicted"),
        ({"text": {"size": {}}}, "say kinds={'size': 'text'}, too"),
        ({"text": {"bodi": {}}, "kinds": {"body": "text"}}, "body"),
        ({"text": {"body": {"words": [3, 1]}}, "kinds": {"body": "text"}}, "words is [3, 1]"),
        ({"text": {"body": {"words": [0, 0]}}, "kinds": {"body": "text"}}, "both [0, 0]"),
        ({"text": {"body": {"length": 99999}}, "kinds": {"body": "text"}}, "1 to 16,384"),
    ],
)
def test_what_is_no_text_is_refused(given: dict[str, Any], said: str) -> None:
    table = pa.Table.from_pandas(frame(), preserve_index=False)
    reading = Reading.model_validate({"text": given.pop("text", {})})
    with pytest.raises(InvalidInput, match=re.escape(said)):
        read_table(table, target="mood", reading=reading, **given)


def test_a_target_or_a_weight_is_no_text() -> None:
    text = Column(name="t", kind="text", text=TextForm())
    with pytest.raises(InvalidInput, match="a group is no text"):
        Schema(columns=(text, Column(name="g", kind="text", role="group", text=TextForm())))
    with pytest.raises(InvalidInput, match="say how text becomes numbers"):
        Schema(columns=(Column(name="t", kind="text"),))


def test_later_rows_are_checked_too(tmp_path: Path) -> None:
    schema = Schema(columns=(Column(name="t", kind="text", text=TextForm()),))
    with (
        pytest.raises(InvalidInput, match="1,048,577 bytes in row 1"),
        DatasetWriter(str(tmp_path), schema) as writer,
    ):
        writer.write(pa.table({"t": ["a", "b" * (MAX_TEXT + 1)]}))
