#include "server/http_server.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <deque>
#include <optional>
#include <random>
#include <set>

#include "base/error.h"
#include "base/log.h"

namespace isobit::server {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::ip::tcp;
using Code = boost::system::error_code;
using HttpClock = std::chrono::steady_clock;

}  // namespace

namespace detail {

class Connection;

struct Shared {
  asio::io_context context{1};
  HttpLimits limits;
  HttpServer::Handler handler;
  HttpServer::ErrorBody error_body;
  HttpServer::Observer observer;
  std::set<std::shared_ptr<Connection>> open;
  bool stopping = false;
  uint64_t requests = 0;
  uint32_t run = std::random_device{}();  // so that ids differ between runs
};

// One client. Reads a request, hands it out, writes the answer, reads the next. One timer says what the connection is
// waiting for and how long it may take.
class Connection final : public HttpReply, public std::enable_shared_from_this<Connection> {
 public:
  Connection(Shared& shared, tcp::socket socket)
      : shared_(shared), socket_(std::move(socket)), timer_(shared.context), ping_(shared.context) {}

  void start() {
    Code ignored;
    socket_.set_option(tcp::no_delay(true), ignored);
    read();
  }

  // For more connections than there may be.
  void refuse() {
    state_ = State::kAnswering;
    keep_alive_ = false;
    answer_error(503, "too many connections; try again later");
  }

  bool idle() const { return state_ == State::kIdle; }

  void close() {
    if (state_ == State::kClosed) return;
    const bool answering = state_ == State::kAnswering;
    state_ = State::kClosed;
    timer_.cancel();
    ping_.cancel();
    Code ignored;
    socket_.shutdown(tcp::socket::shutdown_both, ignored);
    socket_.close(ignored);
    const auto self = shared_from_this();  // outlives being erased
    shared_.open.erase(self);
    if (answering) finish_observed(499);
    if (auto gone = std::exchange(gone_, nullptr); gone && answering) gone();
  }

  void send(int status, std::string_view type, std::string body, const Headers& headers) override {
    if (state_ != State::kAnswering || streaming_ || ended_) return;
    std::string text = head(status);
    text += fmt::format("Content-Type: {}\r\nContent-Length: {}\r\n", type, body.size());
    for (const auto& [name, value] : headers) text += fmt::format("{}: {}\r\n", name, value);
    text += "\r\n";
    if (!head_only_) text += body;
    ended_ = true;
    queue(std::move(text));
  }

  void start_events() override {
    if (state_ != State::kAnswering || ended_) return;
    streaming_ = true;
    queue(head(200) + "Content-Type: text/event-stream\r\nCache-Control: no-cache\r\nX-Accel-Buffering: no\r\n" +
          (chunked_ ? "Transfer-Encoding: chunked\r\n\r\n" : "\r\n"));
    await_ping();
  }

  void event(std::string_view data) override { stream(fmt::format("data: {}\n\n", data)); }

  void end_events() override {
    if (state_ != State::kAnswering || !streaming_ || ended_) return;
    ended_ = true;
    ping_.cancel();
    queue(chunked_ ? "0\r\n\r\n" : "");
  }

  void on_gone(std::function<void()> gone) override {
    if (state_ == State::kAnswering) {
      gone_ = std::move(gone);
    } else if (gone) {
      gone();
    }
  }
  bool gone() const override { return state_ == State::kClosed; }

 private:
  enum class State { kIdle, kReading, kAnswering, kClosed };

  // Runs `late` unless something else is awaited first.
  void await(std::chrono::milliseconds time, std::function<void()> late) {
    timer_.expires_after(time);
    timer_.async_wait([self = shared_from_this(), late = std::move(late)](Code e) {
      if (!e) late();
    });
  }

  void read() {
    state_ = State::kIdle;
    if (shared_.stopping) return close();
    parser_.emplace();
    parser_->header_limit(shared_.limits.header_bytes);
    parser_->body_limit(shared_.limits.body_bytes);
    if (buffer_.size() > 0) return read_header();  // sent ahead
    await(shared_.limits.idle, [this] { close(); });
    socket_.async_wait(tcp::socket::wait_read, [self = shared_from_this()](Code e) {
      if (e) return self->close();
      self->read_header();
    });
  }

  void read_header() {
    if (state_ != State::kIdle) return;
    state_ = State::kReading;
    await(shared_.limits.header, [this] { refuse_request(408, "the request's header took too long"); });
    http::async_read_header(socket_, buffer_, *parser_, [self = shared_from_this()](Code e, size_t) {
      if (self->state_ != State::kReading) return;
      if (e) return self->bad_request(e);
      self->read_body();
    });
  }

  void read_body() {
    const auto& header = parser_->get();
    if (const auto expect = header[http::field::expect]; !expect.empty()) {
      asio::async_write(socket_, asio::buffer(kContinue), [self = shared_from_this()](Code, size_t) {});
    }
    await(shared_.limits.body, [this] { refuse_request(408, "the request's body took too long"); });
    http::async_read(socket_, buffer_, *parser_, [self = shared_from_this()](Code e, size_t) {
      if (self->state_ != State::kReading) return;
      if (e) return self->bad_request(e);
      self->dispatch();
    });
  }

