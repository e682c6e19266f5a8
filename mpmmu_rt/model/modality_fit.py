"""The check for swapped images, fitted on what a model is trained on."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mpmmu_rt.modality_check import ModalityCheck, figures
from mpmmu_rt.spec import Array

MARGIN = 1.0  # of log-odds: of each image alone a wrong modality must be nearly three times as likely


def fit(mammograms: Array, ultrasounds: Array) -> ModalityCheck:
    """Of pixels uint8 [M, 1, S, S] of each modality, preprocessed as the model's."""
    found = np.concatenate([figures(mammograms), figures(ultrasounds)])
    label = np.repeat([1, 0], [len(mammograms), len(ultrasounds)])
    scaler = StandardScaler().fit(found)
    model = LogisticRegression(class_weight="balanced", max_iter=1000).fit(scaler.transform(found), label)
    return ModalityCheck(model.coef_[0], scaler.mean_, scaler.scale_, float(model.intercept_[0]), MARGIN)
