#include "text/jinja_interpreter.h"

#include <algorithm>
#include <array>

#include "text/jinja_builtins.h"

namespace isobit::jinja {
namespace {

using ScopePtr = std::shared_ptr<Scope>;

enum class Flow { kNext, kBreak, kContinue };

constexpr int64_t kMaxRange = 100000;  // Jinja2's sandbox: MAX_RANGE

class Interpreter {
 public:
  Interpreter(const Program& program, const TemplateLimits& limits, const std::function<std::tm()>& clock)
      : program_(program), heap_(limits), clock_(clock), root_(std::make_shared<Scope>(nullptr)) {}

  std::string run(const ContextLookup& context) {
    try {
      load(context);
      execute(program_.body, root_);
    } catch (const TemplateError& error) {
      if (error.line() != 0) throw;
      throw TemplateError(error.kind(), line_, error.detail());
    }
    return std::move(output_);
  }

 private:
  // Globals first, then the context over them.
  void load(const ContextLookup& context) {
    constexpr std::array<std::pair<std::string_view, Function>, 7> kFunctions = {
        {{"range", Function::kRange},
         {"dict", Function::kDict},
         {"namespace", Function::kNamespace},
         {"raise_exception", Function::kRaise},
         {"strftime_now", Function::kStrftimeNow},
         {"cycler", Function::kCycler},
         {"joiner", Function::kJoiner}}};
    for (NameId id = 0; id < static_cast<NameId>(program_.names.size()); ++id) {
      const std::string& name = program_.names[static_cast<std::size_t>(id)];
      Value value;
      if (context(heap_, name, value)) {
        root_->variables.emplace_back(id, std::move(value));
        continue;
      }
      for (const auto& [function_name, function] : kFunctions)
        if (function_name == name) root_->variables.emplace_back(id, Value(&heap_.make<FunctionObject>(function)));
    }
  }

  const std::string& name_of(NameId id) const { return program_.names[static_cast<std::size_t>(id)]; }

  void write(std::string_view text) {
    const std::size_t limit = heap_.limits().output_bytes;
    if (text.size() > limit || output_.size() > limit - text.size())
      throw problem(TemplateErrorKind::kLimit, "the rendered text is longer than {} bytes", limit);
    heap_.touch(text.size());
    output_.append(text);
  }

  void write_value(const Value& value) {
    if (value.is_string()) return write(value.text());
    write(to_text(heap_, value));
  }

  // Runs `body` with its output caught, and gives that output.
  template <typename Body>
  std::string captured(Body body) {
    std::string outer = std::move(output_);
    output_.clear();
    try {
      body();
    } catch (...) {
      output_ = std::move(outer);
      throw;
    }
    std::string text = std::move(output_);
    output_ = std::move(outer);
    return text;
  }

  // Statements.

  Flow execute(const Body& body, const ScopePtr& scope) {
    for (const auto& stmt : body) {
      const Flow flow = execute(*stmt, scope);
      if (flow != Flow::kNext) return flow;
    }
    return Flow::kNext;
  }

  Flow execute(const Stmt& stmt, const ScopePtr& scope) {
    Heap::Depth depth(heap_);
    heap_.step();
    line_ = stmt.line;
    switch (stmt.kind) {
      case StmtKind::kText:
        write(stmt.text);
        return Flow::kNext;
      case StmtKind::kOutput:
        write_value(eval(*stmt.expr, scope));
        return Flow::kNext;
      case StmtKind::kIf:
        return execute_if(stmt, scope);
      case StmtKind::kFor:
        execute_for(stmt, scope);
        return Flow::kNext;
      case StmtKind::kSet:
        execute_set(stmt, scope);
        return Flow::kNext;
      case StmtKind::kSetBlock:
        return execute_set_block(stmt, scope);
      case StmtKind::kMacro:
        scope->set(stmt.name, Value(&heap_.make<Macro>(stmt, stmt.text, scope)));
        return Flow::kNext;
      case StmtKind::kCallBlock:
        execute_call_block(stmt, scope);
        return Flow::kNext;
      case StmtKind::kFilterBlock:
        return execute_filter_block(stmt, scope);
      case StmtKind::kWith:
        return execute_with(stmt, scope);
      case StmtKind::kGeneration:
        return execute(stmt.body, std::make_shared<Scope>(scope));
      case StmtKind::kBreak:
        return Flow::kBreak;
      case StmtKind::kContinue:
        return Flow::kContinue;
    }
    return Flow::kNext;
  }

