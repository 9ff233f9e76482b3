"""Mirror results into MLflow, where `MLFLOW_TRACKING_URI` names a server; its outage costs no run.

Each step that scores a model gets an MLflow run of its own, found again by its tag when the step is
repeated, or logs into the one that Kubeflow's MLflow plugin made for it (`MLFLOW_RUN_ID`). A
registry becomes a registered model: each champion is a version under the alias `champion`, the
model that was last tried instead of it one under `challenger`.

Everything goes through a dozen requests of the REST API 2.0, which MLflow 2 and 3 share. Its own
client would keep a step waiting for minutes where the server is away, and needs packages that the
runtime has in other versions.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from kubestill.errors import CorruptData
from kubestill.runtime.base.artifacts import Artifact
from kubestill.runtime.base.kubernetes import pod_token
from kubestill.runtime.base.patience import Patience, do_within
from kubestill.runtime.base.values import parse_json
from kubestill.runtime.reports.page import flatten
from kubestill.runtime.steps.failures import find_run_root

if TYPE_CHECKING:
    from kubestill.runtime.retraining import Registry
    from kubestill.runtime.training.record import TrainingRecord

URI = "MLFLOW_TRACKING_URI"
"""Environment variable: the server's address; without it nothing is mirrored."""
NAME = "KUBESTILL_MLFLOW_MODEL"
"""Environment variable: what a registry's registered model is called in MLflow."""
PATIENCE = Patience(attempts=2, answer_seconds=10.0)

_API = "/api/2.0/mlflow/"
_MOST, _LONGEST = 100, 500
"""Values of a request and characters of a parameter: what every MLflow takes, and soon answers."""
_LARGEST = 16 << 20
"""Bytes of an answer that are read: a thousand versions take less."""
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value on a curve."""

    name: str
    step: int
    value: float


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a step logs to MLflow."""

    step: str
    """Names the MLflow run."""
    output_uri: str
    """Of one of its outputs, which no other step has."""
    metrics: Mapping[str, float]
    curves: Sequence[Point] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tags: Mapping[str, str] = field(default_factory=dict[str, str])
    seconds: float = 0.0
    """How long it took."""


class _Refused(Exception):
    """The server cannot take this, and trying again changes nothing."""


class _Unavailable(Exception):
    """The server may take it later."""


class _Missing(Exception):
    """The server knows no such thing."""


def training_results(
    record: TrainingRecord, scores: Mapping[str, float], model: Artifact
) -> Results:
    """Return what MLflow logs of a training run: settings, both curves, final scores."""
    train = [
        Point(name="train/loss", step=point.step, value=point.loss) for point in record.curves.train
    ]
    followed = [
        Point(name=f"validation/{name}", step=point.step, value=value)
        for point in record.curves.validation
        for name, value in point.scores.items()
    ]
    return Results(
        step=f"train {record.preset}",
        output_uri=model.uri,
        metrics=scores,
        curves=[*train, *followed],
        parameters=record.settings,
        tags={
            "fingerprint": record.fingerprint,
            "stopped": record.stop.reason,
            "model": model.uri,
            "digest": str(model.metadata["digest"]),
        },
        seconds=record.seconds,
    )


def mirror_results(results: Results) -> str:
    """Put what a step found into MLflow; nothing that goes wrong is raised.

    Returns:
        What came of it, in a sentence; empty where there is no server to tell.
    """
    return _tell(lambda server: server.log(results))


def mirror_champion(registry: Registry) -> str:
    """Let MLflow's alias `champion` name the registry's; nothing that goes wrong is raised.

    The last step of every run does this, so that what an outage left out comes with the next run.

    Returns:
        As of `mirror_results`.
    """

    def work(server: _Server) -> str:
        champion = registry.read().champion
        if champion is None:
            return "has no champion to name yet"
        scores = {name: score.value for name, score in champion.decision.scores.items()}
        tags = {
            "champion": str(champion.version),
            "run": champion.run_id,
            "window": champion.window,
            **{f"score.{name}": str(value) for name, value in scores.items() if value is not None},
        }
        return server.name_version(
            registry.uri,
            "champion",
            digest=champion.model_digest,
            uri=registry.model_uri(champion),
            tags=tags,
            reason=champion.decision.reason,
        )

    return _tell(work)


def mirror_challenger(
    registry: Registry, model: Artifact, *, digest: str, decision: str, reason: str
) -> str:
    """Let MLflow's alias `challenger` name a model that was tried; nothing is raised.

    Returns:
        As of `mirror_results`.
    """
    return _tell(
        lambda server: server.name_version(
            registry.uri,
            "challenger",
            digest=digest,
            uri=model.uri,
            tags={"decision": decision},
            reason=reason,
        )
    )


