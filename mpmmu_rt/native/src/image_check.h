// Do images look swapped, or unlike those that the model has learnt from? `mpmmu_rt.modality_check`, in its words.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "json.h"

namespace mpmmu {

using Figures = std::array<double, 8>;  // of an image: `mpmmu_rt.image_figures`

class ImageCheck {
 public:
  // entry: of a bundle that was checked. Of one that does not know how its images look nothing is ever said.
  explicit ImageCheck(const Json &entry);

  // What is to be said against a pair of pixels, uint8 [side, side] each; "" if nothing.
  std::string against(const std::uint8_t *const (&pixels)[2], std::size_t side) const;

 private:
  struct Sides {  // log-odds that an image is a mammogram
    Figures weights, means, scales;
    double intercept, margin;

    double log_odds(const Figures &image) const;
  };

  struct Range {  // of the training's images of one modality
    Figures lowest, highest, margin;

    std::string against(const Figures &image) const;
  };

  std::optional<Sides> sides_;
  std::optional<std::array<Range, 2>> learnt_;
};

}  // namespace mpmmu
