"""What needs no GPU of the attention pool kernel: what the compiler says of it, its floor, and what would be chosen."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable

from benchmarks.gpu.kernel_times import product
from benchmarks.report import command, table
from mpmmu_rt.kernels.plan import LAUNCHES, Device, choose, floor
from mpmmu_rt.kernels.resources import ARCHITECTURES, instances, with_nvcc

BATCHES = (1, 8, 32, 128)
# By data sheet and programming guide, for the table of what would be chosen.
KNOWN = {
    "A100 (8.0)": Device((8, 0), 108, 163 << 10, 164 << 10, 40 << 20),
    "RTX 4090 (8.9)": Device((8, 9), 128, 99 << 10, 100 << 10, 72 << 20),
    "H200 (9.0)": Device((9, 0), 132, 227 << 10, 228 << 10, 50 << 20),
    "RTX 5090 (12.0)": Device((12, 0), 170, 99 << 10, 100 << 10, 96 << 20),
}


STAGES = 2  # what is chosen nearly always


def resources() -> str:
    """Every instance for every architecture, as Markdown. Raises `EngineError` without nvcc."""
    rows, every = [], [one for one in instances() if one.stages == STAGES]
    for architecture in ARCHITECTURES:
        found = {one.name: one for one in with_nvcc(architecture, every)}
        for launch in LAUNCHES:
            for specialised in (True, False):
                some = [found[f"{one.name}_{launch}"] for one in every if bool(one.positions) == specialised]
                registers = sorted({one.registers for one in some})
                spills = sum(one.spill_bytes + one.stack_bytes for one in some)
                span = f"{registers[0]} to {registers[-1]}" if len(registers) > 1 else registers[0]
                sizes = "7, 8, 10, 14, 16" if specialised else "any"
                rows.append(
                    (architecture, launch, sizes, len(some), span, max(one.shared_bytes for one in some), spills)
                )
        print(f"sm_{architecture}: {len(found)} kernels", file=sys.stderr)
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release [\d.]+, V[\d.]+", version)
    return f"""# Attention pool kernel: resources, floor and choice

Made by `{command()}`. No GPU was used: nothing on this page is a time.

## What ptxas says

nvcc {release[0] if release else version}, `-std=c++17`, 256 threads. Each row: float32, float16 and bfloat16, channels
first and, where the map is of any size, last; 2 stages. Shared memory is dynamic: its size is in the third
table. What `AttentionPool` compiles has the numbers of its modalities as constants as well.

{table("sm | launch | map | kernels | registers | static shared, bytes | spills and stack, bytes", rows)}
## Floor

2048 channels, CBAM (128 hidden units) and ECA. Bytes: feature maps and float32 weights read once, embedding written
once.

{table("feature map | element | batch | bytes | operations", floors())}
## What is chosen

By the cost model of `kernels/plan.py`, fitted to one H200 at 7 x 7. Of each modality: samples x channels of a tile by
the blocks that share them; the last launch's channels of a tile by blocks.

{table("device | feature map | element | batch | strategy | shared memory in each launch, bytes", choices())}"""


def floors() -> Iterable[tuple[object, ...]]:
    for size in (7, 32):
        branches = (product(size)[0].branch, product(size)[1].branch)
        for element in ("float32", "float16"):
            for batch in BATCHES:
                least = floor(branches, batch, element)
                yield f"{size} x {size}", element, batch, f"{least.bytes:,}", f"{least.operations:,}"


def choices() -> Iterable[tuple[object, ...]]:
    for name, device in KNOWN.items():
        for size in (7, 32):
            branches = (product(size)[0].branch, product(size)[1].branch)
            for batch in BATCHES:
                one = choose(branches, batch, "float16", False, device)
                yield name, f"{size} x {size}", one.element, batch, one, ", ".join(f"{size:,}" for size in one.shared)
