// OpenVINO on the processor: `mpmmu_rt/engines/openvino.py`, with the same graphs, settings, streams and checks. What
// Python keeps on disk of INT8 is compiled anew at every start here.

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <list>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <tuple>

#include "engine.h"
#include "join.h"
#include "openvino_abi.h"

namespace mpmmu {
namespace {

constexpr const char *kPurpose = "the targets openvino:fp32, openvino:bf16, openvino:int8 and openvino:int8-bf16";
constexpr const char *kInstall =
    "install OpenVINO 2025.0 or later, or name its C library: MPMMU_OPENVINO=/…/libopenvino_c.so";
constexpr const char *kUseFp32 = "use openvino:fp32";
constexpr std::size_t kCasesPerRequest = 4;  // mpmmu_rt.engines.openvino.CASES_PER_REQUEST
constexpr std::size_t kLeastRequests = 4;  // of several, for each stream
constexpr int kLanesPerStream = 2;  // one runs, one waits
constexpr const char *kWithoutBf16[] = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"};

constexpr const char *kEngine = "OpenVINO";

// OpenVINO's messages begin with where in its sources they were raised: the last line.
std::string last_line(const std::string &said) {
  const std::size_t end = said.find_last_not_of(" \t\r\n");
  if (end == std::string::npos) return "it does not say why";
  const std::size_t begin = said.rfind('\n', end);
  return said.substr(begin == std::string::npos ? 0 : begin + 1, std::min<std::size_t>(end - begin, 300));
}

// The library: made once in a process, and never freed.
struct Runtime {
  ov::Api api{};
  std::string version;

  // Throws what OpenVINO says.
  void check(ov::Status status) const {
    if (status == 0) return;
    const char *said = api.get_last_err_msg();
    const std::string reason = said ? said : "";
    if (said) api.free(said);
    throw std::runtime_error(last_line(reason));
  }

  std::string text(char *value) const {
    const std::string found = value ? value : "";
    api.free(value);
    return found;
  }

  // One for each loaded model, and gone with it: a core keeps the threads of models that are closed for the next one,
  // which in a fork would wait for them without end.
  Owned<ov::Core> core() const {
    ov::Core *made = nullptr;
    try {
      check(api.core_create(&made));
    } catch (const std::runtime_error &error) {
      throw cannot_start(error);
    }
    return {made, api.core_free};
  }

  static const Runtime &of(const std::string &library) {
    void *handle = load_library(library, {"libopenvino_c.so"}, kPurpose, kInstall);
    return made_once<Runtime>(handle, [&] { return made(handle, library); });
  }

