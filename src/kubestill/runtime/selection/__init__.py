"""Choosing one milestone of a training: pure functions over curves and ledger entries, no torch.

Reading order: `direction` (which way a metric gets better), `noise`, `phases` (where high-level
structure, detail and overfitting lie), `rules` (which milestone, and why).
"""
