#include "cli/llama_cpp.h"

#include "base/error.h"

namespace isobit::cli {

LlamaCpp::LlamaCpp(const std::string& python, const std::string& model, int threads, int context, int users)
    : process_({python, std::string(ISOBIT_BENCH_FOLDER) + "/peers/llama_cpp_peer.py", model, std::to_string(threads),
                std::to_string(context), std::to_string(users)}) {
  const auto line = process_.read_line();
  if (!line || !line->starts_with("ready")) {
    throw fail(
        ErrorCode::kNotFound,
        "llama-cpp-python did not start with {}; install it there (pip install llama-cpp-python) or name another "
        "interpreter with --python",
        python);
  }
  version_ = line->substr(6);
}

double LlamaCpp::ask(const std::string& job) {
  process_.write_line(job);
  const auto line = process_.read_line();
  if (!line) throw fail(ErrorCode::kInternal, "llama.cpp ended during '{}'", job);
  return std::stod(*line);
}

}  // namespace isobit::cli
