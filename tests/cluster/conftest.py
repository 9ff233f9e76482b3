"""The Kubeflow that `KUBESTILL_HOST` names, or the double of it, for one test session.

All workers of a session share one mark. Whoever starts the session sets it, starts the double where
that is wanted, and cleans up at the end; workers only look.
"""

from __future__ import annotations

import os
import sys
import tempfile
import uuid
from pathlib import Path

import pytest

# Test modules are imported by path; the helpers beside them by name.
sys.path.insert(0, str(Path(__file__).parent))

from cleanup import clean, existing_versions  # noqa: E402
from double import Double, double  # noqa: E402
from kube import Pods  # noqa: E402
from session import Cluster, connect  # noqa: E402

from kubestill.errors import KubestillError  # noqa: E402

_NEEDED = ("KUBESTILL_TEST_IMAGE", "KUBESTILL_TEST_ROOT")
_LONG = ("test_retraining", "test_resuming", "test_distillation", "test_claims")
_session = pytest.StashKey[dict[str, object]]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin a session: its mark, the double, and which versions are there already."""
    if hasattr(config, "workerinput") or "KUBESTILL_TEST_MARK" in os.environ:
        return
    session: dict[str, object] = {}
    if os.environ.get("KUBESTILL_TEST_DOUBLE"):
        manager = double(os.environ.get("KUBESTILL_TEST_MUTATION", ""))
        served: Double = manager.__enter__()
        session["double"] = manager
        os.environ |= served.environment
    if _missing():
        config.stash[_session] = session
        return
    os.environ["KUBESTILL_TEST_MARK"] = f"kubestill-test-{uuid.uuid4().hex[:8]}"
    session["folder"] = tempfile.TemporaryDirectory()
    config.stash[_session] = session


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, so that no worker is left with one at the end."""
    order = {name: place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(_LONG)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Look what is there before the first test, where one of ours is to run at all.

    Not when collection ends: xdist's controller collects nothing and hears no end of it.
    """
    ours = any(item.get_closest_marker("cluster") for item in session.items)
    here = session.config.stash.get(_session, {})
    if (ours or _distributes(session.config)) and "folder" in here:
        here["versions"] = existing_versions(_connect(here))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove whatever the session has made."""
    here = session.config.stash.get(_session, {})
    if "versions" in here:
        left = clean(_connect(here), here["versions"])  # pyright: ignore[reportArgumentType]
        if left:
            print("\nleft behind on the cluster:\n" + "\n".join(f"  {one}" for one in left))
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the double."""
    here = config.stash.get(_session, {})
    if "double" in here:
        here["double"].__exit__(None, None, None)  # pyright: ignore[reportAttributeAccessIssue]
    if "folder" in here:
        here["folder"].cleanup()  # pyright: ignore[reportAttributeAccessIssue]
        del os.environ["KUBESTILL_TEST_MARK"]


def _connect(here: dict[str, object]) -> Cluster:
    return connect(Path(here["folder"].name))  # pyright: ignore[reportAttributeAccessIssue]


def _distributes(config: pytest.Config) -> bool:
    """Whether xdist has workers that collect for this process."""
    return bool(getattr(config.option, "dist", "no") != "no" and getattr(config.option, "tx", []))


def _missing() -> str:
    """Say why there is no cluster to test on; empty where there is one."""
    if not os.environ.get("KUBESTILL_HOST"):
        return "KUBESTILL_HOST names no Kubeflow; `make test-cluster DOUBLE=1` takes the double"
    lacking = [name for name in _NEEDED if not os.environ.get(name)]
    return f"set {', '.join(lacking)}; see docs/install.md" if lacking else ""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The Kubeflow under test."""
    if why := _missing():
        pytest.skip(why)
    return connect(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="session")
def stored(cluster: Cluster) -> Cluster:
    """The same, for tests that read or write its store from this machine."""
    try:
        cluster.store().check_writable()
    except KubestillError as error:
        pytest.skip(f"this machine cannot write to KUBESTILL_TEST_ROOT: {error}")
    return cluster


@pytest.fixture(scope="session")
def pods(cluster: Cluster) -> Pods:
    """Its pods, for tests that touch them."""
    if not cluster.kube_config:
        pytest.skip("KUBESTILL_TEST_KUBECONFIG names no kube config: pods cannot be touched")
    return Pods(cluster.kube_config, cluster.connection.namespace)