 private:
  static const Runtime *made(void *handle, const std::string &library) {
    auto runtime = std::make_unique<Runtime>();
#define MPMMU_TAKE(name, result, parameters)                                                                     \
  runtime->api.name = reinterpret_cast<decltype(runtime->api.name)>(::dlsym(handle, "ov_" #name));               \
  if (!runtime->api.name) {                                                                                      \
    throw Failure(MPMMU_MISSING_LIBRARY, library + " has no symbol ov_" #name ", expected OpenVINO's C library", \
                  kInstall);                                                                                     \
  }
    MPMMU_OPENVINO(MPMMU_TAKE)
#undef MPMMU_TAKE
    try {
      ov::Version version{};
      runtime->check(runtime->api.get_openvino_version(&version));
      runtime->version = std::string(version.build).substr(0, std::string(version.build).find('-'));
      runtime->api.version_free(&version);
    } catch (const std::runtime_error &error) {
      throw cannot_start(error);
    }
    return runtime.release();
  }

  static Failure cannot_start(const std::runtime_error &error) {
    return Failure(MPMMU_ENGINE_ERROR, std::string("OpenVINO can't start: ") + error.what(), kInstall);
  }
};

// Of what is not 8 bits wide. In INT8 it stays FP32, so that the graph alone decides the result, not the processor: but
// for `int8-bf16`, a target of its own.
const char *inference_precision(const std::string &precision) {
  return precision == "bf16" || precision == "int8-bf16" ? "bf16" : "f32";
}

struct Compiled {
  const Runtime &runtime;
  Owned<ov::Compiled> model;

  // Throws Failure, also unless OpenVINO computes in what was asked for.
  static Compiled make(const Runtime &runtime, const ov::Core *core, const ov::Model *model,
                       const std::string &precision, unsigned threads, unsigned streams, const std::string &name) {
    const std::string count = std::to_string(streams), most = std::to_string(threads),
                      wanted = inference_precision(precision);
    return naming(cannot_load, kEngine, name, [&] {
      ov::Compiled *made = nullptr;
      // Pinned, two models on one machine would sit on the same cores. A profile tells what INT8 really runs in; it
      // stays on, at some 0.05 ms a call, for to compile once more would take as long as all of the start.
      runtime.check(runtime.api.core_compile_model(core, model, "CPU", 10, &made, "INFERENCE_PRECISION_HINT",
                                                   wanted.c_str(), "NUM_STREAMS", count.c_str(),
                                                   "INFERENCE_NUM_THREADS", most.c_str(), "ENABLE_CPU_PINNING", "NO",
                                                   "PERF_COUNT", in_8_bits(precision) ? "YES" : "NO"));
      Compiled compiled{runtime, {made, runtime.api.compiled_model_free}};
      char *value = nullptr;
      runtime.check(runtime.api.compiled_model_get_property(made, "INFERENCE_PRECISION_HINT", &value));
      if (const std::string achieved = runtime.text(value); achieved != wanted) {
        throw Failure(MPMMU_ENGINE_ERROR,
                      "OpenVINO computes " + name + " in " + achieved + " on this processor, expected " + wanted,
                      kUseFp32);
      }
      return compiled;
    });
  }

  Owned<ov::Request> request() const {
    ov::Request *made = nullptr;
    runtime.check(runtime.api.compiled_model_create_infer_request(model.get(), &made));
    return {made, runtime.api.infer_request_free};
  }
};

// Bytes of a tensor of a request. Throws where there is no such tensor.
std::size_t bytes_of(const Runtime &runtime, const ov::Request *request, const char *name, void **data = nullptr) {
  ov::Tensor *tensor = nullptr;
  runtime.check(runtime.api.infer_request_get_tensor(request, name, &tensor));
  const Owned<ov::Tensor> owned(tensor, runtime.api.tensor_free);
  std::size_t size = 0;
  runtime.check(runtime.api.tensor_get_byte_size(tensor, &size));
  if (data) runtime.check(runtime.api.tensor_data(tensor, data));
  return size;
}

// The memory of a tensor of a request, which must have that many bytes.
void *memory(const Runtime &runtime, const ov::Request *request, const char *name, std::size_t bytes) {
  void *data = nullptr;
  const std::size_t size = bytes_of(runtime, request, name, &data);
  if (size != bytes)
    throw std::runtime_error(std::string("`") + name + "` has " + std::to_string(size) + " bytes, expected " +
                             std::to_string(bytes));
  return data;
}

// What is compiled. cases: of a request. apart: a model for each modality, with its own threads, and not one for both.
struct Shape {
  unsigned streams;
  std::size_t cases = 1;
  bool apart = false;

  bool operator<(const Shape &other) const {
    return std::tie(streams, cases, apart) < std::tie(other.streams, other.cases, other.apart);
  }
};

// What a request says: the next `columns` of the embedding.
struct Said {
  const float *values;
  std::size_t columns;
};

// A request of each model, that run at the same time, and their buffers. row: the first of the batch that they hold.
class Lane {
 public:
  void *pixels[2] = {};
  std::size_t row = 0;

  // image, width: bytes of the pixels and values of the embedding of all cases.
  Lane(const std::vector<Compiled> &models, std::size_t cases, std::size_t image, std::size_t width)
      : runtime_(models.front().runtime), cases_(cases), width_(width / cases) {
    const bool apart = models.size() > 1;
    std::size_t rest = width_;
    for (std::size_t i = 0; i < models.size(); ++i) {
      requests_.push_back(models[i].request());
      const auto *own = requests_.back().get();
      for (std::size_t m = 0; m < 2; ++m) {
        const std::string name = std::string(kModalities[m]) + "_pixels";
        if (!apart || m == i) pixels[m] = memory(runtime_, own, name.c_str(), image);
      }
      const bool last = i + 1 == models.size();
      const std::size_t columns = last ? rest : bytes_of(runtime_, own, "embedding") / sizeof(float) / cases;
      said_.push_back({static_cast<const float *>(memory(runtime_, own, "embedding", cases * columns * sizeof(float))),
                       columns});
      rest -= std::min(rest, columns);
    }
  }

  // Where it throws, nothing of it runs.
  void start() {
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      const ov::Status status = runtime_.api.infer_request_start_async(requests_[i].get());
      if (status == 0) continue;
      while (i > 0) runtime_.api.infer_request_wait(requests_[--i].get());
      runtime_.check(status);
    }
  }

  // Nothing of it runs afterwards, whether it throws or not.
  void wait() {
    ov::Status found = 0;
    for (const auto &request : requests_) {
      const ov::Status status = runtime_.api.infer_request_wait(request.get());
      if (found == 0) found = status;
    }
    runtime_.check(found);
  }

  void finish() noexcept {
    for (const auto &request : requests_) runtime_.api.infer_request_wait(request.get());
  }

  void copy_to(float *embedding) const {
    for (std::size_t i = 0; i < cases_; ++i) {
      float *to = embedding + i * width_;
      for (const Said &one : said_) to = std::copy_n(one.values + i * one.columns, one.columns, to);
    }
  }

  ov::Request *request(std::size_t model) { return requests_[model].get(); }

 private:
  const Runtime &runtime_;
  std::size_t cases_, width_;
  std::vector<Owned<ov::Request>> requests_;
  std::vector<Said> said_;
};

// Compiled for a number of streams and of cases in a request, and the lanes that feed them.
class Streams {
 public:
  // models: the joined one, or one for each modality. image, width: bytes of the pixels and values of the embedding of
  // one case.
  Streams(std::vector<Compiled> models, const Shape &shape, std::size_t image, std::size_t width)
      : models_(std::move(models)), cases_(shape.cases), image_(cases_ * image), width_(cases_ * width) {
    for (unsigned i = 0; i < kLanesPerStream * shape.streams; ++i) lanes_.emplace_back(models_, cases_, image_, width_);
    for (Lane &lane : lanes_) idle_.push_back(&lane);
  }

