#include "files.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <new>
#include <sstream>
#include <thread>
#include <vector>

namespace mpmmu {
namespace {

constexpr std::size_t kPart = 1 << 18;

class File {  // open for reading
 public:
  explicit File(const std::string &path)
      : handle_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)), error_(handle_ < 0 ? errno : 0) {}
  File(const File &) = delete;
  File &operator=(const File &) = delete;
  ~File() {
    if (handle_ >= 0) ::close(handle_);
  }

  std::string problem() const { return std::string("can't be read: ") + std::strerror(error_) + ", expected a file"; }

  // The number of bytes read, 0 at the end, below 0 for a failure (error).
  ssize_t read(char *into, std::size_t size) {
    if (handle_ < 0) return -1;
    ssize_t got;
    do got = ::read(handle_, into, size);
    while (got < 0 && errno == EINTR);
    if (got < 0) error_ = errno;
    return got;
  }

 private:
  int handle_, error_;
};

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    if (!context_ || EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) != 1) throw std::bad_alloc();
  }

  void add(const char *data, std::size_t size) { EVP_DigestUpdate(context_.get(), data, size); }

  std::string digits() {
    unsigned char found[EVP_MAX_MD_SIZE];
    unsigned length = 0;
    EVP_DigestFinal_ex(context_.get(), found, &length);
    std::string out;
    for (unsigned i = 0; i < length; ++i) {
      out += "0123456789abcdef"[found[i] >> 4];
      out += "0123456789abcdef"[found[i] & 15];
    }
    return out;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX *)> context_;
};

bool whole_number(const std::string &text) {
  return !text.empty() && text.size() < 10 &&
         std::all_of(text.begin(), text.end(), [](char one) { return one >= '0' && one <= '9'; });
}

// Processors per period of cgroup v2, or v1; 0 where there is no limit.
unsigned cgroup_quota() {
  std::string quota, period;
  std::ifstream second("/sys/fs/cgroup/cpu.max");
  if (second) {
    second >> quota >> period;
  } else {
    std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") >> quota;
    std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_period_us") >> period;
  }
  if (!whole_number(quota) || !whole_number(period)) return 0;  // `max`, and -1
  const unsigned long all = std::stoul(quota), each = std::stoul(period);
  return each == 0 ? 0 : static_cast<unsigned>((all + each - 1) / each);
}

}  // namespace

std::string join_path(const std::string &folder, const std::string &name) {
  return folder.empty() || folder.back() == '/' ? folder + name : folder + "/" + name;
}

std::string absolute_path(const std::string &path) {
  const std::unique_ptr<char, void (*)(void *)> here(::getcwd(nullptr, 0), std::free);
  return path.rfind('/', 0) == 0 || !here ? path : join_path(here.get(), path);
}

Kind kind_of(const std::string &path, std::uint64_t *size) {
  struct stat found;
  if (::lstat(path.c_str(), &found) != 0) return Kind::kNone;
  if (size) *size = static_cast<std::uint64_t>(found.st_size);
  if (S_ISLNK(found.st_mode)) return Kind::kLink;
  if (S_ISREG(found.st_mode)) return Kind::kFile;
  return S_ISDIR(found.st_mode) ? Kind::kFolder : Kind::kOther;
}

bool holds(const std::string &path, std::string text) {
  const auto lower = [](char &one) {
    if (one >= 'A' && one <= 'Z') one = static_cast<char>(one - 'A' + 'a');
  };
  std::for_each(text.begin(), text.end(), lower);
  File file(path);
  std::string seen;
  std::vector<char> part(kPart);
  ssize_t got;
  while ((got = file.read(part.data(), part.size())) > 0) {
    std::for_each(part.begin(), part.begin() + got, lower);
    seen.append(part.data(), static_cast<std::size_t>(got));
    if (seen.find(text) != std::string::npos) return true;
    if (seen.size() > text.size()) seen.erase(0, seen.size() - text.size());
  }
  return false;
}

std::optional<std::string> read_file(const std::string &path, std::uint64_t limit, std::string &problem) {
  File file(path);
  std::string data;
  std::vector<char> part(kPart);
  ssize_t got = file.read(part.data(), part.size());
  for (; got > 0 && data.size() <= limit; got = file.read(part.data(), part.size())) {
    data.append(part.data(), static_cast<std::size_t>(got));
  }
  if (got < 0) {
    problem = file.problem();
    return std::nullopt;
  }
  if (data.size() > limit) {
    problem = "is larger than " + std::to_string(limit) + " bytes, expected a file of that size at most";
    return std::nullopt;
  }
  return data;
}

std::string sha256(const std::string &data) {
  Sha256 digest;
  digest.add(data.data(), data.size());
  return digest.digits();
}

std::optional<std::string> sha256_file(const std::string &path, std::string &problem) {
  File file(path);
  Sha256 digest;
  std::vector<char> part(kPart);
  ssize_t got;
  while ((got = file.read(part.data(), part.size())) > 0) digest.add(part.data(), static_cast<std::size_t>(got));
  if (got >= 0) return digest.digits();
  problem = file.problem();
  return std::nullopt;
}

unsigned usable_threads() {
  unsigned most = std::thread::hardware_concurrency();
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof set, &set) == 0) most = static_cast<unsigned>(CPU_COUNT(&set));
  if (const unsigned quota = cgroup_quota()) most = std::min(most, quota);
  if (const char *named = std::getenv("OMP_NUM_THREADS")) {
    std::string granted;
    std::getline(std::istringstream(named), granted, ',');  // a list is one number a level
    granted.erase(0, granted.find_first_not_of(' '));
    granted.erase(granted.find_last_not_of(' ') + 1);
    if (whole_number(granted) && std::stoul(granted) > 0)
      most = std::min(most, static_cast<unsigned>(std::stoul(granted)));
  }
  return std::max(1u, most);
}

}  // namespace mpmmu
