"""What may reach a terminal."""

import io

import pytest

from kubestill.cli.terminal import Screen, clean, draw_bar, show_duration


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
        ("cut \x1b[", "cut "),
        ("cut \x1b", "cut "),
        (None, "None"),
    ],
)
def test_nothing_acts_on_the_terminal(text, shown):
    assert clean(text) == shown


def test_lines_are_kept_where_they_may_be():
    assert clean("a\r\nb\tc\x1b[2J\rd", lines=True) == "a\nb\tcd"


def test_nothing_is_written_over_in_a_file():
    stream = io.StringIO()
    screen = Screen(stream)
    screen.status("[███]")
    screen.say("a line")
    screen.close()
    assert stream.getvalue() == "a line\n"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(-1, "0 s"), (59.9, "59 s"), (60, "1:00"), (3725, "1:02:05")]
)
def test_durations(seconds, shown):
    assert show_duration(seconds) == shown


def test_bars():
    assert draw_bar(0, 0) == "[░░░░░░░░░░░░░░░░░░░░] 0/0"
    assert draw_bar(1, 2) == "[██████████░░░░░░░░░░] 1/2"
