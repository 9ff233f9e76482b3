"""Choosing one milestone of a training run: pure functions over ledger entries, no torch.

Reading order: `criterion` (what is asked for), `rules` (which milestone, and why).
"""
