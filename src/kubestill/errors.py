"""Define everything that can go wrong, as one tree of exceptions.

KubestillError
├── InvalidInput (ValueError)    the user's input cannot work; lists every problem
├── StoreError
│   ├── NotFound                 no object at that key
│   ├── Conflict                 another writer swapped first
│   ├── PermissionDenied         the store refuses these credentials
│   │   └── NoSuchBucket         it has no such bucket
│   └── StoreUnavailable         transient, and retrying did not help
├── ClusterError                 Kubeflow or a registry refused or failed; names the remedy
├── CorruptData                  bytes that do not match their digest, or cannot be parsed
├── Fenced                       a newer attempt owns this training run
├── Diverged                     loss or weights became NaN or infinite
├── Refused                      a check of rows, training run or model failed; says why
└── TrainingFailed               an earlier attempt recorded a failure that retrying cannot cure
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches

__all__ = [
    "ClusterError",
    "Conflict",
    "CorruptData",
    "Diverged",
    "Fenced",
    "InvalidInput",
    "KubestillError",
    "NoSuchBucket",
    "NotFound",
    "PermissionDenied",
    "Problem",
    "Problems",
    "Refused",
    "StoreError",
    "StoreUnavailable",
    "TrainingFailed",
    "counted",
    "nearest",
    "nearest_of",
    "renaming",
]


_SHOWN = 60
"""Problems of one message, and names of one remedy: nobody reads more."""
_COMPARED = 200_000
"""Pairs of names that are compared for one table; it takes up to 25 microseconds each."""


class KubestillError(Exception):
    """Base of everything this package raises on purpose."""


@contextmanager
def renaming(own: Callable[[str], str]) -> Generator[None]:
    """Give the fields of an `InvalidInput` raised inside the names that the caller has for them."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(
            replace(problem, field=own(problem.field)) for problem in error.problems
        ) from error


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an input: the field, its value, and the remedy."""

    field: str
    value: object
    remedy: str

    def __str__(self) -> str:
        shown = repr(self.value)
        if len(shown) > 120:
            shown = shown[:117] + "..."
        return f"{self.field} = {shown}: {self.remedy}"


class InvalidInput(KubestillError, ValueError):
    """The user's input cannot work. `problems` holds every one found, not only the first."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = tuple(problems)
        count = len(self.problems)
        title = counted(count, "problem")
        shown = [str(problem) for problem in self.problems[:_SHOWN]]
        if count > _SHOWN:
            shown.append(f"and {count - _SHOWN:,} more")
        super().__init__("\n  - ".join([f"{title} with the input:", *shown]))


class Problems:
    """Gathers problems during a check and raises them all at once."""

    def __init__(self) -> None:
        self._found: list[Problem] = []

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def add(self, field: str, value: object, remedy: str) -> None:
        """Note that the value of `field` cannot work; `remedy` says what would."""
        self._found.append(Problem(field, value, remedy))

    @contextmanager
    def collect(self, field: str = "", value: object = None) -> Generator[None, None, None]:
        """Add the problems of an `InvalidInput` raised inside to this list, and continue.

        If `field` is given, `CorruptData` becomes a problem of that field as well.
        """
        try:
            yield
        except InvalidInput as error:
            self._found.extend(error.problems)
        except CorruptData as error:
            if not field:
                raise
            self.add(field, value, f"{error}; run what made it again")

    def raise_if_any(self) -> None:
        """Raise `InvalidInput` with all problems noted so far, if there are any."""
        if self._found:
            raise InvalidInput(self._found)


class StoreError(KubestillError):
    """A store could not do what was requested."""


class NotFound(StoreError):
    """No object has that key."""


class Conflict(StoreError):
    """A compare-and-swap lost: the cell no longer has the expected version."""


class PermissionDenied(StoreError):
    """The store refuses these credentials; the message names the place and the permission."""


class NoSuchBucket(PermissionDenied):
    """There is no such bucket, or, on Cloud Storage, none that these credentials may see."""


class StoreUnavailable(StoreError):
    """The store kept failing in a way that usually passes, for longer than it is retried."""


class ClusterError(KubestillError):
    """Kubeflow's API, or an image registry, refused, failed or could not be reached.

    `status` is the HTTP status of its answer, 0 if there was none.
    """

    def __init__(self, message: str, status: int = 0):
        super().__init__(message)
        self.status = status


class CorruptData(KubestillError):
    """Bytes that do not match their recorded digest or cannot be parsed."""


class Fenced(KubestillError):
    """A newer attempt owns this training run; this one stops and deletes nothing."""


class Diverged(KubestillError):
    """Loss or weights became NaN or infinite; what was saved before is kept."""


class Refused(KubestillError):
    """`overfit-batch` or `certify-surrogate` refused; the message is the diagnosis."""


class TrainingFailed(KubestillError):
    """An earlier attempt recorded a permanent failure under the same fingerprint."""


def counted(count: int, noun: str) -> str:
    """Return a number and what it counts, such as `1 row` and `1,234 rows`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a remedy: which of the `known` names may be meant, nearest first."""
    return nearest_of(known)(name)


def nearest_of(known: Iterable[str]) -> Callable[[str], str]:
    """Return `nearest` for the columns of a table, of which all may be wrong at once.

    Each is compared with every known name. So of many in a wide table only the first few are; the
    remedy of the others lists what is known.
    """
    names: list[str] = []
    compared = 0

    def remedy(name: str) -> str:
        nonlocal compared
        # Sorted here: nearly always nothing is wrong.
        names.extend(sorted(known) if not names else ())
        close = get_close_matches(name, names, n=3, cutoff=0.5) if compared < _COMPARED else []
        compared += len(names)
        if close:
            return "did you mean " + " or ".join(repr(match) for match in close) + "?"
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        return "known: " + ", ".join(names[:_SHOWN]) + more

    return remedy
