// Recursive descent over the tokens, with Jinja2's grammar and precedence.
#include <algorithm>
#include <array>
#include <initializer_list>
#include <unordered_map>

#include "text/jinja_ast.h"
#include "text/jinja_builtins.h"
#include "text/jinja_lexer.h"

namespace isobit::jinja {
namespace {

// As deep as Python's own compiler follows nested parentheses; keeps the recursion of parsing and evaluation bounded.
constexpr int kMaxExprDepth = 200;
constexpr int kMaxParseDepth = 3 * kMaxExprDepth;
constexpr int kMaxBlockDepth = 64;

bool is_constant_name(const std::string& name) {
  return name == "true" || name == "false" || name == "none" || name == "True" || name == "False" || name == "None";
}

class Parser {
 public:
  explicit Parser(const std::string& source) : tokens_(tokenize(source)) {
    for (const char* name : kKnownNames) name_id(name);
  }

  Program run() {
    program_.body = parse_body({});
    return std::move(program_);
  }

 private:
  using Names = std::initializer_list<std::string_view>;

  class Nesting {  // counts a level of recursion for as long as it lives
   public:
    Nesting(Parser& parser, int& level, int limit) : level_(level) {
      if (++level_ > limit) parser.fail_here("the template is nested too deep");
    }
    ~Nesting() { --level_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    int& level_;
  };

  template <typename T>
  class Swap {  // sets a variable of the parser for one block
   public:
    Swap(T& variable, T value) : variable_(variable), old_(variable) { variable_ = value; }
    ~Swap() { variable_ = old_; }
    Swap(const Swap&) = delete;
    Swap& operator=(const Swap&) = delete;

   private:
    T& variable_;
    T old_;
  };

  // Tokens.

  const Token& current() const { return tokens_[position_]; }
  const Token& look() const { return tokens_[std::min(position_ + 1, tokens_.size() - 1)]; }
  Token next() {
    Token token = tokens_[position_];
    if (position_ + 1 < tokens_.size()) ++position_;
    return token;
  }

  [[noreturn]] void fail_line(int line, const std::string& message) const {
    throw TemplateError(TemplateErrorKind::kSyntax, line, message);
  }
  [[noreturn]] void fail_here(const std::string& message) const { fail_line(current().line, message); }

  static std::string describe(const Token& token) {
    switch (token.kind) {
      case TokenKind::kEnd:
        return "end of template";
      case TokenKind::kBlockEnd:
        return "end of statement block";
      case TokenKind::kVariableEnd:
        return "end of print statement";
      case TokenKind::kString:
        return "string";
      case TokenKind::kInteger:
        return "integer";
      case TokenKind::kFloat:
        return "float";
      default:
        return token.text;
    }
  }

  [[noreturn]] void fail_expected(std::string_view wanted) const {
    if (current().is(TokenKind::kEnd)) fail_here(fmt::format("unexpected end of template, expected '{}'", wanted));
    fail_here(fmt::format("expected token '{}', got '{}'", wanted, describe(current())));
  }

  bool skip_operator(std::string_view text) {
    if (!current().is_operator(text)) return false;
    next();
    return true;
  }
  bool skip_name(std::string_view text) {
    if (!current().is_name(text)) return false;
    next();
    return true;
  }
  void expect_operator(std::string_view text) {
    if (!skip_operator(text)) fail_expected(text);
  }
  void expect(TokenKind kind, std::string_view described) {
    if (!current().is(kind)) fail_expected(described);
    next();
  }
  std::string expect_name() {
    if (!current().is(TokenKind::kName)) fail_expected("name");
    return next().text;
  }

  NameId name_id(const std::string& name) {
    auto [it, added] = ids_.emplace(name, static_cast<NameId>(program_.names.size()));
    if (added) program_.names.push_back(name);
    return it->second;
  }

  // Expressions.

  ExprPtr make(ExprKind kind, int line) { return std::make_unique<Expr>(kind, line); }

