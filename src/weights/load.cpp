#include "weights/load.h"

#include <filesystem>

#include "base/error.h"
#include "weights/gguf.h"
#include "weights/hf_folder.h"

namespace isobit {

Checkpoint load_checkpoint(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) return load_hf_folder(path);
  if (path.ends_with(".safetensors") && std::filesystem::exists(path, ignored)) {
    throw fail(ErrorCode::kInvalidArgument,
               "{}: holds a model's weights alone; name its folder, which has config.json and the tokenizer", path);
  }
  return load_gguf(path);
}

}  // namespace isobit
