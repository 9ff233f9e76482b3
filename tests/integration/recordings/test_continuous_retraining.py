"""Every recorded step of `continuous-retraining`, through Kubeflow's executor, ends as locally."""

import pytest
from comparing import check_outputs, check_registry, check_same, summarise_registry
from replaying import Ended, Recording, Volumes, find_component, names
from story import Story

PIPELINE = "continuous_retraining"
OUTCOMES = {"failed": "failed", "complete": "healthy", "running": "waiting"}
"""How the runs of the story end, by the state that Kubeflow told their exit handlers."""


def replay(name: str, story: Story, tmp_path) -> tuple[Recording, Ended]:
    recording, volumes = Recording.read(name), Volumes(tmp_path)
    executor_input = story.prepare(recording, volumes)
    return recording, volumes.execute(find_component(recording.component), executor_input)


@pytest.mark.parametrize("name", names(PIPELINE))
def test_a_recorded_step_ends_as_it_does_locally(name: str, story: Story, tmp_path) -> None:
    recording, ended = replay(name, story, tmp_path)
    check_outputs(recording, ended)
    check_same(recording, ended, story)
    check_registry(recording, story)


@pytest.mark.parametrize("which", OUTCOMES)
def test_an_outcome_does_not_follow_from_kubeflows_word(which: str, story: Story, tmp_path) -> None:
    name = f"continuous_retraining.record_outcome.{which}"
    recording, ended = replay(name, story, tmp_path)
    assert ended.parameters == {"outcome": OUTCOMES[which]}
    stands = summarise_registry(story.bucket.read(recording.parameters["registry"]))
    assert stands["claimed by"] is None
    assert (f"{recording.parameters['run_id']}-outcome.json", OUTCOMES[which]) in stands["history"]


def test_the_promoted_model_is_the_one_that_was_judged(story: Story, tmp_path) -> None:
    recording, ended = replay("continuous_retraining.promote_model", story, tmp_path)
    stands = summarise_registry(story.bucket.read(recording.parameters["registry"]))
    judged = story.port(recording.inputs["model"]["uri"])
    assert stands["champion"] == {
        "version": ended.parameters["version"],
        "run_id": recording.parameters["run_id"],
        "model_digest": judged.metadata["digest"],
    }
