"""One authorised connection pool a process, shared by every `gs://` store in it."""

# The client library is not typed.
# pyright: basic

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import google.auth
import requests
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError
from google.auth.transport.requests import AuthorizedSession
from google.cloud.storage import Client
from requests.adapters import HTTPAdapter

from kubestill.errors import PermissionDenied
from kubestill.runtime.stores.transfer import STREAMS

LONG = (10.0, 300.0)
"""Seconds to connect, and without a byte, where the service takes its time for an answer."""

_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"


@dataclass(frozen=True)
class Connection:
    """The client library and the HTTP session below it."""

    client: Any
    """google.cloud.storage.Client, which is not typed."""
    session: Any
    """requests.Session; for the real service one that adds the credentials."""
    host: str
    """The service's address: https://storage.googleapis.com, or the emulator's."""


def connect(uri: str) -> Connection:
    """Return this process's connection to the service (a forked child gets one of its own).

    Raises:
        PermissionDenied: There are no credentials; `uri` says in the message what they are for.
    """
    try:
        return _connect(os.getpid(), os.environ.get("STORAGE_EMULATOR_HOST"))
    except DefaultCredentialsError as error:
        remedy = (
            "in a cluster use Workload Identity or a service account key, elsewhere run "
            "`gcloud auth application-default login`"
        )
        raise PermissionDenied(f"{uri}: found no Google Cloud credentials: {remedy}") from error


@cache
def _connect(pid: int, emulator: str | None) -> Connection:
    if emulator:
        credentials, project = AnonymousCredentials(), None
        session = requests.Session()
    else:
        credentials, project = google.auth.default(scopes=[_SCOPE])
        session = AuthorizedSession(credentials)
    # Or the client, unasked, fetches the bucket's metadata in a thread: one more request that can
    # be refused, and a permission that users need not grant.
    os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=4 * STREAMS))
    # Objects need no project; the client insists on one.
    client = Client(project=project or "none", credentials=credentials, _http=session)
    host = emulator or f"https://storage.{client.universe_domain}"
    return Connection(client, session, host.rstrip("/"))
