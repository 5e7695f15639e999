# Every routine task has a target here; `make help` lists them. Most are aliases of `goemotions` commands.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
PIP_OPTIONS ?=
UV ?= $(shell command -v uv)
TORCH_INDEX ?=
BIN := .venv/bin

VARIANTS ?= cpu gpu
IMAGES ?= trainer $(VARIANTS:%=predictor-%)
MINUTES ?= 10
SECONDS ?= 30

# The registry and the store are those of the environment if MLFLOW_TRACKING_URI is set, otherwise those of this machine.
# With IN_CLUSTER=1 a command runs as a Job beside them.
SERVICES := $(if $(IN_CLUSTER)$(MLFLOW_TRACKING_URI),setup,stack-up)
WITH := $(if $(IN_CLUSTER)$(MLFLOW_TRACKING_URI),,. .local/env &&)
GOEMOTIONS := $(BIN)/goemotions
TRAINER = $(if $(REGISTRY),$(REGISTRY)/)goemotions-trainer:$$(images/image.sh commit)
ON_SERVICES = $(WITH) $(GOEMOTIONS) $(if $(IN_CLUSTER),in-cluster --image "$(TRAINER)")

# $(call option,--data,DATA) is --data with the value of DATA if it is set: the defaults are those of the commands.
quoted = '$(subst ','\'',$1)'
option = $(if $($2),$1 $(call quoted,$($2)))
SETTINGS = $(call option,--weights,WEIGHTS) $(call option,--set,SET)
TRAINED = $(call option,--data,DATA) $(call option,--models,MODELS) $(call option,--teachers,TEACHERS) $(call option,--epochs,EPOCHS)
REFERENCE = $(if $(VERSION),$(call quoted,$(VERSION)))
NAMED = $(call option,--model-name,MODEL_NAME)

.PHONY: help setup demo test tools test-images test-faults fuzz soak docs format typecheck lint scan audit run monitor score serve bench bench-full bench-serving reproduce \
	stack-up stack-down compile submit-pipeline submit-scoring schedule schedule-monitoring images push pin-base status promote rollback isvc deploy rollout restart kind-up cluster-test \
	download-model export-hf retire report clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-19s %s\n", $$1, $$2}'
	@echo
	@echo "  Variables: DATA=source MODELS=profile,profile TEACHERS=profile:number+profile@seed EPOCHS=number WEIGHTS=profile=folder"
	@echo "             SET=parameter=value MODEL_NAME=name"
	@echo "             VERSION=alias or number OUT=folder PORT=number GRPC_PORT=number REGISTRY=image prefix"
	@echo "             For their defaults see --help of the command, such as $(GOEMOTIONS) pipeline run --help"
	@echo "  Registry and store: MLFLOW_TRACKING_URI and the AWS variables if they are set, otherwise those of this machine (make stack-up);"
	@echo "             IN_CLUSTER=1 REGISTRY= runs status, promote, rollback, isvc, deploy, rollout and score as a Job beside them"

# The stamp holds a checksum: if the pins did not change, nothing is installed, and no network is needed.
EXTRAS := train,serve,pipeline,local,dev,bench,docs,audit
INSTALL = $(if $(UV),$(UV) pip install --python $(BIN)/python,$(BIN)/python -m pip install) $(PIP_OPTIONS) \
	$(if $(TORCH_INDEX),--extra-index-url '$(TORCH_INDEX)' $(if $(UV),--index-strategy unsafe-best-match)) \
	--constraint constraints.txt --editable '.[$(EXTRAS)]'

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@if cat $^ | cksum | cmp -s - $@; then touch $@; exit; fi; \
	echo 'setup: installs everything into .venv: about 3 GB with a CPU build of torch, 7 GB with a CUDA build; 5 to 15 minutes.'; \
	echo 'setup: $(if $(UV),$(UV),pip; with uv (UV=path) a CPU build of torch is found without TORCH_INDEX)'; \
	echo 'setup: index with CPU builds of torch: $(or $(TORCH_INDEX),none (TORCH_INDEX=address))'; \
	test -x $(BIN)/python || $(PYTHON) -m venv .venv; \
	$(if $(UV),$(if $(TORCH_INDEX),,$(INSTALL) --torch-backend auto || echo 'setup: uv found no build of torch for this machine; taking the one of the package index'; ))$(INSTALL); \
	cat $^ | cksum > $@; \
	$(BIN)/python -c 'import torch; print("setup: done, torch", torch.__version__, "for", f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU")'

setup: .venv/.installed ## install everything into .venv; the other targets do it if needed: TORCH_INDEX= UV= PIP_OPTIONS=

# Two epochs are enough to see that training works.
demo: EPOCHS := $(or $(EPOCHS),2)
demo: setup ## train, register and serve on this machine; ends with five comments and their emotions
	@$(GOEMOTIONS) pipeline demo $(TRAINED) $(NAMED)

