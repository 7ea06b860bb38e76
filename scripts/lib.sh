# Shared by the scripts: finds the source tree, installs what is missing. Sourced, not run.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

# ccache: what was built in one checkout serves another. The sanitizers' list is an input that it does not see.
export CCACHE_BASEDIR=$root CCACHE_NOHASHDIR=1 CCACHE_EXTRAFILES=$root/cmake/sanitizers.ignore

say() { if [ -t 2 ]; then printf '\033[1m%s\033[0m\n' "$*" >&2; else printf '%s\n' "$*" >&2; fi; }
die() { printf 'isobit: %s\n' "$*" >&2; exit 1; }

build_packages=(g++ cmake ninja-build ccache pkg-config git python3 python3-pip python3-venv libhwy-dev libfmt-dev libspdlog-dev
                libcli11-dev nlohmann-json3-dev libpcre2-dev libboost1.81-dev)
test_packages=(libgtest-dev libbenchmark-dev)
check_packages=(clang clang-format clang-tidy libclang-rt-14-dev)

# Installs the Debian packages that are missing; asks for nothing when all are there, so that a second run needs no network.
ensure_packages() {
  local missing=() p
  for p in "$@"; do
    [ "$(dpkg-query -W -f='${db:Status-Abbrev}' "$p" 2>/dev/null | cut -c1-2)" = ii ] || missing+=("$p")
  done
  [ ${#missing[@]} -eq 0 ] && return
  command -v apt-get >/dev/null || die "these packages are missing and apt-get is not here to install them: ${missing[*]}"
  local sudo=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "these packages are missing; install them as root: apt-get install ${missing[*]}"
    sudo=(sudo)
  fi
  say "Installing ${missing[*]}"
  "${sudo[@]}" apt-get update -qq
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# configure PRESET [cmake flags…]: once, and again when flags are given or the presets have changed.
configure() {
  local preset=$1
  shift
  if [ ! -f "build/$preset/build.ninja" ] || [ $# -gt 0 ] || [ CMakePresets.json -nt "build/$preset/CMakeCache.txt" ]; then
    cmake --preset "$preset" "$@" >"build-$preset.log" 2>&1 || { mkdir -p build; cat "build-$preset.log" >&2; die "configuring $preset failed"; }
    rm -f "build-$preset.log"
  fi
}

build() {
  local preset=$1
  shift
  cmake --build "build/$preset" --target "${@:-all}" >"build/$preset/build.log" 2>&1 || { tail -n 60 "build/$preset/build.log" >&2; die "the $preset build failed (build/$preset/build.log)"; }
}
