"""The scikit-learn head to ONNX, by skl2onnx."""

from __future__ import annotations

import warnings
from typing import Any

import onnx
from onnx import TensorProto, helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from skl2onnx.common.exceptions import MissingConverter, MissingShapeCalculator

from mpmmu_rt.errors import UnsupportedEstimator

from .graphs import ML_OPSET, OPSET, clean


def lower(estimator: Any, n_features: int) -> onnx.ModelProto:
    """A fitted binary classifier as a graph: `embedding` float32 [N, n_features] to `probability` float32 [N].

    The probability is that of class 1. Raises `UnsupportedEstimator` for a classifier of other classes, of
    another width, or one that skl2onnx does not know.
    """
    kind = type(estimator).__name__
    classes = None if getattr(estimator, "classes_", None) is None else estimator.classes_.tolist()
    if classes != [0, 1] or not hasattr(estimator, "predict_proba"):
        raise UnsupportedEstimator(
            f"the head is a {kind} with classes {classes}, "
            "expected a fitted classifier of the classes 0 (benign) and 1 (malignant) with predict_proba",
            hint="fit it on labels 0 and 1",
        )
    fitted_width = getattr(estimator, "n_features_in_", n_features)
    if fitted_width != n_features:
        raise UnsupportedEstimator(
            f"the head was fitted on {fitted_width} features and the encoders give {n_features}, expected the same",
            hint="fit the head on the embeddings of these encoders",
        )
    try:
        with warnings.catch_warnings():
            # skl2onnx reads attributes of SVC that scikit-learn 1.9 deprecates.
            warnings.filterwarnings("ignore", message="Attribute `prob[AB]_`", category=FutureWarning)
            model = to_onnx(
                estimator,
                initial_types=[("embedding", FloatTensorType([None, n_features]))],
                options={"zipmap": False},
                target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
            )
    except (MissingConverter, MissingShapeCalculator, NotImplementedError, RuntimeError) as error:
        raise UnsupportedEstimator(
            f"the head ({kind}) holds an estimator that can't be converted: {str(error).splitlines()[0]}",
            hint="use estimators that skl2onnx supports",
        ) from error
    return _only_probability(model)


def _only_probability(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace the outputs (label, probabilities [N, 2]) by `probability` [N], the second column."""
    graph = model.graph
    both = graph.output[1].name
    index = helper.make_tensor("malignant_index", TensorProto.INT64, [], [1])
    graph.initializer.append(index)
    graph.node.append(helper.make_node("Gather", [both, index.name], ["probability"], axis=1, name="malignant"))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["N"]))
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    graph.name = "head"
    return clean(model)
