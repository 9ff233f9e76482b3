"""Datasets: open one, write one, gather several. The front door of this package."""

from kubestill.runtime.data.canonical import BLOCK_ROWS
from kubestill.runtime.data.manifest import Dataset, Part, gather
from kubestill.runtime.data.writer import DatasetWriter

__all__ = ["BLOCK_ROWS", "Dataset", "DatasetWriter", "Part", "gather"]
