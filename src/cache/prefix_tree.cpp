#include "cache/prefix_tree.h"

#include <algorithm>

#include "base/digest.h"
#include "base/error.h"

namespace isobit {

PrefixTree::PrefixTree(PagePool& pool, int32_t page_size) : pool_(pool), page_size_(page_size) {
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

void PrefixTree::touch(Node& node) { lru_.splice(lru_.end(), lru_, node.used); }

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

std::vector<PageId> PrefixTree::match(std::span<const int32_t> tokens) {
  const std::vector<Node*> nodes = path(tokens);
  std::vector<PageId> pages;
  for (const Node* n : nodes) {
    pool_.retain(n->page);
    pages.push_back(n->page);
  }
  // Deepest first, so that a leaf is always older than its parent.
  for (auto it = nodes.rbegin(); it != nodes.rend(); ++it) touch(**it);
  return pages;
}

int64_t PrefixTree::matched(std::span<const int32_t> tokens) const { return static_cast<int64_t>(path(tokens).size()); }

void PrefixTree::insert(std::span<const int32_t> tokens, std::span<const PageId> pages) {
  const auto block = static_cast<size_t>(page_size_);
  require(pages.size() * block <= tokens.size() + block - 1, "prefix tree: {} pages of {} for {} tokens", pages.size(),
          page_size_, tokens.size());
  std::vector<Node*> path;
  Node* node = &root_;
  for (size_t i = 0; i < pages.size() && (i + 1) * block <= tokens.size(); i++) {
    const auto part = tokens.subspan(i * block, block);
    Node* next = child(*node, part);
    if (next == nullptr) {
      auto made = std::make_unique<Node>();
      next = made.get();
      next->parent = node;
      next->tokens.assign(part.begin(), part.end());
      next->page = pages[i];
      pool_.retain(next->page);
      next->used = lru_.insert(lru_.end(), next);
      node->children.emplace(hash(part), std::move(made));
      size_++;
    }
    path.push_back(next);
    node = next;
  }
  for (auto it = path.rbegin(); it != path.rend(); ++it) touch(**it);
}

void PrefixTree::remove(Node& leaf) {
  pool_.release(leaf.page);
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

}  // namespace isobit
