"""The local runner on Kubeflow's own orchestrator, with small pipelines and real processes."""

# Kubeflow turns calls into tasks and injects outputs.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

import os
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from kfp import compiler, dsl

from kubestill.errors import KubestillError
from kubestill.local import run_pipeline
from screen import open_terminal

IMAGE = "kubestill:test"


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def speak(text: str, summary: dsl.Output[dsl.Markdown]) -> str:
    print(f"saying {text}")
    with open(summary.path, "w") as file:
        file.write(f"said {text}")
    return text


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def fail(text: str):
    raise ValueError(f"cannot say {text}\n  - nor this")


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def die():
    import os

    print("dying", flush=True)
    os.kill(os.getpid(), 9)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def collect(texts: list[str]) -> str:
    return "+".join(texts)


@dsl.pipeline(name="speeches")
def speeches(words: list = ["a", "b", "c"]):
    with dsl.ParallelFor(words) as word:
        said = speak(text=word)
    collect(texts=dsl.Collected(said.outputs["Output"]))


@dsl.pipeline(name="failing")
def failing():
    failed = fail(text="x").set_retry(3, backoff_duration="60s")
    failed.set_display_name("refuse")
    speak(text="never").after(failed)


@dsl.pipeline(name="dying")
def dying():
    die().set_retry(2, backoff_duration="60s")


def test_a_loop_has_one_line_at_its_start_and_one_at_its_end(tmp_path, capsys):
    result = run_pipeline(speeches.pipeline_spec, {}, root=str(tmp_path))
    assert result.failed is None
    assert result.error == ""
    names = [task.name for task in result.tasks]
    assert sorted(names[:3]) == ["speak[0]", "speak[1]", "speak[2]"]
    assert names[3:] == ["collect"]
    shown = re.sub(r"^ +\d+:\d\d  |\d+\.\d s", "", capsys.readouterr().out, flags=re.MULTILINE)
    assert shown.splitlines() == ["▸ speak", "✓ speak  3/3  ", "▸ collect", "✓ collect  "]


