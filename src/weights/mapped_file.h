#pragma once
// A file mapped read-only. Pages are read from disk when touched and can be given back at any time.
#include <cstddef>
#include <span>
#include <string>

namespace isobit {

class MappedFile {
 public:
  enum class Advice {
    kNormal,
    kSequential,  // will be read once, front to back
    kWillNeed,    // start reading it from disk now
    kDontNeed,    // give its resident pages back; a later read faults them in again with the same bytes
  };

  // Throws Error naming the path and the remedy: kNotFound (missing), kInvalidArgument (a directory or a device), kIo
  // (no permission, or the system's own words), kBadFile (empty).
  explicit MappedFile(std::string path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  // Page-aligned. Cutting the file short while it is mapped makes a later read fail with SIGBUS: replace model files by
  // renaming, never in place.
  std::span<const std::byte> bytes() const { return {data_, size_}; }

  // A hint: never changes a byte, and failing is no error. The range is widened to whole pages and clipped to the file.
  void advise(size_t offset, size_t count, Advice advice) const;

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace isobit
