#pragma once
// Names read from a file, before they are trusted.
#include <string>
#include <string_view>

namespace isobit {

// UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing above U+10FFFF.
bool valid_utf8(std::string_view text);

// 'text' for a message: in quotes, every byte that is not printable ASCII as \xNN, cut after `limit` bytes with "…".
std::string in_quotes(std::string_view text, size_t limit = 80);

}  // namespace isobit
