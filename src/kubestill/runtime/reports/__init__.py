"""Show results: self-contained HTML pages with inline SVG, and a short Markdown beside each.

Reading order: `page` (the shell and its building blocks), `style`, `canvas` (figures as SVG),
`numbers` and `markdown`. Then one module per page: `training` (with `plots` and `attempts`),
`selection`, `evaluation` (with `headline`, `scores`, `comparison_plots`, `upkeep` and `history`),
`certificate` (with `surrogate_plots`), `overfit_batch`, `collected`, `bootstrap` and `registry`.
Each takes a record and imports nothing that made it.
"""
