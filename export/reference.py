"""The reference model: the full-size architecture with seeded weights, for measuring cost without a checkpoint.

Its batch norms and its head are fitted on phantoms, so that activations, embeddings and tree depths are of a
realistic size; its encoders have learned nothing and its probabilities mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from mpmmu_rt.model.checkpoint import Checkpoint
from mpmmu_rt.model.config import reference as reference_config
from mpmmu_rt.model.encoder import Bottleneck, Encoder
from mpmmu_rt.model.phantom import phantom_pixels
from mpmmu_rt.model.stacking import fit_head
from mpmmu_rt.progress import Progress
from mpmmu_rt.spec import MODALITIES, Array, Modality

NAME = "reference"
SEED = 2026
PHANTOMS = 160
_BATCH = 16
_STATISTICS_BATCHES = 4
# Fifty random layers at full gain are chaotic: float rounding reaches 1e-4 of an embedding's spread (99th percentile).
# Small residual branches, which is also how training starts (arXiv 1706.02677, section 5.1), leave a tenth of that.
_RESIDUAL_GAIN = 0.2


def build(progress: Progress, redraw: Callable[[Modality, Encoder], object] = lambda *_: None) -> Checkpoint:
    """Seeded encoders, batch norm statistics and a head fitted on phantoms; deterministic for a torch version.

    redraw: may give an encoder other weights, before anything is fitted to them.
    """
    config = reference_config()
    progress("drawing phantoms", 0, 1)
    pixels, label = phantom_pixels(PHANTOMS, seed=SEED, preprocessing=config.preprocessing)
    progress("drawing phantoms", 1, 1)
    encoders: dict[Modality, Encoder] = {}
    embeddings = []
    for index, modality in enumerate(MODALITIES):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED + index)
            encoders[modality] = Encoder(config.encoder(modality))
        redraw(modality, encoders[modality])
        embeddings.append(_fit_statistics(encoders[modality], pixels[modality], modality, progress))
    progress("fitting the stacking head", 0, 1)
    groups = [str(number) for number in range(PHANTOMS)]
    head = fit_head(np.concatenate(embeddings, axis=1), label, groups, config.head, seed=SEED)
    progress("fitting the stacking head", 1, 1)
    card = {
        "trained_on": f"nothing: random weights (seed {SEED}); batch norms and head fitted on {PHANTOMS} phantoms",
        "warning": "UNTRAINED reference model: for measuring cost only, its probabilities mean nothing",
        "metrics": {},
    }
    return Checkpoint(config, encoders, head, 0.5, card)


def _fit_statistics(encoder: Encoder, pixels: Array, modality: Modality, progress: Progress) -> Array:
    """Set the batch norms to the statistics of the first batches; return the embeddings float32 [N, C] of all."""
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain average over the batches
        if isinstance(module, Bottleneck):
            nn.init.constant_(module.bn3.weight, _RESIDUAL_GAIN)
    batches = torch.split(torch.from_numpy(pixels), _BATCH)
    total = _STATISTICS_BATCHES + len(batches)
    parts = []
    with torch.inference_mode():
        encoder.train()
        for step, batch in enumerate(batches[:_STATISTICS_BATCHES]):
            progress(f"preparing the {modality} encoder", step, total, "batches")
            encoder(batch)
        encoder.eval()
        for step, batch in enumerate(batches, _STATISTICS_BATCHES):
            progress(f"preparing the {modality} encoder", step, total, "batches")
            parts.append(encoder(batch).numpy())
    progress(f"preparing the {modality} encoder", total, total, "batches")
    return np.concatenate(parts)
