#include "text/chat_template.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

namespace isobit {
namespace {

using OrderedJson = nlohmann::ordered_json;

const std::vector<Message> kTalk = {{"system", "Be kind.", ""}, {"user", "Hi", ""}};

TEST(ChatTemplate, ChatmlIsTheFallback) {
  EXPECT_EQ(ChatTemplate::chatml().render(kTalk, {}),
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  ChatContext context;
  context.add_generation_prompt = false;
  EXPECT_EQ(ChatTemplate::chatml().render(kTalk, context),
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n");
}

TEST(ChatTemplate, ContextReachesTheTemplate) {
  ChatContext context;
  context.bos_token = "<s>";
  context.eos_token = "</s>";
  context.tools_json = R"([{"name": "z", "args": {"b": 1, "a": 2}}])";
  context.documents_json = R"([{"title": "t", "text": "x"}])";
  context.extra_json = R"({"enable_thinking": false, "n": 2.5})";
  const ChatTemplate form(
      "{{ bos_token }}{{ eos_token }}{{ tools|tojson }}{{ documents[0].title }}{{ enable_thinking }}{{ n }}"
      "{{ add_generation_prompt }}{{ messages|length }}");
  // Members keep the order in which they were written.
  EXPECT_EQ(form.render(kTalk, context), "<s></s>[{\"name\": \"z\", \"args\": {\"b\": 1, \"a\": 2}}]tFalse2.5True2");
  EXPECT_EQ(ChatTemplate("{{ tools is none }}{{ documents is none }}").render(kTalk, {}), "TrueTrue");
}

TEST(ChatTemplate, MessagesCarryFurtherFields) {
  const std::vector<Message> talk = {
      {"assistant", "old", R"({"content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]})"},
      {"user", "", R"({"content": [{"type": "text", "text": "part"}]})"}};
  const ChatTemplate form(
      "{% for m in messages %}{{ m.role }}:{{ m.content if m.content is none or m.content is string else "
      "m.content|map(attribute='text')|join }}{% for c in m.tool_calls or [] %}{{ c.function|tojson }}{% endfor %};"
      "{% endfor %}");
  EXPECT_EQ(form.render(talk, {}), "assistant:None{\"name\": \"f\", \"arguments\": {\"x\": 1}};user:part;");
}

TEST(ChatTemplate, RaisedMessageReachesTheCaller) {
  const ChatTemplate form("{{ raise_exception('Only user roles: ' ~ messages[0].role) }}");
  try {
    form.render(kTalk, {});
    FAIL();
  } catch (const TemplateError& error) {
    EXPECT_EQ(error.kind(), TemplateErrorKind::kRaised);
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_EQ(error.detail(), "Only user roles: system");
    EXPECT_NE(std::string(error.what()).find("Only user roles: system"), std::string::npos);
  }
}

TEST(ChatTemplate, ErrorsNameTheLine) {
  auto line_of = [](const std::string& source) {
    try {
      ChatTemplate(source).render(kTalk, {});
    } catch (const TemplateError& error) {
      EXPECT_NE(std::string(error.what()).find("line " + std::to_string(error.line())), std::string::npos);
      return error.line();
    }
    return -1;
  };
  EXPECT_EQ(line_of("a\nb\n{% if %}"), 3);
  EXPECT_EQ(line_of("a\n\n{{ 1 +\n }}"), 4);
  EXPECT_EQ(line_of("{% for x in y %}\n\n{% endif %}"), 3);
  EXPECT_EQ(line_of("{{ 'a\nb' }}\n{{ nope.x }}"), 3);
  EXPECT_EQ(line_of("{% set x = 1 %}\n{% if true %}\n  {{ 1 + 'a' }}\n{% endif %}"), 3);
  EXPECT_EQ(line_of("a\n{# open"), 2);
}

TEST(ChatTemplate, BadJsonIsNamed) {
  ChatContext context;
  context.tools_json = "[{";
  EXPECT_THROW(ChatTemplate::chatml().render(kTalk, context), Error);
  context.tools_json.clear();
  context.extra_json = "[1]";
  EXPECT_THROW(ChatTemplate::chatml().render(kTalk, context), Error);
  const std::vector<Message> talk = {{"user", "x", "nope"}};
  EXPECT_THROW(ChatTemplate::chatml().render(talk, {}), Error);
  EXPECT_THROW(ChatTemplate("{{ x }}").render(OrderedJson::array()), Error);
  EXPECT_THROW(ChatTemplate("{{ x }}").render(OrderedJson{{"x", 18446744073709551615u}}), Error);
  OrderedJson deep = 1;
  for (int i = 0; i < 300; ++i) deep = OrderedJson::array({deep});
  EXPECT_THROW(ChatTemplate("{{ x }}").render(OrderedJson{{"x", deep}}), Error);
}

TEST(ChatTemplate, BytesThatAreNoUtf8PassThrough) {
  const std::vector<Message> talk = {{"user", "a\xff\xc3(\xe2\x82", ""}};
  EXPECT_EQ(ChatTemplate("{{ messages[0].content }}").render(talk, {}), "a\xff\xc3(\xe2\x82");
  EXPECT_EQ(ChatTemplate("{{ messages[0].content|upper|trim }}").render(talk, {}), "A\xff\xc3(\xe2\x82");
  EXPECT_EQ(ChatTemplate("{{ messages[0].content|length }}").render(talk, {}), "6");
}

TEST(ChatTemplate, ClockIsInjected) {
  TemplateOptions options;
  options.clock = [] {
    std::tm now{};
    now.tm_year = 99;
    now.tm_mon = 11;
    now.tm_mday = 31;
    return now;
  };
  EXPECT_EQ(ChatTemplate("{{ strftime_now('%d %B %Y') }}", options).render(kTalk, {}), "31 December 1999");
  EXPECT_EQ(ChatTemplate("{{ strftime_now('%Y')|length }}").render(kTalk, {}), "4");
}

TEST(ChatTemplate, ThreadsShareOneTemplate) {
  const ChatTemplate form(
      "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content|length %}{% endfor %}{{ ns.n "
      "}}");
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&form] {
      for (int i = 0; i < 200; ++i) EXPECT_EQ(form.render(kTalk, {}), "10");
    });
  for (std::thread& thread : threads) thread.join();
}

TEST(ChatTemplate, LongConversationsFitTheLimits) {
  std::vector<Message> talk;
  for (int i = 0; i < 2000; ++i) talk.push_back({i % 2 == 0 ? "user" : "assistant", std::string(2000, 'x'), ""});
  std::ifstream file(ISOBIT_SOURCE_DIR "/tests/text/data/chat_templates/qwen3.jinja");
  const std::string source((std::istreambuf_iterator<char>(file)), {});
  const std::string text = ChatTemplate(source).render(talk, {});
  EXPECT_GT(text.size(), 4'000'000u);
}

}  // namespace
}  // namespace isobit
