"""Whether a training can learn at all, told in seconds: it must overfit one small batch."""

from kubestill.runtime.overfit_batch.findings import CODES, Check, Findings, Trace
from kubestill.runtime.overfit_batch.gate import Rows, examine
from kubestill.runtime.overfit_batch.settings import GateSettings

__all__ = ["CODES", "Check", "Findings", "GateSettings", "Rows", "Trace", "examine"]
