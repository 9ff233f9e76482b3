"""Strangers' steps see here what they would see on a cluster: values, files, failures."""

# Kubeflow turns calls into tasks and injects outputs.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportInvalidTypeForm=false

import json
import os
from pathlib import Path

import pytest
from kfp import dsl

from kubestill.errors import InvalidInput
from kubestill.local import LocalRun, run_pipeline

IMAGE = "kubestill:test"


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def produce(where: str, thing: dsl.Output[dsl.Dataset], never: dsl.Output[dsl.Model]):
    thing.metadata["rows"] = 3
    thing.metadata["share"] = 2.0
    thing.metadata["whole"] = True
    thing.metadata["nested"] = {"z": [1.0, {"deep": True}], "a": None}
    thing.metadata["some"] = [1, "x"]
    never.metadata["kind"] = "model"
    with open(thing.path, "w") as file:
        file.write(where)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def consume(
    thing: dsl.Input[dsl.Dataset], never: dsl.Input[dsl.Model], other: dsl.Input[dsl.Dataset] = None
) -> dict:
    import os

    return {
        "metadata": thing.metadata,
        "name": thing.name,
        "class": type(thing).__name__,
        "never": [never.metadata["kind"], os.path.exists(never.path)],
        "other": other is None,
    }


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def show(
    numbers: dict, listed: list, rate: float, text: str, switch: bool, absent: int = None
) -> str:
    import json

    return json.dumps([numbers, listed, rate, text, switch, absent])


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def spoil(thing: dsl.Input[dsl.Dataset]):
    with open(thing.path, "a") as file:
        file.write("more")


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def refuse(report: dsl.Output[dsl.HTML], data: dsl.Output[dsl.Dataset]):
    import os

    os.makedirs(data.path)
    with open(data.path + "/part", "w") as file:
        file.write("half")
    with open(data.path + ".d", "w") as file:
        file.write("a checkpoint beside it, stored by the step itself")
    with open(report.path, "w") as file:
        file.write("why not")
    raise ValueError("no")


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def score(metrics: dsl.Output[dsl.Metrics], value: str):
    metrics.metadata["loss"] = None if value == "none" else float(value)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan(numbers: dsl.OutputPath(list), words: dsl.OutputPath(list)):
    with open(numbers, "w") as file:
        file.write("[1, 2]")
    with open(words, "w") as file:
        file.write('["a", "b", "c"]')


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def forget(number: dsl.OutputPath(int)):
    pass


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def say(text: str) -> str:
    return text


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def tell(status: dsl.PipelineTaskFinalStatus) -> str:
    return f"{status.state} {status.error_code} {status.error_message} {status.pipeline_task_name}"


def go(pipeline, folder: Path, **arguments) -> LocalRun:
    return run_pipeline(pipeline.pipeline_spec, arguments, root=str(folder))


def outputs(result: LocalRun, name: str) -> dict:
    (task,) = [task for task in result.tasks if task.name == name]
    return json.loads(Path(task.folder, "output_metadata.json").read_text())


def well(result: LocalRun) -> LocalRun:
    assert (result.failed, result.error) == (None, "")
    return result


@dsl.pipeline(name="handing-on")
def handing_on():
    made = produce(where="here")
    consume(thing=made.outputs["thing"], never=made.outputs["never"])


def test_metadata_arrives_as_ml_metadata_gives_it_back(tmp_path):
    result = well(go(handing_on, tmp_path))
    got = outputs(result, "consume")["parameterValues"]["Output"]
    session = json.loads(got["metadata"].pop("store_session_info"))
    assert sorted(session) == ["Params", "Provider"]
    expected = {
        "display_name": "thing",
        "nested": {"struct": {"a": None, "z": [1, {"deep": True}]}},
        "rows": 3,
        "share": 2,
        "some": {"list": [1, "x"]},
        "whole": 1,
    }
    assert json.dumps(got["metadata"]) == json.dumps(expected), "to the type and the order"
    assert got["name"].isdigit()
    assert got["class"] == "Dataset", "from the function's annotation, for no type arrives"
    assert got["other"], "an input that nobody gave is not there"


