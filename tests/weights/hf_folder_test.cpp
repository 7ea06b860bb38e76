// Folders as transformers writes them, whole and broken.
#include "weights/hf_folder.h"

#include <gtest/gtest.h>

#include "weights/expect_error.h"
#include "weights/gguf_builder.h"
#include "weights/load.h"

namespace isobit::test {
namespace {

// One F32 tensor of two elements.
std::vector<std::byte> shard(const std::string& tensor, uint8_t fill) {
  Bytes out;
  out.text(R"({")" + tensor + R"(":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})");
  for (int i = 0; i < 8; i++) out.number(fill);
  return out.data();
}

class HfFolder : public ::testing::Test {
 protected:
  void write(std::string_view name, std::string_view text) { folder_.write(name, text); }
  void two_shards() {
    write("config.json", "{}");
    write("model.safetensors.index.json", R"({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})");
    folder_.write("one.safetensors", shard("a", 1));
    folder_.write("two.safetensors", shard("b", 2));
  }
  std::string path() const { return folder_.path().string(); }
  void refused(ErrorCode code, std::initializer_list<std::string_view> parts) {
    expect_error(code, parts, [&] { load_hf_folder(path()); });
  }
  TemporaryFolder folder_;
};

TEST_F(HfFolder, ReadsShardsAndDocuments) {
  two_shards();
  write("tokenizer.json", "[1]");
  const Checkpoint c = load_checkpoint(path());
  EXPECT_EQ(c.format(), "safetensors in 2 shards");
  EXPECT_EQ(c.tensor("b").data[0], std::byte{2});
  EXPECT_EQ(c.document("tokenizer.json"), "[1]");
  EXPECT_EQ(c.document("chat_template.jinja"), std::nullopt);
  const std::string digest = c.digest(), full = c.full_digest();
  write("tokenizer.json", "[2]");  // another tokenizer is another model
  EXPECT_NE(load_hf_folder(path()).digest(), digest);
  EXPECT_NE(load_hf_folder(path()).full_digest(), full);
}

TEST_F(HfFolder, SaysWhatIsMissing) {
  refused(ErrorCode::kNotFound, {path(), "config.json"});
  write("config.json", "{}");
  refused(ErrorCode::kNotFound, {"model.safetensors", "model.safetensors.index.json"});
  write("pytorch_model.bin", "x");
  refused(ErrorCode::kUnsupported, {"pytorch_model.bin", "safetensors"});
  two_shards();
  std::filesystem::remove(folder_.path() / "two.safetensors");
  refused(ErrorCode::kNotFound, {"two.safetensors", "index"});
}

TEST_F(HfFolder, IndexAndShardsMustAgree) {
  two_shards();
  folder_.write("two.safetensors", shard("c", 2));
  refused(ErrorCode::kBadFile, {"two.safetensors", "'b' is missing"});
  write("model.safetensors.index.json", R"({"weight_map": {"a": "one.safetensors"}})");
  folder_.write("one.safetensors", shard("z", 1));
  refused(ErrorCode::kBadFile, {"one.safetensors", "'a'"});
  for (const char* outside : {"../one.safetensors", "/etc/passwd", "", "."}) {
    write("model.safetensors.index.json", std::string(R"({"weight_map": {"a": ")") + outside + "\"}}");
    refused(ErrorCode::kBadFile, {"same folder"});
  }
  for (const char* index :
       {"", "[]", "{}", R"({"weight_map": []})", R"({"weight_map": {"a": 1}})", "{\"weight_map\""}) {
    write("model.safetensors.index.json", index);
    EXPECT_THROW(load_hf_folder(path()), Error) << index;
  }
  write("model.safetensors.index.json", std::string(1000, '[') + std::string(1000, ']'));
  refused(ErrorCode::kBadFile, {"deep"});
}

TEST_F(HfFolder, AFileOfAFolderIsTold) {
  two_shards();
  expect_error(ErrorCode::kInvalidArgument, {"folder"}, [&] { load_checkpoint(path() + "/one.safetensors"); });
}

}  // namespace
}  // namespace isobit::test
