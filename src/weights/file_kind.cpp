#include "weights/file_kind.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace isobit {
namespace {

bool starts_with_ignoring_case(std::string_view text, std::string_view lower) {
  if (text.size() < lower.size()) return false;
  return std::equal(lower.begin(), lower.end(), text.begin(), [](char want, char have) {
    return want == (have >= 'A' && have <= 'Z' ? have - 'A' + 'a' : have);
  });
}

std::string_view skip_space(std::string_view text) {
  const size_t start = text.find_first_not_of(" \t\r\n");
  return start == std::string_view::npos ? std::string_view() : text.substr(start);
}

// Eight bytes of header length, then the header: JSON.
bool is_safetensors(std::string_view text) {
  if (text.size() < 10 || text[8] != '{') return false;
  uint64_t length;
  std::memcpy(&length, text.data(), sizeof length);
  return length >= 2 && length <= text.size() - 8;
}

}  // namespace

std::string_view describe_file_kind(std::span<const std::byte> file) {
  using namespace std::string_view_literals;
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  const std::string_view word = skip_space(text.substr(0, 256));
  if (text.starts_with("PK\x03\x04")) {
    return "It looks like a zip archive (a Python wheel, or a PyTorch .pt): unpack it, or convert the model to GGUF";
  }
  if (text.starts_with("\x1f\x8b")) return "It looks like a gzip file: unpack it first";
  if (starts_with_ignoring_case(word, "<!doctype") || starts_with_ignoring_case(word, "<html")) {
    return "It looks like a web page (HTML): the download gave a page (a log-in or an error?) in place of the file";
  }
  if (text.starts_with("version https://git-lfs")) {
    return "It is a Git LFS pointer, not the file itself: run `git lfs pull`";
  }
  if (is_safetensors(text))
    return "It looks like a safetensors file: convert it with llama.cpp's convert_hf_to_gguf.py";
  if (text.size() > 2 && text[0] == '\x80' && text[1] >= 2 && text[1] <= 5) {
    return "It looks like a Python pickle (an old PyTorch .bin): convert the model to GGUF";
  }
  if (text.starts_with("lmgg") || text.starts_with("fmgg") || text.starts_with("tjgg") || text.starts_with("algg")) {
    return "It looks like a model of llama.cpp's formats before GGUF (2023): fetch or convert it as GGUF";
  }
  if (text.starts_with("GGUF")) return "It is a GGUF file";
  if (word.starts_with("{")) return "It looks like JSON (a config or an index?): name the weights' file";
  if (text.find_first_not_of("\0"sv) == std::string_view::npos) {
    return "It holds nothing but zeros: the download was cut off; fetch it again";
  }
  return "";
}

}  // namespace isobit
