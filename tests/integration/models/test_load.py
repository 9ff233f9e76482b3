from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from model_samples import (  # pyright: ignore[reportMissingImports]
    make_model,
    mixed_frame,
    mixed_schema,
)

import kubestill
from kubestill.errors import InvalidInput
from kubestill.runtime.models.export import export_model
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.stores import open_store


def test_loads_from_a_bucket(gcs: Any, tmp_path: Path) -> None:
    model = make_model(mixed_schema("multiclass"), mixed_frame())
    export_model(model, str(tmp_path))
    store = open_store(f"{gcs.uri}/models/one")
    for path in tmp_path.iterdir():
        store.upload(str(path), path.name)
    loaded = kubestill.load_model(f"{gcs.uri}/models/one")
    pd.testing.assert_frame_equal(loaded(mixed_frame()), Predictor(model)(mixed_frame()))
    with pytest.raises(InvalidInput, match="no exported model"):
        kubestill.load_model(f"{gcs.uri}/models/two")
