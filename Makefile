# ganfast: `make demo` and `make test` are all a newcomer needs. Both make .venv and install what is
# missing: the demo what a training and an export need, the tests the development set.
# constraints.txt pins the versions.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints.txt
DEMO_STAMP := $(VENV)/.installed-demo
STAMP := $(VENV)/.installed
export PYTHONPATH :=
PYTEST := $(BIN)/python -m pytest
# a process and a thread for each core: two threads of one process would wait for each other wherever something else runs
EACH := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PYTEST) -n auto --maxprocesses 8

.PHONY: demo test test-oldest check accept accept-full bench docs gpu gpu-rehearsal gpu-quick clean

## train on the embedded digits, draw from the result, export it and check the export
demo: $(DEMO_STAMP)
	$(BIN)/ganfast train wgan-gp --data digits --out runs/demo
	$(BIN)/ganfast sample runs/demo -n 64 --seed 7 --out runs/demo/grid.png
	$(BIN)/ganfast sample runs/demo -n 6 --interpolate 10 --out runs/demo/walk.png
	$(BIN)/ganfast export runs/demo --out runs/demo.bundle --overwrite
	$(BIN)/ganfast verify runs/demo.bundle
	$(BIN)/ganfast sample runs/demo.bundle -n 64 --seed 7 --out runs/demo/bundle.png
	@echo "look at runs/demo/grid.png; runs/demo.bundle is the generator as a file"

## the tests without trainings, under 10 minutes on two cores: at most 700 processor seconds
test: $(STAMP)
	$(if $(ARGS),,GANFAST_METER=1) $(EACH) --dist loadfile -m "not accept and not full and not gpu" $(ARGS)

## the tests at pyproject.toml's lower bounds, in a venv of their own: last on 2026-11-30, Python 3.11
## and torch 2.11, 3,446 passed
OLDEST := .venv-oldest
test-oldest: $(OLDEST)/lower-bounds.txt
	$(MAKE) test VENV=$(OLDEST) CONSTRAINTS=$< TORCH_CPU=torch HAS_TORCH="-c 'raise SystemExit(1)'"

## ruff and mypy
check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

## real trainings with their gates, under 25 minutes on two cores; needs GANFAST_TEST_DATA
accept: $(STAMP)
	$(EACH) --dist worksteal -m "accept and not full" $(ARGS)

## everything; an hour and more
accept-full: $(STAMP)
	$(EACH) --dist worksteal -m "not gpu" $(ARGS)

## measurements, never pass or fail
bench: $(STAMP)
	$(PYTEST) benchmarks --benchmark-only $(ARGS)

## the pages of docs/ as a site in docs/_build (-E: generated pages follow the code); installs the extra `docs`
docs: $(STAMP)
	@$(BIN)/python -c "import sphinx, myst_parser, furo" 2>/dev/null || $(call pip,--no-build-isolation --editable ".[docs]")
	$(BIN)/python -m sphinx -q -E -W --keep-going -n docs docs/_build
	@echo "look at docs/_build/index.html"

## what needs an NVIDIA GPU, in an un-installed checkout with the system's torch:
## PART=first|second|all, or a part; LIMIT=seconds in all; OUT=folder of the results
PART ?= all
gpu:
	@PYTHONPATH=. $(PYTHON) benchmarks/gpu_run.py "$(PART)" "$(LIMIT)"

## the same script on a CPU: once whole, and killed at three random moments
gpu-rehearsal:
	@PYTHONPATH=. $(PYTHON) benchmarks/gpu_rehearsal.py $(ARGS)

## whether ganfast works on this NVIDIA GPU, and how fast: five minutes, and a text for an issue
gpu-quick:
	@PYTHONPATH=. $(PYTHON) benchmarks/gpu_quick.py "$(LIMIT)" $(ARGS)

clean:
	rm -rf $(VENV) $(OLDEST) build dist docs/_build *.egg-info

# torch comes before ganfast, which would pull another build: an installed torch is used as it is.
# Without an NVIDIA driver the CPU build is taken (gigabytes smaller), from $$TORCH_INDEX_URL or
# PyTorch's own index, else from the normal index. PyTorch's index gives torch alone: it may lack
# versions that constraints.txt names.
TORCH_CPU := torch==2.13.0
TORCH_INDEX_URL ?= https://download.pytorch.org/whl/cpu
HAS_TORCH := -c "import torch; v = torch.__version__.split('.'); assert (int(v[0]), int(v[1])) >= (2, 11)" 2>/dev/null
# pip warns about every package that a location in the user's configuration lacks: sed drops these
# lines and no others. The file keeps pip's exit status, which the pipe to sed would lose.
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)
pip = ( { $(PIP) $(1) 2>&1; echo $$? > $(VENV)/.status; } | \
	sed "/WARNING: Location .* is ignored/d" >&2; exit $$(cat $(VENV)/.status) )

$(DEMO_STAMP): pyproject.toml Makefile $(CONSTRAINTS)
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'ganfast needs Python 3.11 or newer; this is ' + sys.version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if $(PYTHON) $(HAS_TORCH); then $(PYTHON) -c "import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])" \
		> "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch-of-the-system.pth"; fi
	@echo "installing into $(VENV) what the demo needs"
	@$(call pip,setuptools)
	@$(BIN)/python $(HAS_TORCH) || \
		if command -v nvidia-smi >/dev/null; then $(call pip,"torch>=2.11"); \
		else $(PIP) --retries 1 --timeout 20 --no-deps --index-url $(TORCH_INDEX_URL) $(TORCH_CPU) \
		2>/dev/null || $(call pip,$(TORCH_CPU)); fi
	@$(call pip,--no-build-isolation --editable ".[export]")
	@touch $@

$(STAMP): $(DEMO_STAMP)
	@echo "installing into $(VENV) what the tests need besides"
	@$(call pip,--no-build-isolation --editable ".[dev]")
	@touch $@

# the dependencies and the development set, each `>=` an `==`
$(OLDEST)/lower-bounds.txt: pyproject.toml
	@mkdir -p $(OLDEST)
	@$(PYTHON) -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
		print(*p['dependencies'], *p['optional-dependencies']['dev'], sep='\n')" | sed "s/>=/==/" > $@
