// Uses the library for long, and under sanitizers; says on stdout what it found, and fails where an answer differs.
//
//   use threads BUNDLE TARGET CALLS   two threads share a model, each calls so often, and compares
//   use opens BUNDLE TARGET TIMES     opens, predicts and closes; prints resident kB after the first tenth and at the
//   end use checks BUNDLE TIMES           opens without an engine; prints the same use answers BUNDLE TARGET     holds
//   the golden vectors; prints a digest of preprocessed images, and probabilities
#include <mpmmu.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr std::size_t kMostCases = 3;

void require(mpmmu_status status) {
  if (status == MPMMU_OK) return;
  std::fprintf(stderr, "error: %s\nhint: %s\n", mpmmu_last_error(), mpmmu_last_hint());
  std::exit(1);
}

mpmmu_model *opened(const char *bundle, const char *target, std::uint32_t threads = 1) {
  mpmmu_options options{};
  options.size = sizeof options;
  options.target = target;
  options.threads = threads;
  mpmmu_model *model = nullptr;
  require(mpmmu_open(bundle, &options, &model));
  return model;
}

std::vector<unsigned char> noise(std::size_t size, unsigned seed) {
  std::vector<unsigned char> found(size);
  for (auto &one : found) one = static_cast<unsigned char>((seed = seed * 1664525 + 1013904223) >> 24);
  return found;
}

struct Answers {
  float probability[kMostCases];
  unsigned char malignant[kMostCases];
};

Answers predicted(mpmmu_model *model, std::size_t cases) {
  mpmmu_info info{};
  info.size = sizeof info;
  require(mpmmu_get_info(model, &info));
  const std::size_t image = std::size_t{info.preprocessing.side} * info.preprocessing.side;
  const auto first = noise(cases * image, static_cast<unsigned>(cases)), second = noise(cases * image, 99);
  Answers answers{};
  mpmmu_outputs outputs{};
  outputs.size = sizeof outputs;
  outputs.probability = answers.probability;
  outputs.malignant = answers.malignant;
  require(mpmmu_predict(model, first.data(), second.data(), cases, &outputs));
  return answers;
}

long resident_kb() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    if (word == "VmRSS:") return status >> word, std::stol(word);
  }
  return 0;
}

// of_model: with more than one it loads its parts beside each other.
int threads(const char *bundle, const char *target, long calls, std::uint32_t of_model) {
  mpmmu_model *model = opened(bundle, target, of_model);
  Answers want[kMostCases + 1];
  for (std::size_t cases = 1; cases <= kMostCases; ++cases) want[cases] = predicted(model, cases);
  std::atomic<long> wrong{0};
  const auto work = [&](std::size_t start) {
    for (long call = 0; call < calls; ++call) {
      const std::size_t cases = 1 + (start + static_cast<std::size_t>(call)) % kMostCases;
      const Answers got = predicted(model, cases);
      wrong += std::memcmp(&got, &want[cases], sizeof got) != 0;
      if (call % 100 == 0 && mpmmu_predict(model, nullptr, nullptr, 1, nullptr) == MPMMU_OK) ++wrong;  // an error each
    }
  };
  std::thread first(work, 0), second(work, 1);
  first.join();
  second.join();
  mpmmu_close(model);
  std::printf("%ld calls, %ld wrong\n", 2 * calls, wrong.load());
  return wrong != 0;
}

// FNV-1a of the pixels of images of many shapes: to the bit the same on every processor. Those that would be a single
// grey value to the model are refused, and black.
std::uint64_t preprocessed() {
  std::uint64_t found = 14695981039346656037u;
  for (unsigned i = 1; i <= 200; ++i) {
    const std::size_t height = 1 + i * 7919 % 301, width = 1 + i * 104729 % 257;
    const mpmmu_preprocessing how{1 + i * 31 % 96, i % 3 != 0, i % 2};
    const auto grey = noise(height * width, i);
    std::vector<unsigned char> pixels(std::size_t{how.side} * how.side);
    const mpmmu_status status =
        mpmmu_preprocess(&how, grey.data(), height, width, 0.5 + (i % 17) / 10.0, pixels.data());
    if (status != MPMMU_PIXELS_ERROR) require(status);
    for (const unsigned char one : pixels) found = (found ^ one) * 1099511628211u;
  }
  return found;
}

int answers(const char *bundle, const char *target) {
  mpmmu_model *model = opened(bundle, target);
  require(mpmmu_self_test(model, nullptr));
  std::printf("%016llx", static_cast<unsigned long long>(preprocessed()));
  for (std::size_t cases = 1; cases <= kMostCases; ++cases) {
    const Answers said = predicted(model, cases);
    for (std::size_t row = 0; row < cases; ++row) std::printf(" %.9g", static_cast<double>(said.probability[row]));
  }
  std::printf("\n");
  mpmmu_close(model);
  return 0;
}

template <class Do>
int repeated(long times, Do once) {
  long early = 0;
  for (long i = 0; i < times; ++i) {
    once();
    if (i == times / 10) early = resident_kb();
    if (times > 1000 && i % 1000 == 0) std::fprintf(stderr, "%ld: %ld kB\n", i, resident_kb());
  }
  std::printf("%ld times, %ld kB after a tenth, %ld kB at the end\n", times, early, resident_kb());
  return 0;
}

}  // namespace

int main(int count, char **given) {
  const std::string what = count > 1 ? given[1] : "";
  if (what == "threads" && count == 6) {
    return threads(given[2], given[3], std::atol(given[4]), static_cast<std::uint32_t>(std::atol(given[5])));
  }
  if (what == "opens" && count == 5) {
    return repeated(std::atol(given[4]), [&] {
      mpmmu_model *model = opened(given[2], given[3]);
      predicted(model, 1);
      mpmmu_close(model);
    });
  }
  if (what == "checks" && count == 4) return repeated(std::atol(given[3]), [&] { require(mpmmu_check(given[2])); });
  if (what == "answers" && count == 4) return answers(given[2], given[3]);
  return 2;
}