run: setup ## run the training pipeline on this machine: DATA= MODELS= TEACHERS= EPOCHS= WEIGHTS= SET=
	@$(GOEMOTIONS) pipeline run $(TRAINED) $(NAMED) $(SETTINGS)

TRAFFIC = $(call option,--server,SERVER) $(call option,--prometheus,PROMETHEUS) $(call option,--scored,SCORED)

monitor: setup ## check the traffic for drift, and train on this machine if there is a reason to: SERVER= or PROMETHEUS= or SCORED=, REASON= DATA= MODELS= SET=
	@$(GOEMOTIONS) pipeline monitor $(TRAINED) $(NAMED) $(SETTINGS) $(TRAFFIC) $(call option,--reason,REASON)

score: $(SERVICES) ## label a file, or a folder or s3:// prefix of files: INPUT= OUTPUT= VERSION= WORKERS=
	@$(ON_SERVICES) score $(call option,--input,INPUT) $(call option,--output,OUTPUT) $(call option,--bundle,VERSION) $(NAMED) $(call option,--workers,WORKERS)

NEXT_PORT = $(shell expr $(call quoted,$(or $(PORT),8080)) + 1)

serve: $(SERVICES) ## serve VERSION, by default the champion for CPU: HTTP and a page on PORT, gRPC on GRPC_PORT or the port after PORT
	@$(ON_SERVICES) serve $(call option,--bundle,VERSION) $(NAMED) $(call option,--port,PORT) --grpc-port $(call quoted,$(or $(GRPC_PORT),$(NEXT_PORT)))

bench-serving: $(SERVICES) ## compare the predictor of VERSION with alternatives, on the test split of DATA: docs/serving-benchmarks.md (15 min)
	@$(WITH) $(BIN)/python -m benchmarks.serving $(call option,--bundle,VERSION) $(NAMED) $(call option,--data,DATA) \
		--output docs/serving-benchmarks.md

BENCHMARKS = $(WITH) $(BIN)/python -m benchmarks.everything $(call option,--data,DATA) $(call option,--bundle,VERSION) $(NAMED)

bench: $(SERVICES) ## measure training, batch scoring, overhead, growth, and quality against speed: docs/benchmarks.md (20 min on DATA); ONLY=section
	@$(BENCHMARKS) $(call option,--only,ONLY)

bench-full: $(SERVICES) ## the same with a million rows and every size (hours)
	@$(BENCHMARKS) --full $(call option,--only,ONLY)

reproduce: stack-up ## train and measure what the published report shows, and write it (5 hours on two cores with bf16): DATA= WEIGHTS= MODELS= TEACHERS=
	@. .local/env && $(BIN)/python -m benchmarks.reproduce $(call option,--data,DATA) $(call option,--weights,WEIGHTS) $(call option,--models,MODELS) $(call option,--teachers,TEACHERS)

stack-up: setup ## start MLflow and S3 on this machine if they are not running
	@$(GOEMOTIONS) stack up

stack-down: setup ## stop them
	@$(GOEMOTIONS) stack down

compile: setup ## write the pipeline as one file for the Kubeflow UI: REGISTRY= RESOURCES=
	@$(GOEMOTIONS) pipeline compile $(call option,--registry,REGISTRY) $(call option,--resources,RESOURCES)

# Endpoint, namespace and token: KF_PIPELINES_ENDPOINT, KF_PIPELINES_NAMESPACE, KF_PIPELINES_TOKEN or KF_PIPELINES_COOKIES, or KUBE_CONTEXT.
# The defaults of DATA and MODELS are the whole data and the models that need GPUs.
PLACEMENT = $(call option,--preset,PRESET) $(call option,--queue,QUEUE) $(call option,--priority,PRIORITY)
ON_CLUSTER = $(if $(MODEL_NAME),--set $(call quoted,model_name=$(MODEL_NAME))) $(SETTINGS) $(call option,--resources,RESOURCES) \
	$(call option,--registry,REGISTRY) $(call option,--experiment,EXPERIMENT) $(if $(FORCE),--force) $(if $(DRY_RUN),--dry-run)

submit-pipeline: setup ## run the pipeline on Kubeflow: PRESET=gke-a100-80gb (nodes) DATA= MODELS= TEACHERS= RESOURCES= REGISTRY= QUEUE= WAIT=1 DRY_RUN=1
	@$(GOEMOTIONS) pipeline submit $(TRAINED) $(PLACEMENT) $(ON_CLUSTER) $(if $(WAIT),--wait)

submit-scoring: setup ## label files on Kubeflow: INPUT=s3://... OUTPUT=s3://... VERSION= PODS= REGISTRY= WAIT=1 DRY_RUN=1
	@$(GOEMOTIONS) pipeline score $(call option,--input,INPUT) $(call option,--output,OUTPUT) $(if $(VERSION),--set $(call quoted,version=$(VERSION))) \
		$(if $(PODS),--set $(call quoted,pods=$(PODS))) $(ON_CLUSTER) $(if $(WAIT),--wait)

