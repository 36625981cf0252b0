// SPDX-License-Identifier: Apache-2.0
// Bootstrap blobs.
#include "transport/blob.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <type_traits>

#include "base/text.h"
#include "eplb.h"

namespace eplb {
namespace {

constexpr uint32_t kMagic = 0x424C'4F42;  // "BOLB"
static_assert(std::is_trivially_copyable_v<RankBlob::Fixed> &&
                  std::is_trivially_copyable_v<GpuAllocation>,
              "sent as bytes");

// Copies to `target` and returns where it ends.
char* append(char* target, const void* bytes, size_t count) {
  if (count > 0) std::memcpy(target, bytes, count);
  return target + count;
}

[[noreturn]] void mismatch(int32_t rank, const std::string& what) {
  throw Error(EPLB_PEER_MISMATCH, text("Cannot connect to rank ", rank, ": ", what), rank);
}

template <class Value>
void require_equal(const RankBlob& own, const RankBlob& peer, const char* what, const Value& mine,
                   const Value& theirs) {
  if (mine == theirs) return;
  mismatch(peer.fixed.rank,
           text("its ", what, " is ", theirs, ", but rank ", own.fixed.rank, "'s is ", mine));
}

// Reads front to back.
class Reader {
 public:
  Reader(const char* bytes, uint64_t length, int32_t rank)
      : next_(bytes), left_(length), rank_(rank) {}

  void take(void* target, uint64_t count) {
    if (count > left_) mismatch(rank_, "its blob is cut short");
    if (count > 0) std::memcpy(target, next_, count);
    next_ += count;
    left_ -= count;
  }

  template <class Value>
  std::vector<Value> take_table(uint64_t entries) {
    if (entries > left_ / sizeof(Value)) mismatch(rank_, "its blob is cut short");
    std::vector<Value> table(entries);
    take(table.data(), entries * sizeof(Value));
    return table;
  }

  bool done() const { return left_ == 0; }

