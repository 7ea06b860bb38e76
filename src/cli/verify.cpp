#include "engine/verify.h"

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/cli.h"
#include "engine/digests.h"
#include "engine/receipt.h"
#include "models/registry.h"
#include "numerics/contract.h"

namespace isobit::cli {
namespace {

struct VerifyFlags {
  ModelFlags model;
  std::string name;
  VerifyOptions options;
  std::vector<int32_t> batches, chunks;
  bool quick = false, json = false;
  std::string prompts, against;  // files
  bool digests = false;
  int32_t batch = 8, first = 0;
};

struct NamedText {
  const char* name;
  const char* text;
};

constexpr NamedText kTexts[] = {
    {"short", "Hi"},
    {"question", "Why is the sky blue, and what colour is it on Mars?"},
    {"code",
     "def fib(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n\nprint(fib(90))  "
     "# "},
    {"french", "Écris une courte histoire où un chat traverse l'océan."},
    {"chinese", "请用三句话解释什么是光合作用。"},
    {"arabic", "اشرح بإيجاز كيف تعمل البوصلة."},
    {"russian", "Напиши короткое стихотворение о зиме."},
    {"digits", "Continue: 3 1 4 1 5 9 2 6 5 3 5 8 9 7 9 3 2 3 8 4 6 2 6 4 3 3 8 3 2 7 9"},
    {"emoji", "🙂🙃 👩‍🚀 🇫🇷 what do these mean?"},
};
constexpr const char* kShared =
    "You are reading the log of a ship. On the first day the wind came from the north and the crew sang. On the second "
    "day the "
    "wind turned, and the captain wrote down the depth of the water every hour: forty, thirty-eight, thirty-one, "
    "thirty. On the "
    "third day nobody sang. ";

// Of the windows that a prompt of verify's can reach beyond; 0: there is none.
int32_t longest_window(Session& session) {
  constexpr int32_t kReach = 1024;
  int32_t longest = 0;
  for (const LayerConfig& l : session.engine().config().layers) {
    if (l.window <= kReach && l.window < session.options().context / 2) longest = std::max(longest, l.window);
  }
  return longest;
}

// A log that goes on, to the word with which it has more than `tokens`.
std::string text_longer_than(const Session& session, int32_t tokens) {
  const std::string log = kShared;
  std::string text;
  for (size_t at = 0; static_cast<int32_t>(session.text_prompt(text).size()) <= tokens;) {
    const size_t end = std::min(log.find(' ', at), log.size());
    text += (text.empty() ? "" : " ") + log.substr(at, end - at);
    at = end + 1 < log.size() ? end + 1 : 0;
  }
  return text;
}

std::vector<VerifyPrompt> make_prompts(Session& session, bool quick) {
  std::vector<VerifyPrompt> prompts;
  const auto add = [&](std::string name, const std::string& text) {
    prompts.push_back({std::move(name), session.chat_prompt({{"user", text}}), {}});
  };
  for (const NamedText& t : kTexts) {
    if (!quick || prompts.size() < 3) add(t.name, t.text);
  }
  add("shared prefix 1", std::string(kShared) + "What happened on the second day?");
  add("shared prefix 2", std::string(kShared) + "Who wrote down the depth?");
  if (const int32_t window = longest_window(session); window > 0) {
    add("beyond the window", text_longer_than(session, window) + " Count the days.");
  } else if (!quick) {
    add("long", std::string(kShared) + kShared + kShared + "Count the days.");
  }
  return prompts;
}

std::string describe(const VerifyDifference& d) {
  std::string at = d.op.empty()  ? "a second, traced run did not differ"
                   : d.layer < 0 ? d.op
                                 : fmt::format("layer {}, {}", d.layer, d.op);
  return fmt::format("    {}, {}: {} differs at position {}: {}", d.prompt, d.sampled ? "seeded" : "greedy", d.what,
                     d.position, at);
}

nlohmann::json as_json(const VerifyRow& r) {
  nlohmann::json j = {{"setting", r.setting.name},      {"answers", r.answers},
                      {"positions", r.positions},       {"logit_rows", r.logit_rows},
                      {"seconds", r.seconds},           {"brief", r.setting.brief},
                      {"equal", r.differences.empty()}, {"differences", nlohmann::json::array()}};
  for (const VerifyDifference& d : r.differences) {
    j["differences"].push_back({{"prompt", d.prompt},
                                {"sampled", d.sampled},
                                {"position", d.position},
                                {"layer", d.layer},
                                {"op", d.op},
                                {"what", d.what}});
  }
  return j;
}

// A prompt a line, named by its number.
std::vector<VerifyPrompt> read_prompts(const Session& session, const std::string& path) {
  std::vector<VerifyPrompt> prompts;
  std::istringstream in(read_file(path));
  for (std::string line; std::getline(in, line);) {
    if (line.empty()) continue;
    prompts.push_back({fmt::format("{}", prompts.size() + 1), session.chat_prompt({{"user", line}}), {}});
  }
  require(!prompts.empty(), "{}: no prompts; write one a line", path);
  return prompts;
}

std::vector<VerifyPrompt> choose_prompts(Session& session, const VerifyFlags& f) {
  std::vector<VerifyPrompt> prompts =
      f.prompts.empty() ? make_prompts(session, f.quick) : read_prompts(session, f.prompts);
  if (f.first > 0 && static_cast<size_t>(f.first) < prompts.size()) prompts.resize(static_cast<size_t>(f.first));
  return prompts;
}

nlohmann::json as_json(const RunDigest& d) { return {{"logits", d.logits}, {"tokens", d.tokens}}; }

// Prints every prompt's digests, or compares them with those another machine printed.
int digests(VerifyFlags& f) {
  EngineOptions options;
  options.max_requests = f.batch;
  options.prefix_cache = false;
  const auto session = open_session(f.model, options);
  const std::vector<VerifyPrompt> prompts = choose_prompts(*session, f);
  nlohmann::json known;
  if (!f.against.empty()) {
    known = nlohmann::json::parse(read_file(f.against), nullptr, false);
    require(known.is_object() && known.contains("prompts"), "{}: not what isobit verify --digests prints", f.against);
    require(known.value("contract", "") == numerics::kContractVersion, "{}: made under contract {}, this is {}",
            f.against, known.value("contract", "?"), numerics::kContractVersion);
    require(known.value("model_digest", "") == session->engine().file().digest(), "{}: made with model {}, this is {}",
            f.against, known.value("model_digest", "?"), session->engine().file().digest());
    require(known.value("kv_cache", "auto") == kv_cache_name(session->engine()),
            "{}: made with --kv-cache-dtype {}, this is {}", f.against, known.value("kv_cache", "auto"),
            kv_cache_name(session->engine()));
    f.options.decode_tokens = known.value("decode_tokens", f.options.decode_tokens);
    f.options.seed = known.value("seed", f.options.seed);
  }
  nlohmann::json j = {{"contract", numerics::kContractVersion},
                      {"model_digest", session->engine().file().digest()},
                      {"kv_cache", kv_cache_name(session->engine())},
                      {"device", session->engine().backend().info().description},
                      {"decode_tokens", f.options.decode_tokens},
                      {"seed", f.options.seed},
                      {"prompts", nlohmann::json::array()}};
  int64_t rows = 0;
  for (const PromptDigest& d : prompt_digests(session->engine(), prompts, f.options)) {
    j["prompts"].push_back(
        {{"name", d.prompt}, {"positions", d.positions}, {"greedy", as_json(d.greedy)}, {"seeded", as_json(d.seeded)}});
    rows += 2 * d.positions;
  }
  if (f.against.empty()) {
    std::cout << json_text(j, 1) << "\n";
    return kOk;
  }
  int different = 0;
  const auto& recorded = known["prompts"];
  require(
      recorded.is_array() && recorded.size() >= prompts.size() && (f.first > 0 || recorded.size() == prompts.size()),
      "{}: {} prompts, this run has {}", f.against, recorded.size(), prompts.size());
  for (size_t i = 0; i < prompts.size(); i++) {
    if (recorded[i] == j["prompts"][i]) continue;
    different++;
    std::cout << fmt::format("prompt {} differs: {} there, {} here\n", prompts[i].name, recorded[i].dump(),
                             j["prompts"][i].dump());
  }
  std::cout << fmt::format("{} of {} prompts equal ({} logit rows): recorded on {}, replayed on {}\n",
                           prompts.size() - static_cast<size_t>(different), prompts.size(), rows,
                           known.value("device", "?"), j["device"].get<std::string>());
  return different == 0 ? kOk : kDifferent;
}

// Ways to compute the same: threads and SIMD targets of the CPU (with a GPU as the baseline these are CPU = GPU).
struct Backends {
  std::vector<DeviceOptions> kinds;
  std::vector<VerifyBackend> named;

