#include "cli/cli.h"

int main(int argc, char** argv) { return isobit::cli::run(argc, argv); }