  Flow execute_if(const Stmt& stmt, const ScopePtr& scope) {
    for (const auto& [test, body] : stmt.branches)
      if (test == nullptr || truth(eval(*test, scope))) return execute(body, scope);
    return Flow::kNext;
  }

  void check_namespaces(const Target& target, const ScopePtr& scope) {
    if (target.kind == Target::Kind::kAttribute && !lookup(target.name, scope).is(Type::kNamespace))
      throw type_error("cannot assign attribute on non-namespace object");
    for (const Target& part : target.targets) check_namespaces(part, scope);
  }

  void execute_set(const Stmt& stmt, const ScopePtr& scope) {
    check_namespaces(stmt.target, scope);
    assign(stmt.target, eval(*stmt.expr, scope), scope);
  }

  Flow execute_set_block(const Stmt& stmt, const ScopePtr& scope) {
    auto inner = std::make_shared<Scope>(scope);
    Flow flow = Flow::kNext;
    std::string text = captured([&] { flow = execute(stmt.body, inner); });
    if (flow != Flow::kNext) return flow;
    Value value = heap_.string(std::move(text));
    check_namespaces(stmt.target, scope);
    assign(stmt.target, stmt.expr ? filter_block_value(*stmt.expr, value, inner) : value, scope);
    return Flow::kNext;
  }

  Flow execute_filter_block(const Stmt& stmt, const ScopePtr& scope) {
    auto inner = std::make_shared<Scope>(scope);
    Flow flow = Flow::kNext;
    std::string text = captured([&] { flow = execute(stmt.body, inner); });
    if (flow != Flow::kNext) return flow;
    write_value(filter_block_value(*stmt.expr, heap_.string(std::move(text)), inner));
    return Flow::kNext;
  }

  Value filter_block_value(const Expr& filter, const Value& input, const ScopePtr& scope) {
    const Expr* operand = filter.items[0].get();
    return apply_filter(filter, operand == nullptr ? input : filter_block_value(*operand, input, scope), scope);
  }

  Flow execute_with(const Stmt& stmt, const ScopePtr& scope) {
    auto inner = std::make_shared<Scope>(scope);
    for (const auto& [target, expr] : stmt.bindings) assign(target, eval(*expr, scope), inner);
    return execute(stmt.body, inner);
  }

  void execute_call_block(const Stmt& stmt, const ScopePtr& scope) {
    const Value caller(&heap_.make<Macro>(stmt, std::string(), scope));
    CallArguments arguments = eval_arguments(stmt.expr->arguments, scope);
    arguments.named.emplace_back("caller", caller);
    write_value(call(eval(*stmt.expr->items[0], scope), arguments));
  }

  void assign(const Target& target, const Value& value, const ScopePtr& scope) {
    switch (target.kind) {
      case Target::Kind::kName:
        return scope->set(target.name, value);
      case Target::Kind::kAttribute:
        return set_attribute(lookup(target.name, scope), target.attribute, value);
      case Target::Kind::kTuple:
        return unpack(target, value, scope);
    }
  }

  static void check_attribute_name(const std::string& name) {
    if (name.starts_with('_'))
      throw problem(TemplateErrorKind::kSecurity, "a namespace cannot hold the underscore-prefixed attribute '{}'",
                    name);
  }

  void set_attribute(const Value& space, const std::string& name, const Value& value) {
    if (!space.is(Type::kNamespace)) throw type_error("cannot assign attribute on non-namespace object");
    check_attribute_name(name);
    space.as<Namespace>().attributes->set(heap_, Value::constant(name), value);
  }

