#pragma once
// A running 64-bit digest of bytes (FNV-1a over 8-byte words, then mixed): names a stream of bits in receipts, tests
// and the last line of `isobit run`. Not cryptographic.
#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

namespace isobit {

class Digest {
 public:
  void add(const void* data, size_t bytes) {
    const auto* p = static_cast<const unsigned char*>(data);
    for (; bytes >= 8; p += 8, bytes -= 8) {
      uint64_t word;
      std::memcpy(&word, p, 8);
      mix(word);
    }
    if (bytes > 0) {
      uint64_t word = 0;
      std::memcpy(&word, p, bytes);
      mix(word ^ (static_cast<uint64_t>(bytes) << 56));
    }
  }
  uint64_t value() const {
    uint64_t h = state_;
    h ^= h >> 33;
    h *= 0xff51afd7ed558ccdULL;
    h ^= h >> 33;
    return h;
  }
  std::string hex() const { return fmt::format("{:016x}", value()); }

 private:
  void mix(uint64_t word) {
    state_ = (state_ ^ word) * 0x100000001b3ULL;
    state_ ^= state_ >> 29;
  }
  uint64_t state_ = 0xcbf29ce484222325ULL;
};

}  // namespace isobit
