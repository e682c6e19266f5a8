from __future__ import annotations

import shutil
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpmmu_rt.errors import UsageError

from ._report import bars, note, print_json, table

if TYPE_CHECKING:
    from mpmmu_rt.images import Preprocessing
    from mpmmu_rt.progress import Progress


class Preset(StrEnum):
    reference = "reference"
    tiny = "tiny"


class Arch(StrEnum):
    resnet18 = "resnet18"
    resnet34 = "resnet34"
    resnet50 = "resnet50"


class Attention(StrEnum):
    paper = "paper"
    none = "none"
    eca = "eca"
    cbam = "cbam"


def train(
    manifest: Annotated[
        Path | None, typer.Argument(help="CSV with case_id,mammography,ultrasound,label and maybe patient.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write.")] = Path("checkpoint"),
    preset: Annotated[
        Preset,
        typer.Option("--preset", help="reference: ResNet-50 at 224; tiny: for first steps, minutes on two cores."),
    ] = Preset.reference,
    phantom: Annotated[
        int | None, typer.Option("--phantom", min=60, help="Train on so many generated phantoms instead of a manifest.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of split, weights, augmentation and head.")] = 0,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="At most so many [default: the preset's].")
    ] = None,
    arch: Annotated[Arch | None, typer.Option("--arch", help="Of both encoders [default: the preset's].")] = None,
    size: Annotated[
        int | None,
        typer.Option("--size", min=32, max=1024, help="Side of the square they see [default: the preset's]."),
    ] = None,
    attention: Annotated[
        Attention, typer.Option("--attention", help="paper: CBAM for mammography, ECA for ultrasound; else of both.")
    ] = Attention.paper,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N; bfloat16 on a GPU.")] = "cpu",
    preview: Annotated[
        Path | None, typer.Option("--preview", help="Write a picture of augmented images, and train nothing.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON.")] = False,
) -> None:
    """Train both encoders and the stacking head; the same command goes on where an interrupted one stopped."""
    from mpmmu_rt._optional import require

    require("torch", "training")
    from dataclasses import replace

    from mpmmu_rt import image_warnings, split_record
    from mpmmu_rt.files import check_replaceable
    from mpmmu_rt.machine import package_versions
    from mpmmu_rt.model import checkpoint, learning_curves
    from mpmmu_rt.model.config import PRESETS
    from mpmmu_rt.model.preview import write_preview
    from mpmmu_rt.model.split import split_patients
    from mpmmu_rt.model.stage_one import known_device
    from mpmmu_rt.model.training import TRAINING_PRESETS
    from mpmmu_rt.model.training import train as train_model

    require_one(manifest, phantom, "train")
    check_replaceable(output, marker=checkpoint.CONFIG, overwrite=overwrite)
    config, on = configured(PRESETS[preset.value](), arch, size, attention), known_device(device)
    settings = replace(TRAINING_PRESETS[preset.value], seed=seed)
    if epochs is not None:
        settings = replace(settings, epochs=epochs)
    if preview is not None:
        with bars() as progress:
            data = read_data(manifest, phantom, seed, config.preprocessing, progress)
        write_preview(data, settings.augmentation, preview, seed=seed)
        note(f"wrote {preview}: of each modality some images, and what augmentation makes of them")
        return
    work_dir = output.with_name(output.name + ".training")
    if work_dir.exists():
        note(f"going on with the training in {work_dir}")
    with bars() as progress:
        data = read_data(manifest, phantom, seed, config.preprocessing, progress)
        model = train_model(data, config, settings, work_dir=work_dir, device=on, progress=progress)
    warned = image_warnings.summary(data.warnings)
    card = {
        "trained_on": data.source,
        split_record.KEY: split_record.record(data.groups, split_patients(data.label, data.groups, seed=seed).parts()),
        "metrics": model.metrics,
        "image_warnings": warned,
        "versions": package_versions(("mpmmu-rt", "torch", "scikit-learn", "numpy")),
        "seed": seed,
    }
    trained = checkpoint.Checkpoint(config, model.encoders, model.head, model.threshold, card)
    checkpoint.save(trained, output, overwrite=overwrite)
    beside = learning_curves.write(model.history, output)
    shutil.rmtree(work_dir)
    if as_json:
        print_json(model.metrics | {"image_warnings": warned})
    else:
        typer.echo(_describe(model.metrics))
    for text in image_warnings.lines(warned):
        note(text)
    note(f"wrote {output}, in it how it learnt: {', '.join(beside)}")


def configured(config: Any, arch: Arch | None, size: int | None, attention: Attention) -> Any:
    """A preset's configuration with what the command line changes of it."""
    from dataclasses import replace
    from typing import cast

    changes = {"arch": arch and arch.value, "attention": None if attention is Attention.paper else attention.value}
    given = {name: cast(Any, value) for name, value in changes.items() if value}
    preprocessing = replace(config.preprocessing, size=size) if size else config.preprocessing
    mammography, ultrasound = (replace(one, **given) for one in (config.mammography, config.ultrasound))
    return replace(config, mammography=mammography, ultrasound=ultrasound, preprocessing=preprocessing)


def require_one(manifest: Path | None, phantom: int | None, command: str) -> None:
    if (manifest is None) == (phantom is None):
        raise UsageError(
            f"got {'both a MANIFEST and --phantom' if manifest else 'neither a MANIFEST nor --phantom'}, expected one",
            hint=f"mpmmu-rt {command} MANIFEST, or mpmmu-rt {command} --phantom 600 --preset tiny",
        )


def read_data(
    manifest: Path | None, phantom: int | None, seed: int, preprocessing: Preprocessing, progress: Progress
) -> Any:
    """What is trained on: the cases of the manifest, else so many phantoms."""
    from mpmmu_rt.cases import read_manifest
    from mpmmu_rt.model.data import data_from_manifest, data_from_phantoms

    if manifest is not None:
        return data_from_manifest(read_manifest(manifest), preprocessing, progress)
    return data_from_phantoms(phantom or 0, seed, preprocessing)


def _describe(metrics: dict[str, Any]) -> str:
    parts = [
        [name, str(part["patients"]), str(part["malignant_patients"]), str(part["rows"])]
        for name, part in metrics["parts"].items()
    ]
    rows = []
    for name, found in metrics["test"].items():
        auc = found["auc"]
        rows.append(
            [
                name,
                "-" if auc["value"] is None else f"{auc['value']:.3f}",
                "-" if auc["low"] is None else f"{auc['low']:.3f} to {auc['high']:.3f}",
                *("-" if found[key] is None else f"{found[key]:.3f}" for key in ("sensitivity", "specificity")),
            ]
        )
    tested = table(["test", "AUC", "95 % interval", "sensitivity", "specificity"], rows)
    return "\n".join([table(["part", "patients", "malignant", "rows"], parts), "", tested, f"({metrics['source']})"])
