// The C border: no exception crosses it, and every struct is read and written by the size that its owner knows.

#include <cfenv>
#include <cstring>
#include <new>

#include "failure.h"
#include "model.h"
#include "preprocess.h"

struct mpmmu_model {
  mpmmu::Model model;
};

namespace {

using mpmmu::Failure;

thread_local std::string last_error, last_hint, image_warning;

mpmmu_status failed(mpmmu_status status, const char *message, const char *hint) noexcept {
  try {
    last_error = message;
    last_hint = hint;
  } catch (...) {  // no memory for the words
    last_error.clear();
    last_hint.clear();
  }
  return status;
}

// As long as it lives, this thread computes as every C program begins. In what a host has set otherwise (rounding, zero
// in place of the smallest numbers) pixels and answers would be others, and an image might not fit into its square.
class PlainArithmetic {
 public:
  PlainArithmetic() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  PlainArithmetic(const PlainArithmetic &) = delete;
  ~PlainArithmetic() { std::fesetenv(&before_); }

 private:
  std::fenv_t before_;
};

template <class Call>
mpmmu_status guarded(Call call) noexcept {
  const PlainArithmetic plain;
  try {
    call();
    return MPMMU_OK;
  } catch (const Failure &failure) {
    return failed(failure.status, failure.what(), failure.hint.c_str());
  } catch (const std::bad_alloc &) {
    return failed(MPMMU_OUT_OF_MEMORY, "there is no memory left, expected room for the model and its batch",
                  mpmmu::kMakeRoom);
  } catch (const std::exception &error) {
    return failed(MPMMU_INTERNAL_ERROR, error.what(), "report this: it is a defect of the library");
  } catch (...) {
    return failed(MPMMU_INTERNAL_ERROR, "an unknown exception", "report this: it is a defect of the library");
  }
}

Failure wrong(const std::string &message, const char *hint) { return Failure(MPMMU_USAGE_ERROR, message, hint); }

void require(const void *given, const char *name) {
  if (!given) throw wrong(std::string("`") + name + "` is NULL, expected an address", "pass one");
}

template <class Struct>
void require_size(const Struct *given, const char *name) {
  require(given, name);
  // What is no multiple of its alignment is the size of no struct, and would cut an address in two.
  if (given->size < sizeof(std::size_t) || given->size > sizeof(Struct) || given->size % alignof(Struct) != 0) {
    throw wrong(std::string("`") + name + "` has the size " + std::to_string(given->size) + ", expected " +
                    std::to_string(sizeof(Struct)) + " or that of an earlier version",
                "set `size` to sizeof the struct, and use a library that is as new as its header");
  }
}

// As much of a struct as its owner knows, the rest zero.
template <class Struct>
Struct known(const Struct *given, const char *name) {
  require_size(given, name);
  Struct whole{};
  std::memcpy(&whole, given, given->size);
  return whole;
}

template <class Struct>
void tell(const Struct &whole, Struct *given) {
  const std::size_t size = given->size;
  std::memcpy(given, &whole, size);
  given->size = size;
}

}  // namespace

uint32_t mpmmu_abi_version(void) { return MPMMU_ABI_VERSION; }

mpmmu_status mpmmu_check(const char *folder) {
  return guarded([&] {
    require(folder, "folder");
    mpmmu::Bundle::open(folder);
  });
}

mpmmu_status mpmmu_open(const char *folder, const mpmmu_options *options, mpmmu_model **model) {
  if (model) *model = nullptr;
  return guarded([&] {
    require(folder, "folder");
    require(model, "model");
    mpmmu_options whole{};
    if (options) whole = known(options, "options");
    *model = new mpmmu_model{mpmmu::Model(folder, whole)};
  });
}

mpmmu_status mpmmu_get_info(const mpmmu_model *model, mpmmu_info *info) {
  return guarded([&] {
    require(model, "model");
    require_size(info, "info");
    mpmmu_info whole{};
    model->model.tell(whole);
    tell(whole, info);
  });
}

mpmmu_status mpmmu_preprocess(const mpmmu_preprocessing *how, const uint8_t *grey, size_t height, size_t width,
                              double pixel_aspect, uint8_t *pixels) {
  return guarded([&] {
    require(how, "how");
    require(pixels, "pixels");
    mpmmu::preprocess(*how, grey, height, width, pixel_aspect, pixels);
  });
}

mpmmu_status mpmmu_predict(mpmmu_model *model, const uint8_t *mammography, const uint8_t *ultrasound, size_t cases,
                           const mpmmu_outputs *outputs) {
  return guarded([&] {
    const mpmmu_outputs whole = known(outputs, "outputs");
    if (!model) mpmmu::leave_no_answer(whole, cases, 0, 0);  // nobody knows of how many learners, nor of what width
    require(model, "model");
    model->model.predict(mammography, ultrasound, cases, whole);
  });
}

mpmmu_status mpmmu_image_warning(const mpmmu_model *model, const uint8_t *mammography, const uint8_t *ultrasound,
                                 const char **warning) {
  if (warning) *warning = nullptr;  // nobody is told that there is nothing to say
  return guarded([&] {
    require(model, "model");
    require(mammography, "mammography");
    require(ultrasound, "ultrasound");
    require(warning, "warning");
    image_warning = model->model.image_warning(mammography, ultrasound);
    *warning = image_warning.c_str();
  });
}

mpmmu_status mpmmu_self_test(mpmmu_model *model, mpmmu_self_test_result *result) {
  return guarded([&] {
    require(model, "model");
    if (result) require_size(result, "result");
    mpmmu_self_test_result whole{};
    try {
      model->model.self_test(whole);
    } catch (...) {
      if (result) tell(whole, result);
      throw;
    }
    if (result) tell(whole, result);
  });
}

const char *mpmmu_last_error(void) { return last_error.c_str(); }

const char *mpmmu_last_hint(void) { return last_hint.c_str(); }

void mpmmu_close(mpmmu_model *model) {
  if (model && model->model.forked()) return;  // to end threads that are not there would wait without end
  delete model;
}
