// Rows grouped by class, prepared on the host from a copy of the labels:
// class_overlap and class_frequency then work on runs of rows of one class,
// without a sorted copy of the words and without floating-point atomics.
#pragma once

#include <cstdint>
#include <vector>

#include "launch.h"

namespace pathways::cuda {

// Rows of a run, and runs of a group, for class_overlap: a block multiplies a
// tile of 64 rows with up to 32 such tiles. That is enough work for a block,
// and the partial sums (one double for each run and group) stay small beside
// the words.
constexpr int kOverlapRows = 64;
constexpr int kRunsPerGroup = 32;

// Rows of a run for class_frequency: 63 for each of 8 warps.
constexpr int kFrequencyRows = 504;

// `count` rows of class `label`, from position `first` of the class order on.
// Copied to the device as it is.
struct RowRun {
  int64_t first;
  int32_t count;
  int32_t label;
};

// `count` consecutive runs of one class, from run `first` on.
struct RunRange {
  int64_t first;
  int32_t count;
  int32_t label;
};

// Runs of at most `longest` rows, none of them across two classes. Class c has
// the positions from class_begin[c] on. When `begin` is given, it receives the
// first run of every class ([K + 1]).
inline std::vector<RowRun> class_runs(const std::vector<int64_t>& class_begin,
                                      int64_t longest,
                                      std::vector<int64_t>* begin = nullptr) {
  std::vector<RowRun> runs;
  const int64_t classes = static_cast<int64_t>(class_begin.size()) - 1;
  if (begin)
    begin->clear();
  for (int64_t c = 0; c < classes; ++c) {
    if (begin)
      begin->push_back(static_cast<int64_t>(runs.size()));
    for (int64_t p = class_begin[c]; p < class_begin[c + 1]; p += longest) {
      const int64_t left = class_begin[c + 1] - p;
      runs.push_back({p, static_cast<int32_t>(left < longest ? left : longest),
                      static_cast<int32_t>(c)});
    }
  }
  if (begin)
    begin->push_back(static_cast<int64_t>(runs.size()));
  return runs;
}

// The runs of every class in groups of at most `longest`, with the first group
// of every class in `begin` ([K + 1]).
inline std::vector<RunRange> group_runs(const std::vector<int64_t>& run_begin,
                                        int64_t longest,
                                        std::vector<int64_t>* begin) {
  std::vector<RunRange> groups;
  const int64_t classes = static_cast<int64_t>(run_begin.size()) - 1;
  begin->clear();
  for (int64_t c = 0; c < classes; ++c) {
    begin->push_back(static_cast<int64_t>(groups.size()));
    for (int64_t r = run_begin[c]; r < run_begin[c + 1]; r += longest) {
      const int64_t left = run_begin[c + 1] - r;
      groups.push_back({r,
                        static_cast<int32_t>(left < longest ? left : longest),
                        static_cast<int32_t>(c)});
    }
  }
  begin->push_back(static_cast<int64_t>(groups.size()));
  return groups;
}

}  // namespace pathways::cuda
