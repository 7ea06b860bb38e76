#pragma once
// Splits a template into tokens as Jinja2's lexer does with trim_blocks and lstrip_blocks.
#include <cstdint>
#include <string>
#include <vector>

#include "text/jinja_error.h"

namespace isobit::jinja {

enum class TokenKind {
  kData,
  kBlockBegin,
  kBlockEnd,
  kVariableBegin,
  kVariableEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind;
  int line;
  std::string text;  // data, name, decoded string or operator
  int64_t integer = 0;
  double number = 0;

  bool is(TokenKind wanted) const { return kind == wanted; }
  bool is_operator(std::string_view wanted) const { return kind == TokenKind::kOperator && text == wanted; }
  bool is_name(std::string_view wanted) const { return kind == TokenKind::kName && text == wanted; }
};

// Ends with a kEnd token. Throws TemplateError(kSyntax) with the line.
std::vector<Token> tokenize(const std::string& source);

}  // namespace isobit::jinja
