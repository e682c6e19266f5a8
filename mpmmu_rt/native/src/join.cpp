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

void put_header(std::string &out, unsigned number, std::uint64_t size) {
  put_varint(out, std::uint64_t{number} << 3 | 2);
  put_varint(out, size);
}

void put(std::string &out, unsigned number, string_view content) {
  put_header(out, number, content.size());
  out += content;
}

std::string contents(const std::string &path) {
  std::string problem;
  auto data = read_file(path, kMaxGraphBytes, problem);
  if (!data) throw std::runtime_error("it " + problem);
  return std::move(*data);
}

// Bytes of a message, and after them weights that still lie in a file: they are read straight to where they belong, as
// there may be hundreds of megabytes of them.
struct Piece {
  std::string text, path;
  std::uint64_t offset = 0, length = 0;
};

class Joined {
 public:
  // Adds a graph, whose values get new names: those of `names`, else the prefix.
  void add(const std::string &path, const std::string &prefix, std::map<std::string, std::string> names) {
    const std::string data = contents(path);
    folder_ = path.substr(0, path.rfind('/'));
    prefix_ = prefix;
    names_ = std::move(names);
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

  Buffer bytes() const {
    std::string head;
    put_varint(head, std::uint64_t{model::kIrVersion} << 3);
    put_varint(head, ir_version_);
    for (const auto &opset : opsets_) head += opset;
    for (const auto &function : functions_) head += function;
    std::size_t size = 0;
    for (const Piece &piece : graph_) size += piece.text.size() + piece.length;
    put_header(head, model::kGraph, size);
    Buffer out(head.size() + size);
    char *to = std::copy(head.begin(), head.end(), out.data.get());
    for (const Piece &piece : graph_) {
      to = std::copy(piece.text.begin(), piece.text.end(), to);
      if (!piece.length) continue;
      std::ifstream file(piece.path, std::ios::binary);
      file.seekg(static_cast<std::streamoff>(piece.offset));
      if (!file.read(to, static_cast<std::streamsize>(piece.length))) throw std::runtime_error(kNotThere);
      to += piece.length;
    }
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

  void add_part(const Field &part) {
    std::string out;
    Piece weights;
    if (part.number == graph::kNode) {
      each(part.content, [&](const Field &field) { add_node_field(out, field); });
    } else if (part.number == graph::kInitializer) {
      weights = add_tensor(out, part.content);
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
    put_header(weights.text, part.number, out.size() + weights.length);
    weights.text += out;
    graph_.push_back(std::move(weights));
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

  // Weights that lie in a file of their own are put inside, at the end: a model in memory has no folder.
  Piece add_tensor(std::string &out, string_view message) {
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
    if (external.empty()) return {};
    Piece weights = slice(external);
    put_header(out, tensor::kRawData, weights.length);
    return weights;
  }

  Piece slice(const std::map<std::string, std::string> &external) const {
    const auto location = external.find("location");
    const std::string name = location == external.end() ? "" : location->second;
    const std::uint64_t offset = stated(external, "offset"), length = stated(external, "length");
    const std::string path = join_path(folder_, name);
    std::uint64_t size = 0;
    if (name.empty() || name.find('/') != std::string::npos || kind_of(path, &size) != Kind::kFile || offset > size ||
        length > size - offset) {
      throw std::runtime_error(kNotThere);
    }
    return {{}, path, offset, length};
  }

 public:
  static constexpr const char *kPool = "attention_pool/";

 private:
  std::string folder_, prefix_;
  std::vector<Piece> graph_;
  std::map<std::string, std::string> names_;
  std::vector<std::string> opsets_, functions_;
  std::uint64_t ir_version_ = 0, weights_ = 0;
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

// What one input of the last concatenation is made of, and its own name; nothing where the embedding is made otherwise.
struct Part {
  std::set<std::string> values;
  std::string columns;
};

Part part_of(const std::vector<Node> &nodes, std::size_t input) {
  Part part;
  for (auto one = nodes.rbegin(); one != nodes.rend(); ++one) {  // in the order in which they run: the last first
    const auto &outputs = one->outputs;
    if (std::find(outputs.begin(), outputs.end(), "embedding") != outputs.end()) {
      if (one->type != "Concat" || one->inputs.size() != 2 || (one->axis != 1 && one->axis != -1)) return {};
      part.columns = one->inputs[input];
      part.values.insert(part.columns);
    } else if (std::any_of(outputs.begin(), outputs.end(), [&](const auto &name) { return part.values.count(name); })) {
      std::copy_if(one->inputs.begin(), one->inputs.end(), std::inserter(part.values, part.values.end()),
                   [](const std::string &name) { return !name.empty(); });  // an input that is not given has no name
    }
  }
  return part;
}

// `embedding`: floats of any shape, as which `columns` are given out.
std::string output_of(const std::string &columns) {
  std::string type, tensor, output, identity, out;
  put_varint(tensor, std::uint64_t{value::kElementType} << 3);
  put_varint(tensor, value::kFloat);
  put(type, value::kTensorType, tensor);
  put(output, value::kName, "embedding");
  put(output, value::kType, type);
  put(identity, node::kInput, columns);
  put(identity, node::kOutput, "embedding");
  put(identity, node::kType, "Identity");
  put(out, graph::kNode, identity);
  put(out, graph::kOutput, output);
  return out;
}

// Whether a part of a graph belongs to what `values` are made of.
bool belongs(const Field &field, const std::set<std::string> &values) {
  if (field.number == graph::kName) return true;
  if (field.number != graph::kNode && field.number != graph::kInitializer && field.number != graph::kInput) return false;
  const unsigned named = field.number == graph::kNode          ? node::kOutput
                         : field.number == graph::kInitializer ? tensor::kName
                                                               : value::kName;
  bool found = false;
  each(field.content, [&](const Field &one) {
    found = found || (one.number == named && values.count(std::string(one.content)));
  });
  return found;
}

}  // namespace

Buffer joined_model(const Bundle &bundle, const std::string &precision) {
  Joined joined;
  std::map<std::string, std::string> pooled{{"embedding", "embedding"}};
  for (const std::string modality : kModalities) {
    const std::string map = modality + "_feature_map";
    joined.add(bundle.openvino_graph(modality, precision), modality + "/",
               {{"pixels", modality + "_pixels"}, {"feature_map", map}});
    pooled[map] = map;
  }
  joined.add(bundle.openvino_graph("attention_pool"), Joined::kPool, pooled);
  return joined.bytes();
}

Buffer half_model(const Buffer &joined, std::size_t modality) {
  std::string head;
  string_view whole;
  each({joined.data.get(), joined.size}, [&](const Field &field) {
    if (field.number == model::kGraph) whole = field.content;
    else head += field.whole;
  });
  std::vector<Node> nodes;
  each(whole, [&](const Field &field) {
    if (field.number == graph::kNode) nodes.push_back(node_of(field.content));
  });
  const Part part = part_of(nodes, modality);
  const std::string other = std::string(kModalities[1 - modality]) + "_pixels";
  if (part.columns.empty() || part.values.count(other)) return Buffer(0);
  std::vector<string_view> kept;
  std::size_t size = 0;
  each(whole, [&](const Field &field) {
    if (belongs(field, part.values)) kept.push_back(field.whole), size += field.whole.size();
  });
  const std::string output = output_of(part.columns);
  put_header(head, model::kGraph, size + output.size());
  Buffer out(head.size() + size + output.size());
  char *to = std::copy(head.begin(), head.end(), out.data.get());
  for (const string_view one : kept) to = std::copy(one.begin(), one.end(), to);
  std::copy(output.begin(), output.end(), to);
  return out;
}

}  // namespace mpmmu
