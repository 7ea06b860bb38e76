#pragma once
// What a decoder's step cannot be faster than on an H200: its bytes and operations over the rates measured there.
#include "models/config.h"

namespace isobit::cli {

struct StepWork {
  double tokens = 0;   // computed
  double sampled = 0;  // rows of logits
  double keys = 0;     // read, those of every sequence once
  double pairs = 0;    // each query with each key that it sees
};

class StepFloor {
 public:
  // fp8: the layers' matrices are block-scaled.
  explicit StepFloor(const ModelConfig& config, bool fp8 = false);
  // Microseconds: every weight and key is read once at 4.3 TB/s, or the products are made at 790 TFLOP/s (e4m3: twice
  // that), whichever takes longer.
  double us(const StepWork& work) const;

 private:
  bool fp8_;
  double body_ = 0, head_ = 0;  // weights
  double heads_ = 0;            // columns of all layers' queries
  double key_bytes_ = 0;        // keys and values of a token
};

}  // namespace isobit::cli
