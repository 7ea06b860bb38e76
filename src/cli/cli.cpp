#include "cli/cli.h"

#include <algorithm>
#include <iostream>
#include <numeric>

#include "base/log.h"
#include "numerics/contract.h"

namespace isobit::cli {
namespace {

constexpr const char* kFooter =
    R"(Exit codes: 0 done; 1 a bug in isobit; 2 wrong usage; 3 the model is missing, damaged or not supported; 4 the device;
5 out of memory or disk; 6 verify found a difference, or the model's numbers are not finite; 130 interrupted.)";

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); i++) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); j++) {
      const size_t next = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = std::exchange(row[j], next);
    }
  }
  return row.back();
}

// The known flag or command nearest to a word that was not understood, if any is near.
std::string nearest(const CLI::App& app, const std::string& word) {
  std::vector<std::string> known;
  for (const CLI::Option* o : app.get_options()) {
    for (const std::string& name : o->get_lnames()) known.push_back("--" + name);
  }
  for (const CLI::App* s : app.get_subcommands({})) known.push_back(s->get_name());
  std::string best;
  size_t distance = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string& name : known) {
    const size_t d = edit_distance(word.substr(0, word.find('=')), name);
    if (d < distance) {
      distance = d;
      best = name;
    }
  }
  return best;
}

int usage_error(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App* at = &app;
  for (const CLI::App* s : app.get_subcommands()) at = s;
  std::cerr << "isobit: " << error.what() << "\n";
  for (const std::string& word : app.remaining(true)) {
    if (const std::string near = nearest(*at, word); !near.empty()) std::cerr << "Did you mean " << near << "?\n";
  }
  std::cerr << "Try " << (at == &app ? "isobit" : "isobit " + at->get_name()) << " --help\n";
  return kUsage;
}

int report(const Error& error) {
  std::cerr << "isobit: " << error.what() << "\n";
  return exit_code(error.code());
}

}  // namespace

int run(int argc, const char* const* argv) {
  CLI::App app(
      "isobit runs language models so that the bits never move: in any batch, chunk, cache state, thread count or "
      "device.",
      "isobit");
  app.set_version_flag("--version",
                       std::string("isobit " ISOBIT_VERSION ", contract ") + std::string(numerics::kContractVersion));
  app.require_subcommand(1);
  app.fallthrough();  // --log may stand behind the command too
  app.footer(kFooter);
  std::string log = "warn";
  app.add_option("--log", log, "trace, debug, info, warn, error or off")->capture_default_str();
  Command command;
  add_run(app, command);
  add_chat(app, command);
  add_score(app, command);
  add_serve(app, command);
  add_verify(app, command);
  add_replay(app, command);
  add_bench(app, command);
  add_quantize(app, command);
  add_models(app, command);
  add_show(app, command);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& e) {
    return app.exit(e);
  } catch (const CLI::CallForAllHelp& e) {
    return app.exit(e);
  } catch (const CLI::CallForVersion& e) {
    return app.exit(e);
  } catch (const CLI::ParseError& e) {
    return usage_error(app, e);
  }
  try {
    set_log_level(log);
    const int code = command.run();
    std::cout.flush();
    if (!std::cout) throw fail(ErrorCode::kIo, "the output could not be written; is the disk full?");
    return code;
  } catch (const Error& e) {
    return report(e);
  } catch (const std::bad_alloc&) {
    return report(Error(ErrorCode::kOutOfMemory, "out of memory; try a shorter --context or fewer --threads"));
  } catch (const std::exception& e) {
    std::cerr << "isobit: internal error: " << e.what() << "\n";
    return kInternal;
  }
}

}  // namespace isobit::cli
