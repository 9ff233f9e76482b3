"""YAML that somebody else wrote: read whole, or refused at once."""

import io
import time

import pytest
import yaml

from kubestill.assets import reading
from kubestill.assets.reading import read_documents, read_yaml

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "more than 1,000 values"),
        # Broken at its end, which is never reached.
        ("[" + "x," * 1_000, "more than 1,000 values"),
        ("---\nx\n" * 1_001, "more than 1,000 values"),
        (io.StringIO("x" * 10_000_000), "more than 2,097,152 characters"),
        ("a: &a [*a]", "contains itself"),
        ("a: &a {b: *a}", "contains itself"),
        ("[" * 1_000, "nests too deeply"),
        ("at: 2026-02-30", "day is out of range"),
        ("n: " + "9" * 5000, "digits"),
        ("a: 1\n---\nb: 2", "2 documents"),
        ("a: [", "expected"),
        ("!!python/object/apply:os.system [x]", "could not determine a constructor"),
    ],
    ids=[
        "aliases",
        "values",
        "documents",
        "characters",
        "list",
        "mapping",
        "deep",
        "date",
        "number",
        "two",
        "broken",
        "python",
    ],
)
def test_what_cannot_be_read_is_refused_at_once(text, said, monkeypatch):
    monkeypatch.setattr(reading, "MOST_VALUES", 1_000)
    before = time.process_time()
    with pytest.raises(yaml.YAMLError, match=said):
        read_yaml(text)
    assert time.process_time() - before < 5


def test_aliases_that_stand_for_little_are_read():
    assert read_yaml("a: &a [1, 2]\nb: [*a, *a]") == {"a": [1, 2], "b": [[1, 2], [1, 2]]}
    assert read_yaml("") is None
    assert read_documents("a: 1\n---\nb: 2") == [{"a": 1}, {"b": 2}]
