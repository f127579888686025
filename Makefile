# Two commands are all the set-up: `make demo` shows nsagent at work, `make test` proves it. `make` lists the others.

PYTHON := .venv/bin/python
# Machines with other kernels; only CI and `make test-vm` need them.
VM_PACKAGES := qemu-system-x86 zstd
# The Debian package, and its tests (`make test-slow`).
DEB_PACKAGES := build-essential debhelper dh-python python3-click lintian debootstrap

.PHONY: help setup demo test test-slow test-vm lint format docs dashboards kubernetes bench deb clean

help: ## list what can be made
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1\t/p' Makefile | expand -t 16

setup: ## install the Debian packages and .venv, mount bpffs and tracefs; does only what is missing
	@bash tools/setup.sh $(if $(filter true,$(CI)),$(VM_PACKAGES))

demo: setup ## start an agent, run a job under it, show what it saw, and remove everything again
	@$(PYTHON) tools/demo.py

test: setup ## run all tests; with CI=true a test that this machine cannot run is a failure
	@NSAGENT_REQUIRE_KERNEL=$${NSAGENT_REQUIRE_KERNEL-$(if $(filter true,$(CI)),1)} $(PYTHON) -m pytest $(ARGS)

test-slow: setup ## run the long forms of some tests: a busy minute, 200,000 calls, 500 restarts
	@$(PYTHON) -m pytest -m slow $(ARGS)

test-vm: ## boot Debian's kernels from 5.10 to the newest in qemu, and write docs/support-matrix.md; a quarter of an hour
	@bash tools/setup.sh $(VM_PACKAGES)
	@$(PYTHON) -m tests.vm.matrix $(ARGS)

lint: setup ## run the linters alone
	@$(PYTHON) -m pytest -q tests/unit/test_lint.py tests/unit/test_layers.py

format: setup ## format the Python and the C
	@.venv/bin/ruff check --fix-only --quiet .
	@.venv/bin/ruff format --quiet .
	@.venv/bin/clang-format -i bpf/*.c bpf/*.h

docs: setup ## write docs/commands.md anew, and the site into build/site
	@$(PYTHON) -m tools.commands markdown >docs/commands.md
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build

dashboards: setup ## write dashboards/json anew
	@$(PYTHON) -m dashboards

kubernetes: setup ## write deploy/kubernetes/base anew, of the chart
	@$(PYTHON) tools/kubernetes.py

bench: ## measure, and write docs/performance.md; takes some minutes and wants an idle machine
	@bash tools/setup.sh bubblewrap runc
	@$(PYTHON) -m bench.run

deb: setup ## build the Debian package into build/deb
	@bash tools/setup.sh $(DEB_PACKAGES)
	@deploy/debian/build.sh build/deb

clean: ## remove .venv and all that was built
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