  Backends(const DeviceOptions& baseline, const BackendInfo& info) : kinds{baseline}, named{{0, info.name}} {
    const auto add = [&](const std::string& name, const DeviceOptions& o, bool slow) {
      if (make_backend(o)->info().description == info.description) return;  // every other setting runs on it
      named.push_back({static_cast<int>(kinds.size()), name, slow});
      kinds.push_back(o);
    };
    for (int threads : {1, 2})
      add(fmt::format("cpu, {} thread{}", threads, threads > 1 ? "s" : ""), {"cpu", threads, baseline.simd}, false);
    for (const std::string& target : cpu_simd_targets()) {
      const bool slow = target == "scalar";
      add("cpu, " + target + (slow ? ", in brief" : ""), {"cpu", baseline.threads, target}, slow);
    }
  }
};

void print_row(const VerifyRow& r) {
  std::cout << fmt::format("  {:<35} {:>4} answers {:>6} positions {:>5} logit rows {:>6.1f} s  {}{}\n", r.setting.name,
                           r.answers, r.positions, r.logit_rows, r.seconds,
                           r.differences.empty() ? "equal" : "DIFFERENT",
                           r.setting.brief ? " (prompts of up to 128 tokens, 4 decoded, greedy)" : "");
  for (const VerifyDifference& d : r.differences) std::cout << describe(d) << "\n";
  std::cout << std::flush;
}

struct Totals {
  int64_t positions = 0, logit_rows = 0;
  size_t different = 0;

