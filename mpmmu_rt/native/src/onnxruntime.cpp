// ONNX Runtime on the processor, FP32: `mpmmu_rt/engines/onnxruntime.py`, with the same graphs, settings and order.

#include <dlfcn.h>

#include <algorithm>
#include <map>
#include <new>

#include "engine.h"
#include "files.h"
#include "onnxruntime_abi.h"

namespace mpmmu {
namespace {

constexpr const char *kInstall =
    "install ONNX Runtime 1.20 or later, but not 1.26.0, or name its library: MPMMU_ONNXRUNTIME=/…/libonnxruntime.so";
// mpmmu_rt.facts.KNOWN_BAD: releases whose results are wrong for these graphs.
constexpr const char *kBad = "1.26.0", *kWhy = "random forests give wrong probabilities (microsoft/onnxruntime#28557)";

constexpr const char *kEngine = "ONNX Runtime";

std::string first_line(const std::string &message) {
  return message.substr(0, std::min<std::size_t>(message.find('\n'), 300));
}

// The library, and its one environment: made once in a process, and never freed.
struct Runtime {
  ort::Api api;
  std::string version;
  ort::Env *env = nullptr;
  ort::MemoryInfo *memory = nullptr;
  ort::Allocator *allocator = nullptr;

  Runtime(ort::Table table, std::string said) : api(table), version(std::move(said)) {
    check(api.create_env(ort::kErrors, "mpmmu", &env));
    check(api.disable_telemetry(env));
    check(api.cpu_memory(ort::kArena, ort::kDefaultMemory, &memory));
    check(api.default_allocator(&allocator));
  }

  // Throws what the status says.
  void check(ort::Status *status) const {
    if (!status) return;
    const Owned<ort::Status> owned(status, api.release_status);
    throw std::runtime_error(first_line(api.error_message(status)));
  }

  static const Runtime &of(const std::string &library) {
    void *handle =
        load_library(library, {"libonnxruntime.so.1", "libonnxruntime.so"}, "the target onnxruntime:fp32", kInstall);
    return made_once<Runtime>(handle, [&] { return made(handle, library); });
  }

 private:
  static const Runtime *made(void *handle, const std::string &library) {
    const auto get = reinterpret_cast<const ort::ApiBase *(*)()>(::dlsym(handle, "OrtGetApiBase"));
    if (!get) {
      throw Failure(MPMMU_MISSING_LIBRARY, library + " has no symbol OrtGetApiBase, expected ONNX Runtime", kInstall);
    }
    const std::string version = get()->get_version_string();
    if (version == kBad) {
      throw Failure(MPMMU_ENGINE_ERROR, "onnxruntime " + version + " is known to be wrong: " + kWhy, kInstall);
    }
    // What is too old says so on stderr, and gives NULL.
    const ort::Table table = get()->get_api(ort::kApiVersion);
    if (!table)
      throw Failure(MPMMU_ENGINE_ERROR, "this is ONNX Runtime " + version + ", expected 1.20 or later", kInstall);
    try {
      return new Runtime(table, version);
    } catch (const std::runtime_error &error) {
      throw Failure(MPMMU_ENGINE_ERROR, std::string("ONNX Runtime can't start: ") + error.what(), kInstall);
    }
  }
};

using Shape = std::vector<std::int64_t>;

// A loaded graph. Threads may share it.
class Session {
 public:
  Session(const Runtime &runtime, const std::string &path, unsigned threads)
      : runtime_(runtime), name_(path.substr(path.rfind('/') + 1)), session_(nullptr, runtime.api.release_session) {
    naming(cannot_load, kEngine, name_, [&] { load(path, threads); });
  }

  Failure lacks(const std::string &output) const { return failed(kEngine, name_, "it has no output `" + output + "`"); }

  // The shape of an output, whose batch is -1; nothing where there is no such output. All of them are float32.
  const Shape *output(const std::string &name) const {
    const auto found = outputs_.find(name);
    return found == outputs_.end() ? nullptr : &found->second;
  }

