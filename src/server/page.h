#pragma once
#include <string_view>

namespace isobit::server {

// The page at /: a conversation, and the proof of its answers. One file, nothing from elsewhere.
std::string_view page_html();
// What a browser may do with it: talk to this server, nothing else.
inline constexpr std::string_view kPagePolicy =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

}  // namespace isobit::server
