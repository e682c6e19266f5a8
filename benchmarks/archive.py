"""`run --ray` on one machine: what it costs, what it survives, and what its driver holds.

    python -m benchmarks.archive cost BUNDLE FOLDER [--pairs 500,2000,8000] [--rounds 3] [--target T]
    python -m benchmarks.archive kills BUNDLE FOLDER [--times 10] [--pairs 2000]
    python -m benchmarks.archive driver FOLDER [--rows 25000,50000,100000]

cost: `run`, and `run --ray` with one worker of two threads and two of one, in fresh processes that take turns, on
phantom images (FOLDER keeps them; a manifest of many rows names the same 100 pairs again and again). The ratio is of
the processes' wall times, start of the cluster included; a straight line through them tells the start from the pairs.
kills: a worker, the driver and the raylet, each at a random moment of a job that then goes on; outputs are compared
with that of an undisturbed `run`. driver: its resident memory on synthetic rows, with workers that write parts without
images or a model: what holds for any number of rows is the driver's alone.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from mpmmu_rt.cases import read_manifest
from mpmmu_rt.spec import MODALITIES

MARK = "MPMMU_ARCHIVE_BENCHMARK"
WAYS = {
    "run": (),
    "ray, 1 worker of 2 threads": ("--ray", "local", "--ray-workers", "1", "--ray-cpus", "2"),
    "ray, 2 workers of 1 thread": ("--ray", "local", "--ray-workers", "2"),
}


def manifest_of(folder: Path, rows: int) -> Path:
    phantoms = folder / "phantoms"
    if not phantoms.exists():
        subprocess.run([sys.executable, "-m", "mpmmu_rt", "--quiet", "phantom", "100", "-o", str(phantoms)], check=True)
    pairs = [(case.mammography, case.ultrasound) for case in read_manifest(phantoms / "manifest.csv").cases]
    path = folder / f"manifest-{rows}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("case_id", *MODALITIES))
        writer.writerows((f"case-{i}", *(one.resolve() for one in pairs[i % len(pairs)] if one)) for i in range(rows))
    return path


def start(bundle: Path, manifest: Path, out: Path, *options: str, mark: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mpmmu_rt", "run", str(bundle), str(manifest), "-o", str(out), *options]
    environment = os.environ | {MARK: mark}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def ended(process: subprocess.Popen[str]) -> None:
    _, stderr = process.communicate()
    if process.returncode:
        raise SystemExit(stderr)


# ---------------------------------------------------------------- cost


def cost(bundle: Path, folder: Path, counts: list[int], rounds: int, target: str) -> str:
    wall: dict[tuple[int, str], list[float]] = {(count, way): [] for count in counts for way in WAYS}
    work: dict[tuple[int, str], list[float]] = {key: [] for key in wall}
    rows = {count: manifest_of(folder, count) for count in counts}
    for number in range(rounds):
        for count, way in sorted(wall, key=lambda _: random.random()):
            out = folder / "out.csv"
            begin = time.monotonic()
            ended(start(bundle, rows[count], out, "--overwrite", "--target", target, *WAYS[way]))
            wall[count, way].append(time.monotonic() - begin)
            work[count, way].append(json.loads((folder / "out.csv.json").read_text())["wall_ms"] / 1e3)
            print(f"round {number + 1}: {count}, {way}: {wall[count, way][-1]:.1f} s", file=sys.stderr)
    lines = []
    for count, way in wall:
        ratios = np.array(wall[count, way]) / np.array(wall[count, "run"])
        lines.append(
            [
                count,
                way,
                f"{np.median(wall[count, way]):.1f}",
                f"{np.median(work[count, way]):.1f}",
                f"{np.median(ratios):.3f} ({ratios.min():.3f} to {ratios.max():.3f})",
            ]
        )
    slopes = [[way, f"{_slope(counts, [float(np.median(wall[count, way])) for count in counts])}"] for way in WAYS]
    return "\n".join(
        [
            f"{target}, batch 32, {rounds} rounds in drawn order; medians, and of ratios the range.\n",
            report.table("pairs | way | process, s | of it with the cluster, s | process against run", lines),
            "Straight line through the medians: seconds at no pairs, and ms for each more.\n",
            report.table("way | start and ms a pair", slopes),
        ]
    )


def _slope(counts: list[int], seconds: list[float]) -> str:
    if len(counts) < 2:
        return "-"
    slope, begin = np.polyfit(counts, seconds, 1)
    return f"{begin:.1f} s, {slope * 1e3:.2f} ms"


# ---------------------------------------------------------------- kills


def processes(mark: str, name: str) -> list[int]:
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"{MARK}={mark}".encode() in (place / "environ").read_bytes().split(b"\0")
            if ours and name in (place / "cmdline").read_bytes().decode(errors="replace").replace("\0", " "):
                found.append(int(place.name))
        except OSError:
            continue
    return found


def kills(bundle: Path, folder: Path, times: int, pairs: int) -> str:
    manifest, alone, out = manifest_of(folder, pairs), folder / "alone.csv", folder / "killed.csv"
    ended(start(bundle, manifest, alone, "--overwrite", "--batch", "4"))
    shards = -(-pairs // 32)
    lines = []
    for what in ("worker", "driver", "raylet"):
        same = goes_on = 0
        moments = []
        for _ in range(times):
            out.unlink(missing_ok=True)
            mark, after = uuid.uuid4().hex, random.randrange(shards - 4)
            moments.append(after)
            options = ("--batch", "4", "--ray", "local")
            process = start(bundle, manifest, out, *options, "--overwrite", mark=mark)
            while process.poll() is None and _parts(out) < after:
                time.sleep(0.005)
            time.sleep(random.uniform(0, 0.2))
            name = {"worker": "MapWorker", "raylet": "raylet/raylet"}.get(what, "")
            hit = [process.pid] if what == "driver" else processes(mark, name)[:1]
            end(hit)
            process.communicate()
            if out.with_name(f"{out.name}.partial").exists():  # else it was through before it was hit
                goes_on += 1
                ended(start(bundle, manifest, out, *options, "--resume"))
            same += out.read_bytes() == alone.read_bytes()
            end(processes(mark, ""))
            print(f"{what} after {after} of {shards} parts: {same} same", file=sys.stderr)
        lines.append([what, times, f"{min(moments)} to {max(moments)} of {shards}", goes_on, f"{same} of {times}"])
    return report.table(
        "killed | times | when, parts | went on with --resume | output as undisturbed, to the bit", lines
    )


def end(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _parts(out: Path) -> int:
    return sum(1 for _ in out.with_name(f"{out.name}.partial").glob("*/parts/part-*"))


# ---------------------------------------------------------------- driver


def driver(folder: Path, counts: list[int]) -> str:
    lines = []
    for count in counts:
        command = [sys.executable, "-m", "benchmarks.archive", "held", str(folder), str(count)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        lines.append(
            [count, f"{found['before']:.0f}", f"{found['after']:.0f}", f"{found['peak']:.0f}", f"{found['s']:.0f}"]
        )
        print(lines[-1], file=sys.stderr)
    peaks = [float(str(line[3])) for line in lines]
    slope = np.polyfit(counts, peaks, 1)[0] * 1e6 if len(counts) > 1 else float("nan")
    return "\n".join(
        [
            report.table("rows | resident before, MB | at the end, MB | peak, MB | seconds", lines),
            f"{slope:.0f} MB for each million rows more, by the peaks.",
        ]
    )


class StubWorker:
    """In this benchmark alone: writes parts of rows that say nothing, without images or a model."""

    def __init__(self, job: Any) -> None:
        self._job, self._parts = job, job.parts()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        from mpmmu_rt.archive.plan import Shard

        shard = Shard(**row)
        cases = self._job.plan.cases(shard)
        self._parts.write(shard.index, [(case.case_id, "0.25", "benign", "", "") for case in cases])
        counts = dict.fromkeys(("predicted", "decode_ms", "engine_ms"), 0)
        return {"index": shard.index, "rows": shard.rows, **counts, "processor": "", "remarks": "[]", "error": ""}


def held(folder: Path, count: int) -> None:
    from mpmmu_rt.archive import cluster
    from mpmmu_rt.archive.run import run
    from mpmmu_rt.bundle import Bundle
    from mpmmu_rt.places import claimed
    from mpmmu_rt.run import Allowed, Asked
    from mpmmu_rt.spec import Target

    path, out = folder / "synthetic.csv", folder / "held.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("case_id", *MODALITIES))
        writer.writerows((f"archive-case-{i:09}", f"m/{i:09}.dcm", f"u/{i:09}.png") for i in range(count))
    vars(cluster)["Worker"] = StubWorker
    bundle = Bundle.open(report.ROOT / "tests/data/bundle_613dfc9")
    before, begin = _resident(), time.monotonic()
    with claimed(out):
        asked = Asked(bundle, Target.parse("onnxruntime:fp32"))
        run(asked, path, out, cluster.Cluster(), allowed=Allowed(overwrite=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps({"before": before, "after": _resident(), "peak": peak, "s": time.monotonic() - begin}))


def _resident() -> float:
    """MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


