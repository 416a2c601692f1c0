# `make setup` builds .venv from exactly the versions in constraints.txt; the other targets go through it.

export HEADRACE_DEMO_PROMPT = $(value PROMPT)
PROMPT = a red apple on a blue background
PYTEST_ARGS =
INSTALL = .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: setup demo test test-slow clean
setup: .venv/setup.stamp

.venv/setup.stamp: pyproject.toml constraints.txt
	@set -e; found=; \
	for python in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3; do \
		if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
		then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "Headrace needs Python 3.11 or newer with its venv module: install it (Debian: apt install" \
			"python3 python3-venv), or name one with make PYTHON=/path/to/python3." >&2; exit 1; \
	fi; \
	echo "Setting up .venv with $$found; this takes a minute or two."; \
	"$$found" -m venv .venv; \
	$(INSTALL) -e .
	@touch $@

.venv/dev.stamp: .venv/setup.stamp
	@echo "Adding what the tests need."
	@$(INSTALL) -e '.[dev,serve]'
	@$(INSTALL) --no-deps invisible-watermark # only its weights are used, none of what it depends on
	@touch $@

demo: setup
	@.venv/bin/headrace generate -o demo.png -- "$$HEADRACE_DEMO_PROMPT"

test: .venv/dev.stamp
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/python -m pytest $(PYTEST_ARGS)

test-slow: .venv/dev.stamp
	.venv/bin/python -m pytest -m "slow or gpu" $(PYTEST_ARGS)

clean:
	rm -rf .venv build demo.png src/headrace.egg-info