  // cases: a multiple of those of a request. Any number of threads may call it; they share the lanes.
  void run(const std::uint8_t *const (&pixels)[2], std::size_t cases, float *embedding) {
    Flying flying{*this, {}, embedding};
    for (std::size_t row = 0; row < cases / cases_; ++row) {
      Lane *lane = take(flying);
      lane->row = row;
      for (int m = 0; m < 2; ++m) std::memcpy(lane->pixels[m], pixels[m] + row * image_, image_);
      lane->start();
    }
    while (!flying.lanes.empty()) flying.land();
  }

  // Throws unless each model computes a layer in 8 bits, by OpenVINO's own word; graphs without convolutions prove
  // nothing.
  void require_8_bits(const std::string &name) {
    Lane &lane = lanes_.front();
    for (void *pixels : lane.pixels) std::memset(pixels, 0, image_);
    lane.start();
    lane.wait();
    for (std::size_t model = 0; model < models_.size(); ++model) {
      if (narrow(lane.request(model))) continue;
      throw Failure(MPMMU_ENGINE_ERROR,
                    "OpenVINO computes no layer of " + name + " in 8 bits on this processor, expected most of them",
                    kUseFp32);
    }
  }

 private:
  // Whether a layer was computed in 8 bits, or there was no convolution.
  bool narrow(const ov::Request *request) const {
    const Runtime &runtime = models_.front().runtime;
    ov::Layers found{};
    runtime.check(runtime.api.infer_request_get_profiling_info(request, &found));
    std::size_t convolutions = 0, narrow = 0;
    for (std::size_t i = 0; i < found.size; ++i) {
      const std::string kind = found.layers[i].node_type, runs = found.layers[i].exec_type;
      if (kind != "Convolution") continue;
      const std::string ends = runs.size() < 3 ? "" : runs.substr(runs.size() - 3);  // brgconv_avx512_I8, …_f32
      ++convolutions;
      narrow += ends == "_I8" || ends == "_i8" || ends == "_U8" || ends == "_u8";
    }
    runtime.api.profiling_info_list_free(&found);
    return narrow > 0 || convolutions == 0;
  }

