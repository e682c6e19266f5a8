#include "bundle.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "failure.h"
#include "files.h"

namespace mpmmu {
namespace {

constexpr const char *kSchema = "mpmmu-bundle/1";
constexpr const char *kManifest = "bundle.json";
constexpr std::uint64_t kMaxJsonBytes = 16u << 20, kMaxGoldenBytes = 1u << 28, kMaxFileBytes = std::uint64_t{8} << 30;
constexpr int kMaxSide = 4096;
constexpr std::time_t kTicksSeconds = 2;  // mpmmu_rt.bundle._TICKS_NS
constexpr const char *kHint = "export the bundle again with `mpmmu-rt export`";
constexpr const char *kUntrained = "UNTRAINED model: its probabilities mean nothing";
constexpr const char *kTriedInt8 =
    "INT8 of this bundle was calibrated on generated phantoms, for trying it: not for images of people";
constexpr const char *kAltered = "the bundle was altered or damaged: do not use it; copy or export it again";
constexpr const char *kGraphs[] = {"mammography",
                                   "ultrasound",
                                   "attention_pool",
                                   "mammography_onnxruntime",
                                   "ultrasound_onnxruntime",
                                   "attention_pool_onnxruntime",
                                   "head",
                                   "head_onnxruntime",
                                   "model"};
constexpr const char *kFigures[] = {"black", "bright",   "mean",   "deviation",
                                    "fine",  "vertical", "fading", "lopsided"};
constexpr const char *kGolden[] = {"embedding",   "mammography.feature_map", "mammography.pixels",
                                   "probability", "ultrasound.feature_map",  "ultrasound.pixels"};

Failure altered(const std::string &message, const std::string &hint = kAltered) {
  return Failure(MPMMU_DIGEST_MISMATCH, message, hint);
}
Failure other_bytes(const std::string &path, std::uint64_t got, const Json &expected) {
  return altered(path + " has " + std::to_string(got) + " bytes and another SHA-256 than bundle.json says, expected " +
                 python_repr(expected) + " bytes");
}
Failure senseless(const std::string &message, const std::string &hint = kHint) {
  return Failure(MPMMU_BUNDLE_ERROR, message, hint);
}

Failure unread(const std::string &path, const std::string &problem) {
  return senseless(path + " " + problem, "check its permissions and the disk");
}

// What Python raises inside of `Bundle.open`, which tells the two apart.
struct MissingKey {
  std::string key;
};
struct Malformed {
  std::string problem;
};

const Json &at(const Json &object, const std::string &key) {
  const auto found = object.find(key);
  if (found == object.end()) throw MissingKey{key};
  return *found;
}

const Json &mapping(const Json &object, const std::string &key) {
  const Json &value = at(object, key);
  if (!value.is_object()) throw Malformed{"`" + key + "` is a " + python_type(value) + ", expected an object"};
  return value;
}

Json read_manifest(const std::string &folder, std::string &data) {
  const std::string path = join_path(folder, kManifest);
  std::uint64_t size = 0;
  const Kind kind = kind_of(path, &size);
  if (kind == Kind::kLink) throw altered(path + " is a link, expected a file");
  if (kind != Kind::kFile) {
    for (const char *part : {"onnx/head.onnx", "golden/golden.npz"}) {
      if (kind_of(join_path(folder, part)) != Kind::kNone) {
        throw altered(path + " is missing beside other parts of a bundle, expected it");
      }
    }
    const Kind what = kind_of(join_path(folder, ".")) == Kind::kFolder ? Kind::kFolder : kind_of(folder);
    const std::string state = what == Kind::kNone     ? "does not exist"
                              : what == Kind::kFolder ? std::string("holds no ") + kManifest
                                                      : "is a file";
    throw senseless(folder + " " + state + ", expected a bundle", "name a folder that `mpmmu-rt export` wrote");
  }
  if (size > kMaxJsonBytes) {
    throw altered(path + " has " + std::to_string(size) + " bytes, expected at most " + std::to_string(kMaxJsonBytes));
  }
  std::string problem;
  const auto read = read_file(path, kMaxJsonBytes, problem);
  if (!read) throw unread(path, problem);
  data = *read;
  Json entry;
  try {
    entry = parse_json(data);
  } catch (const std::runtime_error &error) {
    throw altered(path + " is not valid JSON: " + std::string(error.what()).substr(0, 300));
  } catch (const Json::exception &error) {
    throw altered(path + " is not valid JSON: " + std::string(error.what()).substr(0, 300));
  }
  if (!entry.is_object()) throw altered(path + " holds a JSON " + python_type(entry) + ", expected an object");
  // Without white space, which tools and transfers change: what a value's digest can't see is how it was spelt, and a
  // key that is there twice.
  Json rest = entry;
  rest.erase("sha256");
  const auto own = entry.find("sha256");
  const bool holds = own != entry.end() && own->is_string() && *own == sha256(dump_json(rest, true));
  if (!holds || bare(data) != bare(dump_json(entry, false))) {
    const auto schema = entry.find("schema");
    const bool known = schema != entry.end() && *schema == kSchema;
    const std::string of = known ? ""
                                 : " and has the schema " + python_repr(schema == entry.end() ? Json() : *schema) +
                                       ", where this version reads `" + kSchema + "`";
    throw altered(path + " does not match its own SHA-256" + of + ", expected the file as it was exported");
  }
  return entry;
}

void check_pool(const Json &pool) {
  const Json &kinds = mapping(pool, "kinds");
  const Json &weights = at(pool, "weights");
  if (!weights.is_string()) {
    throw Malformed{"`attention_pool` has the weights " + python_repr(weights) + ", expected a path"};
  }
  bool known = kinds.size() == 2;
  for (const char *modality : kModalities) {
    const auto found = kinds.find(modality);
    known = known && found != kinds.end() && (*found == "eca" || *found == "cbam" || *found == "none");
  }
  if (!known) {
    throw Malformed{"`attention_pool` has the kinds " + python_repr(kinds) +
                    ", expected for mammography and ultrasound one of eca, cbam, none"};
  }
}

// mpmmu_rt.spec.Target.parse: ENGINE:PRECISION, and compute capabilities behind an @.
bool is_target(const std::string &text) {
  std::size_t at = 0;
  const auto span = [&](auto fits) {
    const std::size_t begin = at;
    while (at < text.size() && fits(text[at])) ++at;
    return at - begin;
  };
  const auto take = [&](char one) { return at < text.size() && text[at] == one && ++at; };
  const auto letter = [](char one) { return one >= 'a' && one <= 'z'; };
  const auto digit = [](char one) { return one >= '0' && one <= '9'; };
  if (!span(letter)) return false;
  span([&](char one) { return letter(one) || digit(one) || one == '-'; });
  if (!take(':') || !span(letter) || !span(digit)) return false;
  if (take('-') && (!span(letter) || !span(digit))) return false;
  if (at == text.size()) return true;
  if (!take('@')) return false;
  do {
    const std::size_t digits = span(digit);
    if (digits < 2 || digits > 3) return false;
  } while (take(','));
  return at == text.size();
}

void check_report(const Json &entry, const std::string &name) {
  const Json &passed = at(mapping(entry, name), "passed");
  if (!passed.is_null() && !passed.is_boolean()) {
    throw Malformed{"`" + name + "` has passed " + python_repr(passed) + ", expected true, false or null"};
  }
}

void check_facts(const Json &entry) {
  const auto kind = [&](const char *key, bool fits, const char *expected) {
    const Json &value = at(entry, key);
    if (!fits) throw Malformed{"`" + std::string(key) + "` is a " + python_type(value) + ", expected a " + expected};
  };
  kind("name", at(entry, "name").is_string(), "str");
  kind("trained", at(entry, "trained").is_boolean(), "bool");
  kind("targets", at(entry, "targets").is_array(), "list");
  kind("golden", at(entry, "golden").is_string(), "str");
  const Json &targets = entry.at("targets");
  if (!std::all_of(targets.begin(), targets.end(), [](const Json &one) { return one.is_string(); })) {
    throw Malformed{"`targets` is " + python_repr(targets) + ", expected texts"};
  }
  std::set<std::string> once;
  for (const Json &one : targets) {
    const std::string name = one.get<std::string>();
    if (!is_target(name)) {
      throw Malformed{"target is `" + name + "`, expected ENGINE:PRECISION such as `onnxruntime:fp32`"};
    }
    once.insert(name);
  }
  if (once.empty() || once.size() != targets.size()) {
    throw Malformed{"`targets` is " + python_repr(targets) + ", expected at least one, and none twice"};
  }
  for (const char *key : {"model", "card", "provenance", "parity", "precision", "head"}) mapping(entry, key);
  if (!entry.at("parity").empty()) check_report(entry, "parity");  // of a draft it is empty
  for (const auto &item : entry.at("precision").items()) check_report(entry.at("precision"), item.key());
  for (const auto &item : entry.at("head").items()) {
    const Json learners = mapping(entry.at("head"), item.key()).value("learners", Json());
    const bool texts = learners.is_array() && std::all_of(learners.begin(), learners.end(),
                                                          [](const Json &one) { return one.is_string(); });
    if (!learners.is_null() && !texts) {
      throw Malformed{"`" + item.key() + "` has the learners " + python_repr(learners) + ", expected texts"};
    }
  }
  const auto pool = entry.find("attention_pool");
  if (pool != entry.end() && !pool->is_null()) check_pool(mapping(entry, "attention_pool"));
  const auto calibrated = entry.find("calibration");
  if (calibrated != entry.end() && !calibrated->is_null()) mapping(entry, "calibration");
}

mpmmu_preprocessing preprocessing(const Json &entry) {
  std::set<std::string> keys;
  for (const auto &item : entry.items()) keys.insert(item.key());
  keys.erase("aspect");
  if (keys != std::set<std::string>{"fit", "size"}) {
    throw Malformed{"preprocessing is " + python_repr(entry) +
                    ", expected exactly the keys size and fit, and aspect if new"};
  }
  const Json &size = entry.at("size"), &fit = entry.at("fit");
  const Json aspect = entry.value("aspect", Json("stored"));
  if (!size.is_number_integer() || size < 1 || size > kMaxSide) {
    throw Malformed{"preprocessing has the size " + python_repr(size) + ", expected an integer from 1 to 4096"};
  }
  if (fit != "pad" && fit != "stretch") {
    throw Malformed{"preprocessing has the fit " + python_repr(fit) + ", expected one of pad, stretch"};
  }
  if (aspect != "physical" && aspect != "stored") {
    throw Malformed{"preprocessing has the aspect " + python_repr(aspect) + ", expected one of physical, stored"};
  }
  return {size.get<std::uint32_t>(), fit == "pad", aspect == "physical"};
}

double threshold(const Json &entry) {
  const Json &value = at(entry, "threshold");
  if (!value.is_number_float() || !(value.get<double>() > 0 && value.get<double>() < 1)) {
    throw Malformed{"`threshold` is " + python_repr(value) + ", expected a number in 0..1"};
  }
  const Json &classes = at(entry, "classes");
  if (classes != Json({"benign", "malignant"})) {
    throw Malformed{"`classes` is " + python_repr(classes) + ", expected ['benign', 'malignant']"};
  }
  return value.get<double>();
}

void check_tensors(const Json &entry) {
  for (const auto &item : mapping(entry, "tensors").items()) {
    if (!item.value().is_object())
      throw Malformed{"`tensors` has a " + python_type(item.value()) + ", expected an object"};
    at(item.value(), "dtype");
    if (!at(item.value(), "shape").is_array()) throw Malformed{"`tensors` has a shape that is no list"};
  }
}

std::string shown(const std::string &name, const Json &spec) {  // TensorSpec.__str__
  std::string lengths;
  for (const Json &one : spec.at("shape")) {
    lengths += (lengths.empty() ? "" : ", ") + (one.is_string() ? one.get<std::string>() : python_repr(one));
  }
  const Json &dtype = spec.at("dtype");
  return name + " " + (dtype.is_string() ? dtype.get<std::string>() : python_repr(dtype)) + "[" + lengths + "]";
}

// The encoders must take what the preprocessing makes, and the embedding must have a known width, which is returned.
std::size_t check_pixels(const Json &entry, std::uint32_t side) {
  const Json &tensors = entry.at("tensors");
  for (const char *modality : kModalities) {
    const std::string name = std::string(modality) + "_pixels";
    const Json &spec = at(tensors, name);
    if (spec.at("dtype") != "uint8" || spec.at("shape") != Json({"N", 1, side, side})) {
      const std::string size = std::to_string(side);
      throw Malformed{"`tensors` has " + shown(name, spec) + ", expected uint8[N, 1, " + size + ", " + size +
                      "] as `preprocessing` makes"};
    }
  }
  const Json &spec = at(tensors, "embedding"), &shape = spec.at("shape");
  // 2**20: more than any embedding has, and little enough to count in.
  if (spec.at("dtype") != "float32" || shape.size() != 2 || !shape[0].is_string() || !shape[1].is_number_integer() ||
      shape[1] < 1 || shape[1] > 1 << 20) {
    throw Malformed{"`tensors` has " + shown("embedding", spec) + ", expected float32[N, D]"};
  }
  return shape[1].get<std::size_t>();
}

bool is_finite_number(const Json &one) { return one.is_number() && std::isfinite(one.get<double>()); }

// mpmmu_rt.image_figures.listed: a number for each figure.
void require_figures(const Json &numbers, const std::string &what) {
  const bool sound = numbers.is_array() && numbers.size() == std::size(kFigures) &&
                     std::all_of(numbers.begin(), numbers.end(), is_finite_number);
  if (sound) return;
  throw Malformed{"`" + what + "` does not hold " + std::to_string(std::size(kFigures)) + " finite numbers each"};
}

// mpmmu_rt.learnt_ranges.from_json.
void check_learnt(const Json &check) {
  const auto found = check.find("learnt");
  if (found == check.end() || found->is_null()) return;
  if (!found->is_object() || found->size() != 2 || !found->contains("mammography") || !found->contains("ultrasound")) {
    throw Malformed{"`learnt` is not of mammography and ultrasound"};
  }
  for (const char *modality : kModalities) {
    const Json &range = found->at(modality);
    if (!range.is_object()) throw Malformed{"`learnt` has a " + python_type(range) + ", expected an object"};
    for (const char *name : {"lowest", "highest", "margin"}) require_figures(at(range, name), "learnt");
    for (std::size_t i = 0; i < std::size(kFigures); ++i) {
      const auto number = [&](const char *name) { return range.at(name)[i].get<double>(); };
      if (number("lowest") <= number("highest") && number("margin") > 0) continue;
      throw Malformed{"`learnt` has a range that ends before it begins, or a margin that is not above 0"};
    }
  }
}

// mpmmu_rt.modality_check.ModalityCheck.from_json; what it is for is `ImageCheck`'s.
void check_modality(const Json &entry) {
  const auto found = entry.find("modality_check");
  if (found == entry.end() || found->is_null()) return;
  const auto figures = found->is_object() ? found->find("figures") : found->end();
  if (figures == found->end() || *figures != Json(kFigures)) {
    throw Malformed{"`modality_check` is not of the figures that this version computes"};
  }
  for (const char *name : {"weights", "means", "scales"}) require_figures(at(*found, name), "modality_check");
  const Json &scales = found->at("scales");
  const bool sound = is_finite_number(at(*found, "intercept")) && is_finite_number(at(*found, "margin")) &&
                     std::all_of(scales.begin(), scales.end(), [](const Json &one) { return one.get<double>() > 0; });
  if (!sound) {
    throw Malformed{"`modality_check` does not hold " + std::to_string(std::size(kFigures)) + " finite numbers each"};
  }
  check_learnt(*found);
}

// mpmmu_rt.single_record.read; heads for one modality are the Python runtime's.
void check_single_heads(const Json &entry, std::size_t width) {
  const auto found = entry.find("single_modality");
  if (found == entry.end() || found->is_null()) return;
  if (!found->is_object() || found->size() != 2 || !found->contains("mammography") || !found->contains("ultrasound")) {
    throw Malformed{"`single_modality` is not of a head for each of mammography, ultrasound"};
  }
  const Json &graphs = at(entry, "graphs");
  for (const char *modality : {"mammography", "ultrasound"}) {
    if (!graphs.is_object() || !graphs.contains(std::string("head_") + modality)) {
      throw Malformed{"`single_modality` tells of heads and `graphs` lacks `head_" + std::string(modality) + "`"};
    }
  }
  for (const char *modality : {"mammography", "ultrasound"}) {
    const Json &head = found->at(modality);
    if (!head.is_object()) throw Malformed{"`single_modality` has a " + python_type(head) + ", expected an object"};
    const Json &columns = at(head, "columns"), &threshold = at(head, "threshold");
    const bool both = columns.is_array() && columns.size() == 2 && columns[0].is_number_integer() &&
                      columns[1].is_number_integer();
    if (!both || columns[0] < 0 || columns[0] >= columns[1] || columns[1] > width) {
      throw Malformed{"a head for one modality takes the columns " + python_repr(columns)};
    }
    if (!threshold.is_number_float() || !(threshold > 0 && threshold < 1)) {
      throw Malformed{"a head for one modality has the threshold " + python_repr(threshold)};
    }
  }
}

// As PurePosixPath reads a path: its parts, without `.` and empty ones.
std::vector<std::string> parts_of(const std::string &name) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= name.size();) {
    const std::size_t end = std::min(name.find('/', begin), name.size());
    const std::string part = name.substr(begin, end - begin);
    if (!part.empty() && part != ".") parts.push_back(part);
    begin = end + 1;
  }
  return parts;
}

