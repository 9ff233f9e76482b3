"""What goes over the wire, and what each refusal says to a person."""

import logging

import pytest

from kubeflow_description import find_problem, read_operations
from kubestill.client import Api, Connection
from kubestill.errors import ClusterError

SECRET = "hunter2-secret"


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (401, "sign in"),
        (403, "kubeflow-edit"),
        (404, "check the name"),
        (409, "exists already"),
        (500, "ml-pipeline"),
        (503, "ml-pipeline"),
    ],
)
def test_a_refusal_says_what_to_do(server, api, status, remedy):
    body = b'{"error": "because of that", "code": 2}'
    server.answers.append(lambda request: (status, "application/json", body))
    with pytest.raises(ClusterError, match=remedy) as error:
        api.get("pipelines")
    assert error.value.status == status
    assert "because of that" in str(error.value)
    assert server.host in str(error.value)


def test_an_unreachable_host_says_what_to_do():
    with pytest.raises(ClusterError, match="cannot reach .* port-forward") as error:
        Api(Connection(host="http://127.0.0.1:9"), pauses=()).get("healthz")
    assert error.value.status == 0


@pytest.mark.parametrize(
    "answer",
    [(302, "text/html", b""), (200, "text/html", b"<html>Log in</html>")],
    ids=["redirect", "page"],
)
def test_a_login_page_is_no_answer(server, api, answer):
    server.answers.append(lambda request: answer)
    with pytest.raises(ClusterError, match="login page .*no credentials") as error:
        api.get("pipelines")
    assert error.value.status == 401


def test_something_that_is_not_kubeflow_is_told(server, api):
    server.answers.append(lambda request: (200, "text/plain", b"hello"))
    with pytest.raises(ClusterError, match="does not answer as Kubeflow does"):
        api.get("pipelines")


def test_a_question_is_asked_again_but_nothing_is_created_twice(server, api):
    server.answers.append(lambda request: (503, "text/plain", b"") if server.answers else None)
    with pytest.raises(ClusterError):
        api.get("pipelines")
    with pytest.raises(ClusterError):
        api.post("experiments", {"display_name": "x"})
    assert server.requests == ["GET pipelines"] * 3 + ["POST experiments"]


def test_secrets_show_in_no_error_and_no_log(server, caplog):
    caplog.set_level(logging.DEBUG)
    server.token = "another"
    with pytest.raises(ClusterError) as error:
        Api(Connection(host=server.host, token=SECRET)).get("pipelines")
    assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
    assert SECRET not in str(error.value) + caplog.text + repr(error.value.__cause__)


def test_a_password_of_netrc_does_not_replace_ours(server, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password other\n")
    monkeypatch.setenv("NETRC", str(netrc))
    server.token = SECRET
    Api(Connection(host=server.host, token=SECRET)).get("pipelines")


@pytest.mark.parametrize(
    ("verb", "path", "queries", "body", "files", "said"),
    [
        ("GET", "pipelines", {"page"}, None, set(), "unknown queries"),
        ("GET", "pipeline", set(), None, set(), "no such operation"),
        ("POST", "recurringruns/a:stop", set(), None, set(), "no such operation"),
        ("POST", "runs", set(), {"name": "x"}, set(), "has no"),
        ("POST", "recurringruns", set(), {"max_concurrency": 1}, set(), "is no str"),
        ("POST", "recurringruns", set(), {"mode": "ON"}, set(), "is none of"),
        ("POST", "pipelines/upload_version", {"name"}, None, set(), "files"),
        ("POST", "experiments", set(), None, set(), "the body is missing"),
    ],
)
def test_the_description_refuses_what_kubeflow_would(verb, path, queries, body, files, said):
    found = find_problem(read_operations(), verb, "/apis/v2beta1/" + path, queries, body, files)
    assert said in found
