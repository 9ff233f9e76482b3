"""Write and read datasets in steps of your own: docs/data.md shows one.

`write_dataset` infers what columns mean, as import-dataset does, or takes a `Schema` of `Column`s.
`DatasetWriter` takes rows that do not fit into memory, a table at a time; `annotate` then tells the
artifact of an output port what it is. `Dataset.open` reads what any component has written.

Everything here imports without torch and without kfp; it takes numpy, pandas, pyarrow and pydantic.
"""

from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.datasets.handover import annotate, write_dataset
from kubestill.runtime.datasets.schema import Column, Schema, TextForm

__all__ = ["Column", "Dataset", "DatasetWriter", "Schema", "TextForm", "annotate", "write_dataset"]


def __dir__() -> list[str]:
    return sorted(__all__)
