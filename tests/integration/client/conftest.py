import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from kubeflow import Kubeflow, kubeflow, make_package
from kubestill.assets.packages import Package
from kubestill.client import Api, Connection

Serve = Callable[[type[BaseHTTPRequestHandler]], None]


@pytest.fixture(autouse=True)
def no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep away from the cluster that this machine's kube config may point at."""
    nowhere = str(tmp_path / "no-kube-config")
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", nowhere)


@pytest.fixture
def serve_kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Serves Kubernetes' API by a handler of the test's own, and points the kube config at it."""
    with ExitStack() as ends:

        def serve(handler: type[BaseHTTPRequestHandler]) -> None:
            server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
            ends.callback(server.server_close)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
            thread.start()
            ends.callback(thread.join)
            ends.callback(server.shutdown)
            cluster = {"server": f"http://127.0.0.1:{server.server_port}"}
            content = {
                "clusters": [{"name": "c", "cluster": cluster}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
                "current-context": "x",
            }
            path = tmp_path / "kube.yaml"
            path.write_text(yaml.safe_dump(content))
            default = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
            monkeypatch.setattr(default, str(path))

        yield serve


@pytest.fixture
def server() -> Iterator[Kubeflow]:
    with kubeflow() as state:
        yield state


@pytest.fixture
def api(server: Kubeflow) -> Api:
    return Api(Connection(host=server.host), pause_s=0)


@pytest.fixture
def package() -> Package:
    return make_package("hello")