  void unpack(const Target& target, const Value& value, const ScopePtr& scope) {
    if (!is_iterable(value)) throw type_error("cannot unpack non-iterable {} object", type_name(value));
    const Values items = items_of(heap_, value);
    const std::size_t wanted = target.targets.size();
    if (items.size() > wanted) throw type_error("too many values to unpack (expected {})", wanted);
    if (items.size() < wanted)
      throw type_error("not enough values to unpack (expected {}, got {})", wanted, items.size());
    for (std::size_t i = 0; i < wanted; ++i) assign(target.targets[i], items[i], scope);
  }

  // Loops.

  void execute_for(const Stmt& stmt, const ScopePtr& scope) { run_loop(stmt, eval(*stmt.expr, scope), scope, 0); }

  Loop& make_loop(const Stmt& stmt, const Value& iterable, const ScopePtr& scope, int64_t level) {
    auto& loop = heap_.make<Loop>();
    loop.statement = &stmt;
    loop.outer = scope;
    loop.depth = level;
    if (iterable.is(Type::kLoop)) throw type_error("a loop variable cannot be iterated over again");
    Values items = items_of(heap_, iterable);
    if (!stmt.test) {
      loop.items = std::move(items);
      return loop;
    }
    // The filter runs when the next item is asked for, so that it sees what the body has changed.
    auto source = std::make_shared<Values>(std::move(items));
    auto position = std::make_shared<std::size_t>(0);
    loop.pull = [this, &loop, &stmt, scope, source, position] {
      while (*position < source->size()) {
        const Value item = (*source)[(*position)++];
        auto inner = std::make_shared<Scope>(scope);
        assign(stmt.target, item, inner);
        if (!truth(eval(*stmt.test, inner))) continue;
        loop.items.push_back(item);
        return true;
      }
      return false;
    };
    return loop;
  }

  void run_loop(const Stmt& stmt, const Value& iterable, const ScopePtr& scope, int64_t level) {
    Loop& loop = make_loop(stmt, iterable, scope, level);
    ScopePtr inner;
    bool broken = false, completed = false;
    while (!broken && loop.has(static_cast<std::size_t>(loop.index + 1))) {
      ++loop.index;
      heap_.step();
      // A scope that a macro of the body holds on to is left to it.
      if (inner == nullptr || inner.use_count() > 1) {
        inner = std::make_shared<Scope>(scope);
      } else {
        inner->variables.clear();
      }
      inner->set(kLoopName, Value(&loop));
      assign(stmt.target, Value(loop.items[static_cast<std::size_t>(loop.index)]), inner);
      const Flow flow = execute(stmt.body, inner);
      broken = flow == Flow::kBreak;
      completed = completed || flow == Flow::kNext;
    }
    loop.pull = nullptr;
    // Jinja2 runs the else branch when no iteration reached the end of the body, break and continue included.
    if (!completed) execute_else(stmt, scope);
  }

  void execute_else(const Stmt& stmt, const ScopePtr& scope) {
    if (!stmt.otherwise.empty()) execute(stmt.otherwise, std::make_shared<Scope>(scope));
  }

  // Expressions.

  // The value of a variable, or null.
  static const Value* find(NameId id, const ScopePtr& scope) {
    for (const Scope* at = scope.get(); at != nullptr; at = at->parent.get())
      if (const Value* value = at->find(id)) return value;
    return nullptr;
  }

  Value lookup(NameId id, const ScopePtr& scope) {
    const Value* value = find(id, scope);
    return value != nullptr ? *value : heap_.undefined(name_of(id));
  }