  void bad_request(const Code& e) {
    if (e == http::error::end_of_stream || e.category() != http::make_error_code(http::error::bad_method).category())
      return close();
    if (e == http::error::body_limit)
      return refuse_request(413, fmt::format("the body is larger than {} bytes", shared_.limits.body_bytes));
    if (e == http::error::header_limit || e == http::error::buffer_overflow)
      return refuse_request(431, fmt::format("the header is larger than {} bytes", shared_.limits.header_bytes));
    if (e == http::error::partial_message) return close();
    refuse_request(400, fmt::format("not an HTTP request: {}", e.message()));
  }

  void refuse_request(int status, const std::string& message) {
    started_ = HttpClock::now();
    path_ = "(refused)";
    state_ = State::kAnswering;
    keep_alive_ = false;
    answer_error(status, message);
  }

  void answer_error(int status, const std::string& message) {
    ended_ = streaming_ = head_only_ = false;
    send(status, "application/json", shared_.error_body(status, message), {});
  }

  void dispatch() {
    timer_.cancel();
    auto message = parser_->release();
    HttpRequest request;
    const auto target = message.target();
    request.method = std::string(message.method_string());
    request.path = std::string(target.substr(0, target.find('?')));
    request.authorization = std::string(message[http::field::authorization]);
    request.body = std::move(message.body());
    request.id = fmt::format("{:08x}{:x}", shared_.run, ++shared_.requests);
    keep_alive_ = message.keep_alive();
    chunked_ = message.version() >= 11;
    head_only_ = request.method == "HEAD";
    id_ = request.id;
    path_ = request.path;
    started_ = HttpClock::now();
    state_ = State::kAnswering;
    streaming_ = ended_ = false;
    gone_ = nullptr;
    watch();
    shared_.handler(std::move(request), shared_from_this());
  }

  // Notices a client that hangs up while its answer is made. One that sends its next request ahead is left alone, and
  // so is one that sends anything else: it will be read as a request.
  void watch() {
    socket_.async_wait(tcp::socket::wait_read, [self = shared_from_this(), answer = started_](Code e) {
      if (e || self->state_ != State::kAnswering || self->started_ != answer) return;
      char byte = 0;
      const auto got = recv(self->socket_.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
      if (got > 0 || (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))) return;
      self->close();
    });
  }

  std::string head(int status) {
    status_ = status;
    return fmt::format("HTTP/1.1 {} {}\r\nServer: isobit\r\nX-Request-Id: {}\r\nConnection: {}\r\n", status,
                       std::string(http::obsolete_reason(static_cast<http::status>(status))), id_,
                       keep_alive_ && chunked_ ? "keep-alive" : "close");
  }

  void stream(std::string text) {
    if (state_ != State::kAnswering || !streaming_ || ended_) return;
    queue(chunked_ ? fmt::format("{:x}\r\n{}\r\n", text.size(), text) : std::move(text));
    await_ping();
  }

  // A comment now and then, so that no proxy takes a slow model for a dead one.
  void await_ping() {
    ping_.expires_after(shared_.limits.keep_alive);
    ping_.async_wait([self = shared_from_this()](Code e) {
      if (!e) self->stream(": still at work\n\n");
    });
  }

  void queue(std::string text) {
    waiting_bytes_ += text.size();
    waiting_.push_back(std::move(text));
    if (waiting_bytes_ > shared_.limits.waiting_bytes + waiting_.front().size()) {
      spdlog::warn("request {}: the client reads too slowly; its connection is closed", id_);
      return close();
    }
    if (waiting_.size() == 1) write();
  }

  void write() {
    await(shared_.limits.write, [this] { close(); });
    asio::async_write(socket_, asio::buffer(waiting_.front()), [self = shared_from_this()](Code e, size_t) {
      if (self->state_ == State::kClosed) return;
      if (e) return self->close();
      self->timer_.cancel();
      self->waiting_bytes_ -= self->waiting_.front().size();
      self->waiting_.pop_front();
      if (!self->waiting_.empty()) return self->write();
      if (self->ended_) self->complete();
    });
  }

  void complete() {
    finish_observed(status_);
    gone_ = nullptr;
    if (!keep_alive_ || !chunked_ || shared_.stopping) return linger();
    Code ignored;
    socket_.cancel(ignored);  // the watch
    read();
  }

  // The answer may follow a body that was not read: closing at once could destroy it on its way.
  void linger() {
    state_ = State::kReading;
    Code ignored;
    socket_.shutdown(tcp::socket::shutdown_send, ignored);
    await(std::chrono::milliseconds(1000), [this] { close(); });
    drop();
  }
  void drop() {
    socket_.async_read_some(asio::buffer(dropped_), [self = shared_from_this()](Code e, size_t) {
      if (e) return self->close();
      self->drop();
    });
  }

