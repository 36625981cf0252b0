// SPDX-License-Identifier: Apache-2.0
// Dispatchers for tests: random tables and ids, and a naive model of what a dispatcher does.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <limits>
#include <random>
#include <vector>

#include "ranks.h"

namespace dispatchers {

struct Shape {
  uint32_t layers, experts, max_replicas;
  uint64_t cells() const { return uint64_t{layers} * experts; }
};

// Tables of all layers, as eplb.h describes them.
struct Tables {
  explicit Tables(const Shape& shape)
      : shape(shape),
        physical(shape.cells() * shape.max_replicas, -1),
        count(shape.cells(), 0),
        threshold(shape.cells() * shape.max_replicas, 0xFFFFFFFF) {}
  Shape shape;
  std::vector<int32_t> physical, count;
  std::vector<uint32_t> threshold;
};

// Some experts have no slot, some as many as fit, some of these with no share.
inline Tables random_tables(const Shape& shape, std::mt19937_64& random) {
  Tables tables(shape);
  for (uint64_t cell = 0; cell < shape.cells(); ++cell) {
    const uint32_t count = random() % (shape.max_replicas + 1);
    std::vector<uint32_t> bounds(count, 0xFFFFFFFF);
    for (uint32_t i = 1; i < count; ++i) bounds[i] = static_cast<uint32_t>(random());
    if (count > 2 && random() % 4 == 0) bounds[1] = bounds[2];
    std::sort(bounds.begin(), bounds.end());
    std::copy(bounds.begin(), bounds.end(), &tables.threshold[cell * shape.max_replicas]);
    for (uint32_t i = 0; i < count; ++i) {
      tables.physical[cell * shape.max_replicas + i] = static_cast<int32_t>(random() % 100000);
    }
    tables.count[cell] = static_cast<int32_t>(count);
  }
  return tables;
}

// Experts, skewed to low ids, and now and then -1 or what is no expert.
template <class Id>
std::vector<Id> random_ids(uint64_t count, uint32_t experts, std::mt19937_64& random) {
  const Id strange[] = {-1,
                        -1,
                        -2,
                        static_cast<Id>(experts),
                        std::numeric_limits<Id>::min(),
                        std::numeric_limits<Id>::max()};
  std::vector<Id> ids(count);
  for (Id& id : ids) {
    const uint64_t bound = 1 + random() % experts;
    id = random() % 16 == 0 ? strange[random() % std::size(strange)]
                            : static_cast<Id>(random() % bound);
  }
  return ids;
}

class Dispatcher {
 public:
  Dispatcher(const Shape& shape, int32_t ordinal) : shape_(shape) {
    const eplb_dispatch_config config = {sizeof(config),    1, ordinal, shape.layers, shape.experts,
                                         shape.max_replicas};
    MUST(eplb_dispatch_create, &config, &handle_);
  }
  Dispatcher(const Dispatcher&) = delete;
  Dispatcher& operator=(const Dispatcher&) = delete;
  ~Dispatcher() { eplb_dispatch_destroy(handle_, nullptr, 0); }
  eplb_handle handle() const { return handle_; }

  ranks::Outcome try_update(const Tables& tables, uint32_t first_layer, uint32_t layers,
                            uint64_t stream = 0) const {
    const uint64_t cell = uint64_t{first_layer} * shape_.experts;
    const uint64_t place = cell * shape_.max_replicas;
    return ranks::call(eplb_dispatch_update, handle_, first_layer, layers,
                       tables.physical.data() + place, tables.count.data() + cell,
                       tables.threshold.data() + place, stream, uint64_t{10000});
  }
  void update(const Tables& tables, uint64_t stream = 0) const {
    CHECK_EQ(try_update(tables, 0, shape_.layers, stream).error, "");
  }
  std::vector<uint64_t> read() const {
    std::vector<uint64_t> loads(shape_.cells());
    MUST(eplb_dispatch_read, handle_, uint64_t{10000}, loads.data());
    return loads;
  }
  std::vector<uint64_t> loads(uint64_t stream = 0) const {
    MUST(eplb_dispatch_snapshot, handle_, stream);
    return read();
  }

 private:
  Shape shape_;
  eplb_handle handle_ = 0;
};

template <class Id>
eplb_dispatch_call call_of(uint32_t layer, uint32_t tokens, uint32_t top_k) {
  eplb_dispatch_call call = {};
  call.size = sizeof(call);
  call.version = 1;
  call.layer = layer;
  call.tokens = tokens;
  call.top_k = top_k;
  call.id_bytes = sizeof(Id);
  call.record = 1;
  return call;
}

template <class T>
uint64_t address_of(const std::vector<T>& values) {
  return reinterpret_cast<uint64_t>(values.data());
}

// Written down again from eplb.h, with wide integers.
inline uint32_t naive_hash(uint64_t token, uint64_t expert, uint64_t salt) {
  constexpr uint64_t kModulus = uint64_t{1} << 32;
  uint64_t h = (token * 2654435761u % kModulus + expert * 2246822519u % kModulus +
                salt * 3266489917u % kModulus) %
               kModulus;
  h = (h ^ h / 65536) * 2246822507u % kModulus;
  h = (h ^ h / 8192) * 3266489909u % kModulus;
  return static_cast<uint32_t>(h ^ h / 65536);
}

// The ids that a call gives; adds to `loads` [layers][experts] what it counts.
template <class Id>
std::vector<Id> naive_dispatch(const Tables& tables, const eplb_dispatch_call& call,
                               const std::vector<Id>& logical, int64_t valid, uint64_t salt,
                               std::vector<uint64_t>* loads) {
  const auto& [layers, experts, max_replicas] = tables.shape;
  std::vector<Id> physical;
  for (uint64_t i = 0; i < logical.size(); ++i) {
    const int64_t token = static_cast<int64_t>(i / call.top_k);
    const bool known = token < valid && logical[i] >= 0 && logical[i] < int64_t{experts};
    physical.push_back(-1);
    if (!known) continue;
    const uint64_t cell = uint64_t{call.layer} * experts + static_cast<uint64_t>(logical[i]);
    if (call.record == 1) ++(*loads)[cell];
    const uint32_t hash =
        naive_hash(static_cast<uint64_t>(token), static_cast<uint64_t>(logical[i]), salt);
    for (int32_t k = 0; k < tables.count[cell]; ++k) {
      const uint64_t place = cell * max_replicas + static_cast<uint64_t>(k);
      physical.back() = tables.physical[place];
      if (hash < tables.threshold[place]) break;
    }
  }
  return physical;
}

}  // namespace dispatchers
