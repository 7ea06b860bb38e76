// Any bytes as a chat template, rendered on a fixed conversation: an error or a text, never a crash, a leak or a hang.
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "text/chat_template.h"

namespace {

const nlohmann::ordered_json& conversation() {
  static const auto context = nlohmann::ordered_json::parse(R"({
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße 👍 <b>\n"},
                 {"role": "assistant", "content": null, "tool_calls": [{"id": "x", "function": {"name": "f",
                  "arguments": {"a": [1, 2.5, null, true], "b": {"c": "d"}}}}]},
                 {"role": "tool", "content": [{"type": "text", "text": "t"}]}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "documents": null, "add_generation_prompt": true, "bos_token": "<s>", "eos_token": "</s>", "n": 3, "f": 0.5})");
  return context;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  isobit::TemplateOptions options;
  // Small enough that a run takes milliseconds, large enough that every construct can do its work.
  options.limits.steps = 50'000;
  options.limits.memory_bytes = 4u << 20;
  options.limits.string_bytes = 256u << 10;
  options.limits.output_bytes = 256u << 10;
  options.limits.source_bytes = 64u << 10;
  options.clock = [] { return std::tm{}; };
  try {
    const isobit::ChatTemplate form(std::string(reinterpret_cast<const char*>(data), size), options);
    (void)form.render(conversation());
  } catch (const isobit::TemplateError&) {
    // What a broken or hostile template should end in.
  }
  return 0;
}
