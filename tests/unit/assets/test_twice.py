"""A pipeline that hands one artifact to two inputs of a task: no Kubeflow runs it."""

# kfp changes the signatures of what it decorates.
# pyright: reportCallIssue=false, reportArgumentType=false

import pytest
from kfp import compiler, dsl

from kubestill.assets import find_assets
from kubestill.assets.packages import load_package
from kubestill.errors import InvalidInput

PIPELINES = [asset.name for asset in find_assets() if asset.kind == "pipeline"]


@dsl.component(base_image="image")
def make(rows: dsl.Output[dsl.Dataset], count: int = 1) -> int:
    return count


@dsl.component(base_image="image")
def take(first: dsl.Input[dsl.Dataset], second: dsl.Input[dsl.Dataset] = None):
    print(first.path)


@dsl.pipeline(name="theirs")
def theirs():
    made, other = make(), make()
    take(first=made.outputs["rows"], second=other.outputs["rows"])
    with dsl.If(made.outputs["Output"] == 1):
        take(first=made.outputs["rows"], second=made.outputs["rows"])


@pytest.mark.parametrize("name", PIPELINES)
def test_none_of_ours_does(name):
    assert load_package(name.replace("_", "-")).twice == []


def test_theirs_is_refused_by_task_and_inputs(tmp_path):
    path = str(tmp_path / "theirs.yaml")
    compiler.Compiler().compile(theirs, path)
    with pytest.raises(InvalidInput) as caught:
        load_package(path)
    (problem,) = caught.value.problems
    assert problem.field == "task 'take-2'"
    assert problem.value == "first, second"
    assert "connect it once" in problem.remedy
