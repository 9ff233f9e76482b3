"""One file a component: check everything, run, write the outputs; no algorithms.

`train_model` is what the three training components share, `failures` the record that a step leaves
when it fails.
"""
