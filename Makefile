# Each target sets up all that it needs in .venv; `make build` alone rebuilds the native library.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Python compiles a module when it is first imported: most of the hosts' never are. What is imported is kept compiled,
# also where the environment says otherwise: a test process that imports torch anew would take three times as long.
PIP := $(BIN)/pip install --quiet --no-compile
unexport PYTHONDONTWRITEBYTECODE
NATIVE := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python setup.py --quiet build_ext --inplace

.PHONY: demo test bench bench-embed bench-peers lint gpu build clean

# The native library needs neither torch nor the hosts: it builds while pip fetches them.
$(VENV)/ready: pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip "setuptools>=77" wheel cmake ninja "pybind11>=3.0"
	$(NATIVE) & native=$$!; $(PIP) --group dev || { kill $$native; exit 1; }; wait $$native
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation -e .
	touch $@

build: $(VENV)/ready
	$(NATIVE)

demo: build
	$(BIN)/python -m hexad demo

test: build
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests --backend triton-interpreted
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests --backend cuda-emulated

bench: build
	mkdir -p out/bench
	$(BIN)/python -m pytest bench/bench_ops.py bench/bench_relations.py bench/bench_pixelcnn.py bench/bench_overhead.py --timeout=0 --benchmark-json=out/bench/bench.json
	$(BIN)/python -m bench.report out/bench/bench.json

bench-embed: build
	$(BIN)/python -m bench.embed --out out/bench/embed.json

bench-peers: build
	mkdir -p out/bench
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation -e ".[peers]"
	$(BIN)/python -m pytest bench/bench_peers.py bench/bench_peers_text.py --timeout=0 --benchmark-json=out/bench/peers.json
	$(BIN)/python -m bench.report out/bench/peers.json

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files 'csrc/*' 'bindings/*' 'examples/*' | grep -E '\.(h|hpp|cpp|cu|cuh)$$' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy

gpu:
	$(PYTHON) bench/gpu.py

clean:
	rm -rf build $(VENV) out kernels/hexad_kernels/lib kernels/hexad_kernels/include kernels/hexad_kernels/_C*.so
