"""Every recorded step of `distillation`, through Kubeflow's executor, ends as it does locally."""

import pytest
from comparing import check_outputs, check_same
from replaying import Recording, Volumes, find_component, names
from story import Story

PIPELINE = "distillation"


@pytest.mark.parametrize("name", names(PIPELINE))
def test_a_recorded_step_ends_as_it_does_locally(name: str, story: Story, tmp_path) -> None:
    recording, volumes = Recording.read(name), Volumes(tmp_path)
    executor_input = story.prepare(recording, volumes)
    ended = volumes.execute(find_component(recording.component), executor_input)
    check_outputs(recording, ended)
    check_same(recording, ended, story)
