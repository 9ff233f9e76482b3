"""Run components: one file each, which checks everything, runs, and writes the outputs.

No algorithms live here. `train_model` is what the three training components share, `pages` what
people read of a step, `frontier` what choices by size share, `failures` the record that a step
leaves when it fails, `tracking` what is logged to MLflow where there is one.
"""
