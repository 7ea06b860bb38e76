#pragma once
// llama.cpp in a process of its own, so that its memory can be told apart: bench/peers/llama_cpp_peer.py.
#include <string>

#include "cli/peer_process.h"

namespace isobit::cli {

class LlamaCpp {
 public:
  // users: sequences at once, each of `context` tokens. Throws Error(kNotFound) where `python` has no llama-cpp-python.
  LlamaCpp(const std::string& python, const std::string& model, int threads, int context, int users = 1);
  // A line of that script's; the number it answers.
  double ask(const std::string& job);
  const std::string& version() const { return version_; }

 private:
  PeerProcess process_;
  std::string version_;
};

}  // namespace isobit::cli