std::string joined(const std::vector<std::string> &parts) {
  std::string out;
  for (const auto &part : parts) out += (out.empty() ? "" : "/") + part;
  return out;
}

void check_file(const std::string &folder, const std::string &name, const Json &facts) {
  const auto parts = parts_of(name);
  if ((!name.empty() && name[0] == '/') || std::find(parts.begin(), parts.end(), "..") != parts.end() ||
      name.find('\\') != std::string::npos) {
    throw senseless(join_path(folder, kManifest) + " lists the path `" + name + "`, expected one inside the bundle");
  }
  const Json &size = at(facts, "bytes"), &digest = at(facts, "sha256");
  if (!size.is_number_integer()) throw Malformed{"`files` has " + python_repr(size) + " bytes, expected an integer"};
  const std::string path = parts.empty() ? folder : join_path(folder, joined(parts));
  std::uint64_t got = 0;
  std::string problem;
  errno = 0;
  if (name.find('\0') != std::string::npos || kind_of(path, &got) != Kind::kFile) {
    if (errno == EACCES) throw unread(path, "can't be looked at, expected a file");
    throw altered(path + " is missing or a link, expected a file of " + python_repr(size) + " bytes");
  }
  if (size != got || got > kMaxFileBytes || !digest.is_string()) throw other_bytes(path, got, size);
  const auto found = sha256_file(path, problem);
  if (!found) throw unread(path, problem);
  if (*found != digest.get<std::string>()) throw other_bytes(path, got, size);
}