  struct Flying {
    Streams &streams;
    std::list<Lane *> lanes;
    float *embedding;

    void land() {
      Lane &lane = *lanes.front();
      lane.wait();
      lane.copy_to(embedding + lane.row * streams.width_);
      streams.give_back(lanes);
    }

    ~Flying() {  // after a failure: nobody may get a lane that still runs
      while (!lanes.empty()) {
        lanes.front()->finish();
        streams.give_back(lanes);
      }
    }
  };

  // An idle lane; where there is none, the oldest of our own, or else one that another thread returns. It flies from
  // here on: whatever happens, it is given back.
  Lane *take(Flying &flying) {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      if (idle_.empty() && flying.lanes.empty()) returned_.wait(lock, [this] { return !idle_.empty(); });
      if (!idle_.empty()) {
        flying.lanes.splice(flying.lanes.end(), idle_, idle_.begin());
        return flying.lanes.back();
      }
      lock.unlock();
      flying.land();
    }
  }

  // The first of them. Elements of lists are moved, and none made: nothing here can fail while a failure is on its way.
  void give_back(std::list<Lane *> &lanes) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.splice(idle_.end(), lanes, lanes.begin());
    returned_.notify_one();
  }

  std::vector<Compiled> models_;
  std::size_t cases_, image_, width_;  // of a request
  std::deque<Lane> lanes_;
  std::mutex mutex_;
  std::condition_variable returned_;
  std::list<Lane *> idle_;
};

// Throws where this processor does not compute in BF16, or was told not to.
void require_bf16(const Runtime &runtime, const ov::Core *core) {
  char *value = nullptr;
  runtime.check(runtime.api.core_get_property(core, "CPU", "OPTIMIZATION_CAPABILITIES", &value));
  const std::string able = runtime.text(value);
  if (able.find("BF16") == std::string::npos) {
    throw Failure(MPMMU_ENGINE_ERROR, "this processor computes " + able + ", expected BF16 (AVX-512 BF16 or AMX)",
                  "use openvino:fp32 or openvino:int8");
  }
  // What OpenVINO says it is able to do is the processor's word, whatever oneDNN was told to leave unused.
  std::string held;
  for (const char *variable : {"ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"}) {
    const char *named = std::getenv(variable);
    if (held.empty() && named) held = named;
  }
  std::transform(held.begin(), held.end(), held.begin(),
                 [](unsigned char one) { return static_cast<char>(std::toupper(one)); });
  if (std::any_of(std::begin(kWithoutBf16), std::end(kWithoutBf16), [&](const char *one) { return held == one; })) {
    throw Failure(MPMMU_ENGINE_ERROR,
                  "ONEDNN_MAX_CPU_ISA holds this processor to " + held + ", expected AVX512_CORE or later for BF16",
                  "unset ONEDNN_MAX_CPU_ISA and DNNL_MAX_CPU_ISA, or use openvino:fp32 or openvino:int8");
  }
}

class OpenVinoEmbedder final : public Embedder {
 public:
  OpenVinoEmbedder(const Runtime &runtime, const Bundle &bundle, const Wanted &wanted)
      : runtime_(runtime),
        core_(runtime.core()),
        wanted_(wanted),
        name_(bundle.name()),
        image_(bundle.preprocessing.side * bundle.preprocessing.side),
        width_(bundle.width),
        side_(static_cast<std::int64_t>(bundle.preprocessing.side)),
        bundle_(bundle),
        models_{{nullptr, runtime.api.model_free}, {nullptr, runtime.api.model_free}, {nullptr, runtime.api.model_free}},
        may_part_(wanted.threads > 1) {
    naming(cannot_load, kEngine, "the graphs of " + name_, [&] {
      if (inference_precision(wanted.precision) == std::string("bf16")) require_bf16(runtime, core_.get());
      bytes_ = joined_model(bundle, wanted.precision);
    });
    of_one(1);
    bytes_ = Buffer(0);
  }

