"""`run --ray` on a cluster that runs already, of two nodes: joined, one of them lost half-way, and left as it was."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpmmu_rt.cases import read_manifest

from .test_ray import MARK, Cluster, cluster, manifest, parts, pytestmark, until, work, write_manifest

__all__ = ["cluster", "manifest", "pytestmark"]  # fixtures, and where these tests can run

NODES = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
print("address", cluster.address, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def address(cluster: Cluster) -> Iterator[str]:
    """Where a cluster of two nodes of this machine, of one processor each, is to be joined."""
    given = os.environ | {MARK: cluster.mark, "RAY_USAGE_STATS_ENABLED": "0"}
    held = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", NODES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=given,
    )
    assert held.stdout is not None
    found = next((line.split()[1] for line in held.stdout if line.startswith("address ")), None)
    assert found is not None, "the cluster did not start"
    yield found
    cluster.kill()  # all of it: what a node leaves behind would hold what is read here open
    held.communicate(timeout=60)


def nodes(cluster: Cluster, *, head: bool) -> list[int]:
    """The raylets."""
    found = []
    for pid in cluster.processes("raylet/raylet"):
        with contextlib.suppress(OSError):
            if (b"--head" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")) == head:
                found.append(pid)
    return found


def test_a_cluster_of_two_nodes_is_joined_and_outlives_the_job_and_a_node(
    cluster: Cluster, address: str, manifest: Path, tmp_path: Path
) -> None:
    options = ("--batch", "1", "--ray-workers", "2", "--columns", "embedding")
    cluster.run(manifest, tmp_path / "alone.csv", "--batch", "1", "--columns", "embedding", code=1)
    want = (tmp_path / "alone.csv").read_bytes()
    before = sorted(cluster.processes("raylet/raylet"))
    assert len(before) == 2

    cluster.run(manifest, tmp_path / "named.csv", *options, "--ray", address, code=1)
    assert (tmp_path / "named.csv").read_bytes() == want
    assert sorted(cluster.processes("raylet/raylet")) == before, "a job ends what is not its own"

    cluster.more = {"RAY_ADDRESS": address}
    out = tmp_path / "auto.csv"
    process = cluster.start(manifest, out, *options, "--ray", "auto")
    until(lambda: parts(out) >= 4, process)
    (lost,) = nodes(cluster, head=False)
    os.kill(lost, signal.SIGKILL)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 1, stderr
    assert "298 predictions, 2 errors" in stderr
    assert out.read_bytes() == want
    assert cluster.processes("raylet/raylet") == nodes(cluster, head=True)


def test_rows_that_failed_are_made_again_and_no_others(
    cluster: Cluster, address: str, phantom_manifest: Path, tmp_path: Path
) -> None:
    """As `run --retry-failed` does, to the bit; of a folder of Parquet too; killed half-way it goes on."""
    folder = Path(shutil.copytree(phantom_manifest.parent, tmp_path / "cases"))
    pairs = [(case.mammography, case.ultrasound) for case in read_manifest(folder / "manifest.csv").cases]
    rows: list[tuple[str, object, object]] = [(f"case-{i}", *pairs[i % len(pairs)]) for i in range(100)]
    away = {3: "a.png", 4: "b.png", 61: "c.png"}
    for at, name in away.items():
        rows[at] = (f"case-{at}", folder / name, rows[at][2])
    manifest = write_manifest(folder / "m.csv", rows)
    arrow = importlib.util.find_spec("pyarrow") is not None
    outs = [tmp_path / "alone.csv", tmp_path / "ray.csv", *([tmp_path / "ray.parquet"] if arrow else [])]
    options, on_ray = ("--batch", "4", "--columns", "embedding"), ("--ray", address)
    for out in outs:
        said = cluster.run(manifest, out, *options, *(on_ray if out.stem == "ray" else ()), code=1)
        assert "--retry-failed makes these again" in said
    for at in (3, 61):
        shutil.copy(str(pairs[at % len(pairs)][0]), folder / away[at])
    before = outs[1].read_text().splitlines()
    for out in outs:
        said = cluster.run(manifest, out, *options, "--retry-failed", *(on_ray if out.stem == "ray" else ()), code=1)
        assert "99 predictions, 1 error (97 rows there already)" in said
        assert not work(out).exists()
    assert outs[1].read_bytes() == outs[0].read_bytes()
    after = outs[1].read_text().splitlines()
    assert [at - 1 for at, (one, other) in enumerate(zip(after, before, strict=True)) if one != other] == [3, 61]

    # What `run` wrote, gone on from with --ray; and nothing of it is changed where it is not what was written.
    shutil.copy(str(pairs[4][0]), folder / away[4])
    for out in (outs[0], *outs[2:]):
        part = sorted(out.iterdir())[1] if out.is_dir() else out
        data = part.read_bytes()
        part.write_bytes(data[:-2] + b"\n\n")
        assert "that its run wrote" in cluster.run(manifest, out, *options, *on_ray, "--retry-failed", code=1)
        assert part.read_bytes() == data[:-2] + b"\n\n"
        part.write_bytes(data)
        assert not work(out).exists()
        assert "(99 rows there already)" in cluster.run(manifest, out, *options, *on_ray, "--retry-failed")
    assert "(99 rows there already)" in cluster.run(manifest, outs[1], *options, "--retry-failed")
    assert outs[0].read_bytes() == outs[1].read_bytes()
