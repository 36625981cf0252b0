// SPDX-License-Identifier: Apache-2.0
// Ranks in host memory whose schedules a test carries out with memcpy.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "engine/program.h"
#include "memory/device.h"
#include "memory/weights_view.h"
#include "ranks.h"
#include "transport/mover.h"

namespace eplb {

inline uint64_t address_of(const std::string& memory) {
  return reinterpret_cast<uint64_t>(memory.data());
}

inline void copy_bytes(uint64_t target, uint64_t source, uint64_t bytes) {
  std::memcpy(reinterpret_cast<void*>(target), reinterpret_cast<const void*>(source), bytes);
}

inline void copy_pieces(const std::vector<Piece>& pieces, const IndexRange& range) {
  for (uint32_t i = range.first; i < range.last; ++i) {
    copy_bytes(pieces[i].target, pieces[i].source, pieces[i].bytes);
  }
}

inline uint32_t size(const IndexRange& range) { return range.last - range.first; }

// Weights of one rank, tensor by tensor, as serving engines hold them. Stays where it is made:
// `view` points into it.
struct HostWeights {
  explicit HostWeights(const ranks::Shape& shape) {
    view.layers = static_cast<int32_t>(shape.layers);
    view.slots = static_cast<int32_t>(shape.slots);
    view.tensors = static_cast<int32_t>(shape.tensors());
    view.tensor_bytes = shape.tensor_bytes;
    weights.assign(shape.layers * shape.slots * shape.expert_bytes(), '\0');
    uint64_t at = address_of(weights);
    for (uint32_t i = 0; i < shape.layers * shape.tensors(); ++i) {
      const uint64_t bytes = shape.tensor_bytes[i % shape.tensors()];
      view.address.push_back(at);
      view.stride.push_back(bytes);
      at += bytes * shape.slots;
    }
  }

  // Copies between the weights and what the naive model works on.
  void exchange(const ranks::Shape& shape, ranks::Bytes* bytes, bool out) const {
    for (uint32_t i = 0; i < bytes->size(); ++i) {
      uint64_t at = address_of((*bytes)[i]);
      for (uint32_t tensor = 0; tensor < shape.tensors(); ++tensor) {
        const uint64_t own =
            view.at(static_cast<int32_t>(i / shape.slots), static_cast<int32_t>(tensor),
                    static_cast<int32_t>(i % shape.slots));
        out ? copy_bytes(at, own, shape.tensor_bytes[tensor])
            : copy_bytes(own, at, shape.tensor_bytes[tensor]);
        at += shape.tensor_bytes[tensor];
      }
    }
  }

  WeightsView view;
  std::string weights;
};

inline std::vector<RankBatch> batches_of(const ranks::Script& script, int32_t rank, int32_t cells) {
  const std::vector<int32_t> words = script.words({rank});
  const ProgramLimits limits = {static_cast<int32_t>(script.shape.layers),
                                static_cast<int32_t>(script.shape.slots),
                                static_cast<int32_t>(script.world),
                                cells,
                                {rank}};
  return parse_program(words.data(), words.size(), limits)[0];
}

// Two experts from rank 0 to rank 1 in one round, and a third in the next.
inline const ranks::Script kThree = [] {
  ranks::Script three;  // field by field: GCC 12 takes the aggregate for uninitialized
  three.shape.slots = 3;
  three.shape.tensor_bytes = {5000, 100, 4000, 20};
  three.world = 2;
  three.batches = {{0, 1}};
  three.ops = {{0, 0, 0, EPLB_OP_SEND, 0, 0, 1, 2}, {0, 0, 1, EPLB_OP_RECEIVE, 0, 2, 0, 0},
               {0, 0, 0, EPLB_OP_SEND, 0, 1, 1, 0}, {0, 0, 1, EPLB_OP_RECEIVE, 0, 0, 0, 1},
               {0, 1, 0, EPLB_OP_SEND, 0, 2, 1, 1}, {0, 1, 1, EPLB_OP_RECEIVE, 0, 1, 0, 2}};
  return three;
}();

}  // namespace eplb
