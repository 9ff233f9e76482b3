"""Rows that arrive month by month, and at some point follow another law."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
from session import Cluster

ROWS = 1500


def month(number: int, drift: float = 0.0) -> pd.DataFrame:
    """A month of rows whose labels follow two columns; with `drift`, the second turns around."""
    random = np.random.default_rng(number)
    x = random.normal(size=(ROWS, 2))
    chance = 1 / (1 + np.exp(-2.0 * x[:, 0] - (1.0 - drift) * x[:, 1]))
    return pd.DataFrame(
        {
            "t": pd.date_range(f"2013-{number:02d}-01", periods=ROWS, freq="20min"),
            "x0": x[:, 0],
            "x1": x[:, 1],
            "late": np.where(random.random(ROWS) < chance, "yes", "no"),
        }
    )


def put_month(cluster: Cluster, folder: str, number: int, drift: float = 0.0) -> None:
    """Write a month to the store, as whoever delivers rows does."""
    content = io.BytesIO()
    month(number, drift).to_parquet(content)
    cluster.store(folder).put(f"2013-{number:02d}.parquet", content.getvalue())


def parameters(cluster: Cluster, folder: str, as_of: str, **more: object) -> dict[str, object]:
    """Return the parameters of a run of continuous-retraining over that folder."""
    return {
        "source": f"{cluster.root}/{folder}",
        "registry": f"{cluster.root}/{folder}-registry",
        "checkpoint_uri": cluster.checkpoints,
        "as_of": as_of,
        "timestamp": "t",
        "target": "late",
        "features": ["x0", "x1"],
        "network_args": {"hidden": [16]},
        "epochs": 8,
        "learning_rate": 0.01,
        "finetune_learning_rate": 0.01,
        "strict": False,
        "gate": {"steps": 50, "held_out_rows": 0},
        "evaluation_settings": {"max_forgetting": 0.9, "max_unlearned": 0},
        **more,
    }