  void embed(const std::uint8_t *const (&pixels)[2], std::size_t cases, float *embedding) override {
    unsigned count = 1;  // powers of two: a process holds few, whatever batches it meets
    while (count * 2 <= std::min<std::size_t>(cases, wanted_.threads)) count *= 2;
    const std::size_t full = count * together();  // what keeps all streams busy with requests of several
    Streams *several = together() > 1 && cases >= kLeastRequests * full ? of_several(count) : nullptr;
    const std::size_t whole = several ? cases - cases % full : 0;
    if (several) naming(failed, kEngine, name_, [&] { several->run(pixels, whole, embedding); });
    if (whole == cases) return;
    Streams &alone = of_one(count);
    const std::uint8_t *const rest[] = {pixels[0] + whole * image_, pixels[1] + whole * image_};
    naming(failed, kEngine, name_, [&] { alone.run(rest, cases - whole, embedding + whole * width_); });
  }

 private:
  using Model = Owned<ov::Model>;

  void reshape(ov::Model *model, std::size_t cases, std::size_t first, std::size_t inputs) const {
    const auto count = static_cast<std::int64_t>(cases);
    ov::Dimension dims[] = {{count, count}, {1, 1}, {side_, side_}, {side_, side_}};
    const ov::PartialShape shapes[] = {{{4, 4}, dims}, {{4, 4}, dims}};
    const char *names[] = {"mammography_pixels", "ultrasound_pixels"};
    runtime_.check(runtime_.api.model_reshape(model, names + first, shapes, inputs));
  }

  // Of a request; see `mpmmu_rt.engines.openvino.CASES_PER_REQUEST`.
  std::size_t together() const { return one_by_one_ || wanted_.precision == "int8" ? 1 : kCasesPerRequest; }

  // Streams of requests of one case. Where they would get several threads each, the encoders run beside each other,
  // unless they can't be had so, or say something else than the joined model does where that is there too.
  Streams &of_one(unsigned count) {
    const bool apart = may_part_ && 2 * count <= wanted_.threads;  // asked once: another thread may forbid it meanwhile
    Streams *found = made({count, 1, apart});
    const bool agree = may_part_ && halves_agree();  // those of before, too, where this is the joined model
    if (!apart || (found && agree)) return *found;
    may_part_ = false;
    return of_one(count);
  }

  bool halves_agree() {
    const std::lock_guard<std::mutex> lock(mutex_);
    Streams *joined = nullptr;
    for (const auto &[shape, streams] : streams_) {
      if (shape.cases == 1 && !shape.apart) joined = streams.get();
    }
    for (const auto &[shape, streams] : streams_) {
      if (!joined || !shape.apart || compared_.count(shape)) continue;
      if (!agree(*joined, *streams, 1)) may_part_ = false;
      compared_.insert(shape);
    }
    return may_part_;
  }

  // Streams of requests of several cases; nothing where they say something else of noise than requests of one do.
  Streams *of_several(unsigned count) {
    Streams &alone = *made({count}), &several = *made({count, kCasesPerRequest});
    const std::lock_guard<std::mutex> lock(agreement_);
    if (!agreed_.count(count)) {
      if (!agree(alone, several, kCasesPerRequest)) one_by_one_ = true;
      agreed_.insert(count);
    }
    return one_by_one_ ? nullptr : &several;
  }