schedule: setup ## train on a schedule if there is a reason to: CRON='0 0 3 * * 0' (six fields, seconds first), PRESET=; CRON=off ends it
	@$(GOEMOTIONS) pipeline schedule $(TRAINED) $(PLACEMENT) $(ON_CLUSTER) $(call option,--cron,CRON)

schedule-monitoring: setup ## check the traffic for drift on a schedule: CRON= PROMETHEUS= or SERVER= or SCORED=s3://...; CRON=off ends it
	@$(GOEMOTIONS) pipeline schedule-monitoring $(TRAFFIC) $(ON_CLUSTER) $(call option,--cron,CRON)

# The script also reads REGISTRY, ENGINE, BASE_IMAGE, BUILD_OPTIONS, PIP_OPTIONS, SOURCE and FORCE.
images: ## build the images of this commit with docker, podman or buildah: REGISTRY= VARIANTS='cpu gpu' BUILD_OPTIONS=
	@images/image.sh build $(IMAGES)

# With `make images push`, images are built first, with -j too.
push: $(filter images,$(MAKECMDGOALS)) ## push them: REGISTRY=
	@images/image.sh push $(IMAGES)

pin-base: ## write the digest of the base image, from its registry, into the Dockerfiles: BASE_IMAGE=
	@images/image.sh pin-base

status: $(SERVICES) ## show what is registered, aliased, in the manifest and served, and where they differ: NAMESPACE=
	@$(ON_SERVICES) model status $(NAMED) $(call option,--namespace,NAMESPACE)

promote: $(SERVICES) ## make VERSION the champion if it passes the gate, and write manifests/isvc.yaml: DATASET= of a version on new data
	@$(ON_SERVICES) model promote $(REFERENCE) $(NAMED) $(call option,--dataset,DATASET)

rollback: $(SERVICES) ## make the previous champion of VARIANT, or TO, the champion again, and write manifests/isvc.yaml
	@$(ON_SERVICES) model rollback $(call option,--variant,VARIANT) $(call option,--to,TO) $(NAMED)

isvc: $(SERVICES) ## write the champions and the images of this commit into manifests/isvc.yaml: BUCKET= REGISTRY= PRESET=gke-l4 (nodes with GPUs)
	@$(ON_SERVICES) model isvc $(NAMED) $(call option,--bucket,BUCKET) $(call option,--preset,PRESET) \
		$(if $(REGISTRY),--registry $(call quoted,$(REGISTRY)) --image-tag "$$(images/image.sh commit)")

deploy: $(SERVICES) ## set VERSION on its InferenceService: NAMESPACE= CANARY=percent PRESET=
	@$(ON_SERVICES) model deploy $(REFERENCE) $(NAMED) $(call option,--namespace,NAMESPACE) $(call option,--canary-percent,CANARY) \
		$(call option,--preset,PRESET)

ROLLOUT = $(if $(IN_CLUSTER)$(NAMESPACE)$(PROMETHEUS),model,stack) rollout
CHALLENGER = $(or $(VERSION),challenger-cpu)
rollout: $(SERVICES) ## give VERSION the traffic in steps, promote it or roll it back: two servers here, or NAMESPACE= PROMETHEUS= STEPS= RESTART=1 FAULT=
	@$(ON_SERVICES) $(ROLLOUT) $(call quoted,$(CHALLENGER)) $(NAMED) $(call option,--namespace,NAMESPACE) $(call option,--prometheus,PROMETHEUS) \
		$(call option,--steps,STEPS) $(call option,--fault,FAULT) $(if $(RESTART),--restart)

restart: setup ## replace the pods of VARIANT by new ones of the same version: NAMESPACE= VARIANT=
	@$(GOEMOTIONS) model restart $(call option,--variant,VARIANT) $(NAMED) $(call option,--namespace,NAMESPACE)

download-model: $(SERVICES) ## download and verify the files of VERSION (alias or number) to OUT, or any trained model: RUN= PROFILE=
	@$(ON_SERVICES) model download $(REFERENCE) $(NAMED) $(call option,--output,OUT) $(call option,--run,RUN) $(call option,--profile,PROFILE)

export-hf: $(SERVICES) ## write VERSION (for GPUs), or any trained model (RUN= PROFILE=), as a folder of the Hugging Face hub: OUT= DATA=
	@$(ON_SERVICES) export-hf $(REFERENCE) $(NAMED) $(call option,--output,OUT) $(call option,--run,RUN) $(call option,--profile,PROFILE) $(call option,--data,DATA)

