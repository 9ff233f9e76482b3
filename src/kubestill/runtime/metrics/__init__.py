"""What is measured: one catalog of metrics, their formulas, and how sure a score is.

Reading order: `outcome` (answers beside the truth), `formulas` (columns by row, and what becomes of
their means), `catalog` (every metric: title, direction, unit, formula; what each task uses),
`intervals` (how sure a score is). Only `intervals` imports scipy: training and checkpoints need no
more than the catalog.
"""