  ExprPtr finish(ExprPtr expr) {
    int deepest = 0;
    auto see = [&](const ExprPtr& child) {
      if (child) deepest = std::max(deepest, child->depth);
    };
    for (const ExprPtr& child : expr->items) see(child);
    for (const ExprPtr& child : expr->arguments.positional) see(child);
    for (const auto& [name, child] : expr->arguments.named) see(child);
    see(expr->arguments.star);
    see(expr->arguments.double_star);
    expr->depth = deepest + 1;
    if (expr->depth > kMaxExprDepth)
      fail_line(expr->line, fmt::format("an expression is nested more than {} deep", kMaxExprDepth));
    return expr;
  }

  ExprPtr node(ExprKind kind, int line, ExprPtr first, ExprPtr second = nullptr, bool has_second = false) {
    ExprPtr expr = make(kind, line);
    expr->items.push_back(std::move(first));
    if (second || has_second) expr->items.push_back(std::move(second));
    return finish(std::move(expr));
  }

  ExprPtr constant(int line, Value value) {
    ExprPtr expr = make(ExprKind::kConst, line);
    expr->value = std::move(value);
    return expr;
  }

  ExprPtr parse_expression() { return parse_conditional(); }

  ExprPtr parse_conditional() {
    Nesting nesting(*this, parse_depth_, kMaxParseDepth);
    const int line = current().line;
    const std::size_t unknown_before = unknown_.size();
    ExprPtr expr = parse_or();
    while (skip_name("if")) {
      ExprPtr test = parse_or();
      ExprPtr otherwise = skip_name("else") ? parse_conditional() : nullptr;
      ExprPtr whole = make(ExprKind::kConditional, line);
      whole->items.push_back(std::move(test));
      whole->items.push_back(std::move(expr));
      whole->items.push_back(std::move(otherwise));
      expr = finish(std::move(whole));
      unknown_.resize(unknown_before);  // an unknown filter here only matters when it is reached
    }
    return expr;
  }

  ExprPtr parse_or() {
    ExprPtr left = parse_and();
    while (current().is_name("or")) {
      const int line = next().line;
      left = node(ExprKind::kOr, line, std::move(left), parse_and());
    }
    return left;
  }

  ExprPtr parse_and() {
    ExprPtr left = parse_not();
    while (current().is_name("and")) {
      const int line = next().line;
      left = node(ExprKind::kAnd, line, std::move(left), parse_not());
    }
    return left;
  }

  ExprPtr parse_not() {
    Nesting nesting(*this, parse_depth_, kMaxParseDepth);
    if (!current().is_name("not")) return parse_compare();
    const int line = next().line;
    return node(ExprKind::kNot, line, parse_not());
  }

  bool comparison(Operator& op) {
    constexpr std::array<std::pair<std::string_view, Operator>, 6> kOperators = {{{"==", Operator::kEqual},
                                                                                  {"!=", Operator::kNotEqual},
                                                                                  {"<", Operator::kLess},
                                                                                  {"<=", Operator::kLessEqual},
                                                                                  {">", Operator::kGreater},
                                                                                  {">=", Operator::kGreaterEqual}}};
    for (const auto& [text, meaning] : kOperators) {
      if (!skip_operator(text)) continue;
      op = meaning;
      return true;
    }
    if (skip_name("in")) {
      op = Operator::kIn;
      return true;
    }
    if (current().is_name("not") && look().is_name("in")) {
      next();
      next();
      op = Operator::kNotIn;
      return true;
    }
    return false;
  }

  ExprPtr parse_compare() {
    const int line = current().line;
    ExprPtr first = parse_sum();
    Operator op{};
    if (!comparison(op)) return first;
    ExprPtr expr = make(ExprKind::kCompare, line);
    expr->items.push_back(std::move(first));
    do {
      expr->operators.push_back(op);
      expr->items.push_back(parse_sum());
    } while (comparison(op));
    return finish(std::move(expr));
  }