  void finish_observed(int status) {
    const double seconds = std::chrono::duration<double>(HttpClock::now() - started_).count();
    spdlog::info("request {}: {} {} {:.3f} s", id_, path_, status, seconds);
    if (shared_.observer) shared_.observer(path_, status, seconds);
  }

  static constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";

  Shared& shared_;
  tcp::socket socket_;
  asio::steady_timer timer_, ping_;
  boost::beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::string_body>> parser_;
  State state_ = State::kIdle;
  bool keep_alive_ = false, chunked_ = true, head_only_ = false, streaming_ = false, ended_ = false;
  int status_ = 0;
  std::string id_ = "none", path_ = "(refused)";
  HttpClock::time_point started_ = HttpClock::now();
  std::deque<std::string> waiting_;
  size_t waiting_bytes_ = 0;
  std::array<char, 4096> dropped_{};
  std::function<void()> gone_;
};

}  // namespace detail

struct HttpServer::Impl : detail::Shared {
  Impl() : acceptor(context), signals(context), drained(context) {}

  void accept() {
    acceptor.async_accept([this](Code e, tcp::socket socket) {
      if (stopping) return;
      if (e) {  // out of file descriptors, most likely: let some be closed
        drained.expires_after(std::chrono::milliseconds(100));
        drained.async_wait([this](Code cancelled) {
          if (!cancelled) accept();
        });
        return;
      }
      const auto connection = std::make_shared<detail::Connection>(*this, std::move(socket));
      open.insert(connection);
      if (static_cast<int>(open.size()) > limits.connections) {
        connection->refuse();
      } else {
        connection->start();
      }
      accept();
    });
  }

  void begin_stop(std::chrono::milliseconds drain) {
    if (stopping) return;
    stopping = true;
    Code ignored;
    acceptor.close(ignored);
    for (const auto& c : std::vector(open.begin(), open.end())) {
      if (c->idle()) c->close();
    }
    until = HttpClock::now() + drain;
    poll_drained();
  }

  void poll_drained() {
    if (open.empty() || HttpClock::now() >= until) {
      for (const auto& c : std::vector(open.begin(), open.end())) c->close();
      signals.cancel();
      context.stop();
      return;
    }
    drained.expires_after(std::chrono::milliseconds(20));
    drained.async_wait([this](Code e) {
      if (!e) poll_drained();
    });
  }

  void await_signal() {
    signals.async_wait([this](Code e, int) {
      if (e) return;
      if (stopping) {
        until = HttpClock::now();
      } else if (on_signal) {
        on_signal();
      }
      await_signal();
    });
  }

  tcp::acceptor acceptor;
  asio::signal_set signals;
  asio::steady_timer drained;
  HttpClock::time_point until;
  std::function<void()> on_signal;
};

HttpServer::HttpServer(const std::string& address, uint16_t port, const HttpLimits& limits, Handler handler,
                       ErrorBody error_body, Observer observer)
    : impl_(std::make_shared<Impl>()) {
  impl_->limits = limits;
  impl_->handler = std::move(handler);
  impl_->error_body = std::move(error_body);
  impl_->observer = std::move(observer);
  Code e;
  tcp::resolver resolver(impl_->context);
  const auto found = resolver.resolve(address, std::to_string(port), tcp::resolver::passive, e);
  if (e || found.empty())
    throw fail(ErrorCode::kIo, "address '{}' cannot be used: {}; give an address of this machine, such as 127.0.0.1",
               address, e.message());
  const tcp::endpoint endpoint = *found.begin();
  impl_->acceptor.open(endpoint.protocol(), e);
  if (!e) impl_->acceptor.set_option(tcp::acceptor::reuse_address(true), e);
  if (!e) impl_->acceptor.bind(endpoint, e);
  if (!e) impl_->acceptor.listen(asio::socket_base::max_listen_connections, e);
  if (e)
    throw fail(ErrorCode::kIo, "cannot listen on {} port {}: {}; choose another --port or --host", address, port,
               e.message());
}

HttpServer::~HttpServer() {  // NOLINT(bugprone-exception-escape): only memory can run out here
  for (const auto& c : std::vector(impl_->open.begin(), impl_->open.end())) c->close();
}

uint16_t HttpServer::port() const { return impl_->acceptor.local_endpoint().port(); }

void HttpServer::run() {
  impl_->accept();
  impl_->context.run();
}

void HttpServer::post(std::function<void()> task) { asio::post(impl_->context, std::move(task)); }

void HttpServer::stop(std::chrono::milliseconds drain) {
  post([impl = impl_, drain] { impl->begin_stop(drain); });
}

void HttpServer::on_signal(std::function<void()> stopping) {
  impl_->on_signal = std::move(stopping);
  impl_->signals.add(SIGINT);
  impl_->signals.add(SIGTERM);
  impl_->await_signal();
}

int HttpServer::connections() const { return static_cast<int>(impl_->open.size()); }

}  // namespace isobit::server
