"""What goes over the wire, and what each refusal says to a person."""

import logging
import threading
import time

import pytest

from kubeflow import kubeflow
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
        Api(Connection(host="http://127.0.0.1:9"), pause_s=0).get("healthz")
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


def test_a_server_that_is_not_kubeflow_is_reported(server, api):
    server.answers.append(lambda request: (200, "text/plain", b"hello"))
    with pytest.raises(ClusterError, match="does not answer as Kubeflow does"):
        api.get("pipelines")


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.parametrize("headers", [{}, {"Retry-After": "0"}], ids=["plain", "retry-after"])
def test_a_question_is_asked_again_but_nothing_is_created_twice(server, api, status, headers):
    server.answers.append(lambda request: (status, "text/plain", b"", headers))
    for ask in (
        lambda: api.get("pipelines"),
        lambda: api.post("experiments", {"display_name": "x"}),
        lambda: api.upload("pipelines/upload_version", b"x", name="x"),
        lambda: api.delete("pipelines/x"),
    ):
        with pytest.raises(ClusterError) as error:
            ask()
        assert error.value.status == status
    assert server.requests == ["GET pipelines"] * 4 + [
        "POST experiments",
        "POST pipelines/upload_version",
        "DELETE pipelines/x",
    ]


@pytest.mark.parametrize(
    ("said", "waited"),
    [("1", 1), ("3600", 30), ("soon", 0), ("Fri, 31 Dec 9999 23:59:59 GMT", 30)],
    ids=["seconds", "an-hour", "unreadable", "date"],
)
def test_a_busy_server_says_when_to_ask_again(server, api, monkeypatch, said, waited):
    slept: list[float] = []
    own, sleep = threading.get_ident(), time.sleep

    def count(seconds: float) -> None:
        # Threads of the process, such as those that serve other tests, sleep as they did.
        slept.append(seconds) if threading.get_ident() == own else sleep(seconds)

    monkeypatch.setattr("urllib3.util.retry.time.sleep", count)
    answers = [(503, "text/plain", b"", {"Retry-After": said}), (200, "application/json", b"{}")]
    server.answers.append(lambda request: answers.pop(0))
    assert api.get("healthz") == {}
    assert sum(slept) == waited


def test_a_connection_that_breaks_off_is_a_question_asked_again(server, api):
    """What was sent may have been done, so a POST is not sent again."""

    def hang_up(request: str) -> None:
        raise ConnectionAbortedError

    server.answers.append(hang_up)
    for method, times in (("get", 4), ("post", 1)):
        server.requests.clear()
        with pytest.raises(ClusterError, match="cannot reach"):
            getattr(api, method)("pipelines")
        assert len(server.requests) == times


def test_a_redirect_elsewhere_takes_no_credentials_along(server):
    with kubeflow() as elsewhere:
        target = {"Location": f"{elsewhere.host}/apis/v2beta1/pipelines"}
        server.answers.append(lambda request: (302, "text/plain", b"", target))
        with pytest.raises(ClusterError, match="login page"):
            Api(Connection(host=server.host, token=SECRET), pause_s=0).get("pipelines")
        assert elsewhere.requests == []


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
