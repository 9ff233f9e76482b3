"""Train a model: one engine, three presets (teacher, student, fine-tuning).

Reading order: `settings` (everything a user can set), `job` (checks all of it before anything
runs), `run` (fingerprint, place, resume or adopt), `prepare` (model, rows and loss), `engine` (the
loop) and `record` (what it leaves). The engine uses `plan` and `batches` (which rows at which
step), `steps` and `finish` (one update, first-order and L-BFGS), `optimizers`, `schedules` and
`losses`, `validation` (scores on the way), `stopping`. Where several processes share a training
run, `processes` starts them, `distributed` joins them, and `micro_batches` and `tree` keep its bits
independent of how many they are; `shards` has each keep a share of the state, and `blocks` knows
the parts of a network that are gathered, or recomputed, one at a time. Where pods do, `trainjob`
makes and follows them (`trainjob_manifest`, `trainjob_status`), and `nodes` is what each knows of
the others. What else decides bits is in `device`, `random_state` and `kernels`; only fine-tuning
needs `replay`.
"""
