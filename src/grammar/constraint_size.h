#pragma once
// What keeps a constraint's compilation short. xgrammar cannot be interrupted, and few characters can ask it for hours:
// it is told only of what its time is known to stay within seconds for.
#include "grammar/grammar.h"

namespace isobit {

// Throws Error(kInvalidArgument) that names what there is too much of, and the limit.
void check_size(const Constraint& constraint);

}  // namespace isobit
