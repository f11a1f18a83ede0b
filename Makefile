# Everything that is done with this repository. `make` alone lists the targets.
# A fresh machine needs python3 (3.11 or newer), make and, better, a C++ compiler.

PYTHON ?= python3
VENV   ?= .venv
CONFIG ?= configs/demo.yaml
# The build of PyTorch: cpu, cuda, or auto, which is cuda if there is an NVIDIA driver.
TORCH  ?= auto

BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -q -c constraints.txt
# A stamp says that an installation is as pyproject.toml and constraints.txt ask for it.
BASE    := $(VENV)/.installed-base
DEV     := $(VENV)/.installed-dev
BUILD   := $(VENV)/.installed-torch-$(TORCH)
TRAIN   := $(VENV)/.installed-train
BENCH   := $(VENV)/.installed-bench
DOCS    := $(VENV)/.installed-docs
PEERS   := .peers/.installed
# What is compiled of the engine.
KERNELS := rudalle_lib/kernels

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install install-dev chromium exiftool azurite postgresql demo demo-s3 app ui screenshots test test-scale chaos lint format bench bench-quick gpu-check cross-check peers train-demo docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(BASE) $(BUILD) ## make .venv with what a run needs
install-dev: $(DEV) ## the same with what tests and linting need

demo: $(BASE) $(BUILD) ## install, draw the demo prompts, say where the images are
	@$(BIN)/rudalle-flows run $(CONFIG)

demo-s3: $(DEV) ## the demo again, written to a real S3 server that this starts and stops
	@$(BIN)/python -m tests.support.s3_server -- sh -c '$(BIN)/rudalle-flows run $(CONFIG) --output s3://$$S3_BUCKET/demo \
	  && $(BIN)/rudalle-flows status s3://$$S3_BUCKET/demo'

app: $(BASE) ## a page to try prompts, on this machine alone
	@$(INSTALL) --no-build-isolation -e '.[app]'
	@$(BIN)/rudalle-flows app $(CONFIG)

ui: $(BASE) ## Prefect's pages with the demo run already in them, at http://127.0.0.1:4200
	@$(BIN)/python -m flows.ui.demo_server $(CONFIG)

screenshots: $(DEV) chromium ## make the README's images of Prefect's pages and the gallery
	@$(BIN)/python -m tests.ui.screenshots --config $(CONFIG)

# Threads that wait actively take the cores from the other process: two files with trainings took more
# than ten minutes instead of one.
test: $(DEV) chromium exiftool azurite ## the default tests, two files at once; a failed one is repeated once and named: no GPU, no published weights
	@OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --reruns 1 -rR

chaos: $(DEV) ## break runs on purpose, at length: kills, pauses, power cuts, faults, hostile input (an hour)
	@$(BIN)/python -m pytest -q -m chaos tests

chromium: ## the browser that the tests of pages need, from the system's packages
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	  || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing Chromium ..." && apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	      apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	  else \
	    echo "The tests of pages need Chromium; install it, as with: sudo apt-get install chromium" >&2; exit 1; \
	  fi

exiftool: ## a reader of images' metadata that tests use, from the system's packages
	@command -v exiftool >/dev/null \
	  || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing exiftool ..." && apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	      apt-get install -y -qq --no-install-recommends libimage-exiftool-perl >/dev/null; \
	  else \
	    echo "Without exiftool its test is skipped; install it, as with: sudo apt-get install libimage-exiftool-perl" >&2; \
	  fi

azurite: ## an emulator of Azure's storage that tests use, from npm
	@command -v azurite-blob >/dev/null || [ -e .azurite/node_modules/.bin/azurite-blob ] \
	  || if command -v npm >/dev/null; then \
	    echo "Installing azurite ..." && $$(command -v timeout >/dev/null && echo timeout 120) npm install --silent --no-fund --no-audit \
	        --fetch-retries 1 --fetch-retry-mintimeout 1000 --fetch-retry-maxtimeout 5000 --fetch-timeout 30000 --prefix .azurite azurite@3 >/dev/null \
	      || echo "azurite could not be installed, so the tests of Azure are skipped." >&2; \
	  else \
	    echo "Without npm the tests of Azure are skipped." >&2; \
	  fi

test-scale: $(DEV) postgresql ## the slow tests of scale: Ray, a cluster that loses a node, Prefect on PostgreSQL
	@$(BIN)/python -m pytest -q -m slow tests/tasks/runtime/test_ray_worker.py tests/tasks/runtime/test_worker_contract.py tests/flows/test_ray.py tests/flows/test_ray_cluster.py tests/flows/test_postgresql.py

