#pragma once

#include <cstddef>
#include <cstdint>

#include "mpmmu.h"

namespace mpmmu {

// What `mpmmu_preprocess` does; throws Failure.
void preprocess(const mpmmu_preprocessing &how, const std::uint8_t *grey, std::size_t height, std::size_t width,
                double pixel_aspect, std::uint8_t *pixels);

}  // namespace mpmmu
