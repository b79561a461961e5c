# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` are all that a new user needs; both set up what they use.

PYTHON ?= python3
VENV := .venv
OTHER := .venv-other
BENCH := .venv-bench
RUN := $(VENV)/bin
SOURCES := $(shell find client aggregator demo qemu -name '*.py' -o -name '*.cddl' -o -name '*.tflite' -o -name '*.npz')
ARGS ?=
BOARD ?=
RELEASE ?= wrynose
IMAGE ?=
DEVICE ?=
OE ?=
OE_USER ?=

.DEFAULT_GOAL := help
.PHONY: help openssl demo demo-gestures qemu test test-benchmarks test-image lint layer-check bench-accuracy bench-trainer bench-faults bench-robust bench-qemu bench-sensors image flash clean

help: ## Show what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The devices make their keys with it.
openssl:
	@command -v openssl >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && apt-get update && apt-get install -y openssl; } || \
	  { echo "openssl is missing: apt install openssl" >&2; exit 1; }

demo: $(VENV)/demo openssl ## Federate the digits task over 10 device processes on this machine
	@$(RUN)/fedlearn-demo digits --out build/demo $(ARGS)

# seglearn's own dependencies are large, and of the package the demo reads one file alone.
demo-gestures: $(VENV)/demo openssl ## From sensors to a model: one device a person, their exercises felt by a smartwatch
	@$(RUN)/python -c 'import importlib.util as u; assert u.find_spec("seglearn")' 2>/dev/null || \
	  $(RUN)/pip install --quiet --no-deps seglearn==1.2.5
	@$(RUN)/fedlearn-demo gestures --out build/demo-gestures $(ARGS)

qemu: $(VENV)/demo ## Federate over emulated ARM64 devices: [IMAGE=<BitBake's deploy folder>]
	@$(RUN)/fedlearn-qemu $(if $(IMAGE),--image "$(IMAGE)") $(ARGS)

# Emulated devices have the machine to themselves. pytest ends with 5 where ARGS leave a part nothing
# to run; all of them must not be left without.
test: $(VENV)/dev $(OTHER)/dev openssl ## Run all tests and linters, then those that use the runtime on the other one
	@status=5; \
	part() { \
	  echo "==> $$1"; shift; "$$@" $(ARGS); code=$$?; \
	  case $$code-$$status in 5-*) ;; 0-5) status=0 ;; 0-*) ;; *) status=1 ;; esac; \
	}; \
	name='from fedlearn.runtime import runtime_name as n; print(n())'; \
	part "tests, $$($(RUN)/python -c "$$name")" $(RUN)/python -m pytest -n 2 -m "not qemu"; \
	part "tests, emulated devices" $(RUN)/python -m pytest -m qemu tests/qemu; \
	if [ -x $(OTHER)/bin/python ]; then \
	  part "tests, $$($(OTHER)/bin/python -c "$$name")" \
	    $(OTHER)/bin/python -m pytest -n 2 tests/client tests/aggregator tests/models; \
	fi; \
	exit $$status

test-benchmarks: $(BENCH)/done ## Run the benchmarks' own tests, which need PyTorch
	@$(BENCH)/bin/python -m pytest tests/benchmarks/test_accuracy.py tests/benchmarks/test_trainer.py $(ARGS)

test-image: $(VENV)/dev ## Run the tests of emulated devices on what BitBake built: IMAGE=<deploy folder>
	@test -n "$(IMAGE)" || { echo "IMAGE=<BitBake's deploy folder> is missing" >&2; exit 2; }
	@FEDLEARN_IMAGE="$(abspath $(IMAGE))" $(RUN)/python -m pytest -m qemu tests/qemu $(ARGS)

lint: $(VENV)/dev ## Run the linters alone
	@$(RUN)/python -m pytest -q tests/lint

layer-check: $(VENV)/dev ## Check the BitBake layer; OE=<folder of checkouts> [OE_USER=<user>] in the real BitBake, too
	@OE="$(OE)" OE_USER="$(OE_USER)" $(RUN)/python -m pytest tests/layer $(ARGS)

bench-accuracy: $(BENCH)/done ## int8 against float32 federated learning, side by side, 5 seeds
	@$(BENCH)/bin/python -m tests.benchmarks.accuracy $(ARGS)

