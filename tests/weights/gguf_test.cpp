// Good files read right; broken and hostile files get an error that names the field, its value and the limit.
#include "weights/gguf.h"

#include <gtest/gtest.h>

#include <limits>

#include "weights/expect_error.h"
#include "weights/gguf_builder.h"

namespace isobit::test {
namespace {

constexpr uint64_t kHuge = std::numeric_limits<uint64_t>::max();

// A small valid file with every kind of value.
GgufBuilder small() {
  GgufBuilder b;
  b.text("general.architecture", "llama").u32("llama.block_count", 2);
  b.number("a.u8", ValueType::kU8, uint8_t{200}).number("a.i8", ValueType::kI8, int8_t{-100});
  b.number("a.u16", ValueType::kU16, uint16_t{60000}).number("a.i16", ValueType::kI16, int16_t{-30000});
  b.number("a.i32", ValueType::kI32, int32_t{-7}).number("a.u64", ValueType::kU64, kHuge);
  b.number("a.i64", ValueType::kI64, std::numeric_limits<int64_t>::min());
  b.number("a.f32", ValueType::kF32, 1e-5f).number("a.f64", ValueType::kF64, 0.1);
  b.number("a.bool", ValueType::kBool, uint8_t{1});
  b.array("v.tokens", ValueType::kString, 3, Bytes().text("a").text("").text("\xc4\xa0x"));
  b.array("v.types", ValueType::kI32, 2, Bytes().number<int32_t>(-1).number<int32_t>(5));
  b.array("v.bytes", ValueType::kU8, 3, Bytes().number<uint8_t>(1).number<uint8_t>(255).number<uint8_t>(0));
  b.array("v.scores", ValueType::kF32, 2, Bytes().number(0.5f).number(-2.0f));
  b.array("v.flags", ValueType::kBool, 2, Bytes().number<uint8_t>(1).number<uint8_t>(0));
  b.array("v.empty", ValueType::kString, 0, Bytes());
  b.array("v.nested", ValueType::kArray, 1, Bytes().number<uint32_t>(4).number<uint64_t>(1).number<uint32_t>(9));
  b.f32("norm", {4}, {1, 2, 3, 4});
  b.tensor({"matrix", 3, {32, 3}, std::vector<std::byte>(60), {}});
  b.f32("last", {2, 3}, {1, 2, 3, 4, 5, 6});
  return b;
}

void expect_bad(const GgufBuilder& builder, std::initializer_list<std::string_view> parts,
                ErrorCode code = ErrorCode::kBadFile) {
  const std::vector<std::byte> file = builder.build();
  expect_error(code, parts, [&] { parse_gguf(file, "model.gguf"); });
  expect_error(code, {"model.gguf: "}, [&] { parse_gguf(file, "model.gguf"); });
}

TEST(Gguf, ReadsMetadataOfEveryType) {
  const std::vector<std::byte> file = small().build();
  const Checkpoint c = parse_gguf(file);
  const Metadata& m = c.metadata();
  EXPECT_EQ(c.format(), "GGUF v3");
  EXPECT_EQ(m.entries().size(), 19u);
  EXPECT_EQ(m.entries()[0].key, "general.architecture");
  EXPECT_EQ(m.get_string("general.architecture"), "llama");
  EXPECT_EQ(m.get_u32("llama.block_count"), 2u);
  EXPECT_EQ(m.get_u32("a.u8"), 200u);
  EXPECT_EQ(m.get_i32("a.i8"), -100);
  EXPECT_EQ(m.get_u64("a.u16"), 60000u);
  EXPECT_EQ(m.get_i64("a.i16"), -30000);
  EXPECT_EQ(m.get_i32("a.i32"), -7);
  EXPECT_EQ(m.get_u64("a.u64"), kHuge);
  EXPECT_EQ(m.get_i64("a.i64"), std::numeric_limits<int64_t>::min());
  EXPECT_EQ(m.get_f32("a.f32"), 1e-5f);
  EXPECT_EQ(m.get_f64("a.f64"), 0.1);
  EXPECT_TRUE(m.get_bool("a.bool"));
  const auto tokens = m.get_strings("v.tokens");
  ASSERT_EQ(tokens.size(), 3u);
  EXPECT_EQ(tokens[0], "a");
  EXPECT_EQ(tokens[1], "");
  EXPECT_EQ(tokens[2], "\xc4\xa0x");
  EXPECT_EQ(m.get_i64s("v.types"), (std::vector<int64_t>{-1, 5}));
  EXPECT_EQ(m.get_i64s("v.bytes"), (std::vector<int64_t>{1, 255, 0}));
  EXPECT_EQ(m.get_f32s("v.scores"), (std::vector<float>{0.5f, -2.0f}));
  EXPECT_EQ(m.get_bools("v.flags"), (std::vector<bool>{true, false}));
  EXPECT_TRUE(m.get_strings("v.empty").empty());
  EXPECT_TRUE(m.has("v.nested"));
  EXPECT_EQ(m.find("v.nested")->type_name(), "array of array");
  EXPECT_EQ(m.find_u32("absent"), std::nullopt);
  EXPECT_FALSE(m.find_strings("absent").has_value());
}

TEST(Gguf, DisplaysValuesForPeople) {
  const std::vector<std::byte> file = small().text("esc", "a\x1b[31m\n").build();
  const Checkpoint c = parse_gguf(file);
  const auto shown = [&](std::string_view key) { return c.metadata().find(key)->display(); };
  EXPECT_EQ(shown("general.architecture"), "'llama'");
  EXPECT_EQ(shown("esc"), "'a\\x1b[31m\\x0a'");  // a file cannot drive the terminal
  EXPECT_EQ(shown("a.f32"), "1e-05");
  EXPECT_EQ(shown("a.bool"), "true");
  EXPECT_EQ(shown("a.i8"), "-100");
  EXPECT_EQ(shown("v.types"), "[-1, 5]");
  EXPECT_EQ(shown("v.flags"), "[true, false]");
  EXPECT_EQ(shown("v.nested"), "[… 1 in all]");
  EXPECT_EQ(c.metadata().find("v.tokens")->display(3), "['a', … 3 in all]");
}

TEST(Gguf, ReadsTensorsAsViewsInFileOrder) {
  const std::vector<std::byte> file = small().build();
  const Checkpoint c = parse_gguf(file);
  ASSERT_EQ(c.tensors().size(), 3u);
  EXPECT_EQ(c.tensors()[1].name, "matrix");
  const Tensor& matrix = c.tensor("matrix");
  EXPECT_EQ(matrix.dtype, DType::kQ4_1);
  EXPECT_EQ(matrix.shape, (std::vector<int64_t>{3, 32}));  // outermost first
  EXPECT_EQ(matrix.bytes, 60u);
  EXPECT_EQ(matrix.rows(), 3);
  EXPECT_EQ(matrix.row_bytes(), 20u);
  EXPECT_EQ(c.tensor("last").shape, (std::vector<int64_t>{3, 2}));
  const Tensor& norm = c.tensor("norm");
  EXPECT_GE(norm.data, file.data());
  EXPECT_LT(norm.data, file.data() + file.size());
  float third;
  std::memcpy(&third, norm.data + 8, 4);
  EXPECT_EQ(third, 3.0f);
  EXPECT_EQ(c.find("absent"), nullptr);
  expect_error(ErrorCode::kBadFile, {"'absent'", "missing", "3 tensors"}, [&] { c.tensor("absent"); });
}

TEST(Gguf, ReadsVersion2AndOtherAlignments) {
  GgufBuilder b = small();
  b.version = 2;
  b.alignment = 4096;
  b.u32("general.alignment", 4096);
  const std::vector<std::byte> file = b.build();
  const Checkpoint c = parse_gguf(file);
  EXPECT_EQ(c.format(), "GGUF v2");
  EXPECT_EQ((c.tensor("matrix").data - file.data()) % 4096, 0);
}

TEST(Gguf, ReadsAFileWithoutTensorsOrPairs) {
  const std::vector<std::byte> empty = GgufBuilder().build();
  EXPECT_EQ(parse_gguf(empty).tensors().size(), 0u);
  const std::vector<std::byte> words = GgufBuilder().text("a", "b").build();
  EXPECT_EQ(parse_gguf(words).metadata().get_string("a"), "b");
}

TEST(Gguf, ReadsAScalarTensor) {
  const std::vector<std::byte> file = GgufBuilder().f32("s", {}, {7}).build();
  const Checkpoint c = parse_gguf(file);
  EXPECT_EQ(c.tensor("s").elements(), 1);
  EXPECT_EQ(c.tensor("s").bytes, 4u);
}

TEST(Gguf, SurvivesBeingMoved) {
  const std::vector<std::byte> file = small().build();
  Checkpoint a = parse_gguf(file);
  const std::string digest = a.digest();
  const Checkpoint b = std::move(a);
  EXPECT_EQ(b.tensor("matrix").name, "matrix");
  EXPECT_EQ(b.metadata().get_u32("llama.block_count"), 2u);
  EXPECT_EQ(b.digest(), digest);
}

// ---- metadata getters
// ------------------------------------------------------------------------------------------------

TEST(GgufMetadata, SaysWhatIsMissingOrOfAnotherType) {
  const std::vector<std::byte> file = small().build();
  const Checkpoint c = parse_gguf(file, "m.gguf");
  const Metadata& m = c.metadata();
  constexpr ErrorCode kBad = ErrorCode::kBadFile;
  expect_error(kBad, {"m.gguf: ", "'llama.none'", "missing"}, [&] { m.get_u32("llama.none"); });
  expect_error(kBad, {"'absent'", "missing"}, [&] { m.get_strings("absent"); });
  expect_error(kBad, {"'general.architecture'", "string = 'llama'", "u32 is wanted"},
               [&] { m.get_u32("general.architecture"); });
  expect_error(kBad, {"'a.f32'", "f32 = 1e-05", "i64 is wanted"}, [&] { m.get_i64("a.f32"); });
  expect_error(kBad, {"'a.u8'", "u8 = 200", "f32 or f64 is wanted"}, [&] { m.get_f32("a.u8"); });
  expect_error(kBad, {"'a.u8'", "u8 = 200", "bool is wanted"}, [&] { m.find_bool("a.u8"); });
  expect_error(kBad, {"'a.bool'", "bool = true", "u32 is wanted"}, [&] { m.find_u32("a.bool"); });
  expect_error(kBad, {"'v.types'", "array of i32", "string is wanted"}, [&] { m.get_string("v.types"); });
  expect_error(kBad, {"'v.types'", "array of i32", "array of string is wanted"}, [&] { m.get_strings("v.types"); });
  expect_error(kBad, {"'v.tokens'", "array of string", "array of integers is wanted"}, [&] { m.get_i64s("v.tokens"); });
  expect_error(kBad, {"'v.nested'", "array of array", "array of f32 or f64"}, [&] { m.get_f32s("v.nested"); });
  expect_error(kBad, {"'a.u8'", "u8 = 200", "array of bool is wanted"}, [&] { m.get_bools("a.u8"); });
  expect_error(kBad, {"'v.bytes'", "array of u8", "array of bool is wanted"}, [&] { m.get_bools("v.bytes"); });
}

TEST(GgufMetadata, SaysWhenANumberDoesNotFit) {
  GgufBuilder b = small();
  b.array("v.big", ValueType::kU64, 1, Bytes().number(kHuge));
  const std::vector<std::byte> file = b.build();
  const Checkpoint c = parse_gguf(file);
  const Metadata& m = c.metadata();
  constexpr ErrorCode kBad = ErrorCode::kBadFile;
  expect_error(kBad, {"'a.i32'", "-7", "u32 (0 to 4294967295)"}, [&] { m.get_u32("a.i32"); });
  expect_error(kBad, {"'a.u64'", "18446744073709551615", "i64", "9223372036854775807"}, [&] { m.get_i64("a.u64"); });
  expect_error(kBad, {"'a.i64'", "i32 (-2147483648 to 2147483647)"}, [&] { m.get_i32("a.i64"); });
  expect_error(kBad, {"'v.big'", "element 0", "18446744073709551615"}, [&] { m.get_i64s("v.big"); });
}

TEST(GgufMetadata, RefusesAKeyThatComesTwice) {
  expect_bad(small().u32("llama.block_count", 3), {"'llama.block_count'", "comes twice"});
}

// ---- header
// ----------------------------------------------------------------------------------------------------------

TEST(GgufHostile, Version) {
  GgufBuilder b = small();
  b.version = 1;
  expect_bad(b, {"version 1", "2 and 3"}, ErrorCode::kUnsupported);
  b.version = 4;
  expect_bad(b, {"version 4", "2 and 3", "update"}, ErrorCode::kUnsupported);
  b.version = 0;
  expect_bad(b, {"version 0", "2 and 3"}, ErrorCode::kUnsupported);
  b.version = 0x03000000;
  expect_bad(b, {"big-endian", "gguf-convert-endian"}, ErrorCode::kUnsupported);
}

TEST(GgufHostile, Magic) {
  struct Case {
    std::string_view bytes, looks;
  };
  using namespace std::string_view_literals;
  const Case cases[] = {
      {"PK\x03\x04......", "zip archive"},
      {"<!DOCTYPE html><html>", "HTML"},
      {"\n  <HTML lang=en>", "HTML"},
      {"\x02\0\0\0\0\0\0\0{}"sv, "safetensors"},
      {"\x80\x02}q\x00."sv, "pickle"},
      {"\x1f\x8b\x08"sv, "gzip"},
      {"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"},
      {"tjgg\x03\0\0\0"sv, "before GGUF"},
      {"{\"model_type\": \"llama\"}", "JSON"},
      {"\0\0\0\0\0\0\0\0\0"sv, "zeros"},
      {"some words", "Name a .gguf file"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(std::string(c.looks));
    expect_error(ErrorCode::kBadFile, {"m.gguf: is not a GGUF file", c.looks},
                 [&] { parse_gguf(std::as_bytes(std::span(c.bytes)), "m.gguf"); });
  }
  expect_error(ErrorCode::kBadFile, {"is truncated", "3 bytes"},
               [] { parse_gguf(std::as_bytes(std::span("GGUF", 3)), "m.gguf"); });
}

TEST(GgufHostile, CutAtEveryByte) {
  const std::vector<std::byte> file = small().build();
  for (size_t size = 0; size < file.size(); ++size) {
    SCOPED_TRACE(size);
    // An exact copy, so that a sanitizer sees a read past the end.
    const std::vector<std::byte> cut(file.begin(), file.begin() + static_cast<ptrdiff_t>(size));
    try {
      parse_gguf(cut, "m.gguf");
      ADD_FAILURE() << "cut to " << size << " of " << file.size() << " bytes, and read";
    } catch (const Error& e) {
      const std::string_view message = e.what();
      EXPECT_TRUE(message.find("truncated") != message.npos || size < 4) << message;
    }
  }
}

TEST(GgufHostile, Counts) {
  GgufBuilder b = small();
  b.tensor_count = kHuge;
  expect_bad(b, {"number of tensors", "18446744073709551615", "1048576"});
  b.tensor_count = 1000000;
  expect_bad(b, {"number of tensors", "1000000", "25 bytes each", "left"});
  b.tensor_count.reset();
  b.pair_count = uint64_t{1} << 40;
  expect_bad(b, {"number of metadata pairs", "1099511627776", "1048576"});
  b.pair_count = 1000000;
  expect_bad(b, {"number of metadata pairs", "1000000", "14 bytes each", "left"});
}

// ---- metadata
// --------------------------------------------------------------------------------------------------------

TEST(GgufHostile, Keys) {
  expect_bad(GgufBuilder().u32("", 1).u32("x", 1), {"metadata pair 1 of 2", "key is empty"});
  expect_bad(GgufBuilder().u32(std::string(65536, 'k'), 1), {"key", "65536 bytes", "65535"});
  for (const char* text : {"a\xff", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82", "\x80"}) {
    expect_bad(GgufBuilder().u32(text, 1).u32("padding", 1), {"key", "\\x", "not UTF-8"});
  }
  const std::vector<std::byte> good = GgufBuilder().u32("caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80", 1).build();
  EXPECT_EQ(parse_gguf(good).metadata().get_u32("caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80"), 1u);
  GgufBuilder b;  // a key that claims to be longer than the file
  b.pair_count = 1;
  std::vector<std::byte> file = b.build();
  const Bytes tail = Bytes().number(kHuge).number(0u).number(0u);
  file.insert(file.end(), tail.data().begin(), tail.data().end());
  expect_error(ErrorCode::kBadFile, {"length of the key", "18446744073709551615", "8 bytes"},
               [&] { parse_gguf(file); });
}

TEST(GgufHostile, Values) {
  expect_bad(GgufBuilder().pair("k", static_cast<ValueType>(13), Bytes().number(0u)),
             {"'k'", "type is 13", "limit is 12"});
  expect_bad(GgufBuilder().number("k", ValueType::kBool, uint8_t{2}), {"'k'", "bool is 2", "limit is 1"});
  expect_bad(GgufBuilder().pair("k", ValueType::kString, Bytes().number(uint64_t{9}).number(1.0)),
             {"'k'", "length of the value is 9", "only 8 bytes"});
  expect_bad(GgufBuilder().pair("k", ValueType::kU64, Bytes().number(1u)), {"'k'", "the value needs 8 bytes", "ends"});
}

TEST(GgufHostile, Arrays) {
  const auto numbers = [](uint64_t count) {
    return GgufBuilder().array("k", ValueType::kU32, count, Bytes().number(1u).number(2u));
  };
  expect_bad(numbers(3), {"'k'", "number of elements is 3", "4 bytes each", "only 8 bytes"});
  expect_bad(numbers(kHuge), {"'k'", "18446744073709551615"});
  expect_bad(numbers(kHuge / 4 + 2), {"'k'", "number of elements"});  // its size in bytes wraps to 4
  expect_bad(GgufBuilder().array("k", ValueType::kString, 1000, Bytes().text("a").text("b")),
             {"'k'", "number of elements is 1000", "8 bytes each"});
  expect_bad(GgufBuilder().array("k", ValueType::kString, 2, Bytes().text("a").number(kHuge)),
             {"'k'", "string of the array is 18446744073709551615"});
  expect_bad(GgufBuilder().array("k", static_cast<ValueType>(99), 1, Bytes().number(1u)),
             {"'k'", "element type is 99", "limit is 12"});
  expect_bad(GgufBuilder().array("k", ValueType::kBool, 2, Bytes().number<uint8_t>(0).number<uint8_t>(7)),
             {"'k'", "bool is 7"});
  Bytes nested;
  for (int depth = 0; depth < 100; ++depth) nested.number<uint32_t>(9).number<uint64_t>(1);
  expect_bad(GgufBuilder().array("k", ValueType::kArray, 1, nested), {"'k'", "nested 5 deep", "limit is 4"});
}

TEST(GgufHostile, Alignment) {
  for (const uint32_t value : {0u, 1u, 4u, 24u, 33u, 0x80000000u}) {
    SCOPED_TRACE(value);
    expect_bad(GgufBuilder().u32("general.alignment", value),
               {"general.alignment", std::to_string(value), "power of two"});
  }
  expect_bad(GgufBuilder().text("general.alignment", "32"), {"general.alignment", "string = '32'", "u32 is wanted"});
}

// ---- tensors
// ---------------------------------------------------------------------------------------------------------

TEST(GgufHostile, TensorNames) {
  expect_bad(GgufBuilder().f32("", {1}, {1}), {"tensor 1 of 1", "name is empty"});
  expect_bad(GgufBuilder().f32("a\xff", {1}, {1}), {"name 'a\\xff'", "not UTF-8"});
  expect_bad(GgufBuilder().f32(std::string(1025, 'n'), {1}, {1}), {"name", "1025 bytes", "1024"});
  expect_bad(GgufBuilder().f32("twin", {1}, {1}).f32("x", {1}, {1}).f32("twin", {1}, {1}),
             {"tensor name 'twin'", "comes twice"});
}

TEST(GgufHostile, Dimensions) {
  const auto shaped = [](std::vector<uint64_t> d) { return GgufBuilder().f32("t", std::move(d), {1, 2, 3, 4}); };
  expect_bad(shaped({1, 1, 1, 1, 1}), {"'t'", "number of dimensions is 5", "limit is 4"});
  expect_bad(shaped({4, 0}), {"'t'", "dimension 1 is 0"});
  expect_bad(shaped({kHuge}), {"'t'", "dimension 0 is 18446744073709551615", "9223372036854775807"});
  expect_bad(shaped({uint64_t{1} << 32, uint64_t{1} << 32}), {"'t'", "dimension 1 is 4294967296"});
  expect_bad(shaped({uint64_t{1} << 62}), {"'t'", "offset 0 and 18446744073709551615 bytes"});  // times 4 would wrap
  expect_bad(shaped({5}), {"'t'", "20 bytes reach past the end", "16 bytes"});
}

TEST(GgufHostile, RowsThatAreNotWholeBlocks) {
  const auto quantized = [](uint32_t type, std::vector<uint64_t> d) {
    return GgufBuilder().tensor({"q", type, std::move(d), std::vector<std::byte>(4096), {}});
  };
  expect_bad(quantized(3, {33}), {"'q'", "row has 33 elements", "Q4_1", "multiple of 32"});
  expect_bad(quantized(12, {128, 2}), {"'q'", "row has 128 elements", "Q4_K", "multiple of 256"});
  expect_bad(quantized(8, {}), {"'q'", "row has 1 elements", "Q8_0"});
}

TEST(GgufHostile, Offsets) {
  const auto at = [](uint64_t offset) {
    return GgufBuilder().tensor({"t", 0, {8}, std::vector<std::byte>(32), offset}).f32("u", {8}, std::vector<float>(8));
  };
  expect_bad(at(4), {"'t'", "offset is 4", "alignment 32"});
  expect_bad(at(64), {"'t'", "offset 64 and 32 bytes", "64 bytes"});
  expect_bad(at(96), {"'t'", "offset 96"});
  expect_bad(at(kHuge - 31), {"'t'", "offset 18446744073709551584"});  // offset + bytes wraps to 0
  expect_bad(at(32), {"tensor 't' overlaps tensor 'u'", "ends at byte", "begins at"});
}

TEST(GgufHostile, OverlapOfATensorInsideAnother) {
  GgufBuilder b;
  b.f32("big", {64}, std::vector<float>(64));
  b.tensor({"inner", 0, {8}, {}, uint64_t{96}});
  expect_bad(b, {"'big' overlaps tensor 'inner'"});
}

TEST(Gguf, ListsUnsupportedTypesAndRefusesThemOnlyWhenNeeded) {
  GgufBuilder b;
  b.f32("norm", {4}, {1, 2, 3, 4});
  b.tensor({"iq", 17, {256, 2}, std::vector<std::byte>(148), {}});
  b.tensor({"odd", 77, {5}, std::vector<std::byte>(64), {}});
  b.tensor({"ints", 26, {2}, std::vector<std::byte>(8), {}});
  const std::vector<std::byte> file = b.build();
  const Checkpoint c = parse_gguf(file, "m.gguf");
  ASSERT_EQ(c.tensors().size(), 4u);
  EXPECT_EQ(c.tensors()[0].type_name(), "F32");
  EXPECT_EQ(c.tensors()[1].type_name(), "IQ2_XS (GGUF type 17)");
  EXPECT_EQ(c.tensors()[1].bytes, 148u);
  EXPECT_EQ(c.tensors()[2].type_name(), "unknown (GGUF type 77)");
  EXPECT_EQ(c.tensors()[2].data, nullptr);
  EXPECT_EQ(c.tensor("norm").elements(), 4);
  constexpr ErrorCode kUnsupported = ErrorCode::kUnsupported;
  expect_error(kUnsupported, {"m.gguf: ", "'iq'", "IQ2_XS (GGUF type 17)", "Supported: F32, F16, BF16, Q4_0", "Q6_K"},
               [&] { c.tensor("iq"); });
  expect_error(kUnsupported, {"'odd'", "type 77"}, [&] { c.find("odd"); });
  expect_error(kUnsupported, {"'ints'", "I32"}, [&] { c.tensor("ints"); });
}

TEST(Gguf, SaysThatAPartOfASplitModelMustBeJoined) {
  const std::vector<std::byte> file = GgufBuilder().number("split.count", ValueType::kU16, uint16_t{5}).build();
  const Checkpoint c = parse_gguf(file);
  expect_error(ErrorCode::kUnsupported, {"'output.weight'", "5 parts", "llama-gguf-split --merge"},
               [&] { c.tensor("output.weight"); });
}

TEST(Gguf, ReadsEverySupportedTypeAtItsSize) {
  const std::pair<uint32_t, DType> types[] = {{0, DType::kF32},   {1, DType::kF16},  {30, DType::kBF16},
                                              {2, DType::kQ4_0},  {3, DType::kQ4_1}, {6, DType::kQ5_0},
                                              {7, DType::kQ5_1},  {8, DType::kQ8_0}, {12, DType::kQ4_K},
                                              {13, DType::kQ5_K}, {14, DType::kQ6_K}};
  for (const auto& [number, dtype] : types) {
    const size_t bytes = dtype_bytes(dtype, 512);
    const std::vector<std::byte> file =
        GgufBuilder().tensor({"t", number, {256, 2}, std::vector<std::byte>(bytes), {}}).build();
    const Checkpoint c = parse_gguf(file);
    EXPECT_EQ(c.tensor("t").dtype, dtype);
    EXPECT_EQ(c.tensor("t").bytes, bytes);
    expect_bad(GgufBuilder().tensor({"t", number, {256, 2}, std::vector<std::byte>(bytes - 1), {}}), {"'t'", "past"});
  }
}

// ---- digest
// ----------------------------------------------------------------------------------------------------------

TEST(CheckpointDigest, MovesWithHeaderAndSampledData) {
  const auto digests = [](const std::vector<std::byte>& file) {
    const Checkpoint c = parse_gguf(file);
    return std::pair(c.digest(), c.full_digest());
  };
  GgufBuilder b = small();
  b.f32("wide", {4096}, std::vector<float>(4096, 1.0f));
  const std::vector<std::byte> file = b.build();
  const auto [sampled, full] = digests(file);
  EXPECT_EQ(sampled.size(), 16u);
  EXPECT_EQ(digests(file), std::pair(sampled, full));

  std::vector<std::byte> last = file;
  last.back() ^= std::byte{1};  // the wide tensor's last byte: always sampled
  EXPECT_NE(digests(last).first, sampled);
  EXPECT_NE(digests(last).second, full);

  std::vector<std::byte> between = file;
  between[file.size() - 16384 + 1000] ^= std::byte{1};  // after the first sample, before the second
  EXPECT_EQ(digests(between).first, sampled);
  EXPECT_NE(digests(between).second, full);

  const std::vector<std::byte> other = b.u32("more", 1).build();
  EXPECT_NE(digests(other).first, sampled);
}

}  // namespace
}  // namespace isobit::test
