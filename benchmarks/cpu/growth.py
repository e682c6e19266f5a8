"""How cost grows with batch, threads and image size on OpenVINO, and how it compares to a plain matrix product.

    python -m benchmarks.cpu.growth BUNDLE benchmarks/results/growth_<machine>

writes the tables (.md) and the plot (.png). Batches and threads: the whole Predictor. Sizes: one CBAM encoder, one
request at a time on all threads. Yardstick: a 4096 x 4096 matrix product in torch, which in FP32 is no ceiling on every
processor.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from benchmarks import report
from mpmmu_rt import machine
from mpmmu_rt._optional import require
from mpmmu_rt.engines.openvino import ENGINE
from mpmmu_rt.export import encoders, tracing
from mpmmu_rt.export.rewrite import rewrite
from mpmmu_rt.model.config import EncoderConfig
from mpmmu_rt.model.encoder import Encoder
from mpmmu_rt.predictor import load
from mpmmu_rt.spec import MODALITIES

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
SIZES = (224, 384, 512, 768, 1024)
TARGETS = ("openvino:fp32", "openvino:bf16")
REPEATS = 3


def best_ms(call: Callable[[], object]) -> float:
    """The fastest of some calls, after one to warm up: what others do on the machine only ever adds."""
    call()
    spent = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        spent.append((time.perf_counter() - start) * 1e3)
    return min(spent)


def over_batches(bundle: Path, target: str, threads: int) -> list[float]:
    """Milliseconds per pair for every batch of `BATCHES`."""
    rng = np.random.default_rng(0)
    found = []
    with load(bundle, target, threads=threads) as predictor:
        shape = predictor.bundle.tensors["mammography_pixels"].shape[1:]
        for batch in BATCHES:
            pixels = {m: rng.integers(0, 256, (batch, *map(int, shape)), dtype=np.uint8) for m in MODALITIES}
            found.append(best_ms(lambda pixels=pixels: predictor.predict(pixels)) / batch)  # type: ignore[misc]
    return found


def over_sizes(folder: Path, precision: str) -> list[float]:
    """Milliseconds per image of a CBAM encoder for every size of `SIZES`."""
    torch.manual_seed(0)
    encoder = rewrite(Encoder(EncoderConfig(attention="cbam")).eval())
    found = []
    for size in SIZES:
        path = folder / f"{size}.onnx"
        if not path.exists():
            example = torch.zeros(2, 1, size, size, dtype=torch.uint8)
            onnx.save(
                tracing.trace(encoders.Features(encoder, cut=True), (example,), ["pixels"], "feature_map"), str(path)
            )
        session = ENGINE.load(path, precision, machine.usable_threads())
        pixels = np.random.default_rng(size).integers(0, 256, (1, 1, size, size), dtype=np.uint8)
        found.append(best_ms(lambda session=session, pixels=pixels: session.run({"pixels": pixels})))  # type: ignore[misc]
        session.close()
    return found


def multiply_accumulates() -> float:
    """Of the convolutions of one reference pair at 224 × 224."""
    total = 0

    def count(module: nn.Module, _: object, out: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += out.numel() * module.weight[0].numel()

    for kind in ("cbam", "eca"):
        encoder = Encoder(EncoderConfig(attention=kind)).eval()
        for module in encoder.modules():
            module.register_forward_hook(count)
        with torch.inference_mode():
            encoder.features(torch.zeros(1, 1, 224, 224, dtype=torch.uint8))
    return float(total)


def yardstick(dtype: torch.dtype) -> float:
    """Multiply-accumulates per second of a large matrix product."""
    left, right = (torch.rand(4096, 4096, dtype=torch.float32).to(dtype) for _ in range(2))
    return 4096**3 / best_ms(lambda: left @ right) * 1e3


def curves(along: Sequence[int], found: dict[str, list[float]]) -> str:
    rows = ([name, *(f"{value:.2f}" for value in values)] for name, values in found.items())
    return report.table(f" | {' | '.join(map(str, along))}", rows)


def main(bundle: Path, output: Path) -> None:
    heading, most = report.heading("How cost grows", ("torch",)), machine.usable_threads()
    threads = sorted({1, most})
    torch.set_num_threads(most)
    batches = {f"{t}, {n} threads": over_batches(bundle, t, n) for t in TARGETS for n in threads}
    with tempfile.TemporaryDirectory() as folder:
        sizes = {f"openvino:{p}": over_sizes(Path(folder), p) for p in ("fp32", "bf16")}
    work = multiply_accumulates()
    yardsticks = {"openvino:fp32": yardstick(torch.float32), "openvino:bf16": yardstick(torch.bfloat16)}
    shares = []
    for target, limit in yardsticks.items():
        rate = work / min(batches[f"{target}, {most} threads"]) * 1e3
        shares.append([target, f"{rate / 1e9:.0f}", f"{limit / 1e9:.0f}", f"{rate / limit:.0%}"])
    parts = [
        heading + report.load("at the end") + f" Fastest of {REPEATS}.\n",
        f"## ms per pair over the batch, whole model\n\n{curves(BATCHES, batches)}",
        f"## ms per image over the image size, CBAM encoder\n\n{curves(SIZES, sizes)}",
        f"## Against a matrix product in torch, {most} threads, {work / 1e9:.2f} · 10⁹ multiply-accumulates per pair\n",
        report.table(" | of the model, 10⁹ per s | of a matrix product | share", shares),
    ]
    output.with_suffix(".md").write_text("\n".join(parts), encoding="utf-8")
    plot(batches, sizes, output.with_suffix(".png"))


def plot(batches: dict[str, list[float]], sizes: dict[str, list[float]], path: Path) -> None:
    require("matplotlib", "the plot").use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, values in batches.items():
        left.plot(BATCHES, values, marker="o", label=name)
    left.set(
        xscale="log",
        xlabel="batch (pairs)",
        ylabel="ms per pair",
        title="whole model",
        ylim=(0, 1.6 * max(map(max, batches.values()))),
    )
    left.set_xticks(BATCHES, map(str, BATCHES))
    for name, values in sizes.items():
        right.plot(SIZES, values, marker="o", label=name)
        right.plot(SIZES, [values[0] * (size / SIZES[0]) ** 2 for size in SIZES], ":", color="grey")
    right.set(xlabel="image size (pixels)", ylabel="ms per image", title="CBAM encoder; dotted: by the pixels alone")
    for axes in (left, right):
        axes.legend(loc="upper left")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    parser = report.parser(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("output", type=Path, help="without suffix")
    given = parser.parse_args()
    main(given.bundle, given.output)
