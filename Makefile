# Every habit of the project is a target here; `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
PIP_OPTIONS ?=
BIN := .venv/bin

DATA ?= sample
MODELS ?= minilm,minilm-3l
WEIGHTS ?=
EPOCHS ?=
MODEL_NAME ?= goemotions
SET ?=
PORT ?= 8080
GRPC_PORT ?= 8081
VERSION ?= champion-cpu
OUT ?= .local/models/$(VERSION)
REGISTRY ?=
VARIANTS ?= cpu gpu
IMAGES ?= trainer $(VARIANTS:%=predictor-%)

.PHONY: help setup demo test test-images lint run serve bench-serving stack-up stack-down compile images push pin-base download-model report clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'
	@echo
	@echo "  Variables: DATA=$(DATA) MODELS=$(MODELS) EPOCHS= (each model's own; the demo: 2)"
	@echo "             WEIGHTS=profile=folder SET=parameter=value MODEL_NAME=$(MODEL_NAME)"
	@echo "             VERSION=$(VERSION) OUT=$(OUT) PORT=$(PORT) GRPC_PORT=$(GRPC_PORT) REGISTRY=$(REGISTRY)"

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) --constraint constraints.txt --editable '.[train,serve,pipeline,local,dev]'
	@touch $@

setup: .venv/.installed ## install everything into .venv (done by the other targets when it is needed)

demo: setup ## train, register and serve on this machine; ends with five comments and their emotions
	@$(BIN)/python -m pipelines.demo --data '$(DATA)' --models '$(MODELS)' --epochs $(or $(EPOCHS),2) --model-name '$(MODEL_NAME)'

run: setup ## run the training pipeline on this machine: DATA= MODELS= EPOCHS= WEIGHTS= SET=
	@$(BIN)/python -m pipelines.local run --data '$(DATA)' --models '$(MODELS)' --epochs $(or $(EPOCHS),0) \
		--model-name '$(MODEL_NAME)' $(addprefix --weights ,$(WEIGHTS)) $(foreach pair,$(SET),--set '$(pair)')

serve: stack-up ## serve a VERSION, the champion for CPU: HTTP and a page on PORT, gRPC on GRPC_PORT
	@. .local/env && $(BIN)/goemotions serve --bundle '$(VERSION)' --model-name '$(MODEL_NAME)' --port $(PORT) \
		--grpc-port $(GRPC_PORT)

bench-serving: stack-up ## measure that VERSION's predictor beside what one would take instead, on the test split of DATA (15 min)
	@. .local/env && $(BIN)/python -m benchmarks.serving --bundle '$(VERSION)' --model-name '$(MODEL_NAME)' --data '$(DATA)'

stack-up: setup ## start MLflow and S3 on this machine, or find them running
	@$(BIN)/python -m pipelines.stack up

stack-down: setup ## end them
	@$(BIN)/python -m pipelines.stack down

compile: setup ## write the pipeline as one file for the Kubeflow UI: REGISTRY=
	@$(BIN)/python -m pipelines.submit compile --registry '$(REGISTRY)'

# Also read by the script: REGISTRY, ENGINE, BASE_IMAGE, BUILD_OPTIONS, PIP_OPTIONS, SOURCE, FORCE.
images: ## build the images of this commit with docker, podman or buildah: REGISTRY= VARIANTS='cpu gpu' BUILD_OPTIONS=
	@images/image.sh build $(IMAGES)

# Of `make images push`, images come first, with -j too.
push: $(filter images,$(MAKECMDGOALS)) ## push them: REGISTRY=
	@images/image.sh push $(IMAGES)

pin-base: ## write the digest of the base image into the Dockerfiles, as its registry tells it: BASE_IMAGE=
	@images/image.sh pin-base

download-model: stack-up ## bring the files of a VERSION (alias or number) to OUT, verified
	@. .local/env && $(BIN)/goemotions download '$(VERSION)' --model-name '$(MODEL_NAME)' --output '$(OUT)'

report: setup ## write docs/model-performance.md, its figures and tables from what the newest run made
	@$(BIN)/python -m pipelines.local report --model-name '$(MODEL_NAME)'

# Training has a process of its own, here as in the pipeline: after OpenVINO has run in a process, torch can crash in training.
test: setup ## the tests
	$(BIN)/python -m pytest --ignore tests/test_training.py --ignore tests/images
	$(BIN)/python -m pytest tests/test_training.py

test-images: setup ## run the images of this commit with docker or podman, read-only and without rights
	$(BIN)/python -m pytest tests/images

lint: setup ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint images/*/Dockerfile

clean: ## remove what was made, stack included; .venv stays
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m pipelines.stack down; fi
	rm -rf .local .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
