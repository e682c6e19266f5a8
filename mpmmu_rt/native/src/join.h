// Both encoders and the attention pool as one ONNX graph, as `mpmmu_rt/engines/openvino.py` joins them: OpenVINO's C
// API can't change a model, and compiled apart they would each be given threads of their own.
#pragma once

#include <string>

#include "bundle.h"

namespace mpmmu {

// The bytes of a model `mammography_pixels`, `ultrasound_pixels` -> `embedding`, its weights inside. Throws
// std::runtime_error for a graph that can't be joined.
std::string joined_model(const Bundle &bundle, const std::string &precision);

}  // namespace mpmmu
