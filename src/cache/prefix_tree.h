#pragma once
// Computed pages by the tokens before them. A node is one full page: its tokens, compared whole, and the page that
// holds their keys and values. By the contract a page found here has the bits that computing it again would give, so
// reuse is free.
//
// Layers with a window may have pages of their own (WindowPages): then a node holds one of those too, as long as nobody
// needs the place. A prefix can be gone on from where the window pages that its next token sees are all there.
#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "cache/page_pool.h"

namespace isobit {

// The pages of layers with a window.
struct WindowPages {
  PagePool* pool = nullptr;
  int32_t reach = 0;  // whole pages before a page's first token that this token may see
};

class PrefixTree {
 public:
  // page_size: tokens a page. The pools must outlive the tree.
  PrefixTree(PagePool& pool, int32_t page_size, const WindowPages& window = {});
  ~PrefixTree();  // NOLINT(bugprone-exception-escape): see there
  PrefixTree(const PrefixTree&) = delete;
  PrefixTree& operator=(const PrefixTree&) = delete;

  struct Match {
    std::vector<PageId> pages;
    std::vector<PageId> window;  // as many, -1 where the next token sees nothing of them; empty without window pages
  };
  // The pages of the longest prefix of tokens that can be gone on from, whole pages only, each retained for the caller;
  // marks them used now.
  Match match(std::span<const int32_t> tokens);

  // How many pages match() would give; marks nothing.
  int64_t matched(std::span<const int32_t> tokens) const;

  // Keeps the computed pages of tokens (pages[i] holds tokens [i·page_size, (i+1)·page_size), and window[i] those of
  // the layers with a window, or is -1); the tree takes a reference of its own on pages that are new to it. Where it
  // has a page of the same tokens, the caller's is released and the tree's, retained, takes its place: so whoever uses
  // a page of the tree uses all before it, and what nobody uses can always be evicted. Trailing tokens that fill no
  // page are ignored.
  void share(std::span<const int32_t> tokens, std::span<PageId> pages, std::span<PageId> window = {});

  // Frees at least `count` pages if it can, least recently used first, never one that a sequence still uses. Returns
  // how many.
  int32_t evict(int32_t count);
  // The same for window pages. What is left of their nodes is of use to longer prefixes alone.
  int32_t evict_window(int32_t count);
  void clear() { evict(static_cast<int32_t>(size_)); }

  int64_t pages() const { return size_; }  // pages the tree holds
  int64_t window_pages() const { return static_cast<int64_t>(window_lru_.size()); }

 private:
  struct Node;
  using Lru = std::list<Node*>;
  struct Node {
    Node* parent = nullptr;
    std::vector<int32_t> tokens;
    PageId page = -1, window = -1;
    // Several blocks may share a hash; the tokens decide.
    std::unordered_multimap<uint64_t, std::unique_ptr<Node>> children;
    Lru::iterator used;         // place in lru_
    Lru::iterator window_used;  // place in window_lru_, with a window page
  };

  static uint64_t hash(std::span<const int32_t> block);
  static Node* child(const Node& node, std::span<const int32_t> block);
  std::vector<Node*> path(std::span<const int32_t> tokens) const;
  size_t usable(std::span<Node* const> nodes) const;
  Node* add(Node& parent, std::span<const int32_t> block, PageId page);
  void give_window(Node& node, PageId page);
  void drop_window(Node& node);
  void touch(std::span<Node* const> nodes);
  void touch_window(Node& node);
  void remove(Node& leaf);

  PagePool& pool_;
  WindowPages window_;
  int32_t page_size_;
  Node root_;
  Lru lru_;         // least recently used first; a child is never after its parent's last use
  Lru window_lru_;  // likewise, those with a window page; of one prefix the latest tokens last: they are seen longest
  int64_t size_ = 0;
};

}  // namespace isobit
