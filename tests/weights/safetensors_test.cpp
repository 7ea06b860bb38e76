// Good safetensors files read right; broken and hostile ones refused by name.
#include "weights/safetensors.h"

#include <gtest/gtest.h>

#include "weights/expect_error.h"
#include "weights/gguf_builder.h"

namespace isobit::test {
namespace {

std::vector<std::byte> file_of(std::string_view header, size_t data_bytes) {
  Bytes out;
  out.text(header);
  for (size_t i = 0; i < data_bytes; ++i) out.number(static_cast<uint8_t>(i));
  return out.data();
}

constexpr std::string_view kGood = R"({"__metadata__":{"format":"pt","caf\u00e9":"x"},)"
                                   R"("b":{"dtype":"BF16","shape":[2,2],"data_offsets":[8,16]},)"
                                   R"("a":{"data_offsets":[0,8],"shape":[2],"dtype":"F32"},)"
                                   R"("none":{"dtype":"F16","shape":[0,3],"data_offsets":[16,16]},)"
                                   R"("ids":{"dtype":"I64","shape":[],"data_offsets":[16,24]},)"
                                   R"("new":{"dtype":"F4","shape":[3],"data_offsets":[24,26]}}   )";

TEST(Safetensors, ReadsAFile) {
  const std::vector<std::byte> file = file_of(kGood, 26);
  const Checkpoint c = parse_safetensors(file, "m.safetensors");
  EXPECT_EQ(c.format(), "safetensors");
  EXPECT_EQ(c.metadata().get_string("format"), "pt");
  EXPECT_EQ(c.metadata().get_string("caf\xc3\xa9"), "x");
  ASSERT_EQ(c.tensors().size(), 5u);
  EXPECT_EQ(c.tensors()[0].name, "a");  // the data's order
  EXPECT_EQ(c.tensor("a").dtype, DType::kF32);
  EXPECT_EQ(c.tensor("b").dtype, DType::kBF16);
  EXPECT_EQ(c.tensor("b").shape, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(std::to_integer<int>(c.tensor("b").data[0]), 8);
  EXPECT_EQ(c.tensor("none").bytes, 0u);
  EXPECT_EQ(c.tensor("none").elements(), 0);
  expect_error(ErrorCode::kUnsupported, {"m.safetensors: ", "'ids'", "I64 (safetensors)", "Supported: F32"},
               [&] { c.tensor("ids"); });
  expect_error(ErrorCode::kUnsupported, {"'new'", "'F4'"}, [&] { c.tensor("new"); });
}

TEST(Safetensors, ReadsFromDiskAndOutlivesTheParser) {
  const TemporaryFolder folder;
  const Checkpoint c = load_safetensors(folder.write("m.safetensors", file_of(kGood, 26)));
  EXPECT_EQ(c.metadata().get_string("format"), "pt");
  c.release_pages(c.tensor("b"));
  EXPECT_EQ(std::to_integer<int>(c.tensor("b").data[7]), 15);
  EXPECT_EQ(c.digest().size(), 16u);
}

TEST(Safetensors, RefusesBrokenHeaders) {
  struct Case {
    std::string_view header;
    size_t data;
    std::vector<std::string_view> parts;
  };
  const Case cases[] = {
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})", 8, {"JSON is broken"}},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}} x)", 8, {"JSON is broken"}},
      {"{\"a\xff\":1}", 0, {"JSON is broken"}},
      {R"({"a":5})", 0, {"'a'", "the number 5"}},
      {R"({"a":"F32"})", 0, {"'a'", "the text 'F32'"}},
      {R"({"a":[1]})", 0, {"'a'", "an array"}},
      {R"({"a":{"dtype":{"x":1}}})", 0, {"'a'", "an object", "'dtype'"}},
      {R"({"a":{"shape":[[1]]}})", 0, {"'a'", "an array", "'shape'"}},
      {R"({"a":{"shape":[-1]}})", 0, {"'a'", "the number -1"}},
      {R"({"a":{"shape":[1.5]}})", 0, {"'a'", "the number 1.5"}},
      {R"({"a":{"shape":[1,1,1,1,1,1,1,1,1]}})", 0, {"'a'", "more than 8 numbers"}},
      {R"({"a":{"shape":[1],"shape":[2]}})", 0, {"'a'", "an array", "'shape'"}},
      {R"({"a":{"extra":"x"}})", 0, {"'a'", "the text 'x'", "'extra'"}},
      {R"({"":{}})", 0, {"the name ''", "1 to 1024"}},
      {R"({"__metadata__":{"k":1}})", 0, {"'__metadata__'", "the number 1"}},
      {R"({"__metadata__":{"k":"a","k":"b"}})", 0, {"metadata key 'k'", "twice"}},
      {R"({"__metadata__":{},"__metadata__":{}})", 0, {"'__metadata__'", "second"}},
      {R"({"a":{"dtype":"F32","shape":[2]}})", 8, {"'a'", "two 'data_offsets' are needed"}},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", 8, {"'a'", "two 'data_offsets'"}},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8, {"'a'", "8 to 0"}},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,12]}})", 8, {"'a'", "0 to 12", "8 bytes"}},
      {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8, {"'a'", "8 bytes", "3 elements of F32"}},
      {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}})", 8, {"'a'", "elements"}},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387904,1],"data_offsets":[0,0]}})", 0, {"'a'", "0 bytes"}},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8, {"'a'", "a hole"}},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 8, {"ends at byte 4", "8 bytes"}},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       8,
       {"'b'", "an overlap"}},
      {R"({"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})",
       0,
       {"'a'", "twice"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(std::string(c.header));
    const std::vector<std::byte> file = file_of(c.header, c.data);
    for (const std::string_view part : c.parts) {
      expect_error(ErrorCode::kBadFile, {"m.safetensors: ", part}, [&] { parse_safetensors(file, "m.safetensors"); });
    }
  }
}

TEST(Safetensors, RefusesBrokenLengths) {
  constexpr ErrorCode kBad = ErrorCode::kBadFile;
  const std::vector<std::byte> huge = Bytes().number(~uint64_t{0}).raw("{}", 2).data();
  expect_error(kBad, {"18446744073709551615", "100000000"}, [&] { parse_safetensors(huge); });
  const std::vector<std::byte> longer = Bytes().number(uint64_t{3}).raw("{}", 2).data();
  expect_error(kBad, {"length is 3", "only 2 bytes", "truncated"}, [&] { parse_safetensors(longer); });
  const std::vector<std::byte> tiny = Bytes().number(uint64_t{0}).data();
  expect_error(kBad, {"8 bytes", "at least 10"}, [&] { parse_safetensors(tiny); });
  const std::vector<std::byte> gguf = GgufBuilder().u32("a", 1).build();
  expect_error(kBad, {"not a safetensors file", "It is a GGUF file"}, [&] { parse_safetensors(gguf); });
  const std::string deep = "{" + std::string(100000, '[');
  const std::vector<std::byte> nested = file_of(deep, 0);
  expect_error(kBad, {"JSON is broken"}, [&] { parse_safetensors(nested); });
}

TEST(Safetensors, CutAtEveryByte) {
  const std::vector<std::byte> file = file_of(kGood, 26);
  for (size_t size = 0; size < file.size(); ++size) {
    const std::vector<std::byte> cut(file.begin(), file.begin() + static_cast<ptrdiff_t>(size));
    EXPECT_THROW(parse_safetensors(cut), Error) << size;
  }
}

}  // namespace
}  // namespace isobit::test
