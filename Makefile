# Requires GNU make 3.81 (macOS) or later. pip runs again only when a requirements file is newer than its stamp, and a stamp
# is written only after a successful install.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UNSLOTH := .venv-unsloth

.PHONY: help run test docs test-unsloth fuzz bench soak faults notebooks gpu-check verify-export
.NOTPARALLEL:

help:  ## Show this list.
	@echo "make TARGET [PYTHON=python3.12]"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1	\2/p' Makefile

run: $(VENV)/.installed-run  ## Install the requirements into .venv and run the quickstart. Run again to resume.
	$(BIN)/python -m lowrank_rlhf run presets/quickstart.yaml

test: $(VENV)/.installed-dev  ## Install the test tools too; run ruff, mypy, import-linter, pytest and a strict build of the docs.
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

docs: $(VENV)/.installed-dev  ## Build the documentation into build/docs, with strict links.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "Open build/docs/index.html; for the search: $(BIN)/python -m mkdocs serve"

test-unsloth: $(UNSLOTH)/.installed  ## Run the tests on the versions that unsloth needs (.venv-unsloth), and the laws on models it loads.
	OMP_NUM_THREADS=1 $(UNSLOTH)/bin/python -m pytest -n auto --dist loadfile
	OMP_NUM_THREADS=1 LOWRANK_RLHF_TEST_BACKEND=unsloth $(UNSLOTH)/bin/python -m pytest -k "not int8 and not gguf" \
	  tests/models/by_unsloth.py tests/models/test_roles.py tests/models/test_scoring.py

fuzz: $(VENV)/.installed-dev  ## Damage configs, data files and annotations for three minutes; save inputs that break a reader.
	$(BIN)/python tools/fuzz.py

bench: $(VENV)/.installed-run  ## Measure time and memory, also against TRL in a separate environment: about an hour.
	$(BIN)/python benchmarks/ppo_step.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/against_trl/compare.py

faults: $(VENV)/.installed-dev  ## Kill a tiny run at 160 write points and 30 random moments, resume and compare: about 40 minutes.
	OMP_NUM_THREADS=1 $(BIN)/python tools/faults.py --points 160 --random 15
	OMP_NUM_THREADS=1 $(BIN)/python tools/faults.py --source judge --points 0 --random 15

gpu-check: $(VENV)/.installed-dev  ## On a graphics card: run the tests of the laws and all stages, time PPO updates, compare memory with plan.
	$(BIN)/python benchmarks/gpu_check.py

verify-export: $(VENV)/.installed-gguf  ## Export a short quickstart as GGUF files, and compare llama.cpp with the run's own model.
	OMP_NUM_THREADS=1 $(BIN)/python tools/verify_export.py

notebooks: $(VENV)/.installed-dev  ## Run the notebooks with short settings; write the executed copies to build/notebooks.
	$(BIN)/python -m notebooks.execute

soak: $(VENV)/.installed-dev  ## Run 200 PPO steps on a tiny model: memory must stay constant and the logs small.
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py

$(VENV)/.created $(UNSLOTH)/.created:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "$(PYTHON): not found. Install Python 3.11 or newer, or set it: make run PYTHON=/path/to/python3" >&2; \
	  exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON): expected Python 3.11 or newer, got `"$(PYTHON)" --version 2>&1`." >&2; \
	  echo "Set another one: make run PYTHON=python3.12" >&2; \
	  exit 1; }
	"$(PYTHON)" -m venv $(@D)
	@touch $@

$(VENV)/.installed-run: requirements.txt | $(VENV)/.created
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-lm-eval.txt requirements.txt | $(VENV)/.created
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	@touch $(VENV)/.installed-run $@

$(VENV)/.installed-gguf: requirements-gguf.txt $(VENV)/.installed-run
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-gguf.txt
	@touch $@

# PyPI's torchvision is built for CUDA. It does not load with a CPU build of PyTorch, and unsloth then does not start; text
# models do not need it.
$(UNSLOTH)/.installed: requirements-unsloth.txt requirements-dev.txt | $(UNSLOTH)/.created
	sed '/^-r/d' requirements-dev.txt > $(UNSLOTH)/tools.txt
	$(UNSLOTH)/bin/python -m pip install --disable-pip-version-check -r requirements-unsloth.txt -r $(UNSLOTH)/tools.txt
	$(UNSLOTH)/bin/python -c 'import torchvision' 2>/dev/null || $(UNSLOTH)/bin/python -m pip uninstall --yes torchvision
	@touch $@
