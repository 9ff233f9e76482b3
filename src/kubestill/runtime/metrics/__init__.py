"""What is measured: one catalog of metrics, their formulas, and how sure a score is.

Reading order: `outcome` (answers beside the truth), `formulas` (columns by row, and what becomes of
their means), `catalog` (every metric: title, direction, unit, formula; what each task uses),
`running` (those that training follows, in torch), `intervals` (how sure a score is). Only
`running` imports torch: checkpoints need no more than the catalog.
"""
