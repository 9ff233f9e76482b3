"""Turn raw columns into predictions: how a model is built, saved, loaded and served.

Reading order: `model` (encoder, network and decoder in one module), `encoder`, `decoder`,
`networks`, `functions` and `operators` (networks by name), `resolve` and `build` (a user's own),
`export` (a model as a folder), `identity` (its digest), `rows` (in every form that an application
holds), `predict` (a model as a function of rows), `familiar` (what it has never seen), `signature`
(what a served model takes and gives) and `serve` (ONNX or torch.export).
"""
