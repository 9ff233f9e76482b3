"""Look at checkpoints from outside, without torch: `kubestill checkpoints ls|show|verify`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from kubestill.errors import CorruptData, InvalidInput, KubestillError, PermissionDenied, Problem
from kubestill.runtime.checkpoints.ledger import LEDGER_KEY, Ledger, read_ledger_artifact
from kubestill.runtime.checkpoints.manifest import MANIFEST_NAME, attempt_number, read_manifest
from kubestill.runtime.checkpoints.reading import verify_file
from kubestill.runtime.stores import Store, open_store
from kubestill.runtime.stores.local_cell import cell_of

_LOST = "the ledger is lost; a training run that starts here rebuilds it"


@dataclass(frozen=True, kw_only=True)
class CheckpointView:
    """One checkpoint, or a training run whose checkpoints nobody can list; `vars` is its JSON."""

    training: str
    """Experiment and fingerprint: `experiment/fingerprint`."""
    step: int = 0
    epoch: float = 0.0
    examples: int = 0
    kind: str = ""
    """`milestone` or `recovery`; empty where the ledger is lost or cannot be read."""
    phase: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    bytes: int = 0
    created: str = ""
    """ISO 8601, UTC."""
    attempt: int = 0
    state: str
    """`ok`, or why it cannot be read."""
    uri: str
    """Its folder."""


@dataclass(frozen=True, kw_only=True)
class TrainingView:
    """One training run; `vars` is its JSON."""

    training: str
    """Experiment and fingerprint: `experiment/fingerprint`."""
    uri: str
    status: str
    """`finished`, `failed: …`, `open`, or why there is no ledger to read."""
    attempt: int
    owner: str
    before: tuple[str, ...]
    """What ended each earlier attempt."""
    last_sign: str
    """ISO 8601, UTC."""
    checkpoints: int
    """Number of checkpoints."""
    bytes: int
    notices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Training:
    """What lies at one place: a ledger, or why there is none to read."""

    uri: str
    found: Ledger | KubestillError

    @property
    def name(self) -> str:
        """Experiment and fingerprint."""
        if isinstance(self.found, Ledger):
            return f"{self.found.experiment}/{self.found.fingerprint}"
        return "/".join(self.uri.split("/")[-2:])


def ledgers(uri: str) -> list[Ledger]:
    """Return the ledger of every training run at or below a URI; `uri` is where it lies now.

    Args:
        uri: The place of a training run, any folder above it, or a ledger artifact's file.

    Raises:
        InvalidInput: There is none, or one of another format version.
        CorruptData: One cannot be parsed, or is lost and its checkpoints are not.
        StoreError: The store did not answer.
    """
    found: list[Ledger] = []
    for training in _trainings(uri):
        if isinstance(training.found, KubestillError):
            raise training.found
        found.append(training.found)
    return found


def describe(uri: str) -> list[CheckpointView]:
    """List every checkpoint at or below a URI, the oldest of each training run first.

    A training run whose ledger is lost or cannot be read has one view without a `kind`.

    Raises:
        InvalidInput: No training run keeps checkpoints there.
        CorruptData: `uri` is a file, and no ledger.
        StoreError: The store did not answer.
    """
    views: list[CheckpointView] = []
    for training in _trainings(uri):
        ledger = training.found
        if isinstance(ledger, KubestillError):
            views.append(
                CheckpointView(training=training.name, state=_why(ledger), uri=training.uri)
            )
            continue
        views += [
            CheckpointView(
                training=training.name,
                step=entry.step,
                epoch=entry.epoch,
                examples=entry.examples,
                kind=entry.kind,
                phase=entry.phase,
                metrics=entry.metrics,
                bytes=entry.bytes,
                created=datetime.fromtimestamp(entry.created, UTC).isoformat(timespec="seconds"),
                attempt=entry.attempt,
                state=entry.damaged or "ok",
                uri=f"{training.uri}/{entry.manifest.key.rpartition('/')[0]}",
            )
            for entry in ledger.entries
        ]
    return views


def show(uri: str) -> list[TrainingView]:
    """Return what each ledger at or below `uri` says of its training run besides the checkpoints.

    Raises what `describe` raises.
    """
    views: list[TrainingView] = []
    for training in _trainings(uri):
        found = training.found
        ledger = found if isinstance(found, Ledger) else Ledger(uri=training.uri)
        attempt = ledger.attempt
        beat_at = datetime.fromtimestamp(attempt.beat_at if attempt else 0, UTC)
        views.append(
            TrainingView(
                training=training.name,
                uri=training.uri,
                status=_status(found) if isinstance(found, Ledger) else _why(found),
                attempt=attempt.number if attempt else 0,
                owner=attempt.owner if attempt else "",
                before=tuple(f"attempt {one.number}: {one.ended}" for one in ledger.past),
                last_sign=beat_at.isoformat(timespec="seconds"),
                checkpoints=len(ledger.entries),
                bytes=sum(entry.bytes for entry in ledger.entries),
                notices=tuple(notice.text for notice in ledger.notices),
            )
        )
    return views


def verify(uri: str) -> list[str]:
    """Read and re-hash everything that the ledgers at or below `uri` list; return what is wrong.

    Downloads all state where it is remote, one file at a time. A ledger that is lost or cannot be
    read is one of the things that are wrong. Raises what `describe` raises.
    """
    problems: list[str] = []
    for training in _trainings(uri):
        if isinstance(training.found, KubestillError):
            problems.append(f"{training.uri}: {_why(training.found)}")
            continue
        store = open_store(training.uri)
        for entry in training.found.entries:
            try:
                manifest = read_manifest(store, entry.manifest)
                for file in manifest.files:
                    verify_file(store, file)
            except (CorruptData, InvalidInput, PermissionDenied) as error:
                what = f"step {entry.step} ({entry.kind})"
                problems.append(f"{training.uri}: {what}: {_why(error)}")
    return problems


def _trainings(uri: str) -> list[_Training]:
    """Find every place at or below a URI that holds a ledger, or manifests without one."""
    if os.path.isfile(uri):
        ledger = read_ledger_artifact(uri)
        folder, name = os.path.split(os.path.abspath(uri))
        # An artifact travels and says where its place is; a place's own file lies in it.
        place = folder if cell_of(name) == LEDGER_KEY else ledger.uri
        return [_Training(uri=place, found=replace(ledger, uri=place))]
    store = open_store(uri)
    # In the order of the listing; True where checkpoints lie.
    places: dict[str, bool] = {}
    for entry in store.list():
        folder, _, name = entry.key.rpartition("/")
        if name == LEDGER_KEY:
            places.setdefault(folder, False)
        elif name == MANIFEST_NAME:
            place, _, last = folder.rpartition("/")
            if attempt_number(last) is not None:
                places[place] = True
    found = [
        _Training(uri=f"{store.uri}/{place}".rstrip("/"), found=ledger)
        for place, has_manifests in places.items()
        if (ledger := _ledger_at(store, place, has_manifests)) is not None
    ]
    if not found:
        remedy = (
            "no training run keeps checkpoints there: give its checkpoint_uri, or a ledger file"
        )
        raise InvalidInput([Problem("uri", uri, remedy)])
    return found


def _ledger_at(store: Store, place: str, has_manifests: bool) -> Ledger | KubestillError | None:
    """Read a place's ledger, or return why it cannot be read; None where nothing is lost."""
    key = f"{place}/{LEDGER_KEY}".lstrip("/")
    try:
        content, _ = store.cell(key).read()
        if content is None:
            return CorruptData(_LOST) if has_manifests else None
        ledger = Ledger.from_bytes(content, source=f"{store.uri}/{key}")
    except (CorruptData, InvalidInput, PermissionDenied) as error:
        return error
    # A place that was moved or copied lists what lies beside it, not where it came from.
    return replace(ledger, uri=f"{store.uri}/{place}".rstrip("/"))


def _status(ledger: Ledger) -> str:
    if ledger.finished is not None:
        return "finished"
    return f"failed: {ledger.failed}" if ledger.failed else "open"


def _why(error: KubestillError) -> str:
    """Say it in one line."""
    if isinstance(error, InvalidInput):
        return "; ".join(map(str, error.problems))
    return str(error)
