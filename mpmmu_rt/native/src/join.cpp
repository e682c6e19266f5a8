#include "join.h"

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <set>
#include <stdexcept>
#include <string_view>

#include "files.h"

namespace mpmmu {
namespace {

using std::string_view;

// Fields of ONNX's messages, by their numbers in onnx.proto.
namespace model {
constexpr unsigned kIrVersion = 1, kGraph = 7, kOpset = 8, kFunction = 25;
}
namespace graph {
constexpr unsigned kNode = 1, kName = 2, kInitializer = 5, kInput = 11, kOutput = 12;
}
namespace node {
constexpr unsigned kInput = 1, kOutput = 2, kName = 3, kType = 4, kAttribute = 5;
}
namespace attribute {
constexpr unsigned kName = 1, kInteger = 3, kGraph = 6, kGraphs = 11;
}
namespace tensor {
constexpr unsigned kName = 8, kRawData = 9, kExternalData = 13, kLocation = 14;
}
namespace value {  // and the key of an external_data entry
constexpr unsigned kName = 1, kType = 2, kTensorType = 1, kElementType = 1, kFloat = 1;
}

constexpr std::uint64_t kMaxGraphBytes = std::uint64_t{2} << 30;  // protobuf's own limit
constexpr const char *kNotThere = "weights are not where a graph says";

// One field of a message of protobuf: `whole` with its tag; `content` of texts and messages.
struct Field {
  unsigned number;
  std::uint64_t number_value;
  string_view whole, content;
};

std::uint64_t varint(string_view data, std::size_t &at) {
  std::uint64_t found = 0;
  for (unsigned shift = 0; shift < 64; shift += 7) {
    if (at >= data.size()) break;
    const auto byte = static_cast<unsigned char>(data[at++]);
    found |= static_cast<std::uint64_t>(byte & 127) << shift;
    if (byte < 128) return found;
  }
  throw std::runtime_error("a graph is damaged");
}

void each(string_view message, const std::function<void(const Field &)> &use) {
  for (std::size_t at = 0; at < message.size();) {
    const std::size_t begin = at;
    const std::uint64_t tag = varint(message, at);
    Field field{static_cast<unsigned>(tag >> 3), 0, {}, {}};
    std::size_t length = 0;
    if ((tag & 7) == 0) field.number_value = varint(message, at);
    else if ((tag & 7) == 1) length = 8;
    else if ((tag & 7) == 5) length = 4;
    else if ((tag & 7) == 2) length = varint(message, at);
    else throw std::runtime_error("a graph is damaged");
    if (length > message.size() - at) throw std::runtime_error("a graph ends before its content does");
    field.content = message.substr(at, length);
    at += length;
    field.whole = message.substr(begin, at - begin);
    use(field);
  }
}

void put_varint(std::string &out, std::uint64_t value) {
  for (; value > 127; value >>= 7) out += static_cast<char>((value & 127) | 128);
  out += static_cast<char>(value);
}

void put(std::string &out, unsigned number, string_view content) {
  put_varint(out, std::uint64_t{number} << 3 | 2);
  put_varint(out, content.size());
  out += content;
}

std::string contents(const std::string &path) {
  std::string problem;
  auto data = read_file(path, kMaxGraphBytes, problem);
  if (!data) throw std::runtime_error("it " + problem);
  return std::move(*data);
}

using Names = std::set<std::string>;

class Joined {
 public:
  // Adds a graph, whose values get new names: those of `names`, else the prefix. only: the values to keep, unless NULL,
  // with what makes them.
  void add(const std::string &path, const std::string &prefix, std::map<std::string, std::string> names,
           const Names *only = nullptr) {
    const std::string data = contents(path);
    folder_ = path.substr(0, path.rfind('/'));
    prefix_ = prefix;
    names_ = std::move(names);
    only_ = only;
    each(data, [this](const Field &field) {
      if (field.number == model::kGraph) each(field.content, [this](const Field &part) { weigh(part); });
    });
    each(data, [this](const Field &field) {
      if (field.number == model::kIrVersion) ir_version_ = std::max(ir_version_, field.number_value);
      if (field.number == model::kOpset) add_once(opsets_, field);
      if (field.number == model::kFunction) add_once(functions_, field);
      if (field.number == model::kGraph) each(field.content, [this](const Field &part) { add_part(part); });
    });
  }

  std::string bytes() const {
    std::string out;
    put_varint(out, std::uint64_t{model::kIrVersion} << 3);
    put_varint(out, ir_version_);
    for (const auto &opset : opsets_) out += opset;
    for (const auto &function : functions_) out += function;
    put(out, model::kGraph, graph_);
    return out;
  }