  ExprPtr binary_node(Operator op, int line, ExprPtr left, ExprPtr right) {
    ExprPtr expr = node(ExprKind::kBinary, line, std::move(left), std::move(right));
    expr->operators.push_back(op);
    return expr;
  }

  ExprPtr parse_sum() {
    ExprPtr left = parse_concat();
    while (current().is_operator("+") || current().is_operator("-")) {
      const Token token = next();
      left = binary_node(token.text == "+" ? Operator::kAdd : Operator::kSubtract, token.line, std::move(left),
                         parse_concat());
    }
    return left;
  }

  ExprPtr parse_concat() {
    const int line = current().line;
    ExprPtr first = parse_product();
    if (!current().is_operator("~")) return first;
    ExprPtr expr = make(ExprKind::kConcat, line);
    expr->items.push_back(std::move(first));
    while (skip_operator("~")) expr->items.push_back(parse_product());
    return finish(std::move(expr));
  }

  ExprPtr parse_product() {
    ExprPtr left = parse_power();
    while (true) {
      Operator op{};
      if (current().is_operator("*")) {
        op = Operator::kMultiply;
      } else if (current().is_operator("/")) {
        op = Operator::kDivide;
      } else if (current().is_operator("//")) {
        op = Operator::kFloorDivide;
      } else if (current().is_operator("%")) {
        op = Operator::kModulo;
      } else {
        return left;
      }
      const int line = next().line;
      left = binary_node(op, line, std::move(left), parse_power());
    }
  }

  ExprPtr parse_power() {
    ExprPtr left = parse_unary(true);
    while (current().is_operator("**")) {
      const int line = next().line;
      left = binary_node(Operator::kPower, line, std::move(left), parse_unary(true));
    }
    return left;
  }

  ExprPtr parse_unary(bool with_filter) {
    Nesting nesting(*this, parse_depth_, kMaxParseDepth);
    const int line = current().line;
    ExprPtr expr;
    if (skip_operator("-")) {
      expr = node(ExprKind::kNegative, line, parse_unary(false));
    } else if (skip_operator("+")) {
      expr = node(ExprKind::kPositive, line, parse_unary(false));
    } else {
      expr = parse_primary();
    }
    expr = parse_postfix(std::move(expr));
    return with_filter ? parse_filter_or_test(std::move(expr)) : std::move(expr);
  }

  ExprPtr parse_name(const Token& token) {
    if (token.text == "true" || token.text == "True") return constant(token.line, Value::boolean(true));
    if (token.text == "false" || token.text == "False") return constant(token.line, Value::boolean(false));
    if (token.text == "none" || token.text == "None") return constant(token.line, Value());
    ExprPtr expr = make(ExprKind::kName, token.line);
    expr->name_id = name_id(token.text);
    if (expr->name_id > kLoopName && expr->name_id <= kKwargsName)
      for (unsigned& uses : special_uses_) uses |= 1u << expr->name_id;
    return expr;
  }

  ExprPtr parse_primary() {
    const Token token = current();
    switch (token.kind) {
      case TokenKind::kName:
        next();
        return parse_name(token);
      case TokenKind::kString: {
        std::string text;
        while (current().is(TokenKind::kString)) text += next().text;
        return constant(token.line, Value::constant(std::move(text)));
      }
      case TokenKind::kInteger:
        return constant(token.line, Value::integer(next().integer));
      case TokenKind::kFloat:
        return constant(token.line, Value::floating(next().number));
      default:
        break;
    }
    if (skip_operator("(")) {
      ExprPtr expr = parse_tuple({.parenthesised = true});
      expect_operator(")");
      return expr;
    }
    if (skip_operator("[")) return parse_list(token.line);
    if (skip_operator("{")) return parse_dict(token.line);
    fail_here(fmt::format("unexpected '{}'", describe(token)));
  }

  ExprPtr parse_list(int line) {
    ExprPtr expr = make(ExprKind::kList, line);
    while (!current().is_operator("]")) {
      if (!expr->items.empty()) expect_operator(",");
      if (current().is_operator("]")) break;
      expr->items.push_back(parse_expression());
    }
    next();
    return finish(std::move(expr));
  }