using Parts = std::vector<std::string>;

// Everything below the folder, links not followed.
void walk(const std::string &folder, const Parts &above, std::vector<std::pair<Parts, Kind>> &found) {
  std::unique_ptr<DIR, int (*)(DIR *)> open(::opendir(folder.c_str()), ::closedir);
  if (!open) throw unread(folder, "can't be listed, expected a folder of the bundle");
  while (const dirent *one = ::readdir(open.get())) {
    const std::string name = one->d_name;
    if (name == "." || name == "..") continue;
    Parts parts = above;
    parts.push_back(name);
    const std::string path = join_path(folder, name);
    const Kind kind = kind_of(path);
    if (kind == Kind::kFolder) walk(path, parts, found);
    found.emplace_back(std::move(parts), kind);
  }
}

std::string shown(const std::string &kind, const std::vector<std::size_t> &shape) {
  std::string lengths;
  for (const std::size_t one : shape) lengths += (lengths.empty() ? "" : ", ") + std::to_string(one);
  return kind + "[" + lengths + "]";
}

// mpmmu_rt.bundle._check_golden: also of what the self-test does not compare. side: of an image.
void check_golden(const std::string &path, const Arrays &golden, const std::set<std::string> &wanted, std::size_t side,
                  std::size_t width) {
  std::string all;
  for (const std::string &name : wanted) all += (all.empty() ? "" : ", ") + name;
  for (const std::string &name : wanted) {
    if (!golden.count(name)) throw senseless(path + " lacks `" + name + "`, expected " + all);
  }
  const auto &counted = golden.at("probability").shape;
  const std::size_t cases = counted.empty() ? 0 : counted[0];
  if (!cases) throw senseless(path + " holds no golden cases, expected some");
  for (const auto &[name, array] : golden) {
    if (!wanted.count(name) && name.find(':') == std::string::npos) continue;  // nor of a target
    const std::string part = name.substr(name.rfind('.') + 1);
    std::vector<std::size_t> shape = array.shape;
    if (part == "pixels") shape = {cases, 1, side, side};
    else if (part == "embedding") shape = {cases, width};
    else if (part == "probability") shape = {cases};
    else if (part != "feature_map") continue;
    else if (shape.empty()) shape = {cases};
    else shape[0] = cases;
    const bool octets = part == "pixels";
    if (array.shape == shape && array.octets() == octets) continue;
    const char *kind = array.octets() ? "uint8" : array.dtype == "<f4" ? "float32" : "float64";
    throw senseless(path + " has " + shown(kind, array.shape) + " as `" + name + "`, expected " +
                    shown(octets ? "uint8" : "floats", shape));
  }
}

