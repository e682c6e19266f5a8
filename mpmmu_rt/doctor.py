"""Which targets work on this machine, which do not, and why."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from .checks import figure
from .engines import engines
from .engines.shared.blob_cache import VARIABLE, BlobCache, CacheWarning
from .errors import MissingPackage
from .facts import AS_PROVEN, FASTER_HEAD, KNOWN_BAD, SATURATES, TOLERANCES, VNNI, X86, Fact
from .machine import describe, package_versions
from .spec import Target


@dataclass(frozen=True)
class Finding:
    """A target or an ability: usable or not; `detail` says in which version, or why not; `hint` what to do."""

    name: str
    usable: bool
    detail: str
    hint: str = ""


@dataclass(frozen=True)
class Advisory:
    """What is known of something that is used here; `found` and `source`: when and where (`mpmmu_rt.facts`)."""

    about: str
    says: str
    found: str
    source: str


def examine() -> tuple[list[Finding], list[Finding]]:
    """(targets, abilities) of this environment."""
    targets = []
    for name, engine in engines().items():
        for precision in engine.precisions:
            target = str(Target(name, precision))
            if problem := engine.problem(precision):
                targets.append(Finding(target, False, str(problem), problem.hint))
            else:
                targets.append(Finding(target, True, f"{name} {engine.version()}"))
    return targets, [*_image_formats(), _export(), _cache()]


def advise(targets: list[Finding]) -> list[Advisory]:
    """What is known of the versions and the processor that are here, and of the targets that work."""
    usable = [Target.parse(finding.name) for finding in targets if finding.usable]
    advisories = [
        _advisory(f"{name} {version}", fact, f"refused: {fact.says}")
        for name, releases in KNOWN_BAD.items()
        for version, fact in releases.items()
        if version in package_versions((name, f"{name}-gpu")).values()
    ]
    for engine in dict.fromkeys(target.engine for target in usable):
        if engine in FASTER_HEAD:
            faster, fact = FASTER_HEAD[engine]
            advisories.append(_advisory(engine, fact, f"the stacking head runs on {faster}: {fact.says}"))
    for target in usable:
        held = TOLERANCES[target.precision]
        limits = f"held to {figure(held.relative)} of the embedding and {figure(held.probability)} in probability"
        advisories.append(_advisory(str(target), held.fact, f"{limits}: {held.fact.says}"))
    if any(target.in_8_bits for target in usable):
        advisories.append(_advisory("int8", AS_PROVEN, AS_PROVEN.says))
        features = set(describe()["cpu_features"])  # unknown, and empty, on processors of other kinds
        if X86 in features and not features & set(VNNI):
            advisories.append(_advisory("int8", SATURATES, SATURATES.says))
    return advisories


def _advisory(about: str, fact: Fact, says: str) -> Advisory:
    return Advisory(about, says, fact.found, fact.source)


def to_json(targets: list[Finding], abilities: list[Finding]) -> dict[str, Any]:
    return {
        "schema": "mpmmu-doctor/1",
        "targets": [vars(finding) for finding in targets],
        "abilities": [vars(finding) for finding in abilities],
        "advisories": [vars(advisory) for advisory in advise(targets)],
        "machine": describe(),
    }


def _image_formats() -> list[Finding]:
    raster = _readable("PNG, JPEG, TIFF, BMP", {"pillow": "PIL", "simplejpeg": "simplejpeg"})
    dicom = _readable("DICOM", {"pydicom": "pydicom"}, "pip install 'mpmmu-rt[dicom]'")
    if not dicom.usable:
        return [raster, dicom]
    # JPEG, JPEG 2000 and RLE need nothing more.
    name = "DICOM in JPEG Lossless and JPEG-LS"
    return [raster, dicom, _readable(name, {"imagecodecs": "imagecodecs"}, "pip install 'mpmmu-rt[codecs]'")]


def _readable(name: str, modules: Mapping[str, str], hint: str = "") -> Finding:
    """modules: of each distribution that `name` needs. hint: what brings them, else each by its name."""
    versions = package_versions(tuple(modules))
    for package, module in modules.items():
        if package not in versions:
            return Finding(name, False, f"{package} is not installed", hint or f"pip install {package}")
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 - as of one that was built for another NumPy, of whatever class
            detail = f"{package} {versions[package]} is installed but can't be imported ({error})"
            return Finding(name, False, detail, f"pip install --force-reinstall {package}")
    return Finding(name, True, ", ".join(f"{package} {version}" for package, version in versions.items()))


def _export() -> Finding:
    modules = ("torch", "sklearn", "onnx", "onnxscript", "skops", "safetensors")
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        return Finding("train and export", False, f"missing: {', '.join(missing)}", "pip install 'mpmmu-rt[export]'")
    versions = package_versions(("torch", "scikit-learn", "onnx"))
    return Finding("train and export", True, ", ".join(f"{name} {version}" for name, version in versions.items()))


def _cache() -> Finding:
    name = "compiled-model cache"
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", CacheWarning)
            cache = BlobCache.default()
    except MissingPackage as error:
        return Finding(name, False, str(error), error.hint)
    if said:
        return Finding(name, False, str(said[0].message))
    if cache is None:
        return Finding(name, False, f"switched off by {VARIABLE}", f"unset {VARIABLE}, and openvino:int8 starts faster")
    entries = cache.entries()
    return Finding(name, True, f"{len(entries)} models, {sum(entries.values()) / 1e6:.0f} MB, in {cache.folder}")