  // Its lengths behind the batch, multiplied.
  std::size_t output_size(const std::string &name) const {
    const Shape *shape = output(name);
    if (shape && shape->empty()) shape = nullptr;
    std::size_t size = 1;
    for (std::size_t i = 1; shape && i < shape->size(); ++i) {
      const std::int64_t length = (*shape)[i];
      if (length < 1) shape = nullptr;
      else size *= static_cast<std::size_t>(length);
    }
    if (!shape) throw failed(kEngine, name_, "it has no output `" + name + "` whose batch alone is dynamic");
    return size;
  }

  struct Place {
    const char *name;
    const void *data;
    Shape shape;
    int type = ort::kFloat;
  };

  // Computes into the memory of each output.
  void run(const std::vector<Place> &inputs, const std::vector<Place> &outputs) const {
    naming(failed, kEngine, name_, [&] {
      std::vector<Owned<ort::Value>> owned;
      std::vector<const char *> names[2];
      std::vector<ort::Value *> values[2];
      for (int side = 0; side < 2; ++side) {
        for (const Place &place : side ? outputs : inputs) {
          owned.push_back(tensor(place));
          names[side].push_back(place.name);
          values[side].push_back(owned.back().get());
        }
      }
      runtime_.check(runtime_.api.run(session_.get(), nullptr, names[0].data(), values[0].data(), names[0].size(),
                                      names[1].data(), names[1].size(), values[1].data()));
    });
  }

 private:
  void load(const std::string &path, unsigned threads) {
    const ort::Api &api = runtime_.api;
    ort::Options *made = nullptr;
    runtime_.check(api.create_options(&made));
    const Owned<ort::Options> options(made, api.release_options);
    runtime_.check(api.set_intra_threads(made, static_cast<int>(threads)));
    runtime_.check(api.set_inter_threads(made, 1));
    runtime_.check(api.set_log_level(made, ort::kErrors));
    // Threads that spin for more work take the cores from whatever runs next.
    runtime_.check(api.add_config(made, "session.intra_op.allow_spinning", "0"));
    ort::Session *session = nullptr;
    runtime_.check(api.create_session(runtime_.env, path.c_str(), made, &session));
    session_.reset(session);
    std::size_t count = 0;
    runtime_.check(api.output_count(session, &count));
    for (std::size_t i = 0; i < count; ++i) read_output(i);
  }

  void read_output(std::size_t index) {
    const ort::Api &api = runtime_.api;
    char *name = nullptr;
    runtime_.check(api.output_name(session_.get(), index, runtime_.allocator, &name));
    const std::string kept = name;
    runtime_.check(api.allocator_free(runtime_.allocator, name));
    ort::TypeInfo *type = nullptr;
    runtime_.check(api.output_type(session_.get(), index, &type));
    const Owned<ort::TypeInfo> owned(type, api.release_type);
    const ort::ShapeInfo *info = nullptr;  // belongs to the type
    runtime_.check(api.tensor_info(type, &info));
    int element = 0;
    if (info) runtime_.check(api.element_type(info, &element));
    if (element != ort::kFloat) throw std::runtime_error("its output `" + kept + "` is not float32");
    std::size_t rank = 0;
    runtime_.check(api.rank(info, &rank));
    Shape &shape = outputs_[kept];
    shape.resize(rank);
    runtime_.check(api.dimensions(info, shape.data(), rank));
  }

  Owned<ort::Value> tensor(const Place &place) const {
    std::size_t bytes = place.type == ort::kFloat ? sizeof(float) : 1;
    for (const std::int64_t length : place.shape) bytes *= static_cast<std::size_t>(length);
    ort::Value *value = nullptr;
    runtime_.check(runtime_.api.tensor_of(runtime_.memory, const_cast<void *>(place.data), bytes, place.shape.data(),
                                          place.shape.size(), place.type, &value));
    return {value, runtime_.api.release_value};
  }

  const Runtime &runtime_;
  std::string name_;
  Owned<ort::Session> session_;
  std::map<std::string, Shape> outputs_;
};

// Feature maps of one caller, for the largest batch that it has met.
struct Maps {
  std::size_t cases = 0;
  std::unique_ptr<float[]> data[2];
};

class OnnxRuntimeEmbedder final : public Embedder {
 public:
  OnnxRuntimeEmbedder(const Bundle &bundle, Session mammography, Session ultrasound, Session pool)
      : side_(bundle.preprocessing.side),
        width_(bundle.width),
        encoders_{std::move(mammography), std::move(ultrasound)},
        pool_(std::move(pool)) {
    for (int m = 0; m < 2; ++m) sizes_[m] = encoders_[m].output_size("feature_map");
  }