bool same(const struct stat &one, const struct stat &other) {
  const auto alike = [](const timespec &a, const timespec &b) {
    return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
  };
  return one.st_dev == other.st_dev && one.st_ino == other.st_ino && one.st_size == other.st_size &&
         alike(one.st_mtim, other.st_mtim) && alike(one.st_ctim, other.st_ctim);
}

// Of all files that are listed; those of which nothing can be told have zeros.
Seen seen_of(const std::string &folder, const Json &files) {
  Seen found;
  for (const auto &item : files.items()) {
    struct stat &one = found[item.key()];
    if (::lstat(join_path(folder, item.key()).c_str(), &one) != 0) one = {};
  }
  return found;
}

// That, before they are hashed: of what was written so shortly before that it may be written again within the same tick
// of the file system's clock, nothing can be told.
Seen before_hashing(const std::string &folder, const Json &files) {
  Seen found = seen_of(folder, files);
  const auto written_before = std::time(nullptr) - kTicksSeconds;
  for (auto &[name, one] : found) {
    if (std::max(one.st_mtim.tv_sec, one.st_ctim.tv_sec) >= written_before) one = {};
  }
  return found;
}

}  // namespace

HeldFile::HeldFile(std::string path, std::string digest)
    : path_(std::move(path)), digest_(std::move(digest)), handle_(::open(path_.c_str(), O_RDONLY | O_CLOEXEC)) {
  if (handle_ >= 0 && ::fstat(handle_, &seen_) == 0) return;
  if (handle_ >= 0) ::close(handle_);
  throw altered(path_ + " can't be read, expected a file");
}

