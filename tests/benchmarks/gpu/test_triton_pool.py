"""The Triton rival of the attention pool says what the reference says: in Triton's own interpreter, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks.report import ROOT


@pytest.mark.slow
def test_the_rival_computes_what_the_kernel_does() -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.triton_pool"],
        env=os.environ | {"TRITON_INTERPRET": "1"},  # read when Triton is imported
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 12
