// Rows grouped by class for the CUDA ops. The labels are copied to the CPU,
// which checks and sorts them, and the tables that follow from them back to the
// device: an op waits for what the stream holds when it is called, not for its
// own kernels, and cannot be captured in a CUDA graph. To sort on the device
// instead would need a sort (a library, or kernels of our own) and leave bad
// labels unnoticed, for eight bytes a row that travel twice.
#pragma once

#include <cstring>
#include <vector>

#include "../cpu/label_order.h"
#include "class_tiles.h"
#include "packed_rows.h"

namespace pathways::cuda {

inline LabelOrder class_order(const char* op, const Tensor& labels,
                              int64_t num_classes) {
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  return LabelOrder(op, torch::stable::to(labels, cpu), num_classes);
}

inline std::vector<int64_t> class_begins(const LabelOrder& order,
                                         int64_t num_classes) {
  std::vector<int64_t> begin(static_cast<size_t>(num_classes) + 1, 0);
  for (int64_t c = 0; c < num_classes; ++c) {
    begin[static_cast<size_t>(c) + 1] = order.end(c);
  }
  return begin;
}

// Tables of 8-byte multiples, sent to the device in one copy.
class TableUpload {
 public:
  template <typename Item>
  int64_t add(const std::vector<Item>& items) {
    static_assert(sizeof(Item) % sizeof(int64_t) == 0);
    const size_t at = staged_.size();
    staged_.resize(at + items.size() * sizeof(Item) / sizeof(int64_t));
    if (!items.empty()) {
      std::memcpy(staged_.data() + at, items.data(),
                  items.size() * sizeof(Item));
    }
    return static_cast<int64_t>(at);
  }

  int64_t add_order(const LabelOrder& order, int64_t rows) {
    const size_t at = staged_.size();
    staged_.insert(staged_.end(), order.rows(), order.rows() + rows);
    return static_cast<int64_t>(at);
  }

  // To the device of `like`. The copy is complete when this returns.
  Tensor send(const Tensor& like) {
    const std::vector<int64_t> size{static_cast<int64_t>(staged_.size())};
    if (staged_.empty()) {
      return torch::stable::new_empty(like, size, ScalarType::Long);
    }
    const std::vector<int64_t> stride{1};
    const Tensor host = torch::stable::from_blob(
        staged_.data(), size, stride,
        torch::stable::Device(torch::headeronly::DeviceType::CPU),
        ScalarType::Long);
    return torch::stable::to(host, like.device());
  }

 private:
  std::vector<int64_t> staged_;
};

template <typename Item>
const Item* table_at(const Tensor& tables, int64_t offset) {
  return reinterpret_cast<const Item*>(
      static_cast<const int64_t*>(tables.const_data_ptr()) + offset);
}

}  // namespace pathways::cuda
