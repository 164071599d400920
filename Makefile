# Each target sets up its own environment, from the exact tested set of the interpreter's version, and anew only when setup.py or that set changed.

PYTHON ?= python3
DEMO_DIR ?= demo_run
DEMO_ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 2
FUZZ_ARGS ?=
JSON ?= $(NAME).json
PIP_INSTALL = -m pip install --disable-pip-version-check --no-warn-script-location

MINOR := $(shell $(PYTHON) -c 'import sys; print("%d%d" % sys.version_info[:2])' 2>/dev/null)
CONSTRAINTS = constraints/py$(MINOR).txt
ENVIRONMENT = -py$(MINOR)/ready

# Expanded only where an environment must be made: what stands in the way, in one line.
require_python = $(if $(strip $(problem)),$(error $(problem)))
problem = $(shell $(PYTHON) .ci/python_problem.py 2>&1 || true)

.PHONY: help demo test test-slow test-versions lint bench parity fuzz-audio constraints clean
.DELETE_ON_ERROR:

help:
	@echo "make demo        the whole system on real sound, into $(DEMO_DIR)/ (DEMO_DIR=..., DEMO_ARGS='--languages de,fr,ru')"
	@echo "make test        every test but the slow ones (PYTEST_ARGS='-k manifest', WORKERS=2 processes)"
	@echo "make test-slow   the slow ones"
	@echo "make test-versions   a smaller set on Python 3.12 and 3.13, where they are"
	@echo "make lint        ruff, mypy and shellcheck"
	@echo "make bench NAME=... [JSON=out.json]   one of benchmarks/"
	@echo "make parity      tiny models of each family with the reference's hidden states, into tests/data/parity/ (torch on the CPU)"
	@echo "make fuzz-audio  6,000 mutated and forged sound files against the decoder (FUZZ_ARGS='--files 100000 --seed 3')"
	@echo "make constraints the newest set that the bounds allow, into $(CONSTRAINTS); run the tests before you commit it"
	@echo "make clean       removes the environments, never $(DEMO_DIR)/"
	@echo "PYTHON=python3.12 chooses the interpreter (3.11 to 3.13; now: $(PYTHON))"

demo: .venv-demo$(ENVIRONMENT)
	@.venv-demo-py$(MINOR)/bin/xretrieval demo --workdir "$(DEMO_DIR)" $(DEMO_ARGS)

# A file's tests stay in one process: they share fixtures, and what was compiled.
test: .venv-test$(ENVIRONMENT)
	@.venv-test-py$(MINOR)/bin/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

test-slow: .venv-test$(ENVIRONMENT)
	@.venv-test-py$(MINOR)/bin/python -m pytest -m slow $(PYTEST_ARGS)

# What depends on the interpreter's version: the set of packages, JAX and flax above all, and the numbers that come out of them.
SMALLER_SET = tests/data tests/evaluate tests/units tests/test_packaging.py tests/test_from_llm.py \
  $(addprefix tests/model/test_,embedding.py parity.py pretrained.py unit_rows.py) tests/plan $(addprefix tests/train/test_,loss.py step.py)
test-versions:
	@for python in python3.12 python3.13; do \
	  if $$python -c '' 2> /dev/null; then $(MAKE) --no-print-directory test PYTHON=$$python PYTEST_ARGS="$(SMALLER_SET)" || exit 1; \
	  else echo "$$python: not on this machine, not tested"; fi; done

lint: .venv-test$(ENVIRONMENT)
	@.venv-test-py$(MINOR)/bin/ruff check .
	@.venv-test-py$(MINOR)/bin/ruff format --check .
	@.venv-test-py$(MINOR)/bin/mypy
	@.venv-test-py$(MINOR)/bin/shellcheck --external-sources launch/*.sh

BENCHMARKS = $(filter-out __init__ rows tiny_run open_clip units_% faults_%,$(basename $(notdir $(wildcard benchmarks/*.py))))
ifneq ($(filter bench,$(MAKECMDGOALS)),)
  $(if $(filter $(NAME),$(BENCHMARKS)),,$(error NAME=$(NAME): must be one of benchmarks/: $(BENCHMARKS)))
endif

# Their peers need torch, which the other benchmarks' environment is kept free of; pods needs libtpu, which tests have.
BENCH_KIND = $(if $(filter tower trainable units loss train,$(NAME)),parity,$(if $(filter pods,$(NAME)),test,bench))

bench: .venv-$(BENCH_KIND)$(ENVIRONMENT)
	@# Huge pages for malloc, as `xretrieval train` takes for itself; the peer has them too.
	@GLIBC_TUNABLES=glibc.malloc.hugetlb=1 DEMO_DIR="$(DEMO_DIR)" .venv-$(BENCH_KIND)-py$(MINOR)/bin/python -m benchmarks.$(NAME) --json "$(JSON)"

parity: .venv-parity$(ENVIRONMENT)
	@.venv-parity-py$(MINOR)/bin/python tests/parity/make_fixtures.py

fuzz-audio: .venv-test$(ENVIRONMENT)
	@.venv-test-py$(MINOR)/bin/python tests/corpora/fuzz_audio.py $(FUZZ_ARGS)

# A kind of environment may have an exact set of its own, of what it has beyond the others: constraints/parity.txt.
.SECONDEXPANSION:
.venv-%$(ENVIRONMENT): setup.py pyproject.toml $(wildcard $(CONSTRAINTS)) $$(wildcard constraints/$$*.txt)
	$(require_python)
	@echo "setting up .venv-$*-py$(MINOR) for Python $$($(PYTHON) -V 2>&1 | cut -d' ' -f2): 2 to 6 minutes, most of it TensorFlow and JAX (log: .venv-$*-py$(MINOR)/install.log)"
	@$(PYTHON) -m venv --clear .venv-$*-py$(MINOR)
	@.venv-$*-py$(MINOR)/bin/python $(PIP_INSTALL) $(addprefix --constraint ,$(CONSTRAINTS) $(wildcard constraints/$*.txt)) --editable ".[$*]" > .venv-$*-py$(MINOR)/install.log 2>&1 \
	  || { tail -n 15 .venv-$*-py$(MINOR)/install.log; echo "the installation failed: see above; the same command goes on"; exit 2; }
	@# The peer of `make bench NAME=loss` is one file of it; its own requirements include a torchvision that wants a CUDA build of torch.
	@$(if $(filter parity,$*),.venv-$*-py$(MINOR)/bin/python $(PIP_INSTALL) --quiet --no-deps open_clip_torch==3.3.0)
	@# 430 MB of C++ headers, for building operations of TensorFlow: no stage does.
	@rm -rf .venv-$*-py$(MINOR)/lib/python3*/site-packages/tensorflow/include
	@touch $@

constraints:
	$(require_python)
	@$(PYTHON) -m venv --clear .venv-constraints
	@.venv-constraints/bin/python $(PIP_INSTALL) ".[all]"
	@.venv-constraints/bin/python -m pip check
	@{ echo "# The exact set that was tested on Python $$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])') (Linux, x86-64), all extras but cuda and parity. Made by: make constraints"; \
	   .venv-constraints/bin/python -m pip freeze --exclude xretrieval; } > $(CONSTRAINTS).tmp
	@mv $(CONSTRAINTS).tmp $(CONSTRAINTS)
	@rm -rf .venv-constraints

clean:
	rm -rf .venv-demo-py* .venv-test-py* .venv-bench-py* .venv-parity-py* .venv-constraints
