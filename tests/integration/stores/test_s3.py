"""What is S3's own: servers that ignore conditions, endpoints and keys, checksums, leftovers."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest
from click.testing import CliRunner

from emulators import Fault, FaultProxy, is_upload
from kubestill.cli import main
from kubestill.errors import InvalidInput, PermissionDenied, StoreError, StoreUnavailable
from kubestill.runtime.base.kubernetes import ACCOUNT_VARIABLE
from kubestill.runtime.checkpoints.place import resolve_place
from kubestill.runtime.stores import ABSENT, open_store, s3_client

Habit = Literal["ignores", "checks, then writes", "revives", "has none"]


class Careless(ThreadingHTTPServer):
    """A server of objects that does one thing wrong, as real ones do or did.

    `ignores`: conditions, as MinIO until 2023. `checks, then writes`: without a lock, as SeaweedFS
    until 4.16. `revives`: replaces a version that was deleted, as MinIO until 2025-08.
    """

    daemon_threads = True

    def __init__(self, habit: Habit):
        self.habit = habit
        self.objects: dict[str, bytes] = {}
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Careless)


class _Careless(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Careless

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        conditions = "If-Match" in self.headers or "If-None-Match" in self.headers
        if self.server.habit == "has none" and conditions:
            return self._answer(501)
        if self.server.habit == "checks, then writes":
            refused = self._refused()
            time.sleep(0.05)
        else:
            self.server.lock.acquire()
            refused = self.server.habit != "ignores" and self._refused()
        if not refused:
            self.server.objects[self.path] = content
        if self.server.lock.locked():
            self.server.lock.release()
        self._answer(412 if refused else 200, etag=tag(content))

    def do_GET(self) -> None:
        content = self.server.objects.get(self.path.partition("?")[0])
        self._answer(404 if content is None else 200, content or b"", etag=tag(content or b""))

    def do_DELETE(self) -> None:
        self.server.objects.pop(self.path, None)
        self._answer(204)

    def _refused(self) -> bool:
        content = self.server.objects.get(self.path)
        if "If-None-Match" in self.headers:
            return content is not None
        if "If-Match" not in self.headers or (content is None and self.server.habit == "revives"):
            return False
        return content is None or tag(content) != self.headers["If-Match"]

    def _answer(self, status: int, content: bytes = b"", etag: str = "") -> None:
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", etag)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def tag(content: bytes) -> str:
    return f'"{md5(content).hexdigest()}"'


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[str]:
    """Serve in the background; yield the address without its scheme."""
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("habit", "said"),
    [
        ("ignores", r"of 3 that created one object at once 3 were told they had"),
        ("checks, then writes", r"of 3 that created one object at once [23] were told they had"),
        ("revives", "it replaced a version that was not there"),
        ("has none", "it answers that it has not implemented them"),
    ],
)
def test_a_server_that_does_not_honour_conditions_is_refused(
    monkeypatch: pytest.MonkeyPatch, habit: Habit, said: str
) -> None:
    server = Careless(habit)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    with serving(server) as address:
        monkeypatch.setenv("KUBESTILL_MINIO_ENDPOINT", address)
        refusal = rf"http://{address} does not honour conditions on writes \({said}\)"
        with pytest.raises(InvalidInput, match=rf"checkpoint_uri = .*{refusal}.* use a server"):
            resolve_place("minio://bucket/root", "", "f00", "", owner="me")
        store = open_store("minio://bucket/root")
        with pytest.raises(StoreError, match=refusal):
            store.cell("ledger").swap(b"1", expect=ABSENT)
        # What needs no condition works.
        store.put("x", b"content")
        assert store.get("x") == b"content"
        assert list(server.objects) == ["/bucket/root/x"]


@pytest.mark.parametrize("kind", ["repeat", "late"])
@pytest.mark.parametrize("times", [1, 3, 1000])
def test_a_gateway_that_repeats_or_refuses_does_not_put_a_good_server_in_the_wrong(
    s3_proxy: FaultProxy, s3: Any, kind: Any, times: int
) -> None:
    """Of all who race, some or all are told that they lost: the winner among them."""
    connection = s3_client.connect("s3", s3.uri)
    connection.honoured.clear()
    s3_proxy.faults = [Fault(kind, times=times, status=412, match=is_upload)]
    cell = open_store(s3.uri).cell("ledger")
    assert cell.swap(b"1", expect=ABSENT)
    assert cell.read()[0] == b"1"
    assert connection.honoured == [True]


def test_a_server_that_refuses_every_condition_is_not_said_to_ignore_them(
    s3_proxy: FaultProxy, s3: Any
) -> None:
    connection = s3_client.connect("s3", s3.uri)
    connection.honoured.clear()
    s3_proxy.faults = [Fault("status", times=1000, status=412, match=is_upload)]
    with pytest.raises(StoreUnavailable, match="refused 9 writes whose condition .* held"):
        open_store(s3.uri, deadline=0.1).cell("ledger").swap(b"1", expect=ABSENT)
    assert connection.honoured == []
    s3_proxy.faults = []
    assert open_store(s3.uri).cell("ledger").swap(b"1", expect=ABSENT)


def test_doctor_finds_such_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Careless("ignores")) as address:
        monkeypatch.setenv("KUBESTILL_MINIO_ENDPOINT", address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
        arguments = ["doctor", "--host", f"http://{address}", "--store", "minio://bucket/root"]
        result = CliRunner().invoke(main, arguments)

    assert result.exit_code == 1
    assert f"http://{address} does not honour conditions on writes" in result.output


def test_the_server_behind_minio_is_its_own(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBESTILL_MINIO_ENDPOINT", s3.emulator.host.removeprefix("http://"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    store = open_store(f"minio://{s3.bucket}/{s3.folder}")
    store.check_writable()
    version = store.cell("ledger").swap(b"1", expect=ABSENT)

    assert store.cell("ledger").read() == (b"1", version)
    assert store.uri == f"minio://{s3.bucket}/{s3.folder}"
    with pytest.raises(StoreUnavailable, match="Could not connect"):
        open_store(s3.uri, deadline=0.1).get("ledger")


def test_no_server_for_minio_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "KUBEFLOW_HOSTS", ("minio-service.invalid",))
    s3_client._kubeflow_endpoint.cache_clear()  # pyright: ignore
    for name in ("KUBESTILL_MINIO_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(PermissionDenied, match="set KUBESTILL_MINIO_ENDPOINT to its address"):
        open_store("minio://bucket/x").put("x", b"")
    s3_client._kubeflow_endpoint.cache_clear()  # pyright: ignore


def test_missing_keys_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "missing"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "missing"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(PermissionDenied, match="found no credentials: set AWS_ACCESS_KEY_ID"):
        open_store("s3://bucket/x").put("x", b"")


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("AWS_ACCESS_KEY_ID", "the server does not know the access key"),
        ("AWS_SECRET_ACCESS_KEY", "the secret key is not the access key's"),
    ],
)
def test_wrong_keys_say_which(
    s3: Any, monkeypatch: pytest.MonkeyPatch, variable: str, said: str
) -> None:
    monkeypatch.setenv(variable, "wrong")
    with pytest.raises(PermissionDenied, match=f"{said}: grant s3:PutObject on s3://"):
        open_store(s3.uri).put("x", b"")


def test_without_the_package_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['botocore'] = None\n"
        "from kubestill.runtime.stores import open_store\n"
        "try: open_store('s3://bucket/x')\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "uri = 's3://bucket/x': needs botocore" in done.stdout
    assert "pip install 'kubestill[s3]'" in done.stdout


def test_content_that_is_not_what_was_written_is_refused(s3: Any, tmp_path: Path) -> None:
    store = open_store(s3.uri, deadline=0.3)
    store.put("x", b"content")
    place = {"Bucket": s3.bucket, "Key": f"{s3.folder}/x"}
    labels = s3.emulator.client.head_object(**place)["Metadata"]
    s3.emulator.client.put_object(**place, Body=b"Content", Metadata=labels)

    with pytest.raises(StoreUnavailable, match="arrived with another checksum"):
        store.get("x")
    with pytest.raises(StoreUnavailable, match="arrived with another checksum"):
        store.download("x", str(tmp_path / "x"))
    assert list(tmp_path.iterdir()) == []


def test_what_others_have_written_is_read(s3: Any, tmp_path: Path) -> None:
    s3.emulator.client.put_object(Bucket=s3.bucket, Key=f"{s3.folder}/rows.csv", Body=b"a,b")
    store = open_store(s3.uri)
    store.download("rows.csv", str(tmp_path / "rows.csv"))

    assert store.get("rows.csv") == (tmp_path / "rows.csv").read_bytes() == b"a,b"


def test_check_writable_sweeps_uploads_that_died(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import timedelta

    from kubestill.runtime.stores import s3 as module

    place = {"Bucket": s3.bucket, "Key": f"{s3.folder}/big"}
    s3.emulator.client.create_multipart_upload(**place)
    open_store(s3.uri).check_writable()
    assert s3.emulator.uploads(s3.folder) == [f"{s3.folder}/big"]

    monkeypatch.setattr(module, "_ABANDONED", timedelta(seconds=-5))
    open_store(s3.uri).check_writable()
    assert s3.emulator.uploads(s3.folder) == []


class _Kubernetes(BaseHTTPRequestHandler):
    """Kubernetes' API as far as one secret goes."""

    def do_GET(self) -> None:
        known = self.path == "/api/v1/namespaces/team/secrets/mlpipeline-minio-artifact"
        allowed = self.headers["Authorization"] == "Bearer pod"
        data = {"accesskey": "tester", "secretkey": "tested"}
        encoded = {name: base64.b64encode(value.encode()).decode() for name, value in data.items()}
        self.send_response(200 if known and allowed else 403)
        self.end_headers()
        self.wfile.write(json.dumps({"data": encoded}).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A service account as Kubernetes mounts it, and an API server that knows it."""
    certificate, key = tmp_path / "ca.crt", tmp_path / "key"
    options = (
        "-x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=k -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(
        ["openssl", "req", *options.split(), "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    (tmp_path / "token").write_text("pod")
    (tmp_path / "namespace").write_text("team")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Kubernetes)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv(ACCOUNT_VARIABLE, str(tmp_path))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.server_port))
    with serving(server):
        yield tmp_path


def test_in_a_pod_the_keys_are_those_of_kubeflow(
    s3: Any, pod: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("KUBESTILL_MINIO_ENDPOINT", s3.emulator.host)
    uri = f"minio://{s3.bucket}/{s3.folder}"
    (pod / "token").write_text("somebody else")
    with pytest.raises(
        PermissionDenied, match="mlpipeline-minio-artifact in namespace team: .*403"
    ):
        open_store(uri).put("x", b"")
    (pod / "token").write_text("pod")
    open_store(uri).put("x", b"content")

    assert s3.names() == ["x"]
