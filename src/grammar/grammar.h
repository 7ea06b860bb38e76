#pragma once
// Structured output: which tokens may come next, so that an answer's text is what was asked for.
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace isobit {

class Tokenizer;

// What an answer's text must be, as the user wrote it.
struct Constraint {
  enum class Kind : uint8_t {
    kJsonObject,  // any JSON object; `text` is empty
    kJsonSchema,  // JSON that satisfies the schema, without properties that it does not name
    kRegex,       // a match of all of the regular expression
    kGrammar,     // EBNF, from the rule `root`
    kChoice,      // one of the texts of a JSON array
  };
  Kind kind = Kind::kJsonObject;
  std::string text;
};
std::string_view constraint_name(Constraint::Kind kind);  // "json_object", …
// Throws Error(kInvalidArgument) naming the known ones.
Constraint::Kind parse_constraint_kind(std::string_view name);

// Follows one answer token by token. Of one thread.
class TokenMask {
 public:
  TokenMask() = default;
  virtual ~TokenMask() = default;
  TokenMask(const TokenMask&) = delete;
  TokenMask& operator=(const TokenMask&) = delete;

  // Bit (id mod 32) of word id / 32: whether the token may come next. Not once finished().
  virtual void fill(std::span<uint32_t> allowed) = 0;
  // The token has come. False, and nothing changes, where it may not.
  virtual bool accept(int32_t token) = 0;
  // Takes the last `tokens` accepted ones back.
  virtual void rollback(int32_t tokens) = 0;
  // Nothing can follow: the text is whole, and its end has been accepted.
  virtual bool finished() const = 0;
};

// A constraint made ready for one vocabulary; shared by any number of answers, on any thread.
class Grammar {
 public:
  explicit Grammar(Constraint constraint) : constraint_(std::move(constraint)) {}
  virtual ~Grammar() = default;
  Grammar(const Grammar&) = delete;
  Grammar& operator=(const Grammar&) = delete;

  virtual std::unique_ptr<TokenMask> start() const = 0;
  const Constraint& constraint() const { return constraint_; }

 private:
  Constraint constraint_;
};

// Compilations that were given up still run, as many as may.
class GrammarBusy : public Error {
 public:
  explicit GrammarBusy(const std::string& message) : Error(ErrorCode::kInvalidArgument, message) {}
};

constexpr std::chrono::milliseconds kGrammarTime{10'000};
constexpr int32_t kMostLateGrammars = 2;

// Makes constraints ready for a tokenizer's vocabulary and remembers the last ones. Any thread.
class GrammarCompiler {
 public:
  // The end of a text is one of `ends`; with none, an answer ends as soon as nothing can follow.
  GrammarCompiler(const Tokenizer& tokenizer, std::span<const int32_t> ends);
  ~GrammarCompiler();
  GrammarCompiler(const GrammarCompiler&) = delete;
  GrammarCompiler& operator=(const GrammarCompiler&) = delete;

  // Throws Error(kInvalidArgument) that says what is wrong with the constraint, that there is too much of it
  // (constraint_size.h), or that it was not ready within the time. Takes milliseconds to seconds. xgrammar cannot be
  // interrupted: what is given up goes on, on a thread of its own, until it ends, and is then thrown away; while
  // kMostLateGrammars of them run, constraints that are not remembered are refused with GrammarBusy.
  std::shared_ptr<const Grammar> compile(const Constraint& constraint, std::chrono::milliseconds time = kGrammarTime);

 private:
  struct Vocabulary;
  std::shared_ptr<const Grammar> remembered(const Constraint& constraint);
  std::shared_ptr<const Grammar> made(const Constraint& constraint, std::chrono::milliseconds time);

  const Tokenizer& tokenizer_;
  std::vector<int32_t> ends_;
  std::mutex mutex_;                                    // one compiles at a time
  std::shared_ptr<Vocabulary> vocabulary_;              // of those that were given up too
  std::vector<std::shared_ptr<const Grammar>> recent_;  // the latest last
};

}  // namespace isobit
