"""Proof, or refusal, that a network has become its solver or its table."""

from kubestill.runtime.certification.certificate import Certificate, Condition
from kubestill.runtime.certification.certify import certify
from kubestill.runtime.certification.settings import CertificateSettings

__all__ = ["Certificate", "CertificateSettings", "Condition", "certify"]