  Value eval(const Expr& expr, const ScopePtr& scope) {
    Heap::Depth depth(heap_);
    heap_.step();
    line_ = expr.line;
    switch (expr.kind) {
      case ExprKind::kConst:
        return expr.value;
      case ExprKind::kName:
        return lookup(expr.name_id, scope);
      case ExprKind::kList:
        return heap_.list(eval_all(expr.items, scope));
      case ExprKind::kTuple:
        return heap_.tuple(eval_all(expr.items, scope));
      case ExprKind::kConcat:
        return concat(heap_, eval_all(expr.items, scope));
      case ExprKind::kDict:
        return eval_dict(expr, scope);
      case ExprKind::kNot:
        return Value::boolean(!truth(eval(*expr.items[0], scope)));
      case ExprKind::kNegative:
        return negative(eval(*expr.items[0], scope));
      case ExprKind::kPositive:
        return positive(eval(*expr.items[0], scope));
      case ExprKind::kBinary:
        return eval_binary(expr, scope);
      case ExprKind::kAnd:
      case ExprKind::kOr:
        return eval_logical(expr, scope);
      case ExprKind::kCompare:
        return eval_compare(expr, scope);
      case ExprKind::kConditional:
        return eval_conditional(expr, scope);
      case ExprKind::kAttribute:
        return eval_attribute(expr, eval(*expr.items[0], scope));
      case ExprKind::kItem:
        return eval_item(expr, scope);
      case ExprKind::kSlice:
        return eval_slice(expr, scope);
      case ExprKind::kCall:
        return eval_call(expr, scope);
      case ExprKind::kFilter:
        return apply_filter(expr, eval(*expr.items[0], scope), scope);
      case ExprKind::kTest:
        return eval_test(expr, scope);
    }
    return {};
  }

  Values eval_all(const std::vector<ExprPtr>& exprs, const ScopePtr& scope) {
    Values values;
    values.reserve(exprs.size());
    for (const ExprPtr& expr : exprs) values.push_back(eval(*expr, scope));
    return values;
  }

  Value eval_dict(const Expr& expr, const ScopePtr& scope) {
    Dict& dict = heap_.dict();
    for (std::size_t i = 0; i + 1 < expr.items.size(); i += 2) {
      const Value key = eval(*expr.items[i], scope);
      dict.set(heap_, key, eval(*expr.items[i + 1], scope));
    }
    return Value(&dict);
  }

  Value eval_binary(const Expr& expr, const ScopePtr& scope) {
    const Value left = eval(*expr.items[0], scope);
    const Value right = eval(*expr.items[1], scope);
    line_ = expr.line;
    return binary(heap_, expr.operators[0], left, right);
  }

  Value eval_logical(const Expr& expr, const ScopePtr& scope) {
    Value left = eval(*expr.items[0], scope);
    const bool decided = truth(left) == (expr.kind == ExprKind::kOr);
    return decided ? left : eval(*expr.items[1], scope);
  }

  bool holds(Operator op, const Value& left, const Value& right) {
    switch (op) {
      case Operator::kEqual:
        return equals(heap_, left, right);
      case Operator::kNotEqual:
        return !equals(heap_, left, right);
      case Operator::kLess:
        return compare(heap_, Order::kLess, left, right);
      case Operator::kLessEqual:
        return compare(heap_, Order::kLessEqual, left, right);
      case Operator::kGreater:
        return compare(heap_, Order::kGreater, left, right);
      case Operator::kGreaterEqual:
        return compare(heap_, Order::kGreaterEqual, left, right);
      case Operator::kIn:
        return contains(heap_, right, left);
      case Operator::kNotIn:
        return !contains(heap_, right, left);
      default:
        throw fail(ErrorCode::kInternal, "operator {} is no comparison", static_cast<int>(op));
    }
  }

  Value eval_compare(const Expr& expr, const ScopePtr& scope) {
    Value left = eval(*expr.items[0], scope);
    for (std::size_t i = 0; i < expr.operators.size(); ++i) {
      Value right = eval(*expr.items[i + 1], scope);
      line_ = expr.line;
      if (!holds(expr.operators[i], left, right)) return Value::boolean(false);
      left = std::move(right);
    }
    return Value::boolean(true);
  }

