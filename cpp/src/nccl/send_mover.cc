// SPDX-License-Identifier: Apache-2.0
// Grouped sends and receives of one rank: see send_mover.h.
#include "nccl/send_mover.h"

#include <algorithm>
#include <utility>

#include "memory/allocation.h"
#include "memory/growing_memory.h"
#include "nccl/nccl_factory.h"

namespace eplb {
namespace {

constexpr uint64_t kLeastBytes = 256;  // of an allocation, where all tensors are small

// Warm-up messages: NCCL's protocols for short and for long ones each want their connections.
constexpr uint64_t kShortMessage = 1024;
constexpr uint64_t kLongMessage = uint64_t{1} << 20;
// Peers per warm-up group: bounds what NCCL sets up at once.
constexpr int32_t kPeersPerGroup = 8;

SendTask task_of(const MoverConfig& config, const GpuPeers& peers) {
  SendTask task;
  task.rank = config.rank;
  task.weights = config.weights;
  for (const PullPeer& peer : peers.ranks) {
    task.neighbors.push_back(peer.weights.address.empty() ? nullptr : &peer.weights);
  }
  task.neighbors[task.rank] = nullptr;
  task.gather_by_engine = config.copy_engine_only;
  return task;
}

uint32_t copy_blocks(const SendTask& task) {
  const bool pulls = std::any_of(task.neighbors.begin(), task.neighbors.end(),
                                 [](const WeightsView* neighbor) { return neighbor != nullptr; });
  return pulls ? kCopyBlocksBesidePulls : kCopyBlocks;
}

}  // namespace

struct SendMover::SendResources : NcclMover::Resources {
  SendResources(const MoverConfig& config, std::shared_ptr<const GpuPeers> all)
      : Resources(config),
        peers(std::move(all)),
        layout(config.weights, config.staging),
        pull(first_priority()),
        pulled(std::make_unique<Event[]>(config.staging.sets)),
        packed(std::make_unique<Event[]>(config.staging.sets)),
        staging(config.device, std::max(config.staging.sets * layout.set_bytes(), kLeastBytes)),
        scratch(config.device, 2 * kLongMessage),
        packs(config.device),
        send_packs(config.device) {}
  bool copies_idle() const override { return Resources::copies_idle() && pull.idle(); }
  bool drained() const override { return Resources::drained() && !pull.running(); }

  const std::shared_ptr<const GpuPeers> peers;
  const StagingLayout layout;
  const Stream pull;
  const std::unique_ptr<Event[]> pulled, packed;  // [sets]
  const Allocation staging;
  const Allocation scratch;         // the warm-up's two messages
  GrowingMemory packs, send_packs;  // these grow with the programs
};

SendMover::SendMover(const MoverConfig& config, const NcclIdBlob& id,
                     std::shared_ptr<const GpuPeers> peers, const Cancellation& cancellation)
    : NcclMover(config, std::make_unique<SendResources>(config, std::move(peers)), cancellation),
      own_(static_cast<SendResources&>(*gpu_)),
      task_(task_of(config, *own_.peers)) {
  copy_blocks_ = copy_blocks(task_);
  reserve_packs(config.staging.cells, config.staging.cells);
  join(id);
  warm_up();
}

// Makes NCCL connect every pair of ranks that are no neighbors. Else it would at a pair's first
// message: slowly, and taking memory that may be gone by then.
void SendMover::warm_up() {
  guarded([&] {
    const char* what = "connect to every rank";
    exchange_with_all(kShortMessage, what);
    exchange_with_all(kLongMessage, what);
    own_.fences.raise(0, communicator(), own_.transfer, what);
    await_fence(0, what);
  });
}

// Every rank meets its peers in the same order: in step s, rank r sends to r + s. Neighbors send
// each other nothing, then or later.
void SendMover::exchange_with_all(uint64_t bytes, const char* what) {
  const uint64_t outgoing = own_.scratch.address();
  const uint64_t incoming = outgoing + kLongMessage;
  for (int32_t step = 1; step < config_.world;) {
    std::vector<Message> messages;
    for (int32_t n = 0; n < kPeersPerGroup && step < config_.world; ++n, ++step) {
      const int32_t to = (config_.rank + step) % config_.world;
      const int32_t from = (config_.rank - step + config_.world) % config_.world;
      if (task_.neighbor(to) == nullptr) messages.push_back({true, to, outgoing, bytes});
      if (task_.neighbor(from) == nullptr) messages.push_back({false, from, incoming, bytes});
    }
    communicator().exchange(messages.data(), messages.data() + messages.size(), own_.transfer,
                            what);
  }
}

void SendMover::lower(const std::vector<RankBatch>& batches, bool held) {
  StagingAddresses addresses;
  addresses.sets = config_.staging.sets;
  addresses.send_experts = most_sent(batches, task_);
  addresses.pack_experts = most_packed(batches, task_);
  reserve_packs(addresses.pack_experts, addresses.send_experts);
  addresses.cells = own_.staging.address();
  addresses.packs = own_.packs.address();
  addresses.send_packs = own_.send_packs.address();
  SendTask task = task_;
  task.commit_by_engine = config_.copy_engine_only && !held;
  schedule_ = make_send_schedule(batches, task, own_.layout, addresses);
  own_.pieces.assign(std::move(schedule_.kernel_pieces), std::move(schedule_.engine_pieces));
}

// Of so many experts in each set: those that it holds in packs, and those that it sends.
void SendMover::reserve_packs(uint64_t packed, uint64_t sent) {
  const uint64_t sets = config_.staging.sets;
  own_.packs.reserve(sets * packed * own_.layout.pack_bytes);
  own_.send_packs.reserve(sets * sent * own_.layout.pack_bytes);
  staging_bytes = sets * own_.layout.set_bytes() + own_.packs.bytes() + own_.send_packs.bytes();
}

void SendMover::prepare(size_t batch) {
  const SendBatch& plan = schedule_.batches[batch];
  const size_t set = batch % config_.staging.sets;
  own_.pull.wait(events(batch).committed);
  own_.pieces.copy_by_engine(plan.pull, own_.pull);
  own_.pulled[set].record(own_.pull);
  if (plan.pack.empty()) return;
  own_.pieces.copy_by_kernel(plan.pack, own_.local, copy_blocks_);
  own_.packed[set].record(own_.local);
  own_.transfer.wait(own_.packed[set]);
}

void SendMover::transfer(size_t batch, const char* what) {
  for (const IndexRange& round : schedule_.batches[batch].rounds) {
    const Message* messages = schedule_.messages.data();
    communicator().exchange(messages + round.first, messages + round.last, own_.transfer, what);
  }
  own_.transfer.wait(own_.pulled[batch % config_.staging.sets]);
}

std::unique_ptr<Mover> make_send_mover(const MoverConfig& config, const NcclIdBlob& id,
                                       std::shared_ptr<const GpuPeers> peers,
                                       const Cancellation& cancellation) {
  use_device(config.device->ordinal());
  return std::make_unique<SendMover>(config, id, std::move(peers), cancellation);
}

}  // namespace eplb
