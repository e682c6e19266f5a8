#include <dlfcn.h>

#include "engine.h"

namespace mpmmu {

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
  return Failure(MPMMU_ENGINE_ERROR, engine + " can't load " + graph + ": " + reason,
                 "export the bundle again, or update " + package);
}

Failure failed(const std::string &engine, const std::string &graph, const std::string &reason) {
  return Failure(MPMMU_ENGINE_ERROR, engine + " failed in " + graph + ": " + reason,
                 "mpmmu_self_test tells whether the bundle or the input is at fault");
}

}  // namespace mpmmu