  Value eval_conditional(const Expr& expr, const ScopePtr& scope) {
    if (truth(eval(*expr.items[0], scope))) return eval(*expr.items[1], scope);
    if (expr.items[2] != nullptr) return eval(*expr.items[2], scope);
    return heap_.undefined_hint(fmt::format(
        "the inline if-expression on line {} evaluated to false and no else section was defined.", expr.line));
  }

  Value eval_item(const Expr& expr, const ScopePtr& scope) {
    const Value object = eval(*expr.items[0], scope);
    const Value key = eval(*expr.items[1], scope);
    line_ = expr.line;
    if (object.is(Type::kLoop) && key.is_string()) return loop_attribute(object.as<Loop>(), key.text());
    return item(heap_, object, key);
  }

  Value eval_slice(const Expr& expr, const ScopePtr& scope) {
    Values parts;
    for (const ExprPtr& part : expr.items) parts.push_back(part ? eval(*part, scope) : Value());
    line_ = expr.line;
    return slice(heap_, parts[0], parts[1], parts[2], parts[3]);
  }

  Value eval_attribute(const Expr& expr, const Value& object) {
    line_ = expr.line;
    if (object.is(Type::kLoop)) return loop_attribute(object.as<Loop>(), expr.name);
    return attribute(heap_, object, expr.name);
  }

  CallArguments eval_arguments(const ArgumentExprs& exprs, const ScopePtr& scope) {
    CallArguments arguments;
    arguments.positional = eval_all(exprs.positional, scope);
    for (const auto& [name, expr] : exprs.named) arguments.named.emplace_back(name, eval(*expr, scope));
    if (exprs.star) {
      Values more = items_of(heap_, eval(*exprs.star, scope));
      arguments.positional.insert(arguments.positional.end(), more.begin(), more.end());
    }
    if (exprs.double_star) add_named(arguments, eval(*exprs.double_star, scope));
    return arguments;
  }

  void add_named(CallArguments& arguments, const Value& mapping) {
    if (!mapping.is(Type::kDict)) throw type_error("argument after ** must be a mapping, not {}", type_name(mapping));
    for (const auto& [key, value] : mapping.as<Dict>().entries) {
      heap_.step();
      if (!key.is_string()) throw type_error("keywords must be strings");
      for (const auto& given : arguments.named)
        if (given.first == key.text()) throw type_error("got multiple values for keyword argument '{}'", key.text());
      arguments.named.emplace_back(key.text(), value);
    }
  }

  Value apply_filter(const Expr& expr, const Value& input, const ScopePtr& scope) {
    const CallArguments arguments = eval_arguments(expr.arguments, scope);
    line_ = expr.line;
    if (expr.filter == nullptr) throw type_error("no filter named '{}' found", expr.name);
    return expr.filter(heap_, input, arguments);
  }

  Value eval_test(const Expr& expr, const ScopePtr& scope) {
    const Value input = eval(*expr.items[0], scope);
    const CallArguments arguments = eval_arguments(expr.arguments, scope);
    line_ = expr.line;
    if (expr.test == nullptr) throw type_error("no test named '{}' found", expr.name);
    return Value::boolean(expr.test(heap_, input, arguments));
  }

  // Calls.

  Value eval_call(const Expr& expr, const ScopePtr& scope) {
    const Expr& callee = *expr.items[0];
    if (callee.kind != ExprKind::kAttribute) {
      const Value function = eval(callee, scope);
      const CallArguments arguments = eval_arguments(expr.arguments, scope);
      line_ = expr.line;
      return call(function, arguments);
    }
    // A method that is called at once needs no object of its own.
    const Value self = eval(*callee.items[0], scope);
    const Method method = find_method(self.type(), callee.name);
    if (method == nullptr) {
      const Value function = eval_attribute(callee, self);
      const CallArguments arguments = eval_arguments(expr.arguments, scope);
      line_ = expr.line;
      return call(function, arguments);
    }
    const CallArguments arguments = eval_arguments(expr.arguments, scope);
    line_ = expr.line;
    return method(heap_, self, arguments);
  }

