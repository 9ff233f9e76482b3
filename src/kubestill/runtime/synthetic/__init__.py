"""Rows nobody measured: augmentation of a real dataset, and rows sampled from a user's source.

Whatever the method, row g of the result depends on the seed, the originals and g alone: never on
the shard it was made in, on the block it was computed with, or on the rows beside it.
"""
