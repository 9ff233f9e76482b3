"""Certify that a network has become its solver or its table, or refuse to.

Reading order: `settings`, `certify` (the whole flow), `plan` (what is solved), `ahead`, `labels`,
`coverage`, `errors` (with `truth` and `quantiles`), `hunt` (the search for the worst point),
`proof`, `cost`, `exceptions` (the points on which network and table disagree), `certificate` (the
result as a typed record) and `views` (what the report draws).
"""

from kubestill.runtime.certification.certificate import Certificate, Condition, read_certificate
from kubestill.runtime.certification.settings import CertificateSettings

__all__ = ["Certificate", "CertificateSettings", "Condition", "read_certificate"]
