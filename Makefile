# Everything here sets itself up: `make demo` and `make test` work on a fresh clone.
# VENV=... puts the environment elsewhere; it is reused by every later call.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= test,lint
BIN := $(VENV)/bin
HERE := $(CURDIR)
# One process a core, one thread a process: more threads than cores make everything slower.
TEST_ENV := OMP_NUM_THREADS=1 MPLBACKEND=Agg

.PHONY: help demo test compiled-oldest matrix matrix-run lint types sanitize fuzz kills install bench bench-ops gpu clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      render videos, train on them, compare with frozen CLIP (into demo/)"
	@echo "make test      run the tests"
	@echo "make matrix    run the kernel and model tests with the oldest and the newest supported versions (15 GB more)"
	@echo "make lint      ruff, the direction of imports, and mypy"
	@echo "make sanitize  run the C++ kernels under the address, undefined-behaviour and thread sanitizers"
	@echo "make fuzz      thousands of damaged videos, lists, configurations and checkpoints (N=cases; a few hundred are in make test)"
	@echo "make kills     kill trainings and other long work at random moments (N=20), and compare with what was not disturbed"
	@echo "make bench     time adapters, losses, decoding and a training step against the authors' code (an hour, quiet machine)"
	@echo "make bench-ops time every operation with pytest-benchmark and keep the numbers as history"
	@echo "make gpu       on a machine with a GPU: build, test, sanitize and benchmark everything (OUT=folder, ONLY=steps, DRY=1 checks only)"
	@echo "make clean     remove build products; the environment ($(VENV)) stays"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "m2clip needs Python 3.10 or newer: PYTHON=python3.11 make ..."; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "cannot create $(VENV): install your system's venv package (python3-venv)"; exit 2; }
	@$(BIN)/python -m pip install --quiet --upgrade pip

# The environment remembers which dependencies and which checkout were installed into it. What has changed in csrc/
# since then is ninja's business, which takes no time where nothing has.
install: $(BIN)/python
	@wanted="$$(cat pyproject.toml setup.py | cksum) $(HERE)"; \
	if [ "$$(cat $(VENV)/.m2clip 2>/dev/null)" != "$$wanted" ]; then \
		echo "installing m2clip and what it needs into $(VENV) (the first time takes minutes and 5 GB)"; \
		PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]" && echo "$$wanted" > $(VENV)/.m2clip; \
	else \
		$(BIN)/python setup.py --quiet build_ext --inplace; \
	fi

demo: install
	$(BIN)/m2clip demo --output demo

# The second run takes the Triton kernels through Triton's interpreter, which a whole process is in or not.
test: install
	$(TEST_ENV) $(BIN)/python -m pytest -n 2
	TRITON_INTERPRET=1 $(TEST_ENV) $(BIN)/python -m pytest -n 2 tests/interpreted
	@$(MAKE) --no-print-directory compiled-oldest

# The environment has the newest Triton; a representative of every kernel is compiled with the oldest one, too.
OLDEST_TRITON := 3.6.0
OLDEST_PATH = $(abspath $(VENV))/triton-$(OLDEST_TRITON)

compiled-oldest: install
	@[ -d $(OLDEST_PATH) ] || { rm -rf $(OLDEST_PATH).part; \
		$(BIN)/python -m pip install --quiet --no-deps --target $(OLDEST_PATH).part triton==$(OLDEST_TRITON) && \
		mv $(OLDEST_PATH).part $(OLDEST_PATH); }
	@PYTHONPATH=$(OLDEST_PATH) $(BIN)/python -c "import triton; assert triton.__version__ == '$(OLDEST_TRITON)', triton"
	PYTHONPATH=$(OLDEST_PATH) $(TEST_ENV) $(BIN)/python -m pytest -n 2 tests/compiled -m representative

# Two environments beside the usual one, kept for later calls; docs/versions.md says which versions are supported.
MODEL_TESTS := tests/towers/test_towers.py tests/methods/test_m2clip.py tests/methods/test_unimodal.py tests/methods/test_msta.py tests/methods/test_ma_fsar.py

matrix:
	@mkdir -p build && $(PYTHON) tools/oldest.py > build/oldest.txt
	@PIP_CONSTRAINT=$(HERE)/build/oldest.txt $(MAKE) --no-print-directory matrix-run VENV=$(VENV)-oldest EXTRAS=test
	@$(MAKE) --no-print-directory matrix-run VENV=$(VENV)-newest

matrix-run: install
	@$(BIN)/python -c "import platform, torch, torchvision, triton; print('Python', platform.python_version(), \
		*(f'{m.__name__} {m.__version__}' for m in (torch, torchvision, triton)))"
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 tests/kernels tests/compiled $(MODEL_TESTS)
	TRITON_INTERPRET=1 $(TEST_ENV) $(BIN)/python -m pytest -n 2 tests/interpreted

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache
	@$(MAKE) --no-print-directory types

types: install
	$(BIN)/mypy

sanitize: install
	$(BIN)/python tools/sanitize.py

fuzz: install
	M2CLIP_FUZZ=$(or $(N),2000) $(TEST_ENV) $(BIN)/python -m pytest tests/fuzz --timeout=3000

kills: install
	M2CLIP_KILLS=$(or $(N),20) $(TEST_ENV) $(BIN)/python -m pytest --timeout=3000 tests/train/test_survival.py tests/train/test_survival_group.py
	M2CLIP_KILLS=$(or $(N),20) $(TEST_ENV) $(BIN)/python -m pytest --timeout=3000 tests/at_scale/test_label.py tests/data/check/test_check.py tests/data/packs/test_pack.py -k kill

bench: install
	$(BIN)/python benchmarks/adapter_speed.py
	$(BIN)/python benchmarks/mixer_speed.py
	$(BIN)/python benchmarks/bottleneck_speed.py
	$(BIN)/python benchmarks/msta_speed.py
	$(BIN)/python benchmarks/loss_speed.py
	$(BIN)/python benchmarks/otam_speed.py
	$(BIN)/python benchmarks/decode_speed.py
	$(BIN)/python benchmarks/train_speed.py

bench-ops: install
	$(BIN)/python -m pytest benchmarks/ops --benchmark-autosave \
		--benchmark-storage=file://benchmarks/results/cpu/history

# Needs no network and installs nothing into the Python it finds: the environment of the other targets, else $(PYTHON).
gpu:
	@$$([ -x $(BIN)/python ] && echo $(BIN)/python || echo $(PYTHON)) tools/gpu_suite.py \
		$(if $(OUT),--out $(OUT)) $(if $(ARCHIVE),--archive $(ARCHIVE)) $(if $(ONLY),--only $(ONLY)) $(if $(DRY),--dry)

clean:
	rm -rf build dist src/*.egg-info kernels/_*.so kernels/_*_missing.txt m2clip/_*.so src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
