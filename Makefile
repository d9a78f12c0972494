# make demo            the main job: tables, six trained forecasters, pictures; ten minutes
# make build           sets up .venv, builds, and installs the package into .venv
# make test            all tests, C++ and Python, on every instruction set of this CPU; ten minutes
# make test-kernels    only the C++ tests of the kernels
# make test-aarch64    the same, cross-compiled for aarch64 and run in an emulator; 20 minutes
# make test-originals  the models against neuralforecast's own, in an environment that has them
# make compatibility   the Python tests with each release of torch that requirements.txt allows, one
#                      after the other: the newer ones are CUDA builds of 5 GB on PyPI; an hour each
# make lint            formatting, static checks and types; half a minute after the set-up
# make tidy            clang-tidy over the kernels, or over TIDY=... files
# make format          formats C++ and Python as `make lint` expects
# make bench           speed against torch's attention on each instruction set, and of the models
#                      against neuralforecast's, judged against targets; an hour
# make sanitize        the C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer
# make stress          what takes too long for `make test`: `make sanitize`, 10,000 randomly generated
#                      calls, every pair of options, 8 processes, every float through exp, and the
#                      parsers of tables, models and options under libFuzzer; 65 minutes
# make mutants         plants small faults in a copy of the sources, one at a time, and checks that the
#                      tests find each; 40 minutes
# make docs            the documentation as HTML in build/docs/html
# make wheel           dist/*.whl for every release of torch that requirements.txt allows; downloads each
# make sdist           dist/*.tar.gz, the sources
# make kernels         dist/kernels, the package as a kernel of Hugging Face's `kernels`
# make clean           removes everything that the above created
#
# Each target sets up what it needs and skips what is up to date. Variables:
#
# PYTHON        the Python that creates .venv
# TORCH         the version of torch in .venv
# JOBS          concurrent compilers (up to 3 GB each) and tests
# ISA           runs the tests on this instruction set only: scalar, avx2, avx512,
#               avx512-bf16, amx, or amx-emulated
# EMULATOR      command in front of `make test-kernels`: EMULATOR="sde64 -skx --"
# BENCH, DEMO   options of bench/run.py and bench/demo.py: DEMO="--data table.csv --columns a,b"
# TIDY          C++ sources for `make tidy`
# CASES         calls that `make stress` generates
# FUZZ_SECONDS  time for each of its three parsers
# FAULTS        words in the descriptions of the faults that `make mutants` plants

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory --no-builtin-rules

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# The first release that requirements.txt allows, and the only one with a small wheel on PyPI.
TORCH ?= 2.13.0
JOBS ?= $(shell nproc)
CASES ?= 10000
FUZZ_SECONDS ?= 200
# The layer without Torch: its generic headers are checked as part of each instruction set.
TIDY ?= $(wildcard csrc/*.cpp csrc/*/kernels.cpp)

# `make compatibility` sets these to a second environment and a second build.
ENVIRONMENT ?= .venv
BUILD ?= build

VENV := $(ENVIRONMENT)/bin/python
PIP_INSTALL := -m pip --disable-pip-version-check install
REQUIREMENTS := requirements.txt requirements-dev.txt
# neuralforecast, the Python originals of the models, for `make bench` and `make test-originals`.
ORIGINALS := .venv-neuralforecast/bin/python
ORIGINALS_REQUIREMENTS := $(REQUIREMENTS) bench/requirements.txt
packages_in = $(shell sed -n 's/^\([a-z0-9][^ ]*\).*/\1/p' $(1))
SYSTEM_REQUIREMENTS := requirements-system.txt
PACKAGES = $(call packages_in,$(SYSTEM_REQUIREMENTS))
LIBRARIES := $(addprefix $(BUILD)/,ops/libflash_attention.so models/libflash_models.so \
  models/libflash_train.so)
