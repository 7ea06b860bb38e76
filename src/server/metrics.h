#pragma once
// What the server counts, as Prometheus' text format 0.0.4. Server's thread only; the engine's own figures are read
// when asked for.
#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "engine/engine_thread.h"

namespace isobit::server {

struct Histogram {
  static constexpr std::array<double, 14> kEnds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                                   0.25,  0.5,    1,     2.5,  5,     10,   60};
  std::array<int64_t, kEnds.size() + 1> counts{};
  double sum = 0;
  void add(double seconds);
};

struct Metrics {
  std::map<std::pair<std::string, int>, int64_t> http;  // by route and status
  Histogram first_token, inter_token, request;
  int64_t prompt_tokens = 0, generated_tokens = 0, gone = 0, refused = 0;
  int connections = 0;

  // engine: null while the model loads.
  std::string text(const EngineThread* engine) const;
};

}  // namespace isobit::server
