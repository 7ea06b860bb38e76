#include "cli/peer_process.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <system_error>

#include "base/error.h"

extern char** environ;  // NOLINT(readability-redundant-declaration): POSIX asks for it

namespace isobit::cli {

PeerProcess::PeerProcess(const std::vector<std::string>& words) {
  std::array<int, 2> in = {}, out = {};
  if (pipe2(in.data(), O_CLOEXEC) != 0 || pipe2(out.data(), O_CLOEXEC) != 0) {
    throw fail(ErrorCode::kInternal, "no pipe for {}: {}", words[0], std::generic_category().message(errno));
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in[0], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (const std::string& w : words) argv.push_back(const_cast<char*>(w.c_str()));
  argv.push_back(nullptr);
  const int error = posix_spawnp(&child_, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(in[0]);
  close(out[1]);
  if (error != 0) {
    close(in[1]);
    close(out[0]);
    throw fail(ErrorCode::kNotFound, "{} could not be started: {}", words[0], std::generic_category().message(error));
  }
  std::signal(SIGPIPE, SIG_IGN);  // a child that died is seen at the next read
  to_ = fdopen(in[1], "w");
  from_ = fdopen(out[0], "r");
}

PeerProcess::~PeerProcess() {
  std::fclose(to_);
  std::fclose(from_);
  int status = 0;
  while (waitpid(child_, &status, 0) < 0 && errno == EINTR) {
  }
}

void PeerProcess::write_line(const std::string& line) {
  std::fputs((line + "\n").c_str(), to_);
  std::fflush(to_);
}

std::optional<std::string> PeerProcess::read_line() {
  char* line = nullptr;
  size_t capacity = 0;
  const ssize_t n = getline(&line, &capacity, from_);
  std::optional<std::string> result;
  if (n > 0) result = std::string(line, static_cast<size_t>(line[n - 1] == '\n' ? n - 1 : n));
  std::free(line);  // NOLINT: getline's memory
  return result;
}

}  // namespace isobit::cli
