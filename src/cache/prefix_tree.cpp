#include "cache/prefix_tree.h"

#include <algorithm>
#include <utility>

#include "base/digest.h"
#include "base/error.h"

namespace isobit {
namespace {

// Puts a page in place of another one of the same tokens.
void exchange_page(PagePool& pool, PageId& page, PageId by) {
  if (page == by) return;
  pool.retain(by);
  pool.release(std::exchange(page, by));
}

}  // namespace

PrefixTree::PrefixTree(PagePool& pool, int32_t page_size, const WindowPages& window)
    : pool_(pool), window_(window), page_size_(page_size) {
  require(page_size > 0, "prefix tree: page_size is {}; it must be positive", page_size);
}

PrefixTree::~PrefixTree() {  // NOLINT(bugprone-exception-escape): remove() throws only for a page that is not held
  while (!lru_.empty()) remove(*lru_.front());  // leaves first: a deep tree must not recurse
}

uint64_t PrefixTree::hash(std::span<const int32_t> block) {
  Digest d;
  d.add(block.data(), block.size_bytes());
  return d.value();
}

PrefixTree::Node* PrefixTree::child(const Node& node, std::span<const int32_t> block) {
  const auto [first, last] = node.children.equal_range(hash(block));
  for (auto it = first; it != last; ++it) {
    if (std::ranges::equal(it->second->tokens, block)) return it->second.get();
  }
  return nullptr;
}

// The nodes of the longest known prefix, the root left out.
std::vector<PrefixTree::Node*> PrefixTree::path(std::span<const int32_t> tokens) const {
  std::vector<Node*> nodes;
  const Node* node = &root_;
  const auto block = static_cast<size_t>(page_size_);
  for (size_t i = 0; i + block <= tokens.size(); i += block) {
    Node* next = child(*node, tokens.subspan(i, block));
    if (next == nullptr) break;
    nodes.push_back(next);
    node = next;
  }
  return nodes;
}

// Of the nodes of a prefix, how many can be gone on from: the last of them must have the window pages that the next
// token sees.
size_t PrefixTree::usable(std::span<Node* const> nodes) const {
  if (window_.pool == nullptr) return nodes.size();
  size_t most = 0, seen = 0;
  for (size_t i = 0; i < nodes.size(); i++) {
    seen = nodes[i]->window >= 0 ? seen + 1 : 0;
    if (seen >= std::min(static_cast<size_t>(window_.reach), i + 1)) most = i + 1;
  }
  return most;
}

// Deepest first, so that a leaf is always older than its parent.
void PrefixTree::touch(std::span<Node* const> nodes) {
  for (auto it = nodes.rbegin(); it != nodes.rend(); ++it) lru_.splice(lru_.end(), lru_, (*it)->used);
}

void PrefixTree::touch_window(Node& node) { window_lru_.splice(window_lru_.end(), window_lru_, node.window_used); }

PrefixTree::Match PrefixTree::match(std::span<const int32_t> tokens) {
  std::vector<Node*> nodes = path(tokens);
  nodes.resize(usable(nodes));
  Match found;
  for (const Node* n : nodes) {
    pool_.retain(n->page);
    found.pages.push_back(n->page);
  }
  touch(nodes);
  if (window_.pool == nullptr) return found;
  found.window.assign(nodes.size(), -1);
  for (size_t i = nodes.size() - std::min(nodes.size(), static_cast<size_t>(window_.reach)); i < nodes.size(); i++) {
    found.window[i] = nodes[i]->window;
    window_.pool->retain(found.window[i]);
    touch_window(*nodes[i]);
  }
  return found;
}

int64_t PrefixTree::matched(std::span<const int32_t> tokens) const {
  return static_cast<int64_t>(usable(path(tokens)));
}

PrefixTree::Node* PrefixTree::add(Node& parent, std::span<const int32_t> block, PageId page) {
  auto made = std::make_unique<Node>();
  Node* node = made.get();
  node->parent = &parent;
  node->tokens.assign(block.begin(), block.end());
  node->page = page;
  pool_.retain(page);
  node->used = lru_.insert(lru_.end(), node);
  parent.children.emplace(hash(block), std::move(made));
  size_++;
  return node;
}

void PrefixTree::give_window(Node& node, PageId page) {
  window_.pool->retain(page);
  node.window = page;
  node.window_used = window_lru_.insert(window_lru_.end(), &node);
}

void PrefixTree::drop_window(Node& node) {
  if (node.window < 0) return;
  window_.pool->release(std::exchange(node.window, -1));
  window_lru_.erase(node.window_used);
}

void PrefixTree::share(std::span<const int32_t> tokens, std::span<PageId> pages, std::span<PageId> window) {
  const auto block = static_cast<size_t>(page_size_);
  require(pages.size() * block <= tokens.size() + block - 1, "prefix tree: {} pages of {} for {} tokens", pages.size(),
          page_size_, tokens.size());
  std::vector<Node*> path;
  Node* node = &root_;
  for (size_t i = 0; i < pages.size() && (i + 1) * block <= tokens.size(); i++) {
    const auto part = tokens.subspan(i * block, block);
    Node* next = child(*node, part);
    if (next == nullptr) next = add(*node, part, pages[i]);
    exchange_page(pool_, pages[i], next->page);
    if (window_.pool != nullptr && window[i] >= 0) {
      if (next->window < 0) give_window(*next, window[i]);
      exchange_page(*window_.pool, window[i], next->window);
      touch_window(*next);
    }
    path.push_back(next);
    node = next;
  }
  touch(path);
}

void PrefixTree::remove(Node& leaf) {
  pool_.release(leaf.page);
  drop_window(leaf);
  lru_.erase(leaf.used);
  size_--;
  auto& siblings = leaf.parent->children;
  const auto [first, last] = siblings.equal_range(hash(leaf.tokens));
  const auto it = std::find_if(first, last, [&](const auto& entry) { return entry.second.get() == &leaf; });
  siblings.erase(it);
}

int32_t PrefixTree::evict(int32_t count) {
  int32_t freed = 0;
  // A leaf is older than its ancestors, so one pass from the old end meets every leaf before its parent.
  for (auto it = lru_.begin(); it != lru_.end() && freed < count;) {
    Node& node = **it++;
    if (!node.children.empty() || pool_.references(node.page) > 1) continue;
    remove(node);
    freed++;
  }
  return freed;
}

int32_t PrefixTree::evict_window(int32_t count) {
  int32_t freed = 0;
  for (auto it = window_lru_.begin(); it != window_lru_.end() && freed < count;) {
    Node& node = **it++;
    if (window_.pool->references(node.window) > 1) continue;
    drop_window(node);
    freed++;
  }
  return freed;
}

}  // namespace isobit
