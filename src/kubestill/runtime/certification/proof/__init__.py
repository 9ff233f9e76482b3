"""Bound the largest error of a network over a whole continuous domain, so that no point exceeds it.

Reading order: `record` (what is handed back) and `prove` (branch and bound over the domain).
"""

from kubestill.runtime.certification.proof.prove import prove
from kubestill.runtime.certification.proof.record import Proof

__all__ = ["Proof", "prove"]
