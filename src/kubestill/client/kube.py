"""Questions to the Kubernetes that the kube config, or the pod, belongs to."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import urllib3
from kubernetes import client, config

from kubestill.errors import ClusterError

_TIMEOUT_S = 10


class NotChecked(ClusterError):
    """Something cannot be seen from here, or shows nothing: neither good nor bad."""


def ask(
    read: Callable[[client.CoreV1Api], Callable[..., Any]], *names: str, what: str, **query: str
) -> Any:
    """Read something and return Kubernetes' answer as plain JSON.

    Args:
        read: Picks the call, such as `lambda core: core.list_node`.
        names: Its arguments.
        what: What is read, as in "the right to list nodes".
        query: Further arguments, such as `label_selector`.

    Raises:
        NotChecked: There is no way to ask, no right to, or no such thing.
    """
    try:
        try:
            config.load_kube_config()
        except config.ConfigException:
            config.load_incluster_config()
        call = read(client.CoreV1Api())
        answer = call(*names, **query, _preload_content=False, _request_timeout=_TIMEOUT_S)
    except config.ConfigException as error:
        raise NotChecked("not checked: there is no kube config here") from error
    except client.ApiException as error:
        remedy = "there is none" if error.status == 404 else f"ask for the right to {what}"
        raise NotChecked(
            f"not checked: Kubernetes answers {error.status} to {what}; {remedy}", error.status or 0
        ) from error
    except urllib3.exceptions.HTTPError as error:
        raise NotChecked("not checked: the kube config's cluster cannot be reached") from error
    return json.loads(answer.data)