postgresql: ## the database server that test-scale starts, from the system's packages
	@command -v pg_ctl >/dev/null || ls /usr/lib/postgresql/*/bin/pg_ctl >/dev/null 2>&1 \
	  || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing PostgreSQL ..." && apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	      apt-get install -y -qq --no-install-recommends postgresql >/dev/null; \
	  else \
	    echo "test-scale needs PostgreSQL; install it, as with: sudo apt-get install postgresql" >&2; exit 1; \
	  fi

lint: $(DEV) ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python -m mypy

format: $(DEV) ## let ruff repair what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(BENCH) $(PEERS) ## measure this machine, alone: the engine against its peers, planning, running, the demo models
	@$(BIN)/python -m tests.benchmarks.engine
	@$(BIN)/python -m tests.benchmarks.processors
	@$(BIN)/python -m tests.benchmarks.planning
	@$(BIN)/python -m tests.benchmarks.demo_stack
	@$(BIN)/python -m tests.benchmarks.adaptive
	@$(BIN)/python -m tests.benchmarks.worth_training
	@$(BIN)/python -m tests.benchmarks.running
	@$(BIN)/python -m tests.benchmarks.writing
	@$(BIN)/python -m tests.benchmarks.duplicates

bench-quick: $(DEV) $(PEERS) ## the engine against its peers in 3 minutes: a third of the layers
	@$(BIN)/python -m tests.benchmarks.engine --quick

gpu-check: $(DEV) ## check an NVIDIA GPU in 8 minutes: right, reproducible, and how fast; writes a report
	@$(BIN)/python -m tests.gpu_check

cross-check: ## compile the kernels with GCC and Clang, for x86-64 and aarch64, and say what could not be
	@$(PYTHON) -m tests.support.cross_check

peers: $(PEERS) ## make .peers with what the engine is measured against

train-demo: $(TRAIN) ## train the demo models again, from nothing (hours)
	@$(BIN)/python -m rudalle_lib.training.demo.all
	@$(BIN)/python -m tools.check_demo_models

docs: $(DOCS) ## write docs/configuration.md from the code, and build the documentation into site/
	@$(BIN)/python -m rudalle_lib.config.reference > docs/configuration.md.partial
	@mv docs/configuration.md.partial docs/configuration.md
	@$(BIN)/python -m rudalle_lib.config.reference docs/training.md
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The documentation is in site/index.html."

clean: ## remove the environment and the caches, keep all images
	rm -rf $(VENV) $(KERNELS)/*.so .peers .azurite build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	  sys.exit("Python 3.11 or newer is needed, %s is %d.%d. Try: make PYTHON=python3.11" % (sys.executable, v[0], v[1]) if v < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV)

$(BUILD): constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) (once, a few minutes) ..."
	@$(BIN)/python tools/install_torch.py $(TORCH)
	@touch $@

# youtokentome's metadata forgets that its build needs Cython, so it is built here, with ours.
# Without a compiler the same bpe.model is read by Hugging Face tokenizers.
$(BASE): pyproject.toml constraints.txt $(wildcard $(KERNELS)/csrc/*.cpp $(KERNELS)/csrc/*.h) | $(BIN)/python $(BUILD)
	@$(INSTALL) setuptools wheel Cython
	@$(INSTALL) --no-build-isolation youtokentome 2>$(VENV)/youtokentome.log \
	  || echo "youtokentome did not build (see $(VENV)/youtokentome.log): Hugging Face tokenizers will do its work."
	@$(INSTALL) --no-build-isolation -e .
	@ls $(KERNELS)/_kernels*.so >/dev/null 2>&1 \
	  || echo "Nothing was compiled, so torch draws, which takes longer: a C++ compiler is missing, or GCC is older than 11. 'make cross-check' says what fails."
	@touch $@

$(DEV): $(BASE)
	@$(INSTALL) --no-build-isolation -e '.[dev]'
	@touch $@

$(TRAIN): $(BASE)
	@$(INSTALL) --no-build-isolation -e '.[train-demo]'
	@touch $@

$(DOCS): $(BASE)
	@$(INSTALL) --no-build-isolation -e '.[docs]'
	@touch $@

$(BENCH): $(DEV)
	@$(INSTALL) --no-build-isolation -e '.[bench]'
	@touch $@

# rudalle and ruclip name versions of torch and others that are long gone, so they come without;
# of img2dataset only the writer is measured.
$(PEERS): tests/benchmarks/peers.txt constraints.txt | $(BIN)/python
	@echo "Installing the peers into .peers (once, a few minutes) ..."
	@$(PYTHON) -m venv .peers
	@.peers/bin/python tools/install_torch.py $(TORCH)
	@.peers/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt setuptools wheel Cython
	@.peers/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt --no-build-isolation youtokentome
	@.peers/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt -r tests/benchmarks/peers.txt
	@.peers/bin/python -m pip --disable-pip-version-check install -q --no-deps \
	  rudalle==1.1.3 ruclip==0.0.2 taming-transformers==0.0.1 img2dataset==1.47.0
	@touch $@
