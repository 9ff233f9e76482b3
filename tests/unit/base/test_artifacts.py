import pytest
from kfp import dsl

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact, check_kind


def test_an_artifact_of_the_right_kind_passes():
    check_kind(LocalArtifact("/x", metadata={"kind": "ledger"}), "ledger")


def test_an_optional_input_may_be_absent():
    check_kind(None, "model")


def test_kubeflows_own_artifacts_satisfy_the_protocol():
    check_kind(dsl.Model(uri="/x", metadata={"kind": "model"}), "model")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        pytest.param({"kind": "model"}, "baseline = '/x': this is a model", id="another-kind"),
        pytest.param({}, "baseline = '/x': .*no 'kind'", id="not-ours"),
    ],
)
def test_a_wrong_artifact_is_named_with_its_port(metadata, message):
    with pytest.raises(InvalidInput, match=message):
        check_kind(LocalArtifact("/x", metadata=metadata), "ledger", field="baseline")
