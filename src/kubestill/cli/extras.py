"""Name the extra that installs a package which a command misses."""

from __future__ import annotations

import re

_DISTRIBUTIONS = {"google": "google-cloud-storage", "sklearn": "scikit-learn", "yaml": "PyYAML"}
"""Where they are not called like their module."""


def explain_missing(module: str) -> str:
    """Return one line on how to install a module; empty where none of our extras brings it.

    Args:
        module: As the import names it, such as `sklearn.utils`.
    """
    # Imported only now: it would cost every command a third of its start.
    from importlib.metadata import PackageNotFoundError, requires

    top = module.partition(".")[0]
    wanted = _DISTRIBUTIONS.get(top, top)
    try:
        requirements = requires("kubestill") or ()
    except PackageNotFoundError:
        return ""
    for requirement in requirements:
        found = re.match(r"([\w.-]+).*extra == [\"'](\w+)[\"']", requirement)
        if found and _plain(found[1]) == _plain(wanted):
            remedy = f"pip install 'kubestill[{found[2]}]'"
            return f"this command needs {wanted}, which is not installed: {remedy}"
    return ""


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
