#pragma once
// Answers of /v1/chat/completions and /v1/completions.
#include <memory>
#include <string>

#include "server/generation.h"

namespace isobit::server {

std::shared_ptr<Generation> openai_generation(Serving& serving, CompletionRequest request,
                                              std::shared_ptr<HttpReply> reply, const std::string& id);

}  // namespace isobit::server
