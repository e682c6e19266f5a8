"""Stage 1: train the encoder of one modality on its images with a classification loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mpmmu_rt.errors import ManifestError, UsageError
from mpmmu_rt.metrics import area_under_curve
from mpmmu_rt.progress import Progress, silent
from mpmmu_rt.spec import MODALITIES, Array, Modality

from .augmentation import Augmentation, augment
from .config import DIVERGED, EncoderConfig
from .data import TrainingData
from .encoder import Encoder, load_backbone
from .split import Split
from .training_state import EncoderState, key, load_state, made_with, save_state
from .weights import Weights

Schedule = Literal["cosine", "constant"]
EMBED_BATCH = 64


@dataclass(frozen=True)
class TrainingConfig:
    """How both stages are trained. Raises `UsageError` for values that make no sense.

    `patience`: stage 1 ends after so many epochs without a better validation AUC. `warmup`: the share of all steps in
    which the cosine schedule rises to `learning_rate`. `clip_norm`: a gradient whose norm is larger is scaled down to
    it. `mixed_precision`: bfloat16 in the encoder, on a GPU alone. `seed` decides everything that is random: the split,
    the initial weights, the order, the augmentation and the head.
    """

    epochs: int = 60
    batch_size: int = 32
    learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    schedule: Schedule = "cosine"
    warmup: float = 0.05
    clip_norm: float = 1.0
    mixed_precision: bool = True
    patience: int = 15
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        rules = (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 4, "at least 4: batch normalisation needs several images"),
            ("learning_rate", 0 < self.learning_rate <= 1, "more than 0 and at most 1"),
            ("weight_decay", 0 <= self.weight_decay <= 1, "0 to 1"),
            ("schedule", self.schedule in get_args(Schedule), f"one of {', '.join(get_args(Schedule))}"),
            ("warmup", 0 <= self.warmup < 1, "0 to less than 1"),
            ("clip_norm", self.clip_norm > 0, "more than 0"),
            ("patience", self.patience >= 1, "at least 1"),
            ("seed", self.seed >= 0, "at least 0"),
        )
        for name, holds, expected in rules:
            if not holds:
                raise UsageError(f"{name} is {getattr(self, name)!r}, expected {expected}", hint="see TRAINING_PRESETS")


TRAINING_PRESETS: dict[str, TrainingConfig] = {
    "reference": TrainingConfig(),
    "tiny": TrainingConfig(epochs=15, learning_rate=2e-3),
}


def train_encoder(
    data: TrainingData,
    modality: Modality,
    split: Split,
    encoder_config: EncoderConfig,
    config: TrainingConfig,
    *,
    state_file: Path,
    initial: Weights | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> tuple[Encoder, list[dict[str, float]]]:
    """Train on the images of the split's training rows; keep the weights of the best validation AUC.

    initial: the backbone's weights to start from, instead of random ones (`load_backbone`).
    Returns the encoder in eval mode on the CPU and the history, one entry per epoch. After every epoch the
    whole state is in `state_file`; an interrupted call is continued by the same call, and on one machine with
    one number of threads the result on a CPU is the same to the bit as without the interruption. Raises
    `CheckpointError` if `state_file` belongs to another training, `UsageError` if the loss is not finite.
    """
    digest = _digest(data, modality, split, encoder_config, config, initial, device)
    state = _fresh_state(modality, encoder_config, config, initial, device)
    if state_file.exists():
        load_state(state, state_file, digest)
    index, label = data.images(modality, split.train)
    pixels = torch.from_numpy(data.pixels[modality][index])
    target = torch.from_numpy(label.astype(np.float32))
    # The loss weighs both classes alike, whatever their number (King and Zeng 2001, Political Analysis 9:137).
    weight = torch.tensor((label == 0).sum() / (label == 1).sum(), dtype=torch.float32, device=device)
    steps = math.ceil(len(index) / config.batch_size)
    total, description = config.epochs * steps, f"training the {modality} encoder"
    while state.epoch < config.epochs and state.epoch - state.best_epoch < config.patience:
        generator = torch.Generator().manual_seed(_seed(config.seed, modality, state.epoch + 1))
        state.encoder.train()
        losses = []
        order = torch.randperm(len(index), generator=generator)
        # equal parts: no left-over batch of one image, whose batch statistics mean nothing
        for step, rows in enumerate(order.tensor_split(steps)):
            done = state.epoch * steps + step
            for group in state.optimizer.param_groups:
                group["lr"] = learning_rate(config, done, total)
            grey = augment(pixels[rows].to(device).float() / 255, config.augmentation, generator)
            losses.append(_step(state, grey, target[rows].to(device), weight, config))
            progress(description, done + 1, total, "batches", _detail(state, config, losses))
        rate = learning_rate(config, state.epoch * steps, total)
        entry = {"epoch": state.epoch + 1.0, "learning_rate": rate, "training_loss": float(np.mean(losses))}
        entry |= _validate(state, data, modality, split, device)
        state.record(entry, entry["validation_auc"])
        save_state(state, state_file, digest)
    progress(description, total, total, "batches", _best(state))  # also where patience ended it early
    state.encoder.load_state_dict(state.best)
    return state.encoder.cpu().eval(), state.history


def _detail(state: EncoderState, config: TrainingConfig, losses: list[float]) -> str:
    said = f"epoch {state.epoch + 1} of {config.epochs}, loss {np.mean(losses):.3f}"
    return f"{said}, {_best(state)}" if state.history else said


def _best(state: EncoderState) -> str:
    last = state.history[-1]["validation_auc"]
    return f"validation AUC {last:.3f}, best {state.best_auc:.3f} in epoch {state.best_epoch}"


def known_device(name: str) -> str:
    """`name`, if torch can compute there. Raises `UsageError`."""
    try:
        torch.zeros(1, device=name).item()  # `meta` has none
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch that was built without CUDA
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"torch can't compute on the device `{name}` ({reason}), expected cpu, or cuda where there is a GPU",
            hint="--device cpu",
        ) from error
    return name


def embed(encoder: Encoder, pixels: Array) -> Array:
    """Pixels uint8 [M, 1, S, S] to the embedding float32 [M, C] of an encoder in eval mode, on the CPU."""
    with torch.inference_mode():
        return np.concatenate([encoder(part).numpy() for part in _batches(pixels)])


def _batches(pixels: Array) -> Iterator[Tensor]:
    """Pixels uint8 [M, 1, S, S] in parts of up to `EMBED_BATCH`, in their order."""
    for start in range(0, len(pixels), EMBED_BATCH):
        yield torch.from_numpy(pixels[start : start + EMBED_BATCH])


def _step(state: EncoderState, grey: Tensor, target: Tensor, weight: Tensor, config: TrainingConfig) -> float:
    # bfloat16 has the exponent of float32: no loss scaling (arXiv 1905.12322)
    with torch.autocast(grey.device.type, torch.bfloat16, enabled=config.mixed_precision and grey.is_cuda):
        logit = state.encoder.logit(grey)
    loss = functional.binary_cross_entropy_with_logits(logit.float(), target, pos_weight=weight)
    _require_finite(loss, "training", state)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(state.encoder.parameters(), config.clip_norm)
    state.optimizer.step()
    return loss.item()


def _validate(
    state: EncoderState, data: TrainingData, modality: Modality, split: Split, device: str
) -> dict[str, float]:
    index, label = data.images(modality, split.validation)
    state.encoder.eval()
    with torch.inference_mode():
        parts = _batches(data.pixels[modality][index])
        logit = torch.cat([state.encoder.logit(part.to(device).float() / 255).cpu() for part in parts])
    auc = area_under_curve(label, logit.numpy())
    if auc is None:
        raise ManifestError(
            "the validation part holds one class only, expected both", hint="split with `split_patients`"
        )
    loss = functional.binary_cross_entropy_with_logits(logit, torch.from_numpy(label).float())
    _require_finite(loss, "validation", state)
    return {"validation_loss": loss.item(), "validation_auc": auc}


def _require_finite(loss: Tensor, part: str, state: EncoderState) -> None:
    """Numbers that are none have no order: an AUC of them would be one of nothing, and its epoch might be kept."""
    if not torch.isfinite(loss):
        raise UsageError(
            f"the {part} loss became {loss.item()} in epoch {state.epoch + 1}, expected a finite number", hint=DIVERGED
        )


def _fresh_state(
    modality: Modality, encoder_config: EncoderConfig, config: TrainingConfig, initial: Weights | None, device: str
) -> EncoderState:
    with torch.random.fork_rng(devices=[]):  # torch's initialisation draws from the global generator
        torch.manual_seed(_seed(config.seed, modality, 0))
        encoder = Encoder(encoder_config)
    if initial is not None:
        load_backbone(encoder, initial.state)
    encoder = encoder.to(device)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    return EncoderState(encoder, optimizer)


def _seed(seed: int, modality: Modality, epoch: int) -> int:
    """A seed of its own for every (seed, modality, epoch), so that an epoch depends on no epoch before it."""
    words = np.random.SeedSequence([seed, MODALITIES.index(modality), epoch]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def learning_rate(config: TrainingConfig, step: int, total: int) -> float:
    """The rate of a step, counted from 0, of `total`: a linear rise (arXiv 1706.02677, section 2.2), then the cosine of
    arXiv 1608.03983, equation 5, without restarts."""
    if config.schedule == "constant":
        return config.learning_rate
    rising = math.ceil(config.warmup * total)
    if step < rising:
        return config.learning_rate * (step + 1) / (rising + 1)
    return config.learning_rate * (1 + math.cos(math.pi * (step - rising) / (total - rising))) / 2


def _digest(
    data: TrainingData,
    modality: Modality,
    split: Split,
    encoder_config: EncoderConfig,
    config: TrainingConfig,
    initial: Weights | None,
    device: str,
) -> str:
    """Names everything that the result depends on, but for the machine."""
    return key(
        {
            "data": data.sha256,
            "modality": modality,
            "encoder": asdict(encoder_config),
            "training": asdict(config),
            "split": {name: rows.tolist() for name, rows in split.parts().items()},
            **made_with(device),
            **({"initial": initial.sha256} if initial else {}),
        }
    )
