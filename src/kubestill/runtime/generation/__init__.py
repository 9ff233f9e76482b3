"""Generate rows and their labels.

`systems` label inputs exactly; `covering` and `adaptive` cover their domain; `munge`, `mixup` and
`jitter` augment a real dataset; `labelling` runs a teacher over rows; `gathering` joins the shards
of a fan-out. With every method, row g of the result depends on the seed, the originals and g
alone: never on the shard it was made in, on the block it was computed with, or on the rows beside
it.
"""
