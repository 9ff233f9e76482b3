"""Whether a training can learn at all, told in seconds: it must overfit one small batch."""

from kubestill.runtime.sanity.findings import CODES, Check, Findings, Trace
from kubestill.runtime.sanity.gate import Rows, examine
from kubestill.runtime.sanity.settings import GateSettings

__all__ = ["CODES", "Check", "Findings", "GateSettings", "Rows", "Trace", "examine"]
