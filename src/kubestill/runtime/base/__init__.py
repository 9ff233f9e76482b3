"""What every other package may use and none of them knows better.

`artifacts` (what Kubeflow hands a step), `settings` and `arguments` (reading dicts that users
write), `complaints` (what is wrong with those, in plain words), `values` (reading records of JSON),
`rounding` (bounds in sentences), `trust` (which code a file from a store may name), `redaction`
(credentials stay out of texts), `patience` (with services that a run can do without), `device`,
`memory` (a process keeps what it has), and `random` (Philox: numbers that depend on the seed and
the row alone).
"""

LARGEST = 64 << 20
"""Bytes of a record, a file of JSON that a store holds: no writer of this package comes near."""
