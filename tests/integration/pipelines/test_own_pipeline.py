"""The README's pipeline of two components, run twice, as its users would."""

# Kubeflow turns calls into tasks and injects outputs.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

import re

from kfp import compiler, dsl

from kubestill.components import import_dataset, train_teacher


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def export_prices(rows: int, table: dsl.Output[dsl.Dataset]):
    """Write a CSV as any step may: one file, whose name Kubeflow chose, without an ending."""
    with open(table.path, "w") as file:
        file.write("area;price\n")
        for row in range(rows):
            area = 20 + row * 7919 % 1800 / 10
            file.write(f"{area};{3 * area + 20}\n".replace(".", ","))


@dsl.pipeline(name="prices")
def prices(rows: int, checkpoint_uri: str):
    exported = export_prices(rows=rows)
    data = import_dataset(table=exported.outputs["table"], target="price")
    train_teacher(
        dataset=data.outputs["dataset"],
        validation=data.outputs["validation"],
        checkpoint_uri=checkpoint_uri,
    )


def test_running_again_adopts_the_finished_training(kubestill, tmp_path):
    compiler.Compiler().compile(prices, str(tmp_path / "prices.yaml"))
    # Checkpoints go to one folder for all runs, which nobody had to name.
    command = ["run", str(tmp_path / "prices.yaml"), "-p", "rows=400"]
    shown = []
    for _ in range(2):
        done = kubestill(*command, "-v", "--output", str(tmp_path / "runs"))
        assert done.returncode == 0, done.stdout + done.stderr
        shown.append(done.stdout)
    assert re.search(r"train-teacher: epoch +\d", shown[0])
    assert not re.search(r"train-teacher: epoch +\d", shown[1])
    assert "adopted" in shown[1]
    for said in (
        "fields are separated by ';'",
        "400 rows, 2 columns: 1 learned from, 1 to predict",
    ):
        assert all(re.search(f"import-dataset: .*{said}", text) for text in shown)
    for text in shown:
        end = text[text.index("# The teacher") :].splitlines()
        assert len(end) < 34, "not the table of forty settings"
        assert re.search(r"^\(\d+ rows of setting, value: .+/summary\)", "\n".join(end), re.M)
        (model,) = re.findall(r"^model: (.+)$", text, re.M)
        assert (tmp_path / model.partition(f"{tmp_path.name}/")[2] / "model.json").exists()
        assert f'model = kubestill.load_model("{model}")' in text
