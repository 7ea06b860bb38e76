#pragma once
// What a file that is not the expected one looks like, so that a message can say so.
#include <cstddef>
#include <span>
#include <string_view>

namespace isobit {

// A phrase with its remedy, such as "It looks like a web page (HTML): …"; empty if the bytes look like nothing known.
std::string_view describe_file_kind(std::span<const std::byte> file);

}  // namespace isobit