def test_a_person_sees_a_bar_over_the_iterations_of_a_loop(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    with open_terminal() as (inner, screen, close):
        with os.fdopen(os.dup(inner), "w") as stream, redirect_stdout(stream):
            run_pipeline(speeches.pipeline_spec, {}, root=str(tmp_path))
        close()
    pictures = ["\n".join(picture) for picture in screen.pictures]
    assert any("▸ speak  [░" in picture for picture in pictures)
    assert any(re.search(r"▸ speak  \[█+░+\] [12]/3", picture) for picture in pictures)
    assert re.fullmatch(
        r" +\d:\d\d  ✓ speak  3/3  \S+ s\n +\d:\d\d  ✓ collect  \S+ s\n", screen.text
    )
    assert not screen.cursor_hidden


@dsl.pipeline(name="inner")
def inner(word: str) -> str:
    said = speak(text=word)
    said.set_display_name("say it")
    return said.outputs["Output"]


@dsl.pipeline(name="twice")
def twice():
    first = speak(text="a").set_display_name("first")
    second = speak(text="b").set_display_name("second")
    third = inner(word="c").after(first, second)
    inner(word="d").after(third)


def test_two_tasks_of_one_component_keep_their_names_and_folders(tmp_path, capsys):
    result = run_pipeline(twice.pipeline_spec, {}, root=str(tmp_path))
    assert result.error == ""
    names = [task.name for task in result.tasks]
    assert sorted(names[:2]) == ["first", "second"]
    assert names[2:] == ["say it", "say it"]
    said = {task.name: Path(task.folder, "summary").read_text() for task in result.tasks[:2]}
    assert said == {"first": "said a", "second": "said b"}
    folders = {task.name: Path(task.folder).parent.name for task in result.tasks}
    assert folders == {"first": "speak", "second": "speak-2", "say it": "speak"}, "as on a cluster"
    assert "✓ first" in capsys.readouterr().out


def test_the_whole_output_of_a_task_stays_in_its_log(tmp_path):
    result = run_pipeline(speeches.pipeline_spec, {"words": ["a"]}, root=str(tmp_path))
    with open(result.tasks[0].log) as file:
        log = file.read()
    assert "saying a\n" in log
    assert "Got executor_input" in log


def test_verbose_shows_everything(tmp_path, capsys):
    run_pipeline(speeches.pipeline_spec, {"words": ["a"]}, root=str(tmp_path), verbose=True)
    shown = capsys.readouterr().out
    assert "Got executor_input" in shown
    assert "    speak[0]: saying a\n" in shown


def test_the_failing_task_is_named_with_its_message_and_nothing_runs_after(tmp_path, capsys):
    result = run_pipeline(failing.pipeline_spec, {}, root=str(tmp_path))
    assert result.failed
    assert result.failed.name == "refuse"
    assert result.failed.error == "ValueError: cannot say x\n  - nor this"
    assert [task.name for task in result.tasks] == ["refuse"], "neither retried nor gone past"
    shown = capsys.readouterr().out
    assert "✗ refuse" in shown
    assert "Traceback" not in shown


def test_a_task_that_is_killed_is_not_started_again(tmp_path, capsys):
    # As in 2.17's manifests: what is killed in its pod has failed, and failures are not retried.
    result = run_pipeline(dying.pipeline_spec, {}, root=str(tmp_path))
    assert result.failed
    assert result.failed.error == "killed by signal 9 (out of memory?)"
    assert "starting it again" not in capsys.readouterr().out
    with open(result.failed.log) as file:
        assert file.read().splitlines().count("dying") == 1


def test_trouble_between_kfp_and_this_machine_is_an_error_of_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    result = run_pipeline(speeches.pipeline_spec, {}, root=str(tmp_path / "file"))
    assert result.failed is None
    assert "Not a directory" in result.error


def test_the_runner_leaves_the_process_as_it_was(tmp_path):
    import builtins
    import logging

    from kfp.local import subprocess_task_handler

    before = (
        builtins.print,
        logging.getLogger().handlers[:],
        subprocess_task_handler.run_local_subprocess,
    )
    run_pipeline(speeches.pipeline_spec, {}, root=str(tmp_path))
    after = (
        builtins.print,
        logging.getLogger().handlers[:],
        subprocess_task_handler.run_local_subprocess,
    )
    assert after == before


@pytest.fixture
def compiled(tmp_path):
    path = tmp_path / "failing.yaml"
    compiler.Compiler().compile(failing, str(path))
    return path


def test_the_command_runs_a_compiled_file_and_fails_with_it(tmp_path, compiled, kubestill):
    done = kubestill("run", str(compiled), "--output", str(tmp_path / "runs"))
    assert done.returncode == 1
    assert "refuse failed: ValueError: cannot say x\n  - nor this" in done.stderr
    assert "executor-logs-0" in done.stderr


def test_the_command_prints_the_last_summary(tmp_path, kubestill):
    path = tmp_path / "speeches.yaml"
    compiler.Compiler().compile(speeches, str(path))
    done = kubestill("run", str(path), "-p", "words=[hello]", "--output", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    assert "\nsaid hello\n" in done.stdout


def test_the_command_refuses_wrong_parameters_before_it_writes(tmp_path, compiled, kubestill):
    done = kubestill("run", str(compiled), "-p", "x=1", "--output", str(tmp_path / "runs"))
    assert done.returncode == 1
    assert "no such parameter" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_an_unknown_pipeline_is_answered_with_the_nearest(kubestill):
    done = kubestill("run", "distilation")
    assert done.returncode == 1
    assert "did you mean 'distillation' or 'distillation-sweep'?" in done.stderr


def test_a_kfp_that_cannot_run_pipelines_here_is_refused(tmp_path, monkeypatch):
    from kfp.local import io

    monkeypatch.delattr(io.IOStore, "put_task_status")
    with pytest.raises(KubestillError, match=r"running here takes 2\.17\.0 or later"):
        run_pipeline(speeches.pipeline_spec, {}, root=str(tmp_path))
