#include "json.h"

#include <locale.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <vector>

namespace mpmmu {
namespace {

constexpr int kDeepest = 64;  // a bundle.json has 7 levels
// A bundle.json has some 500. Each is looked for among those before it: 16 MiB of keys would take 20 minutes.
constexpr std::size_t kMostKeys = 20'000;

// Python's `repr` of a float: the fewest digits that read back the same, as 1e-05 or 1e+16 beyond 0.0001 to 10**16.
std::string number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value, std::chars_format::scientific).ptr;
  const std::string shortest(text, end);
  const std::size_t at = shortest.find('e');
  const int exponent = std::stoi(shortest.substr(at + 1));
  const std::string sign = std::signbit(value) ? "-" : "";
  std::string digits;
  for (char one : shortest.substr(0, at)) {
    if (one >= '0' && one <= '9') digits += one;
  }
  if (exponent < -4 || exponent >= 16) {
    const std::string fraction = digits.size() > 1 ? "." + digits.substr(1) : "";
    const std::string size = std::to_string(std::abs(exponent));
    return sign + digits[0] + fraction + (exponent < 0 ? "e-" : "e+") + (size.size() < 2 ? "0" : "") + size;
  }
  if (exponent < 0) return sign + "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
  const auto whole = static_cast<std::size_t>(exponent) + 1;
  if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
  return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

// As long as it lives, this thread reads numbers as C does: the parser takes what the application's locale has between
// digits for one byte, and that of ps_AF has two.
class PlainNumbers {
 public:
  PlainNumbers() : plain_(::newlocale(LC_NUMERIC_MASK, "C", nullptr)), before_(::uselocale(plain_)) {}
  PlainNumbers(const PlainNumbers &) = delete;
  ~PlainNumbers() {
    ::uselocale(before_);
    if (plain_) ::freelocale(plain_);
  }

 private:
  locale_t plain_, before_;
};

std::string text(const std::string &value) { return Json(value).dump(-1, ' ', true); }

void dump(const Json &value, bool sorted, std::string &out) {
  if (value.is_object()) {
    std::vector<Json::const_iterator> items;
    for (auto item = value.begin(); item != value.end(); ++item) items.push_back(item);
    if (sorted) {  // by code points, as Python does: UTF-8 sorts alike
      std::sort(items.begin(), items.end(), [](const auto &a, const auto &b) { return a.key() < b.key(); });
    }
    out += '{';
    const char *comma = "";
    for (const auto &item : items) {
      out += comma + text(item.key()) + ": ";
      dump(*item, sorted, out);
      comma = ", ";
    }
    out += '}';
  } else if (value.is_array()) {
    out += '[';
    const char *comma = "";
    for (const auto &item : value) {
      out += comma;
      dump(item, sorted, out);
      comma = ", ";
    }
    out += ']';
  } else {
    out += value.is_number_float() ? number(value.get<double>()) : value.dump(-1, ' ', true);
  }
}

}  // namespace

Json parse_json(const std::string &source) {
  std::size_t keys = 0;
  const auto bounded = [&keys](int deep, Json::parse_event_t event, Json &) {
    keys += event == Json::parse_event_t::key;
    if (keys > kMostKeys) throw std::runtime_error("it holds more than " + std::to_string(kMostKeys) + " keys");
    if (deep > kDeepest) throw std::runtime_error("it is nested in more than " + std::to_string(kDeepest) + " levels");
    return true;
  };
  if (source.find('\0') != std::string::npos)
    throw std::runtime_error("it holds a zero byte");  // ends it, to the parser
  const PlainNumbers plain;
  return Json::parse(source, bounded);
}

std::string dump_json(const Json &value, bool sorted) {
  std::string out;
  dump(value, sorted, out);
  return out;
}

std::string python_repr(const Json &value) {
  if (value.is_null()) return "None";
  if (value.is_boolean()) return value.get<bool>() ? "True" : "False";
  if (value.is_string()) {
    const auto &said = value.get_ref<const std::string &>();
    const char *quote = said.find('\'') != std::string::npos && said.find('"') == std::string::npos ? "\"" : "'";
    return quote + said + quote;
  }
  if (!value.is_structured()) return dump_json(value, false);
  std::string out;
  for (auto item = value.begin(); item != value.end(); ++item) {
    out += out.empty() ? "" : ", ";
    out += (value.is_object() ? python_repr(item.key()) + ": " : "") + python_repr(*item);
  }
  return value.is_object() ? "{" + out + "}" : "[" + out + "]";
}

std::string python_type(const Json &value) {
  if (value.is_null()) return "NoneType";
  if (value.is_boolean()) return "bool";
  if (value.is_string()) return "str";
  if (value.is_object()) return "dict";
  if (value.is_array()) return "list";
  return value.is_number_float() ? "float" : "int";
}

std::string bare(const std::string &source) {
  std::string out;
  out.reserve(source.size());
  for (char one : source) {
    if (one != ' ' && (one < '\t' || one > '\r')) out += one;
  }
  return out;
}

}  // namespace mpmmu
