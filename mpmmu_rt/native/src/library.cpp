#include <dlfcn.h>

#include <algorithm>
#include <iterator>

#include "engine.h"

namespace mpmmu {
namespace {

// What engines say where there is no room left: C++, ONNX Runtime's allocator, oneDNN, and of threads the system.
constexpr const char *kNoMemory[] = {"bad_alloc", "BFCArena::Allocate", "Failed to allocate memory", "can't alloc",
                                     "Resource temporarily unavailable"};

// Of that, neither the bundle nor the engine is at fault.
Failure engine_error(const std::string &message, const std::string &reason, const std::string &hint) {
  const bool memory = std::any_of(std::begin(kNoMemory), std::end(kNoMemory),
                                  [&](const char *said) { return reason.find(said) != std::string::npos; });
  return Failure(memory ? MPMMU_OUT_OF_MEMORY : MPMMU_ENGINE_ERROR, message + ": " + reason, memory ? kMakeRoom : hint);
}

}  // namespace

void *load_library(const std::string &given, const std::vector<std::string> &names, const std::string &purpose,
                   const std::string &hint) {
  std::string reason;
  for (const std::string &name : given.empty() ? names : std::vector<std::string>{given}) {
    if (void *handle = ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) return handle;
    if (const char *said = ::dlerror(); said && reason.empty()) reason = said;
  }
  throw Failure(MPMMU_MISSING_LIBRARY,
                purpose + " needs the library " + (given.empty() ? names.front() : given) +
                    ", which can't be loaded (" + reason + ")",
                hint);
}

Failure cannot_load(const std::string &engine, const std::string &graph, const std::string &reason) {
  const std::string package = engine == "OpenVINO" ? "openvino" : "onnxruntime";
  return engine_error(engine + " can't load " + graph, reason, "export the bundle again, or update " + package);
}

Failure failed(const std::string &engine, const std::string &graph, const std::string &reason) {
  return engine_error(engine + " failed in " + graph, reason,
                      "mpmmu_self_test tells whether the bundle or the input is at fault");
}

}  // namespace mpmmu
