"""A promoted model in the Kubeflow Model Registry, over HTTP."""

from __future__ import annotations

import json
import socket
from contextlib import nullcontext
from typing import Any

import pytest

from kubestill.errors import InvalidInput, Problems
from kubestill.runtime.retraining import Champion
from kubestill.runtime.retraining.decision import DecisionRecord, Score
from kubestill.runtime.retraining.kubeflow import NotRegistered, check_address, register
from model_registry import ModelRegistry, model_registry

URI = "gs://bucket/flights/models/w1/model"


@pytest.fixture(params=["v1", "v1alpha3"])
def served(request: pytest.FixtureRequest):
    with model_registry(request.param) as served:
        yield served


def champion(version: int = 1, digest: str = "d1") -> Champion:
    scores = {
        "log_loss": Score(value=0.5, low=0.4, high=0.6, rows=9),
        "auc": Score(value=None, low=None, high=None, rows=9),
    }
    decision = DecisionRecord(
        decision="promote",
        reason="It is better.",
        model=digest,
        baseline="",
        dataset="d",
        scores=scores,
    )
    return Champion(
        version=version,
        run_id="run-1",
        window="w1",
        promoted_at="2026-01-01T00:00:00Z",
        folder="models/w1",
        model_digest=digest,
        decision=decision,
    )


def test_a_line_of_champions_is_one_model_with_versions(served: ModelRegistry) -> None:
    assert register(served.host, "flights", champion(), URI) == "version 1 of 'flights' (id 1)"
    register(f"{served.host}/", "flights", champion(2, "d2"), f"{URI}2")
    assert [one["name"] for one in served.models] == ["flights"]
    assert [one["name"] for one in served.versions] == ["1", "2"]
    assert [(one["uri"], one["version"]) for one in served.artifacts] == [
        (URI, "1"),
        (f"{URI}2", "2"),
    ]
    told = served.versions[0]["customProperties"]
    assert told["log_loss"] == {"metadataType": "MetadataDoubleValue", "double_value": 0.5}
    assert told["digest"]["string_value"] == "d1"
    assert "auc" not in told


def test_an_interrupted_registration_is_completed_and_a_whole_one_found(
    served: ModelRegistry,
) -> None:
    served.failing = "artifacts"
    with pytest.raises(NotRegistered, match="500: .*the database is gone"):
        register(served.host, "flights", champion(), URI)
    assert (len(served.versions), len(served.artifacts)) == (1, 0)
    served.failing = ""
    for _ in range(2):
        register(served.host, "flights", champion(), URI)
    assert (len(served.models), len(served.versions), len(served.artifacts)) == (1, 1, 1)


def test_a_version_that_is_another_model_is_left_alone(served: ModelRegistry) -> None:
    register(served.host, "flights", champion(), URI)
    with pytest.raises(NotRegistered, match="is another model already, at gs://bucket"):
        register(served.host, "flights", champion(digest="other"), "gs://elsewhere")
    assert json.dumps(served.artifacts).count("elsewhere") == 0


def test_the_pods_token_is_shown(served: ModelRegistry, tmp_path, monkeypatch) -> None:
    served.token = "secret"
    with pytest.raises(NotRegistered, match="401: .*who are you"):
        register(served.host, "flights", champion(), URI)
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    register(served.host, "flights", champion(), URI)


@pytest.mark.parametrize(
    ("addresses", "shown"),
    [
        (["10.96.0.7"], True),
        (["fd00::7"], True),
        (["93.184.216.34"], False),
        (["10.96.0.7", "93.184.216.34"], False),
        (["2606:2800:220:1::1"], False),
    ],
)
def test_the_pods_token_stays_in_the_cluster(
    served: ModelRegistry, tmp_path, monkeypatch, addresses, shown
) -> None:
    served.token = "secret"
    (tmp_path / "token").write_text("secret")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    connect = socket.getaddrinfo

    def resolve(host: str, port: int | None, *rest: Any, **more: Any) -> list[Any]:
        if port is not None:  # the request itself
            return connect(host, port, *rest, **more)
        return [(None, None, None, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with nullcontext() if shown else pytest.raises(NotRegistered, match="401"):
        register(served.host, "flights", champion(), URI)


def test_an_empty_port_and_another_server() -> None:
    with model_registry("v9") as other, pytest.raises(NotRegistered, match="has no Model Registry"):
        register(other.host, "flights", champion(), URI)
    with pytest.raises(NotRegistered, match="gave no usable answer"):
        register("http://127.0.0.1:9", "flights", champion(), URI)


def test_an_address_without_a_scheme_is_refused() -> None:
    problems = Problems()
    check_address("model-registry:8080", problems)
    with pytest.raises(InvalidInput, match="give http://HOST:PORT"):
        problems.raise_if_any()
