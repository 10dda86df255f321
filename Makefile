# Works with GNU make 3.81 (macOS) and later. The second call starts at once: pip runs again only when a
# requirements file is newer than its stamp, and a stamp is written only after an install that succeeded.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UNSLOTH := .venv-unsloth

.PHONY: help run test test-unsloth fuzz bench soak faults notebooks gpu-check
.NOTPARALLEL:

help:  ## Show this list.
	@echo "make TARGET [PYTHON=python3.12]"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1	\2/p' Makefile

run: $(VENV)/.installed-run  ## Install what is needed into .venv, then run the quickstart; run again, it goes on.
	$(BIN)/python -m lowrank_rlhf run presets/quickstart.yaml

test: $(VENV)/.installed-dev  ## Install the test tools too, then ruff, mypy, import-linter and pytest.
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test-unsloth: $(UNSLOTH)/.installed  ## The tests on the versions that unsloth wants (.venv-unsloth), and on what it loads.
	OMP_NUM_THREADS=1 $(UNSLOTH)/bin/python -m pytest -n auto --dist loadfile
	OMP_NUM_THREADS=1 LOWRANK_RLHF_TEST_BACKEND=unsloth $(UNSLOTH)/bin/python -m pytest -k "not int8" \
	  tests/models/by_unsloth.py tests/models/test_roles.py tests/models/test_scoring.py

fuzz: $(VENV)/.installed-dev  ## Damage configs, data files and annotations for three minutes; what breaks a reader is kept.
	$(BIN)/python tools/fuzz.py

bench: $(VENV)/.installed-run  ## Measure time and memory, also against TRL (an environment of its own): an hour or so.
	$(BIN)/python benchmarks/ppo_step.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/against_trl/compare.py

faults: $(VENV)/.installed-dev  ## Kill a tiny run at 160 of its write points, go on, and compare: half an hour or so.
	OMP_NUM_THREADS=1 $(BIN)/python tools/faults.py --points 160

gpu-check: $(VENV)/.installed-dev  ## On a graphics card: the LAW tests, all stages, PPO updates timed, memory beside plan; some minutes.
	$(BIN)/python benchmarks/gpu_check.py

notebooks: $(VENV)/.installed-dev  ## Run the notebooks with short settings; what they show comes to build/notebooks.
	$(BIN)/python -m notebooks.execute

soak: $(VENV)/.installed-dev  ## 200 PPO steps on a tiny model: memory must stay constant, and the logs small.
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py

$(VENV)/.created $(UNSLOTH)/.created:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "There is no $(PYTHON) here. Install Python 3.11 or newer, or name it: make run PYTHON=/path/to/python3" >&2; \
	  exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; $(PYTHON) is `"$(PYTHON)" --version 2>&1`." >&2; \
	  echo "Name another one: make run PYTHON=python3.12" >&2; \
	  exit 1; }
	"$(PYTHON)" -m venv $(@D)
	@touch $@

$(VENV)/.installed-run: requirements.txt | $(VENV)/.created
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements.txt | $(VENV)/.created
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	@touch $(VENV)/.installed-run $@

# PyPI's torchvision is made for CUDA. Beside a PyTorch for CPUs it does not load, and unsloth does not start then; models of
# text need none.
$(UNSLOTH)/.installed: requirements-unsloth.txt requirements-dev.txt | $(UNSLOTH)/.created
	sed '/^-r/d' requirements-dev.txt > $(UNSLOTH)/tools.txt
	$(UNSLOTH)/bin/python -m pip install --disable-pip-version-check -r requirements-unsloth.txt -r $(UNSLOTH)/tools.txt
	$(UNSLOTH)/bin/python -c 'import torchvision' 2>/dev/null || $(UNSLOTH)/bin/python -m pip uninstall --yes torchvision
	@touch $@