HeldFile::~HeldFile() { ::close(handle_); }

void HeldFile::require_untouched() {
  const std::lock_guard<std::mutex> lock(mutex_);
  struct stat now;
  const bool told = ::fstat(handle_, &now) == 0;
  if (told && same(now, seen_)) return;
  // By its handle: another file may have its name.
  std::string problem;
  if (!told || sha256_file("/proc/self/fd/" + std::to_string(handle_), problem) != digest_) {
    throw altered(path_ + " was written to while it was in use, expected the file as it was loaded",
                  "load the bundle again; to replace one that is in use, rename another into its place");
  }
  seen_ = now;
}

std::list<HeldFile> Bundle::weights() const {
  const std::string last = "/weights.bin";
  std::list<HeldFile> found;
  for (const auto &item : entry->at("files").items()) {
    const std::string &name = item.key();
    if (name.size() < last.size() || name.compare(name.size() - last.size(), last.size(), last) != 0) continue;
    found.emplace_back(join_path(folder, name), item.value().at("sha256").get<std::string>());
  }
  return found;
}

void Bundle::require_unchanged() const {
  const auto now = seen_of(folder, entry->at("files"));
  const bool all = std::all_of(now.begin(), now.end(), [&](const auto &one) {
    const auto before = hashed->find(one.first);
    return before != hashed->end() && one.second.st_ino != 0 && same(one.second, before->second);
  });
  if (!all) check_files();
}

