#pragma once
#include "engine/tiny_model.h"
#include "models/config.h"
#include "weights/gguf.h"

namespace isobit::test {

inline ModelConfig config_of(const TinyModel& m) {
  const std::vector<std::byte> bytes = build_tiny_model(m);
  return read_config(parse_gguf(bytes, "tiny"));
}

}  // namespace isobit::test
