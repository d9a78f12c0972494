# make demo    the main job: tables, six trained forecasters, pictures; five minutes
# make test    every test, C++ and Python, on every instruction set of this CPU; ten minutes
# make test-originals  the models beside neuralforecast's own, in an environment that has them
# make bench   speed beside torch's attention at each instruction set, and of the models beside
#              neuralforecast's, judged; 65 minutes
# make stress  what takes too long for `make test`: 10,000 randomly generated calls and every pair of
#              options on every instruction set, the C++ tests under AddressSanitizer and
#              UndefinedBehaviorSanitizer, and the parsers of tables, models and options under
#              libFuzzer for ten minutes; 65 minutes
# make mutants plants small faults in a copy of the sources, one at a time, and checks that the tests
#              find each; 40 minutes
# make build   set-up, build and installation into .venv only
# make wheel   dist/*.whl, for every release of torch that requirements.txt allows; downloads each
# make sdist   dist/*.tar.gz, the sources
# make compatibility  the Python tests beside each of those releases, one after the other: PyPI's
#              newer ones are CUDA builds of 5 GB; an hour each
# make clean   removes what the above made
#
# Each sets up what it needs; what is done is not done again. PYTHON=... names the Python to make
# .venv from, JOBS=... the number of compilers at once (each needs up to 3 GB) and of tests, CASES=... the
# number of calls that `make stress` generates, FUZZ_SECONDS=... the time for each of its three parsers,
# FAULTS=... words of the faults that `make mutants` plants, TORCH=... the torch that .venv gets,
# BENCH=... options of bench/run.py, DEMO=... those of bench/demo.py: DEMO="--data table.csv --columns a,b".

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory --no-builtin-rules

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Of the releases that requirements.txt allows, the first: the only one whose wheel on PyPI is small.
TORCH ?= 2.13.0
JOBS ?= $(shell nproc)
CASES ?= 10000
FUZZ_SECONDS ?= 200

# Where `make compatibility` puts another environment and another build.
ENVIRONMENT ?= .venv
BUILD ?= build

VENV := $(ENVIRONMENT)/bin/python
PIP_INSTALL := -m pip --disable-pip-version-check install
REQUIREMENTS := requirements.txt requirements-dev.txt
# The Python originals of the models: `make bench` and `make test-originals` need them, nothing else.
ORIGINALS := .venv-neuralforecast/bin/python
ORIGINALS_REQUIREMENTS := $(REQUIREMENTS) bench/requirements.txt
packages_in = $(shell sed -n 's/^\([a-z0-9][^ ]*\).*/\1/p' $(1))
PACKAGES := $(call packages_in,requirements-system.txt)
LIBRARIES := $(addprefix $(BUILD)/,ops/libflash_attention.so models/libflash_models.so \
  models/libflash_train.so)
