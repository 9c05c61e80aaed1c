# Each target is one line that calls the package in .venv; `make` alone lists them.

PYTHON  ?= python3
TASK    ?= $(if $(filter walk,$(MAKECMDGOALS)),listops,arc)
MINUTES ?=
ARGS    ?=

VENV   := .venv
STAMP  := $(VENV)/.installed
PY     := $(VENV)/bin/python
SHELL  := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help install run walk test bench lint notebooks
.DELETE_ON_ERROR:

help:
	@echo "make run        train and leave a valid submission (TASK=$(TASK) MINUTES=5 ARGS='-p seed=1')"
	@echo "make walk       go through a notebook in the terminal (TASK=listops)"
	@echo "make test       the tests (ARGS='-k resume')"
	@echo "make bench      the benchmarks"
	@echo "make lint       style, formatting, and whether the notebook pairs agree"
	@echo "make notebooks  write every notebooks/*.ipynb from its .py"
	@echo "make install    only set up .venv (PYTHON=$(PYTHON); the other targets do it by themselves)"

run: $(STAMP)
	@exec $(PY) -m timebox run $(TASK) $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

walk: $(STAMP)
	@exec $(PY) -m timebox walk $(TASK) $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

test: $(STAMP)
	@exec $(PY) -m pytest $(ARGS)

bench: $(STAMP)
	@exec $(PY) -m tests.benchmarks $(ARGS)

lint: $(STAMP)
	@$(PY) -m ruff check && $(PY) -m ruff format --check && $(PY) -m timebox.notebook check notebooks

notebooks: $(STAMP)
	@exec $(PY) -m timebox.notebook sync notebooks $(ARGS)

install: $(STAMP)

# A virtual environment holds the absolute path it was made at: made again where that has changed.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

# The output of pip is kept in a variable, not in a file: the disk may be what is full.
$(STAMP): requirements.txt pyproject.toml
	@rm -f $@
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	    echo "There is no '$(PYTHON)' here: install Python 3.11 or newer, or name one with PYTHON=/path/to/python3." >&2; exit 1; }
	@version=$$("$(PYTHON)" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3]); sys.exit(sys.version_info < (3, 11))' 2>/dev/null) || { \
	    echo "'$(PYTHON)' is Python $${version:-of an unknown version}, and 3.11 or newer is needed: name another with PYTHON=/path/to/python3." >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
	    echo "'$(PYTHON)' comes without its venv module: install it (Debian, Ubuntu: apt install python3-venv) and run make again." >&2; exit 1; }
	@echo "Setting up $(VENV) (once, about 2 minutes; longer where the network is slow)..."
	@failed() { printf '%s\n' "$$log" | grep -v -e '^ *$$' -e '^WARNING' | tail -n 6 >&2; \
	    why="see the lines above: check the network connection"; \
	    free=$$(df -Pk . | awk 'NR == 2 { print $$4 }'); \
	    case "$$log" in *"No space left"*) free=0;; esac; \
	    [ "$${free:-1000000}" -gt 100000 ] || why="the disk is full: free some space (6 GB with the GPU libraries)"; \
	    echo "$(VENV) could not be set up, $$why and run make again." >&2; exit 1; }; \
	if ! [ "$$(cat $(VENV)/.made-at 2>/dev/null)" = "$(CURDIR)" ] || ! $(PY) -m pip --version >/dev/null 2>&1; then \
	    log=$$("$(PYTHON)" -m venv --clear $(VENV) 2>&1) || failed; \
	    log=$$( (printf '%s' "$(CURDIR)" > $(VENV)/.made-at) 2>&1) || failed; \
	fi; \
	pip="$(PY) -m pip install --quiet --no-input --disable-pip-version-check"; \
	log=$$($$pip -r requirements.txt 2>&1) || failed; \
	log=$$($$pip --no-deps --no-build-isolation --editable . 2>&1) || failed; \
	log=$$( (printf '%s' "$(CURDIR)" > $@) 2>&1) || { rm -f $@; failed; }
	@echo "$(VENV) is ready."