  Value call(const Value& function, const CallArguments& arguments) {
    Heap::Depth depth(heap_);
    heap_.step();
    switch (function.type()) {
      case Type::kUndefined:
        fail_undefined(function);
      case Type::kMacro:
        return call_macro(function.as<Macro>(), arguments);
      case Type::kMethod: {
        const auto& bound = function.as<MethodObject>();
        if (bound.self.is(Type::kLoop)) return call_loop_method(bound.self.as<Loop>(), bound.name, arguments);
        return bound.method(heap_, bound.self, arguments);
      }
      case Type::kFunction:
        return call_function(function.as<FunctionObject>().function, arguments);
      case Type::kLoop:
        return call_loop(function.as<Loop>(), arguments);
      case Type::kJoiner: {
        auto& joiner = function.as<Joiner>();
        const bool used = joiner.used;
        joiner.used = true;
        return used ? joiner.separator : Value::constant("");
      }
      default:
        throw type_error("'{}' object is not callable", type_name(function));
    }
  }

  // As jinja2.runtime.Macro: positional, then named, then defaults; the rest to varargs and kwargs if it reads them.
  Value call_macro(const Macro& macro, const CallArguments& arguments) {
    const Stmt& definition = macro.definition;
    auto scope = std::make_shared<Scope>(macro.closure);
    std::vector<std::pair<std::string, Value>> named = arguments.named;
    auto take = [&named](std::string_view name, Value& out) {
      auto it = std::find_if(named.begin(), named.end(), [&](const auto& given) { return given.first == name; });
      if (it == named.end()) return false;
      out = it->second;
      named.erase(it);
      return true;
    };
    const std::size_t count = definition.parameters.size();
    std::vector<const Parameter*> missing;
    for (std::size_t i = 0; i < count; ++i) {
      const Parameter& parameter = definition.parameters[i];
      Value value;
      if (i < arguments.positional.size()) {
        scope->set(parameter.name, arguments.positional[i]);
      } else if (take(parameter.text, value)) {
        scope->set(parameter.name, value);
      } else {
        scope->set(parameter.name,
                   heap_.undefined_hint(fmt::format("parameter '{}' was not provided", parameter.text)));
        missing.push_back(&parameter);
      }
    }
    if (definition.reads_caller) {
      Value caller;
      if (!take("caller", caller)) caller = heap_.undefined_hint("No caller defined");
      scope->set(kCallerName, caller);
    }
    add_rest(macro, arguments, named, *scope);
    const int call_line = line_;
    std::string text = captured([&] {
      for (const Parameter* parameter : missing)
        if (parameter->fallback) scope->set(parameter->name, eval(*parameter->fallback, scope));
      execute(definition.body, scope);
    });
    line_ = call_line;
    return heap_.string(std::move(text));
  }

  void add_rest(const Macro& macro, const CallArguments& arguments,
                const std::vector<std::pair<std::string, Value>>& named, Scope& scope) {
    const Stmt& definition = macro.definition;
    const std::size_t count = definition.parameters.size();
    if (definition.reads_kwargs) {
      Dict& dict = heap_.dict();
      for (const auto& [name, value] : named) dict.set(heap_, heap_.string(name), value);
      scope.set(kKwargsName, Value(&dict));
    } else if (!named.empty()) {
      throw type_error("macro '{}' takes no keyword argument '{}'", macro.name, named.front().first);
    }
    const bool too_many = arguments.positional.size() > count;
    if (definition.reads_varargs) {
      Values rest;
      if (too_many)
        rest.assign(arguments.positional.begin() + static_cast<std::ptrdiff_t>(count), arguments.positional.end());
      scope.set(kVarargsName, heap_.tuple(std::move(rest)));
    } else if (too_many) {
      throw type_error("macro '{}' takes not more than {} argument(s)", macro.name, count);
    }
  }

