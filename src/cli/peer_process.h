#pragma once
// A child program spoken to in lines.
#include <sys/types.h>

#include <cstdio>
#include <optional>
#include <string>
#include <vector>

namespace isobit::cli {

class PeerProcess {
 public:
  // Starts the program found on the PATH. Throws Error kNotFound when it cannot be started.
  explicit PeerProcess(const std::vector<std::string>& words);
  ~PeerProcess();  // closes its stdin and waits for it
  PeerProcess(const PeerProcess&) = delete;
  PeerProcess& operator=(const PeerProcess&) = delete;

  void write_line(const std::string& line);
  std::optional<std::string> read_line();  // nothing once it has ended

 private:
  pid_t child_ = 0;
  std::FILE* to_ = nullptr;
  std::FILE* from_ = nullptr;
};

}  // namespace isobit::cli