  void add(const VerifyRow& r) {
    positions += r.positions;
    logit_rows += r.logit_rows;
    different += r.differences.empty() ? 0 : 1;
  }
};

int verify(VerifyFlags& f) {
  if (!f.name.empty()) f.model.model = f.name;
  if (f.digests || !f.against.empty()) return digests(f);
  const std::string path = resolve_model(f.model.model);
  EngineOptions engine;
  engine.max_requests = 1;
  std::vector<VerifyPrompt> prompts;
  BackendInfo device;
  f.options.compute = engine.compute = parse_compute_type(f.model.dtype);
  f.options.kv_cache = engine.kv_cache = parse_kv_cache_type(f.model.kv_cache_dtype);
  {
    Session session(path, f.model.device_options(), engine);
    prompts = choose_prompts(session, f);
    device = session.engine().backend().info();
  }
  if (f.quick) f.options.batches = {1, 7};
  if (f.quick) f.options.chunks = {1, 37};
  if (!f.batches.empty()) f.options.batches = f.batches;
  if (!f.chunks.empty()) f.options.chunks = f.chunks;
  const Backends backends(f.model.device_options(), device);
  Verifier verifier(
      open_checkpoint(path), [&](int kind) { return make_backend(backends.kinds[static_cast<size_t>(kind)]); },
      backends.named, f.options);
  if (!f.json) {
    std::cout << fmt::format("{} on {}, contract {}: {} prompts, {} settings, greedy and seeded\n", path,
                             device.description, numerics::kContractVersion, prompts.size(), verifier.settings().size())
              << std::flush;
  }
  Totals total;
  const std::vector<VerifyRow> rows = verifier.run(prompts, [&](const VerifyRow& r) {
    total.add(r);
    if (!f.json) print_row(r);
  });
  if (f.json) {
    nlohmann::json j = {{"contract", numerics::kContractVersion},
                        {"device", device.name},
                        {"positions", total.positions},
                        {"logit_rows", total.logit_rows},
                        {"different", total.different}};
    for (const VerifyRow& r : rows) j["rows"].push_back(as_json(r));
    std::cout << json_text(j) << "\n";
  } else {
    std::cout << (total.different == 0
                      ? fmt::format("All equal: {} positions and {} logit rows compared byte by byte.\n",
                                    total.positions, total.logit_rows)
                      : fmt::format("{} of {} settings differ.\n", total.different, rows.size()));
  }
  return total.different == 0 ? kOk : kDifferent;
}

}  // namespace

void add_verify(CLI::App& app, Command& command) {
  auto f = std::make_shared<VerifyFlags>();
  CLI::App* sub = app.add_subcommand(
      "verify", "Prove it here: every batch, chunk, cache, thread and backend setting gives the same bits");
  sub->add_option("name", f->name, "Model, as --model")->type_name("[MODEL]");
  f->model.add(*sub);
  sub->add_option("-n,--max-tokens", f->options.decode_tokens, "Tokens decoded after each prompt")
      ->capture_default_str()
      ->check(CLI::Range(1, 4096));
  sub->add_option("--batches", f->batches, "Batch sizes instead of 1, 2, 7, 32")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(1, 4096));
  sub->add_option("--chunks", f->chunks, "Prefill chunks instead of 1, 16, 64, 37")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(1, 1 << 20));
  sub->add_option("--seed", f->options.seed, "Seed of the sampled runs")->capture_default_str();
  sub->add_flag("--quick", f->quick, "Fewer prompts and settings");
  sub->add_flag("--json", f->json, "As JSON");
  sub->add_option("--prompts", f->prompts, "Prompts of a file, one a line, instead of the built-in ones");
  sub->add_option("--first", f->first, "Only the first of these prompts; 0: all")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 20));
  sub->add_flag("--digests", f->digests, "Only print each prompt's digests as JSON, for another machine to compare");
  sub->add_option("--against", f->against, "Compare with digests that another machine printed");
  sub->add_option("--batch", f->batch, "Sequences at once for --digests and --against")
      ->capture_default_str()
      ->check(CLI::Range(1, 4096));
  sub->footer(
      R"(Every prompt is answered greedily, and with a seed where it has at most 64 tokens, first alone, then in
each setting; where layers have windows, one prompt is longer than they. Compared by bytes are the tokens, every
position's residual stream behind the last layer (all that the layers make goes into it), and the logits of each sampled
position and of the prompts' last 4. "In brief" (scalar code, a fiftieth of the speed) is the two shortest prompts and
the longest of at most 128 tokens, 4 tokens each, which may not reach beyond a window.

Examples:
  isobit verify
  isobit verify --quick
  isobit verify --digests --device cuda > h200.json; isobit verify --against h200.json --device cpu
  isobit verify ./model.gguf --batches 1,64,256 --device cuda)");
  sub->callback([f, &command] { command.run = [f] { return verify(*f); }; });
}

}  // namespace isobit::cli