  Value call_loop(const Loop& loop, const CallArguments& arguments) {
    if (!loop.statement->recursive)
      throw type_error("the loop must have the 'recursive' marker to be called recursively");
    const Bound bound("loop", arguments, {"iterable"}, 1);
    const Stmt& stmt = *loop.statement;
    const ScopePtr outer = loop.outer;
    const int64_t level = loop.depth + 1;
    return heap_.string(captured([&] { run_loop(stmt, *bound.get(0), outer, level); }));
  }

  Value loop_attribute(Loop& loop, const std::string& name) {
    const auto at = static_cast<std::size_t>(std::max<int64_t>(loop.index, 0));
    auto length = [&loop] { return static_cast<int64_t>(loop.size()); };
    if (name == "index") return Value::integer(loop.index + 1);
    if (name == "index0") return Value::integer(loop.index);
    if (name == "first") return Value::boolean(loop.index == 0);
    if (name == "last") return Value::boolean(!loop.has(at + 1));
    if (name == "length") return Value::integer(length());
    if (name == "revindex") return Value::integer(length() - loop.index);
    if (name == "revindex0") return Value::integer(length() - loop.index - 1);
    if (name == "depth") return Value::integer(loop.depth + 1);
    if (name == "depth0") return Value::integer(loop.depth);
    if (name == "previtem") return at == 0 ? heap_.undefined_hint("there is no previous item") : loop.items[at - 1];
    if (name == "nextitem")
      return loop.has(at + 1) ? loop.items[at + 1] : heap_.undefined_hint("there is no next item");
    if (name == "cycle") return Value(&heap_.make<MethodObject>(Value(&loop), nullptr, "cycle"));
    if (name == "changed") return Value(&heap_.make<MethodObject>(Value(&loop), nullptr, "changed"));
    return heap_.undefined(name, "jinja2.runtime.LoopContext object");
  }

  Value call_loop_method(Loop& loop, std::string_view name, const CallArguments& arguments) {
    if (!arguments.named.empty()) throw type_error("{}() takes no keyword arguments", name);
    if (name == "cycle") {
      if (arguments.positional.empty()) throw type_error("no items for cycling given");
      return arguments.positional[static_cast<std::size_t>(loop.index) % arguments.positional.size()];
    }
    const Values& now = arguments.positional;
    const Values& before = loop.last_changed;
    bool changed = !loop.has_changed || now.size() != before.size();
    for (std::size_t i = 0; !changed && i < now.size(); ++i) changed = !equals(heap_, now[i], before[i]);
    loop.last_changed = now;
    loop.has_changed = true;
    return Value::boolean(changed);
  }

  Value call_function(Function function, const CallArguments& arguments) {
    switch (function) {
      case Function::kRange:
        return call_range(arguments);
      case Function::kDict:
        return Value(&build_dict("dict", arguments));
      case Function::kNamespace:
        return call_namespace(arguments);
      case Function::kRaise:
        throw problem(TemplateErrorKind::kRaised, "{}",
                      to_text(heap_, *Bound("raise_exception", arguments, {"message"}, 1).get(0)));
      case Function::kStrftimeNow:
        return strftime_now(*Bound("strftime_now", arguments, {"format"}, 1).get(0));
      case Function::kCycler:
        if (arguments.positional.empty()) throw type_error("at least one item has to be provided");
        heap_.reserve(arguments.positional.size() * sizeof(Value));
        return Value(&heap_.make<Cycler>(arguments.positional));
      case Function::kJoiner:
        return Value(&heap_.make<Joiner>(Bound("joiner", arguments, {"sep"}).value(0, Value::constant(", "))));
    }
    return {};
  }

