from collections.abc import Iterator

import pytest

from kubeflow import Kubeflow, kubeflow, make_package
from kubestill.assets.packages import Package
from kubestill.client import Api, Connection


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
