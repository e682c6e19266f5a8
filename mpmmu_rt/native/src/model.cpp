#include "model.h"

#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "files.h"

namespace mpmmu {
namespace {

constexpr unsigned kMostThreads = 1024;
constexpr std::size_t kMostCases = 1 << 20;
constexpr const char *kTargets[] = {"onnxruntime:fp32", "openvino:fp32", "openvino:bf16", "openvino:int8",
                                    "openvino:int8-bf16"};

std::string path_of(const char *given, const char *variable) {
  const char *named = given ? given : std::getenv(variable);
  return named ? named : "";
}

unsigned threads_of(const mpmmu_options &given) { return given.threads ? given.threads : usable_threads(); }

}  // namespace

Choice::Choice(const mpmmu_options &given) {
  target = given.target ? given.target : kTargets[0];
  if (std::none_of(std::begin(kTargets), std::end(kTargets), [&](const char *one) { return target == one; })) {
    throw Failure(
        MPMMU_USAGE_ERROR,
        "target is `" + target +
            "`, expected one of onnxruntime:fp32, openvino:fp32, openvino:bf16, openvino:int8, openvino:int8-bf16",
        "TensorRT and GPUs are for the Python runtime: this library runs on the processor");
  }
  if (given.threads > kMostThreads) {
    throw Failure(MPMMU_USAGE_ERROR, "threads is " + std::to_string(given.threads) + ", expected at most 1024",
                  "0 uses all that may be");
  }
  engine = target.substr(0, target.find(':'));
  precision = target.substr(target.find(':') + 1);
  onnxruntime = path_of(given.onnxruntime, "MPMMU_ONNXRUNTIME");
  openvino = path_of(given.openvino, "MPMMU_OPENVINO");
  threads = threads_of(given);
}

namespace {

// ONNX Runtime, which every target uses for its head, is loaded while the files are hashed, and sees none of them. What
// is wrong with it is said when it is needed: after what is wrong with the bundle.
Bundle open_beside_the_engine(const char *folder, const mpmmu_options &options) {
  ::setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // read when it is loaded; the user may turn it on
  const std::string library = path_of(options.onnxruntime, "MPMMU_ONNXRUNTIME");
  const auto loaded = std::async(beside(threads_of(options)), [library] {
    try {
      onnxruntime_version(library);
    } catch (const std::exception &) {
    }
  });
  return Bundle::open(folder);
}

}  // namespace

Model::Model(const char *folder, const mpmmu_options &options)
    : process_(::getpid()),
      bundle_(open_beside_the_engine(folder, options)),
      weights_(bundle_.weights()),
      choice_(options),
      check_(*bundle_.entry),
      name_(bundle_.name()),
      warning_(bundle_.warning()) {
  bundle_.require_proven(choice_.target);
  bundle_.folder = absolute_path(bundle_.folder);  // files are read later, too: a daemon goes to the root meanwhile
  load_head();
  const Wanted wanted{choice_.precision, choice_.engine == "openvino" ? choice_.openvino : choice_.onnxruntime,
                      choice_.threads};
  embedder_ = choice_.engine == "openvino" ? openvino_embedder(bundle_, wanted) : onnxruntime_embedder(bundle_, wanted);
  bundle_.require_unchanged();
  ::malloc_trim(0);  // what weights were copied through: a fifth of what a loaded model would keep
}

// On ONNX Runtime, which is faster at trees, wherever it is here: `mpmmu_rt.facts.FASTER_HEAD`. `tell` says where.
void Model::load_head() {
  const bool here = choice_.engine == "openvino";
  if (here) engine_version_ = openvino_version(choice_.openvino);
  head_target_ = "onnxruntime:fp32";
  try {
    const std::string version = onnxruntime_version(choice_.onnxruntime);
    if (!here) engine_version_ = version;
  } catch (const Failure &) {
    // A library that was named and can't be had is an error; one that is nowhere, or is not fit, is not there.
    if (!here || !choice_.onnxruntime.empty()) throw;
    head_target_ = "openvino:fp32";
  }
  head_ = head_target_ == "openvino:fp32" ? openvino_head(bundle_, {"fp32", choice_.openvino, choice_.threads})
                                          : onnxruntime_head(bundle_, {"fp32", choice_.onnxruntime, choice_.threads});
}

void Model::require_untouched() {
  for (HeldFile &one : weights_) one.require_untouched();
}

// Threads of engines don't come along into a fork: a call would wait for them without end.
void Model::require_own_process() const {
  if (!forked()) return;
  throw Failure(MPMMU_ENGINE_ERROR,
                "the model was loaded in process " + std::to_string(process_) + " and is used in " +
                    std::to_string(::getpid()) + ", a fork of it, expected the process that loaded it",
                "load the bundle in each process once it runs");
}

bool Model::forked() const { return process_ != ::getpid(); }

Failure Model::unanswered(std::size_t bad, std::size_t cases, const std::string &what) const {
  return Failure(
      MPMMU_ANSWER_ERROR,
      choice_.target + " gave " + what + " (" + std::to_string(bad) + " of " + std::to_string(cases) + " cases)",
      "mpmmu_self_test tells whether this target computes the model correctly here");
}

namespace {

// In how many of `rows` rows of `width` values there is one that is no number.
std::size_t not_finite(const float *values, std::size_t rows, std::size_t width) {
  std::size_t found = 0;
  for (std::size_t row = 0; row < rows; ++row, values += width) {
    found += !std::all_of(values, values + width, [](float one) { return std::isfinite(one); });
  }
  return found;
}

}  // namespace

void Model::answer(const std::uint8_t *const (&pixels)[2], std::size_t cases, float *probability, float *base,
                   float *embedding) {
  require_untouched();
  embedder_->embed(pixels, cases, embedding);
  head_->run(embedding, cases, probability, base);
  require_untouched();
  // Trees send NaN left or right and give a number that looks right: what they see is checked on its own.
  std::size_t bad = not_finite(embedding, cases, bundle_.width);
  if (bad) throw unanswered(bad, cases, "embeddings that are not finite");
  for (std::size_t row = 0; row < cases; ++row) bad += !(probability[row] >= 0 && probability[row] <= 1);
  if (bad) throw unanswered(bad, cases, "probabilities that are not numbers in 0..1");
  if (base) bad = not_finite(base, cases, head_->learners());
  if (bad) throw unanswered(bad, cases, "base probabilities that are not finite");
}

void leave_no_answer(const mpmmu_outputs &outputs, std::size_t cases, std::size_t learners, std::size_t width) {
  if (cases > kMostCases) return;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  if (outputs.probability) std::fill_n(outputs.probability, cases, nan);
  if (outputs.malignant) std::fill_n(outputs.malignant, cases, std::uint8_t{255});
  if (outputs.base_probability) std::fill_n(outputs.base_probability, cases * learners, nan);
  if (outputs.embedding) std::fill_n(outputs.embedding, cases * width, nan);
}

void Model::predict(const std::uint8_t *mammography, const std::uint8_t *ultrasound, std::size_t cases,
                    const mpmmu_outputs &outputs) {
  try {
    decide(mammography, ultrasound, cases, outputs);
  } catch (...) {  // nothing that looks right may be left behind
    leave_no_answer(outputs, cases, head_->learners(), bundle_.width);
    throw;
  }
}

// `mpmmu_rt.pairs.require_pairs`: what gives a probability that looks right, and is none.
void Model::require_pairs(const std::uint8_t *const (&pixels)[2], std::size_t cases) const {
  const std::size_t image = std::size_t{bundle_.preprocessing.side} * bundle_.preprocessing.side;
  for (std::size_t row = 0; row < cases; ++row) {
    const std::string where = cases > 1 ? "case " + std::to_string(row) + " (counted from 0): " : "";
    const std::uint8_t *each[] = {pixels[0] + row * image, pixels[1] + row * image};
    if (std::equal(each[0], each[0] + image, each[1])) {
      throw Failure(MPMMU_PIXELS_ERROR,
                    where + "the mammogram and the ultrasound image are the same, pixel by pixel, expected an image of "
                            "each",
                    "name the patient's two images");
    }
    for (std::size_t i = 0; i < 2; ++i) {
      const std::uint8_t first = *each[i];
      if (!std::all_of(each[i], each[i] + image, [first](std::uint8_t one) { return one == first; })) continue;
      throw Failure(MPMMU_PIXELS_ERROR,
                    where + "`" + kModalities[i] + "` is blank: grey value " + std::to_string(first) +
                        " everywhere, expected an image with content",
                    "check the export, in DICOM also the window");
    }
  }
}

std::string Model::image_warning(const std::uint8_t *mammography, const std::uint8_t *ultrasound) const {
  return check_.against({mammography, ultrasound}, bundle_.preprocessing.side);
}

void Model::decide(const std::uint8_t *mammography, const std::uint8_t *ultrasound, std::size_t cases,
                   const mpmmu_outputs &outputs) {
  require_own_process();
  if (!mammography || !ultrasound || cases < 1 || cases > kMostCases) {
    throw Failure(MPMMU_PIXELS_ERROR,
                  "pixels are " + std::string(mammography ? "a mammogram" : "NULL") + " and " +
                      (ultrasound ? "an ultrasound image" : "NULL") + " of " + std::to_string(cases) +
                      " cases, expected both of 1 to 1048576",
                  "row i of both arrays must be the same patient");
  }
  if (outputs.base_probability && !head_->learners()) {
    throw Failure(MPMMU_USAGE_ERROR, "`base_probability` is wanted, and the stacking head of this bundle tells none",
                  "leave it NULL where mpmmu_info.learners is 0");
  }
  require_pairs({mammography, ultrasound}, cases);
  std::vector<float> room(outputs.embedding ? 0 : cases * bundle_.width), own(outputs.probability ? 0 : cases);
  float *embedding = outputs.embedding ? outputs.embedding : room.data();
  float *probability = outputs.probability ? outputs.probability : own.data();
  answer({mammography, ultrasound}, cases, probability, outputs.base_probability, embedding);
  if (!outputs.malignant) return;
  // Compared as float32, as probabilities are printed: `mpmmu_rt.checks.decide`.
  const auto threshold = static_cast<float>(bundle_.threshold);
  for (std::size_t row = 0; row < cases; ++row) outputs.malignant[row] = probability[row] >= threshold;
}

void Model::tell(mpmmu_info &info) const {
  info.name = name_.c_str();
  info.digest = bundle_.digest.c_str();
  info.target = choice_.target.c_str();
  info.head_target = head_target_.c_str();
  info.engine = engine_version_.c_str();
  info.trained = bundle_.trained();
  info.threads = choice_.threads;
  info.threshold = bundle_.threshold;
  info.preprocessing = bundle_.preprocessing;
  info.embedding_width = bundle_.width;
  info.learners = head_->learners();
  info.warning = warning_.c_str();
}

namespace {

struct Limits {  // mpmmu_rt.facts.TOLERANCES
  double relative, probability, margin;
};

Limits limits_of(const std::string &precision) {
  if (precision == "bf16") return {0.1, 0.35, 0.35};
  if (in_8_bits(precision)) return {0.4, 0.5, 0.5};
  return {1e-4, 1e-4, 0.0};
}

constexpr double kBatchLimit = 1e-4;  // every target here computes a case alike in any batch, up to rounding
constexpr double kProvenEmbedding = 0.1, kProvenProbability = 0.3;
constexpr const char *kDoNotUse =
    "do not use this target on this machine; `mpmmu-rt verify BUNDLE` names the stage at fault";

// max |got - want|, relative: over max |want|; infinite where either is no number.
double difference(const std::vector<float> &got, const std::vector<double> &want, bool relative = false) {
  double most = 0, scale = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (!std::isfinite(got[i]) || !std::isfinite(want[i])) return std::numeric_limits<double>::infinity();
    most = std::max(most, std::abs(static_cast<double>(got[i]) - want[i]));
    scale = std::max(scale, std::abs(want[i]));
  }
  return most / (relative && scale > 0 ? scale : 1.0);
}

// The golden array of that shape, of bytes or of floats. Throws MPMMU_BUNDLE_ERROR.
const Array &golden(const Arrays &arrays, const std::string &name, bool octets, const std::vector<std::size_t> &shape) {
  const auto found = arrays.find(name);
  if (found == arrays.end() || found->second.octets() != octets || found->second.shape != shape) {
    throw Failure(MPMMU_BUNDLE_ERROR,
                  "the golden vectors " +
                      std::string(found == arrays.end() ? "lack" : "have another type or shape of") + " `" + name +
                      "`, expected what the model takes and says",
                  "export the bundle again with `mpmmu-rt export`");
  }
  return found->second;
}

}  // namespace