def test_an_output_without_a_file_is_only_a_warning(tmp_path):
    result = well(go(handing_on, tmp_path))
    got = outputs(result, "consume")["parameterValues"]["Output"]
    assert got["never"] == ["model", False]
    assert "nothing was written for the output 'never'" in Path(result.tasks[0].log).read_text()


@dsl.pipeline(name="showing")
def showing(numbers: dict = {"z": 3, "a": {"y": 1.0, "b": 0.5}}, rate: float = 1.0):
    show(numbers=numbers, listed=[2, 1.0, "x"], rate=rate, text="7", switch=True)


@pytest.mark.parametrize(
    ("given", "numbers"),
    [
        pytest.param({}, {"a": {"b": 0.5, "y": 1}, "z": 3}, id="defaults"),
        pytest.param({"numbers": {"q": 4.0, "p": True}}, {"p": True, "q": 4}, id="given"),
    ],
)
def test_whole_numbers_in_parameters_are_ints_and_keys_sorted(tmp_path, given, numbers):
    result = well(go(showing, tmp_path, **given))
    got = outputs(result, "show")["parameterValues"]["Output"]
    assert got == json.dumps([numbers, [2, 1, "x"], 1, "7", True, None])
    log = Path(result.tasks[0].log).read_text()
    assert '"listed"' in log
    assert '"absent"' not in log, "an input that nobody gave is not there, rather than null"


@dsl.pipeline(name="spoiling")
def spoiling():
    made = produce(where="here")
    spoil(thing=made.outputs["thing"])


def test_a_step_that_changes_its_input_fails(tmp_path):
    result = go(spoiling, tmp_path)
    assert result.failed
    assert result.failed.name == "spoil"
    assert "it changed its input `thing`" in result.failed.error


@dsl.pipeline(name="refusing")
def refusing():
    refuse()


def test_nothing_of_a_failed_step_lies_at_its_uris_and_a_person_finds_its_report(tmp_path):
    result = go(refusing, tmp_path)
    assert result.failed
    assert Path(result.failed.folder, "report").read_text() == "why not"
    assert Path(result.failed.folder, "data", "part").read_text() == "half"
    place = Path(result.failed.log).parent
    assert sorted(os.listdir(place)) == ["data.d", "executor-logs-0", "failed-1"]
    assert "ValueError: no" in Path(result.failed.log).read_text()


@dsl.pipeline(name="scoring")
def scoring(value: str):
    score(value=value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        pytest.param("nan", "NaN is not JSON", id="not-a-number"),
        pytest.param("inf", "Infinity is not JSON", id="infinite"),
        pytest.param("none", "metadata['loss'] is None", id="null"),
    ],
)
def test_what_the_launcher_cannot_record_fails_a_finished_task(tmp_path, value, said):
    result = go(scoring, tmp_path, value=value)
    assert result.failed
    assert said in result.failed.error


def test_a_finite_score_is_fine(tmp_path):
    well(go(scoring, tmp_path, value="0.5"))


@dsl.pipeline(name="forgetting")
def forgetting():
    forget()


def test_an_output_parameter_that_was_never_written_fails_the_task(tmp_path):
    result = go(forgetting, tmp_path)
    assert result.failed
    assert "number: " in result.failed.error


@dsl.pipeline(name="looping")
def looping():
    planned = plan()
    with dsl.ParallelFor(planned.outputs["words"]) as word:
        say(text=word)


def test_a_loop_may_go_over_one_of_several_outputs(tmp_path):
    result = well(go(looping, tmp_path))
    said = [task for task in result.tasks if task.name.startswith("say")]
    values = [outputs(result, task.name)["parameterValues"]["Output"] for task in said]
    assert sorted(values) == ["a", "b", "c"]


