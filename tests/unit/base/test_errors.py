"""Remedies and lists of problems that stay short, however many names are wrong."""

from __future__ import annotations

import pytest

from kubestill.errors import InvalidInput, Problems, nearest, nearest_of


def test_a_typo_is_met_by_the_nearest_names():
    assert nearest("agee", ["age", "name", "income"]) == "did you mean 'age' or 'name'?"
    assert nearest("zzz", ["b", "a"]) == "known: a, b"


def test_of_many_wrong_names_in_a_wide_table_the_first_are_compared(monkeypatch):
    monkeypatch.setattr("kubestill.errors._COMPARED", 20_000)
    known = [f"column_{number}" for number in range(2_000)]
    near = nearest_of(known)
    remedies = [near(f"colum_{number}") for number in range(2_000)]
    assert all(f"'column_{number}'" in remedies[number] for number in range(10))
    assert set(remedies[10:]) == {nearest("?", known)}
    assert remedies[-1].startswith("known: column_0, column_1, column_10, ")
    assert remedies[-1].endswith(" and 1,940 more")


def test_a_message_shows_the_first_problems_and_counts_the_others():
    problems = Problems()
    for number in range(100):
        problems.add(f"field{number}", number, "is wrong")
    with pytest.raises(InvalidInput) as caught:
        problems.raise_if_any()
    assert len(caught.value.problems) == 100
    assert str(caught.value).startswith("100 problems with the input:\n  - field0 = 0: is wrong")
    assert str(caught.value).endswith("field59 = 59: is wrong\n  - and 40 more")
