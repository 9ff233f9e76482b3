"""Proof, or refusal, that a network has become its solver or its table."""

from kubestill.runtime.certificate.certificate import Certificate, Condition
from kubestill.runtime.certificate.certify import certify
from kubestill.runtime.certificate.settings import CertificateSettings

__all__ = ["Certificate", "CertificateSettings", "Condition", "certify"]
