// Grey to pixels, to the bit as `mpmmu_rt.images.preprocess`: bilinear as Pillow resizes 8-bit images, in two passes
// whose weights are integers of 22 binary places (Pillow, libImaging/Resample.c, describes them). Where it shrinks, the
// filter is as wide as the pixels that become one, so that nothing aliases.

#include "preprocess.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "failure.h"

namespace mpmmu {
namespace {

constexpr int kPlaces = 22;  // 32 bits less 8 of a grey value and 2 of reserve

// For each output the inputs that it is made of: from `first`, one weight each.
struct Weights {
  std::vector<std::size_t> first, count;
  std::vector<std::int32_t> weights;  // `most` for each output
  std::size_t most;
};

Weights weights_of(std::size_t from, std::size_t to) {
  const double scale = static_cast<double>(from) / static_cast<double>(to);
  const double support = std::max(scale, 1.0), narrow = 1.0 / support;
  Weights found;
  found.most = static_cast<std::size_t>(std::ceil(support)) * 2 + 1;
  found.weights.assign(to * found.most, 0);
  std::vector<double> exact(found.most);
  for (std::size_t out = 0; out < to; ++out) {
    const double centre = (static_cast<double>(out) + 0.5) * scale;
    const auto first = static_cast<std::size_t>(std::max(0.0, centre - support + 0.5));
    const auto end = std::min(from, static_cast<std::size_t>(centre + support + 0.5));
    double sum = 0.0;
    for (std::size_t in = first; in < end; ++in) {
      const double distance = std::abs((static_cast<double>(in) - centre + 0.5) * narrow);
      sum += exact[in - first] = distance < 1.0 ? 1.0 - distance : 0.0;
    }
    for (std::size_t in = first; in < end; ++in) {
      if (sum != 0.0) exact[in - first] /= sum;
      found.weights[out * found.most + in - first] =
          static_cast<std::int32_t>(0.5 + exact[in - first] * (1 << kPlaces));
    }
    found.first.push_back(first);
    found.count.push_back(end - first);
  }
  return found;
}

std::uint8_t rounded(std::int32_t sum) { return static_cast<std::uint8_t>(std::clamp(sum >> kPlaces, 0, 255)); }

std::vector<std::uint8_t> across(const std::uint8_t *grey, std::size_t height, std::size_t width, std::size_t to) {
  const Weights by = weights_of(width, to);
  std::vector<std::uint8_t> out(height * to);
  for (std::size_t row = 0; row < height; ++row) {
    for (std::size_t x = 0; x < to; ++x) {
      const std::uint8_t *pixel = grey + row * width + by.first[x];
      const std::int32_t *weight = by.weights.data() + x * by.most;
      std::int32_t sum = 1 << (kPlaces - 1);
      for (std::size_t i = 0; i < by.count[x]; ++i) sum += pixel[i] * weight[i];
      out[row * to + x] = rounded(sum);
    }
  }
  return out;
}

std::vector<std::uint8_t> down(const std::uint8_t *grey, std::size_t height, std::size_t width, std::size_t to) {
  const Weights by = weights_of(height, to);
  std::vector<std::uint8_t> out(to * width);
  std::vector<std::int32_t> sums(width);
  for (std::size_t y = 0; y < to; ++y) {
    std::fill(sums.begin(), sums.end(), 1 << (kPlaces - 1));
    for (std::size_t i = 0; i < by.count[y]; ++i) {
      const std::uint8_t *row = grey + (by.first[y] + i) * width;
      const std::int32_t weight = by.weights[y * by.most + i];
      for (std::size_t x = 0; x < width; ++x) sums[x] += row[x] * weight;
    }
    for (std::size_t x = 0; x < width; ++x) out[y * width + x] = rounded(sums[x]);
  }
  return out;
}

// Between the passes a pixel is rounded, so that their order counts. Pillow 13 goes down first where that takes away
// more than twice the rows that going across takes columns; found by comparing, and held by the tests. Earlier ones
// never do.
bool down_first(std::size_t height, std::size_t width, std::size_t tall, std::size_t wide) {
  const auto less = [](std::size_t from, std::size_t to) {
    return static_cast<std::int64_t>(from) - static_cast<std::int64_t>(to);
  };
  return height > tall && less(height, tall) > 2 * less(width, wide);
}

// `mpmmu_rt.grey.check_content`: what gives a probability that looks right, and is none. Throws Failure.
void require_content(const std::uint8_t *grey, std::size_t count, const std::string &to, const std::string &where,
                     const char *hint) {
  for (std::size_t at = 0; at < count; at += count / 64 + 1) {  // one of a few tells of most
    if (grey[at] != *grey) return;
  }
  if (std::memcmp(grey, grey + 1, count - 1) != 0) return;
  throw Failure(MPMMU_PIXELS_ERROR,
                "`grey` is blank" + to + ": grey value " + std::to_string(*grey) + " everywhere" + where +
                    ", expected an image with content",
                hint);
}

// Half to even, as Python rounds; at least one pixel is left.
std::size_t fitted(double side, double size, double longest) {
  return static_cast<std::size_t>(std::max(1.0, std::nearbyint(side * size / longest)));
}

void fit(const mpmmu_preprocessing &how, const std::uint8_t *grey, std::size_t height, std::size_t width,
         double pixel_aspect, std::uint8_t *pixels) {
  // 2**24: up to there, coordinates are exact in every type that takes part.
  if (!grey || !height || !width || height > 1u << 24 || width > 1u << 24) {
    throw Failure(MPMMU_PIXELS_ERROR,
                  "`grey` is " + std::string(grey ? "uint8[" : "NULL[") + std::to_string(height) + ", " +
                      std::to_string(width) + "], expected uint8[H, W] with H, W from 1 to 16777216",
                  "decode the image to 8-bit grey in display range first");
  }
  if (!std::isfinite(pixel_aspect) || pixel_aspect < 0.125 || pixel_aspect > 8.0) {
    throw Failure(MPMMU_PIXELS_ERROR,
                  "`pixel_aspect` is " + decimal(pixel_aspect) + ", expected a ratio from 1:8 to 8:1",
                  "pass 1.0 where the pixels are square");
  }
  require_content(grey, height * width, "", "", "check the export, in DICOM also the window");
  const std::size_t size = how.side;
  std::size_t tall = size, wide = size;
  if (how.pad) {
    const double shown_height = static_cast<double>(height) * (how.physical ? pixel_aspect : 1.0);
    const auto shown_width = static_cast<double>(width);
    const double longest = std::max(shown_height, shown_width);
    tall = fitted(shown_height, static_cast<double>(size), longest);
    wide = fitted(shown_width, static_cast<double>(size), longest);
  }
  std::vector<std::uint8_t> kept;
  const auto resize_down = [&] {
    kept = down(grey, height, width, tall);
    grey = kept.data();
    height = tall;
  };
  if (down_first(height, width, tall, wide)) resize_down();
  if (wide != width) {
    kept = across(grey, height, width, wide);
    grey = kept.data();
    width = wide;
  }
  if (tall != height) resize_down();
  // Here, as beside its padding nobody sees it any more.
  require_content(grey, tall * wide, " to the model",
                  " at " + std::to_string(wide) + " x " + std::to_string(tall) + " pixels",
                  "check the export: what there is in it is too small or too faint to be seen at that size");
  std::memset(pixels, 0, size * size);
  const std::size_t top = (size - tall) / 2, left = (size - wide) / 2;
  for (std::size_t y = 0; y < tall; ++y) std::memcpy(pixels + (top + y) * size + left, grey + y * wide, wide);
}

}  // namespace

void preprocess(const mpmmu_preprocessing &how, const std::uint8_t *grey, std::size_t height, std::size_t width,
                double pixel_aspect, std::uint8_t *pixels) {
  if (how.side < 1 || how.side > 4096) {
    throw Failure(MPMMU_USAGE_ERROR,
                  "preprocessing has the size " + std::to_string(how.side) + ", expected an integer from 1 to 4096",
                  "take it from mpmmu_get_info");
  }
  try {
    fit(how, grey, height, width, pixel_aspect, pixels);
  } catch (...) {  // what lay there may be another patient's; black is refused by whoever predicts
    std::memset(pixels, 0, std::size_t{how.side} * how.side);
    throw;
  }
}

}  // namespace mpmmu
