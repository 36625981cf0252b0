// SPDX-License-Identifier: Apache-2.0
// A segment of memory that processes of one user share: POSIX shared memory with an unguessable
// name.
#pragma once

#include <cstdint>
#include <string>

namespace eplb {

// How another process finds a segment; travels in bootstrap blobs.
struct SegmentReference {
  char name[64];      // empty: there is no segment
  int32_t pid, file;  // the creator's open file, which outlives the name
  uint64_t token;     // also in the segment's header, so that a recycled name is noticed
  uint64_t bytes;     // of data
};

// 64 random bits.
uint64_t random_token();

class SharedMemory {
 public:
  SharedMemory() = default;
  // A new segment of zeroed bytes, all of them backed by memory.
  static SharedMemory create(uint64_t bytes);
  // Another process' segment; throws EPLB_PEER_MISMATCH when it is not the one that was meant.
  static SharedMemory open(const SegmentReference& reference);
  SharedMemory(SharedMemory&& other) noexcept { swap(other); }
  SharedMemory& operator=(SharedMemory&& other) noexcept {
    swap(other);
    return *this;
  }
  ~SharedMemory();  // the creator's also removes the name

  explicit operator bool() const { return mapping_ != nullptr; }
  void* data() const;
  uint64_t bytes() const { return bytes_; }
  SegmentReference reference() const;  // the creator's only

 private:
  void swap(SharedMemory& other) noexcept;
  void map(int file, uint64_t data_bytes);

  void* mapping_ = nullptr;
  uint64_t bytes_ = 0, token_ = 0;
  int file_ = -1;     // kept by the creator
  std::string name_;  // the creator's only
};

// Removes the name of a segment, whoever made it; does nothing where it is gone. Mappings stay, and
// as long as the creator lives, a reference still opens: a later engine can use the same weights.
void unlink_segment(const SegmentReference& reference) noexcept;

// Which machine, and which /dev/shm of it (containers have their own), this process sees.
struct HostIdentity {
  char name[64];
  char boot_id[40];
  uint64_t shared_memory_device;
  bool same_memory(const HostIdentity& other) const;
};
HostIdentity this_host();

}  // namespace eplb
