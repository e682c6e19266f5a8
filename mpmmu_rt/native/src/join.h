// Both encoders and the attention pool as one ONNX graph, or as one for each modality, as `mpmmu_rt/engines/openvino.py`
// joins and cuts them: OpenVINO's C API can't change a model.
#pragma once

#include <string>

#include "bundle.h"

namespace mpmmu {

// The bytes of a model `mammography_pixels`, `ultrasound_pixels` -> `embedding`, its weights inside. Throws
// std::runtime_error for a graph that can't be joined.
std::string joined_model(const Bundle &bundle, const std::string &precision);

// One of a modality's pixels to its columns of `embedding`; empty where the attention pool does anything else than to
// look at each modality for itself and put both side by side. Throws as above.
std::string half_model(const Bundle &bundle, const std::string &precision, std::size_t modality);

}  // namespace mpmmu
