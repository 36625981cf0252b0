// SPDX-License-Identifier: Apache-2.0
// The NCCL transport of one rank: see nccl_mover.h.
#include "nccl/nccl_mover.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/backoff.h"
#include "memory/copy_engine.h"
#include "memory/digest.h"
#include "nccl/nccl_factory.h"

namespace eplb {
namespace {

constexpr std::chrono::microseconds kEager{50};
// Copies within a device: what takes longer is stuck.
constexpr std::chrono::seconds kFlushLimit{60};
constexpr std::chrono::milliseconds kDrainLimit{2000};
constexpr uint64_t kUploadBytes = uint64_t{1} << 20;
constexpr uint64_t kLeastBytes = 256;  // of an allocation, where all tensors are small

// Warm-up messages: NCCL's protocols for short and for long ones each want their connections.
constexpr uint64_t kShortMessage = 1024;
constexpr uint64_t kLongMessage = uint64_t{1} << 20;
// Peers per warm-up group: bounds what NCCL sets up at once.
constexpr int32_t kPeersPerGroup = 8;

template <class T>
T* pointer(uint64_t address) {
  return reinterpret_cast<T*>(address);
}

NcclTask task_of(const MoverConfig& config, const GpuPeers& peers) {
  NcclTask task;
  task.rank = config.rank;
  task.weights = config.weights;
  for (const PullPeer& peer : peers.ranks) {
    task.neighbors.push_back(peer.weights.address.empty() ? nullptr : &peer.weights);
  }
  task.neighbors[task.rank] = nullptr;
  task.gather_by_engine = config.copy_engine_only;
  return task;
}

uint32_t copy_blocks(const NcclTask& task) {
  const bool pulls = std::any_of(task.neighbors.begin(), task.neighbors.end(),
                                 [](const WeightsView* neighbor) { return neighbor != nullptr; });
  return pulls ? kCopyBlocksBesidePulls : kCopyBlocks;
}

}  // namespace

struct NcclMover::Resources {
  Resources(const MoverConfig& config, const StagingLayout& layout,
            std::shared_ptr<const GpuPeers> peers)
      : peers(std::move(peers)),
        pull(first_priority()),
        transfer(first_priority()),
        events(std::make_unique<SetEvents[]>(config.staging.sets)),
        reports((config.staging.sets + 1) * sizeof(FenceReport)),
        giving_up(sizeof(uint32_t)),
        upload(kUploadBytes),
        staging(config.device, std::max(config.staging.sets * layout.set_bytes(), kLeastBytes)),
        scratch(config.device, 2 * kLongMessage + 2 * sizeof(uint64_t)) {}

  // Two numbers behind the warm-up's two messages.
  uint64_t* fence_value() const { return pointer<uint64_t>(scratch.address() + 2 * kLongMessage); }
  uint64_t* fence_sum() const { return fence_value() + 1; }

