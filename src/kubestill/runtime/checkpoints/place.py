"""Where the checkpoints of a training run live, so that retries and re-submissions find them."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

from kubestill.errors import InvalidInput, KubestillError, Problem
from kubestill.runtime.stores import open_store
from kubestill.runtime.stores.base import Store
from kubestill.runtime.stores.files import private_folder

Announce = Callable[[str], None]

OWNER_VARIABLE = "KUBESTILL_OWNER"
"""Environment variable that names the task, where whoever starts it knows better than we do."""
_IN_A_POD = "KFP_POD_NAME"


@dataclass(frozen=True, kw_only=True)
class Place:
    """`<root>/<experiment>/<fingerprint>`, proved to be writable."""

    store: Store
    """Rooted at the place itself."""
    experiment: str
    fingerprint: str
    owner: str
    """Which task trains: the same across retries of one pod, different for another run."""
    durable: bool = True
    """False where the checkpoints stay in the pod, and die with it."""

    @property
    def uri(self) -> str:
        """The place as a URI."""
        return self.store.uri

    def fresh(self, share: Callable[[str], str]) -> Place:
        """Return a place of its own beside this one, for `resume="never"`.

        In a pod it is the same one again after a retry, because the owner is: a training run
        that must not resume another's work still survives its own preemption. Elsewhere it is
        always new. `share` gives every rank the text of rank 0: all write parts of the same
        checkpoints.
        """
        stable = OWNER_VARIABLE in os.environ or _IN_A_POD in os.environ
        text = share(self.owner if stable else uuid.uuid4().hex)
        nonce = hashlib.sha256(text.encode()).hexdigest()[:12]
        fingerprint = f"{self.fingerprint}-{nonce}"
        store = open_store(f"{self.uri}-{nonce}")
        return replace(self, store=store, fingerprint=fingerprint)


def resolve_place(
    checkpoint_uri: str,
    experiment: str,
    fingerprint: str,
    fallback_uri: str,
    *,
    announce: Announce = print,
    owner: str = "",
) -> Place:
    """Find the place of a training run and prove that it can be written before expensive work.

    Args:
        checkpoint_uri: Root that the user owns; empty falls back beside `fallback_uri`.
        experiment: Folder below the root; empty is `default`.
        fingerprint: Digest of everything that affects the result.
        fallback_uri: URI of the ledger artifact. Kubeflow keeps it across retries of one pod, so it
            also tells one task from another (`owner`).
        announce: Takes warnings, one line each.
        owner: Names the task explicitly; else `$KUBESTILL_OWNER`, else `fallback_uri`.

    Raises:
        InvalidInput: A `checkpoint_uri` that was set cannot be used; the message names it and why.
            A fallback never raises: the checkpoints then stay on local disk, with a warning.
    """
    owner = owner or os.environ.get(OWNER_VARIABLE, "") or fallback_uri or uuid.uuid4().hex
    name = _folder_name(experiment or "default")
    below = f"{name}/{fingerprint}"

    def place(root: str, *, durable: bool = True) -> Place:
        store = open_store(f"{root.rstrip('/')}/{below}")
        store.check_writable()
        return Place(
            store=store, experiment=name, fingerprint=fingerprint, owner=owner, durable=durable
        )

    if checkpoint_uri:
        try:
            return place(checkpoint_uri)
        except KubestillError as error:
            remedy = f"cannot keep checkpoints there: {error}"
            raise InvalidInput([Problem("checkpoint_uri", checkpoint_uri, remedy)]) from error
    # A key beside the artifact's own: Kubeflow downloads `ledger/...` downstream, but not
    # `ledger.d/...`.
    beside = f"{fallback_uri.rstrip('/')}.d"
    try:
        return place(beside)
    except KubestillError as error:
        local = local_root()
        announce(
            f"WARNING: cannot keep checkpoints at {beside} ({error}); they stay in {local}, and "
            "are lost with this machine. Set checkpoint_uri to survive preemption."
        )
        return place(local, durable=False)


def local_root() -> str:
    """Return this user's own folder for checkpoints that have no better place.

    By number: a cluster may give a user id that no list of users knows.

    Raises:
        StoreError: Somebody else made it, or can write to it; or it cannot be made.
    """
    name = f"kubestill-checkpoints-{os.getuid()}"
    return private_folder(os.path.join(tempfile.gettempdir(), name))


def _folder_name(experiment: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*", experiment):
        return experiment
    remedy = "use letters, digits, '.', '_' and '-', starting with a letter or digit"
    raise InvalidInput([Problem("experiment", experiment, remedy)])
