#pragma once
// The syntax tree of a template. Names are numbered by the parser, so that scopes compare integers.
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja_value.h"

namespace isobit::jinja {

using NameId = int;

enum class ExprKind {
  kConst,
  kName,
  kList,
  kTuple,
  kDict,
  kNot,
  kNegative,
  kPositive,
  kBinary,
  kAnd,
  kOr,
  kCompare,
  kConcat,
  kConditional,
  kAttribute,
  kItem,
  kSlice,
  kCall,
  kFilter,
  kTest,
};

enum class Operator {
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,
  kFloorDivide,
  kModulo,
  kPower,
  kEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kIn,
  kNotIn,
};

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

using Filter = Value (*)(Heap& heap, const Value& input, const CallArguments& arguments);
using Test = bool (*)(Heap& heap, const Value& input, const CallArguments& arguments);

struct ArgumentExprs {
  std::vector<ExprPtr> positional;
  std::vector<std::pair<std::string, ExprPtr>> named;
  ExprPtr star, double_star;  // *args, **kwargs; may be null
};

// items, by kind: kList, kTuple, kConcat: the elements. kDict: key, value, key, value... kNot, kNegative, kPositive,
// kAttribute, kFilter, kTest: the operand (null in a filter block). kBinary, kAnd, kOr, kItem: left, right.
// kCompare: the operands, one more than `operators`. kConditional: test, then, else (may be null).
// kSlice: object, start, stop, step (the last three may be null). kCall: the callee.
struct Expr {
  Expr(ExprKind expr_kind, int expr_line) : kind(expr_kind), line(expr_line) {}

  ExprKind kind;
  int line;
  int depth = 1;  // of the tree under it
  NameId name_id = -1;
  std::string name;  // attribute, filter, test
  Value value;       // kConst
  std::vector<ExprPtr> items;
  std::vector<Operator> operators;  // kCompare; one for kBinary
  ArgumentExprs arguments;          // kCall, kFilter, kTest
  Filter filter = nullptr;          // null: not known, an error if it is reached
  Test test = nullptr;
};

struct Target {
  enum class Kind { kName, kAttribute, kTuple };
  Kind kind = Kind::kName;
  NameId name = -1;
  std::string attribute;        // of a namespace
  std::vector<Target> targets;  // kTuple
};

struct Stmt;
using Body = std::vector<std::unique_ptr<Stmt>>;

enum class StmtKind {
  kText,
  kOutput,
  kIf,
  kFor,
  kSet,
  kSetBlock,
  kMacro,
  kCallBlock,
  kFilterBlock,
  kWith,
  kGeneration,
  kBreak,
  kContinue,
};

struct Parameter {
  NameId name;
  std::string text;
  ExprPtr fallback;  // may be null
};

struct Stmt {
  Stmt(StmtKind stmt_kind, int stmt_line) : kind(stmt_kind), line(stmt_line) {}

  StmtKind kind;
  int line;
  std::string text;  // kText: what to write. kMacro: its name
  ExprPtr expr;      // kOutput, kFor's iterable, kSet's value, kSetBlock's and kFilterBlock's filter, kCallBlock's call
  ExprPtr test;      // kFor's filter
  Target target;     // kFor, kSet, kSetBlock
  Body body;
  Body otherwise;                                    // kFor
  std::vector<std::pair<ExprPtr, Body>> branches;    // kIf; a null condition is `else`
  std::vector<std::pair<Target, ExprPtr>> bindings;  // kWith
  bool recursive = false;                            // kFor
  NameId name = -1;                                  // kMacro
  std::vector<Parameter> parameters;                 // kMacro, kCallBlock
  // Which special variables the body of a macro reads without declaring them.
  bool reads_caller = false, reads_varargs = false, reads_kwargs = false;
};

struct Program {
  Body body;
  std::vector<std::string> names;  // by NameId
};

// Throws TemplateError (kSyntax, kUnsupported, kLimit) with the line.
Program parse(const std::string& source, const TemplateLimits& limits);

// The names the parser always numbers, in this order.
enum KnownName : NameId { kLoopName, kCallerName, kVarargsName, kKwargsName };
inline constexpr std::array<const char*, 4> kKnownNames = {"loop", "caller", "varargs", "kwargs"};

}  // namespace isobit::jinja
