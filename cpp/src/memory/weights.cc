// SPDX-License-Identifier: Apache-2.0
// Registration, allocation and access of one rank's expert memory.
#include "memory/weights.h"

#include <algorithm>
#include <utility>

#include "base/round_up.h"
#include "base/text.h"
#include "memory/digest.h"

namespace eplb {
namespace {

constexpr uint64_t kStrideAlignment = 16;  // the widest load of a GPU
constexpr uint64_t kBaseAlignment = 256;   // what CUDA's allocator gives
constexpr uint64_t kMostBytes = uint64_t{1} << 60;
constexpr uint64_t kMostTensors = INT32_MAX;  // in all slots of all layers

[[noreturn]] void refuse(const std::string& message) {
  throw Error(EPLB_INVALID_ARGUMENT, message);
}

std::string place(size_t layer, size_t tensor) {
  return text("layer ", layer, ", tensor ", tensor);
}

// [layer][tensor][slot], every tensor on a base of its own, relative to address 0.
WeightsView slab_layout(WeightsView view, uint64_t* bytes) {
  *bytes = 0;
  for (int32_t layer = 0; layer < view.layers; ++layer) {
    for (const uint64_t size : view.tensor_bytes) {
      const uint64_t stride = round_up(size, kStrideAlignment);
      view.address.push_back(*bytes);
      view.stride.push_back(stride);
      *bytes += round_up(stride * static_cast<uint64_t>(view.slots), kBaseAlignment);
    }
  }
  return view;
}

}  // namespace

Weights::Weights(const eplb_weights_config& config, const uint64_t* tensor_bytes) {
  if (config.ordinal < -1) {
    refuse(text("Cannot create weights: ordinal is ", config.ordinal, ", not -1 or a CUDA device"));
  }
  const uint64_t rows = static_cast<uint64_t>(config.layers) * config.slots;
  if (config.layers < 1 || config.slots < 1 || config.tensors < 1 || rows > kMostTensors ||
      rows * config.tensors > kMostTensors) {
    refuse(text("Cannot create weights: ", config.layers, " layers, ", config.slots, " slots and ",
                config.tensors, " tensors; each must be at least 1, their product at most ",
                kMostTensors));
  }
  uint64_t total = 0;
  for (uint32_t tensor = 0; tensor < config.tensors; ++tensor) {
    const uint64_t size = tensor_bytes[tensor];
    if (size < 1 || size > kMostBytes / rows || (total += size * rows) > kMostBytes) {
      refuse(text("Cannot create weights: tensor ", tensor, " of an expert has ", size, " bytes"));
    }
  }
  device_ = config.ordinal < 0 ? open_host_device() : open_cuda_device(config.ordinal);
  view_.layers = static_cast<int32_t>(config.layers);
  view_.slots = static_cast<int32_t>(config.slots);
  view_.tensors = static_cast<int32_t>(config.tensors);
  view_.tensor_bytes.assign(tensor_bytes, tensor_bytes + config.tensors);
}

void Weights::register_memory(const uint64_t* table) {
  if (has_memory()) refuse("Cannot register weights: they have memory already");
  WeightsView view = view_;
  for (int32_t i = 0; i < view.layers * view.tensors; ++i) {
    view.address.push_back(table[2 * i]);
    view.stride.push_back(table[2 * i + 1]);
  }
  check_registration(view);
  check_overlaps(view);
  view_ = std::move(view);
}

void Weights::check_registration(const WeightsView& view) const {
  for (size_t i = 0; i < view.address.size(); ++i) {
    const size_t layer = i / view.tensors, tensor = i % view.tensors;
    const uint64_t size = view.tensor_bytes[tensor], last = view.slots - 1;
    if (view.address[i] == 0) {
      refuse(text("Cannot register weights: ", place(layer, tensor), " has a null address"));
    }
    if (view.stride[i] < size) {
      refuse(text("Cannot register weights: ", place(layer, tensor), " has a stride of ",
                  view.stride[i], " bytes, below an expert's ", size));
    }
    uint64_t reach, end;
    if (__builtin_mul_overflow(view.stride[i], last, &reach) ||
        __builtin_add_overflow(reach, size, &reach) ||
        __builtin_add_overflow(view.address[i], reach, &end)) {
      refuse(text("Cannot register weights: ", place(layer, tensor), " with a stride of ",
                  view.stride[i], " bytes reaches beyond the last address"));
    }
    device_->check_owned_by_caller({view.address[i], reach});
  }
}

// Expert by expert, as the tensors of one expert may lie side by side.
void Weights::check_overlaps(const WeightsView& view) const {
  std::vector<Range> ranges;
  ranges.reserve(view.address.size() * view.slots);
  for (size_t i = 0; i < view.address.size(); ++i) {
    for (int32_t slot = 0; slot < view.slots; ++slot) {
      const uint64_t begin = view.address[i] + view.stride[i] * slot;
      ranges.push_back({begin, begin + view.tensor_bytes[i % view.tensors],
                        static_cast<int32_t>(i * view.slots + slot)});
    }
  }
  const auto overlap = find_overlap(ranges);
  if (!overlap) return;
  const auto name = [&](int32_t owner) {
    const int32_t i = owner / view.slots;
    return text(place(i / view.tensors, i % view.tensors), ", slot ", owner % view.slots);
  };
  refuse(
      text("Cannot register weights: ", name(overlap->first), " overlaps ", name(overlap->second)));
}

void Weights::allocate(bool shareable) {
  if (has_memory()) refuse("Cannot allocate weights: they have memory already");
  uint64_t bytes;
  WeightsView view = slab_layout(view_, &bytes);
  uint64_t base;
  if (shareable && device_->ordinal() < 0) {
    segment_ = SharedMemory::create(bytes);
    base = reinterpret_cast<uint64_t>(segment_.data());
  } else {
    slab_ = Allocation(device_, bytes);
    base = slab_.address();
  }
  for (uint64_t& address : view.address) address += base;
  view_ = std::move(view);
}

void Weights::require_memory(const char* verb) const {
  if (!has_memory()) {
    refuse(text("Cannot ", verb, " weights: they have no memory; register or allocate it first"));
  }
}

uint64_t Weights::locate(const char* verb, uint32_t layer, uint32_t slot, uint32_t tensor,
                         uint64_t offset, uint64_t bytes) const {
  require_memory(verb);
  if (layer >= static_cast<uint32_t>(view_.layers) || slot >= static_cast<uint32_t>(view_.slots) ||
      tensor >= static_cast<uint32_t>(view_.tensors)) {
    refuse(text("Cannot ", verb, " weights: ", place(layer, tensor), ", slot ", slot,
                " is outside of ", view_.layers, " layers, ", view_.tensors, " tensors and ",
                view_.slots, " slots"));
  }
  const uint64_t size = view_.tensor_bytes[tensor];
  if (offset > size || bytes > size - offset) {
    refuse(text("Cannot ", verb, " weights: ", bytes, " bytes at offset ", offset, " of ",
                place(layer, tensor), ", which has ", size, " bytes"));
  }
  return view_.at(static_cast<int32_t>(layer), static_cast<int32_t>(tensor),
                  static_cast<int32_t>(slot)) +
         offset;
}

void Weights::write(uint32_t layer, uint32_t slot, uint32_t tensor, uint64_t offset,
                    const void* source, uint64_t bytes) {
  const uint64_t target = locate("write", layer, slot, tensor, offset, bytes);
  if (bytes > 0) device_->write(target, source, bytes);
}

void Weights::read(uint32_t layer, uint32_t slot, uint32_t tensor, uint64_t offset, void* target,
                   uint64_t bytes) {
  const uint64_t source = locate("read", layer, slot, tensor, offset, bytes);
  if (bytes > 0) device_->read(target, source, bytes);
}

void Weights::fill(const int32_t* map, uint64_t seed) {
  require_memory("fill");
  std::vector<FillSpan> spans;
  for (int32_t layer = 0; layer < view_.layers; ++layer) {
    for (int32_t slot = 0; slot < view_.slots; ++slot) {
      const int32_t expert = map[layer * view_.slots + slot];
      if (expert < -1) {
        refuse(text("Cannot fill weights: layer ", layer, ", slot ", slot, " has logical expert ",
                    expert));
      }
      for (int32_t tensor = 0; expert >= 0 && tensor < view_.tensors; ++tensor) {
        spans.push_back({view_.at(layer, tensor, slot), view_.tensor_bytes[tensor],
                         synthetic_key(seed, layer, expert, tensor)});
      }
    }
  }
  device_->fill(spans);
}

void Weights::digest(uint64_t* digests) {
  require_memory("digest");
  std::vector<Span> spans;
  for (int32_t layer = 0; layer < view_.layers; ++layer) {
    for (int32_t slot = 0; slot < view_.slots; ++slot) {
      for (int32_t tensor = 0; tensor < view_.tensors; ++tensor) {
        spans.push_back({view_.at(layer, tensor, slot), view_.tensor_bytes[tensor]});
      }
    }
  }
  // The caller's array is written on success only.
  std::vector<uint64_t> result(spans.size());
  device_->digest(spans, result.data());
  std::copy(result.begin(), result.end(), digests);
}

TensorPlace Weights::find(uint32_t layer, uint32_t tensor) const {
  const uint64_t address = locate("find", layer, 0, tensor, 0, 0);
  return {address, view_.stride[static_cast<size_t>(layer) * view_.tensors + tensor]};
}

void Weights::require_unused() const {
  if (users > 0) throw Error(EPLB_BUSY, "Cannot destroy weights: an engine uses them");
}

void Weights::release() {
  slab_ = {};
  segment_ = {};
}

std::vector<Range> Weights::hulls(int32_t owner) const {
  std::vector<Range> ranges;
  for (size_t i = 0; i < view_.address.size(); ++i) {
    const uint64_t reach = view_.stride[i] * (view_.slots - 1);
    ranges.push_back({view_.address[i],
                      view_.address[i] + reach + view_.tensor_bytes[i % view_.tensors], owner});
  }
  return merge(std::move(ranges));
}

}  // namespace eplb
