// A bundle loaded on a target: pixels to probability.
#pragma once

#include <memory>
#include <string>

#include "bundle.h"
#include "engine.h"
#include "failure.h"
#include "mpmmu.h"

namespace mpmmu {

// What `options` says, completed. Throws MPMMU_USAGE_ERROR.
struct Choice {
  std::string target, engine, precision, onnxruntime, openvino;
  unsigned threads;

  explicit Choice(const mpmmu_options *options);
};

class Model {
 public:
  Model(const char *folder, const mpmmu_options *options);

  void predict(const std::uint8_t *mammography, const std::uint8_t *ultrasound, std::size_t cases,
               const mpmmu_outputs &outputs);

  // Throws MPMMU_PARITY_ERROR, with `result` filled, where this machine does not compute what was proven.
  void self_test(mpmmu_self_test_result &result);

  void tell(mpmmu_info &info) const;

 private:
  void load_head();
  void answer(const std::uint8_t *const (&pixels)[2], std::size_t cases, float *probability, float *base,
              float *embedding);
  Failure unanswered(std::size_t bad, std::size_t cases, const std::string &what) const;

  Bundle bundle_;
  Choice choice_;
  std::string name_, head_target_, engine_version_;
  std::unique_ptr<Head> head_;
  std::unique_ptr<Embedder> embedder_;
};

}  // namespace mpmmu
