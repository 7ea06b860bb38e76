// Files that cannot be opened, each with its own message; pages given back and read again.
#include "weights/mapped_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <numeric>

#include "weights/expect_error.h"
#include "weights/gguf.h"
#include "weights/gguf_builder.h"

namespace isobit::test {
namespace {

// root may read everything: act as "nobody" for a while.
class WithoutPrivileges {
 public:
  WithoutPrivileges() : ok_(geteuid() != 0 || seteuid(65534) == 0) {}
  ~WithoutPrivileges() {
    if (geteuid() != getuid()) ok_ = seteuid(getuid()) == 0;
  }
  WithoutPrivileges(const WithoutPrivileges&) = delete;
  WithoutPrivileges& operator=(const WithoutPrivileges&) = delete;
  bool ok() const { return ok_; }

 private:
  bool ok_;
};

TEST(MappedFile, SaysWhyItCannotOpen) {
  const TemporaryFolder folder;
  const std::string missing = (folder.path() / "missing.gguf").string();
  expect_error(ErrorCode::kNotFound, {missing, "no such file", "isobit pull"}, [&] { load_gguf(missing); });
  expect_error(ErrorCode::kInvalidArgument, {"is a directory", "name the model file"},
               [&] { load_gguf(folder.path().string()); });
  const std::string empty = folder.write("empty.gguf", "");
  expect_error(ErrorCode::kBadFile, {empty, "is empty (0 bytes)", "download"}, [&] { load_gguf(empty); });
  expect_error(ErrorCode::kNotFound, {"no such file"}, [&] { load_gguf(empty + "/x"); });
  const std::string pipe = (folder.path() / "pipe").string();
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  expect_error(ErrorCode::kInvalidArgument, {"not a regular file"}, [&] { load_gguf(pipe); });
  expect_error(ErrorCode::kIo, {"cannot be opened", "too long"}, [&] { load_gguf(std::string(5000, 'x')); });
}

TEST(MappedFile, SaysThatItMayNotRead) {
  const TemporaryFolder folder;
  const std::string file = folder.write("secret.gguf", "GGUF");
  ASSERT_EQ(chmod(folder.path().c_str(), 0755), 0);
  ASSERT_EQ(chmod(file.c_str(), 0000), 0);
  const WithoutPrivileges nobody;
  if (!nobody.ok()) GTEST_SKIP() << "this user can read every file and cannot become another";
  expect_error(ErrorCode::kIo, {file, "no permission", "chmod"}, [&] { load_gguf(file); });
}

TEST(MappedFile, MessagesOpenWithThePath) {
  const TemporaryFolder folder;
  const std::string page = folder.write("page.gguf", "<!DOCTYPE html>");
  expect_error(ErrorCode::kBadFile, {page + ": is not a GGUF file", "HTML"}, [&] { load_gguf(page); });
}

TEST(MappedFile, PagesGivenBackReadTheSame) {
  const TemporaryFolder folder;
  std::vector<float> values(100000);
  std::iota(values.begin(), values.end(), 0.0f);
  GgufBuilder b;
  b.f32("a", {1000, 100}, values).f32("b", {4}, {1, 2, 3, 4});
  const std::vector<std::byte> bytes = b.build();
  const Checkpoint c = load_gguf(folder.write("m.gguf", bytes));
  EXPECT_EQ(c.file_bytes(), bytes.size());
  c.prefetch();
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(std::memcmp(c.tensor("a").data, values.data(), 400000), 0);
    c.release_pages(c.tensor("a"));
    c.release_pages(c.tensor("b"));
  }
  EXPECT_EQ(c.digest(), parse_gguf(bytes).digest());
  EXPECT_EQ(c.full_digest(), parse_gguf(bytes).full_digest());
}

}  // namespace
}  // namespace isobit::test
