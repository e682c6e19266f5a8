"""The table of layers: every convolution of a graph is found in what OpenVINO tells, with its multiplications."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpmmu_rt.bundle import Bundle

layers = pytest.importorskip("benchmarks.cpu.layers", reason="openvino is not installed")
STORED = Path(__file__).parents[2] / "data" / "bundle_613dfc9"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_convolution_is_known(precision: str) -> None:
    bundle = Bundle.open(STORED)
    path = bundle.graph("ultrasound", precision)
    known = layers.multiplications(path)
    total, kinds = layers.profile(bundle, path, precision)
    assert total > 0
    assert "convolutions without a name" not in {what for what, _ in kinds}
    found = {what for what, _ in known.values()}
    assert found <= {what for what, _ in kinds}
    assert sum(kind.macs for kind in kinds.values()) == sum(macs for _, macs in known.values())
    # The stem: 7 x 7 kernels, at half of the image's side.
    (stem,) = (macs for what, macs in known.values() if what.startswith("7 x 7 at 16 x 16"))
    assert stem == 4 * 7 * 7 * 16 * 16


@pytest.mark.slow
def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    layers.main(STORED, [layers.Target.parse("openvino:fp32")])
    said = capsys.readouterr().out
    assert said.count("### openvino:fp32") == 2
    assert "| 3 x 3 at 8 x 8 |" in said
