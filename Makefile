# Everything runs in a virtual environment that tools/setup_env.sh makes on first
# use and leaves alone while nothing it was made from has changed.

PYTHON     ?= python3
VENV       ?= .venv
TORCH      ?=
TORCH_ARGS ?=
PIP_ARGS   ?=
CPU_ONLY   ?=
CONFIG     ?= configs/demo/faster-rcnn_rla-r50-mini_fpn_shapes.py
DATA       := data/shapes
TESTS      ?=
ARGS       ?=

PY := $(VENV)/bin/python
# As many processes as cores, up to four, of one thread each: two threads in one would wait for each other.
JOBS   ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); [ $$n -lt 4 ] && echo $$n || echo 4)
PYTEST  = OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(JOBS) --dist worksteal --durations=5

# A waiting OpenMP thread spins for a moment only, unless the caller has chosen how they wait:
# tools/_before_torch.py says why, and does the same for tools that are run without make.
ifeq ($(GOMP_SPINCOUNT)$(OMP_WAIT_POLICY)$(KMP_BLOCKTIME)$(KMP_LIBRARY),)
export GOMP_SPINCOUNT := 10000
export KMP_BLOCKTIME := 1
endif

.DEFAULT_GOAL := help
.PHONY: help env check-config train test test-slow lint build clean clean-env

help:
	@echo 'make train      train CONFIG; the default draws a small data set of shapes, trains a'
	@echo '                Faster R-CNN on it and shows its detections (minutes on two cores)'
	@echo 'make test       run the tests, in JOBS=$(JOBS) processes   make test TESTS=tests/models ARGS=-x'
	@echo 'make test-slow  run the tests that take minutes'
	@echo 'make lint       check style, format (ruff) and types (mypy)'
	@echo 'make build      wheel and source distribution, in dist/'
	@echo 'make env        only make the environment, which every target above does when needed'
	@echo 'make clean      remove caches and builds; data, results and the environment stay'
	@echo 'make clean-env  remove the environment'
	@echo
	@echo 'For train:  CONFIG=$(CONFIG)'
	@echo '            ARGS=   options of tools/train.py, such as ARGS="--amp --resume auto"'
	@echo 'For env:    PYTHON=$(PYTHON)  VENV=$(VENV)'
	@echo '            TORCH=  PyTorch to install, the pinned $(shell grep '^torch==' requirements/constraints.txt) unless given'
	@echo '            TORCH_ARGS=  pip options for it. On Linux, PyPI has a CUDA build. The smaller CPU build:'
	@echo '              TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"'
	@echo '              and .../whl/cuXYZ for another CUDA version (pytorch.org lists them)'
	@echo '            PIP_ARGS=    pip options for every package, such as a mirror'
	@echo '            CPU_ONLY=1   compile the operators of MMCV without CUDA though there is a GPU'
	@echo '            MAX_JOBS=    compilers to run at once (default: as many as cores and memory allow)'
	@echo 'TORCH, TORCH_ARGS and CPU_ONLY are remembered by the environment.'

env: $(if $(filter train,$(MAKECMDGOALS)),check-config)
	@PYTHON='$(PYTHON)' VENV='$(VENV)' TORCH='$(TORCH)' TORCH_ARGS='$(TORCH_ARGS)' \
	 PIP_ARGS='$(PIP_ARGS)' CPU_ONLY='$(CPU_ONLY)' tools/setup_env.sh

# Before anything is downloaded for it. Names such as mmdet::PATH are looked up in the environment.
check-config:
ifeq ($(findstring ::,$(CONFIG)),)
	@test -f '$(CONFIG)' || { echo "CONFIG=$(CONFIG) does not exist; configs/ holds those of this package" >&2; exit 1; }
endif

# Configs whose name ends in "shapes" read the generated data set.
train: env
ifneq (,$(filter %shapes.py,$(CONFIG)))
	@$(PY) tools/dataset_converters/make_shapes.py $(DATA)
endif
	@$(PY) tools/train.py $(CONFIG) $(ARGS)

test: env
	@$(PYTEST) $(TESTS) $(ARGS)

test-slow: env
	@$(PYTEST) -m slow $(TESTS) $(ARGS)

lint: env
	@$(PY) -m ruff check $(ARGS) .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

build: env
	@$(PY) -c "from setuptools import build_meta as b; print('dist/' + b.build_sdist('dist', {'--global-option': ['--quiet']}))"
	@rm -rf mmrecur.egg-info
	@$(PY) -m pip wheel -q --no-deps --no-build-isolation -w dist . && ls dist/*.whl

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find mmrecur configs tools tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Only a directory that tools/setup_env.sh filled is removed.
clean-env:
	@test ! -e '$(VENV)' || test -d '$(VENV)/.setup' || { echo '$(VENV) was not made by make env: not removed'; exit 1; }
	rm -rf '$(VENV)'
