// What went wrong: thrown inside the library, a status and two texts outside of it.
#pragma once

#include <stdexcept>
#include <string>

#include "mpmmu.h"

namespace mpmmu {

struct Failure : std::runtime_error {
  Failure(mpmmu_status reason, const std::string &message, std::string todo)
      : std::runtime_error(message), status(reason), hint(std::move(todo)) {}

  mpmmu_status status;
  std::string hint;
};

}  // namespace mpmmu
