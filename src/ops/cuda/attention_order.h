#pragma once
// The order in which the clusters of a prefill launch take its tiles, for the kernel's loaders and for the host, which
// chooses between two (attention_plan.h).

namespace isobit::cuda {

// Tiles of a KV head are numbered request by request; within a request later ones have more keys. A turn is one tile of
// one KV head. Turns go from many keys to few, in rounds of one a cluster, to and fro: who had a long one in a round
// has a short one in the next.
class TileOrder {
 public:
  // `tiles` of one KV head. `together`: requests whose tiles are sorted by length as if they were one request's, where
  // all have as many; 1: none. They take whole rounds, so that their keys pass the L2 together.
  constexpr TileOrder(int tiles, int kv_heads, int requests, int together, int clusters)
      : tiles_(tiles),
        kv_heads_(kv_heads),
        requests_(requests),
        together_(tiles % requests == 0 ? together : 1),
        clusters_(clusters),
        part_(together_ == 1 ? tiles * kv_heads : tiles / requests * together * kv_heads),
        part_rounds_((part_ + clusters - 1) / clusters) {}

  constexpr int rounds() const { return part_ == 0 ? 0 : (tiles_ * kv_heads_ + part_ - 1) / part_ * part_rounds_; }

  // The turn of a cluster in a round; -1: none.
  constexpr int turn(int round, int cluster) const {
    const int part = round / part_rounds_, in_part = round % part_rounds_;
    const int place = ((part + in_part) & 1) != 0 ? clusters_ - 1 - cluster : cluster;
    const int turn = in_part * clusters_ + place, before = part * part_;
    const int left = tiles_ * kv_heads_ - before;
    return turn < (part_ < left ? part_ : left) ? before + turn : -1;
  }

  constexpr int head(int turn) const { return turn % kv_heads_; }
  constexpr int tile(int turn) const {
    const int n = turn / kv_heads_;
    if (together_ == 1) return tiles_ - 1 - n;
    const int each = tiles_ / requests_, first = n / (together_ * each) * together_, in_part = n - first * each;
    const int members = together_ < requests_ - first ? together_ : requests_ - first;
    return (first + in_part % members) * each + each - 1 - in_part / members;
  }

 private:
  int tiles_, kv_heads_, requests_, together_, clusters_;
  int part_, part_rounds_;  // turns, and rounds, of the requests sorted together
};

}  // namespace isobit::cuda
