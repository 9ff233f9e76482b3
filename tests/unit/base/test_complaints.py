"""What users read where a setting is wrong: its name, and what to give, in no library's words."""

from __future__ import annotations

import re
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from kubestill.errors import InvalidInput, Problems
from kubestill.runtime.base.arguments import fit_arguments
from kubestill.runtime.base.settings import read
from kubestill.runtime.certification.settings import CertificateSettings
from kubestill.runtime.checkpoints.settings import CheckpointSettings
from kubestill.runtime.evaluation.settings import EvaluationSettings
from kubestill.runtime.generation.request import AUGMENTATIONS, COVERINGS, GIVEN
from kubestill.runtime.generation.request import Request as GenerationRequest
from kubestill.runtime.retraining.collecting import CollectSettings
from kubestill.runtime.sanity.settings import GateSettings
from kubestill.runtime.steps.select_checkpoint import SelectionSettings
from kubestill.runtime.training.settings import TrainingSettings

SETTINGS: list[type[BaseModel]] = [
    TrainingSettings,
    CheckpointSettings,
    GateSettings,
    CertificateSettings,
    EvaluationSettings,
    SelectionSettings,
    CollectSettings,
    GenerationRequest,
    *COVERINGS.values(),
    *AUGMENTATIONS.values(),
    *GIVEN.values(),
]
FIELDS = [(kind, name) for kind in dict.fromkeys(SETTINGS) for name in kind.model_fields]
WRONG: list[Any] = ["x", -1, -1.5, 1e18, None, True, [], ["x"], {}, {"x": "y"}, float("nan"), [1]]
LIBRARY = re.compile(r"Input|should|valid|instance|literal|parse|type=|\[key\]|pydantic|tuple")


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda part: getattr(part, "__name__", part))
def test_a_wrong_value_is_told_under_its_own_name_in_plain_words(kind, name):
    for value in WRONG:
        problems = Problems()
        read(kind, {name: value}, problems, prefix="settings.")
        for problem in problems:
            if problem.value == "missing" != value:
                continue  # other fields that have no default
            place = problem.field.removeprefix("settings.").split(".")
            assert place[0] in (name, ""), problem
            assert set(place[1:]) <= {"x", "0"}, problem
            assert not LIBRARY.search(problem.remedy), problem


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    depth: int = Field(default=1, ge=1)


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    share: float = Field(default=0.5, ge=0, lt=1)
    rate: float = Field(default=1.0, gt=0)
    count: int = Field(default=1, gt=0, lt=9)
    choose: Literal["best", "last"] = "best"
    points: int | dict[str, int] = 3
    size: int | None = Field(default=None, ge=16)
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"share": 1}, "share = 1: use a number in [0, 1)"),
        ({"share": "much"}, "share = 'much': use a number in [0, 1)"),
        ({"rate": 0}, "rate = 0: use a number above 0"),
        ({"count": 9}, "count = 9: use a whole number in [1, 8]"),
        ({"count": 1.5}, "count = 1.5: use a whole number in [1, 8]"),
        ({"size": 3}, "size = 3: use a whole number, 16 or more"),
        ({"choose": "bets"}, "choose = 'bets': use 'best' or 'last'; did you mean 'best'?"),
        ({"choose": 3}, "choose = 3: use 'best' or 'last'"),
        ({"points": "x"}, "points = 'x': use a whole number or a dict"),
        ({"points": {"a": "b"}}, "points.a = 'b': use a whole number"),
        ({"inner": {"dept": 3}}, "inner.dept = 3: unknown key; did you mean 'depth'?"),
        ({"inner": {"depth": 0}}, "inner.depth = 0: use a whole number, 1 or more"),
        ({"inner": 3}, "inner = 3: use a dict"),
        ({"shar": 1}, "shar = 1: unknown key; did you mean 'share'?"),
    ],
)
def test_a_message_has_field_value_rule_and_remedy(given, said):
    problems = Problems()
    read(Outer, given, problems)
    found = [str(problem) for problem in problems]
    assert said in found
    # The other types of a union may have words of their own, but not about another value.
    assert {line.partition(" = ")[0] for line in found} <= {said.partition(" = ")[0], "points"}


def test_arguments_of_a_users_own_function_are_told_alike():
    def network(width: int, names: list[str]) -> None: ...

    with pytest.raises(InvalidInput) as caught:
        fit_arguments(network, {"width": "w", "names": ["a", 3]}, {}, prefix="network_args.")
    assert [str(problem) for problem in caught.value.problems] == [
        "network_args.width = 'w': use a whole number",
        "network_args.names.1 = 3: use text",
    ]