  const std::shared_ptr<const GpuPeers> peers;
  CopyEngine engine;
  Stream pull, transfer, local, commit;
  std::unique_ptr<SetEvents[]> events;  // [sets]
  PinnedMemory reports;                 // [sets + 1]: of the fences that can be open at once
  PinnedMemory giving_up;               // one word
  PinnedMemory upload;
  Allocation staging, scratch;
  Allocation packs, send_packs, lists;  // these grow with the programs
  uint64_t pack_bytes = 0, send_pack_bytes = 0, list_bytes = 0;
  std::vector<Allocation> outgrown;
};

NcclMover::NcclMover(const MoverConfig& config, const NcclIdBlob& id,
                     std::shared_ptr<const GpuPeers> peers, const Cancellation& cancellation)
    : config_(config),
      cancellation_(cancellation),
      layout_(config.weights, config.staging),
      task_(task_of(config, *peers)),
      copy_blocks_(copy_blocks(task_)) {
  // All memory first: once NCCL's kernels wait for other ranks, an allocation might wait for them.
  use_device(config.device->ordinal());
  gpu_ = std::make_unique<Resources>(config, layout_, std::move(peers));
  load_kernels();
  const WeightsView& weights = config.weights;
  const uint64_t slot_tensors = uint64_t{1} * weights.layers * weights.slots * weights.tensors;
  // Every slot copied, committed and packed once: more than most programs need.
  grow(&gpu_->list_bytes, &gpu_->lists, 3 * slot_tensors * (sizeof(Piece) + sizeof(uint64_t)));
  const uint64_t pack_bytes = config.staging.sets * config.staging.cells * layout_.pack_bytes;
  grow(&gpu_->pack_bytes, &gpu_->packs, pack_bytes);
  grow(&gpu_->send_pack_bytes, &gpu_->send_packs, pack_bytes);
  communicator_ = std::make_unique<NcclCommunicator>(config, id, cancellation);
}

NcclMover::~NcclMover() {
  (void)cudaSetDevice(config_.device->ordinal());
  communicator_.reset();
  // To free memory that a stuck kernel holds would wait for that kernel: it is left behind instead.
  if (!drained(kDrainLimit)) (void)gpu_.release();
}

void NcclMover::warm_up() {
  guarded([&] {
    const char* what = "connect to every rank";
    exchange_with_all(kShortMessage, what);
    exchange_with_all(kLongMessage, what);
    raise_fence(0, what);
    await_fence(0, what);
  });
}

// Every rank meets its peers in the same order: in step s, rank r sends to r + s. Neighbors send
// each other nothing, then or later.
void NcclMover::exchange_with_all(uint64_t bytes, const char* what) {
  const uint64_t outgoing = gpu_->scratch.address();
  const uint64_t incoming = outgoing + kLongMessage;
  for (int32_t step = 1; step < config_.world;) {
    std::vector<Message> messages;
    for (int32_t n = 0; n < kPeersPerGroup && step < config_.world; ++n, ++step) {
      const int32_t to = (config_.rank + step) % config_.world;
      const int32_t from = (config_.rank - step + config_.world) % config_.world;
      if (task_.neighbor(to) == nullptr) messages.push_back({true, to, outgoing, bytes});
      if (task_.neighbor(from) == nullptr) messages.push_back({false, from, incoming, bytes});
    }
    communicator_->exchange(messages.data(), messages.data() + messages.size(), gpu_->transfer,
                            what);
  }
}

void NcclMover::begin(const std::vector<RankBatch>& batches, bool held) {
  ++run_;
  commit_blocks_ = held ? all_blocks(config_.device->ordinal()) : copy_blocks_;
  bytes_in = bytes_out = 0;
  guarded([&] {
    use_device(config_.device->ordinal());
    const uint64_t sets = config_.staging.sets;
    StagingAddresses addresses;
    addresses.sets = sets;
    addresses.send_experts = most_sent(batches, task_);
    addresses.pack_experts = most_packed(batches, task_);
    grow(&gpu_->pack_bytes, &gpu_->packs, sets * addresses.pack_experts * layout_.pack_bytes);
    grow(&gpu_->send_pack_bytes, &gpu_->send_packs,
         sets * addresses.send_experts * layout_.pack_bytes);
    addresses.cells = gpu_->staging.address();
    addresses.packs = gpu_->packs.address();
    addresses.send_packs = gpu_->send_packs.address();
    NcclTask task = task_;
    task.commit_by_engine = config_.copy_engine_only && !held;
    schedule_ = make_schedule(batches, task, layout_, addresses);
    upload();
  });
}

// All pieces of the run that kernels copy, then their running sum of chunks.
void NcclMover::upload() {
  first_chunk_ = count_chunks(schedule_.kernel_pieces);
  const uint64_t piece_bytes = schedule_.kernel_pieces.size() * sizeof(Piece);
  const uint64_t chunk_bytes = first_chunk_.size() * sizeof(uint64_t);
  grow(&gpu_->list_bytes, &gpu_->lists, piece_bytes + chunk_bytes);
  copy_up(gpu_->lists.address(), schedule_.kernel_pieces.data(), piece_bytes);
  copy_up(gpu_->lists.address() + piece_bytes, first_chunk_.data(), chunk_bytes);
}

// Copies to the device through page-locked memory, in one go for all but the largest programs.
void NcclMover::copy_up(uint64_t target, const void* source, uint64_t bytes) {
  char* pinned = gpu_->upload.as<char>();
  for (uint64_t done = 0; done < bytes;) {
    const uint64_t part = std::min(bytes - done, gpu_->upload.bytes());
    std::memcpy(pinned, static_cast<const char*>(source) + done, part);
    EPLB_CUDA(cudaMemcpyAsync(pointer<void>(target + done), pinned, part, cudaMemcpyHostToDevice,
                              gpu_->local));
    gpu_->local.synchronize();
    done += part;
  }
}

// Makes sure that `memory` holds `bytes`. What it outgrows is kept: freeing it might wait for
// kernels of other ranks of this process, which may already wait for this rank.
void NcclMover::grow(uint64_t* capacity, Allocation* memory, uint64_t bytes) {
  if (bytes <= *capacity) return;
  Allocation larger(config_.device, std::max(bytes, 2 * *capacity));
  std::swap(*memory, larger);
  if (*capacity > 0) gpu_->outgrown.push_back(std::move(larger));
  *capacity = std::max(bytes, 2 * *capacity);
  staging_bytes =
      config_.staging.sets * layout_.set_bytes() + gpu_->pack_bytes + gpu_->send_pack_bytes;
}

void NcclMover::copy(const Copies& copies, const Stream& stream, uint32_t blocks) {
  launch_copy(work(copies.kernel), stream, blocks);
  submit(copies.engine, stream);
}

void NcclMover::submit(const IndexRange& engine_pieces, const Stream& stream) {
  const Piece* pieces = schedule_.engine_pieces.data();
  gpu_->engine.submit(pieces + engine_pieces.first, pieces + engine_pieces.last, stream);
}

WorkList<Piece> NcclMover::work(const IndexRange& range) const {
  const auto* pieces = pointer<const Piece>(gpu_->lists.address());
  const auto* first_chunk = pointer<const uint64_t>(gpu_->lists.address() +
                                                    schedule_.kernel_pieces.size() * sizeof(Piece));
  return {pieces + range.first, first_chunk + range.first, range.last - range.first,
          first_chunk_[range.first], first_chunk_[range.last]};
}

void NcclMover::stage(size_t batch) {
  guarded([&] {
    use_device(config_.device->ordinal());
    const BatchSchedule& plan = schedule_.batches[batch];
    const SetEvents& set = events(batch);
    const std::string what = text("stage batch ", batch);
    for (const Stream* stream : {&gpu_->pull, &gpu_->local, &gpu_->transfer}) {
      stream->wait(set.committed);  // of the batch that had this staging set before
    }
    submit(plan.pull, gpu_->pull);
    set.pulled.record(gpu_->pull);
    if (!plan.pack.empty()) {
      launch_copy(work(plan.pack), gpu_->local, copy_blocks_);
      set.packed.record(gpu_->local);
      gpu_->transfer.wait(set.packed);
    }
    copy(plan.copy, gpu_->local, copy_blocks_);
    set.copied.record(gpu_->local);
    for (const IndexRange& round : plan.rounds) {
      const Message* messages = schedule_.messages.data();
      communicator_->exchange(messages + round.first, messages + round.last, gpu_->transfer,
                              what.c_str());
    }
  });
}

void NcclMover::arrive(size_t batch) {
  guarded([&] {
    use_device(config_.device->ordinal());
    gpu_->transfer.wait(events(batch).pulled);
    gpu_->transfer.wait(events(batch).copied);
    raise_fence(batch, text("announce batch ", batch).c_str());
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
    there = reached(batch, what.c_str());
  });
  if (there) count_bytes(batch);
  return there;
}

void NcclMover::count_bytes(size_t batch) {
  bytes_in += schedule_.batches[batch].bytes_in;
  bytes_out += schedule_.batches[batch].bytes_out;
}

// A rank that did not fail in NCCL's calls, but in the executor's, has still to leave.
bool NcclMover::resolve(size_t batch) {
  if (communicator_ != nullptr) give_up();
  return passed(batch);
}

void NcclMover::commit(size_t batch) {
  use_device(config_.device->ordinal());
  copy(schedule_.batches[batch].commit, gpu_->commit, commit_blocks_);
  events(batch).committed.record(gpu_->commit);
}

bool NcclMover::landed(size_t batch) {
  use_device(config_.device->ordinal());
  return events(batch).committed.done();
}

// Not subject to the cancellation: what was decided is carried out.
void NcclMover::flush() {
  use_device(config_.device->ordinal());
  const auto idle = [&] { return gpu_->commit.idle() && gpu_->pull.idle() && gpu_->local.idle(); };
  const auto deadline = std::chrono::steady_clock::now() + kFlushLimit;
  for (Backoff backoff(kEager); !idle(); backoff.pause()) {
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
    raise_fence(schedule_.batches.size(), what);
    await_fence(schedule_.batches.size(), what);
  });
}

