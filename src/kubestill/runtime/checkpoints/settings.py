"""How often the state of a training run is saved, what is kept, how long an outage may last."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kubestill.runtime.base.settings import Settings


class CheckpointSettings(Settings):
    """Checkpoint policy: none of it changes the result of a training run, or its fingerprint."""

    recovery_seconds: float = Field(default=120.0, ge=0)
    """Seconds between two recovery checkpoints: the most work a kill can cost. 0 turns them off."""
    recovery_auto: bool = False
    """Choose the interval from the measured cost of a save instead (Young 1974, Daly 2006)."""
    overhead_budget: float = Field(default=0.02, gt=0, lt=1)
    """Largest share of the training time that `recovery_auto` may spend on saving."""
    interruptions_per_hour: float = Field(default=0.2, gt=0)
    """How often `recovery_auto` expects the machine to be taken away."""

    keep_bytes: float = Field(default=1e9, ge=0)
    """Keep every milestone while all together, with their manifests, take no more bytes (and are
    200 at most); beyond that, as many as fit, spread evenly. The other `keep_` settings keep
    theirs in addition."""
    keep_last: int = Field(default=2, ge=1)
    """Newest milestones to keep."""
    keep_best: int = Field(default=3, ge=0)
    """Best milestones by `metric` to keep."""
    keep_every: int = Field(default=0, ge=0)
    """Also keep the first and every m-th milestone, counting pruned ones; 0 keeps none for that
    reason."""
    keep_phases: bool = True
    """Also keep the last milestone before each phase boundary. Where overfitting begins shows late:
    until then the milestones after which it may begin stay, up to a twentieth of all and a few."""
    keep_recovery: int = Field(default=2, ge=1)
    """Newest recovery checkpoints to keep: one before the last, in case that is damaged."""
    metric: str = ""
    """Metric that `keep_best` ranks by; empty uses that of the training run."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Whether lower or higher is better; `auto` knows every metric that is measured here."""

    heartbeat_seconds: float = Field(default=10.0, gt=0)
    """Seconds between signs of life. After three missed ones another run takes over."""
    outage_seconds: float = Field(default=600.0, ge=0)
    """Seconds that training continues while the store refuses every save, before it stops."""
    near: str = ""
    """Folder on the node's own disk for recovery states between those of the store; empty: none.
    It takes three states, four while one is written, and the host one copy more. A restart resumes
    from there where one of its nodes still has them, else from the store."""
    near_copies: int = Field(default=2, ge=1)
    """Nodes that keep each of them, of those that share a training run: with 2, one may lose its
    disk. Without `shard` nothing is sent: each writes its own copy of the state, which is the same.
    With it, each process sends its share to the next node, or nodes; 1 sends none."""
    near_seconds: float = Field(default=10.0, gt=0)
    """Seconds between two states in `near`; with `recovery_auto`, what their own cost makes it."""
    buffers: Literal[1, 2] = 2
    """Host copies of the state: with 2, a save may start while the last is being written."""
    spill_folder: str = ""
    """Folder on local disk where states wait that the store does not take: best a volume that
    outlives the pod. Empty: the temporary folder."""
    backlog_bytes: float = Field(default=2e9, ge=0)
    """Disk that waiting milestones may take there while training goes on; beyond it, training
    waits for the store."""
