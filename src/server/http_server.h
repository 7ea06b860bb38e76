#pragma once
// HTTP/1.1 on one thread: connections, limits, timeouts, keep-alive and event streams. Knows nothing of models. Its
// thread runs every handler and callback, so what they share needs no lock; other threads reach it by post().
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace isobit::server {

struct HttpLimits {
  std::chrono::milliseconds header{10'000};      // from a request's first byte to the end of its header
  std::chrono::milliseconds body{60'000};        // to receive the body
  std::chrono::milliseconds idle{75'000};        // between requests on one connection
  std::chrono::milliseconds write{30'000};       // for a write to be taken by the other side
  std::chrono::milliseconds keep_alive{15'000};  // silence in an event stream before a comment is sent
  uint32_t header_bytes = 16 << 10;
  uint64_t body_bytes = 16 << 20;
  size_t waiting_bytes = 8 << 20;  // of a stream whose reader is slower than the model
  int connections = 1024;
};

struct HttpRequest {
  std::string method, path, authorization, body;  // path without the query
  std::string id;                                 // of this request, in logs and in the answer's X-Request-Id
};

using Headers = std::vector<std::pair<std::string, std::string>>;

// The answer to one request, whole or as a stream of server-sent events. Server's thread only.
class HttpReply {
 public:
  virtual ~HttpReply() = default;
  // Once, instead of a stream.
  virtual void send(int status, std::string_view type, std::string body, const Headers& headers) = 0;
  virtual void start_events() = 0;
  virtual void event(std::string_view data) = 0;  // one line
  virtual void end_events() = 0;
  // Called once if the client goes away, or is too slow a reader, before the answer is complete.
  virtual void on_gone(std::function<void()> gone) = 0;
  virtual bool gone() const = 0;
};

class HttpServer {
 public:
  using Handler = std::function<void(HttpRequest&&, const std::shared_ptr<HttpReply>&)>;
  // Called with path, status and seconds when an answer is complete.
  using Observer = std::function<void(const std::string& path, int status, double seconds)>;
  // What the server itself refuses (malformed, too large, too slow, too many): status and message to a body.
  using ErrorBody = std::function<std::string(int status, const std::string& message)>;

  // Listens; port 0: any free one. Throws Error(kIo) that names address and cause.
  HttpServer(const std::string& address, uint16_t port, const HttpLimits& limits, Handler handler, ErrorBody error_body,
             Observer observer);
  ~HttpServer();  // NOLINT(bugprone-exception-escape): see there
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  uint16_t port() const;
  // Serves until stop(), then until open answers are complete or `drain` has passed.
  void run();
  // Any thread: runs the task on the server's thread.
  void post(std::function<void()> task);
  // Any thread. No new connections and requests; `drain` for those under way.
  void stop(std::chrono::milliseconds drain);
  // SIGINT and SIGTERM call this, on the server's thread; a second signal ends the process' wait at once.
  void on_signal(std::function<void()> stopping);
  int connections() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace isobit::server