  ExprPtr parse_dict(int line) {
    ExprPtr expr = make(ExprKind::kDict, line);
    while (!current().is_operator("}")) {
      if (!expr->items.empty()) expect_operator(",");
      if (current().is_operator("}")) break;
      expr->items.push_back(parse_expression());
      expect_operator(":");
      expr->items.push_back(parse_expression());
    }
    next();
    return finish(std::move(expr));
  }

  struct TupleOptions {
    bool parenthesised = false;
    bool conditional = true;
    std::string_view end_name = {};  // a name that ends the tuple
  };

  bool at_tuple_end(std::string_view end_name) const {
    return current().is(TokenKind::kVariableEnd) || current().is(TokenKind::kBlockEnd) || current().is_operator(")") ||
           (!end_name.empty() && current().is_name(end_name));
  }

  ExprPtr parse_tuple(const TupleOptions& options) {
    const int line = current().line;
    std::vector<ExprPtr> items;
    bool is_tuple = false;
    while (true) {
      if (!items.empty()) expect_operator(",");
      if (at_tuple_end(options.end_name)) break;
      items.push_back(options.conditional ? parse_expression() : parse_or());
      if (!current().is_operator(",")) break;
      is_tuple = true;
    }
    if (!is_tuple && !items.empty()) return std::move(items[0]);
    if (!is_tuple && !options.parenthesised)
      fail_here(fmt::format("expected an expression, got '{}'", describe(current())));
    ExprPtr expr = make(ExprKind::kTuple, line);
    expr->items = std::move(items);
    return finish(std::move(expr));
  }

  ExprPtr parse_postfix(ExprPtr expr) {
    while (true) {
      if (current().is_operator(".") || current().is_operator("[")) {
        expr = parse_subscript(std::move(expr));
      } else if (current().is_operator("(")) {
        expr = parse_call(std::move(expr));
      } else {
        return expr;
      }
    }
  }

  ExprPtr parse_filter_or_test(ExprPtr expr) {
    while (true) {
      if (current().is_operator("|")) {
        expr = parse_filters(std::move(expr));
      } else if (current().is_name("is")) {
        expr = parse_test(std::move(expr));
      } else if (current().is_operator("(")) {
        expr = parse_call(std::move(expr));
      } else {
        return expr;
      }
    }
  }

  ExprPtr parse_subscript(ExprPtr object) {
    const Token token = next();
    if (token.text == ".") {
      const Token name = next();
      if (name.is(TokenKind::kName)) {
        ExprPtr expr = node(ExprKind::kAttribute, token.line, std::move(object));
        expr->name = name.text;
        return expr;
      }
      if (!name.is(TokenKind::kInteger)) fail_line(name.line, "expected name or number");
      return node(ExprKind::kItem, token.line, std::move(object), constant(name.line, Value::integer(name.integer)));
    }
    return parse_index(std::move(object), token.line);
  }

  // What stands in the brackets: an expression, several (a tuple), or a slice.
  ExprPtr parse_index(ExprPtr object, int line) {
    ExprPtr first;
    if (!current().is_operator(":")) {
      if (current().is_operator("]")) fail_here("expected subscript expression");
      first = parse_expression();
    }
    if (current().is_operator(":")) return parse_slice(std::move(object), std::move(first), line);
    if (!current().is_operator(",")) {
      expect_operator("]");
      return node(ExprKind::kItem, line, std::move(object), std::move(first));
    }
    ExprPtr tuple = make(ExprKind::kTuple, line);
    tuple->items.push_back(std::move(first));
    while (skip_operator(",")) tuple->items.push_back(parse_expression());
    expect_operator("]");
    return node(ExprKind::kItem, line, std::move(object), finish(std::move(tuple)));
  }

