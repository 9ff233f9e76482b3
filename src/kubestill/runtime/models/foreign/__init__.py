"""Use a model that another library trained wherever a model of our own goes.

The one protocol is columns in, outputs out, batches bounded.

Reading order: `spec` (what `model.json` says of a foreign model), `runtime` (the protocol: what a
file declares, and rows as it takes them), then one module a format, `boosters`, `onnx_file`,
`pt2_file` (with `pt2_read`, `pt2_graph`, `pt2_operators` and `pt2_run`), `skops_file`,
`huggingface`, `pictures`, `python` and `endpoint` (with `asking`, `dialects` and `answers`),
`recognise` (which of them a file is, and which files are refused), `match` (inputs and classes by
name, against a dataset), `model` (load and predict) and `bring` (from a file to a model of this
package).
"""
