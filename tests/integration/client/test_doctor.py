"""The doctor: what is in order, and what to do where it is not, on a real registry's answers."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner

from kubestill.cli import main
from kubestill.client.digests import find_image
from kubestill.errors import ClusterError

DIGEST = "sha256:" + "a" * 64


class _Registry(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:  # noqa: N802
        name, _, reference = self.path.removeprefix("/v2/").partition("/manifests/")
        allowed = self.headers.get("Authorization") == "Bearer anybody"
        if name == "secret/kubestill" or (name == "public/kubestill" and not allowed):
            self.send_response(401)
            realm = f"http://{self.headers['Host']}/token"
            if name == "public/kubestill":
                self.send_header("WWW-Authenticate", f'Bearer realm="{realm}",service="r"')
        elif reference in ("0.1.0", DIGEST):
            self.send_response(200)
            self.send_header("Docker-Content-Digest", DIGEST)
        else:
            self.send_response(404)
        self.end_headers()

    def do_GET(self) -> None:  # noqa: N802
        content = b'{"token": "anybody"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def registry() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Registry)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_digest_is_found_and_a_tag_is_to_be_pinned(registry):
    assert find_image(f"{registry}/kubestill@{DIGEST}") == "is there"
    assert f"kubestill@{DIGEST}" in find_image(f"{registry}/kubestill:0.1.0")
    assert find_image(f"{registry}/public/kubestill@{DIGEST}") == "is there"


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("kubestill@sha256:" + "b" * 64, "make push"),
        ("secret/kubestill:0.1.0", "credentials"),
    ],
    ids=["no-such-digest", "private"],
)
def test_an_image_that_cannot_be_used_says_what_to_do(registry, image, said):
    with pytest.raises(ClusterError, match=said):
        find_image(f"{registry}/{image}")


def test_an_unreachable_registry_is_reported():
    with pytest.raises(ClusterError, match="cannot reach the registry 127.0.0.1:9"):
        find_image("127.0.0.1:9/kubestill:0.1.0")


def test_an_image_without_a_registry_is_refused():
    with pytest.raises(ClusterError, match="names no registry"):
        find_image("kubestill:0.1.0")


def test_all_is_well(server, registry, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBESTILL_HOST", server.host)
    image = f"{registry}/kubestill@{DIGEST}"
    arguments = ["doctor", "--store", str(tmp_path / "store"), "--image", image]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.count("✓") == 5
    assert "Kubeflow Pipelines 2.17.0" in result.output
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


def test_a_pipeline_s_checkpoints_and_registry_are_written_to(server, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBESTILL_HOST", server.host)
    (tmp_path / "file").write_text("no folder")
    given = {
        "source": str(tmp_path),
        "timestamp": "at",
        "target": "y",
        "registry": str(tmp_path / "file"),
        "checkpoint_uri": str(tmp_path / "checkpoints"),
    }
    parameters = [part for name, value in given.items() for part in ("-p", f"{name}={value}")]
    output = CliRunner().invoke(main, ["doctor", "continuous-retraining", *parameters]).output
    assert f"✓ store: {tmp_path}/checkpoints can be written" in output
    assert f"✗ store: {tmp_path}/file" in output


def test_everything_wrong_is_reported(server, registry, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBESTILL_HOST", server.host)
    monkeypatch.setenv("KUBESTILL_TOKEN", "expired")
    server.token = "another"
    (tmp_path / "file").write_text("no folder")
    arguments = ["doctor", "--store", str(tmp_path / "file"), "--image", f"{registry}/kubestill:9"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.output.count("✗") == 3
    assert "sign in" in result.output
    assert "make push" in result.output


def examined(server, monkeypatch, *arguments: str) -> str:
    monkeypatch.setenv("KUBESTILL_HOST", server.host)
    return CliRunner().invoke(main, ["doctor", *arguments]).output


def test_a_store_that_this_machine_has_no_keys_for_is_not_judged(server, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    output = examined(server, monkeypatch, "--store", "s3://bucket/checkpoints")
    assert "? store: s3://bucket/checkpoints cannot be judged with this machine's" in output
    assert "found no credentials" in output


def test_a_store_whose_server_only_the_cluster_knows_is_not_judged(server, monkeypatch):
    for name in ("KUBESTILL_MINIO_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    output = examined(server, monkeypatch, "--store", "minio://mlpipeline/kubestill")
    assert "? store: minio://mlpipeline/kubestill cannot be judged" in output
    assert "found no server" in output


def test_wrong_keys_are_not_judged_and_a_wrong_name_is(server, s3, monkeypatch):
    output = examined(server, monkeypatch, "--store", "s3://nobody-has-this-bucket/x")
    assert "✗ store: " in output
    assert "the bucket s3://nobody-has-this-bucket does not exist" in output
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-somebody-else")
    output = examined(server, monkeypatch, "--store", f"{s3.uri}/x")
    assert f"? store: {s3.uri}/x cannot be judged" in output
    assert "of-somebody-else" not in output


def test_a_wrong_name_on_cloud_storage_is_judged(server, gcs, monkeypatch):
    output = examined(server, monkeypatch, "--store", "gs://nobody-has-this-bucket/x")
    assert "✗ store: " in output


@pytest.mark.parametrize(
    "store", ["s3://user:S3CRET@bucket/x", "minio://S3CRET@bucket", "gs://b/x?token=S3CRET"]
)
def test_secrets_are_not_shown(server, monkeypatch, store):
    output = examined(server, monkeypatch, "--store", store)
    assert "✗ store: " in output
    assert "holds credentials" in output
    assert "S3CRET" not in output


def test_a_host_that_is_no_kubeflow_is_reported(registry, monkeypatch):
    monkeypatch.setenv("KUBESTILL_HOST", f"http://{registry}")
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "✗ host: " in result.output
    assert "not as Kubeflow Pipelines does" in result.output
    assert "anybody" not in result.output
