#include <iostream>
#include <memory>

#include "cli/cli.h"
#include "cli/speculation_flags.h"

namespace isobit::cli {
namespace {

constexpr const char* kHelp = R"(/help           this text
/reset          forget the conversation
/system TEXT    set the system message and start over
/seed N         fix the seed of the next answers
/exit           leave (Ctrl-D too); Ctrl-C stops an answer
)";

struct ChatFlags {
  ModelFlags model;
  SamplingFlags sampling;
  SpeculationFlags speculation;
  std::string name, system;
};

class Conversation {
 public:
  Conversation(Session& session, ChatFlags& flags) : session_(session), flags_(flags) { reset(); }

  // False to leave.
  bool command(const std::string& line) {
    const size_t space = line.find(' ');
    const std::string word = line.substr(0, space), rest = space == std::string::npos ? "" : line.substr(space + 1);
    if (word == "/exit" || word == "/quit" || word == "/bye") return false;
    if (word == "/help") {
      std::cerr << kHelp;
    } else if (word == "/reset") {
      reset();
      std::cerr << "The conversation is forgotten.\n";
    } else if (word == "/system") {
      flags_.system = rest;
      reset();
    } else if (word == "/seed") {
      flags_.sampling.seed = rest;
    } else {
      std::cerr << "Unknown command " << word << "; /help lists them.\n";
    }
    return true;
  }

  void say(const std::string& text, Interrupt& interrupt) {
    messages_.push_back({"user", text});
    try {
      GenerateOptions o = flags_.sampling.options(session_.sampling_defaults());
      interrupt.clear();
      o.cancel = &interrupt.flag();
      o.on_text = [](std::string_view t) { std::cout << t << std::flush; };
      const Answer answer = session_.generate(session_.chat_prompt(messages_), o);
      if (interrupt.raised()) std::cout.clear();  // Ctrl-C may have cut a write short
      std::cout << "\n" << std::flush;
      std::cerr << summary(answer, o, session_) << "\n";
      messages_.push_back({"assistant", answer.text});
    } catch (const Error& e) {
      messages_.pop_back();  // a message that could not be answered is not part of the conversation
      std::cerr << "isobit: " << e.what() << "\n";
    }
    interrupt.clear();
  }

 private:
  void reset() {
    messages_.clear();
    if (!flags_.system.empty()) messages_.push_back({"system", flags_.system});
  }

  Session& session_;
  ChatFlags& flags_;
  std::vector<Message> messages_;
};

int chat(ChatFlags& f) {
  if (!f.name.empty()) f.model.model = f.name;
  (void)f.sampling.options();  // refuse bad values before the model loads
  Interrupt interrupt;
  EngineOptions engine;
  engine.max_requests = 1;
  f.speculation.apply(engine);
  const auto session = open_session(f.model, engine);
  f.sampling.options(session->sampling_defaults()).sampling.check(session->engine().config().vocab);
  Conversation conversation(*session, f);
  const bool terminal = stdin_is_terminal();
  if (terminal)
    std::cerr << session->engine().config().name << " on " << session->engine().backend().info().name
              << ". /help for commands.\n";
  std::string line;
  for (;;) {
    if (terminal) std::cerr << "> " << std::flush;
    if (!std::getline(std::cin, line)) {
      if (!interrupt.raised()) break;
      std::cin.clear();  // Ctrl-C at the prompt: a fresh line
      clearerr(stdin);
      interrupt.clear();
      std::cerr << "\n";
      continue;
    }
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    if (line[0] == '/') {
      if (!conversation.command(line)) break;
      continue;
    }
    conversation.say(line, interrupt);
  }
  return kOk;
}

}  // namespace

void add_chat(CLI::App& app, Command& command) {
  auto f = std::make_shared<ChatFlags>();
  CLI::App* sub = app.add_subcommand("chat", "A conversation in the terminal");
  sub->add_option("name", f->name, "Model, as --model")->type_name("[MODEL]");
  f->model.add(*sub);
  f->sampling.add(*sub);
  f->speculation.add(*sub, false);
  sub->add_option("--system", f->system, "System message");
  sub->footer(R"(Examples:
  isobit chat
  isobit chat --system "You answer in French." --temp 0.2
  printf 'Hi\nWhat did I say?\n' | isobit chat --seed 1)");
  sub->callback([f, &command] { command.run = [f] { return chat(*f); }; });
}

}  // namespace isobit::cli