Bundle Bundle::open(const std::string &given) {
  std::string folder = given.empty() ? "." : given;
  while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
  const std::string manifest = join_path(folder, kManifest);
  std::string data;
  Json entry = read_manifest(folder, data);
  const auto schema = entry.find("schema");
  if (schema == entry.end() || *schema != kSchema) {
    throw senseless(manifest + " has the schema " + python_repr(schema == entry.end() ? Json() : *schema) +
                        ", this version reads `" + kSchema + "`",
                    "export the bundle again with this version of mpmmu-rt");
  }
  try {
    check_facts(entry);
    check_tensors(entry);
    const mpmmu_preprocessing how = mpmmu::preprocessing(mapping(entry, "preprocessing"));
    const double limit = mpmmu::threshold(entry);
    const std::size_t width = check_pixels(entry, how.side);
    check_modality(entry);
    check_single_heads(entry, width);
    auto hashed = std::make_shared<const Seen>(before_hashing(folder, mapping(entry, "files")));
    const Bundle bundle{folder, std::make_shared<const Json>(std::move(entry)), sha256(data), how, limit, width,
                        std::move(hashed)};
    bundle.check_files();
    return bundle;
  } catch (const MissingKey &missing) {
    throw senseless(manifest + " lacks the key `" + missing.key + "`, expected all keys of " + kSchema);
  } catch (const Malformed &malformed) {
    throw senseless(manifest + " is malformed: " + malformed.problem);
  } catch (const Json::exception &error) {  // of a kind that nothing above expects
    throw senseless(manifest + " is malformed: " + error.what());
  }
}