  ExprPtr parse_slice(ExprPtr object, ExprPtr start, int line) {
    ExprPtr expr = make(ExprKind::kSlice, line);
    expr->items.push_back(std::move(object));
    expr->items.push_back(std::move(start));
    for (int part = 0; part < 2; ++part) {
      const bool given = skip_operator(":");
      const bool empty = !given || current().is_operator(":") || current().is_operator("]");
      expr->items.push_back(empty ? nullptr : parse_expression());
    }
    expect_operator("]");
    return finish(std::move(expr));
  }

  ArgumentExprs parse_arguments() {
    const int line = current().line;
    expect_operator("(");
    ArgumentExprs arguments;
    auto ensure = [&](bool ok) {
      if (!ok) fail_line(line, "invalid syntax for function call expression");
    };
    bool first = true;
    while (!current().is_operator(")")) {
      if (!first) {
        expect_operator(",");
        if (current().is_operator(")")) break;
      }
      first = false;
      if (skip_operator("*")) {
        ensure(!arguments.star && !arguments.double_star);
        arguments.star = parse_expression();
      } else if (skip_operator("**")) {
        ensure(!arguments.double_star);
        arguments.double_star = parse_expression();
      } else if (current().is(TokenKind::kName) && look().is_operator("=")) {
        ensure(!arguments.double_star);
        std::string name = next().text;
        next();
        for (const auto& given : arguments.named) ensure(given.first != name);
        arguments.named.emplace_back(std::move(name), parse_expression());
      } else {
        ensure(!arguments.star && !arguments.double_star && arguments.named.empty());
        arguments.positional.push_back(parse_expression());
      }
    }
    next();
    return arguments;
  }

  ExprPtr parse_call(ExprPtr callee) {
    ExprPtr expr = make(ExprKind::kCall, current().line);
    expr->items.push_back(std::move(callee));
    expr->arguments = parse_arguments();
    return finish(std::move(expr));
  }

  std::string dotted_name() {
    std::string name = expect_name();
    while (skip_operator(".")) name += fmt::format(".{}", expect_name());
    return name;
  }

  ExprPtr parse_one_filter(ExprPtr input) {
    ExprPtr expr = make(ExprKind::kFilter, current().line);
    expr->name = dotted_name();
    expr->filter = find_filter(expr->name);
    if (expr->filter == nullptr) unknown_.emplace_back(expr->line, fmt::format("no filter named '{}'", expr->name));
    expr->items.push_back(std::move(input));
    if (current().is_operator("(")) expr->arguments = parse_arguments();
    return finish(std::move(expr));
  }

  ExprPtr parse_filters(ExprPtr input) {
    while (skip_operator("|")) input = parse_one_filter(std::move(input));
    return input;
  }

  bool starts_test_argument() const {
    switch (current().kind) {
      case TokenKind::kString:
      case TokenKind::kInteger:
      case TokenKind::kFloat:
        return true;
      case TokenKind::kName:
        return !current().is_name("else") && !current().is_name("or") && !current().is_name("and");
      default:
        return current().is_operator("[") || current().is_operator("{");
    }
  }

  ExprPtr parse_test(ExprPtr operand) {
    const int line = next().line;
    const bool negated = skip_name("not");
    ExprPtr expr = make(ExprKind::kTest, line);
    expr->name = dotted_name();
    expr->test = find_test(expr->name);
    if (expr->test == nullptr) unknown_.emplace_back(line, fmt::format("no test named '{}'", expr->name));
    expr->items.push_back(std::move(operand));
    if (current().is_operator("(")) {
      expr->arguments = parse_arguments();
    } else if (starts_test_argument()) {
      if (current().is_name("is")) fail_here("tests cannot be chained with 'is'");
      expr->arguments.positional.push_back(parse_postfix(parse_primary()));
    }
    expr = finish(std::move(expr));
    return negated ? node(ExprKind::kNot, line, std::move(expr)) : std::move(expr);
  }

  // Statements.

  using StmtPtr = std::unique_ptr<Stmt>;

  void reject_unknown() {
    if (soft_ || unknown_.empty()) return unknown_.clear();
    fail_line(unknown_.front().first, unknown_.front().second);
  }