  // Whether two say the same of noise, to the bit.
  bool agree(Streams &alone, Streams &other, std::size_t cases) const {
    std::vector<std::uint8_t> noise(2 * cases * image_);
    std::minstd_rand drawn;
    for (std::uint8_t &pixel : noise) pixel = static_cast<std::uint8_t>(drawn() >> 8);
    const std::uint8_t *const pixels[] = {noise.data(), noise.data() + cases * image_};
    std::vector<float> one(cases * width_), two(one.size());
    naming(failed, kEngine, name_, [&] {
      alone.run(pixels, cases, one.data());
      other.run(pixels, cases, two.data());
    });
    return one == two;
  }

  // Compiled on first use; nothing for halves of a model that can't be cut.
  Streams *made(const Shape &shape) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const auto found = streams_.find(shape); found != streams_.end()) return found->second.get();
    if (!naming(cannot_load, kEngine, "the graphs of " + name_, [&] { return read(shape.apart); })) return nullptr;
    std::vector<Compiled> models;
    if (shape.apart) {  // both at once: to compile a model takes one thread
      const unsigned less = wanted_.threads / 2;
      auto second = std::async(beside(wanted_.threads), [&] { return compiled(shape, kSecond, less); });
      models.push_back(compiled(shape, kFirst, wanted_.threads - less));
      models.push_back(second.get());
    } else {
      models.push_back(compiled(shape, kJoined, wanted_.threads));
    }
    return naming(cannot_load, kEngine, name_, [&] {
      auto streams = std::make_unique<Streams>(std::move(models), shape, image_, width_);
      if (in_8_bits(wanted_.precision)) streams->require_8_bits(name_);
      return (streams_[shape] = std::move(streams)).get();
    });
  }

  enum Part : std::size_t { kFirst, kSecond, kJoined };  // of a modality, or of both

  // Has the models, which share their weights with what is compiled of them. Whether there are halves.
  bool read(bool apart) {
    if (models_[apart ? kFirst : kJoined]) return true;
    if (!bytes_.size) {  // long after the bundle was opened
      Buffer again = joined_model(bundle_, wanted_.precision);
      bundle_.check_files();
      bytes_ = std::move(again);
    }
    if (!apart) {
      models_[kJoined] = parsed(bytes_);
    } else {
      const auto half = [&](Part part) {
        const Buffer bytes = half_model(bytes_, part);
        return bytes.size ? parsed(bytes) : Model(nullptr, runtime_.api.model_free);
      };
      auto second = std::async(beside(wanted_.threads), half, kSecond);
      Model first = half(kFirst);
      models_[kSecond] = second.get();
      if (!first || !models_[kSecond]) return false;
      models_[kFirst] = std::move(first);
    }
    bytes_ = Buffer(0);
    return true;
  }

  Model parsed(const Buffer &bytes) const {
    ov::Model *model = nullptr;
    runtime_.check(runtime_.api.core_read_model_from_memory_buffer(core_.get(), bytes.data.get(), bytes.size, nullptr,
                                                                   &model));
    return {model, runtime_.api.model_free};
  }

  Compiled compiled(const Shape &shape, Part part, unsigned threads) const {
    ov::Model *model = models_[part].get();
    const std::size_t first = part == kSecond, inputs = part == kJoined ? 2 : 1;
    naming(cannot_load, kEngine, name_, [&] { reshape(model, shape.cases, first, inputs); });
    return Compiled::make(runtime_, core_.get(), model, wanted_.precision, threads, shape.streams, name_);
  }

  const Runtime &runtime_;
  Owned<ov::Core> core_;
  Wanted wanted_;
  std::string name_;
  std::size_t image_, width_;
  std::int64_t side_;
  Bundle bundle_;
  Buffer bytes_{0};  // of the joined model, until what is made of it is there
  Model models_[3];  // by `Part`, made when needed
  std::mutex mutex_, agreement_;
  std::map<Shape, std::unique_ptr<Streams>> streams_;
  std::set<Shape> compared_;   // with the joined model
  std::set<unsigned> agreed_;  // numbers of streams that were asked
  std::atomic<bool> one_by_one_{false}, may_part_;
};

