"""Faults that were put into bundles, and which check catches each.

    python -m benchmarks.injected_faults BUNDLE [--other BUNDLE] [--bits 8] [--out FOLDER]

BUNDLE is changed as a careless or malicious builder would change it: a graph, the weights or the golden vectors are
written anew, and the bundle is sealed again, so that every digest holds. Bits are flipped without sealing. `--other` is
a bundle of the same shapes of another training, whose golden vectors are the stale ones; without it the encoders'
answers of shuffled cases are. Writes `injected_faults.md`; exit code 1 if anything was not caught.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks import report
from mpmmu_rt import verified
from mpmmu_rt.bundle import Bundle, own_graph, seal
from mpmmu_rt.checks import Check
from mpmmu_rt.engines import known_engine
from mpmmu_rt.errors import MpmmuError
from mpmmu_rt.export.precision import to_half
from mpmmu_rt.files import atomic_file
from mpmmu_rt.predictor import load
from mpmmu_rt.spec import MODALITIES, Array, Target
from mpmmu_rt.verify import stage_at_fault, verify

FIRST = "onnxruntime:fp32"
MANY = 8  # more cases than the golden vectors have
Edit = Callable[[Path], object]
Change = Callable[[onnx.ModelProto], object]


@dataclass(frozen=True)
class Fault:
    """kind: a row of the issue. says: what was done. target: on which it shows. edit: does it; reseal: whether the
    digests are made to hold again."""

    kind: str
    says: str
    edit: Edit
    target: str = FIRST
    reseal: bool = True


@dataclass(frozen=True)
class Caught:
    """by: the checks that failed, or the error; empty if nothing noticed. stage: as `verify` names it."""

    fault: Fault
    by: tuple[str, ...]
    stage: str = ""

    def row(self) -> list[str]:
        shown = "; ".join(self.by[:3]) + (f"; {len(self.by) - 3} more" if len(self.by) > 3 else "")
        return [
            self.fault.kind,
            self.fault.says,
            self.fault.target,
            shown or "**NOT CAUGHT**",
            self.stage or "none alone",
        ]


def graph(name: str, change: Change) -> Edit:
    """Change the graph `onnx/<name>.onnx`; its weights stay where they are."""

    def edit(folder: Path) -> None:
        path = folder / f"onnx/{name}.onnx"
        model = onnx.load(path, load_external_data=False)
        change(model)
        onnx.save(model, path)

    return edit


def before(output: str, *nodes: onnx.NodeProto, constants: Mapping[str, Any]) -> Change:
    """Put `nodes` between what is called `raw` from now on and `output`."""

    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["raw" if name == output else name for name in node.output]
            node.input[:] = ["raw" if name == output else name for name in node.input]
        for name, value in constants.items():
            model.graph.initializer.append(numpy_helper.from_array(value, name))
        model.graph.node.extend(nodes)

    return change


def regrouped(output: str, above: int, *taken: onnx.NodeProto) -> Change:
    """Other rows of `output` in batches of more than `above`. taken: makes `f_taken` of `f_rows`."""
    node = helper.make_node
    return before(
        output,
        node("Shape", ["raw"], ["f_shape"]),
        node("Gather", ["f_shape", "f_zero"], ["f_count"]),
        node("Range", ["f_zero", "f_count", "f_one"], ["f_rows"]),
        *taken,
        node("Greater", ["f_count", "f_above"], ["f_large"]),
        node("Where", ["f_large", "f_taken", "f_rows"], ["f_order"]),
        node("Gather", ["raw", "f_order"], [output], axis=0),
        constants={name: np.array(value) for name, value in (("f_zero", 0), ("f_one", 1), ("f_above", above))},
    )


def mixed(output: str, above: int) -> Change:
    """The rows of `output` in reverse, in batches of more than `above`: as engines did (NVIDIA/TensorRT#4853)."""
    last = helper.make_node("Sub", ["f_count", "f_one"], ["f_last"])
    return regrouped(output, above, last, helper.make_node("Sub", ["f_last", "f_rows"], ["f_taken"]))


def first_for_all(output: str) -> Change:
    """The first row for every row of a batch of more than `MANY`."""
    return regrouped(output, MANY, helper.make_node("Mul", ["f_rows", "f_zero"], ["f_taken"]))


def times(output: str, factor: float, above: int = 0) -> Change:
    """`output` times `factor`, in batches of more than `above`: 0 is zeros without an exception."""
    node = helper.make_node
    return before(
        output,
        node("Shape", ["raw"], ["f_shape"]),
        node("Gather", ["f_shape", "f_zero"], ["f_count"]),
        node("Greater", ["f_count", "f_above"], ["f_large"]),
        node("Where", ["f_large", "f_factor", "f_unit"], ["f_by"]),
        node("Mul", ["raw", "f_by"], [output]),
        constants={
            "f_zero": np.array(0),
            "f_above": np.array(above),
            "f_factor": np.float32(factor),
            "f_unit": np.float32(1),
        },
    )


def exchanged(first: str, second: str) -> Edit:
    """Two files of the bundle, each in the place of the other."""

    def edit(folder: Path) -> None:
        paths = folder / first, folder / second
        data = [path.read_bytes() for path in paths]
        for path, content in zip(paths, reversed(data), strict=True):
            path.write_bytes(content)

    return edit


def inputs_exchanged(model: onnx.ModelProto) -> None:
    """The attention pool takes each modality's feature map for the other's."""
    first, second = (f"{modality}_feature_map" for modality in MODALITIES)
    names = {first: second, second: first}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def halves_exchanged(model: onnx.ModelProto) -> None:
    """The embedding's two parts in the wrong order: each of the same width."""
    (last,) = [node for node in model.graph.node if "embedding" in node.output]
    if last.op_type != "Concat":
        raise ValueError(f"the embedding is made by {last.op_type}, expected Concat")
    last.input[:] = list(last.input)[::-1]


def half(name: str, precision: Any) -> Edit:
    """The graph computes in `precision`, and its inputs and outputs are float32 as before."""

    def edit(folder: Path) -> None:
        path = folder / f"onnx/{name}.onnx"
        onnx.save(to_half(onnx.load(path), precision), path)

    return edit


def float_layers(model: onnx.ModelProto) -> None:
    """The last two quantized convolutions get their activations as they were before they were quantized."""
    made = {output: node for node in model.graph.node for output in node.output}
    codes = [node for node in model.graph.node if node.op_type == "Conv" and node.input[0] in made]
    codes = [node for node in codes if made[node.input[0]].op_type == "DequantizeLinear"]
    for node in codes[-2:]:
        node.input[0] = made[made[node.input[0]].input[0]].input[0]


def golden(change: Callable[[dict[str, Array]], object]) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / "golden/golden.npz"
        with np.load(path) as stored:
            arrays: dict[str, Any] = {name: stored[name] for name in stored.files}
        change(arrays)
        np.savez(path, **arrays)

    return edit


def shifted(*names: str) -> Callable[[dict[str, Array]], object]:
    """The answers `names` belong to other cases: a file that was not made anew when the cases were."""

    def change(arrays: dict[str, Array]) -> None:
        for name in names:
            arrays[name] = np.roll(arrays[name], 1, axis=0)

    return change


def of_other(other: Path) -> Edit:
    return lambda folder: shutil.copy(other / "golden/golden.npz", folder / "golden/golden.npz")


def flipped(name: str, position: int) -> Edit:
    """Bit `position` of the file `name`."""

    def edit(folder: Path) -> None:
        path = folder / name
        data = bytearray(path.read_bytes())
        data[position // 8] ^= 1 << position % 8
        path.write_bytes(data)

    return edit


def faults(other: Path | None, targets: tuple[str, ...]) -> Iterator[Fault]:
    """Every fault but flipped bits, for those of `targets` that can run here."""
    stages = [(f"{modality}_onnxruntime", "feature_map", f"the {modality} encoder") for modality in MODALITIES]
    stages += [
        ("attention_pool_onnxruntime", "embedding", "the attention pool"),
        ("head_onnxruntime", "probability", "the head"),
    ]
    for name, output, where in stages:
        yield Fault("rows mixed", f"{where}: reversed in every batch > 1", graph(name, mixed(output, 1)))
        yield Fault("rows mixed", f"{where}: reversed in batches > {MANY}", graph(name, mixed(output, MANY)))
        yield Fault("rows mixed", f"{where}: the first row for all, > {MANY}", graph(name, first_for_all(output)))
        yield Fault("zeros", f"{where}: zeros", graph(name, times(output, 0)))
        yield Fault("zeros", f"{where}: zeros in batches > {MANY}", graph(name, times(output, 0, MANY)))
        yield Fault("other numbers", f"{where}: NaN in batches > {MANY}", graph(name, times(output, np.nan, MANY)))
        yield Fault("other numbers", f"{where}: 0.1 % too much", graph(name, times(output, 1.001)))
    encoders = [f"onnx/{modality}_onnxruntime.onnx" for modality in MODALITIES]
    yield Fault("swapped modality", "each encoder in the other's place", exchanged(*encoders))
    pool = "attention_pool_onnxruntime"
    yield Fault("swapped modality", "the pool takes each feature map for the other", graph(pool, inputs_exchanged))
    yield Fault("swapped modality", "the embedding's halves exchanged", graph(pool, halves_exchanged))
    for modality, precision in ((modality, precision) for modality in MODALITIES for precision in ("fp16", "bf16")):
        name = f"{modality}_onnxruntime"
        if precision == "fp16":
            yield Fault("other precision", f"{modality}: FP16 that claims FP32", half(name, precision))
        elif "openvino:fp32" in targets:
            rounded = half(own_graph(modality, "openvino"), precision)
            yield Fault("other precision", f"{modality}: BF16 that claims FP32", rounded, "openvino:fp32")
    if "openvino:int8" in targets:
        int8 = "openvino:int8"
        for modality in MODALITIES:
            name = f"{modality}.int8"
            yield Fault("other precision", f"{modality}: two float layers in INT8", graph(name, float_layers), int8)
            copy = exchanged(f"onnx/{own_graph(modality, 'openvino')}.onnx", f"onnx/{name}.onnx")
            yield Fault("other precision", f"{modality}: the float encoder as INT8", copy, int8)
            yield Fault("other precision", f"{modality}: INT8 that claims FP32", copy, "openvino:fp32")
    names = [*(f"{modality}.feature_map" for modality in MODALITIES), "embedding", "probability"]
    for name in names:
        yield Fault("stale golden file", f"`{name}` of other cases", golden(shifted(name)))
    yield Fault("stale golden file", "all answers of other cases", golden(shifted(*names)))
    pixels = [f"{modality}.pixels" for modality in MODALITIES]
    yield Fault("stale golden file", "other images than those that were answered", golden(shifted(*pixels)))
    yield from altered()
    if other:
        yield Fault("stale golden file", "that of another training", of_other(other))


def altered() -> Iterator[Fault]:
    """Files that are not what was sealed, by more than a bit; not sealed again."""

    def cut(folder: Path) -> None:
        data = (folder / "onnx/weights.bin").read_bytes()
        (folder / "onnx/weights.bin").write_bytes(data[: len(data) // 2])

    def shortened(folder: Path) -> None:
        data = (folder / "bundle.json").read_bytes()
        (folder / "bundle.json").write_bytes(data[:-9])

    def planted(name: str) -> Edit:
        def edit(folder: Path) -> None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"mine")

        return edit

    def linked(folder: Path) -> None:
        path = folder / "onnx/weights.bin"
        path.rename(folder.parent / "weights.bin")
        path.symlink_to(folder.parent / "weights.bin")

    for says, edit in (
        ("weights.bin cut in half", cut),
        ("bundle.json without its end", shortened),
        ("head.onnx missing", lambda folder: (folder / "onnx/head.onnx").unlink()),
        ("bundle.json missing", lambda folder: (folder / "bundle.json").unlink()),
        ("a file beside the graphs that is not listed", planted("onnx/notes.txt")),
        ("an engine that is not listed", planted("engines/tensorrt-fp16/model.engine")),
        ("weights.bin a link to elsewhere", linked),
    ):
        yield Fault("altered file", says, edit, reseal=False)


def bits(folder: Path, count: int, seed: int = 0) -> Iterator[Fault]:
    """`count` random bits of every file of the bundle, one at a time."""
    random = np.random.default_rng(seed)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        for position in random.integers(0, 8 * path.stat().st_size, count).tolist():
            yield Fault("one bit flipped", f"bit {position} of {name}", flipped(name, position), reseal=False)


def catch(fault: Fault, source: Path, place: Path) -> Caught:
    """Put `fault` into a copy of the bundle `source` in the folder `place`, and verify that."""
    folder = place / "faulty.bundle"
    shutil.copytree(source, folder, copy_function=shutil.copy)
    try:
        fault.edit(folder)
        if fault.reseal:
            seal(folder, json.loads((folder / "bundle.json").read_text(encoding="utf-8")))
        try:
            with load(folder, fault.target, unproven=True) as predictor:
                checks = verify(predictor)
        except MpmmuError as error:
            return Caught(fault, (f"{type(error).__name__}: {str(error).replace(f'{folder}', '…')}",))
        failed: list[Check] = [check for check in checks if not check.passed]
        return Caught(fault, tuple(check.name for check in failed), stage_at_fault(checks) if failed else "")
    finally:
        shutil.rmtree(folder)


def stale_verdict(source: Path, place: Path) -> Caught:
    """A verdict beside the bundle that was there before: not a file of the bundle, and not believed."""
    fault = Fault("stale verdict", "the verdict of an earlier bundle of that name", lambda folder: None)
    folder = Path(shutil.copytree(source, place / "faulty.bundle"))
    try:
        target = Target.parse(FIRST)
        verified.keep(Bundle.open(folder), target, [Check("x", 0.0, 0.0).to_json()])
        seal(folder, json.loads((folder / "bundle.json").read_text(encoding="utf-8")) | {"threshold": 0.123})
        verdict = verified.look_up(Bundle.open(folder), target)
        return Caught(fault, () if verdict.passed else (f"`run --require-verified`: {verdict.why.split(' is ')[-1]}",))
    finally:
        shutil.rmtree(folder)


def runnable(bundle: Bundle) -> tuple[str, ...]:
    targets = [Target.parse(target) for target in bundle.targets]
    return tuple(str(target) for target in targets if known_engine(target).problem(target.precision) is None)


def write(folder: Path, source: Path, rows: list[Caught], flips: list[Caught]) -> None:
    missed = [caught for caught in (*rows, *flips) if not caught.by]
    by_file: dict[str, list[Caught]] = {}
    for caught in flips:
        by_file.setdefault(caught.fault.says.partition(" of ")[2], []).append(caught)
    bundle = Bundle.open(source)
    on = bundle.entry["card"].get("trained_on", "what it does not say")
    trained = f"trained on {on}" if bundle.trained else "that is UNTRAINED"
    text = [
        report.heading("Injected faults", ("onnx",)),
        f"Bundle of a model {trained}, {bundle.preprocessing.size} pixels a side, targets {', '.join(bundle.targets)}. "
        f"Each fault was put into a copy, which was sealed again so that "
        "every digest holds (but for flipped bits), and verified. "
        f"{len(rows) + len(flips)} faults, {len(rows) + len(flips) - len(missed)} caught.\n",
        report.table("fault | what was done | target | caught by | stage named", (caught.row() for caught in rows)),
        "## One bit flipped, not sealed again\n",
        report.table(
            "file | bits | caught | by",
            (
                [name, len(found), sum(bool(caught.by) for caught in found), found[0].by[0] if found[0].by else ""]
                for name, found in by_file.items()
            ),
        ),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / "injected_faults.md") as partial:
        partial.write_text("\n".join(text), encoding="utf-8")


def main(source: Path, injected: Iterable[Fault], count: int, out: Path) -> int:
    """Try every fault and `count` bits of every file; returns the exit code."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        rows = [catch(fault, source, place) for fault in injected]
        rows.append(stale_verdict(source, place))
        flips = [catch(fault, source, place) for fault in bits(source, count)]
    write(out, source, rows, flips)
    missed = [caught for caught in (*rows, *flips) if not caught.by]
    for caught in missed:
        print(f"not caught: {caught.fault.kind}, {caught.fault.says} on {caught.fault.target}", file=sys.stderr)
    print(f"{len(rows) + len(flips)} faults, {len(missed)} not caught; wrote {out / 'injected_faults.md'}")
    return 1 if missed else 0


if __name__ == "__main__":
    parser = report.parser(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--other", type=Path, help="a bundle of the same shapes of another training")
    parser.add_argument("--bits", type=int, default=8, help="random bits of each file")
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    given = parser.parse_args()
    injected = faults(given.other, runnable(Bundle.open(given.bundle)))
    sys.exit(main(given.bundle, injected, given.bits, given.out))
