"""What may reach a terminal, and what a person sees of steps at work."""

import ast
import contextlib
import io
import os
import re
import time
from pathlib import Path

import pytest

import kubestill
from kubestill import terminal
from kubestill.terminal import (
    Lines,
    Steps,
    clean,
    draw_bar,
    echo,
    interrupt,
    print_table,
    show_duration,
)
from screen import open_terminal

SECRET = "hunter2abc"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ✓ 名前 café", "plain ✓ 名前 café"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP1;2|sixel\x1b\\text", "text"),
        ("\x9b2Jtext", "text"),
        ("over\rwrite\x08\x7f", "over write"),
        ("a\n\nb\tc", "a b c"),
        ("user\u202eexe.txt", "userexe.txt"),
        ("\u2066isolated\u2069", "isolated"),
        ("cut \x1b[", "cut "),
        ("cut \x1b", "cut "),
        (None, "None"),
        (f"s3://user:{SECRET}@bucket/x is gone", "s3://***@bucket/x is gone"),
        (
            f"at -https://h/x?X-Amz-Signature={SECRET}&a=1",
            "at -https://h/x?X-Amz-Signature=***&a=1",
        ),
        (f"s3://us\x1b[0mer:{SECRET}@bucket", "s3://***@bucket"),
        (
            "sign in: give --token, --cookie or --header",
            "sign in: give --token, --cookie or --header",
        ),
    ],
)
def test_nothing_acts_on_the_terminal_and_no_uri_holds_a_secret(text, shown):
    assert clean(text) == shown


def test_lines_are_kept_where_they_may_be():
    assert clean("a\r\nb\tc\x1b[2J\rd", lines=True) == "a\nb\tcd"


@pytest.mark.parametrize(
    "text", ["a://b:1/" * 20_000, "a://" + ":" * 100_000 + "@", "x" * 300_000, "\x1b]" * 50_000]
)
def test_a_long_line_takes_no_longer_than_it_should(text):
    before = time.process_time()
    clean(text)
    assert time.process_time() - before < 5


