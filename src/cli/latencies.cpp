#include "cli/latencies.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iostream>

namespace isobit::cli {

nlohmann::ordered_json spread(std::vector<double> values) {
  if (values.empty()) return nullptr;
  std::ranges::sort(values);
  const auto at = [&](double q) {
    return values[static_cast<size_t>(std::ceil(q * static_cast<double>(values.size()))) - (q > 0 ? 1 : 0)];
  };
  double sum = 0;
  for (const double v : values) sum += v;
  return {{"mean", sum / static_cast<double>(values.size())}, {"median", at(0.5)}, {"p99", at(0.99)}};
}

void add_latencies(std::span<const RequestTimes> requests, nlohmann::ordered_json& j) {
  std::vector<double> first, per_token, whole;
  int64_t in = 0, out = 0;
  double end = 0;
  for (const RequestTimes& r : requests) {
    first.push_back(r.first - r.sent);
    whole.push_back(r.last - r.sent);
    if (r.tokens > 1) per_token.push_back((r.last - r.first) / (r.tokens - 1));
    in += r.prompt_tokens;
    out += r.tokens;
    end = std::max(end, r.last);
  }
  j["completed"] = requests.size();
  j["seconds"] = end;
  j["input_tokens"] = in;
  j["output_tokens"] = out;
  j["output_tok_s"] = end > 0 ? static_cast<double>(out) / end : 0.0;
  j["total_tok_s"] = end > 0 ? static_cast<double>(in + out) / end : 0.0;
  j["time_to_first_token_s"] = spread(std::move(first));
  j["time_per_output_token_s"] = spread(std::move(per_token));
  j["end_to_end_s"] = spread(std::move(whole));
}

void print_latencies(const nlohmann::ordered_json& j) {
  std::cout << fmt::format("  {:<24} {:>10.1f} tok/s\n  {:<24} {:>10.1f} tok/s\n", "output",
                           j["output_tok_s"].get<double>(), "input and output", j["total_tok_s"].get<double>());
  if (j.contains("accepted_length"))
    std::cout << fmt::format("  {:<24} {:>10.2f} tokens a step and sequence\n", "accepted length",
                             j["accepted_length"].get<double>());
  for (const auto& [key, name] : {std::pair{"time_to_first_token_s", "time to first token"},
                                  {"time_per_output_token_s", "time per output token"},
                                  {"inter_token_s", "between tokens"},
                                  {"end_to_end_s", "end to end"}}) {
    if (!j.contains(key) || !j[key].is_object()) continue;
    std::cout << fmt::format("  {:<24} mean {:>9.1f}  median {:>9.1f}  p99 {:>9.1f} ms\n", name,
                             1e3 * j[key]["mean"].get<double>(), 1e3 * j[key]["median"].get<double>(),
                             1e3 * j[key]["p99"].get<double>());
  }
}

}  // namespace isobit::cli