  StmtPtr parse_output() {
    auto stmt = std::make_unique<Stmt>(StmtKind::kOutput, next().line);
    stmt->expr = parse_tuple({});
    reject_unknown();
    expect(TokenKind::kVariableEnd, "end of print statement");
    return stmt;
  }

  bool at_end_tag(Names ends) const {
    return std::any_of(ends.begin(), ends.end(), [&](std::string_view name) { return current().is_name(name); });
  }

  // Statements up to one of the end tags, whose name is then the current token.
  Body parse_body(Names ends) {
    Nesting nesting(*this, block_depth_, kMaxBlockDepth);
    Body body;
    while (!current().is(TokenKind::kEnd)) {
      if (current().is(TokenKind::kData)) {
        auto stmt = std::make_unique<Stmt>(StmtKind::kText, current().line);
        stmt->text = next().text;
        body.push_back(std::move(stmt));
      } else if (current().is(TokenKind::kVariableBegin)) {
        body.push_back(parse_output());
      } else {
        next();  // only "{%" is left
        if (at_end_tag(ends)) return body;
        parse_statement(body);
        reject_unknown();
        expect(TokenKind::kBlockEnd, "end of statement block");
      }
    }
    if (ends.size() != 0) {
      std::string wanted;
      for (std::string_view name : ends) wanted += fmt::format("{}'{}'", wanted.empty() ? "" : " or ", name);
      fail_here(fmt::format("unexpected end of template, looking for {}", wanted));
    }
    return body;
  }

  Body parse_block(Names ends) {
    skip_operator(":");
    reject_unknown();
    expect(TokenKind::kBlockEnd, "end of statement block");
    return parse_body(ends);
  }

  Body parse_block_and_end(std::string_view end) {
    Body body = parse_block({end});
    next();
    return body;
  }

  void parse_statement(Body& body) {
    if (!current().is(TokenKind::kName)) fail_here("tag name expected");
    const Token tag = next();
    if (tag.text == "if") return body.push_back(parse_if(tag.line));
    if (tag.text == "for") return body.push_back(parse_for(tag.line));
    if (tag.text == "set") return body.push_back(parse_set(tag.line));
    if (tag.text == "macro") return body.push_back(parse_macro(tag.line));
    if (tag.text == "call") return body.push_back(parse_call_block(tag.line));
    if (tag.text == "filter") return body.push_back(parse_filter_block(tag.line));
    if (tag.text == "with") return body.push_back(parse_with(tag.line));
    if (tag.text == "generation") return body.push_back(parse_generation(tag.line));
    if (tag.text == "break" || tag.text == "continue") return body.push_back(parse_jump(tag));
    if (tag.text == "print") return parse_print(body);
    for (std::string_view name : {"block", "extends", "include", "import", "from", "autoescape"})
      if (tag.text == name)
        throw TemplateError(TemplateErrorKind::kUnsupported, tag.line,
                            fmt::format("the tag '{}' is not supported in chat templates", name));
    fail_line(tag.line, fmt::format("unknown tag '{}'", tag.text));
  }

  StmtPtr parse_if(int line) {
    auto stmt = std::make_unique<Stmt>(StmtKind::kIf, line);
    Swap<bool> soft(soft_, true);
    while (true) {
      ExprPtr test = parse_tuple({.conditional = false});
      Body body = parse_block({"elif", "else", "endif"});
      stmt->branches.emplace_back(std::move(test), std::move(body));
      const Token end = next();
      if (end.text == "elif") continue;
      if (end.text == "else") stmt->branches.emplace_back(nullptr, parse_block_and_end("endif"));
      return stmt;
    }
  }

