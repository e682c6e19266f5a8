// What an engine is to the rest: two halves, both encoders with the attention pool, and the stacking head.
#pragma once

#include <cstddef>
#include <cstdint>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "bundle.h"
#include "failure.h"

namespace mpmmu {

// Both encoders and the attention pool. Threads may share it.
class Embedder {
 public:
  virtual ~Embedder() = default;

  // pixels: uint8 [cases, 1, S, S] per modality; fills embedding, float32 [cases, D]. Throws Failure.
  virtual void embed(const std::uint8_t *const (&pixels)[2], std::size_t cases, float *embedding) = 0;
};

// The stacking head, in FP32. Threads may share it.
class Head {
 public:
  virtual ~Head() = default;

  virtual std::size_t learners() const = 0;

  // embedding: float32 [cases, D]; fills probability [cases] and, unless NULL, base [cases, learners]. Throws Failure.
  virtual void run(const float *embedding, std::size_t cases, float *probability, float *base) = 0;
};

// What is asked for: paths may be empty, which is where the loader looks.
struct Wanted {
  std::string precision;
  std::string library;
  unsigned threads;
};

// How to do what may go on beside the caller: on a thread of its own, or, where one is all there may be or no other can
// be had, when it is waited for.
inline std::launch beside(unsigned threads) {
  return threads > 1 ? std::launch::async | std::launch::deferred : std::launch::deferred;
}

// What threads borrow: made on demand, kept, the last one used first.
template <class Lane>
class Lanes {
 public:
  template <class Make, class Use>
  void with(Make make, Use use) {
    std::unique_ptr<Lane> lane;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!idle_.empty()) {
        lane = std::move(idle_.back());
        idle_.pop_back();
      }
    }
    if (!lane) lane = make();
    use(*lane);  // one that fails is not kept
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(lane));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Lane>> idle_;
};

std::string onnxruntime_version(const std::string &library);
std::unique_ptr<Embedder> onnxruntime_embedder(const Bundle &bundle, const Wanted &wanted);
std::unique_ptr<Head> onnxruntime_head(const Bundle &bundle, const Wanted &wanted);

std::string openvino_version(const std::string &library);
std::unique_ptr<Embedder> openvino_embedder(const Bundle &bundle, const Wanted &wanted);
std::unique_ptr<Head> openvino_head(const Bundle &bundle, const Wanted &wanted);

// An object of an engine, and what frees it.
template <class Object>
using Owned = std::unique_ptr<Object, void (*)(Object *)>;

// The first of `names`, or `given` if it is not empty, as dlopen finds it; never unloaded: engines keep threads and
// state. Throws MPMMU_MISSING_LIBRARY. `purpose`: what needs it; `hint`: what to do.
void *load_library(const std::string &given, const std::vector<std::string> &names, const std::string &purpose,
                   const std::string &hint);

// What `make` makes of a library, called once for each in a process; never freed.
template <class Runtime, class Make>
const Runtime &made_once(void *library, Make make) {
  static std::mutex mutex;
  static auto &made = *new std::map<void *, const Runtime *>;
  const std::lock_guard<std::mutex> lock(mutex);
  const Runtime *&found = made[library];
  if (!found) found = make();
  return *found;
}

// What an engine raised, in Python's words.
Failure cannot_load(const std::string &engine, const std::string &graph, const std::string &reason);
Failure failed(const std::string &engine, const std::string &graph, const std::string &reason);

// `call`, whose std::runtime_error becomes what `named` makes of it: one of the two above.
template <class Call>
auto naming(Failure (*named)(const std::string &, const std::string &, const std::string &), const char *engine,
            const std::string &graph, Call call) {
  try {
    return call();
  } catch (const std::runtime_error &error) {
    throw named(engine, graph, error.what());
  }
}

}  // namespace mpmmu
