#pragma once

// Rows grouped by class: a stable counting sort of the labels.

#include <cstdint>
#include <vector>

#include "../check.h"

namespace pathways {

class LabelOrder {
 public:
  LabelOrder(const char* op, const Tensor& source, int64_t num_classes)
      : offsets_(static_cast<size_t>(num_classes) + 1, 0) {
    const int64_t* labels =
        static_cast<const int64_t*>(source.const_data_ptr());
    const int64_t count = source.size(0);
    const int64_t stride = source.stride(0);
    for (int64_t n = 0; n < count; ++n) {
      const int64_t label = labels[n * stride];
      if (label < 0 || label >= num_classes) {
        refuse_label(op, label, num_classes);
      }
      ++offsets_[static_cast<size_t>(label) + 1];
    }
    for (size_t k = 1; k < offsets_.size(); ++k) {
      offsets_[k] += offsets_[k - 1];
    }
    rows_.resize(static_cast<size_t>(count));
    std::vector<int64_t> next(offsets_.begin(), offsets_.end() - 1);
    for (int64_t n = 0; n < count; ++n) {
      const auto label = static_cast<size_t>(labels[n * stride]);
      rows_[static_cast<size_t>(next[label]++)] = n;
    }
  }

  int64_t begin(int64_t label) const {
    return offsets_[static_cast<size_t>(label)];
  }
  int64_t end(int64_t label) const {
    return offsets_[static_cast<size_t>(label) + 1];
  }
  int64_t count(int64_t label) const { return end(label) - begin(label); }
  // The original row of every position.
  const int64_t* rows() const { return rows_.data(); }

 private:
  std::vector<int64_t> offsets_;  // K + 1 positions
  std::vector<int64_t> rows_;
};

}  // namespace pathways
