// A contender of `python -m benchmarks.native.table`: native, raw or parts, and BUNDLE BATCH THREADS SECONDS SIDE
//
// native: libmpmmu, as an application uses it. ONNX Runtime by hand, nothing checked: raw, the whole graph `model.onnx`
// in one session; parts, the four graphs that the library runs, whose gates are exact. Prints on its first line the
// resident kB, the median of calls for so many seconds in ms, and the processor's time of a call in ms, that of all
// threads; at 0 seconds one call is made, the parent takes the time, and the processor's is that of the process.
#include <dlfcn.h>
#include <mpmmu.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include "onnxruntime_abi.h"

namespace {

using Clock = std::chrono::steady_clock;
using Pixels = std::vector<unsigned char>;
using namespace mpmmu;

void require(bool holds, const char *what) {
  if (holds) return;
  std::fprintf(stderr, "error: %s: %s\n", what, mpmmu_last_error());
  std::exit(1);
}

Pixels noise(std::size_t size, unsigned seed) {
  Pixels found(size);
  for (auto &one : found) one = static_cast<unsigned char>((seed = seed * 1664525 + 1013904223) >> 24);
  return found;
}

long resident_kb() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    if (word == "VmRSS:") return status >> word, std::stol(word);
  }
  return 0;
}

// With a batch of a new size ONNX Runtime gets memory in its first call, and plans it and gets it anew in the second.
void measure(const std::function<void()> &call, double seconds) {
  call();
  if (seconds > 0) call();
  std::vector<double> found;
  const std::clock_t spent = seconds > 0 ? std::clock() : 0;
  for (const auto begin = Clock::now(); std::chrono::duration<double>(Clock::now() - begin).count() < seconds;) {
    const auto start = Clock::now();
    call();
    found.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
  }
  const double each = static_cast<double>(std::clock() - spent) / CLOCKS_PER_SEC * 1e3 / std::max(1.0, static_cast<double>(found.size()));
  std::sort(found.begin(), found.end());
  std::printf("%ld %.6f %.6f\n", resident_kb(), found.empty() ? 0.0 : found[found.size() / 2], each);
  std::fflush(stdout);  // the parent takes the time of it
}

void native(const char *bundle, std::size_t batch, unsigned threads, double seconds) {
  mpmmu_options options{};
  options.size = sizeof options;
  options.threads = threads;
  options.target = std::getenv("MPMMU_TARGET");
  mpmmu_model *model = nullptr;
  require(mpmmu_open(bundle, &options, &model) == MPMMU_OK, "mpmmu_open");
  mpmmu_info info{};
  info.size = sizeof info;
  require(mpmmu_get_info(model, &info) == MPMMU_OK, "mpmmu_get_info");
  const std::size_t image = std::size_t{info.preprocessing.side} * info.preprocessing.side;
  const Pixels first = noise(batch * image, 1), second = noise(batch * image, 2);
  std::vector<float> probability(batch);
  mpmmu_outputs outputs{};
  outputs.size = sizeof outputs;
  outputs.probability = probability.data();
  measure(
      [&] { require(mpmmu_predict(model, first.data(), second.data(), batch, &outputs) == MPMMU_OK, "mpmmu_predict"); },
      seconds);
  mpmmu_close(model);
}

// ONNX Runtime by hand: nothing is checked, and what a graph says the next one reads where it lies.
class ByHand {
 public:
  explicit ByHand(unsigned threads) : api_(table()) {
    require(!api_.create_env(ort::kErrors, "raw", &env_) && !api_.create_options(&options_), "an environment");
    require(!api_.set_intra_threads(options_, static_cast<int>(threads)), "threads");
    require(!api_.set_inter_threads(options_, 1), "threads");
    require(!api_.add_config(options_, "session.intra_op.allow_spinning", "0"), "settings");
    require(!api_.cpu_memory(ort::kArena, ort::kDefaultMemory, &memory_), "memory");
  }

  ort::Session *open(const std::string &path) const {
    ort::Session *session = nullptr;
    require(!api_.create_session(env_, path.c_str(), options_, &session), "a session");
    return session;
  }

  ort::Value *tensor(const Pixels &pixels, std::size_t batch, std::size_t side) const {
    const auto length = static_cast<std::int64_t>(side);
    const std::int64_t shape[] = {static_cast<std::int64_t>(batch), 1, length, length};
    ort::Value *made = nullptr;
    auto *data = const_cast<unsigned char *>(pixels.data());
    require(!api_.tensor_of(memory_, data, pixels.size(), shape, 4, ort::kUint8, &made), "a tensor");
    return made;
  }

  // Frees what it is given.
  ort::Value *run(ort::Session *session, const std::vector<const char *> &names, const std::vector<ort::Value *> &given,
                  const char *output) const {
    ort::Value *said = nullptr;
    require(!api_.run(session, nullptr, names.data(), given.data(), names.size(), &output, 1, &said), "a call");
    for (ort::Value *one : given) api_.release_value(one);
    return said;
  }

  void release(ort::Value *value) const { api_.release_value(value); }

 private:
  static ort::Table table() {
    void *library = dlopen(std::getenv("MPMMU_ONNXRUNTIME"), RTLD_NOW);
    require(library, "dlopen");
    return reinterpret_cast<const ort::ApiBase *(*)()>(dlsym(library, "OrtGetApiBase"))()->get_api(ort::kApiVersion);
  }

  ort::Api api_;
  ort::Env *env_ = nullptr;
  ort::Options *options_ = nullptr;
  ort::MemoryInfo *memory_ = nullptr;
};

void raw(const std::string &bundle, bool whole, std::size_t batch, unsigned threads, std::size_t side, double seconds) {
  const ByHand engine(threads);
  const auto open = [&](const std::string &graph) { return engine.open(bundle + "/onnx/" + graph + ".onnx"); };
  const Pixels pixels[] = {noise(batch * side * side, 1), noise(batch * side * side, 2)};
  const auto tensor = [&](int m) { return engine.tensor(pixels[m], batch, side); };
  if (whole) {
    ort::Session *model = open("model");
    measure(
        [&] {
          const std::vector<ort::Value *> given{tensor(0), tensor(1)};
          engine.release(engine.run(model, {"mammography_pixels", "ultrasound_pixels"}, given, "probability"));
        },
        seconds);
    return;
  }
  ort::Session *head = open("head_onnxruntime"), *pool = open("attention_pool_onnxruntime");
  ort::Session *encoders[] = {open("mammography_onnxruntime"), open("ultrasound_onnxruntime")};
  measure(
      [&] {
        std::vector<ort::Value *> maps;
        for (int m = 0; m < 2; ++m) maps.push_back(engine.run(encoders[m], {"pixels"}, {tensor(m)}, "feature_map"));
        ort::Value *embedding =
            engine.run(pool, {"mammography_feature_map", "ultrasound_feature_map"}, maps, "embedding");
        engine.release(engine.run(head, {"embedding"}, {embedding}, "probability"));
      },
      seconds);
}

}  // namespace

int main(int count, char **given) {
  if (count != 6 && count != 7) return 2;
  const std::size_t batch = std::strtoul(given[3], nullptr, 10);
  const auto threads = static_cast<unsigned>(std::strtoul(given[4], nullptr, 10));
  const double seconds = std::atof(given[5]);
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  if (std::string(given[1]) == "native") native(given[2], batch, threads, seconds);
  else raw(given[2], std::string(given[1]) == "raw", batch, threads, std::strtoul(given[6], nullptr, 10), seconds);
}
