from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._ablate_text import markdown, text
from ._report import JsonTo, bars, check_json, going_on, note, put_json, require_earlier, say
from .train import Attention, Labelled, MostEpochs, OtherArch, OtherSize, Preset, configured, note_split, require_one

_WRITTEN = {"ablation.json": b'{\n  "schema": "mpmmu-ablation/', "ablation.md": b"# Ablation: "}  # and how it begins


def ablate(
    manifest: Labelled = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("ablation"),
    phantom: Annotated[
        int | None, typer.Option("--phantom", min=60, help="Compare on so many generated phantoms instead.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=100, help="How many splits, from seed 0.")] = 3,
    preset: Annotated[
        Preset, typer.Option("--preset", help="reference: ResNet-50 at 224, days on a CPU; tiny: minutes per seed.")
    ] = Preset.tiny,
    epochs: MostEpochs = None,
    arch: OtherArch = None,
    size: OtherSize = None,
    device: Annotated[
        str, typer.Option("--device", help="cpu, cuda or cuda:N: where the encoders are trained.")
    ] = "cpu",
    json_to: JsonTo = None,
) -> None:
    """Compare what each part of the system adds: attention, fusion, each learner; the same command goes on where an
    interrupted one stopped, and makes only what is not there for more seeds."""
    from mpmmu_rt._optional import require

    require("torch", "training")
    from dataclasses import replace

    from mpmmu_rt import image_warnings
    from mpmmu_rt.cases import read_manifest
    from mpmmu_rt.files import atomic_file, rounded, write_json
    from mpmmu_rt.machine import describe, now, package_versions
    from mpmmu_rt.model.ablation import Study
    from mpmmu_rt.model.ablation import ablate as run
    from mpmmu_rt.model.config import PRESETS
    from mpmmu_rt.model.data import read_data
    from mpmmu_rt.model.stage_one import TRAINING_PRESETS, known_device
    from mpmmu_rt.model.training import make_folder
    from mpmmu_rt.places import claimed, require_no_bundle

    require_one(manifest, phantom, "ablate")
    cases = read_manifest(manifest) if manifest is not None else None
    note_split(cases)
    check_json(json_to, manifest, output)
    require_no_bundle(output / "ablation.json")  # the folder is not replaced: what is there stays
    for name, begins in _WRITTEN.items():
        require_earlier(output / name, begins, "ablation")
    config = configured(PRESETS[preset.value](), arch, size, Attention.paper)
    training = TRAINING_PRESETS[preset.value]
    if epochs is not None:
        training = replace(training, epochs=epochs)
    on = known_device(device)

    def kept() -> str:
        return f"the runs that were finished are kept in {output / 'runs'}"

    make_folder(output.parent)
    with claimed(output), going_on(output, kept):
        with bars() as progress:
            data = read_data(cases, phantom, 0, config.preprocessing, progress)
            study = Study(data, config, training, tuple(range(seeds)), output / "runs", on)
            entry = run(study, progress=progress, say=note)
        machine = describe()
        machine["packages"] |= package_versions(("torch", "scikit-learn", "scipy"))
        entry = rounded(entry | {"machine": machine, "measured_at": now()})
        write_json(output / "ablation.json", entry)
        with atomic_file(output / "ablation.md") as partial:
            partial.write_text(markdown(entry), encoding="utf-8", errors="backslashreplace")
    for line in image_warnings.lines(image_warnings.summary(data.warnings)):
        note(line)
    if not put_json(json_to, entry):
        say(text(entry))
    note(
        f"wrote {output / 'ablation.md'} and {output / 'ablation.json'}; {output / 'runs'} holds what more seeds reuse"
    )
