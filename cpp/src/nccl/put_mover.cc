// SPDX-License-Identifier: Apache-2.0
// Puts of one rank: see put_mover.h.
#include "nccl/put_mover.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/backoff.h"
#include "base/round_up.h"
#include "nccl/nccl_factory.h"
#include "nccl/nccl_memory.h"
#include "transport/cell_layout.h"

namespace eplb {
namespace {

constexpr std::chrono::microseconds kEager{50};
// Of half an outbox, where experts are not larger: what one put starts with is lost in as much.
constexpr uint64_t kHalfBytes = uint64_t{256} << 20;
// What NCCL maps memory in.
constexpr uint64_t kWindowAlignment = 4096;
// Of the put with which a communicator begins.
constexpr uint64_t kFirstBytes = 16;

uint64_t cell_bytes(const MoverConfig& config) {
  return CellLayout(config.weights.tensor_bytes).bytes;
}

// No larger than all that a rank can put in a batch of its own size.
uint64_t half_bytes(const MoverConfig& config) {
  const uint64_t cell = cell_bytes(config);
  const uint64_t cells = std::max<uint64_t>(1, kHalfBytes / cell);
  return round_up(cell * std::min<uint64_t>(cells, config.staging.cells), kWindowAlignment);
}

// What a rank tells the others before a run: its number of batches, then its landings.
uint64_t table_words(const MoverConfig& config) {
  return 1 + uint64_t{1} * config.weights.layers * config.world;
}

}  // namespace

struct PutMover::PutResources : NcclMover::Resources {
  explicit PutResources(const MoverConfig& config)
      : Resources(config),
        packing(first_priority()),
        room(first_priority()),
        rooms(config, config.staging.sets + 1, giving_up.as<uint32_t>()),
        landing(round_up(cell_bytes(config) * config.staging.all_cells(), kWindowAlignment)),
        outbox(2 * half_bytes(config)),
        tables(config.device, (config.world + 1) * table_words(config) * sizeof(uint32_t)),
        host_tables((config.world + 1) * table_words(config) * sizeof(uint32_t)) {}
  bool copies_idle() const override { return Resources::copies_idle() && packing.idle(); }
  bool drained() const override {
    return Resources::drained() && !packing.running() && !room.running();
  }

  const Stream packing, room;
  Event packed[2], sent[2];  // of the halves of the outbox
  NcclFences rooms;
  const NcclMemory landing, outbox;
  const Allocation tables;  // this rank's, then all ranks'
  const PinnedMemory host_tables;
};

PutMover::PutMover(const MoverConfig& config, const NcclIdBlob& id,
                   const Cancellation& cancellation)
    : NcclMover(config, std::make_unique<PutResources>(config), cancellation),
      own_(static_cast<PutResources&>(*gpu_)) {
  task_.rank = config.rank;
  task_.world = config.world;
  task_.weights = config.weights;
  task_.staging = config.staging;
  task_.landing = own_.landing.address();
  task_.outbox = own_.outbox.address();
  task_.half_bytes = own_.outbox.bytes() / 2;
  task_.gather_by_engine = config.copy_engine_only;
  staging_bytes = own_.landing.bytes() + own_.outbox.bytes();
  join(id);
  guarded([&] { open(); });
}

// Before the first one's, which stays usable meanwhile.
PutMover::~PutMover() {
  (void)cudaSetDevice(config_.device->ordinal());
  rooms_.reset();
}

void PutMover::open() {
  const char* what = "open windows for other ranks";
  window_ = communicator().open_window(own_.landing.address(), own_.landing.bytes(), what);
  (void)communicator().open_window(own_.outbox.address(), own_.outbox.bytes(), what);
  const int32_t reachable = communicator().reachable_ranks();
  if (reachable < config_.world) {
    throw Error(EPLB_UNSUPPORTED,
                text("Cannot use nccl-put: the GPU of rank ", config_.rank, " reaches ", reachable,
                     " of ", config_.world, " ranks by NVLink; use nccl or pull+nccl"),
                config_.rank);
  }
  rooms_ = communicator().split(what);
  // NCCL prepares for puts at a communicator's first one, and waits for all ranks then; some may
  // have nothing to put for long.
  if (config_.world > 1) {
    const Put first = {(config_.rank + 1) % config_.world, own_.outbox.address(), 0, kFirstBytes};
    communicator().put(&first, &first + 1, window_, own_.transfer, what);
  }
  own_.fences.raise(0, communicator(), own_.transfer, what);
  own_.rooms.raise(0, *rooms_, own_.room, what);
  await_fence(0, what);
  Backoff backoff(kEager);
  while (!own_.rooms.reached(0, *rooms_, cancellation_, what)) backoff.pause();
}

void PutMover::lower(const std::vector<RankBatch>& batches, bool held) {
  own_.rooms.begin(batches.size());
  rooms_raised_ = 0;
  const Landings landings = number_landings(batches, config_.world, config_.staging.cells);
  task_.commit_by_engine = config_.copy_engine_only && !held;
  schedule_ = make_put_schedule(batches, exchange(landings, batches.size()), task_);
  own_.pieces.assign(std::move(schedule_.kernel_pieces), std::move(schedule_.engine_pieces));
  for (const uint32_t burst : {0u, 1u}) pack_burst(burst);
}

// Tells all ranks where experts land here, and learns where theirs do. The fence says that what has
// come is genuine.
std::vector<Landings> PutMover::exchange(const Landings& own, size_t batches) {
  const char* what = "learn where other ranks want their experts";
  const uint64_t words = table_words(config_), bytes = words * sizeof(uint32_t);
  if (own.size() + 1 > words) {
    throw Error(EPLB_INVALID_ARGUMENT, text("Cannot begin run: it has ", batches, " batches for ",
                                            config_.weights.layers, " layers"));
  }
  auto* host = own_.host_tables.as<uint32_t>();
  auto* device = reinterpret_cast<uint32_t*>(own_.tables.address());
  host[0] = static_cast<uint32_t>(batches);
  std::copy(own.begin(), own.end(), host + 1);
  EPLB_CUDA(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, own_.transfer));
  communicator().all_gather(device + words, device, words, own_.transfer, what);
  EPLB_CUDA(cudaMemcpyAsync(host + words, device + words, config_.world * bytes,
                            cudaMemcpyDeviceToHost, own_.transfer));
  const size_t fence = batches + 1;  // the one after that which ends the run
  own_.fences.raise(fence, communicator(), own_.transfer, what);
  await_fence(fence, what);
  std::vector<Landings> all;
  for (int32_t rank = 0; rank < config_.world; ++rank) {
    const uint32_t* table = host + (rank + 1) * words;
    if (table[0] != batches) {
      throw Error(EPLB_PEER_FAILED,
                  text("Cannot ", what, ": rank ", rank, " runs another program, of ", table[0],
                       " batches instead of ", batches),
                  rank);
    }
    all.emplace_back(table + 1, table + 1 + batches * config_.world);
  }
  return all;
}

