import pytest

from kubestill.steplog import ProgressFilter, last_error

EXECUTOR = """\
[KFP Executor 2026-01-01 00:00:00,000 INFO]: Loading KFP component "x" from /tmp/e.py
[KFP Executor 2026-01-01 00:00:00,001 INFO]: Got executor_input:
{
    "inputs": {
        "parameterValues": {}
    }
}
epoch 1, loss 0.5
  indented progress
Traceback (most recent call last):
  File "/tmp/e.py", line 3, in <module>
    import nothing
ModuleNotFoundError: No module named 'nothing'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/tmp/e.py", line 9, in <module>
    check()
kubestill.errors.InvalidInput: 2 problems with the input:
  - rows = 0: give at least 1
  - shards = 0: give 1 to 256
""".splitlines()


def test_only_the_tasks_own_lines_are_shown():
    progress = ProgressFilter()
    shown = [line for line in EXECUTOR if progress.shows(line)]
    assert shown == [
        "epoch 1, loss 0.5",
        "  indented progress",
        "The above exception was the direct cause of the following exception:",
    ]


def test_progress_goes_on_after_a_traceback_that_was_only_logged():
    progress = ProgressFilter()
    lines = ["Traceback (most recent call last):", "  File x", "ValueError: no", "epoch 2"]
    assert [line for line in lines if progress.shows(line)] == ["epoch 2"]


def test_the_last_error_is_the_whole_message_without_frames():
    assert last_error(EXECUTOR) == (
        "InvalidInput: 2 problems with the input:\n"
        "  - rows = 0: give at least 1\n"
        "  - shards = 0: give 1 to 256"
    )


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([], id="nothing-printed"),
        pytest.param(["Killed"], id="no-traceback"),
        pytest.param(["Traceback (most recent call last):", "  File x"], id="cut-off"),
    ],
)
def test_without_a_whole_traceback_there_is_no_error_message(lines):
    assert last_error(lines) == ""
