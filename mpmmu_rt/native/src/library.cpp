#include <dlfcn.h>

#include <algorithm>

#include "engine.h"
#include "failure.h"

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

std::string first_line(const std::string &message) {
  return message.substr(0, std::min<std::size_t>(message.find('\n'), 300));
}

}  // namespace mpmmu
