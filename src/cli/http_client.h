#pragma once
// One HTTP/1.1 request, its answer read line by line as it comes.
#include <optional>
#include <string>
#include <string_view>

namespace isobit::cli {

struct HttpUrl {
  std::string host, port, base;  // base: the path before a route, without a slash at its end
};
// "http://127.0.0.1:8000". Throws Error for what is not that.
HttpUrl parse_url(const std::string& url);

class HttpAnswer {
 public:
  // Sends the request; GET without a body. Throws Error(kIo) naming what failed.
  HttpAnswer(const HttpUrl& url, const std::string& path, const std::string& body, const std::string& api_key = {});
  ~HttpAnswer();
  HttpAnswer(const HttpAnswer&) = delete;
  HttpAnswer& operator=(const HttpAnswer&) = delete;

  int status() const { return status_; }
  // The next line of the body, without its end; nothing at the end.
  std::optional<std::string> line();
  std::string rest();  // all that is left of the body

 private:
  void send_all(std::string_view text) const;
  bool receive();  // more bytes into raw_; false at the end
  std::string header_line();
  bool more_body();  // into body_

  int socket_ = -1, status_ = 0;
  bool chunked_ = false, over_ = false;
  size_t chunk_left_ = 0;
  std::string raw_, body_;
};

}  // namespace isobit::cli
