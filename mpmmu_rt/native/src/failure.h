// What went wrong: thrown inside the library, a status and two texts outside of it.
#pragma once

#include <charconv>
#include <exception>
#include <string>

#include "mpmmu.h"

namespace mpmmu {

inline constexpr const char *kMakeRoom = "use smaller batches, or close what is not needed";  // MPMMU_OUT_OF_MEMORY

struct Failure : std::exception {
  Failure(mpmmu_status reason, std::string said, std::string todo)
      : status(reason), message(std::move(said)), hint(std::move(todo)) {}

  const char *what() const noexcept override { return message.c_str(); }

  mpmmu_status status;
  std::string message, hint;
};

// As std::to_string, with a point whatever the locale of the application has between digits.
inline std::string decimal(double value, int places = 6) {
  char text[400];
  return std::string(text, std::to_chars(text, text + sizeof text, value, std::chars_format::fixed, places).ptr);
}

}  // namespace mpmmu
