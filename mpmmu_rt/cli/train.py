from __future__ import annotations

import shutil
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpmmu_rt.errors import UsageError

from ._metrics import TOO_FEW, tested, with_weakness
from ._report import (
    JsonTo,
    bars,
    check_json,
    check_output,
    command,
    fitted,
    going_on,
    next_command,
    note,
    put_json,
    require_earlier,
    say,
    wrapped,
)

if TYPE_CHECKING:
    from mpmmu_rt.cases import Manifest


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


# Of `ablate`, too.
Labelled = Annotated[
    Path | None, typer.Argument(help="CSV with case_id,mammography,ultrasound,label and maybe patient.")
]
MostEpochs = Annotated[int | None, typer.Option("--epochs", min=1, help="At most so many [default: the preset's].")]
OtherArch = Annotated[Arch | None, typer.Option("--arch", help="Of both encoders [default: the preset's].")]
OtherSize = Annotated[
    int | None, typer.Option("--size", min=32, max=1024, help="Side of the square they see [default: the preset's].")
]


def train(
    manifest: Labelled = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write.")] = Path("checkpoint"),
    preset: Annotated[
        Preset,
        typer.Option("--preset", help="reference: ResNet-50 at 224; tiny: for first steps, minutes on two cores."),
    ] = Preset.reference,
    phantom: Annotated[
        int | None, typer.Option("--phantom", min=60, help="Train on so many generated phantoms instead of a manifest.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of split, weights, augmentation and head.")] = 0,
    epochs: MostEpochs = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="ResNet weights that both encoders start from: .safetensors or .pth."),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option("--folds", min=2, max=20, help="Also cross-validate in so many folds: each patient tested once."),
    ] = None,
    arch: OtherArch = None,
    size: OtherSize = None,
    attention: Annotated[
        Attention, typer.Option("--attention", help="paper: CBAM for mammography, ECA for ultrasound; else of both.")
    ] = Attention.paper,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N; bfloat16 on a GPU.")] = "cpu",
    single_modality: Annotated[
        bool,
        typer.Option("--single-modality", help="Keep heads for one image alone, too: for `run --allow-single`."),
    ] = False,
    preview: Annotated[
        Path | None, typer.Option("--preview", help="Write a picture of augmented images, and train nothing.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")] = False,
    json_to: JsonTo = None,
) -> None:
    """Train both encoders and the stacking head; the same command goes on where an interrupted one stopped."""
    from mpmmu_rt._optional import require

    require("torch", "training")
    from dataclasses import replace

    from mpmmu_rt import image_warnings, split_record
    from mpmmu_rt.cases import read_manifest
    from mpmmu_rt.files import rounded
    from mpmmu_rt.folders import check_replaceable, require_own
    from mpmmu_rt.machine import now, package_versions
    from mpmmu_rt.model import checkpoint, learning_curves
    from mpmmu_rt.model.config import PRESETS
    from mpmmu_rt.model.cross_validation import cross_validate, fold_splits
    from mpmmu_rt.model.data import read_data
    from mpmmu_rt.model.preview import write_preview
    from mpmmu_rt.model.stage_one import known_device
    from mpmmu_rt.model.training import STATE, TRAINING_PRESETS, disk_bytes
    from mpmmu_rt.model.training import train as train_model
    from mpmmu_rt.model.weights import Weights
    from mpmmu_rt.places import claimed, require_room

    require_one(manifest, phantom, "train")
    cases = read_manifest(manifest) if manifest is not None else None  # once: what is warned of is what is learnt from
    note_split(cases)
    check_json(json_to, manifest, output)
    if preview is None:
        check_replaceable(output, checkpoint.KIND, overwrite=overwrite)
    else:  # which writes no checkpoint
        _check_preview(preview, json_to, manifest, weights, cases)
    started = now()
    config, on = configured(PRESETS[preset.value](), arch, size, attention), known_device(device)
    settings = replace(TRAINING_PRESETS[preset.value], seed=seed)
    if epochs is not None:
        settings = replace(settings, epochs=epochs)
    if preview is not None:
        with bars() as progress:
            data = read_data(cases, phantom, seed, config.preprocessing, progress)
        write_preview(data, settings.augmentation, preview, seed=seed)
        note(f"wrote {preview}: of each modality some images, and what augmentation makes of them")
        return
    work_dir = output.with_name(output.name + ".training")
    whole = False

    def kept() -> str:
        if whole:
            return f"{output} is written and whole, but for how it learnt"
        epochs = "the epochs that were finished are" if any(work_dir.glob("*.safetensors")) else "nothing is"
        return f"{epochs} kept in {work_dir}"

    # A checkpoint that is whole is made again with --overwrite alone.
    with claimed(output), going_on(output, kept, "--overwrite", begun=lambda: whole), bars() as progress:
        require_room(output, disk_bytes(config), "this training")
        require_own(work_dir, STATE)  # it is removed in the end
        if work_dir.exists():
            note(f"going on with the training in {work_dir}")
        initial = Weights.of(weights)  # once: the folds, hours later, start from what the model did
        data = read_data(cases, phantom, seed, config.preprocessing, progress)
        if folds:
            fold_splits(data.label, data.groups, folds, seed=seed)  # whether there are patients enough
        model = train_model(data, config, settings, work_dir=work_dir, weights=initial, device=on, progress=progress)
        metrics = dict(model.metrics)
        if folds:
            metrics["cross_validation"] = cross_validate(
                data, config, settings, folds, work_dir=work_dir, weights=initial, device=on, progress=progress
            )
        metrics = rounded(with_weakness(metrics))
        warned = image_warnings.summary(data.warnings)
        card = {
            "trained_on": data.source,
            split_record.KEY: model.patients,
            "metrics": metrics,
            "image_warnings": warned,
            "training": model.how,
            "command": command(),
            "date": started,
            "versions": package_versions(("mpmmu-rt", "torch", "scikit-learn", "numpy")),
            "seed": seed,
        }
        trained = checkpoint.Checkpoint(
            config,
            model.encoders,
            model.head,
            model.threshold,
            card,
            known_images=model.known_images,
            embedding_mean=model.embedding_mean,
            modality_check=model.modality_check,
            single_heads=model.single_heads if single_modality else {},
        )
        checkpoint.save(trained, output, overwrite=overwrite)
        whole = True
        beside, failed = learning_curves.write(model.history, output)
        shutil.rmtree(work_dir)
    if not put_json(json_to, metrics | {"image_warnings": warned}):
        say(_describe(metrics))
    for text in image_warnings.lines(warned):
        note(text)
    note(f"wrote {output}, in it how it learnt: {', '.join(beside)}")
    for text in failed:
        note(f"note: {text}")
    next_command("export", output, "-o", f"{output.resolve().name}.bundle")
    if metrics["weakness"] and not folds:
        number = _folds(metrics["parts"])
        again = command(f"--folds={number}", "--overwrite")
        note(f"note: {TOO_FEW}: the same command with --folds {number} tests every patient once: `{again}`")


