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
VARIANT ?= cpu
BUCKET ?=
NAMESPACE ?=
CANARY ?= 0
EXPERIMENT ?= goemotions
PRESET ?=
RESOURCES ?=
CRON ?=
INPUT ?=
OUTPUT ?=
WORKERS ?= 1
PODS ?= 4
MINUTES ?= 10
SECONDS ?= 30
ONLY ?=
IMAGES ?= trainer $(VARIANTS:%=predictor-%)

# The registry and the store of the environment where it names them, those of this machine elsewhere.
SERVICES := $(if $(MLFLOW_TRACKING_URI),setup,stack-up)
WITH := $(if $(MLFLOW_TRACKING_URI),,. .local/env &&)
GOEMOTIONS = $(WITH) $(BIN)/goemotions

.PHONY: help setup demo test test-images test-faults fuzz soak docs format typecheck lint audit run score serve bench bench-full bench-serving stack-up stack-down compile \
	submit-pipeline submit-scoring schedule images push pin-base status promote rollback isvc deploy download-model report clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'
	@echo
	@echo "  Variables: DATA=$(DATA) MODELS=$(MODELS) EPOCHS= (each model's own; the demo: 2)"
	@echo "             WEIGHTS=profile=folder SET=parameter=value MODEL_NAME=$(MODEL_NAME)"
	@echo "             VERSION=$(VERSION) OUT=$(OUT) PORT=$(PORT) GRPC_PORT=$(GRPC_PORT) REGISTRY=$(REGISTRY)"
	@echo "  Registry and store: MLFLOW_TRACKING_URI and the AWS variables where they are set, else this machine's (make stack-up)"

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) --constraint constraints.txt --editable '.[train,serve,pipeline,local,dev,bench,docs,audit]'
	@touch $@

setup: .venv/.installed ## install everything into .venv (done by the other targets when it is needed)

demo: setup ## train, register and serve on this machine; ends with five comments and their emotions
	@$(BIN)/python -m pipelines.demo --data '$(DATA)' --models '$(MODELS)' --epochs $(or $(EPOCHS),2) --model-name '$(MODEL_NAME)'

run: setup ## run the training pipeline on this machine: DATA= MODELS= EPOCHS= WEIGHTS= SET=
	@$(BIN)/python -m pipelines.local run --data '$(DATA)' --models '$(MODELS)' --epochs $(or $(EPOCHS),0) \
		--model-name '$(MODEL_NAME)' $(addprefix --weights ,$(WEIGHTS)) $(foreach pair,$(SET),--set '$(pair)')

score: $(SERVICES) ## label a file, or a folder or s3:// prefix of Parquet files: INPUT= OUTPUT= VERSION= WORKERS=
	@$(GOEMOTIONS) score --input '$(INPUT)' --output '$(OUTPUT)' --bundle '$(VERSION)' --model-name '$(MODEL_NAME)' --workers $(WORKERS)

serve: $(SERVICES) ## serve a VERSION, the champion for CPU: HTTP and a page on PORT, gRPC on GRPC_PORT
	@$(GOEMOTIONS) serve --bundle '$(VERSION)' --model-name '$(MODEL_NAME)' --port $(PORT) \
		--grpc-port $(GRPC_PORT)

bench-serving: $(SERVICES) ## measure that VERSION's predictor beside what one would take instead, on the test split of DATA: docs/serving-benchmarks.md (15 min)
	@$(WITH) $(BIN)/python -m benchmarks.serving --bundle '$(VERSION)' --model-name '$(MODEL_NAME)' --data '$(DATA)' \
		--output docs/serving-benchmarks.md

bench: $(SERVICES) ## measure training, batch scoring, overhead, growth and quality against speed: docs/benchmarks.md (20 min on DATA); ONLY=section
	@$(WITH) $(BIN)/python -m benchmarks.everything --data '$(DATA)' --bundle '$(VERSION)' --model-name '$(MODEL_NAME)' $(if $(ONLY),--only '$(ONLY)')

