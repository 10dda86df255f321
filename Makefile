# Works with GNU make 3.81 (macOS) and later. The second call starts at once: pip runs again only when a
# requirements file is newer than its stamp, and a stamp is written only after an install that succeeded.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help run test bench notebooks
.NOTPARALLEL:

help:  ## Show this list.
	@echo "make TARGET [PYTHON=python3.12]"
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1	\2/p' Makefile

run: $(VENV)/.installed-run  ## Install what is needed into .venv, then run the quickstart; run again, it goes on.
	$(BIN)/python -m lowrank_rlhf run presets/quickstart.yaml

test: $(VENV)/.installed-dev  ## Install the test tools too, then ruff, mypy, import-linter and pytest.
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

bench: $(VENV)/.installed-run  ## Measure time and memory, also against TRL (an environment of its own): an hour or so.
	$(BIN)/python benchmarks/ppo_step.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/against_trl/compare.py

notebooks: $(VENV)/.installed-dev  ## Run the notebooks with short settings; what they show comes to build/notebooks.
	$(BIN)/python -m notebooks.execute

$(VENV)/.created:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "There is no $(PYTHON) here. Install Python 3.11 or newer, or name it: make run PYTHON=/path/to/python3" >&2; \
	  exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; $(PYTHON) is `"$(PYTHON)" --version 2>&1`." >&2; \
	  echo "Name another one: make run PYTHON=python3.12" >&2; \
	  exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/.installed-run: requirements.txt | $(VENV)/.created
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements.txt | $(VENV)/.created
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	@touch $(VENV)/.installed-run $@
