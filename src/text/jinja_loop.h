#pragma once
// The objects that tie a value to a place in the template: macros and the `loop` variable.
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja_value.h"

namespace isobit::jinja {

struct Stmt;

// The variables of one block. A macro holds the scope it was defined in, and sees its later changes.
struct Scope {
  explicit Scope(std::shared_ptr<Scope> outer) : parent(std::move(outer)) {}
  const Value* find(int name) const {
    for (const auto& [id, value] : variables)
      if (id == name) return &value;
    return nullptr;
  }
  void set(int name, Value value) {
    for (auto& [id, old] : variables) {
      if (id != name) continue;
      old = std::move(value);
      return;
    }
    variables.emplace_back(name, std::move(value));
  }

  std::shared_ptr<Scope> parent;
  std::vector<std::pair<int, Value>> variables;
};

struct Macro : Object {
  Macro(const Stmt& macro_definition, std::string macro_name, std::shared_ptr<Scope> scope)
      : Object(Type::kMacro), definition(macro_definition), name(std::move(macro_name)), closure(std::move(scope)) {}
  const Stmt& definition;  // kMacro or kCallBlock
  std::string name;        // empty for the body of a call block
  std::shared_ptr<Scope> closure;
};

struct Loop : Object {
  Loop() : Object(Type::kLoop) {}
  bool has(std::size_t i) {
    while (i >= items.size())
      if (!pull || !pull()) return false;
    return true;
  }
  std::size_t size() {
    while (pull && pull()) {
    }
    return items.size();
  }

  Values items;                // what was read so far
  std::function<bool()> pull;  // reads one more item of a filtered loop; empty when all are read
  int64_t index = -1;
  int64_t depth = 0;
  const Stmt* statement = nullptr;
  std::shared_ptr<Scope> outer;
  Values last_changed;
  bool has_changed = false;
};

}  // namespace isobit::jinja
