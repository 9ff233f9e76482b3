"""Store rows: what they mean, where they are kept, and how they become matrices.

Reading order: `schema` (kinds and roles of columns), `manifest` (a dataset on disk), `canonical`
(the one stored form, blocks and fingerprint), `writer`, `parts`, `decode` (rows to matrices) and
`cache` (decoded once, on the `shelf`). A user's own table comes in through `options` (how it is to
be read), `sources`, `survey` (what its columns hold), `columns`, `tables` (kinds, roles and task),
`answers` (a teacher's, in its columns), `times` and `split`. `checks` holds datasets against each
other; `dataset` is the front door, and `handover` that of steps of others.
"""