 private:
  // Two graphs may need the same; what they need of the same domain in two versions OpenVINO refuses.
  static void add_once(std::vector<std::string> &known, const Field &field) {
    for (const auto &one : known) {
      if (one == field.whole) return;
    }
    known.emplace_back(field.whole);
  }

  std::string renamed(string_view name) const {
    const auto found = names_.find(std::string(name));
    if (found != names_.end()) return found->second;
    return name.empty() ? "" : prefix_ + std::string(name);  // an optional input that is not given has no name
  }

  // Whether an output of a node, or the tensor, is to be kept.
  bool wanted(const Field &part) const {
    const unsigned named = part.number == graph::kNode ? node::kOutput : tensor::kName;
    bool found = !only_;
    each(part.content, [&](const Field &field) {
      found = found || (field.number == named && only_->count(std::string(field.content)));
    });
    return found;
  }

  void add_part(const Field &part) {
    std::string out;
    if (part.number == graph::kNode) {
      if (!wanted(part)) return;
      each(part.content, [&](const Field &field) { add_node_field(out, field); });
    } else if (part.number == graph::kInitializer) {
      if (!wanted(part)) return;
      add_tensor(out, part.content);
    } else if (part.number == graph::kOutput && only_) {
      out = of_floats("embedding");
    } else if (part.number == graph::kInput ? prefix_ != kPool : part.number == graph::kOutput && prefix_ == kPool) {
      each(part.content, [&](const Field &field) {
        if (field.number == value::kName) put(out, value::kName, renamed(field.content));
        else out += field.whole;
      });
    } else if (part.number == graph::kName && graph_.empty()) {
      out = "joined";
    } else {
      return;  // shapes of values between, and texts for people
    }
    put(graph_, part.number, out);
  }

  // A value of any shape.
  static std::string of_floats(string_view name) {
    std::string type, tensor, out;
    put_varint(tensor, std::uint64_t{value::kElementType} << 3);
    put_varint(tensor, value::kFloat);
    put(type, value::kTensorType, tensor);
    put(out, value::kName, name);
    put(out, value::kType, type);
    return out;
  }

  void add_node_field(std::string &out, const Field &field) {
    if (field.number == node::kInput || field.number == node::kOutput || field.number == node::kName) {
      put(out, field.number, renamed(field.content));
      return;
    }
    if (field.number == node::kAttribute) {
      each(field.content, [](const Field &one) {
        if (one.number == attribute::kGraph || one.number == attribute::kGraphs) {
          throw std::runtime_error(
              "an operator holds a graph of its own, which this library can't join: use onnxruntime:fp32");
        }
      });
    }
    out += field.whole;
  }

  // Before anything gets room: what a graph states is no reason to believe it.
  void weigh(const Field &part) {
    if (part.number != graph::kInitializer) return;
    std::map<std::string, std::string> external;
    each(part.content, [&](const Field &field) {
      if (field.number == tensor::kExternalData) external.insert(entry_of(field.content));
    });
    const std::uint64_t size = external.empty() ? 0 : stated(external, "length");
    if (size > kMaxGraphBytes - weights_) {
      throw std::runtime_error("the weights of the graphs have more than " + std::to_string(kMaxGraphBytes) + " bytes");
    }
    weights_ += size;
  }

  static std::pair<std::string, std::string> entry_of(string_view message) {
    std::string entry[2];
    each(message, [&](const Field &one) {
      if (one.number == value::kName || one.number == value::kType) entry[one.number - 1] = one.content;
    });
    return {entry[0], entry[1]};
  }

  static std::uint64_t stated(const std::map<std::string, std::string> &external, const char *key) {
    try {
      return std::stoull(external.at(key));
    } catch (const std::logic_error &) {  // absent, no number, or too large a one
      throw std::runtime_error(kNotThere);
    }
  }

  // Weights that lie in a file of their own are put inside: a model in memory has no folder.
  void add_tensor(std::string &out, string_view message) {
    std::map<std::string, std::string> external;
    each(message, [&](const Field &field) {
      if (field.number == tensor::kExternalData) {
        external.insert(entry_of(field.content));
      } else if (field.number == tensor::kName) {
        put(out, tensor::kName, renamed(field.content));
      } else if (field.number != tensor::kLocation) {
        out += field.whole;
      }
    });
    if (!external.empty()) put(out, tensor::kRawData, slice(external));
  }

