"""Serve a model over HTTP, by the Open Inference Protocol (v2) that KServe speaks.

Reading order: `source` (which model: that of a folder, or a registry's champion), `protocol` (from
a request to rows, and from answers to a response), `batching` (requests that wait together are
answered together), `app` (the routes, and what is measured) and `server` (the process).

Needs the extra `kubestill[serve]`.
"""
