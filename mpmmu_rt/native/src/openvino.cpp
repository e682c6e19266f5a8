#include "engine.h"
#include "failure.h"
namespace mpmmu {
std::string openvino_version(const std::string &) { throw Failure(MPMMU_MISSING_LIBRARY, "not yet", ""); }
std::unique_ptr<Embedder> openvino_embedder(const Bundle &, const Wanted &) { return nullptr; }
std::unique_ptr<Head> openvino_head(const Bundle &, const Wanted &) { return nullptr; }
}
