// Any bytes as the body of a request: an error for the client that names its cause, or a request whose numbers are in
// range, never a crash. The first byte says which route.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "engine/tiny_model.h"
#include "server/sglang_request.h"

namespace {

using isobit::server::CompletionKind;
using isobit::server::CompletionRequest;

const isobit::Session& session() {
  static const isobit::test::TinyFile file;
  static const isobit::Session session(file.path(), {"cpu", 1, ""}, {});
  return session;
}

CompletionRequest read(uint8_t route, const std::string& body) {
  const isobit::server::RequestLimits limits{64, "tiny"};
  const auto json = isobit::server::parse_body(body);
  isobit::server::SglangOptions options;
  if (route % 3 == 0) return read_generate(json, session(), limits, options);
  return read_completion(route % 3 == 1 ? CompletionKind::kChat : CompletionKind::kText, json, session(), limits);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  try {
    const CompletionRequest r = read(data[0], std::string(reinterpret_cast<const char*>(data) + 1, size - 1));
    const int64_t vocab = session().tokenizer().vocab_size();
    r.sampling.check(vocab);  // a request that is read may still be refused here
    if (r.prompts.empty() || r.n < 1 || r.prompts.size() * static_cast<std::size_t>(r.n) > 64) std::abort();
    for (const auto& prompt : r.prompts) {
      for (const int32_t id : prompt) {
        if (id < 0 || id >= vocab) std::abort();
      }
    }
  } catch (const isobit::server::ApiError& e) {
    if (e.status() < 400 || e.status() > 499 || isobit::server::to_text(e.body()).empty()) std::abort();
  } catch (const isobit::Error& e) {
    if (e.code() == isobit::ErrorCode::kInternal) std::abort();
  }
  return 0;
}
