"""Where Kubeflow is and how to sign in, and that secrets never show."""

import os
import threading

import pytest

from kubestill.client import read_connection
from kubestill.errors import InvalidInput

SECRET = "hunter2-secret"


def test_flags_come_before_the_environment_before_the_file(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("host: https://file.example\nnamespace: from-file\ntoken: from-file\n")
    environment = {
        "KUBESTILL_CONFIG": str(file),
        "KUBESTILL_HOST": "https://environment.example/",
        "KUBESTILL_NAMESPACE": "from-environment",
    }
    connection = read_connection({"namespace": "from-flag", "host": ""}, environment)
    assert connection.host == "https://environment.example"
    assert connection.namespace == "from-flag"
    assert connection.headers() == {"Authorization": "Bearer from-file"}


@pytest.mark.parametrize(
    ("given", "headers"),
    [
        ({"token": SECRET}, {"Authorization": f"Bearer {SECRET}"}),
        ({"cookie": f"authservice_session={SECRET}"}, {"Cookie": f"authservice_session={SECRET}"}),
        ({"header": f"X-Goog-IAP: {SECRET}"}, {"X-Goog-IAP": SECRET}),
        ({}, {}),
    ],
    ids=["bearer", "dex", "iap", "none"],
)
def test_each_way_in_becomes_headers_and_shows_nowhere(given, headers):
    connection = read_connection({"host": "kubeflow.example", **given}, {})
    assert connection.host == "https://kubeflow.example"
    assert connection.headers() == headers
    assert SECRET not in repr(connection) + connection.way_in


def test_a_secret_may_stand_in_a_file(tmp_path):
    (tmp_path / "token").write_text(SECRET + "\n")
    connection = read_connection({"host": "h", "token": f"@{tmp_path / 'token'}"}, {})
    assert connection.headers() == {"Authorization": f"Bearer {SECRET}"}


def test_in_a_pod_the_mounted_token_is_read_anew_for_each_request(tmp_path):
    token = tmp_path / "token"
    token.write_text("first")
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KF_PIPELINES_SA_TOKEN_PATH": str(token)}
    connection = read_connection({}, pod)
    assert connection.host == "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
    assert connection.headers() == {"Authorization": "Bearer first"}
    token.write_text("second")
    assert connection.headers() == {"Authorization": "Bearer second"}


def test_the_pods_token_goes_to_no_host_outside_the_cluster(tmp_path):
    (tmp_path / "token").write_text(SECRET)
    pod = {"KF_PIPELINES_SA_TOKEN_PATH": str(tmp_path / "token")}
    inside = read_connection({"host": "http://ml-pipeline.user.svc:8888"}, pod)
    assert inside.headers() == {"Authorization": f"Bearer {SECRET}"}
    assert read_connection({"host": "https://elsewhere.example"}, pod).headers() == {}


@pytest.mark.parametrize(
    ("given", "config", "said"),
    [
        ({}, "", "where is Kubeflow"),
        ({"host": f"https://me:{SECRET}@kubeflow.example"}, "", r"https://\*\*\*@kubeflow.example"),
        ({"host": "https://kubeflow.example:port"}, "", "is no URL"),
        ({"host": "h", "header": SECRET}, "", "Name: value"),
        ({"host": "h", "token": "@/no/such/file"}, "", "cannot be read"),
        ({"host": "h", "token": "t", "ca_file": "/no/such/file"}, "", "there is no such file"),
        ({"host": "h", "token": f"{SECRET}€"}, "", "no header can hold"),
        ({"host": "h"}, f"token: &a [{SECRET}, *a]", "is no YAML"),
        ({"host": "h"}, f"tokken: {SECRET}", "did you mean 'token'"),
        ({"host": "h"}, f"token: [{SECRET}", "is no YAML"),
        ({"host": "h"}, SECRET, "write lines such as"),
    ],
    ids=[
        "no-host",
        "user-in-host",
        "port",
        "header",
        "file",
        "no-ca-file",
        "euro",
        "alias",
        "setting",
        "yaml",
        "no-mapping",
    ],
)
def test_wrong_settings_are_reported_without_the_secret(tmp_path, given, config, said):
    file = tmp_path / "config.yaml"
    file.write_text(config)
    with pytest.raises(InvalidInput, match=said) as error:
        read_connection(given, {"KUBESTILL_CONFIG": str(file)})
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("way", ["token", "cookie", "header", "token_file", ""])
@pytest.mark.parametrize(
    ("host", "exposed"),
    [
        ("http://kubeflow.example", True),
        ("http://10.0.0.1:8080", True),
        ("http://localhost.example", True),
        ("http://127.0.0.1.example", True),
        ("http://kubeflow.svc.example", True),
        ("https://kubeflow.example", False),
        ("http://localhost:8080", False),
        ("http://127.0.0.1:8080", False),
        ("http://[::1]:8080", False),
        ("http://ml-pipeline.kubeflow.svc:8888", False),
        ("http://ml-pipeline.kubeflow.svc.cluster.local:8888", False),
    ],
)
def test_credentials_over_plain_http_are_warned_of(tmp_path, host, exposed, way):
    (tmp_path / "file").write_text(SECRET)
    values = {"header": f"A: {SECRET}", "token_file": str(tmp_path / "file"), "": ""}
    given = {"host": host} | ({way: values.get(way, SECRET)} if way else {})
    warning = read_connection(given, {}).exposure
    assert bool(warning) == (exposed and bool(way))
    assert SECRET not in warning


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("token", "a", "b"),
        ("cookie", "session=a", "session=b"),
        ("header", "X-Goog-IAP: a", "X-Goog-IAP: b"),
    ],
)
def test_a_file_that_says_something_new_is_read_again(tmp_path, name, first, second):
    file = tmp_path / "secret"
    file.write_text(first)
    connection = read_connection({"host": "h", name: f"@{file}"}, {})
    assert connection.renewed() is None
    file.write_text(second + "\n")
    renewed = connection.renewed()
    assert renewed is not None
    assert getattr(renewed, name) == second
    assert f" of {file}" in connection.way_in
    for useless in ("", "two\nlines", "kein ascii: ä"):
        file.write_text(useless)
        assert renewed.renewed() is None
    file.unlink()
    assert renewed.renewed() is None


def test_a_pipe_is_read_once(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("a",))
    writer.start()
    connection = read_connection({"host": "h", "token": f"@{pipe}"}, {})
    writer.join()
    assert connection.token == "a"
    assert connection.renewed() is None


@pytest.mark.parametrize("name", ["token", "cookie", "header"])
def test_a_secret_that_no_header_can_hold_is_refused_without_being_shown(name):
    with pytest.raises(InvalidInput, match=name) as error:
        read_connection({"host": "h", name: f"A: {SECRET}\r\nB: x"}, {})
    assert SECRET not in str(error.value)
