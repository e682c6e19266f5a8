"""From a trained model to a verified bundle, step by step.

encoders   torch modules → ONNX graphs with a dynamic batch
head       scikit-learn stacking head → ONNX graph
graphs     the pieces joined into the whole model; weights stored once
parity     original against exported, stage by stage and in decisions
build      all of it in order: `export_bundle`
reference  the model that is exported when no checkpoint is given
"""

from .build import export_bundle as export_bundle
from .build import export_checkpoint as export_checkpoint
from .build import export_reference as export_reference
from .quantization import Limits as Limits
from .targets import Data as Data
from .targets import Wanted as Wanted

if __name__ != "mpmmu_rt.export":
    raise ImportError("import it as mpmmu_rt.export")
