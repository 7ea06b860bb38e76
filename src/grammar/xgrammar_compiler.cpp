// Through xgrammar (https://github.com/mlc-ai/xgrammar): it turns a constraint into an automaton over bytes and finds,
// for the place an answer has reached, the tokens whose bytes may follow.
#include <sys/resource.h>
#include <unistd.h>
#include <xgrammar/xgrammar.h>

#include <algorithm>
#include <atomic>
#include <future>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "base/error.h"
#include "grammar/constraint_size.h"
#include "grammar/grammar.h"
#include "text/tokenizer.h"

namespace isobit {
namespace {

constexpr size_t kRemembered = 32;

// RFC 8259.
constexpr const char* kJsonObject = R"(root ::= object
object ::= "{" ws ("}" | member ("," ws member)* "}")
member ::= string ws ":" ws value ws
array ::= "[" ws ("]" | value ws ("," ws value ws)* "]")
value ::= object | array | string | number | "true" | "false" | "null"
string ::= "\"" ([^\0-\x1f\"\\] | "\\" escape)* "\""
escape ::= ["\\/bfnrt] | "u" [0-9A-Fa-f]{4}
number ::= "-"? ("0" | [1-9] [0-9]*) ("." [0-9]+)? ([eE] [+-]? [0-9]+)?
ws ::= [ \n\r\t]*
)";

std::vector<std::string> vocabulary_of(const Tokenizer& tokenizer) {
  std::vector<std::string> words;
  words.reserve(static_cast<size_t>(tokenizer.vocab_size()));
  for (int32_t id = 0; id < tokenizer.vocab_size(); id++) words.emplace_back(tokenizer.token_bytes(id));
  return words;
}

class Mask final : public TokenMask {
 public:
  explicit Mask(xgrammar::GrammarMatcher matcher) : matcher_(std::move(matcher)) {}

  void fill(std::span<uint32_t> allowed) override {
    int64_t words = xgrammar::GetBitmaskSize(vocab_);
    require(std::ssize(allowed) >= words, "{} words are too few for a mask of {}", allowed.size(), words);
    std::ranges::fill(allowed, 0U);
    DLTensor tensor{};
    tensor.data = allowed.data();
    tensor.device = {kDLCPU, 0};
    tensor.ndim = 1;
    tensor.dtype = xgrammar::GetBitmaskDLType();
    tensor.shape = &words;
    matcher_.FillNextTokenBitmask(&tensor);
  }
  bool accept(int32_t token) override { return !finished() && matcher_.AcceptToken(token); }
  void rollback(int32_t tokens) override { matcher_.Rollback(tokens); }
  bool finished() const override { return matcher_.IsTerminated(); }

  void set_vocab(int vocab) { vocab_ = vocab; }

 private:
  xgrammar::GrammarMatcher matcher_;
  int vocab_ = 0;
};

class CompiledConstraint final : public Grammar {
 public:
  CompiledConstraint(Constraint constraint, xgrammar::CompiledGrammar compiled)
      : Grammar(std::move(constraint)), compiled_(std::move(compiled)) {}

  std::unique_ptr<TokenMask> start() const override {
    const auto info = compiled_.GetTokenizerInfo();
    auto mask =
        std::make_unique<Mask>(xgrammar::GrammarMatcher(compiled_, std::nullopt, info.GetStopTokenIds().empty()));
    mask->set_vocab(info.GetVocabSize());
    return mask;
  }

 private:
  xgrammar::CompiledGrammar compiled_;
};

// A JSON array of texts as EBNF: each one a literal.
std::string choice_grammar(const std::string& array) {
  const auto texts = nlohmann::json::parse(array, nullptr, false);
  require(texts.is_array() && !texts.empty(), "choice must be a non-empty JSON array of strings");
  std::string grammar = "root ::= ";
  for (const auto& t : texts) {
    require(t.is_string() && !t.get_ref<const std::string&>().empty(), "choice must hold strings that are not empty");
    if (&t != &texts.front()) grammar += " | ";
    grammar += '"';
    for (const char c : t.get_ref<const std::string&>()) {
      const auto byte = static_cast<unsigned char>(c);
      if (c == '"' || c == '\\') {
        grammar += {'\\', c};
      } else if (byte < 0x20 || byte == 0x7f) {
        grammar += fmt::format("\\u{:04x}", byte);
      } else {
        grammar += c;
      }
    }
    grammar += '"';
  }
  return grammar;
}

}  // namespace

struct GrammarCompiler::Vocabulary {
  Vocabulary(const Tokenizer& tokenizer, const std::vector<int32_t>& ends)
      : compiler(xgrammar::TokenizerInfo(vocabulary_of(tokenizer), xgrammar::VocabType::RAW, tokenizer.vocab_size(),
                                         ends, tokenizer.has_space_prefix()),
                 1, false) {}

  xgrammar::CompiledGrammar compile(const Constraint& c) {
    switch (c.kind) {
      case Constraint::Kind::kJsonObject:
        return compiler.CompileGrammar(kJsonObject);
      case Constraint::Kind::kJsonSchema:
        return compiler.CompileJSONSchema(c.text);
      case Constraint::Kind::kRegex:
        return compiler.CompileRegex(c.text);
      case Constraint::Kind::kGrammar:
        return compiler.CompileGrammar(c.text);
      case Constraint::Kind::kChoice:
        return compiler.CompileGrammar(choice_grammar(c.text));
    }
    throw fail(ErrorCode::kInternal, "constraint kind {} is unknown", static_cast<int>(c.kind));
  }

  xgrammar::GrammarCompiler compiler;  // remembers nothing, so that several threads may use it
  std::atomic<int32_t> running{0};     // compilations
};

GrammarCompiler::GrammarCompiler(const Tokenizer& tokenizer, std::span<const int32_t> ends)
    : tokenizer_(tokenizer), ends_(ends.begin(), ends.end()) {}
GrammarCompiler::~GrammarCompiler() = default;

std::shared_ptr<const Grammar> GrammarCompiler::compile(const Constraint& c, std::chrono::milliseconds time) {
  check_size(c);
  const std::lock_guard lock(mutex_);
  if (auto known = remembered(c)) return known;
  std::shared_ptr<const Grammar> grammar;
  try {
    if (!vocabulary_) vocabulary_ = std::make_shared<Vocabulary>(tokenizer_, ends_);
    grammar = made(c, time);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& e) {
    throw fail(ErrorCode::kInvalidArgument, "the {} cannot be used: {}", constraint_name(c.kind), e.what());
  }
  if (recent_.size() == kRemembered) recent_.erase(recent_.begin());
  recent_.push_back(grammar);
  return grammar;
}

std::shared_ptr<const Grammar> GrammarCompiler::remembered(const Constraint& c) {
  const auto known = std::ranges::find_if(
      recent_, [&](const auto& g) { return g->constraint().kind == c.kind && g->constraint().text == c.text; });
  if (known == recent_.end()) return nullptr;
  std::rotate(known, known + 1, recent_.end());
  return recent_.back();
}

// On a thread of its own, which holds what it needs: it may outlive this call and this compiler.
std::shared_ptr<const Grammar> GrammarCompiler::made(const Constraint& c, std::chrono::milliseconds time) {
  if (const int32_t late = vocabulary_->running; late >= kMostLateGrammars) {
    throw GrammarBusy(
        fmt::format("{} constraints that took too long to make ready still keep a thread each; try again later", late));
  }
  using Made = std::shared_ptr<const Grammar>;
  vocabulary_->running++;
  const auto thread = std::make_shared<std::atomic<pid_t>>(0);
  std::packaged_task<Made()> task([vocabulary = vocabulary_, thread, c]() -> Made {
    *thread = gettid();
    const auto ends = [](Vocabulary* v) { v->running--; };
    const std::unique_ptr<Vocabulary, decltype(ends)> counted(vocabulary.get(), ends);
    return std::make_shared<CompiledConstraint>(c, vocabulary->compile(c));
  });
  auto result = task.get_future();
  std::thread(std::move(task)).detach();
  if (result.wait_for(time) == std::future_status::timeout) {
    // From now on it is in nobody's way; Linux's priorities are threads'.
    if (*thread != 0) setpriority(PRIO_PROCESS, static_cast<id_t>(*thread), 19);
    throw fail(ErrorCode::kInvalidArgument,
               "the {} was not ready after {} s: ask for less of it (fewer counts, choices, properties or groups)",
               constraint_name(c.kind), static_cast<double>(time.count()) / 1000);
  }
  return result.get();
}

}  // namespace isobit
