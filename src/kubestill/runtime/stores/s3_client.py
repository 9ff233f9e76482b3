"""One S3 client a process and endpoint, shared by every `s3://` and `minio://` store in it.

botocore is the part of boto3 that talks to the service; the rest of boto3 is not needed.

| variable | |
|---|---|
| `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` | the keys; botocore knows all other ways, too |
| `AWS_REGION`, `AWS_DEFAULT_REGION` | the bucket's region; us-east-1 where nothing says otherwise |
| `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL` | the server, where it is not Amazon's |
| `KUBESTILL_MINIO_ENDPOINT` | the server behind `minio://`, before those |
"""

# botocore is not typed.
# pyright: basic

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from botocore.config import Config
from botocore.session import get_session

from kubestill.errors import PermissionDenied
from kubestill.runtime.base.kubernetes import Cluster
from kubestill.runtime.stores.s3_secret import read_secret
from kubestill.runtime.stores.transfer import STREAMS, TIMEOUT

Scheme = Literal["s3", "minio"]

KUBEFLOW_HOSTS = ("seaweedfs.kubeflow", "minio-service.kubeflow")
"""The store that Kubeflow brings along: since 2.15, and before."""
_KUBEFLOW_PORT = 9000
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


@dataclass(frozen=True)
class Connection:
    """A client, and what was found out about its server."""

    client: Any
    """botocore.client.S3, which is not typed."""
    conditions: threading.Lock = field(default_factory=threading.Lock)
    """Held while it is found out whether the server honours conditions."""
    honoured: list[bool] = field(default_factory=list[bool])
    """Empty until then."""

    @property
    def endpoint(self) -> str:
        """The server's address."""
        return self.client.meta.endpoint_url


def connect(scheme: Scheme, uri: str) -> Connection:
    """Return this process's connection to the server (a forked child gets one of its own).

    Raises:
        PermissionDenied: There is no server or there are no keys for `uri`, which the message
            names.
    """
    endpoint = _minio_endpoint(uri) if scheme == "minio" else _amazon_endpoint()
    return _connect(os.getpid(), scheme, endpoint, tuple(map(os.environ.get, _KEYS)), TIMEOUT)


@cache
def _connect(
    pid: int,
    scheme: Scheme,
    endpoint: str | None,
    keys: tuple[str | None, ...],
    timeout: tuple[float, float],
) -> Connection:
    session = get_session()
    if scheme == "minio" and not keys[0] and (cluster := Cluster.here()):
        secret = read_secret(cluster)
        session.set_credentials(secret["accesskey"], secret["secretkey"])
    region = os.environ.get("AWS_REGION") or session.get_config_variable("region") or "us-east-1"
    config = Config(
        connect_timeout=timeout[0],
        read_timeout=timeout[1],
        # Patience is ours: one policy for every store, and every try may be counted.
        retries={"total_max_attempts": 1},
        max_pool_connections=4 * STREAMS,
        # We send and compare CRC-32C ourselves; botocore would read every body once more.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={
            "payload_signing_enabled": False,
            "addressing_style": "path" if scheme == "minio" else "auto",
        },
        signature_version="s3v4",
    )
    return Connection(
        session.create_client("s3", endpoint_url=endpoint, region_name=region, config=config)
    )


def _amazon_endpoint() -> str | None:
    # None leaves it to botocore, which knows configuration files as well. The variables are read
    # here, too, because whoever changes them means another connection.
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _minio_endpoint(uri: str) -> str:
    given = os.environ.get("KUBESTILL_MINIO_ENDPOINT") or _amazon_endpoint() or _kubeflow_endpoint()
    if given is None:
        raise PermissionDenied(
            f"{uri}: found no server: neither {' nor '.join(KUBEFLOW_HOSTS)} is known here: set "
            "KUBESTILL_MINIO_ENDPOINT to its address, such as http://minio-service.kubeflow:9000"
        )
    return given if "://" in given else f"http://{given}"


@cache
def _kubeflow_endpoint() -> str | None:
    for host in KUBEFLOW_HOSTS:
        with suppress(OSError):
            socket.getaddrinfo(host, _KUBEFLOW_PORT)
            return f"{host}:{_KUBEFLOW_PORT}"
    return None
