// A contender of `python -m benchmarks.native.table`: native or raw BUNDLE BATCH THREADS SECONDS
//
// native: libmpmmu, as an application uses it. raw: ONNX Runtime by hand, the whole graph `model.onnx` in one session,
// nothing checked. Prints on its first line the resident kB, the median of calls for so many seconds in ms, and the
// processor's time of a call in ms, that of all threads; at 0 seconds one call is made, the parent takes the time, and
// the processor's is that of the process.
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

void measure(const std::function<void()> &call, double seconds) {
  call();
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

void raw(const std::string &bundle, std::size_t batch, unsigned threads, std::size_t side, double seconds) {
  void *library = dlopen(std::getenv("MPMMU_ONNXRUNTIME"), RTLD_NOW);
  require(library, "dlopen");
  const auto base = reinterpret_cast<const ort::ApiBase *(*)()>(dlsym(library, "OrtGetApiBase"))();
  const ort::Api api(base->get_api(ort::kApiVersion));
  ort::Env *env = nullptr;
  ort::Options *options = nullptr;
  ort::Session *session = nullptr;
  ort::MemoryInfo *memory = nullptr;
  require(!api.create_env(ort::kErrors, "raw", &env) && !api.create_options(&options), "an environment");
  require(!api.set_intra_threads(options, static_cast<int>(threads)) && !api.set_inter_threads(options, 1), "threads");
  require(!api.add_config(options, "session.intra_op.allow_spinning", "0"), "settings");
  require(!api.create_session(env, (bundle + "/onnx/model.onnx").c_str(), options, &session), "a session");
  require(!api.cpu_memory(ort::kArena, ort::kDefaultMemory, &memory), "memory");
  const auto count = static_cast<std::int64_t>(batch), length = static_cast<std::int64_t>(side);
  const std::int64_t shape[] = {count, 1, length, length};
  const char *inputs[] = {"mammography_pixels", "ultrasound_pixels"}, *outputs[] = {"probability"};
  const Pixels pixels[] = {noise(batch * side * side, 1), noise(batch * side * side, 2)};
  measure(
      [&] {
        ort::Value *given[2] = {nullptr, nullptr}, *said = nullptr;
        for (int m = 0; m < 2; ++m) {
          void *data = const_cast<unsigned char *>(pixels[m].data());
          require(!api.tensor_of(memory, data, pixels[m].size(), shape, 4, ort::kUint8, &given[m]), "a tensor");
        }
        require(!api.run(session, nullptr, inputs, given, 2, outputs, 1, &said), "a call");
        for (ort::Value *one : {given[0], given[1], said}) api.release_value(one);
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
  else raw(given[2], batch, threads, std::strtoul(given[6], nullptr, 10), seconds);
}
