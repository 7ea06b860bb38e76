#pragma once
// Reading the goldens that make_tokenizer_goldens.py wrote.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace isobit::golden {

inline nlohmann::json read(const std::string& name) {
  const std::string path = std::string(ISOBIT_SOURCE_DIR) + "/tests/text/data/" + name;
  std::ifstream file(path);
  if (!file) throw std::runtime_error("no " + path);
  return nlohmann::json::parse(file);
}

inline std::vector<std::string> corpus() { return read("tokenizer_corpus.json").get<std::vector<std::string>>(); }

inline TokenizerSpec spec(const nlohmann::json& json) {
  TokenizerSpec out;
  out.tokens = json.at("tokens").get<std::vector<std::string>>();
  for (const int type : json.at("types")) out.types.push_back(static_cast<TokenType>(type));
  if (json.contains("merges")) {
    out.pre = json.at("pre").get<std::string>();
    out.merges = json.at("merges").get<std::vector<std::string>>();
    return out;
  }
  out.kind = TokenizerKind::kSpm;
  out.scores = json.at("scores").get<std::vector<float>>();
  out.bos_id = json.at("bos_id").get<int32_t>();
  out.eos_id = json.at("eos_id").get<int32_t>();
  out.unknown_id = json.at("unknown_id").get<int32_t>();
  out.add_space_prefix = json.at("add_space_prefix").get<bool>();
  out.remove_extra_whitespaces = json.at("remove_extra_whitespaces").get<bool>();
  return out;
}

// A random seed that a failure shows.
inline uint64_t fresh_seed() {
  const uint64_t seed = std::random_device{}();
  std::cout << "[     seed ] " << seed << "\n";
  return seed;
}

}  // namespace isobit::golden
