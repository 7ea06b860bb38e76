#pragma once
#include "cli/cli.h"

namespace isobit::cli {

void add_bench_decoder(CLI::App& bench, Command& command);
void add_bench_serve(CLI::App& bench, Command& command);
void add_bench_throughput(CLI::App& bench, Command& command);

}  // namespace isobit::cli
