"""Have a TrainJob of Kubeflow Trainer train on several pods, and follow it to its end.

    find the step's own pod ── what the pods are made like
    attach ── create the TrainJob, or go on with the one that an earlier try of this step, another
              driver or another run made for the same training run: it has the same name
    follow ── say what happens, print the log of rank 0, end what cannot succeed
    end ── remove it: whatever made this step stop, no pod goes on

A step that is killed without a warning leaves its TrainJob running, and the next try attaches to
it. The result lies with the checkpoints: this step adopts it as it would that of an earlier try.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from kubestill.errors import ClusterError, InvalidInput, Problem, Problems
from kubestill.runtime.base.kubernetes import Cluster, Json
from kubestill.runtime.checkpoints.commits import LedgerCell
from kubestill.runtime.checkpoints.place import Place
from kubestill.runtime.training.nodes import leads_pods
from kubestill.runtime.training.settings import TrainingSettings
from kubestill.runtime.training.trainjob_manifest import (
    CONTAINER,
    GROUP,
    QUEUE_LABEL,
    Shape,
    trainjob,
)
from kubestill.runtime.training.trainjob_status import (
    comparable,
    condition,
    container_of,
    describe_exit,
    exit_status,
    find_error,
    index_of,
    is_of_another,
    phase,
    restarts,
    time_of,
    why_not_admitted,
    why_pending,
)
from kubestill.supervision import FAILED_FOR_GOOD

_SHAPES: tuple[Shape, ...] = ("runtimePatches", "podTemplateOverrides")
_PLACE, _FINGERPRINT = "kubestill/place", "kubestill/fingerprint"
_FIRST_PAUSE, _LONGEST_PAUSE, _GROWTH = 0.1, 5.0, 1.3
"""Seconds between two looks: few after something has happened, more and more while nothing does."""
_OUTAGE_SECONDS = 600.0
"""How long Kubernetes may not answer before this try of the step ends, and leaves the TrainJob."""
_UNNOTICED_SECONDS = 300.0
"""How long a TrainJob may have no status, or not hear that its pods have ended."""
_UNREACHABLE = 503
"""Status of an error that says that."""
_SILENT_SECONDS = 10.0
"""How long it may not answer before the step says so."""
_GONE_SECONDS = 120.0
"""How long a TrainJob that was removed may take to go."""
_NEVER_ADMITTED = "maximum capacity"
"""What Kueue says of a job that asks for more than its queue can ever have."""
_TAIL_LINES = 60
_NO_RIGHT = 'is forbidden: User "'
"""What Kubernetes says to who lacks a right; webhooks and quotas refuse with the same status."""
_NO_TRAINER = (
    "this cluster has no Kubeflow Trainer of version 2: it knows no TrainJob of "
    f"{GROUP}; install it, or use nodes=1"
)
_RIGHTS = (
    "Let the step's service account get, list, create and delete trainjobs of "
    "trainer.kubeflow.org, and get and list pods, pods/log and events"
)

T = TypeVar("T")
Say = Callable[[str], None]


def check_nodes(settings: TrainingSettings, problems: Problems) -> None:
    """Note `nodes` where there is no cluster to have them."""
    if leads_pods(settings) and Cluster.here() is None:
        remedy = (
            "several pods need a cluster with Kubeflow Trainer, and this is no pod of one; use 1, "
            "and `processes` for the cores of this machine"
        )
        problems.add("settings.nodes", settings.nodes, remedy)


def train_on_pods(settings: TrainingSettings, place: Place, resume: str, say: Say) -> None:
    """Train on the pods of a TrainJob; returns once the result, or a failure for good, is recorded.

    Args:
        settings: Of the training run.
        place: Where its checkpoints are.
        resume: `never` has a place of its own, which the pods find as well.
        say: Takes what happens, one line each.

    Raises:
        ClusterError: The cluster has no Kubeflow Trainer or refuses the job; the job failed, was
            removed by somebody, or was never admitted. Says what its pods said.
        InvalidInput: The pods cannot reach the place, or this is no step.
    """
    cluster = Cluster.here()
    assert cluster
    if resume == "never":
        place = place.fresh(lambda text: text)
    with _Sigterm.caught() as sigterm:
        _TrainJob(cluster, settings, place, say, sigterm.pause).run()


class _Stopped(BaseException):
    """SIGTERM came."""


class _Sigterm:
    """Ends a pause when SIGTERM comes: a request under way is let end, for it may make the job."""

    def __init__(self) -> None:
        self._came = self._pausing = False

    @classmethod
    @contextmanager
    def caught(cls) -> Generator[_Sigterm]:
        """Catch it, and at the end of the block let it do what it would have done."""
        sigterm = cls()
        before = signal.signal(signal.SIGTERM, sigterm._catch)
        try:
            yield sigterm
        finally:
            signal.signal(signal.SIGTERM, before)
            if sigterm._came:
                os.kill(os.getpid(), signal.SIGTERM)

    def pause(self, seconds: float) -> None:
        """Sleep.

        Raises:
            _Stopped: SIGTERM has come, or comes meanwhile.
        """
        self._pausing = True
        try:
            if self._came:
                raise _Stopped
            time.sleep(seconds)
        finally:
            self._pausing = False

    def _catch(self, *_: object) -> None:
        self._came = True
        if self._pausing:
            raise _Stopped


@dataclass
class _Seen:
    """What has been said of one TrainJob."""

    state: str = ""
    starts: dict[int, tuple[str, int]] = field(default_factory=dict[int, tuple[str, int]])
    """Of each pod: its uid, and how often its container has been started again."""
    told: str = ""
    """Time of the last line of the log that was printed."""
    pod: str = ""
    """Uid of the pod of rank 0 that it is of."""
    heard: deque[str] = field(default_factory=lambda: deque[str](maxlen=4 * _TAIL_LINES))
    """Times of the lines that were printed last."""
    containers: int = 0
    """How often its container had been started again."""
    said: str = ""
    """Why a pod ended that was started again: when the job has failed it may be gone."""
    ran: bool = False
    """Whether any pod has run."""
    since: dict[str, float] = field(default_factory=dict[str, float])
    """Since when something has been so."""

    def lasts(self, what: str, is_so: bool) -> float:
        """Return for how many seconds something has been so."""
        if not is_so:
            self.since.pop(what, None)
            return 0.0
        return time.monotonic() - self.since.setdefault(what, time.monotonic())


class _TrainJob:
    """The TrainJob of one training run."""

    def __init__(
        self,
        cluster: Cluster,
        settings: TrainingSettings,
        place: Place,
        say: Say,
        pause: Callable[[float], None],
    ):
        self._cluster, self._settings, self._place = cluster, settings, place
        self._say, self._pause = say, pause
        # Names of pods, which have `-node-0-`, an index and six characters more, end at 63.
        digest = hashlib.sha256(place.uri.encode()).hexdigest()[:16]
        words = re.sub(r"[^a-z0-9]+", "-", place.experiment.lower()).strip("-")[:16].strip("-")
        self._name = "-".join(filter(None, ("kubestill", words, digest)))
        self._pods_path = f"/api/v1/namespaces/{cluster.namespace}/pods"
        self._path = f"/apis/{GROUP}/namespaces/{cluster.namespace}/trainjobs"

    def run(self) -> None:
        """See `train_on_pods`."""
        leave = False
        try:
            if not self._finished():
                self._follow(self._attach())
        except ClusterError as error:
            # Nobody can be asked to end it, and the next try finds it.
            leave = error.status == _UNREACHABLE
            raise
        finally:
            if not leave:
                self._end()

    # Making it, or finding it.

    def _attach(self) -> str:
        """Return the uid of the TrainJob, which may have been there."""
        until, told = time.monotonic() + _GONE_SECONDS, False
        while True:
            job = self._patiently(lambda: self._cluster.get(f"{self._path}/{self._name}"))
            # Kubernetes removes the TrainJob, then its JobSet, then the pods. A new one of that
            # name takes an old JobSet's end for its own, and its pods would meet the old ones.
            if job is None and self._patiently(self._pods) and time.monotonic() < until:
                if not told:
                    self._say(f"TrainJob {self._name}: waits for the pods of an earlier one to go")
                    told = True
                self._pause(_FIRST_PAUSE)
                continue
            if job is None:
                job = self._patiently(self._create)
                if job is not None:
                    self._say(f"TrainJob {self._name} in {self._cluster.namespace}: created")
                    return job["metadata"]["uid"]
                continue
            uid, metadata = job["metadata"]["uid"], job["metadata"]
            if (metadata.get("annotations") or {}).get(_PLACE) != self._place.uri:
                raise ClusterError(
                    f"TrainJob {self._name} in {self._cluster.namespace} is another's: remove it, "
                    "or set `experiment`, which is part of the name"
                )
            over = condition(job, "Complete") or condition(job, "Failed")
            if not over and "deletionTimestamp" not in metadata:
                nodes = job["spec"].get("trainer", {}).get("numNodes")
                self._say(
                    f"TrainJob {self._name} in {self._cluster.namespace}: attached to what was "
                    f"created at {metadata.get('creationTimestamp')} with {nodes} nodes"
                )
                return uid
            # Of an earlier try, which did not come to remove it.
            if time.monotonic() > until:
                raise ClusterError(f"TrainJob {self._name} has not gone in {_GONE_SECONDS:g} s")
            if "deletionTimestamp" not in metadata:
                self._cluster.delete(f"{self._path}/{self._name}", uid)
            self._pause(_FIRST_PAUSE)

    def _create(self) -> Json | None:
        """Make it; None where somebody else has just done so."""
        pod_name = os.environ.get("KFP_POD_NAME") or os.environ.get("HOSTNAME", "")
        pod = self._cluster.get(f"{self._pods_path}/{pod_name}")
        if pod is None:
            raise ClusterError(f"Kubernetes knows no pod {pod_name} in {self._cluster.namespace}")
        self._check_reachable(pod)
        for shape in _SHAPES:
            job = trainjob(
                self._name,
                self._settings,
                pod=pod,
                command=_command_of_this_step(),
                owner=self._place.owner,
                annotations={_PLACE: self._place.uri, _FINGERPRINT: self._place.fingerprint},
                shape=shape,
            )
            try:
                made = self._cluster.create(self._path, job)
            except ClusterError as error:
                if error.status == 409:
                    return None
                if error.status == 400 and f'unknown field "spec.{shape}"' in str(error):
                    continue
                raise
            if made is None:
                raise ClusterError(_NO_TRAINER)
            return made
        raise ClusterError(
            f"the Kubeflow Trainer of this cluster is too old: its TrainJob has none of the fields "
            f"{', '.join(_SHAPES)}; install version 2.1 or later"
        )

    def _check_reachable(self, pod: Json) -> None:
        """Refuse a place that only this pod can see."""
        uri = self._place.uri
        if "://" in uri:
            return
        shared = {
            volume["name"]
            for volume in pod["spec"].get("volumes") or ()
            if not {"emptyDir", "configMap", "secret", "projected"} & volume.keys()
        }
        for container in pod["spec"]["containers"]:
            for mount in container.get("volumeMounts") or ():
                if mount["name"] in shared and uri.startswith(mount["mountPath"].rstrip("/") + "/"):
                    return
        remedy = (
            "only this pod can see it; use gs://, s3:// or minio://, or a volume that it mounts"
        )
        raise InvalidInput([Problem("checkpoint_uri", uri, remedy)])

    # Following it.

    def _follow(self, uid: str) -> None:
        seen, pause = _Seen(), _FIRST_PAUSE
        while True:
            job = self._patiently(lambda: self._cluster.get(f"{self._path}/{self._name}"))
            # Removed in the foreground it stays for a while, and its pods come and go.
            if (
                job is None
                or job["metadata"]["uid"] != uid
                or "deletionTimestamp" in job["metadata"]
            ):
                # Whoever shares this training run removes its TrainJob at the end.
                if self._finished():
                    return
                raise ClusterError(
                    f"TrainJob {self._name} was removed: by hand, or by another run of the same "
                    "training run that was stopped"
                )
            if is_of_another(job):
                self._cluster.delete(f"{self._path}/{self._name}", uid)
                return self._follow(self._attach())
            pods = self._patiently(self._pods)
            state = self._describe(job, pods)
            if state != seen.state:
                self._say(f"TrainJob {self._name}: {state}")
                seen.state, pause = state, _FIRST_PAUSE
            printed = self._print_log(pods, seen)
            if condition(job, "Complete"):
                return self._check_finished("is complete")
            if failed := condition(job, "Failed"):
                why = f"{failed.get('reason', '')}: {failed.get('message', '')}"
                return self._fail(f"failed: {why.removeprefix(': ')}", pods, seen)
            if any(exit_status(pod) == FAILED_FOR_GOOD for pod in pods):
                return self._fail("cannot succeed", pods, seen)
            self._tell_restarts(pods, seen)
            if self._look_after(job, pods, seen):
                return self._check_finished("has pods that all ended well")
            pause = _FIRST_PAUSE if printed else min(pause * _GROWTH, _LONGEST_PAUSE)
            self._pause(pause)

    def _look_after(self, job: Json, pods: list[Json], seen: _Seen) -> bool:
        """End what will not get on by itself; returns whether all pods have ended well."""
        seen.ran = seen.ran or any(phase(pod) == "Running" for pod in pods)
        told = self._settings.trainjob
        suspended = bool(condition(job, "Suspended"))
        waits = seen.lasts("waits", not seen.ran)
        if told.wait_seconds and waits > told.wait_seconds:
            raise ClusterError(
                f"TrainJob {self._name} has waited for {told.wait_seconds:g} s, the setting "
                f"trainjob.wait_seconds: {seen.state}"
            )
        # Of several flavors another may have room later.
        never = _NEVER_ADMITTED in seen.state and "unused quota" not in seen.state
        if suspended and never:
            raise ClusterError(f"TrainJob {self._name} can never be admitted: {seen.state}")
        unnoticed = not job.get("status") and not pods
        if seen.lasts("unnoticed", unnoticed) > _UNNOTICED_SECONDS:
            raise ClusterError(
                f"nothing has happened to TrainJob {self._name} for {_UNNOTICED_SECONDS:g} s: does "
                "the controller of Kubeflow Trainer run?"
            )
        ended = len(pods) >= self._settings.nodes and all(phase(p) == "Succeeded" for p in pods)
        return seen.lasts("ended", ended) > _UNNOTICED_SECONDS / 10

    def _describe(self, job: Json, pods: list[Json]) -> str:
        if condition(job, "Complete"):
            return "complete"
        if condition(job, "Failed"):
            return "failed"
        if condition(job, "Suspended"):
            reason = self._why_suspended(job)
            return f"suspended{f': {reason}' if reason else ', until its queue admits it'}"
        if not pods:
            reason = self._why_no_pods()
            return f"created, without pods{f': {reason}' if reason else ''}"
        phases = [phase(pod) for pod in pods]
        running = phases.count("Running") + phases.count("Succeeded")
        told = f"{running} of {job['spec']['trainer'].get('numNodes', len(pods))} pods run"
        waiting = [why for pod in pods if (why := why_pending(pod))]
        return told + "".join(f"; {why}" for why in dict.fromkeys(waiting))

    def _why_suspended(self, job: Json) -> str:
        """Return what Kueue says of the job; empty where it says nothing, or may not be asked."""
        if QUEUE_LABEL not in (job["metadata"].get("labels") or {}):
            return ""
        with suppress(ClusterError):
            for version in ("v1beta2", "v1beta1"):
                path = f"/apis/kueue.x-k8s.io/{version}/namespaces/{self._cluster.namespace}"
                selector = f"kueue.x-k8s.io/job-uid={job['metadata']['uid']}"
                found = self._cluster.get(f"{path}/workloads", labelSelector=selector)
                for workload in (found or {}).get("items") or ():
                    if why := why_not_admitted(workload):
                        return why
        return ""

    def _why_no_pods(self) -> str:
        """Return the newest warning of the TrainJob, or of the JobSet and the Job made for it."""
        events: list[Json] = []
        with suppress(ClusterError):
            for name in (self._name, f"{self._name}-{CONTAINER}-0"):
                path = f"/api/v1/namespaces/{self._cluster.namespace}/events"
                selector = f"involvedObject.name={name},type=Warning"
                events += (self._cluster.get(path, fieldSelector=selector) or {}).get("items") or ()
        newest: Json = max(events, key=time_of, default={})
        # Each try to make a pod has another name for it.
        return re.sub(rf' "{self._name}-[^"]+"', "", str(newest.get("message") or ""))

    def _pods(self) -> list[Json]:
        selector = f"jobset.sigs.k8s.io/jobset-name={self._name}"
        found = self._cluster.get(self._pods_path, labelSelector=selector) or {}
        pods = [one for one in found.get("items") or () if index_of(one) >= 0]
        pods.sort(key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
        # Of those with the same index all but the newest are on their way out.
        newest = {index_of(pod): pod for pod in pods}
        return [newest[index] for index in sorted(newest)]

    def _tell_restarts(self, pods: list[Json], seen: _Seen) -> None:
        for pod in pods:
            index = index_of(pod)
            start = pod["metadata"]["uid"], restarts(pod)
            if seen.starts.get(index, start) != start:
                why = ""
                if ended := describe_exit(pod):
                    why = f", as it ended with {ended}"
                    if lines := self._tail(pod):
                        why += f": {find_error(lines)}"
                    seen.said = f"; pod {index}{why.replace(', as it', '', 1)}"
                self._say(f"TrainJob {self._name}: pod {index} is started again{why}")
            seen.starts[index] = start

    def _print_log(self, pods: list[Json], seen: _Seen) -> bool:
        """Print what rank 0 has said since; it need not wait for the other pods."""
        pod = next((one for one in pods if index_of(one) == 0 and phase(one) != "Pending"), None)
        if pod is None:
            return False
        if pod["metadata"]["uid"] != seen.pod:
            seen.pod, seen.told, seen.containers = pod["metadata"]["uid"], "", 0
        lines: list[str] = []
        if restarts(pod) > seen.containers:
            # What the container said last before it was started again. The one after it may have
            # been heard already.
            query = {"previous": "true", "timestamps": "true", "tailLines": str(_TAIL_LINES)}
            for line in self._read_log(pod, **query):
                at, _, said = line.partition(" ")
                if at not in seen.heard:
                    lines.append(said)
            seen.containers = restarts(pod)
        lines += self._log(pod, seen)
        for line in lines:
            print(line)
        sys.stdout.flush()
        return bool(lines)

    def _log(self, pod: Json, seen: _Seen) -> list[str]:
        query = {"timestamps": "true"} | ({"sinceTime": seen.told} if seen.told else {})
        lines: list[str] = []
        before = comparable(seen.told)
        for line in self._read_log(pod, **query):
            at, _, said = line.partition(" ")
            # The API counts in whole seconds.
            if comparable(at) > before:
                seen.told = at
                seen.heard.append(at)
                lines.append(said)
        return lines

    def _read_log(self, pod: Json, **query: str) -> list[str]:
        path = f"{self._pods_path}/{pod['metadata']['name']}/log"
        try:
            return self._cluster.text(path, container=CONTAINER, **query).splitlines()
        except ClusterError:  # the container starts, or its node is gone
            return []

    # Ending it.

    def _finished(self) -> bool:
        ledger = LedgerCell(self._place).read()[0]
        return ledger.finished is not None or bool(ledger.failed)

    def _check_finished(self, how: str) -> None:
        if not self._finished():
            raise ClusterError(
                f"TrainJob {self._name} {how}, but {self._place.uri} holds no result: do its pods "
                "write to the same place?"
            )

    def _fail(self, what: str, pods: list[Json], seen: _Seen) -> None:
        """Raise the error that says what the pods said; return where their ledger says it."""
        if self._finished():
            return
        said = seen.said
        for pod in sorted(pods, key=lambda pod: exit_status(pod) != FAILED_FOR_GOOD):
            if not (ended := describe_exit(pod)) or not (lines := self._tail(pod)):
                continue
            if index_of(pod):  # the log of the first one was printed all along
                print(f"the last lines of pod {pod['metadata']['name']}:")
                print("\n".join(f"  {line}" for line in lines), flush=True)
            said = f"; pod {index_of(pod)} ended with {ended}: {find_error(lines)}"
            break
        raise ClusterError(f"TrainJob {self._name} {what}{said}")

    def _tail(self, pod: Json) -> list[str]:
        status = container_of(pod)
        again = "terminated" in (status.get("lastState") or {})
        running = "terminated" not in (status.get("state") or {})
        query = {"tailLines": str(_TAIL_LINES)}
        if again and running:
            query["previous"] = "true"
        return self._read_log(pod, **query)

    def _end(self) -> None:
        """Remove the TrainJob, and its pods with it, if it is ours."""
        try:
            job = self._cluster.get(f"{self._path}/{self._name}")
            if job and (job["metadata"].get("annotations") or {}).get(_PLACE) == self._place.uri:
                self._cluster.delete(f"{self._path}/{self._name}", job["metadata"]["uid"])
        except ClusterError as error:
            self._say(f"WARNING: TrainJob {self._name} may go on: {error}")

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Ask Kubernetes, again while it does not answer."""
        since, told = time.monotonic(), False
        pause = _FIRST_PAUSE
        while True:
            try:
                return ask()
            except ClusterError as error:
                if error.status == 403 and _NO_RIGHT in str(error):
                    raise self._explain(error) from error
                if error.status != 429 and error.status < 500:
                    raise
                waited = time.monotonic() - since
                if waited > _OUTAGE_SECONDS:
                    raise ClusterError(str(error), _UNREACHABLE) from error
                if waited > _SILENT_SECONDS and not told:
                    self._say(f"asking for up to {_OUTAGE_SECONDS:g} s: {error}")
                    told = True
            self._pause(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _explain(self, error: ClusterError) -> ClusterError:
        """Say what is missing where Kubernetes says that a right is.

        It says so of what it does not have as well; whoever has an account may see what there is.
        """
        with suppress(ClusterError):
            if self._cluster.get(f"/apis/{GROUP}") is None:
                return ClusterError(_NO_TRAINER)
        return ClusterError(f"{error}. {_RIGHTS}", error.status)


def _command_of_this_step() -> list[str]:
    """Return what started this step, which its pods run as well.

    Raises:
        InvalidInput: It was called as a function.
    """
    if "--executor_input" not in sys.orig_argv:
        remedy = "only a step of a pipeline has a command that pods can run; use 1"
        raise InvalidInput([Problem("settings.nodes", "", remedy)])
    # Kubernetes replaces `$(NAME)`.
    return [part.replace("$", "$$") for part in sys.orig_argv]
