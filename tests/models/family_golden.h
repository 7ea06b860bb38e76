#pragma once
// The tiny models of tests/truth/families, which transformers wrote, and its logits of one prompt in float32.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "models/decoder.h"
#include "weights/hf_folder.h"
#include "weights/safetensors.h"

namespace isobit::test {

inline std::string family_folder(const std::string& name) {
  return std::string(ISOBIT_SOURCE_DIR) + "/tests/truth/families/" + name;
}

inline std::vector<std::string> family_names() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(family_folder(""))) {
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
  }
  std::ranges::sort(names);
  return names;
}

struct FamilyGolden {
  std::vector<int32_t> tokens;
  std::vector<float> logits, short_logits;  // [tokens, vocab]; short: of the first tokens, in the original context
  double bf16_rms = 0;                      // what rounding the activations to bf16 does to the logits
};

inline FamilyGolden read_family_golden(const std::string& name) {
  const Checkpoint file = load_safetensors(family_folder(name) + "/golden.safetensors");
  FamilyGolden g;
  std::istringstream tokens{std::string(file.metadata().get_string("tokens"))};
  for (int32_t t; tokens >> t;) g.tokens.push_back(t);
  g.bf16_rms = std::stod(std::string(file.metadata().get_string("bf16_rms")));
  const auto read = [&](const char* tensor, std::vector<float>& to) {
    const Tensor* t = file.find(tensor);
    if (t == nullptr) return;
    to.resize(static_cast<size_t>(t->elements()));
    std::memcpy(to.data(), t->data, t->bytes);
  };
  read("logits", g.logits);
  read("short_logits", g.short_logits);
  return g;
}

// Every position's logits of the prompt, computed in chunks over pages that lie in no order. context: the longest
// sequence that the decoder is made for.
inline std::vector<float> decoder_logits(Backend& backend, const Checkpoint& file, const ModelConfig& config,
                                         const std::vector<int32_t>& tokens, int32_t chunk = 64, int32_t page_size = 16,
                                         int64_t context = 96) {
  StepLimits limits;
  limits.tokens = limits.logit_rows = backend.bucket(chunk);
  limits.requests = backend.bucket(1);
  limits.positions = context;
  limits.table_stride = static_cast<int32_t>(context + page_size - 1) / page_size;
  Decoder decoder(backend, file, config, limits);
  const KvPages pages(backend, config, limits.table_stride, page_size);
  const auto page_of = [&](int32_t position) { return limits.table_stride - 1 - position / page_size; };
  const auto put = [&](const Buffer& to, const auto& values) {
    backend.upload(to.data(), values.data(), values.size() * sizeof(values[0]));
  };
  std::vector<int32_t> table;
  for (int32_t i = 0; i < limits.table_stride; i++) table.push_back(page_of(i * page_size));
  put(decoder.inputs().page_table, table);
  std::vector<float> all;
  for (int32_t first = 0, size = static_cast<int32_t>(tokens.size()); first < size; first += chunk) {
    const int32_t count = std::min(chunk, size - first);
    const auto room = static_cast<size_t>(limits.tokens);
    std::vector<int32_t> ids(room, -1), positions(room, 0), rows(room, -1), kv(static_cast<size_t>(limits.requests), 0),
        start(kv.size() + 1, count);
    std::vector<int64_t> slots(room, -1);
    for (int32_t i = 0; i < count; i++) {
      const auto at = static_cast<size_t>(i);
      const int32_t position = first + i;
      ids[at] = tokens[static_cast<size_t>(position)];
      positions[at] = position;
      slots[at] = static_cast<int64_t>(page_of(position)) * page_size + position % page_size;
      rows[at] = i;
    }
    kv[0] = first + count;
    start[0] = 0;
    const StepInputs& in = decoder.inputs();
    put(in.tokens, ids);
    put(in.positions, positions);
    put(in.slots, slots);
    put(in.logit_rows, rows);
    put(in.kv_len, kv);
    put(in.query_start, start);
    decoder.forward({limits.tokens, limits.requests, count, first + count}, pages);
    decoder.head(count);
    std::vector<float> logits(static_cast<size_t>(count * config.vocab));
    backend.download(logits.data(), decoder.logits(), logits.size() * sizeof(float));
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

// Root of the mean square of the difference over `want`, which may have fewer rows.
inline double rms_difference(const std::vector<float>& got, const std::vector<float>& want) {
  if (got.size() < want.size()) return std::numeric_limits<double>::infinity();
  double sum = 0;
  for (size_t i = 0; i < want.size(); i++) {
    const double d = static_cast<double>(got[i]) - static_cast<double>(want[i]);
    sum += d * d;
  }
  return std::sqrt(sum / static_cast<double>(want.size()));
}

}  // namespace isobit::test
