# Everything a person needs: `make` lists it. Nothing but Python 3.11+ and make is required; with gcc the hot modules are compiled.
.DEFAULT_GOAL := help
SHELL := /bin/sh
VENV ?= .venv
RUN_VENV ?= .venv-run
BIN := $(VENV)/bin
DATA ?= headrace-data
ARGS ?=
# Many tests wait for something: one more than there are cores.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 3 ] && echo 4 || echo $$((n + 1)))
export VENV

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

# Editable installs stay pure Python: a compiled module beside its source would hide later edits of it.
.PHONY: dev
dev: ## set up .venv with everything for working on Headrace
	@HEADRACE_PURE=1 scripts/venv dev -e

.PHONY: run
run: ## install and start a broker with its admin page in ./headrace-data
	@VENV=$(RUN_VENV) scripts/venv
	@echo
	@echo "Next, in another terminal:"
	@echo "  export PATH=$(CURDIR)/$(RUN_VENV)/bin:\$$PATH"
	@echo "  headrace queue declare hello"
	@echo "  headrace publish hello 'first light'"
	@echo "  headrace consume hello"
	@echo "  headrace perf queue          # how fast is it here?"
	@echo "and look at http://127.0.0.1:7581/. Ctrl-C stops the broker; the data stays in ./$(DATA)."
	@echo
	@exec $(RUN_VENV)/bin/headrace start --data-dir $(DATA) --admin 127.0.0.1:7581 $(ARGS)

.PHONY: test
test: dev ## all tests, in up to 4 processes (ARGS="-k wal" picks some, "-n 0" is one process)
	@scripts/etcd >/dev/null
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

.PHONY: quick
quick: dev ## unit, golden and property tests only
	@$(BIN)/python -m pytest $(wildcard tests/unit tests/golden tests/property) $(ARGS)

.PHONY: check
check: dev ## ruff, mypy, import contracts, generated documents
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@PYTHONPATH=src $(BIN)/lint-imports --no-logo
	@$(BIN)/python scripts/generated.py --check

.PHONY: fmt
fmt: dev ## fix what ruff can fix, rewrite generated documents
	@$(BIN)/ruff check --fix -q . || true
	@$(BIN)/python scripts/generated.py

.PHONY: demo
demo: ## the machine's Debian package index through a queue, the broker killed in the middle
	@VENV=$(RUN_VENV) scripts/venv
	@$(RUN_VENV)/bin/python examples/packages/demo.py $(ARGS)

.PHONY: perf
perf: ## headrace perf queue against a broker of its own
	@VENV=$(RUN_VENV) scripts/venv
	@$(RUN_VENV)/bin/python -m bench --only headrace --rounds 1 --dry $(ARGS)

.PHONY: bench
bench: ## the rows of docs/performance.md, beside the peers that are installed (ARGS="--row mqtt")
	@VENV=$(RUN_VENV) scripts/venv
	@$(RUN_VENV)/bin/python -m bench $(ARGS)

.PHONY: bench-capacity
bench-capacity: ## idle queues, idle connections, starts with much data (ARGS="--gib 10")
	@VENV=$(RUN_VENV) scripts/venv
	@$(RUN_VENV)/bin/python -m bench.capacity $(ARGS)

.PHONY: bench-cluster
bench-cluster: ## three brokers that keep three copies (ARGS="--rounds 5"); many brokers: python -m bench.many
	@VENV=$(RUN_VENV) scripts/venv
	@$(RUN_VENV)/bin/python -m bench.cluster $(ARGS)

.PHONY: bench-client
bench-client: ## what one process with the Python client does
	@VENV=$(RUN_VENV) scripts/venv
	@$(RUN_VENV)/bin/python -m bench.client $(ARGS)

.PHONY: bench-peers
bench-peers: ## install the peers that bench compares with (as root: Debian packages; NATS, amqtt, aedes)
	@VENV=$(RUN_VENV) scripts/venv
	@bench/install-peers $(RUN_VENV)

.PHONY: chaos
chaos: dev ## kill -9 loops under load (KILLS=200), totals into docs/reliability.md
	@$(BIN)/python -m tests.chaos.kill --kills $(or $(KILLS),200) --write docs/reliability.md

.PHONY: chaos-cluster
chaos-cluster: dev ## faults of every kind in three brokers and three etcds (FAULTS=500), totals into docs/reliability.md
	@$(BIN)/python -m tests.chaos.cluster --faults $(or $(FAULTS),500) --write docs/reliability.md $(ARGS)

.PHONY: chaos-mqtt
chaos-mqtt: dev ## the same faults with MQTT clients at all brokers (FAULTS=200), totals into docs/reliability.md
	@$(BIN)/python -m tests.chaos.mqtt --faults $(or $(FAULTS),200) --write docs/reliability.md $(ARGS)

.PHONY: bench-failover
bench-failover: dev ## gaps in confirms when owners are lost, into docs/performance.md (ARGS="--times 50")
	@$(BIN)/python -m bench.failover --write $(ARGS)

.PHONY: sim
sim: dev ## whole brokers on virtual time under faults (ARGS="--seed 17", "--seeds 1-20000", "--minutes 5")
	@$(BIN)/python -m headrace.sim $(or $(ARGS),--minutes 5)

.PHONY: sim-cluster
sim-cluster: dev ## whole clusters of three and five brokers under all faults (ARGS="--seed 17", "--seeds 0-19999", "--minutes 5")
	@$(BIN)/python -m headrace.sim.clusters $(or $(ARGS),--minutes 5)

.PHONY: sim-mqtt
sim-mqtt: dev ## clusters with MQTT clients under faults (ARGS="--seed 17", "--seeds 0-9999", "--minutes 5")
	@$(BIN)/python -m headrace.sim.mqtt $(or $(ARGS),--minutes 5)

.PHONY: sim-formation
sim-formation: dev ## random programs of operators and machines against a naive model (ARGS="--scenarios 10 --restarts", "--mutants")
	@$(BIN)/python -m headrace.sim.formation $(or $(ARGS),--programs 0-10000)

.PHONY: images
images: dev ## every crash point of recorded runs of the store (ARGS="--images 50000")
	@$(BIN)/python -m headrace.sim.images $(or $(ARGS),--images 50000)

.PHONY: fuzz
fuzz: dev ## hostile bytes to the parser and the connections of MQTT, on all cores (ARGS="--count 20000000")
	@$(BIN)/python -m tests.fuzz.mqtt $(ARGS)

.PHONY: mutants
mutants: dev ## plant known bugs and see that the simulator notices each; without ARGS the table goes into docs/reliability.md (ARGS="--rotate 8")
	@$(BIN)/python -m headrace.sim.mutants $(or $(ARGS),--write docs/reliability.md)

.PHONY: clean
clean: ## remove environments, build products and caches (never data)
	rm -rf .venv .venv-run build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache src/*.egg-info bench/build