  Value call_range(const CallArguments& arguments) {
    const Bound bound("range", arguments, {"start", "stop", "step"}, 1);
    if (!arguments.named.empty()) throw type_error("range() takes no keyword arguments");
    const bool only_stop = bound.get(1) == nullptr;
    const int64_t start = only_stop ? 0 : bound.integer(0, 0);
    const int64_t stop = only_stop ? bound.integer(0, 0) : bound.integer(1, 0);
    const int64_t step = bound.integer(2, 1);
    if (step == 0) throw type_error("range() arg 3 must not be zero");
    constexpr int64_t kFar = int64_t{1} << 61;  // keeps the arithmetic of Range within 64 bits
    if (std::max({start, stop, step}) > kFar || std::min({start, stop, step}) < -kFar)
      throw problem(TemplateErrorKind::kRuntime, "range(): {}, {}, {} is out of range", start, stop, step);
    auto& range = heap_.make<Range>(start, stop, step);
    if (range.size() > kMaxRange)
      throw problem(TemplateErrorKind::kRuntime, "range too big: the sandbox blocks ranges larger than {}", kMaxRange);
    return Value(&range);
  }

  // dict(mapping or pairs, **named)
  Dict& build_dict(std::string_view function, const CallArguments& arguments) {
    if (arguments.positional.size() > 1)
      throw type_error("{} expected at most 1 argument, got {}", function, arguments.positional.size());
    Dict& dict = heap_.dict();
    if (!arguments.positional.empty()) add_pairs(dict, arguments.positional[0]);
    for (const auto& [name, value] : arguments.named) dict.set(heap_, heap_.string(name), value);
    return dict;
  }

  void add_pairs(Dict& dict, const Value& source) {
    if (source.is(Type::kDict)) {
      for (const auto& [key, value] : source.as<Dict>().entries) dict.set(heap_, key, value);
      return;
    }
    for (const Value& pair : items_of(heap_, source)) {
      const Values parts = items_of(heap_, pair);
      if (parts.size() != 2)
        throw type_error("dictionary update sequence element has length {}; 2 is required", parts.size());
      dict.set(heap_, parts[0], parts[1]);
    }
  }

  Value call_namespace(const CallArguments& arguments) {
    Dict& attributes = build_dict("namespace", arguments);
    for (const auto& entry : attributes.entries)
      if (entry.first.is_string()) check_attribute_name(entry.first.text());
    auto& space = heap_.make<Namespace>();
    space.attributes = &attributes;
    return Value(&space);
  }

  Value strftime_now(const Value& format) {
    if (!format.is_string()) throw type_error("strftime_now() argument must be str, not {}", type_name(format));
    constexpr std::string_view kDirectives = "aAbBcdDeFgGhHIjklmMnpPrRStTuUVwWxXyY%";
    const std::tm now = clock_();
    Builder out(heap_);
    const std::string& text = format.text();
    for (std::size_t i = 0; i < text.size(); ++i) {
      const bool flagged = text[i] == '%' && i + 2 < text.size() && (text[i + 1] == '-' || text[i + 1] == '_');
      const std::size_t letter = i + (flagged ? 2 : 1);
      // Python's naive datetime has no zone: %z and %Z are empty.
      if (!flagged && text[i] == '%' && letter < text.size() && (text[letter] == 'z' || text[letter] == 'Z')) {
        i = letter;
        continue;
      }
      if (text[i] != '%' || letter >= text.size() || kDirectives.find(text[letter]) == std::string_view::npos) {
        out.add(std::string_view(text).substr(i, 1));
        continue;
      }
      std::array<char, 128> buffer{};
      const std::string one = text.substr(i, letter + 1 - i);
      out.add(std::string_view(buffer.data(), std::strftime(buffer.data(), buffer.size(), one.c_str(), &now)));
      i = letter;
    }
    return heap_.string(out.take());
  }

  const Program& program_;
  Heap heap_;  // before everything that holds values
  const std::function<std::tm()>& clock_;
  ScopePtr root_;
  std::string output_;
  int line_ = 0;
};

}  // namespace

std::string render(const Program& program, const ContextLookup& context, const TemplateLimits& limits,
                   const std::function<std::tm()>& clock) {
  return Interpreter(program, limits, clock).run(context);
}

}  // namespace isobit::jinja