 private:
  const char* next_;
  uint64_t left_;
  int32_t rank_;
};

template <size_t kSize>
void terminate(char (&text)[kSize]) {
  text[kSize - 1] = '\0';
}

// Where each piece of the memory that a blob offers ends, put end to end.
std::vector<uint64_t> ends_of_memory(const RankBlob& blob) {
  if (blob.allocations.empty()) return {blob.fixed.weights.bytes};
  std::vector<uint64_t> ends;
  uint64_t end = 0;
  for (const GpuAllocation& allocation : blob.allocations) {
    if (__builtin_add_overflow(end, allocation.bytes, &end)) {
      mismatch(blob.fixed.rank, "its blob is damaged");
    }
    ends.push_back(end);
  }
  return ends;
}

// The piece that holds `offset`.
size_t piece_at(const std::vector<uint64_t>& ends, uint64_t offset) {
  return std::upper_bound(ends.begin(), ends.end(), offset) - ends.begin();
}

// Every tensor's slots lie inside one piece of the memory that the blob offers.
void check_tables(const RankBlob& blob) {
  const std::vector<uint64_t> ends = ends_of_memory(blob);
  for (size_t i = 0; i < blob.offset.size(); ++i) {
    const size_t piece = piece_at(ends, blob.offset[i]);
    uint64_t end;
    if (__builtin_mul_overflow(blob.stride[i], static_cast<uint64_t>(blob.fixed.slots - 1), &end) ||
        __builtin_add_overflow(end, blob.tensor_bytes[i % blob.tensor_bytes.size()], &end) ||
        __builtin_add_overflow(end, blob.offset[i], &end) || piece == ends.size() ||
        end > ends[piece]) {
      mismatch(blob.fixed.rank, "its blob places weights outside of its shared memory");
    }
  }
}

}  // namespace

ProcessIdentity this_process() {
  static const uint64_t token = random_token();
  return {::getpid(), token};
}

void RankBlob::offer(const WeightsView& view, const std::vector<Span>& memory) {
  stride = view.stride;
  for (const uint64_t address : view.address) {
    uint64_t start = 0;  // of the piece, in all of them end to end
    for (const Span& piece : memory) {
      if (address - piece.address < piece.bytes) offset.push_back(start + address - piece.address);
      start += piece.bytes;
    }
  }
}

WeightsView RankBlob::located(const std::vector<uint64_t>& addresses) const {
  WeightsView view;
  view.layers = fixed.layers;
  view.slots = fixed.slots;
  view.tensors = fixed.tensors;
  view.tensor_bytes = tensor_bytes;
  view.stride = stride;
  const std::vector<uint64_t> ends = ends_of_memory(*this);
  for (const uint64_t place : offset) {
    const size_t piece = piece_at(ends, place);
    view.address.push_back(addresses[piece] + place - (piece == 0 ? 0 : ends[piece - 1]));
  }
  return view;
}

std::vector<char> RankBlob::encode() const {
  Fixed head = fixed;
  head.magic = kMagic;
  head.abi_version = EPLB_ABI_VERSION;
  head.allocations = static_cast<uint32_t>(allocations.size());
  const size_t entries = tensor_bytes.size() + offset.size() + stride.size();
  const size_t allocation_bytes = allocations.size() * sizeof(GpuAllocation);
  std::vector<char> out(sizeof(head) + allocation_bytes + entries * sizeof(uint64_t));
  char* end = append(out.data(), &head, sizeof(head));
  end = append(end, allocations.data(), allocation_bytes);
  for (const auto* table : {&tensor_bytes, &offset, &stride}) {
    end = append(end, table->data(), table->size() * sizeof(uint64_t));
  }
  return out;
}

RankBlob RankBlob::decode(const char* bytes, uint64_t length, int32_t rank) {
  Reader reader(bytes, length, rank);
  RankBlob blob;
  Fixed& head = blob.fixed;
  uint32_t start[2];
  Reader(bytes, length, rank).take(start, sizeof(start));
  if (start[0] != kMagic) mismatch(rank, "its blob is not one of eplb_engine_export");
  if (start[1] != EPLB_ABI_VERSION) {
    mismatch(rank, text("its library has ABI version ", start[1], ", not ", EPLB_ABI_VERSION));
  }
  reader.take(&head, sizeof(head));
  terminate(head.gpu);
  terminate(head.host.name);
  terminate(head.host.boot_id);
  terminate(head.weights.name);
  terminate(head.control.name);
  terminate(head.board.name);
  if (head.rank != rank) mismatch(rank, text("its blob is that of rank ", head.rank));
  if (head.layers < 1 || head.slots < 1 || head.tensors < 1) mismatch(rank, "its blob is damaged");
  blob.allocations = reader.take_table<GpuAllocation>(head.allocations);
  blob.tensor_bytes = reader.take_table<uint64_t>(head.tensors);
  if (head.weights.name[0] != '\0' || head.allocations > 0) {
    const uint64_t entries = static_cast<uint64_t>(head.layers) * head.tensors;
    blob.offset = reader.take_table<uint64_t>(entries);
    blob.stride = reader.take_table<uint64_t>(entries);
    check_tables(blob);
  }
  if (!reader.done()) mismatch(rank, "its blob is too long");
  return blob;
}

void check_compatible(const RankBlob& own, const RankBlob& peer) {
  const RankBlob::Fixed &a = own.fixed, &b = peer.fixed;
  require_equal(own, peer, "world", a.world, b.world);
  require_equal(own, peer, "transport", a.transport, b.transport);
  const auto memory = [](const RankBlob::Fixed& fixed) {
    return std::string(fixed.ordinal < 0 ? "the host's" : "a GPU's");
  };
  require_equal(own, peer, "memory", memory(a), memory(b));
  require_equal(own, peer, "number of layers", a.layers, b.layers);
  require_equal(own, peer, "number of slots", a.slots, b.slots);
  require_equal(own, peer, "number of tensors", a.tensors, b.tensors);
  require_equal(own, peer, "number of staging cells", a.staging_cells, b.staging_cells);
  require_equal(own, peer, "number of staging sets", a.staging_sets, b.staging_sets);
  require_equal(own, peer, "limit of small tensors", a.small_bytes, b.small_bytes);
  for (size_t tensor = 0; tensor < own.tensor_bytes.size(); ++tensor) {
    require_equal(own, peer, text("size of tensor ", tensor).c_str(), own.tensor_bytes[tensor],
                  peer.tensor_bytes[tensor]);
  }
}

bool are_neighbors(const RankBlob& a, const RankBlob& b) {
  if (a.fixed.transport != EPLB_TRANSPORT_PULL_NCCL) {
    return a.fixed.transport == EPLB_TRANSPORT_PULL;
  }
  return a.fixed.node == b.fixed.node && a.fixed.host.same_memory(b.fixed.host) &&
         !(a.fixed.process == b.fixed.process);
}

void check_reachable(const RankBlob& own, const RankBlob& peer) {
  const auto refuse = [&](const std::string& what) {
    throw Error(EPLB_UNSUPPORTED, text("Cannot pull from rank ", peer.fixed.rank, ": ", what),
                peer.fixed.rank);
  };
  if (!own.fixed.host.same_memory(peer.fixed.host)) {
    refuse(text("it is on \"", peer.fixed.host.name, "\", rank ", own.fixed.rank, " is on \"",
                own.fixed.host.name, "\", and they share no memory",
                own.fixed.ordinal < 0 ? "" : "; use nccl"));
  }
  if (peer.offset.empty()) {
    refuse(text("it is in another process and its weights are private; let the library allocate ",
                own.fixed.ordinal < 0 ? "shareable weights"
                                      : "them, take their memory from cudaMalloc, or use nccl"));
  }
}

}  // namespace eplb
