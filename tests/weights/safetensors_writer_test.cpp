// What the writer writes, the reader reads; and the scales of block-scaled tensors.
#include "weights/safetensors_writer.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "weights/safetensors.h"

namespace isobit {
namespace {

namespace fs = std::filesystem;

class SafetensorsWriter : public ::testing::Test {
 protected:
  SafetensorsWriter()
      : folder_(fs::temp_directory_path() /
                ("isobit-writer-" + std::to_string(::testing::UnitTest::GetInstance()->random_seed()) + "-" +
                 ::testing::UnitTest::GetInstance()->current_test_info()->name())) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~SafetensorsWriter() override { fs::remove_all(folder_); }

  std::string path() const { return (folder_ / "model.safetensors").string(); }

  fs::path folder_;
};

// Every byte of the tensor is `value`.
TensorToWrite filled(std::string name, DType type, std::vector<int64_t> shape, int value) {
  return {std::move(name), type, std::move(shape),
          [value](std::span<std::byte> to) { std::memset(to.data(), value, to.size()); }};
}

TEST_F(SafetensorsWriter, TheReaderFindsEveryTensorAligned) {
  write_safetensors(path(), {filled("a", DType::kF8E4M3, {3, 5}, 1), filled("a_scale_inv", DType::kF32, {1, 1}, 2),
                             filled("b", DType::kBF16, {7}, 3), filled("c", DType::kF32, {2, 3}, 4)});
  const Checkpoint file = load_safetensors(path());
  ASSERT_EQ(file.tensors().size(), 4u);
  const auto check = [&](const char* name, DType type, std::vector<int64_t> shape, int value) {
    const Tensor& t = file.tensor(name);
    EXPECT_EQ(t.dtype, type) << name;
    EXPECT_EQ(t.shape, shape) << name;
    for (size_t i = 0; i < t.bytes; i++) ASSERT_EQ(static_cast<int>(t.data[i]), value) << name;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(t.data) % dtype_info(type).block_bytes, 0u) << name;
  };
  check("a", DType::kF8E4M3, {3, 5}, 1);
  check("b", DType::kBF16, {7}, 3);
  check("c", DType::kF32, {2, 3}, 4);
  EXPECT_EQ(file.tensor("a").scale, file.tensor("a_scale_inv").data);
}

TEST_F(SafetensorsWriter, MatricesWithoutTheirScalesAreRefusedByName) {
  write_safetensors(path(), {filled("alone", DType::kF8E4M3, {130, 4}, 1), filled("few", DType::kF8E4M3, {130, 4}, 1),
                             filled("few_scale_inv", DType::kF32, {1, 1}, 0)});
  const Checkpoint file = load_safetensors(path());
  for (const char* name : {"alone", "few"}) {
    try {
      (void)file.tensor(name);
      FAIL() << name;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kUnsupported);
      EXPECT_NE(std::string(e.what()).find("2 × 1 scales"), std::string::npos) << e.what();
    }
  }
}

TEST_F(SafetensorsWriter, AFailureLeavesNoFile) {
  TensorToWrite broken = filled("a", DType::kF32, {4}, 0);
  broken.make = [](std::span<std::byte>) { throw Error(ErrorCode::kBadFile, "no bytes"); };
  EXPECT_THROW(write_safetensors(path(), {broken}), Error);
  EXPECT_TRUE(fs::is_empty(folder_));
  try {
    write_safetensors((folder_ / "none" / "model.safetensors").string(), {filled("a", DType::kF32, {4}, 0)});
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kIo);
  }
}

}  // namespace
}  // namespace isobit
