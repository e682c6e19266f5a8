// Bounded reads, digests, and what may be used of the machine.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace mpmmu {

std::string join_path(const std::string &folder, const std::string &name);

// The same, from wherever it is read later.
std::string absolute_path(const std::string &path);

enum class Kind { kNone, kFile, kFolder, kLink, kOther };

// Of what the path names itself: a link is a link.
Kind kind_of(const std::string &path, std::uint64_t *size = nullptr);

// Whether a file of any size holds a text, in small letters or capitals: names of files may be alike then.
bool holds(const std::string &path, std::string text);

// At most `limit` bytes; nothing where there are more, or the file can't be read (`problem` says why).
std::optional<std::string> read_file(const std::string &path, std::uint64_t limit, std::string &problem);

// SHA-256 as 64 hexadecimal digits; nothing of a file that can't be read (`problem` says why).
std::string sha256(const std::string &data);
std::optional<std::string> sha256_file(const std::string &path, std::string &problem);

// Threads that this process may really use, whatever library runs them: `mpmmu_rt.machine.usable_threads`.
unsigned usable_threads();

}  // namespace mpmmu
