// The part of ONNX Runtime's C API that is used, declared here: its header is in no Debian or PyPI package, and what is
// found at run time may be any release from 1.20 on.
//
// `OrtGetApiBase` is the one symbol. `GetApi(20)` gives a table of functions to which releases only ever append, so
// that an index means the same in all of them. Indices and signatures are those of onnxruntime_c_api.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace mpmmu::ort {

struct Allocator;
struct Env;
struct MemoryInfo;
struct Options;
struct Session;
struct ShapeInfo;
struct Status;  // NULL is success
struct TypeInfo;
struct Value;

using Table = void *const *;

struct ApiBase {
  Table (*get_api)(std::uint32_t version);
  const char *(*get_version_string)();
};

inline constexpr std::uint32_t kApiVersion = 20;
inline constexpr int kFloat = 1, kUint8 = 2;          // ONNXTensorElementDataType
inline constexpr int kErrors = 3;                     // OrtLoggingLevel: errors and worse
inline constexpr int kArena = 1, kDefaultMemory = 0;  // OrtAllocatorType, OrtMemType

// Each function by its place in the table.
struct Api {
  const char *(*error_message)(const Status *);
  Status *(*create_env)(int level, const char *id, Env **);
  Status *(*disable_telemetry)(const Env *);
  Status *(*create_session)(const Env *, const char *path, const Options *, Session **);
  Status *(*run)(Session *, const void *run_options, const char *const *input_names, const Value *const *inputs,
                 std::size_t input_count, const char *const *output_names, std::size_t output_count, Value **outputs);
  Status *(*create_options)(Options **);
  Status *(*set_log_level)(Options *, int);
  Status *(*set_intra_threads)(Options *, int);
  Status *(*set_inter_threads)(Options *, int);
  Status *(*output_count)(const Session *, std::size_t *);
  Status *(*output_type)(const Session *, std::size_t index, TypeInfo **);
  Status *(*output_name)(const Session *, std::size_t index, Allocator *, char **);
  Status *(*tensor_of)(const MemoryInfo *, void *data, std::size_t bytes, const std::int64_t *shape, std::size_t rank,
                       int type, Value **);
  Status *(*tensor_info)(const TypeInfo *, const ShapeInfo **);
  Status *(*element_type)(const ShapeInfo *, int *);
  Status *(*rank)(const ShapeInfo *, std::size_t *);
  Status *(*dimensions)(const ShapeInfo *, std::int64_t *, std::size_t);
  Status *(*cpu_memory)(int allocator_type, int memory_type, MemoryInfo **);
  Status *(*allocator_free)(Allocator *, void *);
  Status *(*default_allocator)(Allocator **);
  Status *(*add_config)(Options *, const char *key, const char *value);
  void (*release_status)(Status *);
  void (*release_session)(Session *);
  void (*release_value)(Value *);
  void (*release_type)(TypeInfo *);
  void (*release_options)(Options *);

  explicit Api(Table table) {
    const auto take = [table](auto &function, std::size_t index) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(table[index]);
    };
    take(error_message, 2), take(create_env, 3), take(disable_telemetry, 6), take(create_session, 7), take(run, 9);
    take(create_options, 10), take(set_log_level, 22), take(set_intra_threads, 24), take(set_inter_threads, 25);
    take(output_count, 31), take(output_type, 34), take(output_name, 37);
    take(tensor_of, 49), take(tensor_info, 55), take(element_type, 60), take(rank, 61), take(dimensions, 62);
    take(cpu_memory, 69), take(allocator_free, 76), take(default_allocator, 78);
    take(release_status, 93), take(release_session, 95), take(release_value, 96), take(release_type, 98);
    take(release_options, 100), take(add_config, 130);
  }
};

}  // namespace mpmmu::ort