def test_all_output_of_the_client_passes_one_function():
    """By the source: only `kubestill.terminal` writes, everything else calls it."""
    found = []
    for path in Path(kubestill.__file__).parent.glob("*/*.py"):
        if path.parent.name not in ("cli", "client", "local"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            call = ast.unparse(node.func)
            if re.fullmatch(
                r"(click\.)?(echo|secho|style|echo_via_pager)|print|sys\.std\w+\.\w+", call
            ):
                found.append(f"{path.name}: {call}")
    assert {one.rpartition(" ")[2] for one in found} == {"echo"}
    assert terminal.echo is echo


def test_echo_and_tables_show_nothing_that_acts(capsys):
    echo(f"one\ntwo\x1b[2J s3://me:{SECRET}@b")
    print_table([["name", "state"], ["a\nb\x1b[31m", f"gs://me:{SECRET}@b"], ["long name", ""]])
    assert capsys.readouterr().out == (
        "one\ntwo s3://***@b\nname       state\na b        gs://***@b\nlong name\n"
    )


@pytest.mark.parametrize(
    ("seconds", "shown"), [(-1, "0 s"), (59.9, "59 s"), (60, "1:00"), (3725, "1:02:05")]
)
def test_durations(seconds, shown):
    assert show_duration(seconds) == shown


def test_bars():
    assert draw_bar(0, 0) == "[░░░░░░░░░░░░░░░░░░░░] 0/0"
    assert draw_bar(1, 2) == "[██████████░░░░░░░░░░] 1/2"
    assert draw_bar(5, 4) == "[████████████████████] 5/4"


TRAINING = [
    "training 301,066 parameters on 17,551 rows for 1,500 steps of 128: CPU, 2 threads",
    *(
        f"epoch {step / 100:7.2f}  step {step:>7,}/1,500  train_loss 0.5  log_loss 0.1  {step} s"
        for step in range(50, 1501, 50)
    ),
    "stopped: budget (1500 of 1500 steps done)",
    "exported step 950 (best log_loss): 301,066 parameters",
]
GATE = [
    "teacher: ok: labels vary. 10 classes in 17,551 rows.",
    "teacher: note: the control. With its labels shuffled the floor takes 40 steps.",
    "student: skipped: labels vary. There are no labels.",
    "pass: teacher: A batch of 64 rows is learned.",
]
TABLE = [
    "             accuracy  log loss",
    "  ---------------------------",
    "  student       98.5%      0.06",
]


def run(steps: Steps, lines: list[str], *, name: str = "train", pause: float = 0.0) -> None:
    steps.begin(name)
    for line in lines:
        steps.tell(name, line)
        time.sleep(pause)
    steps.finish(name, ok=True, seconds=1.25)


def plain(lines: list[str], *, verbose: bool = False) -> list[str]:
    stream = io.StringIO()
    with Steps(stream, verbose=verbose) as steps:
        run(steps, lines)
    return [line[8:] for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("lines", "result"),
    [(TRAINING, TRAINING[-1]), (GATE, GATE[-1]), ([], "")],
    ids=["training", "gate", "silent"],
)
def test_a_step_has_two_lines_in_a_file_of_which_the_second_is_its_result(lines, result):
    assert plain(lines) == ["▸ train", f"✓ train  1.2 s  {result}".rstrip()]


@pytest.mark.parametrize(
    "line",
    [
        "WARNING: the checkpoint of step 5 is damaged; trying the one before it",
        "/x/y.py:3: UserWarning: beware",
        "teacher: fail: labels vary. All rows have one.",
        "undetermined: the control. It took as long.",
        "not shown: the domain is whole. It is not.",
        "drift: x is 3 sigma off",
        "resuming from step 50, with the same bits",
        "attempt 2 takes over from attempt 1: its process is gone",
        "SIGTERM: making step 50 durable before stopping",
        "this very training run is finished at gs://b/x: its result is adopted",
    ],
)
def test_what_a_person_has_to_know_stays(line):
    assert plain([*TRAINING[:5], line, *TRAINING[5:]])[1:-1] == [f"    train: {line}"]


def test_every_ten_seconds_a_line_says_how_far_it_is(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with Steps(stream) as steps:
        steps.begin("train")
        for line in TRAINING:
            now[0] += 1.0
            steps.tell("train", line)
        steps.finish("train", ok=True, seconds=33)
    lines = stream.getvalue().splitlines()
    assert [line[:8] for line in lines] == [
        "  0:00  ",
        "  0:10  ",
        "  0:20  ",
        "  0:30  ",
        "  0:33  ",
    ]
    assert "step     450/1,500  train_loss 0.5" in lines[1]
    assert lines[1].endswith("50/s  21 s left")


def test_a_stranger_step_shows_signs_of_life_and_its_last_line_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with Steps(stream) as steps:
        steps.begin("own")
        for line in [*GATE[:3], "loss 5", "loss 4", "loss 3"]:
            now[0] += 11.0
            steps.tell("own", line)
        steps.finish("own", ok=True, seconds=66)
    assert [line[8:] for line in stream.getvalue().splitlines()] == [
        "▸ own",
        "    own: loss 5",
        "    own: loss 4",
        "✓ own  66.0 s  loss 3",
    ]


def test_verbose_passes_everything_on():
    told = plain([*TRAINING, *GATE], verbose=True)
    assert told == [
        "▸ train",
        *(f"    train: {line}" for line in TRAINING + GATE),
        "✓ train  1.2 s",
    ]


def test_a_loop_is_one_step_and_a_failed_iteration_says_which(monkeypatch):
    stream = io.StringIO()
    with Steps(stream) as steps:
        for number in range(3):
            steps.begin("label", f"[{number}]", total=3)
            steps.tell("label", "step 1/2  x", f"[{number}]")
        steps.finish("label", "[0]", ok=True, seconds=1)
        steps.tell("label", "WARNING: slow", "[1]")
        steps.finish("label", "[1]", ok=False, seconds=1)
    assert [line[8:] for line in stream.getvalue().splitlines()] == [
        "▸ label",
        "    label[1]: WARNING: slow",
        "✗ label[1]  1.0 s",
    ]


def test_nothing_of_a_step_acts_on_the_terminal():
    evil = f"\x1b[2J\x1b]52;c;aGk=\x07\u202eab\x9b1m\rs3://me:{SECRET}@b"
    stream = io.StringIO()
    with Steps(stream, verbose=True) as steps:
        steps.begin(evil)
        steps.tell(evil, evil)
        steps.footer(evil)
        steps.finish(evil, ok=False, seconds=1)
        print(evil, file=Lines(steps))
    assert SECRET not in stream.getvalue()
    assert stream.getvalue().count("\n") == 4
    assert stream.getvalue().replace("\n", "").isprintable()


# At a terminal.


@pytest.fixture
def look(monkeypatch):
    """Run a function with the steps of a terminal; returns its screen."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")

    def look(act):
        with open_terminal() as (inner, screen, close):
            with os.fdopen(os.dup(inner), "w") as stream:
                act(stream)
            close()
        return screen

    return look


def test_a_person_sees_one_live_line_a_step_and_then_its_result(look):
    def act(stream):
        with Steps(stream) as steps:
            run(steps, GATE, name="gate")
            steps.begin("other step")
            run(steps, [*TRAINING[:20], "WARNING: look here", *TRAINING[20:]], pause=0.02)
            steps.finish("other step", ok=False, seconds=2)

    screen = look(act)
    live = {line.strip() for picture in screen.pictures for line in picture if "▸ train" in line}
    pattern = r"▸ train       \[█+░+\] [\d,]+/1,500  [\d,]+/s  \d+ s left  train_loss 0.5 .*…"
    assert any(re.fullmatch(pattern, one) for one in live), live
    assert [line[8:] for line in screen.text.splitlines()] == [
        "✓ gate  1.2 s  pass: teacher: A batch of 64 rows is learned.",
        "    train: WARNING: look here",
        f"✓ train  1.2 s  {TRAINING[-1]}",
        "✗ other step  2.0 s",
    ]
    assert all(sum("▸" in line for line in picture) <= 2 for picture in screen.pictures)
    assert not screen.cursor_hidden


def test_a_live_line_never_wraps(look):
    def act(stream):
        with Steps(stream) as steps:
            run(steps, ["x" * 300], name="n" * 50, pause=0.3)

    live = [line for picture in look(act).pictures for line in picture if "▸" in line]
    assert live
    assert max(map(len, live)) <= 99
    assert any(line.endswith("…") for line in live)


def test_an_error_leaves_the_terminal_as_it_was(look):
    def act(stream):
        with contextlib.suppress(KeyboardInterrupt), Steps(stream) as steps:
            steps.begin("train")
            raise KeyboardInterrupt

    screen = look(act)
    assert "▸ train" in screen.raw
    assert screen.text == "\n"
    assert not screen.cursor_hidden


def test_a_signal_does_not_break_off_a_picture(look, monkeypatch):
    """What a signal's handler raises comes after the picture that it found half drawn."""

    def act(stream):
        write, drawn = stream.write, []

        def write_and_be_interrupted(text):
            if "▸ other" in text and not drawn:
                interrupt(KeyboardInterrupt())
                drawn.append(text)
            return write(text)

        monkeypatch.setattr(stream, "write", write_and_be_interrupted, raising=False)
        with contextlib.suppress(KeyboardInterrupt), Steps(stream) as steps:
            steps.begin("other")
            steps.say("never said")
        assert drawn, "it was raised at once"

    screen = look(act)
    assert "▸ other" in screen.raw
    assert screen.text == "\n"
    assert not screen.cursor_hidden


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_can_do_nothing_gets_plain_lines(look, monkeypatch, term):
    monkeypatch.setenv("TERM", term)

    def act(stream):
        with Steps(stream) as steps:
            run(steps, GATE)

    assert "\x1b" not in look(act).raw


def test_a_table_wraps_long_cells_within_their_column(look, monkeypatch):
    rows = [
        ["id", "why"],
        ["a-long-id-in-one-piece", "word " * 40],
        ["b", "\x1b[2J[bold]no markup"],
    ]

    def act(stream):
        monkeypatch.setattr(terminal.sys, "stdout", stream)
        print_table(rows)
        monkeypatch.undo()

    lines = look(act).text.splitlines()
    assert lines[0].startswith("id                      why")
    assert lines[1].startswith("a-long-id-in-one-piece  word word")
    assert lines[2].startswith(" " * 24 + "word")
    assert lines[-1] == "b                       [bold]no markup"
    assert max(map(len, lines)) <= 100


def test_a_table_is_no_progress_at_a_terminal(look):
    """The rows of a table flashed as what the step was doing, its heading first."""

    def act(stream):
        with Steps(stream) as steps:
            run(steps, ["reading rows", TABLE[0], "promote: it is better."], pause=0.26)

    screen = look(act)
    assert "reading rows" in screen.raw
    assert "accuracy" not in screen.raw
    assert screen.text.splitlines()[-1].endswith("promote: it is better.")


@pytest.mark.parametrize("columns", [80, 30])
def test_a_table_that_is_too_wide_for_a_terminal_is_one_paragraph_a_row(look, monkeypatch, columns):
    heading = ["run", "rows before", "rows", "outcome", "champion", "why"]
    run_id = "continuous-retraining-2026-11-28-09-41-12-123456"
    row = [run_id, "2026-05-01T00:00", "12,345", "promoted", "", "It is better by 0.5. " * 8]
    monkeypatch.setenv("COLUMNS", str(columns))

    def act(stream):
        monkeypatch.setattr(terminal.sys, "stdout", stream)
        print_table([heading, row, ["b", *row[1:]]])
        monkeypatch.undo()

    lines = look(act).text.splitlines()
    assert "  outcome      promoted" in lines
    assert not [line for line in lines if line.startswith("  champion")]
    assert "b" in lines
    if columns == 80:
        assert run_id in lines
    assert max(map(len, lines)) <= columns
