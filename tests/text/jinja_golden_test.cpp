// Equal to Jinja2: every expression and every template of data/ against what Jinja2 made of it
// (make_template_goldens.py).
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "text/chat_template.h"

namespace isobit {
namespace {

using OrderedJson = nlohmann::ordered_json;

std::string read(const std::string& name) {
  std::ifstream file(std::string(ISOBIT_SOURCE_DIR "/tests/text/data/") + name, std::ios::binary);
  EXPECT_TRUE(file.good()) << name;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

const char* name_of(TemplateErrorKind kind) {
  switch (kind) {
    case TemplateErrorKind::kSyntax:
      return "syntax";
    case TemplateErrorKind::kUnsupported:
      return "unsupported";
    case TemplateErrorKind::kRaised:
      return "raised";
    case TemplateErrorKind::kUndefined:
      return "undefined";
    case TemplateErrorKind::kSecurity:
      return "security";
    case TemplateErrorKind::kRuntime:
      return "runtime";
    case TemplateErrorKind::kLimit:
      return "limit";
  }
  return "?";
}

// 9 July 2025, 14:05:07, a Wednesday: the clock of the golden script.
TemplateOptions golden_options() {
  TemplateOptions options;
  options.clock = [] {
    std::tm now{};
    now.tm_year = 125;
    now.tm_mon = 6;
    now.tm_mday = 9;
    now.tm_hour = 14;
    now.tm_min = 5;
    now.tm_sec = 7;
    now.tm_wday = 3;
    now.tm_yday = 189;
    return now;
  };
  return options;
}

OrderedJson render(const std::string& source, const OrderedJson& context) {
  try {
    return {{"out", ChatTemplate(source, golden_options()).render(context)}};
  } catch (const TemplateError& error) {
    return {{"error", name_of(error.kind())}, {"detail", error.detail()}};
  }
}

void expect_golden(const OrderedJson& golden, const OrderedJson& mine) {
  if (golden.contains("out")) {
    ASSERT_TRUE(mine.contains("out")) << "Jinja2 renders it; here: " << mine.dump();
    EXPECT_EQ(mine["out"].get<std::string>(), golden["out"].get<std::string>());
    return;
  }
  ASSERT_TRUE(mine.contains("error")) << "Jinja2 answers " << golden.dump() << "; here: " << mine.dump();
  EXPECT_EQ(mine["error"], golden["error"]) << mine.dump();
  // The messages of an undefined value and of raise_exception reach the user, so they are compared too.
  if (golden.contains("detail")) {
    EXPECT_EQ(mine["detail"], golden["detail"]);
  }
}

TEST(JinjaGolden, Expressions) {
  const OrderedJson goldens = OrderedJson::parse(read("template_goldens.json"));
  ASSERT_GT(goldens["expressions"].size(), 1000u);
  for (const OrderedJson& golden : goldens["expressions"]) {
    const std::string source = golden["t"].get<std::string>();
    SCOPED_TRACE(source);
    expect_golden(golden, render(source, goldens["context"]));
  }
}

TEST(JinjaGolden, ChatTemplates) {
  const OrderedJson goldens = OrderedJson::parse(read("template_goldens.json"));
  const OrderedJson conversations = OrderedJson::parse(read("conversations.json"));
  ASSERT_GE(goldens["chats"].size(), 20u);
  for (const auto& [name, rendered] : goldens["chats"].items()) {
    const std::string source = read("chat_templates/" + name + ".jinja");
    ASSERT_EQ(rendered.size(), conversations.size());
    for (const auto& [conversation, golden] : rendered.items()) {
      SCOPED_TRACE(name + " / " + conversation);
      OrderedJson context = {{"bos_token", "<s>"}, {"eos_token", "</s>"}};
      for (const auto& [key, value] : conversations[conversation].items()) context[key] = value;
      expect_golden(golden, render(source, context));
    }
  }
}

}  // namespace
}  // namespace isobit
