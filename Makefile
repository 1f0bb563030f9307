# make demo    set up, then train a small language model on this machine's Python and let it write (about 3 minutes)
# make test    set up, then run exactly what CI runs
# make quick   the tests without the slow tier
# make lint    format, types, import contract
# make bench   measure this machine beside its peers, an hour or two; see docs/benchmarks.md
# make soak    hundreds of kills and damages instead of dozens, kernels with other vector widths, every
#                number format stopped and resumed; 10,000 prompts through an engine in every way, a million
#                hostile requests (hours)
# make clean   remove the environment and caches; runs/ stays
#
# Another interpreter: make demo PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
JOBS ?= 2
AREAS ?= limits ops train memory decode prefill serve speech agent precision
MACHINE ?= here
INSTALL := $(VENV)/bin/python -m pip install --disable-pip-version-check --no-compile -c constraints/cpu.txt
# On all cores at once, which pip does not do; some packages bring files for other Pythons.
BYTECODE := $(VENV)/bin/python -m compileall -qq -j 0 $(VENV)/lib || true

.PHONY: demo test pytest kernels quick bench soak lint clean
.DEFAULT_GOAL := demo

# Set in many containers; tests start some hundred processes, each of which would compile all it imports once more.
unexport PYTHONDONTWRITEBYTECODE

demo: $(VENV)/core.stamp
	$(VENV)/bin/seqloom demo

# Types are checked while tests run, and kernels are compiled while pip installs: each has one core for itself then.
test:
	@$(MAKE) --no-print-directory -j 3 lint pytest

pytest: kernels $(VENV)/dev.stamp
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal

kernels:
	@PYTHONPATH=. $(PYTHON) -c 'from seqloom.ops.native.build import library; library()' 2>/dev/null || true

quick: $(VENV)/dev.stamp
	$(VENV)/bin/python -m pytest -n $(JOBS) -m "not full"

bench: $(VENV)/dev.stamp
	@for area in $(AREAS); do \
		$(VENV)/bin/python -m benchmarks $$area --out benchmarks/results/$${area}_$(MACHINE)_$$(date +%F).jsonl || exit; \
	done

soak: $(VENV)/dev.stamp
	SEQLOOM_SOAK=1 $(VENV)/bin/python -m pytest -n $(JOBS) tests/soak tests/train/test_precision_recipes.py \
		tests/studies/test_nvfp4.py tests/serve tests/distributed/test_torchrun.py tests/benchmarks/test_command.py \
		tests/systems/hybrid_lm/test_training_memory.py

lint: $(VENV)/dev.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo --no-cache

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

# A half-made environment (no stamp) is made anew; one that works is kept and brought up to date.
$(VENV)/core.stamp: pyproject.toml constraints/cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "seqloom needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1). Name another one:" \
			"make PYTHON=python3.12" >&2; exit 1; }
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing seqloom and what it and its server need into $(VENV) (a minute or two; torch is the large one)"
	@$(INSTALL) --quiet hatchling editables
	@$(INSTALL) --no-build-isolation -e ".[serve]"
	@$(BYTECODE)
	@touch $@

$(VENV)/dev.stamp: $(VENV)/core.stamp
	@echo "Installing the development tools into $(VENV)"
	@$(INSTALL) --quiet --no-build-isolation -e ".[dev]"
	@$(BYTECODE)
	@touch $@
