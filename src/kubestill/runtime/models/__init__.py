"""Models: what turns raw columns into predictions, how it is built, saved, loaded and served."""

import gc

import torch  # noqa: F401  # pyright: ignore[reportUnusedImport]

# What importing torch leaves behind, some half a million objects, lives as long as the process.
# Kept out of every later search for garbage, it no longer costs a step an eighth of its start.
gc.freeze()
