#include "cli/latencies.h"

#include <gtest/gtest.h>

#include "cli/step_floor.h"
#include "models/synthetic.h"

namespace isobit::cli {
namespace {

TEST(Latencies, MeanMedianAndTheHundredth) {
  std::vector<double> values;
  for (int i = 200; i > 0; i--) values.push_back(i);
  const auto s = spread(values);
  EXPECT_EQ(s["mean"], 100.5);
  EXPECT_EQ(s["median"], 100);
  EXPECT_EQ(s["p99"], 198);
  EXPECT_TRUE(spread({}).is_null());
}

TEST(Latencies, OfRequests) {
  const RequestTimes times[] = {{.sent = 1, .first = 2, .last = 5, .prompt_tokens = 10, .tokens = 4},
                                {.sent = 1, .first = 4, .last = 4, .prompt_tokens = 20, .tokens = 1}};
  nlohmann::ordered_json j;
  add_latencies(times, j);
  EXPECT_EQ(j["completed"], 2);
  EXPECT_EQ(j["input_tokens"], 30);
  EXPECT_EQ(j["output_tok_s"], 1.0);
  EXPECT_EQ(j["time_to_first_token_s"]["mean"], 2.0);
  EXPECT_EQ(j["time_per_output_token_s"]["mean"], 1.0) << "of one token there is no time between tokens";
  EXPECT_EQ(j["end_to_end_s"]["p99"], 4.0);
}

// Two layers of 589,824 weights, a head of 131,072, keys and values of 1024 bytes a token.
TEST(StepFloor, BytesOrProducts) {
  const StepFloor floor(read_config(*synthetic_checkpoint("random:tiny")));
  const double body = 2 * 589824, head = 131072;
  EXPECT_DOUBLE_EQ(floor.us({.tokens = 1, .sampled = 1}), 2 * (body + head) / 4.3e6);
  EXPECT_DOUBLE_EQ(floor.us({.tokens = 1, .sampled = 1, .keys = 1e6, .pairs = 1e6}),
                   (2 * (body + head) + 1024e6) / 4.3e6);
  EXPECT_DOUBLE_EQ(floor.us({.tokens = 1}), 2 * body / 4.3e6) << "the head is not read";
  EXPECT_DOUBLE_EQ(floor.us({.tokens = 1e4, .sampled = 10, .keys = 1e4, .pairs = 5e7}),
                   (2e4 * body + 20 * head + 4 * 5e7 * 512) / 790e6);
  const StepFloor fp8(read_config(*synthetic_checkpoint("random:tiny-fp8")), true);
  EXPECT_DOUBLE_EQ(fp8.us({.tokens = 1, .sampled = 1}), (body + 2 * head) / 4.3e6);
  EXPECT_DOUBLE_EQ(fp8.us({.tokens = 1e5}), 1e5 * body / 790e6);
}

}  // namespace
}  // namespace isobit::cli