PACKAGE_SOURCES := $(wildcard ops/flash_attention/*.py models/python/*.py models/train/python/*.py) \
  ops/flash_attention/py.typed setup.py pyproject.toml README.md LICENSE

# Stamps: newer than what they were made from as long as nothing has changed.
VENV_READY := $(ENVIRONMENT)/.ready
PACKAGE_READY := $(ENVIRONMENT)/.package-ready
ORIGINALS_READY := .venv-neuralforecast/.ready
ORIGINALS_PACKAGE_READY := .venv-neuralforecast/.package-ready

.PHONY: demo test test-python test-originals stress mutants bench build wheel sdist compatibility \
  clean system compile compile-all

demo: build
	@$(VENV) bench/demo.py $(DEMO)

bench: compile-all build $(ORIGINALS_PACKAGE_READY)
	@$(VENV) bench/run.py $(BENCH)

# Each test runs on all instruction sets by itself, whatever the set-up of whoever calls. What
# measures time or memory comes last, alone.
RESULTS := $(CURDIR)/$(BUILD)/test-results
PYTEST := -m pytest --quiet --durations=20

PYTHON_TESTS = unset FLASH_ATTENTION_ISA ATEN_CPU_CAPABILITY; \
	export FLASH_TRAIN=$(CURDIR)/$(BUILD)/models/flash_train; \
	echo "== Python tests"; \
	$(VENV) $(PYTEST) -n $(JOBS) --dist worksteal -m 'not serial' \
	  --junitxml=$(RESULTS)/python.xml tests/python; \
	echo "== Python tests of time and memory"; \
	$(VENV) $(PYTEST) -m serial --junitxml=$(RESULTS)/python-serial.xml tests/python; \
	$(VENV) tests/summary.py $(RESULTS) $$SECONDS

test: compile-all build
	@unset FLASH_ATTENTION_ISA ATEN_CPU_CAPABILITY; \
	rm -rf $(RESULTS); \
	echo "== C++ tests"; \
	GTEST_BRIEF=1 GTEST_OUTPUT=xml:$(RESULTS)/ \
	  ctest --test-dir $(BUILD) -j $(JOBS) --output-on-failure --no-tests=error; \
	$(PYTHON_TESTS)

# Without those of the benchmarks, which need what `compile-all` compiles.
test-python: PYTEST += $(patsubst %,--ignore=%,$(wildcard tests/python/test_bench*.py) \
  tests/python/test_speed.py)
test-python: build
	@rm -rf $(RESULTS); $(PYTHON_TESTS)

# One release at a time, so that the disk holds them.
compatibility:
	@for release in $$(packaging/torch_releases.sh); do \
	  echo "== torch $$release"; \
	  rm -rf build/compatibility; \
	  $(MAKE) test-python TORCH="$$release.*" BUILD=build/compatibility/build \
	    ENVIRONMENT=build/compatibility/venv; \
	done; \
	rm -rf build/compatibility

test-originals: build $(ORIGINALS_PACKAGE_READY)
	@unset FLASH_ATTENTION_ISA ATEN_CPU_CAPABILITY; \
	$(ORIGINALS) $(PYTEST) -n $(JOBS) --dist worksteal tests/python/originals

# LeakSanitizer does not know what libtorch keeps until the end on purpose.
stress: PACKAGES += $(call packages_in,tests/fuzz/requirements-system.txt)
stress: compile-all build build/sanitized/build.ninja build/fuzz/build.ninja
	cmake --build build/sanitized --parallel $(JOBS) --target csrc_test ops_test models_test
	cmake --build build/fuzz --parallel $(JOBS)
	@unset FLASH_ATTENTION_ISA ATEN_CPU_CAPABILITY; \
	echo "== The exponential of every float"; \
	build/tests/csrc_test --gtest_brief=1 --gtest_also_run_disabled_tests \
	  --gtest_filter='*EveryFloat'; \
	echo "== Sanitized C++ tests"; \
	printf '%s\n' ops=0 models=0 csrc=1 | xargs -P $(JOBS) -I TEST bash -c \
	  'test=TEST; ASAN_OPTIONS=detect_leaks=$${test#*=} \
	   build/sanitized/tests/$${test%=*}_test --gtest_brief=1'; \
	echo "== Every pair of options"; \
	$(VENV) $(PYTEST) -n $(JOBS) --all-pairs -k every_two_options tests/python; \
	echo "== Randomly generated calls, on every instruction set in turn"; \
	$(VENV) tests/python/fuzzing.py --cases $(CASES); \
	echo "== The parsers of tables, options and safetensors under libFuzzer"; \
	mkdir -p build/fuzz/corpus/{csv,options,safetensors}; \
	printf '%s\n' csv options safetensors | ASAN_OPTIONS=detect_leaks=0 \
	  xargs -P $(JOBS) -I PARSER env build/fuzz/PARSER_fuzz -max_total_time=$(FUZZ_SECONDS) \
	    -timeout=10 -malloc_limit_mb=256 -dict=tests/fuzz/json.dict -artifact_prefix=build/fuzz/ \
	    -verbosity=0 -print_funcs=0 -print_final_stats=1 build/fuzz/corpus/PARSER tests/fuzz/corpus/PARSER

mutants: build
	@$(VENV) tests/mutants/mutants.py --jobs $(JOBS) $(FAULTS)

build: $(PACKAGE_READY)

clean:
	rm -rf build dist .venv .venv-neuralforecast out

# --- set-up ---------------------------------------------------------------------------------------

system:
	@missing=; \
	for package in $(PACKAGES); do \
	  dpkg-query -W -f='$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || \
	    missing+=" $$package"; \
	done; \
	[ -z "$$missing" ] && exit; \
	install="apt-get install -y --no-install-recommends$$missing"; \
	if [ "$$(id -u)" != 0 ]; then \
	  echo "make: Debian packages are missing, and only root can install them. Run this, then make:"; \
	  echo "    sudo apt-get update && sudo $$install"; \
	  exit 1; \
	fi >&2; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update || echo "make: apt-get update failed; going on with the lists that are here" >&2; \
	$$install

$(VENV_READY): $(REQUIREMENTS) | system
	@found=none; \
	[ -z "$(PYTHON)" ] || found="$$($(PYTHON) --version 2>&1 || true) ($(PYTHON))"; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "make: expected Python 3.11, found $$found; run make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	}
	$(PYTHON) -m venv $(ENVIRONMENT)
	$(VENV) $(PIP_INSTALL) "torch==$(TORCH)" $(addprefix -r ,$(REQUIREMENTS))
	@touch $@

$(ORIGINALS_READY): $(ORIGINALS_REQUIREMENTS) | $(VENV_READY)
	$(VENV) -m venv .venv-neuralforecast
	$(ORIGINALS) $(PIP_INSTALL) "torch==$(TORCH)" $(addprefix -r ,$(ORIGINALS_REQUIREMENTS))
	@touch $@

# --- build ----------------------------------------------------------------------------------------

build/sanitized/build.ninja: $(VENV_READY)
	cmake -S . -B build/sanitized -G Ninja -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG="-O1 -g1" \
	  -DFLASH_ATTENTION_SANITIZE=address,undefined \
	  -DCMAKE_PREFIX_PATH="$$($(VENV) -c 'import torch; print(torch.utils.cmake_prefix_path)')"
	@touch $@

# libFuzzer is a part of Clang.
build/fuzz/build.ninja: $(VENV_READY) | build
	cmake -S tests/fuzz -B build/fuzz -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  -DCMAKE_CXX_COMPILER=clang++-14 \
	  -DFLASH_MODELS_LIBRARY=$(CURDIR)/build/models/libflash_models.so \
	  -DCMAKE_PREFIX_PATH="$$($(VENV) -c 'import torch; print(torch.utils.cmake_prefix_path)')"
	@touch $@

$(BUILD)/build.ninja: $(VENV_READY)
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release -DFLASH_ATTENTION_BUILD_BENCH=ON \
	  -DCMAKE_PREFIX_PATH="$$($(VENV) -c 'import torch; print(torch.utils.cmake_prefix_path)')"
	@touch $@

# Ninja decides what has to be compiled, so it is asked every time: here for what is installed or
# run, and for tests and benchmarks where they are wanted.
compile: $(BUILD)/build.ninja
	@cmake --build $(BUILD) -j $(JOBS) --target flash_attention flash_models flash_train

compile-all: $(BUILD)/build.ninja
	@cmake --build $(BUILD) -j $(JOBS)

$(LIBRARIES): compile
	@:

INSTALL_PACKAGE := $(PIP_INSTALL) --quiet --no-build-isolation --no-deps --force-reinstall .

# Without build/python, or a module that was deleted here would live on in the wheel.
$(PACKAGE_READY): $(LIBRARIES) $(PACKAGE_SOURCES)
	rm -rf build/python $(BUILD)/package
	cmake --install $(BUILD) --component libraries --prefix $(BUILD)/package >$(BUILD)/install.log
	FLASH_ATTENTION_LIBRARIES=$(CURDIR)/$(BUILD)/package $(VENV) $(INSTALL_PACKAGE)
	@touch $@

$(ORIGINALS_PACKAGE_READY): $(PACKAGE_READY) | $(ORIGINALS_READY)
	rm -rf build/python
	FLASH_ATTENTION_LIBRARIES=$(CURDIR)/$(BUILD)/package $(ORIGINALS) $(INSTALL_PACKAGE)
	@touch $@

# --- distributions --------------------------------------------------------------------------------

WHEEL := build/wheel

wheel: $(VENV_READY)
	$(VENV) $(PIP_INSTALL) --quiet -r packaging/requirements.txt
	JOBS=$(JOBS) packaging/build_libraries.sh $(WHEEL) $(VENV)
	rm -rf build/python $(WHEEL)/dist
	FLASH_ATTENTION_LIBRARIES=$(CURDIR)/$(WHEEL)/package $(VENV) -m pip wheel --quiet \
	  --no-build-isolation --no-deps --wheel-dir $(WHEEL)/dist .
	PATH="$(CURDIR)/$(dir $(VENV)):$$PATH" packaging/repair_wheel.sh dist $(WHEEL)/dist/*.whl

sdist: $(VENV_READY)
	$(VENV) $(PIP_INSTALL) --quiet -r packaging/requirements.txt
	$(VENV) -m build --sdist --no-isolation --outdir dist .
