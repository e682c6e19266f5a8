// NumPy's .npz: a ZIP file of .npy arrays, stored or deflated. Every length is held against what is there.

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "bundle.h"

namespace mpmmu {
namespace {

[[noreturn]] void refuse(const std::string &problem) { throw std::runtime_error(problem); }

// Little-endian integers and parts of a text, never beyond its end.
class View {
 public:
  View(const char *data, std::size_t size) : data_(data), size_(size) {}
  explicit View(const std::string &data) : View(data.data(), data.size()) {}

  std::size_t size() const { return size_; }
  const char *data() const { return data_; }

  View part(std::uint64_t at, std::uint64_t size) const {
    if (at > size_ || size > size_ - at) refuse("it ends before its content does");
    return View(data_ + at, static_cast<std::size_t>(size));
  }

  std::uint32_t number(std::uint64_t at, unsigned bytes) const {
    const View found = part(at, bytes);
    std::uint32_t value = 0;
    for (unsigned i = bytes; i-- > 0;) value = value << 8 | static_cast<unsigned char>(found.data_[i]);
    return value;
  }

  std::string text() const { return std::string(data_, size_); }

 private:
  const char *data_;
  std::size_t size_;
};

constexpr std::uint32_t kEnd = 0x06054b50, kCentral = 0x02014b50, kLocal = 0x04034b50;
constexpr std::size_t kEndBytes = 22, kCentralBytes = 46, kLocalBytes = 30, kMaxComment = 65535;

std::size_t end_of_directory(const View &file) {
  if (file.size() < kEndBytes) refuse("it is no ZIP file");
  for (std::size_t back = kEndBytes; back <= std::min(file.size(), kEndBytes + kMaxComment); ++back) {
    if (file.number(file.size() - back, 4) == kEnd) return file.size() - back;
  }
  refuse("it is no ZIP file");
}

std::string inflated(const View &packed, std::size_t size) {
  std::string out(size, '\0');
  z_stream stream{};
  if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) throw std::bad_alloc();
  stream.next_in = reinterpret_cast<Bytef *>(const_cast<char *>(packed.data()));
  stream.avail_in = static_cast<uInt>(packed.size());
  stream.next_out = reinterpret_cast<Bytef *>(out.data());
  stream.avail_out = static_cast<uInt>(size);
  const int state = inflate(&stream, Z_FINISH);
  const bool whole = state == Z_STREAM_END && stream.avail_out == 0;
  inflateEnd(&stream);
  if (!whole) refuse("a member does not unpack to the size that is stated");
  return out;
}

// `{'descr': '<f4', 'fortran_order': False, 'shape': (4, 1, 32, 32), }` as NumPy writes it, and in no other form.
class Header {
 public:
  explicit Header(std::string text) : text_(std::move(text)) {}

  Array parse() {
    Array array;
    take("{'descr': '");
    while (at_ < text_.size() && text_[at_] != '\'') array.dtype += text_[at_++];
    take("', 'fortran_order': False, 'shape': (");
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') {
      std::size_t length = 0;
      while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') {
        length = length * 10 + static_cast<std::size_t>(text_[at_++] - '0');
        if (length > 1u << 30) refuse("an array is longer than 2**30");
      }
      array.shape.push_back(length);
      if (array.shape.size() > 32) refuse("an array has more than 32 dimensions");
      if (text_.compare(at_, 2, ", ") == 0) at_ += 2;
      else if (text_.compare(at_, 1, ",") == 0) at_ += 1;
    }
    take("), }");
    return array;
  }

 private:
  void take(const std::string &expected) {
    if (text_.compare(at_, expected.size(), expected) != 0) refuse("an array's header is not as NumPy writes it");
    at_ += expected.size();
  }

  std::string text_;
  std::size_t at_ = 0;
};

std::size_t item_bytes(const std::string &dtype) {
  if (dtype == "|u1") return 1;
  if (dtype == "<f4") return 4;
  if (dtype == "<f8") return 8;
  refuse("an array has the dtype `" + dtype.substr(0, 20) + "`, expected |u1, <f4 or <f8");
}

Array parse_npy(const View &file) {
  if (file.part(0, 8).text().compare(0, 6, "\x93NUMPY") != 0) refuse("a member is no .npy file");
  const unsigned wide = file.number(6, 1) == 1 ? 2 : 4;
  const std::size_t begin = 8 + wide, length = file.number(8, wide);
  Array array = Header(file.part(begin, length).text()).parse();
  std::uint64_t bytes = item_bytes(array.dtype);
  for (const std::size_t one : array.shape) {
    bytes *= one;
    if (bytes > file.size()) refuse("an array is larger than its member");
  }
  array.bytes = file.part(begin + length, bytes).text();
  return array;
}

template <class Float>
std::vector<double> floats(const std::string &bytes) {
  std::vector<Float> found(bytes.size() / sizeof(Float));
  std::memcpy(found.data(), bytes.data(), found.size() * sizeof(Float));
  return {found.begin(), found.end()};
}

}  // namespace

std::vector<double> Array::numbers() const { return dtype == "<f8" ? floats<double>(bytes) : floats<float>(bytes); }

Arrays parse_npz(const std::string &data, std::uint64_t limit) {
  const View file(data);
  const std::size_t end = end_of_directory(file);
  const std::size_t count = file.number(end + 10, 2);
  std::uint64_t at = file.number(end + 16, 4), unpacked = 0;
  Arrays found;
  for (std::size_t i = 0; i < count; ++i) {
    if (file.number(at, 4) != kCentral) refuse("its directory is damaged");
    const std::uint32_t flags = file.number(at + 8, 2), method = file.number(at + 10, 2), crc = file.number(at + 16, 4);
    const std::uint32_t packed = file.number(at + 20, 4), size = file.number(at + 24, 4);
    const std::size_t named = file.number(at + 28, 2), extra = file.number(at + 30, 2),
                      comment = file.number(at + 32, 2);
    const std::uint64_t local = file.number(at + 42, 4);
    std::string name = file.part(at + kCentralBytes, named).text();
    at += kCentralBytes + named + extra + comment;
    if ((unpacked += size) > limit) {
      refuse("it unpacks to " + std::to_string(unpacked) + " bytes, expected at most " + std::to_string(limit));
    }
    if (flags & 1 || (method != 0 && method != 8))
      refuse("a member is encrypted, or packed in another way than deflate");
    if (file.number(local, 4) != kLocal) refuse("a member is not where the directory says");
    const std::uint64_t begin = local + kLocalBytes + file.number(local + 26, 2) + file.number(local + 28, 2);
    const View content = file.part(begin, packed);
    // Deflate packs by 1032 at most: what claims more allocates nothing.
    if (method == 0 ? packed != size : size / 1032 > packed) refuse("a member does not have the size that is stated");
    const std::string whole = method == 0 ? content.text() : inflated(content, size);
    if (crc32(0, reinterpret_cast<const Bytef *>(whole.data()), static_cast<uInt>(whole.size())) != crc) {
      refuse("Bad CRC-32 for file '" + name + "'");
    }
    const std::size_t suffix = name.size() > 4 && name.compare(name.size() - 4, 4, ".npy") == 0 ? 4 : 0;
    if (!found.emplace(name.substr(0, name.size() - suffix), parse_npy(View(whole))).second) {
      refuse("it holds `" + name + "` twice");
    }
  }
  return found;
}

}  // namespace mpmmu
