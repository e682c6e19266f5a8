"""mpmmu-rt: compiled inference for MPM-MU, from a mammogram and an ultrasound image to a probability.

    files ─ decode ─ preprocess ─▶ pixels  uint8 [N, 1, S, S], one array per modality
    pixels ─ mammography encoder (CBAM) ─▶ feature map [N, C, h, w] ┐
    pixels ─ ultrasound encoder (ECA)   ─▶ feature map [N, C, h, w] ┤─ attention pool ─▶ embedding [N, C₁ + C₂]
    embedding ─ stacking head ─▶ probability [N], the probability that the lesion is malignant

    >>> import mpmmu_rt
    >>> with mpmmu_rt.load("reference.bundle") as predictor:      # doctest: +SKIP
    ...     predictor.predict({"mammography": pixels_mg, "ultrasound": pixels_us}).probability

Importing this package imports nothing from outside the standard library, its names import NumPy and nothing else: the
pytest plugin is loaded into every test run where this package is installed. It is made for research and is not a
medical device. Nothing leaves the machine: what is loaded later is told to keep to itself.
"""

from typing import TYPE_CHECKING

from ._optional import silence as _silence

_silence()

if TYPE_CHECKING:
    from .choice import choose_target as choose_target
    from .errors import MpmmuError as MpmmuError
    from .predictor import Prediction as Prediction
    from .predictor import Predictor as Predictor
    from .predictor import load as load

__version__ = "0.1.0"
__all__ = ["MpmmuError", "Prediction", "Predictor", "choose_target", "load"]


def __getattr__(name: str) -> object:
    """PEP 562: the names above, when they are first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import choice, errors, predictor

    return getattr({"MpmmuError": errors, "choose_target": choice}.get(name, predictor), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
