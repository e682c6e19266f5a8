"""From a trained model to a verified bundle, step by step.

encoders   torch modules → ONNX graphs with a dynamic batch
head       scikit-learn stacking head → ONNX graph
graphs     the pieces joined into the whole model; weights stored once
cases      what the bundle is proven, judged and calibrated on
parity     original against exported, stage by stage and in decisions
draft      the bundle in the making, which all targets are proven on
targets    every target made and proven; a module for each engine
build      all of it in order: `export_bundle`
reference  the model that is exported when no checkpoint is given
"""

from mpmmu_rt.machine import own_threads

own_threads()  # before torch is loaded

from .build import export_bundle as export_bundle
from .build import export_checkpoint as export_checkpoint
from .build import export_reference as export_reference
from .cases import Data as Data
from .draft import Wanted as Wanted
from .quantization import Limits as Limits

if __name__ != "mpmmu_rt.export":
    raise ImportError("import it as mpmmu_rt.export")
