"""The README's pipeline of two components, run twice, as its users would."""

# Kubeflow turns calls into tasks and injects outputs.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

import re

import numpy as np
import pandas as pd
from kfp import compiler, dsl

from kubestill.components import import_dataset, train_teacher


@dsl.pipeline(name="prices")
def prices(table: str, checkpoint_uri: str):
    data = import_dataset(source=table, target="price")
    train_teacher(
        dataset=data.outputs["dataset"],
        validation=data.outputs["validation"],
        checkpoint_uri=checkpoint_uri,
    )


def test_running_again_adopts_the_finished_training(kubestill, tmp_path):
    area = np.random.default_rng(0).uniform(20, 200, 400)
    pd.DataFrame({"area": area, "price": 3 * area + 20}).to_parquet(tmp_path / "prices.parquet")
    compiler.Compiler().compile(prices, str(tmp_path / "prices.yaml"))
    # Checkpoints go to one folder for all runs, which nobody had to name.
    command = ["run", str(tmp_path / "prices.yaml"), "-p", f"table={tmp_path / 'prices.parquet'}"]
    shown = []
    for _ in range(2):
        done = kubestill(*command, "-v", "--output", str(tmp_path / "runs"))
        assert done.returncode == 0, done.stdout + done.stderr
        shown.append(done.stdout)
    assert re.search(r"train-teacher: epoch +\d", shown[0])
    assert not re.search(r"train-teacher: epoch +\d", shown[1])
    assert "adopted" in shown[1]
    for text in shown:
        end = text[text.index("# The teacher") :].splitlines()
        assert len(end) < 34, "not the table of forty settings"
        assert re.search(r"^\(\d\d rows of setting, value: .+/summary\)", "\n".join(end), re.M)
        (model,) = re.findall(r"^model: (.+)$", text, re.M)
        assert (tmp_path / model.partition(f"{tmp_path.name}/")[2] / "model.json").exists()
        assert f'model = kubestill.load_model("{model}")' in text
