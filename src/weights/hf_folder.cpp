#include "weights/hf_folder.h"

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <map>
#include <set>
#include <utility>

#include "base/error.h"
#include "base/json.h"
#include "base/thread_pool.h"
#include "weights/safetensors.h"
#include "weights/text_checks.h"

namespace isobit {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kIndex = "model.safetensors.index.json";
constexpr std::string_view kSingle = "model.safetensors";

bool is_there(const std::string& folder, std::string_view name) {
  std::error_code ignored;
  return fs::is_regular_file(fs::path(folder) / name, ignored);
}

std::string path_of(const std::string& folder, std::string_view name) { return (fs::path(folder) / name).string(); }

std::string_view text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

Checkpoint::File document(const std::string& folder, std::string_view name) {
  auto mapping = std::make_shared<const MappedFile>(path_of(folder, name));
  if (mapping->bytes().size() > HfFolderLimits::kMaxDocumentBytes) {
    throw fail(ErrorCode::kBadFile, "{}: has {} bytes; the limit is {}. It is no file of a model", mapping->path(),
               mapping->bytes().size(), HfFolderLimits::kMaxDocumentBytes);
  }
  const auto bytes = mapping->bytes();
  return {std::string(name), bytes, bytes, std::move(mapping)};
}

// Tensor names of each shard that an index lists.
std::map<std::string, std::set<std::string>> read_index(const std::string& folder) {
  const MappedFile file(path_of(folder, kIndex));
  const nlohmann::json json = parse_json_file(text_of(file), file.path());
  const auto map = json.find("weight_map");
  if (!json.is_object() || map == json.end() || !map->is_object() || map->empty()) {
    throw fail(ErrorCode::kBadFile, "{}: has no 'weight_map' object; download it again", file.path());
  }
  std::map<std::string, std::set<std::string>> shards;
  for (const auto& [tensor, shard] : map->items()) {
    const std::string name = shard.is_string() ? shard.get<std::string>() : "";
    // A plain name in the folder: nothing outside of it is opened.
    if (name.empty() || name.find('/') != std::string::npos || name == "." || name == "..") {
      throw fail(ErrorCode::kBadFile, "{}: tensor {} is said to be in {}; a file's name in the same folder is needed",
                 file.path(), in_quotes(tensor), in_quotes(name));
    }
    shards[name].insert(tensor);
  }
  if (shards.size() > HfFolderLimits::kMaxShards) {
    throw fail(ErrorCode::kBadFile, "{}: names {} shards; the limit is {}", file.path(), shards.size(),
               HfFolderLimits::kMaxShards);
  }
  return shards;
}

std::map<std::string, std::set<std::string>> find_weights(const std::string& folder) {
  if (is_there(folder, kIndex)) return read_index(folder);
  if (is_there(folder, kSingle)) return {{std::string(kSingle), {}}};
  for (const char* other : {"pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth"}) {
    if (!is_there(folder, other)) continue;
    throw fail(ErrorCode::kUnsupported,
               "{}: the weights are in PyTorch's own format ({}), which can hold programs and is not read; fetch the "
               "model's safetensors, or convert it with transformers' save_pretrained",
               folder, other);
  }
  throw fail(ErrorCode::kNotFound, "{}: has neither {} nor {}; download the model's folder whole", folder, kSingle,
             kIndex);
}

// The index must agree with the shard: every tensor it names is there, and none besides.
void check_shard(const std::string& path, const Checkpoint& shard, const std::set<std::string>& wanted) {
  if (wanted.empty()) return;  // no index
  std::set<std::string> found;
  for (const Tensor& t : shard.tensors()) found.insert(t.name);
  for (const std::string& name : wanted) {
    if (found.contains(name)) continue;
    throw fail(ErrorCode::kBadFile, "{}: tensor {} is missing, which the index says is there; download both again",
               path, in_quotes(name));
  }
  for (const std::string& name : found) {
    if (wanted.contains(name)) continue;
    throw fail(ErrorCode::kBadFile, "{}: tensor {} is not in the index; download both again", path, in_quotes(name));
  }
}

}  // namespace

Checkpoint load_hf_folder(const std::string& folder) {
  if (!is_there(folder, kHfDocuments[0])) {
    throw fail(ErrorCode::kNotFound,
               "{}: is a folder without config.json, so not a model's; name a folder as transformers writes it, or a "
               ".gguf file",
               folder);
  }
  Checkpoint::Parts parts;
  parts.path = folder;
  for (const std::string_view name : kHfDocuments) {
    if (is_there(folder, name)) parts.files.push_back(document(folder, name));
  }
  const auto weights = find_weights(folder);
  const std::vector<std::pair<std::string, std::set<std::string>>> wanted(weights.begin(), weights.end());
  std::vector<std::unique_ptr<Checkpoint>> shards(wanted.size());
  ThreadPool pool(static_cast<int>(std::min<size_t>(wanted.size(), 8)));
  pool.parallel_for(static_cast<int64_t>(wanted.size()), [&](int, int64_t i) {
    const auto at = static_cast<size_t>(i);
    const std::string path = path_of(folder, wanted[at].first);
    if (!is_there(folder, wanted[at].first)) {
      throw fail(ErrorCode::kNotFound, "{}: the shard {} is missing, which {} names; download it", folder,
                 wanted[at].first, kIndex);
    }
    shards[at] = std::make_unique<Checkpoint>(load_safetensors(path));
    check_shard(path, *shards[at], wanted[at].second);
  });
  for (size_t i = 0; i < shards.size(); i++) {
    Checkpoint::Parts shard = std::move(*shards[i]).take();
    std::ranges::move(shard.tensors, std::back_inserter(parts.tensors));
    shard.files.front().name = wanted[i].first;
    parts.files.push_back(std::move(shard.files.front()));
  }
  parts.format = shards.size() == 1 ? "safetensors" : fmt::format("safetensors in {} shards", shards.size());
  return Checkpoint(std::move(parts));
}

}  // namespace isobit