constexpr const char *kHead = "head.onnx";

// The portable head. Calls from several threads take turns.
class OpenVinoHead final : public Head {
 public:
  OpenVinoHead(const Runtime &runtime, const Bundle &bundle, const Wanted &wanted)
      : runtime_(runtime),
        core_(runtime.core()),
        width_(bundle.width),
        request_(nullptr, runtime.api.infer_request_free) {
    naming(cannot_load, kEngine, kHead, [&] {
      ov::Model *model = nullptr;
      runtime.check(runtime.api.core_read_model(core_.get(), bundle.graph("head").c_str(), nullptr, &model));
      const Owned<ov::Model> owned(model, runtime.api.model_free);
      compiled_ = std::make_unique<Compiled>(
          Compiled::make(runtime, core_.get(), model, "fp32", wanted.threads, 1, kHead));
      request_ = compiled_->request();
      // How many learners there are, one embedding tells.
      const std::vector<float> zeros(width_);
      infer(zeros.data(), 1);
      learners_ = bytes_of("base_probability") / sizeof(float);
    });
  }

  std::size_t learners() const override { return learners_; }

  void run(const float *embedding, std::size_t cases, float *probability, float *base) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    naming(failed, kEngine, kHead, [&] {
      infer(embedding, cases);
      copy("probability", probability, cases);
      if (base) copy("base_probability", base, cases * learners_);
    });
  }

 private:
  void infer(const float *embedding, std::size_t cases) {
    ov::Tensor *tensor = nullptr;
    runtime_.check(runtime_.api.infer_request_get_tensor(request_.get(), "embedding", &tensor));
    const Owned<ov::Tensor> owned(tensor, runtime_.api.tensor_free);
    std::int64_t lengths[] = {static_cast<std::int64_t>(cases), static_cast<std::int64_t>(width_)};
    runtime_.check(runtime_.api.tensor_set_shape(tensor, {2, lengths}));
    const std::size_t bytes = cases * width_ * sizeof(float);
    std::memcpy(memory(runtime_, request_.get(), "embedding", bytes), embedding, bytes);
    runtime_.check(runtime_.api.infer_request_infer(request_.get()));
  }

  std::size_t bytes_of(const char *name) {
    ov::Tensor *tensor = nullptr;
    if (runtime_.api.infer_request_get_tensor(request_.get(), name, &tensor) != 0) return 0;  // not told
    const Owned<ov::Tensor> owned(tensor, runtime_.api.tensor_free);
    std::size_t bytes = 0;
    runtime_.check(runtime_.api.tensor_get_byte_size(tensor, &bytes));
    return bytes;
  }

  void copy(const char *name, float *into, std::size_t count) {
    std::memcpy(into, memory(runtime_, request_.get(), name, count * sizeof(float)), count * sizeof(float));
  }

  const Runtime &runtime_;
  Owned<ov::Core> core_;
  std::size_t width_, learners_ = 0;
  std::unique_ptr<Compiled> compiled_;
  Owned<ov::Request> request_;
  std::mutex mutex_;
};

}  // namespace

std::string openvino_version(const std::string &library) { return Runtime::of(library).version; }

std::unique_ptr<Embedder> openvino_embedder(const Bundle &bundle, const Wanted &wanted) {
  return std::make_unique<OpenVinoEmbedder>(Runtime::of(wanted.library), bundle, wanted);
}

std::unique_ptr<Head> openvino_head(const Bundle &bundle, const Wanted &wanted) {
  return std::make_unique<OpenVinoHead>(Runtime::of(wanted.library), bundle, wanted);
}

}  // namespace mpmmu
