#include "text/bpe.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "base/error.h"
#include "text/tokenizer_golden.h"

namespace isobit {

namespace {

struct Vocabulary {
  std::vector<std::string> names;
  std::vector<std::string> merges;
  std::unordered_map<std::string_view, int32_t> ids() const {
    std::unordered_map<std::string_view, int32_t> out;
    for (size_t i = 0; i < names.size(); i++) out.emplace(names[i], static_cast<int32_t>(i));
    return out;
  }
  BpeMerger merger(bool ignore_merges = false) const {
    return {ids(), std::vector<bool>(names.size(), true), merges, {.ignore_merges = ignore_merges}};
  }
};

// Random merges over a few letters: overlapping, nested, in no sensible order.
Vocabulary random_vocabulary(std::mt19937_64& random) {
  Vocabulary out;
  out.names = {"a", "b", "c", "d"};
  std::map<std::string, bool> known;
  for (int i = 0; i < 60; i++) {
    const std::string left = out.names[random() % out.names.size()];
    const std::string right = out.names[random() % out.names.size()];
    if (left.size() + right.size() > 12) continue;
    out.merges.push_back(left + " " + right);
    if (known.emplace(left + right, true).second) out.names.push_back(left + right);
  }
  return out;
}

// The rule as it is stated, one merge at a time over the whole piece.
std::vector<int32_t> merge_by_definition(const Vocabulary& vocabulary, const std::string& piece) {
  const auto ids = vocabulary.ids();
  std::map<std::pair<std::string, std::string>, size_t> ranks;
  for (size_t rank = 0; rank < vocabulary.merges.size(); rank++) {
    const std::string& merge = vocabulary.merges[rank];
    const size_t space = merge.find(' ');
    ranks.emplace(std::pair(merge.substr(0, space), merge.substr(space + 1)), rank);
  }
  std::vector<std::string> parts;
  for (const char c : piece) parts.emplace_back(1, c);
  for (;;) {
    size_t best = SIZE_MAX, best_rank = SIZE_MAX;
    for (size_t i = 0; i + 1 < parts.size(); i++) {
      const auto found = ranks.find({parts[i], parts[i + 1]});
      if (found != ranks.end() && found->second < best_rank) {
        best_rank = found->second;
        best = i;
      }
    }
    if (best == SIZE_MAX) break;
    parts[best] += parts[best + 1];
    parts.erase(parts.begin() + static_cast<ptrdiff_t>(best) + 1);
  }
  std::vector<int32_t> out;
  for (const std::string& part : parts) out.push_back(ids.at(part));
  return out;
}

std::vector<int32_t> encode(const BpeMerger& merger, const std::string& piece) {
  BpeMerger::Scratch scratch;
  std::vector<int32_t> out;
  merger.encode(piece, scratch, out);
  return out;
}

std::string vocabulary_error(const Vocabulary& vocabulary) {
  try {
    vocabulary.merger();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kBadFile);
    return error.what();
  }
  return "no error";
}

}  // namespace

TEST(Bpe, ShortAndLongPiecesMergeAsDefined) {
  const uint64_t seed = golden::fresh_seed();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 60; round++) {
    const Vocabulary vocabulary = random_vocabulary(random);
    const BpeMerger merger = vocabulary.merger();
    for (const size_t size : {1, 2, 3, 10, 47, 48, 49, 50, 200}) {
      std::string piece;
      const size_t letters = 1 + random() % 4;
      for (size_t i = 0; i < size; i++) piece += static_cast<char>('a' + random() % letters);
      ASSERT_EQ(encode(merger, piece), merge_by_definition(vocabulary, piece)) << piece;
    }
  }
}

TEST(Bpe, MillionsOfBytesWithoutASplitAreNotQuadratic) {
  const Vocabulary vocabulary{{"a", "b", "aa", "aaaa", "ab"}, {"a b", "a a", "aa aa"}};
  const BpeMerger merger = vocabulary.merger();
  const auto ids = encode(merger, std::string(4'000'000, 'a'));
  EXPECT_EQ(ids.size(), 1'000'000U);
  std::string alternating;
  for (int i = 0; i < 1'000'000; i++) alternating += "ab";
  EXPECT_EQ(encode(merger, alternating), std::vector<int32_t>(1'000'000, 4));
}

TEST(Bpe, AByteWithoutATokenIsDroppedAndItsNeighboursMeet) {
  const Vocabulary vocabulary{{"a", "b", "ab"}, {"a b"}};
  EXPECT_EQ(encode(vocabulary.merger(), "azb"), (std::vector<int32_t>{2}));
  EXPECT_EQ(encode(vocabulary.merger(), "z"), (std::vector<int32_t>{}));
  EXPECT_TRUE(vocabulary.merger().has_byte('a'));
  EXPECT_FALSE(vocabulary.merger().has_byte('z'));
}

TEST(Bpe, IgnoreMergesTakesAWholePieceThatIsAToken) {
  const Vocabulary vocabulary{{"a", "b", "c", "ab", "abc", "\u0120a"}, {"a b"}};
  EXPECT_EQ(encode(vocabulary.merger(false), "abc"), (std::vector<int32_t>{3, 2}));
  EXPECT_EQ(encode(vocabulary.merger(true), "abc"), (std::vector<int32_t>{4}));
  EXPECT_EQ(encode(vocabulary.merger(true), "abca"), (std::vector<int32_t>{3, 2, 0}));
  EXPECT_EQ(encode(vocabulary.merger(true), " a"), (std::vector<int32_t>{5}));
}

TEST(Bpe, BadMergesAreNamed) {
  EXPECT_NE(vocabulary_error({{"a", "b", "ab"}, {"a b", "ab"}}).find("merges[1] = 'ab'"), std::string::npos);
  EXPECT_NE(vocabulary_error({{"a", "b", "ab"}, {"a "}}).find("merges[0]"), std::string::npos);
  EXPECT_NE(vocabulary_error({{"a", "b", "ab"}, {""}}).find("merges[0]"), std::string::npos);
  EXPECT_NE(vocabulary_error({{"a", "b", "ab"}, {"a x"}}).find("'x' is not"), std::string::npos);
  EXPECT_NE(vocabulary_error({{"a", "b"}, {"a b"}}).find("'ab' is not"), std::string::npos);
}

TEST(Bpe, ByteAlphabetIsGpt2s) {
  EXPECT_EQ(decode_byte_level("\u0120the\u010a"), " the\n");
  EXPECT_EQ(decode_byte_level("\u00c3\u00a9"), "\u00e9");
  EXPECT_EQ(decode_byte_level("\u0100\u0143\u0121"), std::string("\0\xAD\x7F", 3));
  EXPECT_EQ(decode_byte_level("a b"), "a b");  // a space is outside the alphabet: the name as it is
  EXPECT_EQ(decode_byte_level("\xFF"), "\xFF");
}

}  // namespace isobit