bench-full: $(SERVICES) ## the same on a million rows and every size (hours)
	@$(WITH) $(BIN)/python -m benchmarks.everything --data '$(DATA)' --bundle '$(VERSION)' --model-name '$(MODEL_NAME)' --full $(if $(ONLY),--only '$(ONLY)')

stack-up: setup ## start MLflow and S3 on this machine, or find them running
	@$(BIN)/python -m pipelines.stack up

stack-down: setup ## end them
	@$(BIN)/python -m pipelines.stack down

compile: setup ## write the pipeline as one file for the Kubeflow UI: REGISTRY=
	@$(BIN)/python -m pipelines.submit compile --registry '$(REGISTRY)' --resources '$(RESOURCES)'

# Endpoint, namespace and token: KF_PIPELINES_ENDPOINT, KF_PIPELINES_NAMESPACE, KF_PIPELINES_TOKEN or KF_PIPELINES_COOKIES, or KUBE_CONTEXT.
SUBMITTED = --data '$(DATA)' --models '$(MODELS)' --epochs $(or $(EPOCHS),0) $(addprefix --weights ,$(WEIGHTS)) \
	--set 'model_name=$(MODEL_NAME)' $(foreach pair,$(SET),--set '$(pair)') $(addprefix --preset ,$(PRESET)) --resources '$(RESOURCES)' --registry '$(REGISTRY)' \
	--experiment '$(EXPERIMENT)' $(if $(FORCE),--force) $(if $(DRY_RUN),--dry-run)

submit-pipeline: setup ## run the pipeline on Kubeflow: DATA= MODELS= PRESET=gke|eks|generic RESOURCES= REGISTRY= WAIT=1 DRY_RUN=1
	@$(BIN)/python -m pipelines.submit submit $(SUBMITTED) $(if $(WAIT),--wait)

submit-scoring: setup ## label Parquet files on Kubeflow: INPUT=s3://... OUTPUT=s3://... VERSION= PODS= REGISTRY= WAIT=1 DRY_RUN=1
	@$(BIN)/python -m pipelines.submit score --input '$(INPUT)' --output '$(OUTPUT)' --set 'version=$(VERSION)' --set 'pods=$(PODS)' \
		--set 'model_name=$(MODEL_NAME)' $(foreach pair,$(SET),--set '$(pair)') --resources '$(RESOURCES)' --registry '$(REGISTRY)' \
		--experiment '$(EXPERIMENT)' $(if $(FORCE),--force) $(if $(DRY_RUN),--dry-run) $(if $(WAIT),--wait)

schedule: setup ## run the training pipeline by the clock: CRON='0 0 3 * * 0' (six fields, seconds first), CRON=off ends that
	@$(BIN)/python -m pipelines.submit schedule $(SUBMITTED) --cron '$(CRON)'

# Also read by the script: REGISTRY, ENGINE, BASE_IMAGE, BUILD_OPTIONS, PIP_OPTIONS, SOURCE, FORCE.
images: ## build the images of this commit with docker, podman or buildah: REGISTRY= VARIANTS='cpu gpu' BUILD_OPTIONS=
	@images/image.sh build $(IMAGES)

# Of `make images push`, images come first, with -j too.
push: $(filter images,$(MAKECMDGOALS)) ## push them: REGISTRY=
	@images/image.sh push $(IMAGES)

pin-base: ## write the digest of the base image into the Dockerfiles, as its registry tells it: BASE_IMAGE=
	@images/image.sh pin-base

status: $(SERVICES) ## what is registered, aliased, in the manifest and served, and where they disagree: NAMESPACE=
	@$(GOEMOTIONS) status --model-name '$(MODEL_NAME)' --namespace '$(NAMESPACE)'

promote: $(SERVICES) ## make VERSION the champion if it passes the gate, and write manifests/isvc.yaml
	@$(GOEMOTIONS) promote '$(VERSION)' --model-name '$(MODEL_NAME)'

rollback: $(SERVICES) ## give the champion's place of VARIANT back to the version before, and write manifests/isvc.yaml
	@$(GOEMOTIONS) rollback --variant '$(VARIANT)' --model-name '$(MODEL_NAME)'

