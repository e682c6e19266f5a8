"""mpmmu-rt: compiled inference for MPM-MU, from a mammogram and an ultrasound image to a probability.

    files ─ decode ─ preprocess ─▶ pixels  uint8 [N, 1, S, S], one array per modality
    pixels ─ mammography encoder (CBAM) ─▶ feature map [N, C, h, w] ┐
    pixels ─ ultrasound encoder (ECA)   ─▶ feature map [N, C, h, w] ┤─ attention pool ─▶ embedding [N, C₁ + C₂]
    embedding ─ stacking head ─▶ probability [N], the probability that the lesion is malignant

    >>> import mpmmu_rt
    >>> with mpmmu_rt.load("reference.bundle") as predictor:      # doctest: +SKIP
    ...     predictor.predict({"mammography": pixels_mg, "ultrasound": pixels_us}).probability

Importing this package imports NumPy and nothing else from outside the standard library. It is made for
research and is not a medical device. Nothing leaves the machine: what is loaded later is told to keep to itself.
"""

from ._optional import silence as _silence

_silence()

from .errors import MpmmuError as MpmmuError
from .predictor import Prediction as Prediction
from .predictor import Predictor as Predictor
from .predictor import load as load

__version__ = "0.1.0"
