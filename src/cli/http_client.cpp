#include "cli/http_client.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "base/error.h"

namespace isobit::cli {
namespace {

int connect_to(const HttpUrl& url) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  const int error = getaddrinfo(url.host.c_str(), url.port.c_str(), &hints, &found);
  if (error != 0) throw fail(ErrorCode::kIo, "{}: {}; check the --url", url.host, gai_strerror(error));
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, freeaddrinfo);
  for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
    const int s = socket(a->ai_family, a->ai_socktype, a->ai_protocol);
    if (s < 0) continue;
    if (connect(s, a->ai_addr, a->ai_addrlen) == 0) return s;
    close(s);
  }
  throw fail(ErrorCode::kIo, "no server answers at {}:{} ({}); start it, or check the --url", url.host, url.port,
             std::strerror(errno));
}

std::string lower(std::string text) {
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

}  // namespace

HttpUrl parse_url(const std::string& url) {
  constexpr std::string_view kScheme = "http://";
  require(url.starts_with(kScheme), "'{}' is not a URL that can be measured; write http://HOST:PORT", url);
  HttpUrl u;
  const size_t slash = std::min(url.find('/', kScheme.size()), url.size());
  const std::string place = url.substr(kScheme.size(), slash - kScheme.size());
  const size_t colon = place.rfind(':');
  u.host = place.substr(0, colon);
  u.port = colon == std::string::npos ? "80" : place.substr(colon + 1);
  u.base = url.substr(slash);
  while (u.base.ends_with('/')) u.base.pop_back();
  require(!u.host.empty() && !u.port.empty(), "'{}' names no host; write http://HOST:PORT", url);
  return u;
}

HttpAnswer::HttpAnswer(const HttpUrl& url, const std::string& path, const std::string& body, const std::string& api_key)
    : socket_(connect_to(url)) {
  std::string head = fmt::format("{} {}{} HTTP/1.1\r\nHost: {}:{}\r\nConnection: close\r\n",
                                 body.empty() ? "GET" : "POST", url.base, path, url.host, url.port);
  if (!api_key.empty()) head += fmt::format("Authorization: Bearer {}\r\n", api_key);
  if (!body.empty()) head += fmt::format("Content-Type: application/json\r\nContent-Length: {}\r\n", body.size());
  send_all(head + "\r\n" + body);
  const std::string first = header_line();
  if (!first.starts_with("HTTP/1.") || first.size() < 12)
    throw fail(ErrorCode::kIo, "what answers at {}:{} does not speak HTTP", url.host, url.port);
  status_ = std::atoi(first.c_str() + 9);
  for (std::string line = header_line(); !line.empty(); line = header_line())
    chunked_ = chunked_ || lower(line) == "transfer-encoding: chunked";
}

HttpAnswer::~HttpAnswer() { close(socket_); }

void HttpAnswer::send_all(std::string_view text) const {
  while (!text.empty()) {
    const ssize_t n = send(socket_, text.data(), text.size(), MSG_NOSIGNAL);
    if (n <= 0) throw fail(ErrorCode::kIo, "the server closed the connection ({})", std::strerror(errno));
    text.remove_prefix(static_cast<size_t>(n));
  }
}

bool HttpAnswer::receive() {
  std::array<char, 16384> part;
  const ssize_t n = recv(socket_, part.data(), part.size(), 0);
  if (n < 0) throw fail(ErrorCode::kIo, "the connection broke: {}", std::strerror(errno));
  raw_.append(part.data(), static_cast<size_t>(n));
  return n > 0;
}

std::string HttpAnswer::header_line() {
  size_t end = raw_.find("\r\n");
  while (end == std::string::npos) {
    if (!receive()) throw fail(ErrorCode::kIo, "the server closed the connection in mid-answer");
    end = raw_.find("\r\n");
  }
  std::string line = raw_.substr(0, end);
  raw_.erase(0, end + 2);
  return line;
}

bool HttpAnswer::more_body() {
  if (over_) return false;
  if (chunked_ && chunk_left_ == 0) {
    chunk_left_ = std::stoull(header_line(), nullptr, 16);
    over_ = chunk_left_ == 0;
    if (over_) return false;
  }
  if (raw_.empty() && !receive()) {
    over_ = true;
    if (chunked_) throw fail(ErrorCode::kIo, "the server closed the connection in mid-answer");
    return false;
  }
  const size_t n = chunked_ ? std::min(chunk_left_, raw_.size()) : raw_.size();
  body_.append(raw_, 0, n);
  raw_.erase(0, n);
  if (!chunked_) return true;
  chunk_left_ -= n;
  if (chunk_left_ == 0) header_line();  // the end of the chunk
  return true;
}

std::optional<std::string> HttpAnswer::line() {
  size_t end = body_.find('\n');
  while (end == std::string::npos && more_body()) end = body_.find('\n');
  if (end == std::string::npos && body_.empty()) return std::nullopt;
  std::string text = body_.substr(0, end);
  body_.erase(0, end == std::string::npos ? end : end + 1);
  if (text.ends_with('\r')) text.pop_back();
  return text;
}

std::string HttpAnswer::rest() {
  while (more_body()) {
  }
  return std::exchange(body_, {});
}

}  // namespace isobit::cli
