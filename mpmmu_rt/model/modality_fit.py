"""The checks for swapped and for strange images, fitted on what a model is trained on."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mpmmu_rt.image_figures import figures
from mpmmu_rt.learnt_ranges import LearntRange
from mpmmu_rt.modality_check import ModalityCheck
from mpmmu_rt.spec import Array, Modality

MARGIN = 1.0  # of log-odds: of each image alone a wrong modality must be nearly three times as likely
# Of real images: `benchmarks/results/unlike_images.md`, where others were tried.
SHARE = 0.99  # of the training images lies between the lowest and the highest of a figure
WIDER = 0.5  # of that distance an image may lie outside on either side …
LEAST = 0.02  # … and so much where all training images are alike
FEWEST = 20  # images of a modality: ranges of fewer tell nothing


def fit(mammograms: Array, ultrasounds: Array) -> ModalityCheck:
    """Of pixels uint8 [M, 1, S, S] of each modality, preprocessed as the model's."""
    of_modality: dict[Modality, Array] = {"mammography": figures(mammograms), "ultrasound": figures(ultrasounds)}
    found = np.concatenate(list(of_modality.values()))
    label = np.repeat([1, 0], [len(mammograms), len(ultrasounds)])
    scaler = StandardScaler().fit(found)
    model = LogisticRegression(class_weight="balanced", max_iter=1000).fit(scaler.transform(found), label)
    enough = min(map(len, of_modality.values())) >= FEWEST
    learnt = {modality: learnt_range(one) for modality, one in of_modality.items()} if enough else None
    return ModalityCheck(model.coef_[0], scaler.mean_, scaler.scale_, float(model.intercept_[0]), MARGIN, learnt)


def learnt_range(found: Array) -> LearntRange:
    """Of figures [N, 8] of training images of one modality."""
    lowest, highest = np.quantile(found, [(1 - SHARE) / 2, (1 + SHARE) / 2], axis=0)
    return LearntRange(lowest, highest, WIDER * (highest - lowest) + LEAST)