def _folds(parts: dict[str, Any]) -> int:
    """Five, or as many as there are patients of the smaller class."""
    malignant: int = sum(part["malignant_patients"] for part in parts.values())
    patients: int = sum(part["patients"] for part in parts.values())
    return min(5, malignant, patients - malignant)


def _check_preview(
    preview: Path, json_to: str | None, manifest: Path | None, weights: Path | None, cases: Manifest | None
) -> None:
    """Before images are read: raise `UsageError` or `OutputError`."""
    from mpmmu_rt.places import require_other
    from mpmmu_rt.spec import MODALITIES

    if json_to:
        raise UsageError(
            "--json is given with --preview, which trains nothing and has no result, expected one of them",
            hint="leave --preview out to train, or --json",
        )
    check_output(preview, manifest, weights, stdout=False)
    require_earlier(preview, b"\x89PNG\r\n\x1a\n", "PNG picture")
    require_other(preview, (one.image(name) for one in (cases.cases if cases else ()) for name in MODALITIES))


def configured(config: Any, arch: Arch | None, size: int | None, attention: Attention) -> Any:
    """A preset's configuration with what the command line changes of it."""
    from dataclasses import replace
    from typing import cast

    changes = {"arch": arch and arch.value, "attention": None if attention is Attention.paper else attention.value}
    given = {name: cast(Any, value) for name, value in changes.items() if value}
    preprocessing = replace(config.preprocessing, size=size) if size else config.preprocessing
    mammography, ultrasound = (replace(one, **given) for one in (config.mammography, config.ultrasound))
    return replace(config, mammography=mammography, ultrasound=ultrasound, preprocessing=preprocessing)


def note_split(cases: Manifest | None) -> None:
    """Whoever says which cases are for testing must hear that a training doesn't keep to it."""
    from mpmmu_rt.evaluation.parts import COLUMN

    if cases is not None and any(cases.others.get(COLUMN, ())):
        note(
            f"warning: the column `{COLUMN}` of {cases.path} is not read: patients are split by the seed, 7 : 2 : 1, "
            "also those that it calls test; leave these out of the manifest if they are to judge the model"
        )


def require_one(manifest: Path | None, phantom: int | None, command: str) -> None:
    if (manifest is None) == (phantom is None):
        raise UsageError(
            f"got {'both a MANIFEST and --phantom' if manifest else 'neither a MANIFEST nor --phantom'}, expected one",
            hint=f"mpmmu-rt {command} MANIFEST, or mpmmu-rt {command} --phantom 600 --preset tiny",
        )


def _describe(metrics: dict[str, Any]) -> str:
    parts = [
        [name, str(part["patients"]), str(part["malignant_patients"]), str(part["rows"])]
        for name, part in metrics["parts"].items()
    ]
    counted = fitted(["part", "patients", "malignant", "rows"], parts)
    return "\n".join([counted, "", tested(metrics), wrapped(f"({metrics['source']})")])
