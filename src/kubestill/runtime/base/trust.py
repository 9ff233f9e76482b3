"""Which code a file from a store may name.

A model or a dataset remembers the network or the system that made it, by name, and whoever reads it
calls what stands there. Anybody who may write to the store could name anything. So nothing that a
file names is imported, let alone called, unless somebody on this side vouches for it:

    vouched for by                                       what
    this package                                         its own networks and systems
    an installed package                                 names it registers as entry points
                                                         (`kubestill.networks`, `kubestill.systems`,
                                                         `kubestill.teachers`)
    the image, `KUBESTILL_TRUST=my_pkg,https://host`     modules in these packages, addresses at
                                                         these hosts
    the caller, `load_model(..., trust=("my_pkg",))`     modules in these packages
    `kubestill run`, for its own steps                   modules its own parameters name

What a user types into a call is the user's own word and needs no voucher.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any
from urllib.parse import urlsplit

from kubestill.errors import InvalidInput, Problem

TRUST = "KUBESTILL_TRUST"
"""Environment variable: packages, by commas, whose modules a file may name. Never looked up in the
current folder."""
TYPED = "KUBESTILL_TYPED"
"""Environment variable that `kubestill run` sets for its steps: modules its parameters name."""
NETWORKS = "kubestill.networks"
SYSTEMS = "kubestill.systems"
TEACHERS = "kubestill.teachers"


def check_trusted(path: str, *, field: str, group: str, trust: Iterable[str] = ()) -> None:
    """Refuse an import path that a file names and nobody vouches for; imports nothing.

    Args:
        path: `package.module:attribute`, or an address that is asked; a name without a colon is
            somebody else's to look up.
        field: What the message calls it.
        group: The entry points that would vouch for it: `NETWORKS`, `SYSTEMS` or `TEACHERS`.
        trust: Packages that the caller vouches for.

    Raises:
        InvalidInput: With the three ways to vouch for it.
    """
    module, colon, _ = path.partition(":")
    if not colon:
        return
    if "://" in path:
        _check_host(path, field, trust)
        return
    if _is_within(module, [*_normalised(trust), *_listed(TYPED)]):
        return
    package = module.partition(".")[0]
    if not _is_within(module, _listed(TRUST)):
        remedy = (
            f"is named by a file, and nobody here vouches for it, so it is not even imported; if "
            f"{package!r} is yours, set {TRUST}={package} in the image (ENV {TRUST}={package}), "
            f"pass trust=({package!r},) to load_model, or register it as an entry point of the "
            f"group {group!r}"
        )
        raise InvalidInput([Problem(field, path, remedy)])
    if _lies_in_current_folder(package):
        remedy = (
            f"would be imported from the current folder, where {TRUST} vouches for nothing; "
            "install the package, or start elsewhere"
        )
        raise InvalidInput([Problem(field, path, remedy)])


def _check_host(address: str, field: str, trust: Iterable[str]) -> None:
    host = host_of(address)
    if host not in [*_normalised(trust), *_listed(TYPED), *_listed(TRUST)]:
        remedy = (
            f"is named by a file, and nobody here vouches for it, so it is not asked; if {host} is "
            f"yours, set {TRUST}={host} in the image or for the step, or pass trust=({host!r},) to "
            "load_model"
        )
        raise InvalidInput([Problem(field, address, remedy)])


def host_of(address: str) -> str:
    """Return scheme, host and port of an address: what is vouched for."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}"


def registered(group: str) -> list[str]:
    """Return the names that installed packages have registered."""
    return sorted({point.name for point in entry_points(group=group) if _is_installed(point)})


def find_registered(group: str, name: str) -> Callable[..., Any] | None:
    """Return what an installed package has registered under a name; None where none has.

    Raises:
        InvalidInput: It cannot be imported.
    """
    for point in filter(_is_installed, entry_points(group=group, name=name)):
        try:
            return point.load()
        except (Exception, SystemExit) as error:
            remedy = f"importing {point.value} raised {type(error).__name__}: {error}"
            raise InvalidInput([Problem(group, name, remedy)]) from error
    return None


def check_defined(found: Any, path: str, *, field: str, group: str, trust: Iterable[str]) -> None:
    """Refuse what a file names and a trusted module only passes on from another; calls nothing.

    A trusted module may have imported anything, under any name.

    Args:
        found: What stands at the path.
        path: As for `check_trusted`, and so are all that follow.
        field: ″
        group: ″
        trust: ″

    Raises:
        InvalidInput: It is defined in a module that nobody vouches for.
    """
    if ":" in path:
        home = f"{getattr(found, '__module__', '')}:{getattr(found, '__qualname__', '')}"
        check_trusted(home, field=field, group=group, trust=trust)


def _is_installed(point: EntryPoint) -> bool:
    """Return whether an entry point is an installed package's, not the current folder's."""
    here = os.path.realpath(os.getcwd())
    if point.dist is not None and os.path.realpath(str(point.dist.locate_file(""))) == here:
        return False
    return not _lies_in_current_folder(point.module.partition(".")[0])


def _normalised(trust: Iterable[str] | None) -> list[str]:
    given = [trust] if isinstance(trust, str) else list(trust or ())
    return [name.strip() for one in given for name in str(one).split(",") if name.strip()]


def _listed(variable: str) -> list[str]:
    return _normalised(os.environ.get(variable, ""))


def _is_within(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _lies_in_current_folder(package: str) -> bool:
    loaded = sys.modules.get(package)
    try:
        spec = loaded.__spec__ if loaded else importlib.util.find_spec(package)
    except (ImportError, ValueError, AttributeError):
        return False
    if spec is None:
        return False
    folders = list(spec.submodule_search_locations or [])
    folders += [spec.origin] if spec.origin and not folders else []
    here = os.path.realpath(os.getcwd())
    return any(os.path.realpath(os.path.dirname(folder)) == here for folder in folders)
