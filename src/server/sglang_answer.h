#pragma once
// Answers of SGLang's /generate.
#include <memory>
#include <string>

#include "server/generation.h"
#include "server/sglang_request.h"

namespace isobit::server {

std::shared_ptr<Generation> sglang_generation(Serving& serving, CompletionRequest request, const SglangOptions& options,
                                              std::shared_ptr<HttpReply> reply, const std::string& id);

}  // namespace isobit::server