  void embed(const std::uint8_t *const (&pixels)[2], std::size_t cases, float *embedding) override {
    lanes_.with([] { return std::make_unique<Maps>(); },
                [&](Maps &maps) {
                  if (cases > maps.cases) grow(maps, cases);
                  run(maps, pixels, cases, embedding);
                });
  }

 private:
  void grow(Maps &maps, std::size_t cases) const {
    maps.cases = 0;
    for (int m = 0; m < 2; ++m) {
      maps.data[m].reset();  // freed first: two generations need not fit
      maps.data[m].reset(new (std::nothrow) float[cases * sizes_[m]]);
      if (!maps.data[m]) {
        throw Failure(MPMMU_OUT_OF_MEMORY,
                      "there is no memory on `cpu` for the feature maps of " + std::to_string(cases) + " cases",
                      "use smaller batches");
      }
    }
    maps.cases = cases;
  }

  void run(Maps &maps, const std::uint8_t *const (&pixels)[2], std::size_t cases, float *embedding) const {
    const auto count = static_cast<std::int64_t>(cases), side = static_cast<std::int64_t>(side_);
    std::vector<Session::Place> pooled;
    for (int m = 0; m < 2; ++m) {
      Shape shape = *encoders_[m].output("feature_map");
      shape[0] = count;
      encoders_[m].run({{"pixels", pixels[m], {count, 1, side, side}, ort::kUint8}},
                       {{"feature_map", maps.data[m].get(), shape}});
      pooled.push_back({m ? "ultrasound_feature_map" : "mammography_feature_map", maps.data[m].get(), shape});
    }
    pool_.run(pooled, {{"embedding", embedding, {count, static_cast<std::int64_t>(width_)}}});
  }

  std::size_t side_, width_, sizes_[2];
  Session encoders_[2], pool_;
  Lanes<Maps> lanes_;
};

class OnnxRuntimeHead final : public Head {
 public:
  OnnxRuntimeHead(const Runtime &runtime, const Bundle &bundle, unsigned threads)
      : width_(bundle.width), session_(runtime, bundle.graph("head_onnxruntime"), threads) {
    if (!session_.output("probability")) throw session_.lacks("probability");
    if (session_.output("base_probability")) learners_ = session_.output_size("base_probability");
  }

  std::size_t learners() const override { return learners_; }

  void run(const float *embedding, std::size_t cases, float *probability, float *base) override {
    const auto count = static_cast<std::int64_t>(cases);
    std::vector<Session::Place> outputs{{"probability", probability, {count}}};
    if (base) outputs.push_back({"base_probability", base, {count, static_cast<std::int64_t>(learners_)}});
    session_.run({{"embedding", embedding, {count, static_cast<std::int64_t>(width_)}}}, outputs);
  }

 private:
  std::size_t width_, learners_ = 0;
  Session session_;
};

}  // namespace

std::string onnxruntime_version(const std::string &library) { return Runtime::of(library).version; }

std::unique_ptr<Embedder> onnxruntime_embedder(const Bundle &bundle, const Wanted &wanted) {
  const Runtime &runtime = Runtime::of(wanted.library);
  const auto load = [&](const char *graph) { return Session(runtime, bundle.graph(graph), wanted.threads); };
  // Optimising a graph takes one thread, whatever the session may use afterwards.
  auto second = std::async(beside(wanted.threads), load, "ultrasound_onnxruntime");
  Session first = load("mammography_onnxruntime"), pool = load("attention_pool_onnxruntime");
  return std::make_unique<OnnxRuntimeEmbedder>(bundle, std::move(first), second.get(), std::move(pool));
}

std::unique_ptr<Head> onnxruntime_head(const Bundle &bundle, const Wanted &wanted) {
  return std::make_unique<OnnxRuntimeHead>(Runtime::of(wanted.library), bundle, wanted.threads);
}

}  // namespace mpmmu
