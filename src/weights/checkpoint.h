#pragma once
// A model file, opened: metadata and named tensors, as views of the mapped file. Nothing is copied or converted.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "weights/mapped_file.h"
#include "weights/metadata.h"

namespace isobit {

struct Tensor {
  std::string name;
  DType dtype = DType::kU8;
  std::vector<int64_t> shape;  // row-major, outermost first: [rows, columns]; empty: a scalar
  // In the file. GGUF aligns it to general.alignment (at least 8, 32 unless stated), safetensors promises nothing.
  const std::byte* data = nullptr;
  size_t bytes = 0;
  // F8_E4M3: f32 [⌈rows/128⌉, ⌈columns/128⌉] in the file, not aligned; a weight is e4m3 · its block's scale.
  const std::byte* scale = nullptr;
  // Not empty: the file's type, such as "IQ2_XS (GGUF type 17)", is none that can be run. Such a tensor can be listed
  // but not used: dtype says nothing, and data and bytes are 0 when not even the size is known.
  std::string unsupported_type;

  bool supported() const { return unsupported_type.empty(); }
  std::string_view type_name() const {
    return supported() ? dtype_info(dtype).name : std::string_view(unsupported_type);
  }
  int64_t columns() const { return shape.empty() ? 1 : shape.back(); }
  int64_t elements() const;
  int64_t rows() const { return columns() == 0 ? 0 : elements() / columns(); }  // all dimensions but the last
  size_t row_bytes() const { return dtype_bytes(dtype, static_cast<size_t>(columns())); }
};

// The scales of a matrix in F8_E4M3 are the tensor of its name and this.
inline constexpr std::string_view kScaleSuffix = "_scale_inv";

class Checkpoint {
 public:
  // One of the files a model is made of: nearly always the only one.
  struct File {
    std::string name;                   // in its folder, such as "config.json"; "" for a model in one file
    std::span<const std::byte> bytes;   // all of it
    std::span<const std::byte> header;  // what describes the tensors: metadata and table. A text file: all of it
    std::shared_ptr<const MappedFile> mapping;  // null when read from memory
  };
  struct Parts {
    std::string path;    // or a name for messages, when read from memory
    std::string format;  // "GGUF v3"
    Metadata metadata;
    std::vector<Tensor> tensors;             // file order
    std::vector<File> files;                 // what they lie in; text files that describe the model come first
    std::shared_ptr<const void> keep_alive;  // what the views need besides the mappings
  };
  // Throws Error kBadFile for a tensor name that comes twice.
  explicit Checkpoint(Parts parts);
  // Gives up what it was made of.
  Parts take() && { return std::move(parts_); }

  const Metadata& metadata() const { return parts_.metadata; }
  const std::string& path() const { return parts_.path; }
  const std::string& format() const { return parts_.format; }
  size_t file_bytes() const;
  // A text file of a model's folder, such as "config.json".
  std::optional<std::string_view> document(std::string_view name) const;

  // Every tensor in file order, those of unsupported types too (see Tensor::unsupported_type).
  std::span<const Tensor> tensors() const { return parts_.tensors; }
  // The tensor to be used in running: null if there is none of that name. Throws Error kUnsupported if its type cannot
  // be run, naming the type and what can.
  const Tensor* find(std::string_view name) const;
  // As find, and throws Error kBadFile if there is none of that name.
  const Tensor& tensor(std::string_view name) const;

  // Gives back the resident pages of a tensor that was repacked or uploaded; reading it again faults them in. A page
  // that it shares with a neighbour goes too, which costs that neighbour one page fault.
  void release_pages(const Tensor& tensor) const;
  // The same for metadata (the vocabulary) and the table of tensors.
  void release_header_pages() const;
  // The same for all of it: the kernel maps pages around each that is read, so that a file released tensor by tensor
  // keeps some.
  void release_all_pages() const;
  // Starts reading the whole file from disk, without waiting.
  void prefetch() const;

  // The model's name in receipts: 16 hex digits (base/digest.h) over the header's bytes as they stand in the file
  // (metadata, vocabulary, template, tensor names, types, shapes and places), and for each tensor in file order its
  // first and last 512 bytes and six stretches of 512 bytes evenly between (all of it up to 4096 bytes). Costs
  // milliseconds whatever the file's size. It tells models, quantisations, fine-tunes and conversions apart; it does
  // not see damage outside the samples (full_digest does) and is no defence against someone who forges a file. The same
  // weights written by another converter are another digest. Computed on first use and kept; safe to call from several
  // threads.
  const std::string& digest() const;
  // The same digest function over every byte of the file: about 2 GB/s, reads it all. Pages are given back on the way.
  std::string full_digest() const;

 private:
  struct LazyDigest {
    std::once_flag once;
    std::string hex;
  };
  const Tensor* lookup(std::string_view name) const;
  void find_scales();

  Parts parts_;
  std::vector<uint32_t> by_name_;  // indices of parts_.tensors, sorted by name
  std::unique_ptr<LazyDigest> digest_;
};

// "F32, F16, …": the types whose tensors can be run.
std::string supported_type_names();

}  // namespace isobit
