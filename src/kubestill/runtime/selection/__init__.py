"""Choosing one milestone of a training run: pure functions over ledger entries, no torch.

Reading order: `request` (what is asked for), `rules` (which milestone, and why).
"""
