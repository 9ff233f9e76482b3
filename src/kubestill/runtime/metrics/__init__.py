"""What is measured: scores with intervals, and which way each of them gets better.

Reading order: `outcome` (answers beside the truth), `scores` (the metrics of each task),
`intervals` (how sure a score is), `direction` (whether lower or higher is better).
"""
