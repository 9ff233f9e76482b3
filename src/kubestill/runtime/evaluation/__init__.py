"""Judge models: how good one is, how certain that is, what it costs, and what to do about it.

Reading order: `settings`, `inputs` (models, rows and limits, checked), `evaluate` (one model on one
dataset), `examine` (all models on the same rows), `decision` (one word and its reasons),
`findings` and `publish` (what the report and the registry get). `examine` asks `fitness`, `units`
and `labels` whether the rows can judge, `decay`, `record` and `profile` how the champion stood at
its promotion, `comparison`, `slices`, `thresholds` and `cost` how models compare, and `pooling`
what the windows before add to that.
"""
