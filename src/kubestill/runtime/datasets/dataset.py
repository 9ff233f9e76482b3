"""Datasets: open one, write one, gather several. The front door of this package."""

from kubestill.runtime.datasets.canonical import BLOCK_ROWS
from kubestill.runtime.datasets.manifest import Dataset, Part, gather
from kubestill.runtime.datasets.writer import DatasetWriter

__all__ = ["BLOCK_ROWS", "Dataset", "DatasetWriter", "Part", "gather"]
