// The part of OpenVINO's C API that is used, declared here: what is found at run time may be any release from 2025.0
// on, by its headers; 2026.4.1 is the one that was run. Names and signatures are those of openvino/c/*.h, against which
// the tests of mpmmu-rt hold names, numbers of parameters, and sizes of structs; types they don't compare. Element types
// are numbered differently by releases, and are not used.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mpmmu::ov {

struct Compiled;
struct Core;
struct Model;
struct Request;
struct Tensor;

using Status = int;  // 0 is success

struct Dimension {
  std::int64_t min, max;
};

struct PartialShape {
  Dimension rank;
  Dimension *dims;
};

struct Shape {
  std::int64_t rank;
  std::int64_t *dims;
};

struct Layer {  // of a profile
  int status;
  std::int64_t real_time, cpu_time;
  const char *node_name, *exec_type, *node_type;
};

struct Layers {
  Layer *layers;
  std::size_t size;
};

struct Version {
  const char *build, *description;
};

// X(name, result, parameters): each is the symbol `ov_<name>`.
#define MPMMU_OPENVINO(X)                                                                                            \
  X(get_openvino_version, Status, (Version *))                                                                       \
  X(version_free, void, (Version *))                                                                                 \
  X(get_last_err_msg, const char *, ())                                                                              \
  X(free, void, (const char *))                                                                                      \
  X(core_create, Status, (Core **))                                                                                  \
  X(core_free, void, (Core *))                                                                                       \
  X(core_get_property, Status, (const Core *, const char *device, const char *key, char **value))                    \
  X(core_read_model, Status, (const Core *, const char *path, const char *weights, Model **))                        \
  X(core_read_model_from_memory_buffer, Status, (const Core *, const char *, std::size_t, const Tensor *, Model **)) \
  X(core_compile_model, Status, (const Core *, const Model *, const char *device, std::size_t, Compiled **, ...))    \
  X(model_reshape, Status, (const Model *, const char **names, const PartialShape *, std::size_t))                   \
  X(model_free, void, (Model *))                                                                                     \
  X(compiled_model_get_property, Status, (const Compiled *, const char *key, char **value))                          \
  X(compiled_model_create_infer_request, Status, (const Compiled *, Request **))                                     \
  X(compiled_model_free, void, (Compiled *))                                                                         \
  X(infer_request_get_tensor, Status, (const Request *, const char *name, Tensor **))                                \
  X(infer_request_infer, Status, (Request *))                                                                        \
  X(infer_request_start_async, Status, (Request *))                                                                  \
  X(infer_request_wait, Status, (Request *))                                                                         \
  X(infer_request_get_profiling_info, Status, (const Request *, Layers *))                                           \
  X(profiling_info_list_free, void, (Layers *))                                                                      \
  X(infer_request_free, void, (Request *))                                                                           \
  X(tensor_set_shape, Status, (Tensor *, Shape))                                                                     \
  X(tensor_get_byte_size, Status, (const Tensor *, std::size_t *))                                                   \
  X(tensor_data, Status, (const Tensor *, void **))                                                                  \
  X(tensor_free, void, (Tensor *))

struct Api {
#define MPMMU_DECLARE(name, result, parameters) result(*name) parameters;
  MPMMU_OPENVINO(MPMMU_DECLARE)
#undef MPMMU_DECLARE
};

}  // namespace mpmmu::ov
