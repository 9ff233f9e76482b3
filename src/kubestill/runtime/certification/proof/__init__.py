"""Bound the largest error of a network over a whole continuous domain, so that no point exceeds it.

Reading order: `record` (what is handed back), `prove` (branch and bound over the domain), `space`
(the domain as boxes), `sides` (network and reference over boxes), `bounds` (relaxation of a
network, and the model of rounding), `graph` (a network as operations) and `activations`.
"""

from kubestill.runtime.certification.proof.prove import prove
from kubestill.runtime.certification.proof.record import Proof

__all__ = ["Proof", "prove"]
