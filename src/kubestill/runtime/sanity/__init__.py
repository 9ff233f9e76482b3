"""Check in seconds whether a training run can learn at all: it must overfit one small batch.

Reading order: `settings`, `gate` (the whole flow), `batch` and `floor` (which rows, and how low
their loss can go), `rows`, `contract` and `network` (what shows without training), `memorise`,
`diagnosis` (one experiment at a time), `heldout` (labels of rows never seen) and `findings`.
"""

from kubestill.runtime.sanity.findings import CODES, Check, GateFindings, HeldOut, Trace
from kubestill.runtime.sanity.gate import GateData, examine
from kubestill.runtime.sanity.settings import GateSettings

__all__ = [
    "CODES",
    "Check",
    "GateFindings",
    "GateData",
    "GateSettings",
    "HeldOut",
    "Trace",
    "examine",
]
