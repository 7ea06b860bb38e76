// Templates that try to use up time, memory or the stack, or to leave the sandbox: each ends soon, with a clear error.
#include <gtest/gtest.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "text/chat_template.h"

namespace isobit {
namespace {

using OrderedJson = nlohmann::ordered_json;

struct Outcome {
  TemplateErrorKind kind;
  std::string detail;
  int line;
};

Outcome failure(const std::string& source, TemplateLimits limits = {}) {
  const OrderedJson context = {{"messages", {{{"role", "user"}, {"content", "hi"}}}}};
  const auto start = std::chrono::steady_clock::now();
  try {
    TemplateOptions options;
    options.limits = limits;
    const std::string text = ChatTemplate(source, options).render(context);
    ADD_FAILURE() << source.substr(0, 200) << " rendered " << text.size() << " bytes";
    return {TemplateErrorKind::kRuntime, "", 0};
  } catch (const TemplateError& error) {
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    EXPECT_LT(seconds.count(), 20.0) << source.substr(0, 200);  // well under a second without a sanitizer
    return {error.kind(), error.detail(), error.line()};
  }
}

void expect_limit(const std::string& source) {
  SCOPED_TRACE(source.substr(0, 200));
  TemplateLimits limits;
  limits.steps = 3'000'000;  // enough for all of these to show themselves, and quick under a sanitizer
  const Outcome outcome = failure(source, limits);
  EXPECT_EQ(outcome.kind, TemplateErrorKind::kLimit) << outcome.detail;
}

std::string repeat(const std::string& text, int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += text;
  return out;
}

TEST(JinjaHostile, LoopsWithoutEnd) {
  EXPECT_EQ(failure("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}").kind,
            TemplateErrorKind::kLimit);
  EXPECT_EQ(failure("{% for i in range(10**9) %}{% endfor %}").kind, TemplateErrorKind::kRuntime);
  expect_limit("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}");
  expect_limit("{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}{% endfor %}{% endfor %}");
  expect_limit("{% for i in range(99999) %}{{ range(99999)|sum }}{% endfor %}");
  expect_limit("{% for i in range(99999) %}{{ (i + 0.5) in range(99999) }}{% endfor %}");
  expect_limit("{% set s = 'ab' * 1000000 %}{% for i in range(99999) %}{{ s.count('a') }}{% endfor %}");
  expect_limit("{% set s = 'ab' * 1000000 %}{% for i in range(99999) %}{{ s|length }}{% endfor %}");
  expect_limit("{% set s = 'ab' * 1000000 %}{% for i in range(99999) %}{{ s == s ~ '' }}{% endfor %}");
  expect_limit("{% set s = ' ' * 1000000 %}{% for i in range(99999) %}{{ s.strip() }}{% endfor %}");
  expect_limit(
      "{% set ns = namespace(l=[1, 2]) %}{% for i in range(40) %}{% set ns.l = ns.l + ns.l %}{% endfor %}"
      "{{ ns.l|sort }}");
}

TEST(JinjaHostile, StringsWithoutEnd) {
  expect_limit("{{ 'a' * 10**9 }}");
  expect_limit("{{ 'a' * 9223372036854775807 }}");
  expect_limit("{{ 'ab' * 9223372036854775807 }}");
  expect_limit("{{ '%999999999d' % 1 }}");
  expect_limit("{{ '%*d' % (999999999, 1) }}");
  expect_limit("{{ '%.999999999f' % 1 }}");
  expect_limit("{{ '%.999d' % 1 }}");
  expect_limit("{{ '{:999999999}'.format(1) }}");
  expect_limit("{{ '{:.999999999f}'.format(1.5) }}");
  expect_limit("{{ 'a'.center(10**10) }}");
  expect_limit("{{ 'a'.ljust(10**10) }}");
  expect_limit("{{ 'a'.zfill(10**10) }}");
  expect_limit("{{ '\t'.expandtabs(10**10) }}");
  expect_limit("{{ 'a'|indent(10**10, true) }}");
  expect_limit("{{ 'a'|center(10**10) }}");
  expect_limit("{{ [[1]]|tojson(indent=10**10) }}");
  expect_limit("{{ ('a' * 10000000).replace('a', 'b' * 100) }}");
  expect_limit("{{ ('a' * 10000000).replace('', 'b' * 100) }}");
  expect_limit("{{ ('a' * 1000000).join(range(9999)|map('string')) }}");
  expect_limit("{{ range(9999)|join('a' * 1000000) }}");
  expect_limit("{{ ('<' * 30000000)|escape }}");
  expect_limit("{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}");
  expect_limit("{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}");
  expect_limit("{% for i in range(99999) %}{{ 'a' * 10000 }}{% endfor %}");
  expect_limit("{% set x %}{% for i in range(99999) %}{{ 'a' * 10000 }}{% endfor %}{% endset %}");
  expect_limit(
      "{% set ns = namespace(l=[]) %}{% for i in range(999) %}{% set ns.l = ns.l + ['a' * 1000000] %}"
      "{% endfor %}");
}

TEST(JinjaHostile, ContainersWithoutEnd) {
  expect_limit("{{ [1] * 10**9 }}");
  expect_limit("{{ [1, 2] * 9223372036854775807 }}");
  expect_limit("{{ (1, 2, 3) * 10**10 }}");
  expect_limit("{{ [1]|batch(10**10, 'x')|list }}");
  expect_limit("{{ [1]|slice(10**10)|list }}");
  expect_limit("{{ ('a' * 30000000)|list }}");
  expect_limit("{{ ('a ' * 9000000).split() }}");
  expect_limit("{{ ('a\\n' * 9000000).splitlines() }}");
  // A value whose printed form doubles with each round.
  const std::string doubling =
      "{% set ns = namespace(v=[1]) %}{% for i in range(99) %}{% set ns.v = [ns.v, ns.v] %}{% endfor %}";
  expect_limit(doubling + "{{ ns.v }}");
  expect_limit(doubling + "{{ ns.v|tojson }}");
  expect_limit(doubling +
               "{% set other = namespace(v=[1]) %}{% for i in range(99) %}{% set other.v = [other.v, other.v] %}"
               "{% endfor %}{{ ns.v == other.v }}");
  expect_limit(
      "{% set ns = namespace(v=(1,)) %}{% for i in range(99) %}{% set ns.v = (ns.v, ns.v) %}{% endfor %}"
      "{{ {ns.v: 1} }}");
}

TEST(JinjaHostile, DepthWithoutEnd) {
  expect_limit("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}");
  expect_limit("{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}");
  expect_limit("{% macro m() %}{% call m() %}{% endcall %}{{ caller() }}{% endmacro %}{% call m() %}{% endcall %}");
  expect_limit("{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}");
  expect_limit("{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}");
  expect_limit("{% set ns = namespace() %}{% set ns.me = [ns] %}{{ ns.me|string }}");
  const std::string deep =
      "{% set ns = namespace(v=[]) %}{% for i in range(99999) %}{% set ns.v = [ns.v] %}{% endfor %}";
  expect_limit(deep + "{{ ns.v }}");
  expect_limit(deep + "{{ ns.v|tojson }}");
  expect_limit(deep +
               "{% set other = namespace(v=[]) %}{% for i in range(99999) %}{% set other.v = [other.v] %}"
               "{% endfor %}{{ ns.v == other.v }}");
}

// A long chain of values must also be freed without recursion.
TEST(JinjaHostile, LongChainsAreFreed) {
  const OrderedJson context = OrderedJson::object();
  const std::string chain =
      "{% set ns = namespace(v=none) %}{% for i in range(90000) %}{% set ns.v = namespace(v=ns.v) %}{% endfor %}ok";
  EXPECT_EQ(ChatTemplate(chain).render(context), "ok");
}

TEST(JinjaHostile, DeepSource) {
  for (const std::string& source :
       {"{{ " + repeat("(", 5000) + "1" + repeat(")", 5000) + " }}",
        "{{ " + repeat("[", 5000) + repeat("]", 5000) + " }}", "{{ " + repeat("not ", 5000) + "1 }}",
        "{{ " + repeat("-", 5000) + "1 }}", "{{ 1" + repeat(" + 1", 5000) + " }}", "{{ a" + repeat(".a", 5000) + " }}",
        "{{ a" + repeat("|trim", 5000) + " }}", "{{ 1" + repeat(" if 1 else 1", 5000) + " }}",
        repeat("{% if 1 %}", 5000) + repeat("{% endif %}", 5000), repeat("{% for i in [1] %}", 5000),
        "{% set " + repeat("(", 5000) + "a" + repeat(")", 5000) + " = 1 %}", "{{ " + repeat("{1:", 5000) + " }}",
        "{{ a" + repeat("[a", 5000) + " }}", "{{ a" + repeat("(a", 5000) + " }}"}) {
    SCOPED_TRACE(source.substr(0, 60));
    EXPECT_EQ(failure(source).kind, TemplateErrorKind::kSyntax);
  }
  TemplateLimits limits;
  EXPECT_EQ(failure(std::string(limits.source_bytes + 1, 'x')).kind, TemplateErrorKind::kLimit);
}

TEST(JinjaHostile, IntegersPast64Bits) {
  for (const char* source :
       {"{{ 2**63 }}", "{{ 10**100 }}", "{{ 3**10**9 }}", "{{ 9223372036854775807 + 1 }}",
        "{{ -9223372036854775807 - 2 }}", "{{ 9223372036854775807 * 2 }}", "{{ -(-9223372036854775807 - 1) }}",
        "{{ (-9223372036854775807 - 1)|abs }}", "{{ (-9223372036854775807 - 1) // -1 }}", "{{ 1e300|int }}",
        "{{ ('9' * 30)|int }}", "{{ [9223372036854775807, 1]|sum }}", "{{ 9223372036854775807|round(-1) }}"}) {
    SCOPED_TRACE(source);
    EXPECT_EQ(failure(source).kind, TemplateErrorKind::kRuntime);
  }
  EXPECT_EQ(failure("{{ 9223372036854775808 }}").kind, TemplateErrorKind::kSyntax);
  const OrderedJson none = OrderedJson::object();
  EXPECT_EQ(ChatTemplate("{{ (-9223372036854775807 - 1) % -1 }}").render(none), "0");
  EXPECT_EQ(ChatTemplate("{{ 'abc'[9223372036854775807:] }}|{{ 'abc'[::-9223372036854775807] }}").render(none), "|c");
  EXPECT_EQ(ChatTemplate("{{ [1, 2, 3][-9223372036854775807:9223372036854775807:9223372036854775807] }}").render(none),
            "[1]");
  EXPECT_EQ(ChatTemplate("{{ range(0, 2**60, 2**59)|list|length }}").render(none), "2");
}

TEST(JinjaHostile, Sandbox) {
  for (const char* source :
       {"{{ [].append(1) }}", "{{ {}.update({}) }}", "{{ {}.pop(1) }}", "{{ [].clear() }}", "{{ {}.setdefault(1, 2) }}",
        "{{ ''.__class__.__mro__ }}", "{{ ''['__class__']['x'] }}", "{{ ''|attr('__class__')|attr('x') }}",
        "{{ '{0.__class__.x}'.format(1) }}", "{{ range.__globals__.x }}", "{{ messages.__class__() }}",
        "{{ namespace(_x=1) }}", "{% set ns = namespace() %}{% set ns.__class__ = 1 %}"}) {
    SCOPED_TRACE(source);
    EXPECT_EQ(failure(source).kind, TemplateErrorKind::kSecurity);
  }
  for (const char* source : {"{% include '/etc/passwd' %}", "{% import 'x' as y %}", "{% from 'x' import y %}",
                             "{% extends 'x' %}", "{% block a %}{% endblock %}"}) {
    SCOPED_TRACE(source);
    EXPECT_EQ(failure(source).kind, TemplateErrorKind::kUnsupported);
  }
}

TEST(JinjaHostile, LimitsAreTheCallers) {
  TemplateLimits limits;
  limits.steps = 100;
  EXPECT_NE(failure("{% for i in range(50) %}{{ i }}{% endfor %}", limits).detail.find("100 steps"), std::string::npos);
  limits = {};
  limits.output_bytes = 10;
  EXPECT_NE(failure("0123456789{{ 'x' }}", limits).detail.find("10 bytes"), std::string::npos);
  limits = {};
  limits.string_bytes = 10;
  EXPECT_NE(failure("{{ 'x' * 11 }}", limits).detail.find("limit of 10"), std::string::npos);
  limits = {};
  limits.memory_bytes = 10000;
  EXPECT_NE(failure("{{ [1] * 1000 }}", limits).detail.find("10000 bytes"), std::string::npos);
}

}  // namespace
}  // namespace isobit
