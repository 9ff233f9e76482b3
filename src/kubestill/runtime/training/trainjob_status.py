"""Read what Kubernetes says of a TrainJob and its pods."""

from __future__ import annotations

from kubestill.runtime.base.kubernetes import Json
from kubestill.runtime.training.trainjob_manifest import CONTAINER

_HARMLESS = {"ContainerCreating", "PodInitializing"}
_ERROR_LINES = 12


def condition(job: Json, kind: str) -> Json | None:
    """Return a condition of a TrainJob that holds."""
    for condition in (job.get("status") or {}).get("conditions") or ():
        if condition["type"] == kind and condition["status"] == "True":
            return condition
    return None


def is_of_another(job: Json) -> bool:
    """Return whether a TrainJob ended before it was made.

    Kubeflow Trainer copies the end of the JobSet of that name, which may be a removed TrainJob's.
    """
    made = str(job["metadata"].get("creationTimestamp", ""))
    ends = (condition(job, "Complete"), condition(job, "Failed"))
    return any(end and end.get("lastTransitionTime", made) < made for end in ends)


def index_of(pod: Json) -> int:
    """Return a pod's place among those that train; -1 where it is none of them."""
    labels = pod["metadata"].get("labels") or {}
    if labels.get("jobset.sigs.k8s.io/replicatedjob-name") != CONTAINER:
        return -1
    annotations = pod["metadata"].get("annotations") or {}
    return int((annotations | labels).get("batch.kubernetes.io/job-completion-index", -1))


def phase(pod: Json) -> str:
    """Return `Pending`, `Running`, `Succeeded` or `Failed`."""
    return str((pod.get("status") or {}).get("phase", "Pending"))


def container_of(pod: Json) -> Json:
    """Return the status of the container that trains."""
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        if status["name"] == CONTAINER:
            return status
    return {}


def restarts(pod: Json) -> int:
    """Return how often the container that trains has been started again in its pod."""
    return int(container_of(pod).get("restartCount", 0))


def _terminated(pod: Json) -> Json:
    """Return how the container ended last."""
    status = container_of(pod)
    now, before = status.get("state") or {}, status.get("lastState") or {}
    return now.get("terminated") or before.get("terminated") or {}


def exit_status(pod: Json) -> int:
    """Return the status that the container ended with last; 0 where it has not ended."""
    return int(_terminated(pod).get("exitCode", 0))


def describe_exit(pod: Json) -> str:
    """Return how the container ended last, in words; empty where it has not, or ended well."""
    if not (status := exit_status(pod)):
        return ""
    reason = _terminated(pod).get("reason") or "Error"
    return f"status {status}" if reason == "Error" else f"status {status} ({reason})"


def why_pending(pod: Json) -> str:
    """Return why a pod does not run; empty where it does, or is on its way."""
    status = pod.get("status") or {}
    if phase(pod) == "Pending":
        for condition in status.get("conditions") or ():
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                return str(condition.get("message") or condition.get("reason") or "")
    waiting = (container_of(pod).get("state") or {}).get("waiting") or {}
    reason = str(waiting.get("reason") or "")
    if not reason or reason in _HARMLESS:
        return ""
    return f"{reason}: {waiting['message']}" if waiting.get("message") else reason


def why_not_admitted(workload: Json) -> str:
    """Return why Kueue does not admit a workload, and why it has ended one that ran; or nothing."""
    found = {one["type"]: one for one in (workload.get("status") or {}).get("conditions") or ()}
    waits, evicted = found.get("QuotaReserved", {}), found.get("Evicted", {})
    told = [evicted.get("message")] if evicted.get("status") == "True" else []
    told += [waits.get("message")] if waits.get("status") == "False" else []
    return "; ".join(dict.fromkeys(str(one) for one in told if one))


def find_error(lines: list[str]) -> str:
    """Return the error that the last lines of a log end with."""
    start = max((n for n, line in enumerate(lines) if line.startswith("Traceback")), default=-1)
    for number, line in enumerate(lines[start + 1 :], start + 1):
        if start >= 0 and line and not line.startswith(" "):
            return "\n".join(lines[number : number + _ERROR_LINES])
    return lines[-1]


def comparable(time: str) -> str:
    """Return a time of RFC 3339 in UTC with all nine decimals, so that text sorts as time does."""
    seconds, _, decimals = time.removesuffix("Z").partition(".")
    return f"{seconds}.{decimals:0<9}" if time else ""


def time_of(event: Json) -> str:
    """Return when something happened, as text that sorts."""
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")