retire: $(SERVICES) ## show which old versions' bundles would be removed; YES=1 removes them: KEEP= per variant, DAYS= TRAINED_DAYS= NAMESPACE=
	@$(ON_SERVICES) model retire $(NAMED) $(call option,--keep,KEEP) $(call option,--days,DAYS) $(call option,--trained-days,TRAINED_DAYS) $(call option,--namespace,NAMESPACE) $(if $(YES),--yes)

report: setup ## write docs/model-performance.md, its figures and tables from the newest run
	@$(GOEMOTIONS) pipeline report $(NAMED)

# Each has an environment of its own: Checkov and Triton's client need other versions of packages that are used here too, and with the
# dependencies of CycloneDX every import of kfp takes two seconds more.
CHECKOV := .venv/checkov/bin/checkov
CYCLONEDX := .venv/cyclonedx/bin/cyclonedx-py
TRITON := .venv/triton/bin/installed
$(CHECKOV): TOOL := checkov==3.3.30
$(CYCLONEDX): TOOL := cyclonedx-bom==7.5.0
$(TRITON): TOOL := 'tritonclient[grpc,http]==2.73.0'
$(CHECKOV) $(CYCLONEDX) $(TRITON):
	$(PYTHON) -m venv $(@D:/bin=)
	$(@D)/python -m pip install --quiet $(PIP_OPTIONS) $(TOOL)
	@touch $@

# Two files of tests at a time, or more on more cores; each worker needs about 2 GB.
TEST_WORKERS := $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 2 ? 2 : cores > 4 ? 4 : cores)))

tools: $(CHECKOV) $(CYCLONEDX) $(TRITON) ## the programs that the tests run in environments of their own

# Every process imports much of the package, so that Python keeps what it compiled.
test: setup tools ## the tests, but for the slow ones, with a process per core
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --ignore tests/images

test-images: setup ## run the images of this commit with docker or podman, read-only and without privileges
	$(BIN)/python -m pytest tests/images

kind-up: ## a kind cluster with KServe and Kubeflow Pipelines on this machine, with the images of this commit: needs docker, kind, kubectl
	@manifests/kind/up.sh

cluster-test: setup ## try on the cluster KUBE_CONTEXT= what is claimed of one, as a table (an hour): REGISTRY=; without a cluster against stand-ins
	@$(if $(KUBE_CONTEXT),$(BIN)/python -m benchmarks.cluster --context $(call quoted,$(KUBE_CONTEXT)) $(call option,--registry,REGISTRY),$(BIN)/python -m pytest tests/benchmarks/test_cluster.py)

test-faults: setup tools ## the slow tests, and those of faults and bad inputs; docs/faults.md lists them (30 min)
	$(BIN)/python -m pytest --faults --ignore tests/images

fuzz: setup ## run a fuzzer on each parser of untrusted input: SECONDS= per parser
	@cd /tmp && for parser in $$($(CURDIR)/$(BIN)/python $(CURDIR)/tests/fuzz/parsers.py --list); do echo "== $$parser"; \
		$(CURDIR)/$(BIN)/python $(CURDIR)/tests/fuzz/parsers.py $$parser -max_total_time=$(SECONDS) -verbosity=0; done

soak: setup ## run training, registration and serving together for MINUTES= with random faults and hostile clients; fails if anything is lost
	@$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

# The baseline excludes commits of the hub and digests of data and weights, which are public. No advisory is excluded; to exclude one that
# does not apply here, use --ignore-vuln and write the reason here.
scan: setup ## look for dangerous code and secrets, with bandit and detect-secrets
	$(BIN)/bandit -q -ll -r goemotions pipelines components benchmarks
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --no-verify --baseline .secrets.baseline

audit: scan $(CYCLONEDX) ## scan, look for advisories with pip-audit, and write the SBOM to .local/sbom.json: AUDIT_OFFLINE=1
	@mkdir -p .local
	$(CYCLONEDX) environment --no-validate --pyproject pyproject.toml --output-file .local/sbom.json $(BIN)/python
ifeq ($(AUDIT_OFFLINE),1)
	@echo 'audit: nothing found in code and files; advisories were NOT checked (AUDIT_OFFLINE=1)'
else
	@$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip --progress-spinner off || \
		{ echo 'audit: a package has an advisory or could not be audited, see above; AUDIT_OFFLINE=1 leaves advisories out'; exit 1; }
	@echo 'audit: nothing found'
endif

docs: setup ## build the documents as a site in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo 'docs: build/site/index.html'

format: setup ## format the code, and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: setup ## check types
	$(BIN)/mypy

lint: typecheck scan ## check style, types, Dockerfiles, dangerous code and secrets
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint images/*/Dockerfile

clean: ## stop the stack and remove everything that was generated, except .venv
	@if [ -x $(GOEMOTIONS) ]; then $(GOEMOTIONS) stack down; fi
	rm -rf .local .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
