// SPDX-License-Identifier: Apache-2.0
// What NCCL's movers have in common: see nccl_mover.h.
#include "nccl/nccl_mover.h"

#include <utility>

#include "base/backoff.h"

namespace eplb {
namespace {

constexpr std::chrono::microseconds kEager{50};
// Copies within a device: what takes longer is stuck.
constexpr std::chrono::seconds kFlushLimit{60};
constexpr std::chrono::milliseconds kDrainLimit{2000};

// Every slot packed, copied and committed once: more than most programs need.
uint64_t expected_pieces(const WeightsView& weights) {
  return uint64_t{3} * weights.layers * weights.slots * weights.tensors;
}

}  // namespace

NcclMover::Resources::Resources(const MoverConfig& config)
    : pieces(config.device, expected_pieces(config.weights)),
      transfer(first_priority()),
      sets(std::make_unique<SetEvents[]>(config.staging.sets)),
      giving_up(sizeof(uint32_t)),
      fences(config, config.staging.sets + 1, giving_up.as<uint32_t>()) {}

bool NcclMover::Resources::drained() const {
  return !transfer.running() && !local.running() && !commit.running();
}

NcclMover::NcclMover(const MoverConfig& config, std::unique_ptr<Resources> resources,
                     const Cancellation& cancellation)
    : config_(config), cancellation_(cancellation), gpu_(std::move(resources)) {
  load_kernels();
}

void NcclMover::join(const NcclIdBlob& id) {
  communicator_ = std::make_unique<NcclCommunicator>(config_, id, cancellation_);
}

NcclMover::~NcclMover() {
  (void)cudaSetDevice(config_.device->ordinal());
  communicator_.reset();
  // To free memory that a stuck kernel holds would wait for that kernel: it is left behind instead.
  if (!drained(kDrainLimit)) (void)gpu_.release();
}

void NcclMover::begin(const std::vector<RankBatch>& batches, bool held) {
  commit_blocks_ = held ? all_blocks(config_.device->ordinal()) : copy_blocks_;
  bytes_in = bytes_out = 0;
  guarded([&] {
    use_device(config_.device->ordinal());
    gpu_->fences.begin(batches.size());
    lower(batches, held);
  });
}

void NcclMover::stage(size_t batch) {
  guarded([&] {
    use_device(config_.device->ordinal());
    const auto& set = events(batch);
    // Of the batch that had this staging set before.
    gpu_->local.wait(set.committed);
    gpu_->transfer.wait(set.committed);
    prepare(batch);
    gpu_->pieces.copy(plan(batch).copy, gpu_->local, copy_blocks_);
    set.copied.record(gpu_->local);
    transfer(batch, text("stage batch ", batch).c_str());
  });
}

void NcclMover::arrive(size_t batch) {
  guarded([&] {
    use_device(config_.device->ordinal());
    gpu_->transfer.wait(events(batch).copied);
    gpu_->fences.raise(batch, *communicator_, gpu_->transfer,
                       text("announce batch ", batch).c_str());
  });
}

void NcclMover::wait(size_t batch) {
  guarded([&] { await_fence(batch, text("commit batch ", batch).c_str()); });
  count_bytes(batch);
}

bool NcclMover::agreed(size_t batch) {
  bool there = false;
  guarded([&] {
    const std::string what = text("commit batch ", batch);
    cancellation_.check_cancelled(what.c_str());
    use_device(config_.device->ordinal());
    (void)gpu_->transfer.idle();  // throws what went wrong on the device
    there = gpu_->fences.reached(batch, *communicator_, cancellation_, what.c_str());
  });
  if (there) count_bytes(batch);
  return there;
}

void NcclMover::count_bytes(size_t batch) {
  bytes_in += plan(batch).bytes_in;
  bytes_out += plan(batch).bytes_out;
}

// A rank that did not fail in NCCL's calls, but in the executor's, has still to leave.
bool NcclMover::resolve(size_t batch) {
  if (!communicator_->left()) give_up();
  return gpu_->fences.passed(batch);
}

void NcclMover::commit(size_t batch) {
  use_device(config_.device->ordinal());
  gpu_->pieces.copy(plan(batch).commit, gpu_->commit, commit_blocks_);
  events(batch).committed.record(gpu_->commit);
}

bool NcclMover::landed(size_t batch) {
  use_device(config_.device->ordinal());
  return events(batch).committed.done();
}

// Not subject to the cancellation: what was decided is carried out. Copies know nothing of NCCL and
// always end: a rank that gives up waits for its own, so that nothing reads slots, its own or its
// neighbors', once it has left the run.
void NcclMover::flush() {
  use_device(config_.device->ordinal());
  const auto deadline = std::chrono::steady_clock::now() + kFlushLimit;
  Backoff backoff(kEager);
  for (; !gpu_->commit.idle() || !gpu_->copies_idle(); backoff.pause()) {
    if (std::chrono::steady_clock::now() < deadline) continue;
    throw Error(EPLB_CUDA_ERROR,
                text("Cannot commit expert weights: CUDA device ", config_.device->ordinal(),
                     " has not finished within ", kFlushLimit.count(), " seconds"));
  }
}

void NcclMover::finish() {
  guarded([&] {
    use_device(config_.device->ordinal());
    const char* what = "end the run on every rank";
    gpu_->fences.raise(batches(), *communicator_, gpu_->transfer, what);
    await_fence(batches(), what);
  });
}

// Aborts. The flag first: see nccl_fences.h.
void NcclMover::give_up() noexcept {
  __atomic_store_n(gpu_->giving_up.as<uint32_t>(), 1, __ATOMIC_SEQ_CST);
  communicator_->abort();
  abort_others();
  drained(kDrainLimit);  // a fence that was passed after all has then reported it
}

// Waits until no kernel of this mover is left.
bool NcclMover::drained(std::chrono::milliseconds limit) noexcept {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  for (Backoff backoff(kEager); !gpu_->drained(); backoff.pause()) {
    if (std::chrono::steady_clock::now() >= deadline) return false;
  }
  (void)cudaGetLastError();
  return true;
}

void NcclMover::await_fence(size_t fence, const char* what) {
  Backoff backoff(kEager);
  while (!gpu_->fences.reached(fence, *communicator_, cancellation_, what)) {
    if (backoff.pause()) (void)gpu_->transfer.idle();  // throws what went wrong on the device
  }
}

}  // namespace eplb
