#include "image_check.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <vector>

#include "bundle.h"
#include "failure.h"

namespace mpmmu {
namespace {

constexpr const char *kSwapped =
    "its images look swapped: the mammogram like an ultrasound image, and the ultrasound image like a mammogram";
constexpr const char *kUnlike = "unlike the images that the model has learnt from";
constexpr const char *kNames[] = {"its share of black pixels",
                                  "its share of bright pixels",
                                  "its mean grey",
                                  "its contrast",
                                  "the fineness of its texture",
                                  "its vertical against its horizontal texture",
                                  "how it fades from top to bottom",
                                  "the difference of its left and right"};

using Sums = std::vector<std::uint64_t>;

double mean(Sums::const_iterator begin, Sums::const_iterator end) {
  return static_cast<double>(std::accumulate(begin, end, std::uint64_t{0})) / static_cast<double>(end - begin);
}

// Mean of the first `part` less that of the last.
double fall(const Sums &sums, std::size_t part) {
  const auto length = static_cast<std::ptrdiff_t>(std::max<std::size_t>(1, part));
  return mean(sums.begin(), sums.begin() + length) - mean(sums.end() - length, sums.end());
}

std::uint64_t step(std::uint8_t one, std::uint8_t other) {
  return static_cast<std::uint64_t>(one > other ? one - other : other - one);
}

// `mpmmu_rt.image_figures.figures`, operation by operation.
Figures figures(const std::uint8_t *grey, std::size_t side) {
  Sums rows(side), columns(side);
  std::uint64_t squares = 0, steps_down = 0, steps_right = 0, black = 0, bright = 0;
  for (std::size_t y = 0; y < side; ++y) {
    const std::uint8_t *row = grey + y * side;
    for (std::size_t x = 0; x < side; ++x) {
      const std::uint8_t one = row[x];
      rows[y] += one;
      columns[x] += one;
      squares += std::uint64_t{one} * one;
      black += one < 8;
      bright += one >= 200;
      if (y) steps_down += step(one, row[x - side]);
      if (x) steps_right += step(one, row[x - 1]);
    }
  }
  const auto width = static_cast<double>(side), size = width * width;
  const auto share = [size](std::uint64_t sum) { return static_cast<double>(sum) / size; };
  const double whole = share(std::accumulate(rows.begin(), rows.end(), std::uint64_t{0}));
  const double deviation = std::pow(std::max(0.0, share(squares) - whole * whole), 0.5) / 255;
  const double scale = std::max(deviation, 1e-3), down = share(steps_down) / 255, right = share(steps_right) / 255;
  return {share(black),
          share(bright),
          whole / 255,
          deviation,
          (down + right) / scale,
          std::log((down + 1e-4) / (right + 1e-4)),
          fall(rows, side / 3) / width / 255 / scale,
          std::abs(fall(columns, side / 2)) / width / 255 / scale};
}

std::string two_places(double value) {
  const std::string text = decimal(value, 2);
  return text == "-0.00" ? "0.00" : text;
}

}  // namespace

ImageCheck::ImageCheck(const Json &entry) {
  const auto found = entry.find("modality_check");
  if (found == entry.end() || found->is_null()) return;
  sides_ = Sides{found->at("weights").get<Figures>(), found->at("means").get<Figures>(),
                 found->at("scales").get<Figures>(), found->at("intercept").get<double>(),
                 found->at("margin").get<double>()};
  const auto learnt = found->find("learnt");
  if (learnt == found->end() || learnt->is_null()) return;
  learnt_.emplace();
  for (std::size_t i = 0; i < 2; ++i) {
    const Json &range = learnt->at(kModalities[i]);
    (*learnt_)[i] = {range.at("lowest").get<Figures>(), range.at("highest").get<Figures>(),
                     range.at("margin").get<Figures>()};
  }
}

double ImageCheck::Sides::log_odds(const Figures &image) const {
  double sum = 0;
  for (std::size_t i = 0; i < image.size(); ++i) sum += (image[i] - means[i]) / scales[i] * weights[i];
  return sum + intercept;
}

std::string ImageCheck::Range::against(const Figures &image) const {
  std::size_t worst = 0, outside = 0;
  double most = 0;
  for (std::size_t i = 0; i < image.size(); ++i) {
    const double beyond = std::max(lowest[i] - image[i], image[i] - highest[i]) / margin[i] - 1;
    if (beyond > 0) ++outside;
    if (beyond > most) {
      most = beyond;
      worst = i;
    }
  }
  if (!outside) return "";
  const std::string others = std::to_string(outside - 1) + " other figure" + (outside > 2 ? "s" : "");
  return std::string(kUnlike) + ": " + kNames[worst] + " is " + two_places(image[worst]) + ", theirs " +
         two_places(lowest[worst]) + " to " + two_places(highest[worst]) + (outside > 1 ? " (and " + others + ")" : "");
}

std::string ImageCheck::against(const std::uint8_t *const (&pixels)[2], std::size_t side) const {
  if (!sides_) return "";
  const Figures images[] = {figures(pixels[0], side), figures(pixels[1], side)};
  if (sides_->log_odds(images[0]) < -sides_->margin && sides_->log_odds(images[1]) > sides_->margin) return kSwapped;
  std::string said;
  for (std::size_t i = 0; i < 2 && learnt_; ++i) {
    const std::string one = (*learnt_)[i].against(images[i]);
    if (!one.empty()) said += (said.empty() ? "" : "; ") + std::string(kModalities[i]) + ": " + one;
  }
  return said;
}

}  // namespace mpmmu
