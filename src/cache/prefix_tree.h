#pragma once
// Computed pages by the tokens before them. A node is one full page: its tokens, compared whole, and the page that
// holds their keys and values. By the contract a page found here has the bits that computing it again would give, so
// reuse is free.
#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "cache/page_pool.h"

namespace isobit {

class PrefixTree {
 public:
  // page_size: tokens a page. The pool must outlive the tree.
  PrefixTree(PagePool& pool, int32_t page_size);
  ~PrefixTree();  // NOLINT(bugprone-exception-escape): see there
  PrefixTree(const PrefixTree&) = delete;
  PrefixTree& operator=(const PrefixTree&) = delete;

  // The pages of the longest known prefix of tokens, whole pages only, each retained for the caller; marks them used
  // now.
  std::vector<PageId> match(std::span<const int32_t> tokens);

  // How many pages match() would give; marks nothing.
  int64_t matched(std::span<const int32_t> tokens) const;

  // Keeps the computed pages of tokens (pages[i] holds tokens [i·page_size, (i+1)·page_size)); the tree takes a
  // reference of its own on pages that are new to it. Trailing tokens that fill no page are ignored.
  void insert(std::span<const int32_t> tokens, std::span<const PageId> pages);

  // Frees at least `count` pages if it can, least recently used first, never one that a sequence still uses. Returns
  // how many.
  int32_t evict(int32_t count);
  void clear() { evict(static_cast<int32_t>(size_)); }

  int64_t pages() const { return size_; }  // pages the tree holds

 private:
  struct Node;
  using Lru = std::list<Node*>;
  struct Node {
    Node* parent = nullptr;
    std::vector<int32_t> tokens;
    PageId page = -1;
    // Several blocks may share a hash; the tokens decide.
    std::unordered_multimap<uint64_t, std::unique_ptr<Node>> children;
    Lru::iterator used;  // place in lru_
  };

  static uint64_t hash(std::span<const int32_t> block);
  static Node* child(const Node& node, std::span<const int32_t> block);
  std::vector<Node*> path(std::span<const int32_t> tokens) const;
  void touch(Node& node);
  void remove(Node& leaf);

  PagePool& pool_;
  int32_t page_size_;
  Node root_;
  Lru lru_;  // least recently used first; a child is never after its parent's last use
  int64_t size_ = 0;
};

}  // namespace isobit
