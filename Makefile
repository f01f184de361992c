# Everything a fresh machine needs beside this file: Python 3.11 or later (with venv), and make.
#
#   make run     set up, start every role in the foreground, say how to log in
#   make test    set up, run all tests (more of them after `make tools`)
#   make lint    code style            make types   static types
#   make bench   measurements          make tools   Go programs that some tests and bench use
#   make kafka   a Kafka broker on loopback, in the foreground (Java 17 and Maven;
#                `make kafka-jars` only fetches it, for tests)
#   make soak    the long fault tests  make clean   remove what was built; keys and data stay

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
TOOLS := .tools/bin
# The newest Python that is new enough; `make PYTHON=/path/to/python3 ...` chooses another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null 2>&1 && \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && \
	{ echo $$p; break; }; done)
# A flat layout hides the twistd plugin from plain editable installs; compat mode shows it.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	--config-settings editable_mode=compat --editable
WITH_TOOLS := PATH="$(CURDIR)/$(TOOLS):$$PATH"
# The newest that the Go module proxy serves.
H2SPEC := github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible

.PHONY: run test soak lint types bench tools kafka kafka-jars clean
.DELETE_ON_ERROR:

run: $(VENV)/.installed
	@exec $(BIN)/twistd -n --pidfile= elkeid --welcome

test: $(VENV)/.installed-test
	@$(WITH_TOOLS) $(BIN)/python -m pytest

soak: $(VENV)/.installed-test
	@$(WITH_TOOLS) $(BIN)/python -m pytest -m soak

lint: $(VENV)/.installed-test
	@$(BIN)/ruff check . tac/*.tac
	@$(BIN)/ruff format --check . tac/*.tac

types: $(VENV)/.installed-test
	@$(BIN)/mypy

bench: $(VENV)/.installed-test
	@$(WITH_TOOLS) $(BIN)/python -m bench.gateway

# Stamps: installing again when what is installed has changed, and only then.
$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "elkeid needs Python 3.11 or later: install it," \
		"or name it with make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv module:" \
		"install it (on Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON) ..."
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/.installed: setup.py pyproject.toml | $(VENV)/.created
	@echo "Installing elkeid and what it needs into $(VENV) ..."
	@$(INSTALL) .
	@touch $@

$(VENV)/.installed-test: setup.py pyproject.toml | $(VENV)/.created
	@echo "Installing elkeid and what its tests need into $(VENV) ..."
	@$(INSTALL) '.[test]'
	@touch $@ $(VENV)/.installed

tools:
	@go env GOVERSION 2>/dev/null | awk -F'[go.]+' '{ok = $$2 > 1 || $$3 >= 21} END {exit !ok}' || { \
		echo "make tools needs Go 1.21 or later, which then fetches the version that is asked" \
		"for: install it" >&2; exit 1; }
	@mkdir -p $(TOOLS)
	cd tests/grpcgo && go build -o "$(CURDIR)/$(TOOLS)/" ./...
	@test -x $(TOOLS)/h2spec || GOBIN="$(CURDIR)/$(TOOLS)" go install $(H2SPEC)

kafka: $(VENV)/.installed-test kafka-jars
	@exec $(BIN)/python -m tests.integration.kafka_cluster

kafka-jars: .tools/kafka/.complete

.tools/kafka/.complete: tests/integration/kafka.pom.xml
	@command -v mvn >/dev/null 2>&1 && command -v java >/dev/null 2>&1 || { echo "Kafka needs" \
		"Java 17 or later, and Maven to fetch it: install them (on Debian and Ubuntu: apt-get" \
		"install openjdk-17-jre-headless maven)" >&2; exit 1; }
	@echo "Fetching Kafka's jars ..."
	@mvn -q -B -f tests/integration/kafka.pom.xml dependency:copy-dependencies \
		-DincludeScope=runtime -DoutputDirectory="$(CURDIR)/.tools/kafka/libs"
	@touch $@

clean:
	rm -rf $(VENV) .tools build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f twisted/plugins/dropin.cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
