"""Read YAML that somebody else may have written."""

from __future__ import annotations

from typing import IO, Any

import yaml

MOST_VALUES = 100_000
"""That one text may hold, each alias counted for all that it stands for."""
MOST_CHARACTERS = 2 << 20
"""That one text may hold; a pipeline of this size is larger than Kubernetes stores."""


def read_yaml(text: str | IO[str]) -> Any:
    """Read the one document of a text; None where it is empty.

    Raises:
        YAMLError: As `read_documents` does, and where there are several.
    """
    documents = read_documents(text)
    if len(documents) > 1:
        raise yaml.YAMLError(f"it holds {len(documents)} documents; give one")
    return documents[0] if documents else None


def read_documents(text: str | IO[str]) -> list[Any]:
    """Read all documents of a text.

    Nine lines of aliases can stand for a billion values: reading them takes no time, but nothing
    that is done with them afterwards ends. Values that are written out take a thousand times the
    memory of their text, so they are counted while they are read.

    Raises:
        YAMLError: It cannot be parsed, nests too deeply, or holds more than `MOST_CHARACTERS`
            characters or `MOST_VALUES` values.
    """
    if not isinstance(text, str):
        text = text.read(MOST_CHARACTERS + 1)
    if len(text) > MOST_CHARACTERS:
        raise yaml.YAMLError(f"it holds more than {MOST_CHARACTERS:,} characters")
    try:
        documents = list(yaml.load_all(text, _Bounded))
        _count(documents, {}, set())
    except RecursionError as error:
        raise yaml.YAMLError("it nests too deeply") from error
    except UnicodeDecodeError:
        raise
    except ValueError as error:  # a date such as 2026-02-30, or a number of thousands of digits
        raise yaml.YAMLError(str(error)) from error
    return documents


if yaml.__with_libyaml__:
    from yaml.composer import Composer
    from yaml.constructor import SafeConstructor
    from yaml.cyaml import CParser  # pyright: ignore[reportAttributeAccessIssue]
    from yaml.resolver import Resolver

    class _Loader(Composer, CParser, SafeConstructor, Resolver):
        """Takes libyaml's events, five times as fast, but composes them where they are counted."""

        def __init__(self, stream: str):
            CParser.__init__(self, stream)
            Composer.__init__(self)
            SafeConstructor.__init__(self)
            Resolver.__init__(self)
else:
    _Loader = yaml.SafeLoader  # pyright: ignore[reportAssignmentType]


class _Bounded(_Loader):
    """Composes at most `MOST_VALUES` values."""

    composed = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.composed += 1
        if self.composed > MOST_VALUES:
            raise yaml.YAMLError(f"it holds more than {MOST_VALUES:,} values")
        return super().compose_node(parent, index)


def _count(value: Any, counted: dict[int, int], above: set[int]) -> int:
    """Count the values in a value, itself included.

    Args:
        value: What to count.
        counted: Counts of those seen already, by their identity.
        above: Those that this one is part of.
    """
    if not isinstance(value, dict | list | set | tuple):
        return 1
    if id(value) in above:
        raise yaml.YAMLError("it contains itself")
    if id(value) not in counted:
        above.add(id(value))
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        total = 1 + sum(_count(part, counted, above) for part in parts)
        above.remove(id(value))
        if total > MOST_VALUES:
            raise yaml.YAMLError(f"it holds more than {MOST_VALUES:,} values, aliases counted")
        counted[id(value)] = total
    return counted[id(value)]
