"""Shares the models of the unit tests; exporting one takes seconds, which is too long there."""

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "models"))


@pytest.fixture(scope="session", autouse=True)
def operators() -> Iterator[None]:
    """Let the exporter read its table of ONNX operators once, and not anew for each export.

    Reading takes a third of an export; nothing that we export adds to the table.
    """
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        once = staticmethod(cache(ONNXRegistry.from_torchlib))
        patch.setattr(ONNXRegistry, "from_torchlib", once)
        yield