bench-trainer: $(BENCH)/done ## Speed and memory of training against PyTorch and TFLite's own training
	@$(BENCH)/bin/python -m tests.benchmarks.trainer $(ARGS)

bench-faults: $(VENV)/dev ## kill -9, full disks, floods, impostors, load: what must hold, in figures
	@$(RUN)/python -m tests.benchmarks.faults $(ARGS)

bench-robust: $(VENV)/dev ## Accuracy with hostile devices, by aggregation rule
	@$(RUN)/python -m tests.benchmarks.robust $(ARGS)

bench-qemu: $(VENV)/demo ## Emulated devices in figures, and 20 power cuts: [IMAGE=<BitBake's deploy folder>]
	@$(RUN)/python -m tests.benchmarks.qemu $(if $(IMAGE),--image "$(IMAGE)") $(ARGS)

bench-sensors: $(VENV)/dev ## What collecting from a sensor costs: CPU, memory over an hour, wear
	@$(RUN)/python -m tests.benchmarks.sensors $(ARGS)

image: ## Build an image with BitBake: BOARD=raspberrypi5 [RELEASE=scarthgap] [IMAGE=dev|aggregator]
	@$(PYTHON) recipes/build.py "$(BOARD)" "$(RELEASE)" "$(IMAGE)"

flash: ## Write it to a card or disk: BOARD=raspberrypi5 DEVICE=/dev/sdX
	@$(PYTHON) recipes/flash.py "$(BOARD)" "$(DEVICE)"

clean: ## Remove what was built, the virtual environments too
	rm -rf build dist *.egg-info $(VENV) $(OTHER) $(BENCH)

# Debian keeps ensurepip in a package of its own; as root it is installed, else it is named.
define make-venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "fedlearn needs Python 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { [ "$$(id -u)" = 0 ] && apt-get update && apt-get install -y python3-venv; } || \
	  { echo "python3-venv is missing: apt install python3-venv" >&2; exit 1; }
	@echo "==> creating $(1)"
	@$(PYTHON) -m venv $(1)
endef

$(VENV)/bin/python:
	$(call make-venv,$(VENV))

# What the tests and the demo run is what a device gets: an installed package, no editable one, whose
# import hooks would cost each process 2 MB.
define install
	@rm -rf build/lib
	@$(1)/bin/pip install --quiet --force-reinstall --no-deps .
endef

$(VENV)/demo: pyproject.toml $(SOURCES) | $(VENV)/bin/python
	@echo "==> installing fedlearn with its demo (the first time about 50 MB: up to a minute)"
	@$(RUN)/pip install --quiet '.[demo]'
	$(call install,$(VENV))
	@touch $@

$(VENV)/dev: pyproject.toml $(SOURCES) | $(VENV)/bin/python
	@echo "==> installing fedlearn with what its tests need (the first time about 90 MB: a minute or two)"
	@$(RUN)/pip install --quiet '.[dev]'
	$(call install,$(VENV))
	@touch $@ $(VENV)/demo

# The other of the two runtimes: ai-edge-litert where the first environment has tflite-runtime (Python
# 3.11). On newer Pythons there is only ai-edge-litert, and nothing to compare.
$(OTHER)/dev: pyproject.toml $(SOURCES)
	@if $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then \
	  echo "==> installing fedlearn beside ai-edge-litert (the first time about 50 MB: up to a minute)"; \
	  $(PYTHON) -m venv $(OTHER) && \
	  $(OTHER)/bin/pip install --quiet ai-edge-litert 'numpy>=2' cbor2 pyserial zeroconf aiohttp 'cryptography>=42' \
	    hypothesis pycddl pytest pytest-timeout pytest-xdist tflite && \
	  rm -rf build/lib && \
	  $(OTHER)/bin/pip install --quiet --force-reinstall --no-deps .; \
	else \
	  echo "==> tflite-runtime has no wheels for this Python: one runtime is tested"; \
	  mkdir -p $(OTHER); \
	fi
	@touch $@

$(BENCH)/done: pyproject.toml $(SOURCES)
	$(call make-venv,$(BENCH))
	@echo "==> installing fedlearn with what its benchmarks need (PyTorch: some hundred MB)"
	@$(BENCH)/bin/pip install --quiet '.[bench]'
	$(call install,$(BENCH))
	@touch $@