@dsl.pipeline(name="ending")
def ending(way: str):
    told = tell()
    with dsl.ExitHandler(told, name="all"):
        first = say(text=way)
        with dsl.If(first.output == "fail", name="failing"):
            scored = score(value="none")
            scored.after(first)
        with dsl.If(first.output == "on", name="going-on"):
            second = say(text="over")
            with dsl.If(second.output == "never", name="inner"):
                say(text="")
        with dsl.If(first.output == "last", name="last"):
            say(text="")


@pytest.mark.parametrize(
    ("way", "state"),
    [
        pytest.param("fail", "FAILED", id="a-step-fails"),
        pytest.param("last", "COMPLETE", id="something-ran-after-what-was-skipped"),
        pytest.param("none", "RUNNING", id="all-conditions-are-skipped"),
        pytest.param("on", "RUNNING", id="the-last-inner-condition-is-skipped"),
    ],
)
def test_an_exit_handler_hears_kubeflows_words_and_no_cause(tmp_path, way, state):
    result = go(ending, tmp_path, way=way)
    assert (result.failed is not None) == (state == "FAILED")
    told = outputs(result, "tell")["parameterValues"]["Output"]
    assert told == f"{state} None None exit-handler-1"


def test_more_parameters_than_the_api_takes_are_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"way = '10001 bytes'.* Kubeflow takes 10000"):
        go(ending, tmp_path, way="x" * 9999)
    assert not list(tmp_path.iterdir())


@dsl.pipeline(name="choosing")
def choosing(word: str):
    first = say(text=word)
    with dsl.If(first.output == "it's", name="apostrophe"):
        say(text="there")


def test_a_condition_that_kfp_cannot_evaluate_is_an_error(tmp_path):
    result = go(choosing, tmp_path, word="it's")
    assert "Condition evaluation failed" in result.error


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def leave():
    """Fail with a cause in the records that is not the last thing in the log."""
    import json
    import os

    folder = os.path.join(os.environ["KUBESTILL_RUN_ROOT"], "failures")
    os.makedirs(folder)
    with open(os.path.join(folder, "leave-0.json"), "w") as file:
        json.dump({"task": "leave", "error": "Unfit", "message": "the cause"}, file)
    raise ValueError("something else")


@dsl.pipeline(name="leaving")
def leaving():
    leave()


def test_the_cause_that_a_step_left_is_the_one_that_is_shown(tmp_path):
    result = go(leaving, tmp_path)
    assert result.failed
    assert result.failed.error == "Unfit: the cause"


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def count(things: dsl.Input[list[dsl.Dataset]]) -> list:
    return [
        [thing.name.isdigit(), thing.metadata["some"], open(thing.path).read()] for thing in things
    ]


@dsl.pipeline(name="collecting")
def collecting():
    with dsl.ParallelFor(["a", "b", "c"]) as word:
        made = produce(where=word)
    count(things=dsl.Collected(made.outputs["thing"]))


def test_collected_artifacts_arrive_in_order_as_the_backend_gives_them(tmp_path):
    got = outputs(well(go(collecting, tmp_path)), "count")["parameterValues"]["Output"]
    assert got == [[True, {"list": [1, "x"]}, word] for word in "abc"]


@dsl.pipeline(name="naming")
def naming():
    made = produce(where="x")
    say(text=dsl.PIPELINE_JOB_ID_PLACEHOLDER).after(made)
    say(text=dsl.PIPELINE_JOB_CREATE_TIME_UTC_PLACEHOLDER)


def test_placeholders_and_folders_are_those_of_a_cluster(tmp_path):
    result = well(go(naming, tmp_path))
    said = [outputs(result, name)["parameterValues"]["Output"] for name in ("say", "say-2")]
    assert len(said[0].split("-")) == 5, "a UUID"
    assert result.folder.endswith(said[0][:8]), "who has the id finds the folder"
    assert said[1].endswith("Z")
    folder = Path(result.tasks[0].folder)
    assert folder.parent.parent == Path(result.folder)
    assert len(folder.name) == 36
