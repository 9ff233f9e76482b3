"""What a step writes as its outputs is read within bounds: its image may be a stranger's."""

# Protobuf makes its classes at run time.
# pyright: reportAttributeAccessIssue=false
import pytest
from kfp.pipeline_spec import pipeline_spec_pb2

from kubestill.errors import KubestillError
from kubestill.local.backend import StoredArtifact, build_input, read_outputs

_DEEP, _LARGE = "[" * 100_000, "x" * (9 << 20)


@pytest.mark.parametrize("file", ["output_metadata.json", "value"])
@pytest.mark.parametrize(
    ("text", "said"),
    [(_DEEP, "recursion"), (f'"{_LARGE}"', "more than 8,388,608 characters"), ("NaN?", "")],
    ids=["deep", "large", "broken"],
)
def test_outputs_that_no_launcher_takes_fail_the_task(tmp_path, file, text, said):
    (tmp_path / file).write_text(text)
    place = {"outputFile": str(tmp_path / "value")}
    outputs = {"parameters": {"value": place}, "artifacts": {}}
    outputs["outputFile"] = str(tmp_path / "output_metadata.json")
    component = pipeline_spec_pb2.ComponentSpec()
    kind = pipeline_spec_pb2.ParameterType.LIST
    component.output_definitions.parameters["value"].parameter_type = kind
    with pytest.raises(KubestillError, match=f"(?s){said}.*launcher fails the task"):
        read_outputs({"outputs": outputs}, component)


@pytest.mark.parametrize("listed", [False, True], ids=["alone", "in a list"])
def test_an_artifact_that_comes_twice_is_refused_as_by_kubeflow(tmp_path, listed):
    component = pipeline_spec_pb2.ComponentSpec()
    for name in ("first", "second"):
        component.input_definitions.artifacts[name].is_artifact_list = listed
    one, other = (
        StoredArtifact(number=number, uri=f"/rows/{number}", metadata={}) for number in (7, 8)
    )
    fine = {"first": [one] if listed else one, "second": [other] if listed else other}
    assert set(build_input(component, fine, str(tmp_path))["inputs"]["artifacts"]) == set(fine)
    twice = fine | {"second": [other, one] if listed else one}
    with pytest.raises(KubestillError, match="first and second are one artifact"):
        build_input(component, twice, str(tmp_path))
