// libFuzzer: whatever the bytes are, reading them ends with a value or a refusal. The first byte chooses what is read.
// `python -m benchmarks.native.robust` builds it with clang and runs it; inputs.cpp reads what it found.
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <stdexcept>

#include <nlohmann/json.hpp>

#include "bundle.h"
#include "failure.h"
#include "files.h"

namespace {

void require(bool holds, const char *what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

std::string temporary_folder() {
  const char *above = std::getenv("TMPDIR");
  std::string name = std::string(above ? above : "/tmp") + "/mpmmu-fuzz-XXXXXX";
  require(::mkdtemp(name.data()) != nullptr, "there is a folder");
  return name;
}

void read_json(const std::string &text) {
  const mpmmu::Json value = mpmmu::parse_json(text);
  const std::string said = mpmmu::dump_json(value, false);
  require(mpmmu::dump_json(mpmmu::parse_json(said), false) == said, "what was written reads back the same");
  mpmmu::dump_json(value, true);
  mpmmu::python_repr(value);
}

void read_npz(const std::string &data) {
  constexpr std::uint64_t kMost = 1 << 20;
  std::uint64_t bytes = 0;
  for (const auto &[name, array] : mpmmu::parse_npz(data, kMost)) {
    bytes += array.bytes.size();
    if (!array.octets()) array.numbers();
  }
  require(bytes <= kMost, "no more is unpacked than may be");
}

// Sealed as whoever wrote it would seal it: what makes no sense must be found by what is checked after the digest.
void open_sealed(const std::string &text) {
  static const std::string folder = temporary_folder();
  mpmmu::Json entry = mpmmu::parse_json(text);
  if (!entry.is_object()) return;
  entry.erase("sha256");
  entry["sha256"] = mpmmu::sha256(mpmmu::dump_json(entry, true));
  std::ofstream(folder + "/bundle.json") << mpmmu::dump_json(entry, false);
  mpmmu::Bundle::open(folder);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  if (size == 0) return 0;
  const std::string rest(reinterpret_cast<const char *>(data) + 1, size - 1);
  try {
    if (data[0] % 3 == 0) read_json(rest);
    if (data[0] % 3 == 1) read_npz(rest);
    if (data[0] % 3 == 2) open_sealed(rest);
  } catch (const mpmmu::Failure &failure) {
    require(failure.what()[0] != 0 && !failure.hint.empty(), "a refusal says what to do");
  } catch (const std::runtime_error &) {
  } catch (const nlohmann::detail::exception &) {
  }
  return 0;
}
