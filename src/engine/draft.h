#pragma once
// Speculation from a sequence's own text: what followed the last tokens where they stood before. And how many guesses a
// sequence is worth.
#include <cstdint>
#include <span>
#include <vector>

namespace isobit {

// Guesses at the tokens to come, a tree: guess i follows its parent, a guess before it, or, where that is -1, the
// text's last token. The first path comes first: parents -1, 0, 1, …; of a chain there is nothing else.
struct Drafts {
  std::vector<int32_t> tokens, parents;

  static Drafts chain(std::vector<int32_t> tokens);
  int32_t size() const { return static_cast<int32_t>(tokens.size()); }
  bool empty() const { return tokens.empty(); }
  void add(int32_t token, int32_t parent);
  // How many belong to the first path.
  int32_t first_path() const;
  bool is_chain() const { return first_path() == size(); }
  // The first guess of `token` behind `parent`; -1: none.
  int32_t child(int32_t parent, int32_t token) const;
  // From the root to guess i, itself included.
  std::vector<int32_t> path(int32_t i) const;
};

// At most `most` tokens that followed the most recent earlier place of the text's longest repeated ending, which has
// between kDraftShortest and kDraftLongest tokens; nothing where even the shortest is new.
std::vector<int32_t> lookup_draft(std::span<const int32_t> tokens, int32_t most);

// The same, and what followed at other such places where it differed: those of longer endings first, then the most
// recent. At most `branches` ways on, no longer than `length`, of `most` guesses in all.
Drafts lookup_tree(std::span<const int32_t> tokens, int32_t length, int32_t most, int32_t branches);

// Steps that are left out, twice as many each time.
class Pause {
 public:
  bool over();  // counts a pause down
  void again();
  void forget() { next_ = 1; }

 private:
  static constexpr int32_t kLongest = 64;
  int32_t left_ = 0, next_ = 1;
};

// How many drafts a sequence is worth: more after a full success, fewer after a failure, and none for a while, ever
// longer, where nothing was right.
class DraftLength {
 public:
  int32_t next();  // of this step; counts a pause down
  // price: of a draft, in steps of the model. Drafts pause where none was right, and where those that were right, the
  // last rounds counting most, do not pay for all that were made.
  void report(int32_t drafted, int32_t accepted, double price = 0);

 private:
  static constexpr int32_t kFirst = 4, kMost = 64;
  static constexpr double kMemory = 0.75;  // of the rounds before
  int32_t length_ = kFirst;
  Pause pause_;
  double gain_ = 0;  // steps
};

// Whether the other paths of a sequence's trees are worth their rows.
class BranchWorth {
 public:
  bool next() { return pause_.over(); }  // in this step; counts a pause down
  // rows: of the other paths. won: tokens accepted beyond those of the first path. price: of a row, in steps.
  void report(int32_t rows, int32_t won, double price);

 private:
  static constexpr double kMemory = 0.75, kPatience = 0.5;
  Pause pause_;
  double gain_ = 0;  // steps
};

constexpr int32_t kDraftShortest = 2, kDraftLongest = 6;

}  // namespace isobit
