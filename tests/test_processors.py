"""The same answers on lesser processors than the one that is here.

oneDNN, which convolves for OpenVINO, can be told to use no more than an older instruction set; each is asked in a
process of its own, as it is told once. OpenVINO's own kernels, for what lies between, take what the processor has.
`make processors` runs all engine tests that way. A processor can't be told to do more: AMX is tested where it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BUNDLE = Path(__file__).parent / "data" / "bundle_613dfc9"
# ONEDNN_MAX_CPU_ISA: what kernels it must not use.
LESSER = {"SSE41": ("avx",), "AVX2": ("avx512",), "AVX512_CORE": ("amx",)}
VERIFY = """
import json, sys
from mpmmu_rt import load
from mpmmu_rt.verify import verify
with load(sys.argv[1], sys.argv[2], threads=2) as predictor:
    checks = [check.to_json() for check in verify(predictor)]
    graph = predictor._engine.graph(predictor.bundle, "mammography", predictor.target.precision)
    session = predictor._engine.load(graph, predictor.target.precision, 1)
nodes = [node.get_rt_info() for node in session._request.get_compiled_model().get_runtime_model().get_ops()]
kernels = {str(node["primitiveType"].astype(str)) for node in nodes if node["layerType"].astype(str) == "Convolution"}
print(json.dumps({"checks": checks, "kernels": sorted(kernels)}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["openvino:fp32", "openvino:int8"])
@pytest.mark.parametrize("isa", LESSER)
def test_a_bundle_verifies_on_a_lesser_processor(isa: str, target: str) -> None:
    pytest.importorskip("openvino")
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": isa}
    command = [sys.executable, "-c", VERIFY, str(BUNDLE), target]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert [check for check in said["checks"] if not check["passed"]] == []
    assert said["kernels"]
    strangers = [kernel for kernel in said["kernels"] if any(word in kernel for word in LESSER[isa])]
    assert strangers == [], "it was not held to the lesser processor"


@pytest.mark.slow
def test_no_sum_saturates_without_vnni() -> None:
    """With 8 bits for weights, twelve of these fail: AVX2 adds products of 8-bit codes in 16 bits."""
    pytest.importorskip("openvino")
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # no worker of this run
    environment = own | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    tests = ["tests/export/test_quantization.py", "-k", "test_the_largest_codes_do_not_saturate"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", *tests]
    ran = subprocess.run(
        command, env=environment, cwd=BUNDLE.parents[2], capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert "16 passed" in ran.stdout
