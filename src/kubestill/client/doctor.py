"""Check everything that a run on the cluster will need, and say what to do where it is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from kubestill.client.api import Api
from kubestill.client.controller import Advice, check_retries
from kubestill.client.digests import find_image
from kubestill.client.kube import NotChecked
from kubestill.client.pools import NodeRequest, find_pool, list_nodes
from kubestill.client.server import check_server
from kubestill.client.trainer import check_trainer
from kubestill.errors import ClusterError, KubestillError, NoSuchBucket, PermissionDenied
from kubestill.runtime.base.redaction import redact


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool | None
    """None where it could not be looked at from here."""
    said: str
    """The finding, or what to do about it."""
    advice: bool = False
    """Whether it works, but could be better: `said` says how."""


def examine(
    api: Api,
    *,
    stores: Sequence[str] = (),
    images: Sequence[str] = (),
    request: NodeRequest | None = None,
    runtimes: Set[str] = frozenset(),
) -> Iterator[Finding]:
    """Run one check after the other; skip those that depend on a failed one.

    Args:
        api: The installation.
        stores: Checkpoint roots, registries or pipeline roots to write to and read from.
        images: Images that must be there.
        request: What steps ask of their nodes; None looks at no nodes.
        runtimes: Training runtimes that steps name.
    """
    yield _look("packages", _packages)
    host = _look("host", lambda: _host(api))
    yield host
    if host.ok:
        yield _look("access", lambda: _access(api))
    yield _look("retries", check_retries)
    for store in stores:
        yield _look("store", lambda store=store: _store(store))
    for image in images:
        yield _look(f"image {image}", lambda image=image: find_image(image))
    if request:
        yield _look("nodes", lambda: find_pool(request, list_nodes()))
    if runtimes:
        yield _look("trainer", lambda: check_trainer(runtimes))


def _look(name: str, check: Callable[[], str]) -> Finding:
    ok, advice = True, False
    try:
        said = check()
    except NotChecked as error:
        ok, said = None, str(error)
    except Advice as error:
        advice, said = True, str(error)
    except KubestillError as error:
        ok, said = False, str(error)
    # What is looked at comes from people, and messages quote it.
    return Finding(name=redact(name), ok=ok, said=redact(said), advice=advice)


def _packages() -> str:
    found: list[str] = []
    for name in ("kubestill", "kfp", "kfp-kubernetes"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            raise ClusterError(f"{name} is missing: pip install 'kubestill[client]'") from None
    return ", ".join(found)


def _host(api: Api) -> str:
    too_old = check_server(api)
    if too_old:
        raise ClusterError(f"{api.connection.host}: {too_old}")
    health = api.get("healthz")
    users = "several users" if health.get("multi_user") else "a single user"
    if health.get("multi_user") and not api.connection.namespace:
        raise ClusterError(
            f"{api.connection.host} serves several users: name yours with --namespace"
        )
    version = str(health.get("tag_name") or "")
    shown = f"Kubeflow Pipelines {version}" if version else "Kubeflow of a version it does not tell"
    return f"{api.connection.host}, {shown}, {users}"


def _access(api: Api) -> str:
    """Read what a run needs to read; a run's right to write shows only when it is written."""
    namespace = api.connection.namespace
    for path in ("pipelines", "runs", "recurringruns"):
        api.get(path, page_size=1, namespace=namespace)
    return f"signed in with {api.connection.way_in}"


def _store(uri: str) -> str:
    """Ask of a store what a training run asks of its checkpoint_uri before it begins."""
    from kubestill.runtime.stores import open_store

    if redact(uri) != uri:
        raise ClusterError(
            f"{uri} holds credentials, which every reader of the run would see: give them to the "
            "pods as a secret, and the URI without them"
        )
    try:
        open_store(uri).check_writable()
    except NoSuchBucket:
        raise
    except PermissionDenied as error:
        if "://" not in uri:
            raise
        raise NotChecked(
            f"{uri} cannot be judged with this machine's credentials ({error}). The pods use their "
            "own: a step that may not write there says so before it trains"
        ) from error
    return f"{uri} can be written, read and deleted from with this machine's credentials"
