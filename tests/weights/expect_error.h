#pragma once
// Checks an Error by its code and by what its message names.
#include <gtest/gtest.h>

#include <initializer_list>
#include <string>
#include <string_view>

#include "base/error.h"

namespace isobit::test {

template <typename F>
void expect_error(ErrorCode code, std::initializer_list<std::string_view> parts, F&& action) {
  try {
    action();
  } catch (const Error& e) {
    EXPECT_EQ(static_cast<int>(e.code()), static_cast<int>(code)) << e.what();
    for (const std::string_view part : parts) {
      EXPECT_NE(std::string_view(e.what()).find(part), std::string_view::npos) << "'" << part << "' in: " << e.what();
    }
    return;
  }
  ADD_FAILURE() << "no Error was thrown; its message should name '" << (parts.size() > 0 ? *parts.begin() : "") << "'";
}

}  // namespace isobit::test
