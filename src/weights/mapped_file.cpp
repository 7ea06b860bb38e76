#include "weights/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace isobit {
namespace {

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

Error open_error(const std::string& path, int code) {
  if (code == ENOENT || code == ENOTDIR) {
    return fail(ErrorCode::kNotFound, "{}: no such file; check the path, or fetch a model with `isobit pull`", path);
  }
  if (code == EACCES || code == EPERM) {
    return fail(ErrorCode::kIo, "{}: no permission to read it; try `chmod +r` or run as the user who owns it", path);
  }
  return fail(ErrorCode::kIo, "{}: cannot be opened: {}", path, std::strerror(code));
}

int advice_flag(MappedFile::Advice advice) {
  switch (advice) {
    case MappedFile::Advice::kNormal:
      return MADV_NORMAL;
    case MappedFile::Advice::kSequential:
      return MADV_SEQUENTIAL;
    case MappedFile::Advice::kWillNeed:
      return MADV_WILLNEED;
    case MappedFile::Advice::kDontNeed:
      return MADV_DONTNEED;
  }
  return MADV_NORMAL;
}

}  // namespace

MappedFile::MappedFile(std::string path) : path_(std::move(path)) {
  // O_NONBLOCK: opening a FIFO that nobody writes to must not hang.
  const FileDescriptor file(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) throw open_error(path_, errno);
  struct stat info = {};
  if (::fstat(file.get(), &info) != 0) throw open_error(path_, errno);
  if (S_ISDIR(info.st_mode)) {
    throw fail(ErrorCode::kInvalidArgument, "{}: is a directory; name the model file in it", path_);
  }
  if (!S_ISREG(info.st_mode)) {
    throw fail(ErrorCode::kInvalidArgument, "{}: is not a regular file (a pipe or a device?); save the model to a file",
               path_);
  }
  if (info.st_size <= 0) throw fail(ErrorCode::kBadFile, "{}: is empty (0 bytes); download it again", path_);
  size_ = static_cast<size_t>(info.st_size);
  void* mapping = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (mapping == MAP_FAILED) {
    throw fail(ErrorCode::kIo, "{}: cannot map its {} bytes: {}", path_, size_, std::strerror(errno));
  }
  data_ = static_cast<const std::byte*>(mapping);
}

MappedFile::~MappedFile() { ::munmap(const_cast<std::byte*>(data_), size_); }

void MappedFile::advise(size_t offset, size_t count, Advice advice) const {
  if (offset >= size_ || count == 0) return;
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t begin = offset / page * page, end = offset + std::min(count, size_ - offset);
  ::madvise(const_cast<std::byte*>(data_) + begin, end - begin, advice_flag(advice));
}

}  // namespace isobit
