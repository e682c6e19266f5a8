// What went wrong: thrown inside the library, a status and two texts outside of it.
#pragma once

#include <exception>
#include <string>

#include "mpmmu.h"

namespace mpmmu {

struct Failure : std::exception {
  Failure(mpmmu_status reason, std::string said, std::string todo)
      : status(reason), message(std::move(said)), hint(std::move(todo)) {}

  const char *what() const noexcept override { return message.c_str(); }

  mpmmu_status status;
  std::string message, hint;
};

}  // namespace mpmmu
