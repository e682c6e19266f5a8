// A bundle loaded on a target: pixels to probability.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>

#include "bundle.h"
#include "engine.h"
#include "failure.h"
#include "image_check.h"
#include "mpmmu.h"

namespace mpmmu {

// What `options` says, completed. Throws MPMMU_USAGE_ERROR.
struct Choice {
  std::string target, engine, precision, onnxruntime, openvino;
  unsigned threads;

  explicit Choice(const mpmmu_options &given);
};

// What a call that failed leaves: NaN, and 255 in `malignant`. Writes nothing for more cases than there may be, whose
// outputs have no room that anyone knows.
void leave_no_answer(const mpmmu_outputs &outputs, std::size_t cases, std::size_t learners, std::size_t width);

class Model {
 public:
  Model(const char *folder, const mpmmu_options &options);

  // Whether this is another process than the one that loaded it: engines can neither be used nor taken down there.
  bool forked() const;

  void predict(const std::uint8_t *mammography, const std::uint8_t *ultrasound, std::size_t cases,
               const mpmmu_outputs &outputs);

  // Throws MPMMU_PARITY_ERROR, with `result` filled, where this machine does not compute what was proven.
  void self_test(mpmmu_self_test_result &result);

  void tell(mpmmu_info &info) const;

  // What is to be said against a pair of pixels; "" if nothing.
  std::string image_warning(const std::uint8_t *mammography, const std::uint8_t *ultrasound) const;

 private:
  void load_head();
  void require_own_process() const;
  void require_pairs(const std::uint8_t *const (&pixels)[2], std::size_t cases) const;
  void decide(const std::uint8_t *mammography, const std::uint8_t *ultrasound, std::size_t cases,
              const mpmmu_outputs &outputs);
  void compare(mpmmu_self_test_result &result);
  void answer(const std::uint8_t *const (&pixels)[2], std::size_t cases, float *probability, float *base,
              float *embedding);
  Failure unanswered(std::size_t bad, std::size_t cases, const std::string &what) const;

  void require_untouched();

  pid_t process_;
  Bundle bundle_;
  std::list<HeldFile> weights_;  // held before an engine reads them
  Choice choice_;
  ImageCheck check_;
  std::string name_, warning_, head_target_, engine_version_;
  std::unique_ptr<Head> head_;
  std::unique_ptr<Embedder> embedder_;
};

}  // namespace mpmmu