  std::string slice(const std::map<std::string, std::string> &external) const {
    const auto location = external.find("location");
    const std::string name = location == external.end() ? "" : location->second;
    const std::uint64_t offset = stated(external, "offset"), length = stated(external, "length");
    const std::string path = join_path(folder_, name);
    std::uint64_t size = 0;
    if (name.empty() || name.find('/') != std::string::npos || kind_of(path, &size) != Kind::kFile || offset > size ||
        length > size - offset) {
      throw std::runtime_error(kNotThere);
    }
    std::ifstream file(path, std::ios::binary);
    file.seekg(static_cast<std::streamoff>(offset));
    std::string data(static_cast<std::size_t>(length), '\0');
    if (!file.read(data.data(), static_cast<std::streamsize>(length))) throw std::runtime_error(kNotThere);
    return data;
  }

 public:
  static constexpr const char *kPool = "attention_pool/";

 private:
  std::string folder_, prefix_, graph_;
  std::map<std::string, std::string> names_;
  const Names *only_ = nullptr;
  std::vector<std::string> opsets_, functions_;
  std::uint64_t ir_version_ = 0, weights_ = 0;
};

// What the columns of a modality are made of in the attention pool, and their own name; nothing where it can't be cut.
struct Cut {
  Names values;
  std::string columns;
};

struct Node {
  std::string type;
  std::vector<std::string> inputs, outputs;
  std::int64_t axis = 0;
};

Node node_of(string_view message) {
  Node found;
  each(message, [&](const Field &field) {
    if (field.number == node::kInput) found.inputs.emplace_back(field.content);
    if (field.number == node::kOutput) found.outputs.emplace_back(field.content);
    if (field.number == node::kType) found.type = field.content;
    if (field.number != node::kAttribute) return;
    std::string name;
    std::uint64_t integer = 0;
    each(field.content, [&](const Field &one) {
      if (one.number == attribute::kName) name = one.content;
      if (one.number == attribute::kInteger) integer = one.number_value;
    });
    if (name == "axis") found.axis = static_cast<std::int64_t>(integer);
  });
  return found;
}

Cut cut_of(const std::string &pool, std::size_t modality) {
  std::vector<Node> nodes;
  each(pool, [&](const Field &field) {
    if (field.number != model::kGraph) return;
    each(field.content, [&](const Field &part) {
      if (part.number == graph::kNode) nodes.push_back(node_of(part.content));
    });
  });
  Cut cut;
  for (auto one = nodes.rbegin(); one != nodes.rend(); ++one) {  // in the order in which they run: the last first
    const auto &outputs = one->outputs;
    if (std::find(outputs.begin(), outputs.end(), "embedding") != outputs.end()) {
      if (one->type != "Concat" || one->inputs.size() != 2 || (one->axis != 1 && one->axis != -1)) return {};
      cut.columns = one->inputs[modality];
      cut.values.insert(cut.columns);
    } else if (std::any_of(outputs.begin(), outputs.end(), [&](const auto &name) { return cut.values.count(name); })) {
      std::copy_if(one->inputs.begin(), one->inputs.end(), std::inserter(cut.values, cut.values.end()),
                   [](const std::string &name) { return !name.empty(); });  // an input that is not given has no name
    }
  }
  if (cut.values.count(std::string(kModalities[1 - modality]) + "_feature_map")) return {};
  return cut;
}

void add_encoder(Joined &joined, const Bundle &bundle, const std::string &precision, const std::string &modality) {
  joined.add(bundle.openvino_graph(modality, precision), modality + "/",
             {{"pixels", modality + "_pixels"}, {"feature_map", modality + "_feature_map"}});
}

}  // namespace

std::string joined_model(const Bundle &bundle, const std::string &precision) {
  Joined joined;
  std::map<std::string, std::string> pooled{{"embedding", "embedding"}};
  for (const std::string modality : kModalities) {
    add_encoder(joined, bundle, precision, modality);
    pooled[modality + "_feature_map"] = modality + "_feature_map";
  }
  joined.add(bundle.openvino_graph("attention_pool"), Joined::kPool, pooled);
  return joined.bytes();
}

std::string half_model(const Bundle &bundle, const std::string &precision, std::size_t modality) {
  const std::string pool = bundle.openvino_graph("attention_pool"), name = kModalities[modality];
  const Cut cut = cut_of(contents(pool), modality);
  if (cut.columns.empty()) return {};
  Joined joined;
  add_encoder(joined, bundle, precision, name);
  joined.add(pool, Joined::kPool, {{cut.columns, "embedding"}, {name + "_feature_map", name + "_feature_map"}}, &cut.values);
  return joined.bytes();
}

}  // namespace mpmmu
