#pragma once
// What a benchmark's requests waited for, as figures: throughput, time to first token, time per output token, end to
// end.
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

namespace isobit::cli {

struct RequestTimes {
  double sent = 0, first = 0, last = 0;  // seconds after the benchmark's start; of the first and the last token
  int prompt_tokens = 0, tokens = 0;
};

// mean, median and 99th percentile; null of nothing.
nlohmann::ordered_json spread(std::vector<double> values);
// Adds completed, seconds, input_tokens, output_tokens, output_tok_s, total_tok_s and the spreads
// time_to_first_token_s, time_per_output_token_s and end_to_end_s.
void add_latencies(std::span<const RequestTimes> requests, nlohmann::ordered_json& to);
// Those that `figures` has, for people; accepted_length too.
void print_latencies(const nlohmann::ordered_json& figures);

}  // namespace isobit::cli
