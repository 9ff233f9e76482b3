# kubestill: `make help` lists what there is.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help
help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

# uv reads its own variable for local wheels; pip's is what machines usually set.
$(BIN)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	UV_FIND_LINKS="$${UV_FIND_LINKS:-$${PIP_FIND_LINKS:-}}" $(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: setup
setup: $(BIN)/.ready ## create .venv from requirements.lock

# The lock names no build of torch and none of its CUDA packages, so that a CPU-only wheel satisfies it.
.PHONY: lock
lock: $(BIN)/.ready ## re-resolve requirements.lock (exact versions, no addresses)
	UV_FIND_LINKS="$${UV_FIND_LINKS:-$${PIP_FIND_LINKS:-}}" $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	  --extra dev --no-annotate --no-header --no-emit-index-url --no-emit-find-links pyproject.toml \
	  | sed -E '/^(nvidia-|cuda-|triton==)/d; s/^(torch==[0-9.]+).*/\1/' | sort -u >requirements.lock