def main() -> None:
    parser = report.parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("cost", "kills", "driver", "held"):
        one = commands.add_parser(name)
        if name in ("cost", "kills"):
            one.add_argument("bundle", type=Path)
        one.add_argument("folder", type=Path)
    commands.choices["cost"].add_argument("--pairs", type=numbers, default=[500, 2000, 8000])
    commands.choices["cost"].add_argument("--rounds", type=int, default=3)
    commands.choices["cost"].add_argument("--target", default="onnxruntime:fp32")
    commands.choices["kills"].add_argument("--times", type=int, default=10)
    commands.choices["kills"].add_argument("--pairs", type=int, default=2000)
    commands.choices["driver"].add_argument("--rows", type=numbers, default=[25_000, 50_000, 100_000])
    commands.choices["held"].add_argument("rows", type=int)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.command == "held":
        held(given.folder, given.rows)
        return
    said = {
        "cost": lambda: cost(given.bundle, given.folder, given.pairs, given.rounds, given.target),
        "kills": lambda: kills(given.bundle, given.folder, given.times, given.pairs),
        "driver": lambda: driver(given.folder, given.rows),
    }[given.command]
    print(report.heading(f"`run --ray`: {given.command}", ("ray", "pyarrow")))
    print(said())
    print(report.load("at the end"))


if __name__ == "__main__":
    main()