  StmtPtr parse_for(int line) {
    auto stmt = std::make_unique<Stmt>(StmtKind::kFor, line);
    Swap<int> inside(for_depth_, for_depth_ + 1);
    stmt->target = parse_target("in", false);
    if (!skip_name("in")) fail_expected("in");
    stmt->expr = parse_tuple({.conditional = false, .end_name = "recursive"});
    reject_unknown();
    Swap<bool> soft(soft_, false);
    if (skip_name("if")) stmt->test = parse_expression();
    stmt->recursive = skip_name("recursive");
    {
      Swap<bool> breakable(breakable_, true);
      stmt->body = parse_block({"endfor", "else"});
    }
    if (next().text == "else") stmt->otherwise = parse_block_and_end("endfor");
    return stmt;
  }

  Target name_target(const Token& token) {
    if (is_constant_name(token.text)) fail_line(token.line, fmt::format("can't assign to '{}'", token.text));
    if (token.text == "loop" && for_depth_ > 0)
      fail_line(token.line, "can't assign to special loop variable in for-loop target");
    Target target;
    target.name = name_id(token.text);
    return target;
  }

  Target parse_target_item(bool with_namespace) {
    Nesting nesting(*this, parse_depth_, kMaxParseDepth);
    if (skip_operator("(")) {
      Target target = parse_target(")", false);
      expect_operator(")");
      return target;
    }
    if (!current().is(TokenKind::kName)) fail_here(fmt::format("can't assign to '{}'", describe(current())));
    const Token token = next();
    if (!with_namespace || !current().is_operator(".") || is_constant_name(token.text)) return name_target(token);
    next();
    Target target;
    target.kind = Target::Kind::kAttribute;
    target.name = name_id(token.text);
    target.attribute = expect_name();
    return target;
  }

  Target parse_target(std::string_view end_name, bool with_namespace) {
    Target tuple;
    tuple.kind = Target::Kind::kTuple;
    bool is_tuple = false;
    while (true) {
      if (at_tuple_end(end_name)) break;
      tuple.targets.push_back(parse_target_item(with_namespace));
      if (!skip_operator(",")) break;
      is_tuple = true;
    }
    if (tuple.targets.empty()) fail_here(fmt::format("expected a name to assign to, got '{}'", describe(current())));
    return is_tuple ? tuple : tuple.targets[0];
  }

  StmtPtr parse_set(int line) {
    Target target = parse_target({}, true);
    const bool block = !skip_operator("=");
    auto stmt = std::make_unique<Stmt>(block ? StmtKind::kSetBlock : StmtKind::kSet, line);
    stmt->target = std::move(target);
    if (!block) {
      stmt->expr = parse_tuple({});
      return stmt;
    }
    Swap<bool> soft(soft_, false);
    stmt->expr = parse_filters(nullptr);
    stmt->body = parse_block_and_end("endset");
    return stmt;
  }

  std::vector<Parameter> parse_signature() {
    expect_operator("(");
    std::vector<Parameter> parameters;
    while (!current().is_operator(")")) {
      if (!parameters.empty()) expect_operator(",");
      const Token token = current();
      std::string name = expect_name();
      if (is_constant_name(name)) fail_line(token.line, fmt::format("can't assign to '{}'", name));
      for (const Parameter& other : parameters)
        if (other.text == name) fail_line(token.line, fmt::format("duplicate argument '{}'", name));
      ExprPtr fallback;
      if (skip_operator("=")) {
        fallback = parse_expression();
      } else if (!parameters.empty() && parameters.back().fallback) {
        fail_here("non-default argument follows default argument");
      }
      const NameId id = name_id(name);
      parameters.push_back({id, std::move(name), std::move(fallback)});
    }
    next();
    return parameters;
  }

  // The body of a macro is a function of its own: no loop to break from, and its own special variables.
  void parse_macro_body(Stmt& stmt, std::string_view end) {
    Swap<bool> breakable(breakable_, false);
    Swap<bool> soft(soft_, false);
    special_uses_.push_back(0);
    stmt.body = parse_block_and_end(end);
    const unsigned uses = special_uses_.back();
    special_uses_.pop_back();
    auto reads = [&](NameId name) {
      const bool declared = std::any_of(stmt.parameters.begin(), stmt.parameters.end(),
                                        [&](const Parameter& parameter) { return parameter.name == name; });
      return (uses & (1u << name)) != 0 && !declared;
    };
    stmt.reads_caller = reads(kCallerName);
    stmt.reads_varargs = reads(kVarargsName);
    stmt.reads_kwargs = reads(kKwargsName);
  }

