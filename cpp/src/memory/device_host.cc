// SPDX-License-Identifier: Apache-2.0
// The host as a device.
#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "base/round_up.h"
#include "base/text.h"
#include "memory/device.h"
#include "memory/digest.h"

namespace eplb {
namespace {

constexpr uint64_t kAlignment = 256;  // what CUDA's allocator gives too

// Calls `visit(index, bytes)` for each 8-byte word of `bytes` bytes; the last may be short.
template <class Visit>
void for_each_word(uint64_t bytes, Visit visit) {
  const uint64_t words = bytes / sizeof(uint64_t);
  for (uint64_t i = 0; i < words; ++i) visit(i, sizeof(uint64_t));
  if (bytes % sizeof(uint64_t) != 0) visit(words, bytes % sizeof(uint64_t));
}

uint64_t digest_of(const Span& span) {
  const char* base = reinterpret_cast<const char*>(span.address);
  uint64_t sum = mix(span.bytes);
  for_each_word(span.bytes, [&](uint64_t i, size_t size) {
    uint64_t word = 0;
    std::memcpy(&word, base + i * sizeof(word), size);
    sum += digest_term(word, i);
  });
  return sum;
}

class HostDevice : public Device {
 public:
  int32_t ordinal() const override { return -1; }

  uint64_t allocate(uint64_t bytes) override {
    const uint64_t rounded = round_up(bytes, kAlignment);
    void* memory = rounded < bytes ? nullptr : std::aligned_alloc(kAlignment, rounded);
    if (memory == nullptr) {
      throw Error(EPLB_OUT_OF_MEMORY, text("Cannot allocate ", bytes, " bytes of host memory"));
    }
    std::memset(memory, 0, rounded);
    return reinterpret_cast<uint64_t>(memory);
  }

  void release(uint64_t address) noexcept override { std::free(reinterpret_cast<void*>(address)); }

  void write(uint64_t target, const void* source, uint64_t bytes) override {
    std::memcpy(reinterpret_cast<void*>(target), source, bytes);
  }

  void read(void* target, uint64_t source, uint64_t bytes) override {
    std::memcpy(target, reinterpret_cast<const void*>(source), bytes);
  }

  void fill(const std::vector<FillSpan>& spans) override {
    for (const FillSpan& span : spans) {
      char* base = reinterpret_cast<char*>(span.address);
      for_each_word(span.bytes, [&](uint64_t i, size_t size) {
        const uint64_t word = synthetic_word(span.key, i);
        std::memcpy(base + i * sizeof(word), &word, size);
      });
    }
  }

  void digest(const std::vector<Span>& spans, uint64_t* digests) override {
    for (const Span& span : spans) *digests++ = digest_of(span);
  }

  // The host has no way to ask whom an address belongs to.
  void check_owned_by_caller(const Span&) override {}
};

}  // namespace

std::shared_ptr<Device> open_host_device() { return std::make_shared<HostDevice>(); }

}  // namespace eplb
