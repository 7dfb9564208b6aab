# The words of this project: `make` alone lists them.
#
# Two environments, each made from its lock when that changes. `.venv-serve` holds requirements/serve.txt and nothing else:
# a newcomer waits for seconds and 0.4 GB where everything takes 1.6 GB, and what they run has shown that serving needs no torch.
# `.venv` holds the same packages and, on top, what exports, trains, measures and tests.

PYTHON ?= python3
PORT ?= 8000
DATA ?= ../shared/data
GOLDEN ?= ../shared/golden
ARGS ?=

SERVE := .venv-serve/bin/python
DEV := .venv/bin/python
LOCK := .venv-lock/bin/uv pip compile --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help setup serve test check format export conform trt-build eval-nuclei train-nuclei bench load lock clean

help: ## list these words
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile
	@echo "  PYTHON=python3.12 chooses the Python, ARGS='...' adds options to serve, test, export, conform, trt-build, eval-nuclei, train-nuclei, bench and lock."

setup: .venv/.ok ## install everything into .venv: serving, export, training, tests

serve: .venv-serve/.ok ## serve the bundled models on 127.0.0.1:8000 (PORT=9000 ARGS='--max-batch 4')
	$(SERVE) -m server --bundles bundles --port $(PORT) $(ARGS)

test: check ## install everything, run the checks and all tests that need no GPU (ARGS='-k rle')
	$(DEV) -m pytest -m "not gpu and not proof" $(ARGS)

check: .venv/.ok ## lint, formatting, types
	$(DEV) -m ruff check .
	$(DEV) -m ruff format --check .
	$(DEV) -m mypy

format: .venv/.ok ## put formatting and import order right
	$(DEV) -m ruff check --fix .
	$(DEV) -m ruff format .

export: .venv/.ok ## export the nuclei model to bundles/nuclei/1 (ARGS=--replace to write over it)
	$(DEV) -m export models.unet:nuclei_unet --weights models/weights/nuclei.safetensors --out bundles/nuclei/1 $(ARGS)

conform: .venv/.ok ## run the reference cases of other code bases under GOLDEN=../shared/golden, and the longer proofs of the export and the load tester
	$(DEV) -m export conform --golden $(GOLDEN) $(ARGS)
	$(DEV) -m pytest -m proof

trt-build: .venv/.ok ## build a TensorRT engine of every architecture, without a GPU (ARGS='--only unet')
	$(DEV) -m export.tensorrt.builds $(ARGS)

eval-nuclei: .venv/.ok ## score the bundled nuclei model on the pictures under DATA=../shared/data
	$(DEV) -m training.nuclei.evaluate --data $(DATA)/nuclei $(ARGS)

train-nuclei: .venv/.ok ## train the nuclei model again, from the pictures under DATA=../shared/data
	$(DEV) -m training.nuclei --data $(DATA)/nuclei $(ARGS)

bench: .venv/.ok ## measure the mask path, the codecs, the server, and it beside a bare loop
	$(DEV) -m bench $(ARGS)

load: .venv-serve/.ok ## drive the server on PORT=8000 for 10 seconds (ARGS='--rate 50', '--find-max --p99-ms 500')
	$(SERVE) -m loadtest http://127.0.0.1:$(PORT) $(ARGS)

lock: .venv-lock/.ok ## write requirements/*.txt from requirements/*.in (ARGS=--upgrade takes the newest releases)
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(LOCK) --quiet --generate-hashes $(ARGS) requirements/serve.in -o requirements/serve.txt
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(LOCK) --quiet --generate-hashes $(ARGS) requirements/gpu.in -o requirements/gpu.txt
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(LOCK) --quiet $(ARGS) requirements/dev.in -o requirements/dev.txt
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(LOCK) --quiet -c requirements/dev.txt $(ARGS) requirements/export.in -o requirements/export.txt

clean: ## remove the environments and caches; bundles and training runs stay
	rm -rf .venv .venv-serve .venv-lock .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last, so a broken install is begun again; --clear keeps packages of an older lock from lingering.

.venv-serve/.ok: requirements/serve.txt
	@$(need_python)
	$(PYTHON) -m venv --clear .venv-serve
	$(SERVE) -m pip install --require-hashes -r requirements/serve.txt
	@touch $@

.venv/.ok: requirements/serve.txt requirements/dev.txt
	@$(need_python)
	$(PYTHON) -m venv --clear .venv
	$(DEV) -m pip install --require-hashes -r requirements/serve.txt
	$(DEV) -m pip install -r requirements/dev.txt
	@touch $@

.venv-lock/.ok:
	@$(need_python)
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/python -m pip install "uv>=0.13,<0.14"
	@touch $@

define need_python
$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null || { \
	echo "maskserve needs Python 3.11, 3.12, 3.13 or 3.14; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo not installed). Say which to use: make PYTHON=python3.12 ..." >&2; exit 1; }
endef