def _tell(work: Callable[[_Server], str]) -> str:
    """Do some work at the server, for a bounded time, and return what came of it."""
    address = os.environ.get(URI, "")
    if not address:
        return ""
    try:
        parts = urlsplit(address)
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        reachable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        shown, reachable = "", False
    if not reachable:
        return f"MLflow: nothing was sent: {URI} must begin with http:// or https://"
    told = [f"did not answer within {PATIENCE.all_seconds:g} s"]

    def try_it() -> None:
        for attempt in range(PATIENCE.attempts):
            if attempt:
                time.sleep(PATIENCE.pause_seconds)
            # All of it again: what an earlier attempt made is found.
            try:
                told[0] = work(_Server(address))
                return
            except _Unavailable as error:
                told[0] = f"is not available: {error}"
            except (_Refused, _Missing) as error:
                told[0] = f"did not take it: {error}"
                return
            except Exception as error:  # the run's own results stand, whatever a server answers
                told[0] = f"was told nothing ({type(error).__name__})"
                return

    do_within(PATIENCE.all_seconds, try_it)
    return f"MLflow at {shown}: {told[0]}"


class _Server:
    """An MLflow server."""

    def __init__(self, address: str):
        # Half a second to import, for those who have a server.
        import requests

        self._requests = requests
        self._root = address.rstrip("/") + _API
        self._session = requests.Session()
        self._session.headers["User-Agent"] = "kubestill"
        given = os.environ.get
        if given("MLFLOW_TRACKING_USERNAME"):
            self._session.auth = (
                given("MLFLOW_TRACKING_USERNAME", ""),
                given("MLFLOW_TRACKING_PASSWORD", ""),
            )
        elif token := given("MLFLOW_TRACKING_TOKEN") or _given_token():
            self._session.headers["Authorization"] = f"Bearer {token}"
        if workspace := given("MLFLOW_WORKSPACE"):
            self._session.headers["X-MLFLOW-WORKSPACE"] = workspace
        if given("MLFLOW_TRACKING_INSECURE_TLS") == "true":
            self._session.verify = False
        elif certificates := given("MLFLOW_TRACKING_SERVER_CERT_PATH"):
            self._session.verify = certificates

    def log(self, results: Results) -> str:
        """Log results into the run of their step."""
        given = os.environ.get("MLFLOW_RUN_ID", "")
        if given:
            info = self._get("runs/get", run_id=given)["run"]["info"]
        else:
            info = self._found_or_made_run(results)
        run, at = str(info["run_id"]), int(info["start_time"])
        if info["status"] == "FINISHED" and not given:
            return f"run {run} has the results of {results.step} already"
        # Points of one name, step and time are one: logged again, they change nothing.
        points = [
            {"key": _key(one.name), "value": one.value, "timestamp": at, "step": one.step}
            for one in results.curves
        ]
        points += [
            {"key": _key(name), "value": value, "timestamp": at, "step": 0}
            for name, value in results.metrics.items()
        ]
        settings = [
            {"key": _key(f"settings.{name}"), "value": value[:_LONGEST]}
            for name, value in flatten(results.parameters)
        ]
        for kind, values in (("metrics", points), ("params", settings)):
            for start in range(0, len(values), _MOST):
                part = values[start : start + _MOST]
                self._post("runs/log-batch", run_id=run, **{kind: part})
        self._post("runs/log-batch", run_id=run, tags=_tags(results.tags))
        if not given:  # Kubeflow ends its own
            end = at + int(1e3 * results.seconds)
            self._post("runs/update", run_id=run, status="FINISHED", end_time=end)
        return f"run {run} has the results of {results.step}"

    def _found_or_made_run(self, results: Results) -> Mapping[str, Any]:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_ID") or self._experiment()
        output = hashlib.sha256(results.output_uri.encode()).hexdigest()[:32]
        found = self._post(
            "runs/search",
            experiment_ids=[experiment],
            filter=f"tags.`kubestill.output` = '{output}'",
            max_results=1,
        )
        if runs := found.get("runs"):
            return runs[0]["info"]
        root = find_run_root(results.output_uri).rstrip("/").rpartition("/")[2]
        began = int(1e3 * (time.time() - results.seconds))
        made = self._post(
            "runs/create",
            experiment_id=experiment,
            run_name=f"{results.step} {root}".strip(),
            start_time=began,
            tags=_tags({"output": output, "run": root, "step": results.step}),
        )
        return made["run"]["info"]

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "kubestill"
        found = self._found_or_made(
            lambda: self._get("experiments/get-by-name", experiment_name=name)["experiment"],
            lambda: self._post("experiments/create", name=name),
        )
        return str(found["experiment_id"])

    def name_version(
        self,
        registry: str,
        alias: str,
        *,
        digest: str,
        uri: str,
        tags: Mapping[str, str],
        reason: str,
    ) -> str:
        """Give a model of the registry an alias, and make it a version where it is none yet."""
        name = os.environ.get(NAME) or _model_name(registry)
        model = self._found_or_made(
            lambda: self._get("registered-models/get", name=name)["registered_model"],
            lambda: self._post(
                "registered-models/create",
                name=name,
                tags=_tags({"registry": registry}),
                description="Kept fresh by kubestill's continuous-retraining.",
            )["registered_model"],
        )
        owner = _read_tags(model).get("kubestill.registry")
        if owner != registry:
            raise _Refused(
                f"its model {name!r} belongs to {owner or 'somebody else'}, not to {registry}; "
                f"set {NAME} to another name"
            )
        listed = self._get("model-versions/search", filter=f"name='{name}'", max_results="1000")
        known = {str(one["version"]): _read_tags(one) for one in listed.get("model_versions") or ()}
        version = next(
            (
                number
                for number, told in known.items()
                if (told.get("kubestill.digest"), told.get("kubestill.uri")) == (digest, uri)
            ),
            None,
        )
        if version is None:
            made = self._post(
                "model-versions/create",
                name=name,
                # MLflow takes no local paths that are not its own, hence the scheme.
                source=uri if "://" in uri else f"kubestill:{uri}",
                description=reason,
                tags=_tags({**tags, "digest": digest, "uri": uri}),
            )
            version = str(made["model_version"]["version"])
        self._alias("POST", name=name, alias=alias, version=version)
        held = {one["alias"]: str(one["version"]) for one in model.get("aliases") or ()}
        other = known.get(held.get("challenger", ""), {})
        if alias == "champion" and other.get("kubestill.digest") == digest:
            self._alias("DELETE", name=name, alias="challenger")
        return f"{alias} of {name!r} is version {version}"

    def _alias(self, method: str, **body: str) -> None:
        try:
            self._ask(method, "registered-models/alias", json=body)
        except _Missing as error:
            raise _Refused("it knows no aliases; MLflow 2.3 and later do") from error

    def _found_or_made(self, find: Callable[[], T], make: Callable[[], T]) -> T:
        try:
            return find()
        except _Missing:
            pass
        try:
            return make()
        except _Refused:  # somebody else made it just now, or there was another reason
            try:
                return find()
            except _Missing:
                pass
            raise

    def _get(self, path: str, **query: str) -> Any:
        return self._ask("GET", path, params=query)

    def _post(self, path: str, **body: Any) -> Any:
        return self._ask("POST", path, json=body)

    def _ask(self, method: str, path: str, **given: Any) -> Any:
        from urllib3.exceptions import HTTPError

        given |= {"timeout": PATIENCE.answer_seconds, "allow_redirects": False, "stream": True}
        try:
            with self._session.request(method, self._root + path, **given) as answer:
                content = answer.raw.read(_LARGEST, decode_content=True)
        except (self._requests.RequestException, HTTPError) as error:
            # Its message would hold the whole address.
            raise _Unavailable(type(error).__name__) from None
        if answer.status_code in (401, 403):
            raise _Refused(
                f"{answer.status_code}; set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD"
            )
        if answer.status_code in _TRANSIENT:
            raise _Unavailable(str(answer.status_code))
        try:
            body = parse_json(content, source=path, what="answer")
        except CorruptData:
            raise _Refused(f"{path} answered {answer.status_code} without JSON") from None
        if answer.ok and answer.status_code < 300:
            return body
        said = " ".join(str(body.get("message", "")).split())[:200]
        if body.get("error_code") == "RESOURCE_DOES_NOT_EXIST":
            raise _Missing(said)
        raise _Refused(f"{path} answered {answer.status_code}: {said}")


def _given_token() -> str:
    """Return the pod's own token where Kubeflow's plugin says that MLflow takes it."""
    by_pod = os.environ.get("MLFLOW_TRACKING_AUTH", "").startswith("kubernetes")
    return pod_token() if by_pod else ""


def _model_name(registry: str) -> str:
    """Return the registry's last two folders, as one name: the last alone is often `registry`."""
    parts = [part for part in urlsplit(registry).path.split("/") if part]
    parts = [urlsplit(registry).netloc, *parts] if "://" in registry else parts
    return re.sub(r"[^\w.-]+", "-", ".".join(parts[-2:]))


def _key(name: str) -> str:
    return re.sub(r"[^\w./ -]", "_", name)[:250]


def _tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": f"kubestill.{name}", "value": value[:5000]} for name, value in tags.items()]


def _read_tags(thing: Mapping[str, Any]) -> dict[str, str]:
    return {one["key"]: one["value"] for one in thing.get("tags") or ()}
