# Everything a reader runs. `make` alone lists the targets; every target installs what it needs first.

PROFILE ?= lite
SEEDS ?= 3
JOBS ?= 2
ENGINE ?= local
ADDRESS ?=
VENV ?= .venv
TORCH ?= cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
ARGS ?=

# the first Python on the path that is new enough, 3.11 before any other
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)

# ENV=active: use the environment that is switched on (conda, say) and install nothing
ifeq ($(ENV),active)
BIN := $(dir $(shell command -v python))
INSTALLED :=
else
BIN := $(VENV)/bin/
INSTALLED := $(VENV)/.installed
endif

BOOK := build/book
HTML := $(BOOK)/out/_build/html
NOTEBOOKS := $(sort $(wildcard notebooks/[01]*.ipynb)) $(sort $(wildcard notebooks/m*.ipynb))
BENCHMARKS := $(sort $(wildcard benchmarks/[a-z]*.py))
# the committed reference run of a profile, or what chapter 7 has just made
RECORDS := $(if $(wildcard results/$(PROFILE)/*.json),results/$(PROFILE),build/records/$(PROFILE))
TORCH_PIN := $(shell sed -n 's/^torch==//p' requirements.lock)

export TOKENIZERS_PARALLELISM := false
export OMP_NUM_THREADS := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
export JUPYTER_PLATFORM_DIRS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install book html test lab grid experiments updates rounds refresh bench bench-latency clean
.DELETE_ON_ERROR:

help:
	@echo "OneSug-lite. Targets (PROFILE=$(PROFILE), one of smoke, lite, full):"
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | \
		while IFS="$$(printf '\t')" read -r name text; do printf "  %-13s %s\n" "$$name" "$$text"; done
	@echo "Variables: PROFILE=lite  SEEDS=3  JOBS=2  ENGINE=local|dask  ADDRESS=  PYTHON=python3.11  VENV=.venv  TORCH=cpu|cuda  ENV=active  ARGS="

install: $(INSTALLED) ## make .venv and install the locked versions (every other target does so by itself)

# torch comes first and alone: pip then finds it there and leaves the choice of build to TORCH.
$(VENV)/.installed: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@if [ -e "$(VENV)" ] && [ ! -e "$(VENV)/pyvenv.cfg" ] && [ -n "$$(ls -A "$(VENV)")" ]; then \
		echo "$(VENV) is there and is no virtual environment; name another: make VENV=.venv-onesug" >&2; exit 1; fi
	@echo "Installing into $(VENV) from requirements.lock: a minute or two where downloads are quick."
	@"$(BIN)python" -c 'import pip' 2>/dev/null || "$(PYTHON)" -m venv --clear "$(VENV)"
	@if [ "$(TORCH)" = cpu ] && [ -n "$(TORCH_INDEX)" ] && "$(BIN)python" -c \
			"import urllib.request as u; u.urlopen('$(TORCH_INDEX)/torch/', timeout=4)" 2>/dev/null; then \
		"$(BIN)pip" install -qq --no-compile --no-deps --index-url "$(TORCH_INDEX)" torch==$(TORCH_PIN); \
	else \
		"$(BIN)pip" install -qq --no-compile --no-deps torch==$(TORCH_PIN); \
	fi
	@"$(BIN)pip" install -qq --no-compile -r requirements.lock
	@"$(BIN)pip" install -qq --no-compile --no-deps --no-build-isolation -e .
	@touch $@

book: $(INSTALLED) ## run every chapter and render the book; ends with the path of its index.html
	@mkdir -p $(BOOK)
	"$(BIN)python" -m onesug_lite.grid chapters --profile $(PROFILE) --out $(BOOK)
	@$(MAKE) --no-print-directory html

html: $(INSTALLED) ## render the chapters that are in build/book again, after a change of text
	@rm -rf $(BOOK)/book && cp -R book $(BOOK)/book && cp _config.yml $(BOOK)/_config.yml
	"$(BIN)python" -m data_synth.card --profile $(PROFILE) --store build/store --out $(BOOK)/book/data_card.md
	"$(BIN)python" -m onesug_lite.ledger --records $(RECORDS) --out $(BOOK)/book/ledger.md
	cd $(BOOK) && "$(abspath $(BIN))/jupyter-book" build . --config _config.yml --toc book/_toc.yml \
		--path-output out -W --keep-going --all --quiet
	@echo && echo "The book: $(CURDIR)/$(HTML)/index.html"

# chapters first: they take longest, and the tests find in the store what they have trained
test: $(INSTALLED) ## check style, run the tests, and rerun every chapter at smoke size
	"$(BIN)ruff" check
	"$(BIN)ruff" format --check
	ONESUG_PROFILE=smoke "$(BIN)python" -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder \
		--nbval-lax --nbval-current-env --nbval-cell-timeout=1800 $(NOTEBOOKS) tests $(ARGS)

lab: $(INSTALLED) ## open JupyterLab on the notebooks
	"$(BIN)jupyter" lab --notebook-dir=notebooks

grid: $(INSTALLED) ## train and score every row of the results table, SEEDS seeds each, into results/
	"$(BIN)python" -m onesug_lite.grid table --profile $(PROFILE) --seeds $(SEEDS) --jobs $(JOBS) --out results \
		--engine $(ENGINE) --address "$(ADDRESS)" $(ARGS)

experiments: $(INSTALLED) ## let pairs of systems serve the same shoppers, SEEDS model seeds each, into results/
	"$(BIN)python" -m onesug_lite.experiment_grid --profile $(PROFILE) --seeds $(SEEDS) --jobs $(JOBS) --out results $(ARGS)

updates: $(INSTALLED) ## follow every schedule of updates day by day, SEEDS model seeds each, into results/
	"$(BIN)python" -m onesug_lite.update_grid --profile $(PROFILE) --seeds $(SEEDS) --jobs $(JOBS) --out results $(ARGS)

rounds: $(INSTALLED) ## let the generator answer, learn from what came of it and answer again, SEEDS model seeds, into results/
	"$(BIN)python" -m onesug_lite.round_grid --profile $(PROFILE) --seeds $(SEEDS) --jobs $(JOBS) --out results $(ARGS)

refresh: $(INSTALLED) ## run the committed notebooks again, in place, at lite size
	"$(BIN)python" -m onesug_lite.grid refresh --profile lite $(ARGS)

bench: $(INSTALLED) ## measure speed and memory: each script prints a table and writes JSON to build/bench
	@mkdir -p build/bench
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; "$(BIN)python" "$$script"; done

bench-latency: $(INSTALLED) ## measure the response time of generator and cascade side by side, stage by stage
	"$(BIN)python" benchmarks/latency.py --profile $(PROFILE) $(ARGS)

clean: ## remove build/ (stored stages, book, measurements); the environment stays
	rm -rf build
