from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeflow import Kubeflow, kubeflow, make_package
from kubestill.assets.packages import Package
from kubestill.client import Api, Connection


@pytest.fixture(autouse=True)
def no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep away from the cluster that this machine's kube config may point at."""
    nowhere = str(tmp_path / "no-kube-config")
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", nowhere)


@pytest.fixture
def server() -> Iterator[Kubeflow]:
    with kubeflow() as state:
        yield state


@pytest.fixture
def api(server: Kubeflow) -> Api:
    return Api(Connection(host=server.host), pauses=(0.01, 0.01))


@pytest.fixture
def package() -> Package:
    return make_package("hello")
