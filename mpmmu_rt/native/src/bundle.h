// An opened bundle: `mpmmu_rt/bundle.py` specifies the format, and is what this follows line by line.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "json.h"
#include "mpmmu.h"

namespace mpmmu {

inline constexpr const char *kModalities[] = {"mammography", "ultrasound"};

// An array of an .npz file, in C order.
struct Array {
  std::string dtype;  // as in NumPy's header: "|u1", "<f4", "<f8"
  std::vector<std::size_t> shape;
  std::string bytes;

  bool octets() const { return dtype == "|u1"; }
  const std::uint8_t *data() const { return reinterpret_cast<const std::uint8_t *>(bytes.data()); }
  std::vector<double> numbers() const;  // of floats
};

using Arrays = std::map<std::string, Array>;

// The arrays of an .npz file that unpacks to at most `limit` bytes; throws std::runtime_error for anything else.
Arrays parse_npz(const std::string &data, std::uint64_t limit);

// Whether the encoders are quantized graphs, whatever what is not quantized is computed in: `int8`, `int8-bf16`.
inline bool in_8_bits(const std::string &precision) { return precision.rfind("int8", 0) == 0; }

// A file that an engine goes on reading while it is loaded, as ONNX Runtime does of weights that it does not pack:
// `mpmmu_rt.held`. Threads may share it. Throws MPMMU_DIGEST_MISMATCH for one that is not there.
class HeldFile {
 public:
  HeldFile(std::string path, std::string digest);
  HeldFile(const HeldFile &) = delete;
  ~HeldFile();

  // Throws MPMMU_DIGEST_MISMATCH where it was written to since, and is another now. Asked before a call and behind it.
  void require_untouched();

 private:
  std::string path_, digest_;
  int handle_;
  std::mutex mutex_;
  struct stat seen_;
};

using Seen = std::map<std::string, struct stat>;  // by name

struct Bundle {
  std::string folder;
  std::shared_ptr<const Json> entry;  // bundle.json
  std::string digest;
  mpmmu_preprocessing preprocessing;
  double threshold;
  std::size_t width;  // of the embedding
  std::shared_ptr<const Seen> hashed;  // of every file, before it was

  // Throws Failure: MPMMU_DIGEST_MISMATCH for what is not as it was sealed, MPMMU_BUNDLE_ERROR for what was sealed and
  // makes no sense, is of another version, or is no bundle.
  static Bundle open(const std::string &folder);

  std::string name() const;
  bool trained() const;
  std::string warning() const;  // `mpmmu_rt.bundle.Bundle.warning`; "" where there is none

  // Throws MPMMU_USAGE_ERROR for a target that the export did not prove.
  void require_proven(const std::string &target) const;

  // Of what was loaded from files after they were hashed: throws as `check_files` where one is not what it was then.
  void require_unchanged() const;

  // The files of weights, to be held.
  std::list<HeldFile> weights() const;

  // The path of a graph, of an encoder also in 8 bits; throws MPMMU_BUNDLE_ERROR for that of a bundle that was not
  // calibrated. openvino_graph: as it was rewritten for OpenVINO, where it was.
  std::string graph(const std::string &name, const std::string &precision = "fp32") const;
  std::string openvino_graph(const std::string &name, const std::string &precision = "fp32") const;

  // The golden vectors, every one that there must be; throws MPMMU_BUNDLE_ERROR.
  Arrays golden() const;

  void check_files() const;
  bool left_by_systems(const std::string &name, const std::string &last) const;
};

}  // namespace mpmmu