  StmtPtr parse_macro(int line) {
    auto stmt = std::make_unique<Stmt>(StmtKind::kMacro, line);
    const Token token = current();
    stmt->text = expect_name();
    if (is_constant_name(stmt->text)) fail_line(token.line, fmt::format("can't assign to '{}'", stmt->text));
    stmt->name = name_id(stmt->text);
    stmt->parameters = parse_signature();
    parse_macro_body(*stmt, "endmacro");
    return stmt;
  }

  StmtPtr parse_call_block(int line) {
    auto stmt = std::make_unique<Stmt>(StmtKind::kCallBlock, line);
    if (current().is_operator("(")) stmt->parameters = parse_signature();
    stmt->expr = parse_expression();
    if (stmt->expr->kind != ExprKind::kCall) fail_line(line, "expected call");
    parse_macro_body(*stmt, "endcall");
    return stmt;
  }

  StmtPtr parse_generation(int line) {
    auto stmt = std::make_unique<Stmt>(StmtKind::kGeneration, line);
    Swap<bool> breakable(breakable_, false);
    Swap<bool> soft(soft_, false);
    stmt->body = parse_block_and_end("endgeneration");
    return stmt;
  }

  StmtPtr parse_filter_block(int line) {
    auto stmt = std::make_unique<Stmt>(StmtKind::kFilterBlock, line);
    Swap<bool> soft(soft_, false);
    stmt->expr = parse_filters(parse_one_filter(nullptr));
    stmt->body = parse_block_and_end("endfilter");
    return stmt;
  }

  StmtPtr parse_with(int line) {
    auto stmt = std::make_unique<Stmt>(StmtKind::kWith, line);
    while (!current().is(TokenKind::kBlockEnd)) {
      if (!stmt->bindings.empty()) expect_operator(",");
      Target target = parse_target({}, false);
      expect_operator("=");
      stmt->bindings.emplace_back(std::move(target), parse_expression());
    }
    reject_unknown();
    Swap<bool> soft(soft_, false);
    stmt->body = parse_block_and_end("endwith");
    return stmt;
  }

  StmtPtr parse_jump(const Token& tag) {
    if (!breakable_) fail_line(tag.line, fmt::format("'{}' outside loop", tag.text));
    return std::make_unique<Stmt>(tag.text == "break" ? StmtKind::kBreak : StmtKind::kContinue, tag.line);
  }

  void parse_print(Body& body) {
    bool first = true;
    while (!current().is(TokenKind::kBlockEnd)) {
      if (!first) expect_operator(",");
      first = false;
      auto stmt = std::make_unique<Stmt>(StmtKind::kOutput, current().line);
      stmt->expr = parse_expression();
      body.push_back(std::move(stmt));
    }
  }

  std::vector<Token> tokens_;
  std::size_t position_ = 0;
  Program program_;
  std::unordered_map<std::string, NameId> ids_;
  std::vector<std::pair<int, std::string>> unknown_;  // filters and tests of the statement that do not exist
  std::vector<unsigned> special_uses_;                // one for each macro around, bits by KnownName
  bool soft_ = false;       // in an `if`, where Jinja2 reports an unknown filter only when it is reached
  bool breakable_ = false;  // in a loop of the same function
  int for_depth_ = 0;
  int parse_depth_ = 0;
  int block_depth_ = 0;
};

}  // namespace

Program parse(const std::string& source, const TemplateLimits& limits) {
  if (source.size() > limits.source_bytes)
    throw problem(TemplateErrorKind::kLimit, "the template has {} bytes, more than the limit of {}", source.size(),
                  limits.source_bytes);
  return Parser(source).run();
}

}  // namespace isobit::jinja
