"""Bring a step's inputs into a pod that Kubeflow's launcher did not start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from kubestill.runtime.stores import open_store
from kubestill.runtime.stores.uris import split_uri
from kubestill.supervision import local_path


def fetch_inputs(executor_input: Mapping[str, Any]) -> None:
    """Download every input artifact, a file or a folder, to where the launcher would put it.

    What is there already stays: another process of the pod, or an earlier try, has brought it.

    Args:
        executor_input: What Kubeflow handed to the step.

    Raises:
        StoreError: The store did not answer, or refused.
    """
    for given in executor_input.get("inputs", {}).get("artifacts", {}).values():
        for artifact in given.get("artifacts", []):
            uri = str(artifact["uri"]).rstrip("/")
            path = local_path(uri)
            if path == uri:  # on a volume that this pod has, too
                continue
            parent, name = split_uri(uri)
            store = open_store(parent)
            for entry in store.list(name):
                if entry.key == name or entry.key.startswith(f"{name}/"):
                    target = os.path.join(os.path.dirname(path), entry.key)
                    if not os.path.exists(target):
                        os.makedirs(os.path.dirname(target), exist_ok=True)
                        store.download(entry.key, target)
