// Both encoders and the attention pool as one ONNX graph, or as one for each modality, as `mpmmu_rt/engines/openvino.py`
// joins and cuts them: OpenVINO's C API can't change a model.
#pragma once

#include <memory>
#include <string>

#include "bundle.h"

namespace mpmmu {

// Bytes that are not set to zero first: there may be hundreds of megabytes.
struct Buffer {
  explicit Buffer(std::size_t count) : data(new char[count]), size(count) {}

  std::unique_ptr<char[]> data;
  std::size_t size;
};

// A model `mammography_pixels`, `ultrasound_pixels` -> `embedding`, its weights inside. Throws std::runtime_error for
// a graph that can't be joined.
Buffer joined_model(const Bundle &bundle, const std::string &precision);

// Of it, one modality's pixels to its columns of `embedding`; empty where the embedding is anything else than what is
// made of each modality for itself, side by side.
Buffer half_model(const Buffer &joined, std::size_t modality);

}  // namespace mpmmu