std::string Bundle::name() const { return entry->at("name").get<std::string>(); }

bool Bundle::trained() const { return entry->at("trained").get<bool>(); }

std::string Bundle::warning() const {
  std::string said = trained() ? "" : kUntrained;
  const Json calibrated = entry->value("calibration", Json());
  if (calibrated.is_object() && calibrated.value("kind", Json()) == "phantoms") {
    said += (said.empty() ? "" : "; ") + std::string(kTriedInt8);
  }
  return said;
}

void Bundle::check_files() const {
  const Json &files = mapping(*entry, "files"), &graphs = mapping(*entry, "graphs");
  std::vector<Json> used;
  for (const auto &item : graphs.items()) used.push_back(item.value());
  used.push_back(entry->at("golden"));
  const auto pool = entry->find("attention_pool");
  if (pool != entry->end() && !pool->is_null()) used.push_back(pool->at("weights"));
  for (const Json &name : used) {
    if (!name.is_string()) throw Malformed{"`graphs` has " + python_repr(name) + ", expected a path"};
  }
  const std::string manifest = join_path(folder, kManifest);
  for (const Json &name : used) {
    if (!files.contains(name.get<std::string>())) {
      throw senseless(manifest + " does not list " + name.get<std::string>() + ", expected its digest");
    }
  }
  for (const char *graph : kGraphs) {
    if (!graphs.contains(graph)) throw senseless(manifest + " does not list " + graph + ", expected its digest");
  }
  for (const auto &item : files.items()) {
    if (!item.value().is_object())
      throw Malformed{"`files` has a " + python_type(item.value()) + ", expected an object"};
    check_file(folder, item.key(), item.value());
  }
  // An engine is code, and is looked for beside its graph; and what nobody listed, nobody has looked at.
  std::vector<std::pair<Parts, Kind>> found;
  walk(folder, {}, found);
  std::sort(found.begin(), found.end());
  for (const auto &[parts, kind] : found) {
    const std::string name = joined(parts);
    if (kind == Kind::kFolder || name == kManifest || files.contains(name)) continue;
    if (kind != Kind::kFile || !left_by_systems(name, parts.back())) {
      throw altered(folder + " holds " + name + ", which " + kManifest +
                        " does not list, expected the files as they were exported",
                    "remove it, if you put it there; else do not use the bundle: copy or export it again");
    }
  }
}

