import re

import pytest
from kfp import dsl

from kubestill.errors import InvalidInput
from kubestill.local import read_parameters


@dsl.component(base_image="python:3.11")
def step(text: str):
    pass


@dsl.pipeline(name="p")
def pipeline(
    needed: str,
    name: str = "",
    rows: int = 3,
    rate: float = 0.5,
    deep: bool = False,
    names: list = [],
    args: dict = {},
):
    step(text=needed)


SPEC = pipeline.pipeline_spec


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        pytest.param("name=1", "1", id="strings-stay-strings"),
        pytest.param("name=a=b", "a=b", id="only-the-first-equals-sign-splits"),
        pytest.param("rows=7", 7, id="int"),
        pytest.param("rate=1e-3", 1e-3, id="exponent"),
        pytest.param("rate=2", 2.0, id="whole-number-as-float"),
        pytest.param("deep=true", True, id="bool"),
        pytest.param("names=[a, b]", ["a", "b"], id="yaml-list"),
        pytest.param('args={"hidden": [8]}', {"hidden": [8]}, id="json-mapping"),
    ],
)
def test_an_assignment_gets_the_type_of_its_parameter(assignment, expected):
    given = read_parameters(SPEC, ["needed=x", assignment])
    assert given[assignment.partition("=")[0]] == expected


def test_assignments_override_the_file(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("needed: from-file\nrows: 5\nargs: {hidden: [8]}\n")
    given = read_parameters(SPEC, ["rows=6"], str(file))
    assert given == {"needed": "from-file", "rows": 6, "args": {"hidden": [8]}}


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        pytest.param(["rowz=1"], "rowz = '1': .* did you mean 'rows'", id="unknown-name"),
        pytest.param(["rows"], "write name=value", id="no-equals-sign"),
        pytest.param(["rows=1.5"], "rows = 1.5: give a whole number", id="fraction"),
        pytest.param(["rows=true"], "rows = 'true': give a whole number", id="bool-for-int"),
        pytest.param(["rate=fast"], "rate = 'fast': give a number", id="word-for-number"),
        pytest.param(["deep=1"], "deep = 1: give true or false", id="number-for-bool"),
        pytest.param(["args=[1]"], "give a mapping", id="list-for-mapping"),
        pytest.param(["names={a: 1}"], "give a list", id="mapping-for-list"),
        pytest.param(["names=[a"], "give a list", id="broken-yaml"),
        pytest.param(["args={a: 2026-02-30}"], "give a mapping", id="no-such-day"),
    ],
)
def test_a_wrong_assignment_is_refused(assignments, message):
    with pytest.raises(InvalidInput, match=message):
        read_parameters(SPEC, ["needed=x", *assignments])


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("- 1\n", id="not-a-mapping"),
        pytest.param("a: [", id="broken-yaml"),
        pytest.param(b"\xff\xfe\xff", id="not-text"),
        pytest.param("a: 1\n---\nb: 2\n", id="two-documents"),
        pytest.param("at: 2026-02-30\n", id="no-such-day"),
        pytest.param(
            "needed: &a [1,1,1,1,1,1,1,1,1]\n"
            + "".join(
                f"k{n}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
                for n, (before, name) in enumerate(zip("abcdefgh", "bcdefghi", strict=True))
            ),
            id="nine-levels-of-aliases",
        ),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, content):
    file = tmp_path / "params.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidInput, match=re.escape(str(file))):
        read_parameters(SPEC, ["needed=x"], str(file))


def test_all_problems_come_at_once(tmp_path):
    with pytest.raises(InvalidInput) as caught:
        read_parameters(SPEC, ["rowz=1", "rate=fast"], str(tmp_path / "missing.yaml"))
    fields = [problem.field for problem in caught.value.problems]
    assert fields == ["--params", "rowz", "rate", "needed"]