// Runs `body`; gives up if it fails.
template <class Body>
void NcclMover::guarded(Body body) {
  if (communicator_ == nullptr) {
    throw Error(EPLB_BROKEN, text("Cannot move expert weights: rank ", config_.rank,
                                  " has left the NCCL communicator"));
  }
  try {
    body();
  } catch (...) {
    give_up();
    throw;
  }
}

// Aborts. The flag first: see the top of nccl_mover.h.
void NcclMover::give_up() noexcept {
  __atomic_store_n(gpu_->giving_up.as<uint32_t>(), 1, __ATOMIC_SEQ_CST);
  communicator_->abort();
  communicator_.reset();
  drained(kDrainLimit);  // a fence that was passed after all has then reported it
}

// Waits until no kernel of this mover is left.
bool NcclMover::drained(std::chrono::milliseconds limit) noexcept {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  const auto running = [](const Stream& stream) {
    return cudaStreamQuery(stream) == cudaErrorNotReady;
  };
  Backoff backoff(kEager);
  while (running(gpu_->transfer) || running(gpu_->pull) || running(gpu_->local) ||
         running(gpu_->commit)) {
    if (std::chrono::steady_clock::now() >= deadline) return false;
    backoff.pause();
  }
  (void)cudaGetLastError();
  return true;
}

