"""Ask Kubeflow's API, from a step of one run, whether another run is over.

Kubeflow may skip the exit handler of a run that is terminated, and a deleted run has nobody left to
say that it is over: what such a run holds is given back because the API says so.

| variable | |
|---|---|
| `KUBESTILL_PIPELINES_API` | address of the API; where it is not set, the service in this cluster |
| `KUBESTILL_CA_FILE` | certificates to trust, where that address is https |
| `KF_PIPELINES_SA_TOKEN_PATH` | Kubeflow's own: file with this pod's token for the API |

A single-user Kubeflow asks for no token. One of several users takes the token that its `PodDefault`
called `access-ml-pipeline` mounts. Where there is none, the service account's is tried, and sent
only once the API has asked for one.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

API_VARIABLE = "KUBESTILL_PIPELINES_API"

_DEFAULT = "http://ml-pipeline.kubeflow:8888"
_OVER = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
"""Not `CANCELING`: its steps may still be at work."""
_TIMEOUT = (2.0, 3.0)
"""Seconds to connect, and between two pieces of an answer."""
_LONGEST = 6.0
"""Seconds for one whole answer, looking its address up included."""
_LARGEST = 32 * 1024 * 1024
"""Bytes of an answer, which holds the run's whole pipeline."""
_MOUNTED = "/var/run/secrets/kubeflow/pipelines/token"
"""Token for the audience pipelines.kubeflow.org."""
_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount/token"
_NOT_FOUND = 5
"""gRPC's code, in the body of a 404."""


def find_experiment(run_id: str) -> str:
    """Return the id of the experiment that a run belongs to; empty where it is unknown.

    It tells one installation of Kubeflow from another, whose API knows nothing of this run either.
    """
    if not (address := _find_address()):
        return ""
    try:
        answer = _ask(address, "run", run_id)
    except _NoAnswer as trouble:
        _log(f"Kubeflow does not say which experiment run {run_id} belongs to: {trouble}")
        return ""
    return str(answer.body.get("experiment_id") or "") if answer.status == 200 else ""


def describe_end(run_id: str, experiment: str) -> str:
    """Return how a run ended; empty if it has not, or that is unknown.

    Args:
        run_id: Which.
        experiment: As `find_experiment` gave it while the run was at work. That a run is not found
            means that it was deleted only where this experiment is.
    """
    if not (address := _find_address()):
        return ""
    try:
        answer = _ask(address, "run", run_id)
        if answer.status == 200:
            state = answer.body.get("state")
            return f"Kubeflow says that it is over: {state}." if state in _OVER else ""
        if not experiment:
            raise _NoAnswer("it is not found, and may be another Kubeflow's")
        if _ask(address, "experiment", experiment).status == 200:
            return "It was deleted from Kubeflow."
        raise _NoAnswer("neither it nor its experiment is found")
    except _NoAnswer as trouble:
        _log(f"Kubeflow does not say whether run {run_id} is over: {trouble}")
        return ""


def goes_on(run_id: str) -> bool:
    """Return whether Kubeflow says that a run is not over; False where it says nothing."""
    if not (address := _find_address()):
        return False
    try:
        answer = _ask(address, "run", run_id)
    except _NoAnswer:
        return False
    return answer.status == 200 and answer.body.get("state") not in _OVER


class _NoAnswer(Exception):
    """The API cannot be asked, or its answer does not count."""


@dataclass(frozen=True, kw_only=True)
class _Answer:
    status: int
    """200, or 404 where Kubeflow itself says that there is no such thing."""
    body: Mapping[str, Any]


def _ask(address: str, kind: str, id: str) -> _Answer:
    """Get one object of the API, with a token where it asks for one."""
    status = 0
    for token in _tokens():
        status, content = _get(f"{address}/apis/v2beta1/{kind}s/{quote(id, safe='')}", token)
        if status not in (401, 403):
            return _understand(address, kind, id, status, content)
    raise _NoAnswer(f"{address} answered {status}: this pod may not read {kind} {id}")


def _find_address() -> str:
    """Return the API's address; empty outside of a cluster, where a variable names none."""
    if given := os.environ.get(API_VARIABLE, "").strip().rstrip("/"):
        return given if "://" in given else f"http://{given}"
    # Kubernetes sets these for the services of a pod's own namespace.
    if host := os.environ.get("ML_PIPELINE_SERVICE_HOST", ""):
        port = os.environ.get("ML_PIPELINE_SERVICE_PORT", "8888")
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"
    return _DEFAULT if "KUBERNETES_SERVICE_HOST" in os.environ else ""


def _tokens() -> Iterator[str]:
    """Yield the tokens to try, the first of them without being asked for one."""
    if mounted := _read_token(os.environ.get("KF_PIPELINES_SA_TOKEN_PATH") or _MOUNTED):
        yield mounted
        return
    yield ""
    if account := _read_token(_ACCOUNT):
        yield account


def _read_token(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _get(url: str, token: str) -> tuple[int, bytes]:
    """Return status and body, within seconds whatever the other side does."""
    ended: list[tuple[int, bytes] | _NoAnswer] = []

    def fetch() -> None:
        try:
            ended.append(_fetch(url, token))
        except _NoAnswer as trouble:
            ended.append(trouble)

    # The library's own limits are on the silence between two bytes.
    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(_LONGEST)
    if not ended:
        raise _NoAnswer(f"{url} answers too slowly")
    if isinstance(ended[0], _NoAnswer):
        raise ended[0]
    return ended[0]


def _fetch(url: str, token: str) -> tuple[int, bytes]:
    import requests  # a quarter of a second to import, for those who find a claim

    with requests.Session() as session:
        # No proxy, and no password from ~/.netrc in the place of the token.
        session.trust_env = False
        session.verify = os.environ.get("KUBESTILL_CA_FILE") or True
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with session.get(
                url, headers=headers, timeout=_TIMEOUT, allow_redirects=False, stream=True
            ) as answer:
                content = bytearray()
                for piece in answer.iter_content(64 * 1024):
                    content += piece
                    if len(content) > _LARGEST:
                        raise _NoAnswer(f"{url} answers too much")
                return answer.status_code, bytes(content)
        except (requests.RequestException, OSError, ValueError) as error:
            # The message of some errors holds the header.
            raise _NoAnswer(f"{url}: {type(error).__name__}") from error


def _understand(address: str, kind: str, id: str, status: int, content: bytes) -> _Answer:
    """Take an answer for Kubeflow's own only if it speaks of what was asked for."""
    try:
        body: object = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    if isinstance(body, dict):
        if status == 200 and body.get(f"{kind}_id") == id:
            return _Answer(status=200, body=body)
        if status == 404 and body.get("code") == _NOT_FOUND and id in str(body.get("message")):
            return _Answer(status=404, body=body)
    raise _NoAnswer(f"{address} answered {status}, and not as Kubeflow does")


def _log(line: str) -> None:
    print(line, flush=True)
