// Prints the contract's digest. Compiled by tests/numerics/flags_test.cpp with several compilers and flags.
#include <cstdio>

#include "../contract_digest.h"

int main() { std::printf("%016llx\n", static_cast<unsigned long long>(isobit::vectors::contract_digest())); }
