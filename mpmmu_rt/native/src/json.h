// JSON as Python reads and writes it: a bundle's own digest is that of what `json.dumps` makes of it.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace mpmmu {

using Json = nlohmann::ordered_json;

// Parses UTF-8; throws std::runtime_error for what is no JSON, or is nested more deeply, or has more keys, than any
// bundle.
Json parse_json(const std::string &text);

// `json.dumps(value, sort_keys=sorted)`.
std::string dump_json(const Json &value, bool sorted);

// `repr(value)` and `type(value).__name__` of what Python makes of it, for messages.
std::string python_repr(const Json &value);
std::string python_type(const Json &value);

// Without white space, inside texts as well.
std::string bare(const std::string &text);

}  // namespace mpmmu
