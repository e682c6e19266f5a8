# Two targets do everything on a fresh machine with Python 3.11 or newer:
#   make demo   environment, reference model, sample cases, latencies, predictions
#   make test   lint, types, documentation, tests
# For the daily loop:
#   make quick  lint, types, every test that is not slow
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := demo
# A worker that is killed ends the tests, by name: xdist gives its files to another and then waits for ever.
PYTEST = $(BIN)/python -m pytest --benchmark-disable --numprocesses 2 --dist loadfile --max-worker-restart 0
ENGINE_TESTS = tests/test_openvino.py tests/test_engines.py tests/test_verify.py tests/test_blob_cache.py \
  tests/test_bundles_of_before.py tests/test_promises.py tests/export/test_quantization.py \
  tests/export/test_quantization_gate.py tests/export/test_targets.py tests/export/test_rounding.py

# A path and no import hook: type checkers don't run hooks.
EDITABLE = --config-settings editable_mode=compat

.PHONY: demo test quick lint types docs tests processors bench gpu-evidence gpu-pack gpu-run aarch64 clean

demo: $(DEMO)/reference.bundle $(DEMO)/phantoms
	$(BIN)/mpmmu-rt doctor
	$(BIN)/mpmmu-rt bench $(DEMO)/reference.bundle --batch 32 --json $(DEMO)/bench.json
	$(BIN)/mpmmu-rt run $(DEMO)/reference.bundle $(DEMO)/phantoms/manifest.csv -o $(DEMO)/predictions.csv --overwrite
	@cat $(DEMO)/predictions.csv

$(DEMO)/reference.bundle: $(VENV)/.installed
	@mkdir -p $(DEMO)
	$(BIN)/mpmmu-rt export -o $@ --overwrite
	@touch $@

$(DEMO)/phantoms: $(VENV)/.installed
	@mkdir -p $(DEMO)
	rm -rf $@
	$(BIN)/mpmmu-rt phantom 12 -o $@

test: lint types docs tests

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

# The pages as a site, in .site: a link or a name that leads nowhere fails. Needs no network.
docs: $(VENV)/.installed
	$(BIN)/mkdocs build --strict --quiet

tests: $(VENV)/.installed
	$(PYTEST)

quick: lint types
	$(PYTEST) -m 'not slow'

# The engine tests as on lesser processors: oneDNN, which convolves for OpenVINO and torch, takes no more than is named;
# names beyond what the processor has limit nothing. A processor can't be made to have more.
processors: $(VENV)/.installed
	for isa in SSE41 AVX2 AVX512_CORE AVX512_CORE_VNNI; do \
	  echo "== $$isa" && ONEDNN_MAX_CPU_ISA=$$isa $(PYTEST) $(ENGINE_TESTS) || exit 1; done

bench: $(DEMO)/reference.bundle
	$(BIN)/python -m pytest benchmarks --benchmark-only --bundle $(DEMO)/reference.bundle

# On a machine with a GPU and this package's source; installs nothing, needs no network, takes at most 10 minutes.
# BUNDLE: one with GPU targets, to run it whole. RESULTS: where to write, else benchmarks/results/<gpu>. EXPECTED: a
# file of `python -m benchmarks.gpu.device_path BUNDLE --write-expected FILE`, where there is no onnxruntime.
gpu-evidence:
	$(PYTHON) -m benchmarks.gpu.evidence $(BUNDLE) $(if $(RESULTS),--out $(RESULTS)) $(if $(EXPECTED),--expected $(EXPECTED)) $(if $(COMMIT),--commit $(COMMIT)) $(if $(TARGETS),--targets $(TARGETS))

# For a GPU that is borrowed for minutes, on a machine without a network: make what has to travel here, which takes some
# 10 minutes and a download of 256 MB, and run everything there. OUT: where to write; PARTS, SECONDS: see the script.
gpu-pack: $(VENV)/.installed
	$(BIN)/python -m benchmarks.gpu.pack

gpu-run:
	$(PYTHON) -m benchmarks.gpu.borrowed $(if $(OUT),--out $(OUT)) $(if $(PARTS),--parts $(PARTS)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(COMMIT),--commit $(COMMIT))

# The native library on aarch64, emulated: fetches Debian's cross compiler and qemu (as root), arm64 libraries and ONNX
# Runtime's wheel. `make test` runs it too, from then on.
aarch64: $(VENV)/.installed
	apt-get install -y -qq --no-install-recommends g++-aarch64-linux-gnu qemu-user
	$(BIN)/python tests/native/fetch_aarch64.py .aarch64
	$(PYTEST) tests/native/test_aarch64.py

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: this is Python " + sys.version.split()[0] + ", expected 3.11 or newer\nhint: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(EDITABLE) -e '.[cpu,openvino,rtx,export,evaluate,dicom,plot,dev]'
	@# Of PyTriton the server alone: its requirements, NumPy 1 among them, are those of what is not used here.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps nvidia-pytriton || echo "no Triton server for this machine: its tests are skipped"
	@touch $@

clean:
	rm -rf $(VENV) $(DEMO) .site .gpu-pack .gpu-run .aarch64 build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