void Model::self_test(mpmmu_self_test_result &result) {
  const Limits limits = limits_of(choice_.precision);
  result.embedding_limit = limits.relative;
  result.probability_limit = limits.probability;
  result.batch_limit = kBatchLimit;
  result.embedding = result.probability = result.batch = std::numeric_limits<double>::infinity();  // until it is known
  try {
    compare(result);
  } catch (const Failure &failure) {  // no numbers are no parity either
    if (failure.status != MPMMU_ANSWER_ERROR) throw;
    throw Failure(MPMMU_PARITY_ERROR, std::string(failure.what()) + ", expected what the export proved", kDoNotUse);
  }
  const bool held = result.embedding <= result.embedding_limit && result.probability <= result.probability_limit &&
                    result.batch <= result.batch_limit && result.flipped == 0 &&
                    result.proven_embedding <= kProvenEmbedding && result.proven_probability <= kProvenProbability;
  if (held) return;
  throw Failure(MPMMU_PARITY_ERROR,
                choice_.target + " differs from the golden vectors by " + decimal(result.probability) +
                    " in probability and " + decimal(result.embedding) + " of the embedding, with " +
                    std::to_string(result.flipped) + " decisions flipped, expected what the export proved",
                kDoNotUse);
}

void Model::compare(mpmmu_self_test_result &result) {
  require_own_process();
  const Arrays arrays = bundle_.golden();
  const std::size_t cases = arrays.at("probability").shape.size() == 1 ? arrays.at("probability").shape[0] : 0;
  if (cases < 1 || cases > kMostCases) {
    throw Failure(MPMMU_BUNDLE_ERROR, "the golden vectors hold no cases, expected some",
                  "export the bundle again with `mpmmu-rt export`");
  }
  result.cases = cases;
  const std::size_t side = bundle_.preprocessing.side, image = side * side, width = bundle_.width;
  const Array &first = golden(arrays, "mammography.pixels", true, {cases, 1, side, side});
  const Array &second = golden(arrays, "ultrasound.pixels", true, {cases, 1, side, side});
  const auto embeddings = golden(arrays, "embedding", false, {cases, width}).numbers();
  const auto probabilities = golden(arrays, "probability", false, {cases}).numbers();
  std::vector<float> probability(cases), embedding(cases * width), alone(cases), own(cases * width);
  answer({first.data(), second.data()}, cases, probability.data(), nullptr, embedding.data());
  for (std::size_t row = 0; row < cases; ++row) {
    answer({first.data() + row * image, second.data() + row * image}, 1, &alone[row], nullptr,
           own.data() + row * width);
  }
  result.embedding = std::max(difference(embedding, embeddings, true), difference(own, embeddings, true));
  result.probability = std::max(difference(probability, probabilities), difference(alone, probabilities));
  result.batch = difference(probability, {alone.begin(), alone.end()});
  const double margin = limits_of(choice_.precision).margin;
  const auto limit = static_cast<float>(bundle_.threshold);
  for (std::size_t row = 0; row < cases; ++row) {
    const bool clear = std::abs(probabilities[row] - bundle_.threshold) >= margin;
    const bool want = static_cast<float>(probabilities[row]) >= limit;
    result.flipped += clear && ((probability[row] >= limit) != want || (alone[row] >= limit) != want);
  }
  if (in_8_bits(choice_.precision)) {
    const Array &proven = golden(arrays, choice_.target + ".embedding", false, {cases, width});
    const Array &said = golden(arrays, choice_.target + ".probability", false, {cases});
    result.proven_embedding = difference(embedding, proven.numbers(), true);
    result.proven_probability = difference(probability, said.numbers());
  }
}

}  // namespace mpmmu
