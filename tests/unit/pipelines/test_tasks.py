"""Which parameters of a pipeline reach which of its tasks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
from kfp import dsl
from kfp.dsl.pipeline_context import Pipeline

from kubestill.components import train_student
from kubestill.pipelines._policy import Placement, Tasks

PLACEMENT = {
    "image": "small",
    "gpu_image": "large",
    "cpu": "2",
    "memory": "4Gi",
    "accelerator": "nvidia.com/gpu",
    "accelerators": "0",
    "node_selector": {},
    "tolerations": [],
}


@contextmanager
def pipeline() -> Iterator[None]:
    """Let tasks be created as they are inside a pipeline."""
    with Pipeline("any"):
        yield


def given(parameters: dict, **how) -> dict:
    """Return what a task of train-student gets from a pipeline with these parameters."""
    with pipeline():
        rows = dsl.importer("gs://rows", dsl.Dataset).output
        return Tasks(PLACEMENT | parameters)(train_student, dataset=rows, **how).inputs


def test_a_task_takes_the_parameters_that_it_shares_with_the_pipeline():
    inputs = given({"steps": 7, "rows": 9})
    assert inputs["steps"] == 7
    assert not {"rows", "image", "temperature"} & set(inputs)


def test_a_prefixed_parameter_comes_first():
    inputs = given({"steps": 7, "student_steps": 5, "seed": 1}, prefix="student_")
    assert (inputs["steps"], inputs["seed"]) == (5, 1)


def test_an_explicit_input_overrides_both():
    assert given({"steps": 7, "student_steps": 5}, prefix="student_", steps=3)["steps"] == 3


def test_a_parameter_can_stay_at_its_default():
    assert "temperature" not in given({"temperature": 2.0}, leave=["temperature"])


def test_a_parameter_of_the_pipeline_is_never_passed_as_an_artifact():
    inputs = given({"dataset": "gs://elsewhere", "validation": "gs://other"})
    assert "validation" not in inputs


def test_a_misspelt_parameter_to_leave_is_noticed():
    with pytest.raises(AssertionError, match="temprature"):
        given({}, leave=["temprature"])


def test_a_task_can_have_its_own_name_while_the_component_keeps_its_name():
    with pipeline():
        rows = dsl.importer("gs://rows", dsl.Dataset).output
        task = Tasks(PLACEMENT)(train_student, name="train-control", dataset=rows)
    assert task.name == "train-control"
    assert cast(Any, train_student).component_spec.name == "train-student"


def test_the_placement_consists_of_parameters_of_the_pipeline():
    assert set(PLACEMENT) == set(Placement.__dataclass_fields__)