// Whether a file that is not listed is nobody's doing, and nothing would read it: an engine reads weights from any file
// beside a graph that the graph names.
bool Bundle::left_by_systems(const std::string &name, const std::string &last) const {
  if (last != ".DS_Store" && last != "Thumbs.db" && last != "desktop.ini") return false;
  if (name.rfind("engines/", 0) == 0) return false;
  std::set<std::string> graphs;
  for (const auto &item : entry->at("graphs").items()) graphs.insert(item.value().get<std::string>());
  for (const auto &item : entry->at("files").items()) {
    const std::string &file = item.key(), ending = ".onnx";
    if (file.size() > ending.size() && file.compare(file.size() - ending.size(), ending.size(), ending) == 0) {
      graphs.insert(file);
    }
  }
  return std::none_of(graphs.begin(), graphs.end(),
                      [&](const std::string &graph) { return holds(join_path(folder, graph), last); });
}

void Bundle::require_proven(const std::string &target) const {
  std::string listed;
  for (const Json &one : entry->at("targets")) {
    if (one == target) return;
    listed += (listed.empty() ? "" : ", ") + one.get<std::string>();
  }
  const Json &precision = entry->at("precision");
  const Json said = precision.value(target, Json()), reason = said.is_object() ? said.value("reason", Json()) : Json();
  if (reason.is_string() && reason != "") {
    throw Failure(MPMMU_USAGE_ERROR,
                  target + " was left out of " + folder + " when it was exported (" + reason.get<std::string>() +
                      "), expected one of " + listed,
                  "use " + listed.substr(0, listed.find(',')) +
                      ", or export it again after what the reason says is settled");
  }
  throw Failure(MPMMU_USAGE_ERROR,
                target + " was not proven when " + folder + " was exported, expected one of " + listed,
                "export it again with --target " + target + "; `mpmmu-rt inspect` says why a target was left out");
}

std::string Bundle::graph(const std::string &name, const std::string &precision) const {
  const Json &graphs = entry->at("graphs");
  std::string full = name;
  if (in_8_bits(precision)) {  // both precisions may share the graph of one
    full = name + "." + precision;
    for (const char *one : {".int8", ".int8-bf16"}) {
      if (!graphs.contains(full)) full = name + one;
    }
    if (!graphs.contains(full)) {
      throw senseless(folder + " holds no INT8 graph `" + name + "." + precision +
                          "`, expected a bundle that was calibrated",
                      "export it again with --calibrate MANIFEST");
    }
  }
  return join_path(folder, graphs.at(full).get<std::string>());
}

std::string Bundle::openvino_graph(const std::string &name, const std::string &precision) const {
  const std::string own = name + "_openvino";  // bundles of before don't have it
  const bool rewritten = !in_8_bits(precision) && entry->at("graphs").contains(own);
  return graph(rewritten ? own : name, precision);
}

Arrays Bundle::golden() const {
  const std::string own = entry->at("golden").get<std::string>(), path = join_path(folder, own);
  std::string problem;
  const auto data = read_file(path, kMaxGoldenBytes, problem);
  if (!data) throw senseless(path + " " + problem);
  const Json &facts = entry->at("files").at(own);  // a self-test may come days after the bundle was opened
  if (sha256(*data) != facts.at("sha256").get<std::string>()) throw other_bytes(path, data->size(), facts.at("bytes"));
  Arrays found;
  try {
    found = parse_npz(*data, kMaxGoldenBytes);
  } catch (const std::runtime_error &error) {
    throw senseless(path + " is not a readable .npz file: " + error.what());
  }
  std::set<std::string> wanted(std::begin(kGolden), std::end(kGolden));
  if (!entry->value("single_modality", Json()).is_null()) {
    wanted.insert({"single.mammography.probability", "single.ultrasound.probability"});
  }
  check_golden(path, found, wanted, preprocessing.side, width);
  return found;
}

}  // namespace mpmmu