NcclMover::SetEvents& NcclMover::events(size_t batch) const {
  return gpu_->events[batch % config_.staging.sets];
}

// ---- fences -------------------------------------------------------------------------------------
// Fence b is batch b's; the one after the last batch ends the run; run 0 is the warm-up.

// As many as can be open at once have their own place.
FenceReport* NcclMover::report(size_t fence) const {
  return gpu_->reports.as<FenceReport>() + fence % (config_.staging.sets + 1);
}

uint64_t NcclMover::fence_number(size_t fence) const { return (uint64_t{run_} << 32) + fence + 1; }

// The number of batches is part of it: ranks with different programs do not pass.
uint64_t NcclMover::proof(size_t fence, int32_t rank) const {
  return mix(mix(mix(fence_number(fence)) + schedule_.batches.size()) +
             static_cast<uint64_t>(rank));
}

bool NcclMover::passed(size_t fence) const {
  const FenceReport* report = this->report(fence);
  if (__atomic_load_n(&report->fence, __ATOMIC_ACQUIRE) != fence_number(fence)) return false;
  uint64_t sum = 0;
  for (int32_t rank = 0; rank < config_.world; ++rank) sum += proof(fence, rank);
  return report->sum == sum;
}

void NcclMover::raise_fence(size_t fence, const char* what) {
  launch_announce(gpu_->fence_value(), proof(fence, config_.rank), gpu_->giving_up.as<uint32_t>(),
                  gpu_->transfer);
  communicator_->all_reduce(gpu_->fence_sum(), gpu_->fence_value(), gpu_->transfer, what);
  launch_report(report(fence), gpu_->fence_sum(), fence_number(fence), gpu_->transfer);
}

void NcclMover::await_fence(size_t fence, const char* what) {
  Backoff backoff(kEager);
  while (!reached(fence, what)) {
    if (backoff.pause()) (void)gpu_->transfer.idle();  // throws what went wrong on the device
  }
}

// Whether the fence's sum is here. Throws if it is wrong, or something ends the wait for it.
bool NcclMover::reached(size_t fence, const char* what) {
  if (__atomic_load_n(&report(fence)->fence, __ATOMIC_ACQUIRE) != fence_number(fence)) {
    cancellation_.check(what);
    communicator_->check(what);
    return false;
  }
  if (!passed(fence)) {
    throw Error(EPLB_PEER_FAILED,
                text("Cannot ", what, ": another rank gave up before, or runs another program"));
  }
  return true;
}

std::unique_ptr<Mover> make_nccl_mover(const MoverConfig& config, const NcclIdBlob& id,
                                       std::shared_ptr<const GpuPeers> peers,
                                       const Cancellation& cancellation) {
  auto mover = std::make_unique<NcclMover>(config, id, std::move(peers), cancellation);
  mover->warm_up();
  return mover;
}

}  // namespace eplb