isvc: $(SERVICES) ## write manifests/isvc.yaml from the champions, with this commit's images: BUCKET= REGISTRY=
	@$(GOEMOTIONS) isvc --model-name '$(MODEL_NAME)' --bucket '$(BUCKET)' \
		$(if $(REGISTRY),--registry '$(REGISTRY)' --image-tag "$$(images/image.sh commit)")

deploy: $(SERVICES) ## set VERSION on its InferenceService: NAMESPACE= CANARY=percent
	@$(GOEMOTIONS) deploy '$(VERSION)' --model-name '$(MODEL_NAME)' --namespace '$(NAMESPACE)' --canary-percent '$(CANARY)'

download-model: $(SERVICES) ## bring the files of a VERSION (alias or number) to OUT, verified
	@$(GOEMOTIONS) download '$(VERSION)' --model-name '$(MODEL_NAME)' --output '$(OUT)'

report: setup ## write docs/model-performance.md, its figures and tables from what the newest run made
	@$(BIN)/python -m pipelines.local report --model-name '$(MODEL_NAME)'

# It pins other versions of packages that are used here too.
CHECKOV := .venv/checkov/bin/checkov
$(CHECKOV):
	$(PYTHON) -m venv .venv/checkov
	.venv/checkov/bin/python -m pip install --quiet $(PIP_OPTIONS) checkov==3.3.30
	@touch $@

# Training has processes of its own, here as in the pipeline: after OpenVINO has run in one, torch can crash in training.
TRAINING := tests/training
# The behaviour of a server under load is measured while nothing else runs.
LOAD := tests/serving/test_load.py
OTHERS := $(foreach file,$(TRAINING) $(LOAD) tests/images,--ignore $(file))

test: setup $(CHECKOV) ## the tests, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile $(OTHERS)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(TRAINING)
	$(BIN)/python -m pytest $(LOAD)

test-images: setup ## run the images of this commit with docker or podman, read-only and without rights
	$(BIN)/python -m pytest tests/images

test-faults: setup ## the tests of faults and bad inputs, slow ones too; docs/faults.md lists them (20 min)
	$(BIN)/python -m pytest --faults $(OTHERS)
	$(BIN)/python -m pytest --faults $(TRAINING)
	$(BIN)/python -m pytest --faults $(LOAD)

fuzz: setup ## run a fuzzer on each parser of untrusted input: SECONDS= per parser
	@cd /tmp && for parser in $$($(CURDIR)/$(BIN)/python $(CURDIR)/tests/fuzz/parsers.py --list); do echo "== $$parser"; \
		$(CURDIR)/$(BIN)/python $(CURDIR)/tests/fuzz/parsers.py $$parser -max_total_time=$(SECONDS) -verbosity=0; done

soak: setup ## run training, registration and serving together for MINUTES= with random faults; fails if anything is lost
	@$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

# The baseline leaves out commits of the hub and digests of data and weights, which are public. No advisory is left out; one that does
# not concern us would be, with --ignore-vuln and its reason here.
audit: setup ## what bandit, detect-secrets and pip-audit find; the SBOM goes to .local/sbom.json: AUDIT_OFFLINE=1
	$(BIN)/bandit -q -ll -r goemotions pipelines components benchmarks
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --no-verify --baseline .secrets.baseline
	@mkdir -p .local
	$(BIN)/cyclonedx-py environment --no-validate --pyproject pyproject.toml --output-file .local/sbom.json $(BIN)/python
ifeq ($(AUDIT_OFFLINE),1)
	@echo 'audit: nothing found in code and files; advisories were NOT checked (AUDIT_OFFLINE=1)'
else
	@$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip --progress-spinner off || \
		{ echo 'audit: a package has an advisory or could not be audited, see above; AUDIT_OFFLINE=1 leaves advisories out'; exit 1; }
	@echo 'audit: nothing found'
endif

docs: setup ## build the documents as a site in build/site; broken links fail
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo 'docs: build/site/index.html'

format: setup ## bring the code into style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: setup ## check types
	$(BIN)/mypy

lint: typecheck ## check style, types and Dockerfiles
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint images/*/Dockerfile

clean: ## remove what was made, stack included; .venv stays
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m pipelines.stack down; fi
	rm -rf .local .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