bool PutMover::has_room(size_t batch) {
  bool free = false;
  guarded([&] {
    use_device(config_.device->ordinal());
    free = is_free(batch);
  });
  return free;
}

// Whether every rank is done with what the batch's set had before. This rank says so, too.
bool PutMover::is_free(size_t batch) {
  const uint64_t sets = config_.staging.sets;
  if (batch < sets) return true;
  const size_t before = batch - sets;
  const std::string what = text("stage batch ", batch);
  for (; rooms_raised_ <= before; ++rooms_raised_) {
    own_.room.wait(events(rooms_raised_).committed);
    own_.rooms.raise(rooms_raised_, *rooms_, own_.room, what.c_str());
  }
  return own_.rooms.reached(before, *rooms_, cancellation_, what.c_str());
}

// Packing is ahead already; what is to be waited for is room.
void PutMover::prepare(size_t batch) {
  for (Backoff backoff(kEager); !is_free(batch);) {
    if (backoff.pause()) (void)own_.room.idle();  // throws what went wrong on the device
  }
}

// The burst after the ones that are put is packed meanwhile, be it of the next batch: slots keep
// what they have until their own batch is committed.
void PutMover::transfer(size_t batch, const char* what) {
  const IndexRange& bursts = schedule_.batches[batch].bursts;
  for (uint32_t burst = bursts.first; burst != bursts.last; ++burst) {
    const IndexRange& range = schedule_.bursts[burst].puts;
    const Put* puts = schedule_.puts.data();
    own_.transfer.wait(own_.packed[burst % 2]);
    communicator().put(puts + range.first, puts + range.last, window_, own_.transfer, what);
    own_.sent[burst % 2].record(own_.transfer);
    pack_burst(burst + 2);
  }
}

// Once the burst before the last is on its way, and the half of the outbox is free again.
void PutMover::pack_burst(uint32_t burst) {
  if (burst >= schedule_.bursts.size()) return;
  own_.packing.wait(own_.sent[burst % 2]);
  own_.pieces.copy(schedule_.bursts[burst].pack, own_.packing, copy_blocks_);
  own_.packed[burst % 2].record(own_.packing);
}

void PutMover::abort_others() noexcept {
  if (rooms_ != nullptr) rooms_->abort();
}

std::unique_ptr<Mover> make_put_mover(const MoverConfig& config, const NcclIdBlob& id,
                                      const Cancellation& cancellation) {
  use_device(config.device->ordinal());
  return std::make_unique<PutMover>(config, id, cancellation);
}

}  // namespace eplb