PACKAGE_SOURCES := $(wildcard ops/flash_attention/*.py ops/flash_attention/*/*.py) \
  $(wildcard models/python/*.py models/train/python/*.py) \
  ops/flash_attention/py.typed setup.py pyproject.toml README.md LICENSE

# Stamps: up to date as long as they are newer than their prerequisites.
VENV_READY := $(ENVIRONMENT)/.ready
PACKAGE_READY := $(ENVIRONMENT)/.package-ready
DOCS_READY := $(ENVIRONMENT)/.docs-ready
ORIGINALS_READY := .venv-neuralforecast/.ready
ORIGINALS_PACKAGE_READY := .venv-neuralforecast/.package-ready

.PHONY: demo build bench docs wheel sdist kernels clean system compile compile-all
.PHONY: test test-python test-kernels test-aarch64 test-originals compatibility stress sanitize mutants
.PHONY: lint types tidy format

demo: build
	@$(VENV) bench/demo.py $(DEMO)

bench: compile-all build $(ORIGINALS_PACKAGE_READY)
	@$(VENV) bench/run.py $(BENCH)

# Tests choose the instruction set themselves and run on each, unless ISA=... names one; the caller's
# environment is ignored. Tests that measure time or memory run last, alone.
RESULTS := $(CURDIR)/$(BUILD)/test-results
PYTEST := -m pytest --quiet --durations=20
IF_NONE :=

ISA_ENVIRONMENT = unset FLASH_ATTENTION_ISA ATEN_CPU_CAPABILITY; \
	$(if $(ISA),export FLASH_ATTENTION_ISA=$(ISA);)

PYTHON_TESTS = $(ISA_ENVIRONMENT) \
	export FLASH_TRAIN=$(CURDIR)/$(BUILD)/models/flash_train; \
	echo "== Python tests"; \
	$(VENV) $(PYTEST) -n $(JOBS) --dist worksteal -m 'not serial' \
	  --junitxml=$(RESULTS)/python.xml tests/python; \
	echo "== Python tests of time and memory"; \
	$(VENV) $(PYTEST) -m serial --junitxml=$(RESULTS)/python-serial.xml tests/python \
	  $(IF_NONE); \
	$(VENV) tests/summary.py $(RESULTS) $$SECONDS

test: compile-all build
	@$(ISA_ENVIRONMENT) \
	rm -rf $(RESULTS); \
	echo "== C++ tests"; \
	GTEST_BRIEF=1 GTEST_OUTPUT=xml:$(RESULTS)/ \
	  ctest --test-dir $(BUILD) -j $(JOBS) --output-on-failure --no-tests=error; \
	$(PYTHON_TESTS)

# Leaves out the tests of the benchmarks, which need `compile-all`.
test-python: PYTEST += --ignore=tests/python/benchmarks
# Only tests of the benchmarks must run alone so far, and pytest exits with 5 if it runs none.
test-python: IF_NONE = || [ $$? = 5 ]
test-python: build
	@rm -rf $(RESULTS); $(PYTHON_TESTS)

# One release at a time: together they would fill the disk.
compatibility:
	@for release in $$(packaging/torch_releases.sh); do \
	  echo "== torch $$release"; \
	  rm -rf build/compatibility; \
	  $(MAKE) test-python TORCH="$$release.*" BUILD=build/compatibility/build \
	    ENVIRONMENT=build/compatibility/venv; \
	done; \
	rm -rf build/compatibility

# `compile-all` for the peak of the core, by which the benchmarks judge a step.
test-originals: compile-all build $(ORIGINALS_PACKAGE_READY)
	@$(ISA_ENVIRONMENT) \
	$(ORIGINALS) $(PYTEST) -n $(JOBS) --dist worksteal tests/python/originals

# The kernels alone: no Torch, so they also run under an emulator of another CPU.
test-kernels: $(BUILD)/build.ninja
	@cmake --build $(BUILD) -j $(JOBS) --target csrc_test
	$(EMULATOR) $(BUILD)/tests/csrc_test --gtest_brief=1 $(if $(ISA),--gtest_filter='*/$(ISA)')

# CTest knows the emulator from the toolchain.
test-aarch64: SYSTEM_REQUIREMENTS += cmake/aarch64/requirements-system.txt
test-aarch64: build/aarch64/build.ninja
	@cmake --build build/aarch64 -j $(JOBS) --target csrc_test
	GTEST_BRIEF=1 $(if $(ISA),GTEST_FILTER='*/$(ISA)') \
	  ctest --test-dir build/aarch64 --output-on-failure --no-tests=error --timeout 7200

# libtorch keeps memory until exit on purpose, which LeakSanitizer would report.
sanitize: build/sanitized/build.ninja
	cmake --build build/sanitized --parallel $(JOBS) --target csrc_test ops_test models_test
	@$(ISA_ENVIRONMENT) \
	echo "== Sanitized C++ tests"; \
	printf '%s\n' ops=0 models=0 csrc=1 | xargs -P $(JOBS) -I TEST bash -c \
	  'test=TEST; ASAN_OPTIONS=detect_leaks=$${test#*=} \
	   build/sanitized/tests/$${test%=*}_test --gtest_brief=1'

stress: SYSTEM_REQUIREMENTS += tests/fuzz/requirements-system.txt
stress: compile-all build build/fuzz/build.ninja sanitize
	cmake --build build/fuzz --parallel $(JOBS)
	@$(ISA_ENVIRONMENT) \
	echo "== The exponential of every float"; \
	build/tests/csrc_test --gtest_brief=1 --gtest_also_run_disabled_tests \
	  --gtest_filter='*EveryFloat'; \
	echo "== Every pair of options"; \
	$(VENV) $(PYTEST) -n $(JOBS) --all-pairs -k every_two_options tests/python; \
	echo "== Distributed attention on 8 processes, and a schedule of 1,024"; \
	$(VENV) $(PYTEST) --processes 8 --all-pairs tests/python/distributed; \
	echo "== Randomly generated calls, on every instruction set in turn"; \
	$(VENV) tests/python/fuzz/fuzzing.py --cases $(CASES); \
	echo "== The parsers of tables, options and safetensors under libFuzzer"; \
	mkdir -p build/fuzz/corpus/{csv,options,safetensors}; \
	printf '%s\n' csv options safetensors | ASAN_OPTIONS=detect_leaks=0 \
	  xargs -P $(JOBS) -I PARSER env build/fuzz/PARSER_fuzz -max_total_time=$(FUZZ_SECONDS) \
	    -timeout=10 -malloc_limit_mb=256 -dict=tests/fuzz/json.dict -artifact_prefix=build/fuzz/ \
	    -verbosity=0 -print_funcs=0 -print_final_stats=1 build/fuzz/corpus/PARSER tests/fuzz/corpus/PARSER

# --- checks of the sources ------------------------------------------------------------------------

# CI runs this. .pre-commit-config.yaml lists the checks; requirements-dev.txt pins their versions.
lint: $(VENV_READY)
	@$(VENV) -m pre_commit run --all-files

# The package as it is installed: links to its three folders of sources.
types: $(VENV_READY)
	@rm -rf build/types; mkdir -p build/types/flash_attention
	@ln -s $(CURDIR)/ops/flash_attention/* build/types/flash_attention
	@ln -s $(CURDIR)/models/python build/types/flash_attention/models
	@ln -s $(CURDIR)/models/train/python build/types/flash_attention/train
	@$(VENV) -m mypy

tidy: build/tidy/build.ninja
	@printf '%s\n' $(TIDY) | xargs -P $(JOBS) -n 1 $(dir $(VENV))clang-tidy -p build/tidy --quiet

format: $(VENV_READY)
	@$(VENV) -m ruff check --fix-only --quiet .
	@$(VENV) -m ruff format .
	@git ls-files -z '*.cpp' '*.h' | xargs -0 $(dir $(VENV))clang-format -i

docs: SYSTEM_REQUIREMENTS += docs/requirements-system.txt
docs: build $(DOCS_READY)
	@rm -rf build/docs; mkdir -p build/docs
	doxygen docs/Doxyfile
	@sed -i 's/&amp;zwj;//g' build/docs/doxygen/xml/*.xml  # Doxygen writes it into */ in an example
	$(VENV) -m sphinx --fail-on-warning --keep-going --quiet -c docs -d build/docs/doctrees . build/docs/html
	@echo "build/docs/html/index.html"

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
	  echo "make: Debian packages are missing, and installing them needs root. Run this, then make:"; \
	  echo "    sudo apt-get update && sudo $$install"; \
	  exit 1; \
	fi >&2; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update || echo "make: apt-get update failed; continuing with the existing package lists" >&2; \
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

$(DOCS_READY): docs/requirements.txt | $(VENV_READY)
	$(VENV) $(PIP_INSTALL) -r docs/requirements.txt
	@touch $@

# --- build ----------------------------------------------------------------------------------------

# The options are in CMakePresets.json.
WITH_TORCH = -DCMAKE_PREFIX_PATH="$$($(VENV) -c 'import torch; print(torch.utils.cmake_prefix_path)')"

build/sanitized/build.ninja: $(VENV_READY)
	cmake --preset sanitized $(WITH_TORCH)
	@touch $@

# libFuzzer needs Clang.
build/fuzz/build.ninja: $(VENV_READY) | build
	cmake -S tests/fuzz -B build/fuzz -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  -DCMAKE_CXX_COMPILER=clang++-14 \
	  -DFLASH_MODELS_LIBRARY=$(CURDIR)/build/models/libflash_models.so $(WITH_TORCH)
	@touch $@

build/aarch64/build.ninja: | system
	cmake --preset aarch64
	@touch $@

build/tidy/build.ninja: $(VENV_READY)
	cmake --preset tidy $(WITH_TORCH) >/dev/null
	@touch $@

$(BUILD)/build.ninja: $(VENV_READY)
	cmake --preset release -B $(BUILD) $(WITH_TORCH)
	@touch $@

# Ninja decides what is out of date, so these run every time: `compile` for what is installed,
# `compile-all` with tests and benchmarks.
compile: $(BUILD)/build.ninja
	@cmake --build $(BUILD) -j $(JOBS) --target flash_attention flash_models flash_train

compile-all: $(BUILD)/build.ninja
	@cmake --build $(BUILD) -j $(JOBS)

$(LIBRARIES): compile
	@:

INSTALL_PACKAGE := $(PIP_INSTALL) --quiet --no-build-isolation --no-deps --force-reinstall .

# build/python would keep deleted modules in the wheel.
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

kernels: build
	@$(VENV) packaging/write_kernel.py dist/kernels/flash-attention
