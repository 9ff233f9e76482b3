"""The public door `kubestill.datasets`, and the page that leads through it."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kubestill import datasets
from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact, check_kind

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.partition("own\n")[2], re.M | re.S)


def rows() -> pd.DataFrame:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"amount": random.normal(size=60), "zip": [f"{n:03d}" for n in range(60)]})
    frame["customer"] = np.arange(60) % 7
    return frame.assign(teacher=random.random(60), fraud=np.resize(["no", "yes", "no"], 60))


def test_the_door_shows_what_it_offers_and_opens_without_torch(without) -> None:
    assert dir(datasets) == sorted(datasets.__all__)
    without("torch,kfp,kfp_kubernetes,matplotlib,sklearn", "from kubestill.datasets import *\n")


def test_the_page_writes_what_components_take(tmp_path: Path) -> None:
    names: dict = {}
    for block in BLOCKS:
        exec(block, names)
    rows().to_csv(tmp_path / "rows.csv", index=False)
    made = LocalArtifact(str(tmp_path / "made"))
    names["prepare"](str(tmp_path / "rows.csv"), made)
    check_kind(made, "dataset")
    schema = datasets.Dataset.open(made.path).schema
    roles = {column.name: column.role for column in schema.columns}
    assert (roles["customer"], roles["teacher"]) == ("group", "soft")
    wanted = rows()[rows()["amount"] > 0]
    told = names["report"](made)
    assert told["fraud"].tolist() == wanted["fraud"].tolist()
    assert made.metadata["rows"] == len(wanted)
    pieces = LocalArtifact(str(tmp_path / "pieces"))
    columns = rows()[["amount", "customer", "fraud"]]
    names["prepare_in_pieces"]([columns[:20], columns[20:]], pieces)
    check_kind(pieces, "dataset")
    assert datasets.Dataset.open(pieces.path).to_pandas(["amount"]).shape == (60, 1)


def test_rows_of_another_dataset_keep_its_labels(tmp_path: Path) -> None:
    first = datasets.write_dataset(rows(), str(tmp_path / "a"), target="fraud", ignore=["teacher"])
    some = rows().query("fraud == 'no'")
    second = datasets.write_dataset(some, str(tmp_path / "b"), schema=first.schema)
    assert second.schema == first.schema
    with pytest.raises(InvalidInput, match="schema.*target.*says that already"):
        datasets.write_dataset(some, str(tmp_path / "c"), schema=first.schema, target="fraud")
    with pytest.raises(InvalidInput, match="teacher.*roles"):
        datasets.write_dataset(rows(), str(tmp_path / "c"), target="fraud")
    assert not (tmp_path / "c").exists()
