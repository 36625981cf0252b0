// SPDX-License-Identifier: Apache-2.0
// The pull transport of one rank on a GPU: see gpu_pull_mover.h.
#include "pull/gpu_pull_mover.h"

#include <algorithm>
#include <deque>
#include <utility>
#include <vector>

#include "base/backoff.h"
#include "memory/cuda_check.h"
#include "memory/kernels.h"
#include "memory/piece_lists.h"
#include "pull/pull_schedule.h"
#include "transport/cell_layout.h"

namespace eplb {
namespace {

// Streams with pushes to other ranks: a copy's start and end leave gaps that another's bytes fill.
// Four H200s that write as much to each other bring 312 GB/s into each with one lane, 384 with
// three.
constexpr uint32_t kMostLanes = 8;

constexpr std::chrono::microseconds kEager{50};
// Copies between and within GPUs of one machine: what takes longer is stuck.
constexpr std::chrono::seconds kFlushLimit{60};
// After a failure: for writes of other ranks into memory that is to be freed.
constexpr std::chrono::seconds kLeaveLimit{1};

class GpuPullMover : public Mover {
 public:
  GpuPullMover(const MoverConfig& config, std::shared_ptr<const GpuPeers> peers,
               std::shared_ptr<Control> control, std::shared_ptr<StagingBoard> board,
               const Cancellation& cancellation)
      : config_(config),
        peers_(std::move(peers)),
        control_(std::move(control)),
        board_(std::move(board)),
        cancellation_(cancellation) {
    use_device(ordinal());
    load_kernels();
    staging_bytes = CellLayout(config.weights.tensor_bytes).bytes * config.staging.all_cells();
    gpu_ = std::make_unique<Resources>(config);
  }

  ~GpuPullMover() override {
    (void)cudaSetDevice(ordinal());
    try {
      flush();  // peers' memory must not be unmapped while it is in use
    } catch (...) {
      // The device is lost, and with it what it was doing.
    }
    if (finished_ != epoch_) await_leavers();
  }

  void begin(const std::vector<RankBatch>& batches, bool held) override {
    ++epoch_;
    staged_ = announced_ = begun_ = landed_ = 0;
    bytes_in = bytes_out = 0;
    control_->enter(epoch_, static_cast<uint32_t>(batches.size()));
    const StagingRing ring(batches, config_.weights, config_.staging.all_cells());
    after_ = ring.after;
    board_->enter(config_.rank, epoch_, ring);
    await_entries();
    use_device(ordinal());
    PullTask task;
    task.rank = config_.rank;
    task.peers = &peers_->ranks;
    for (int32_t rank = 0; rank < config_.world; ++rank) {
      task.cells.push_back(board_->arrivals(rank));
    }
    task.staging = config_.staging;
    task.gather_by_engine = config_.copy_engine_only;
    task.commit_by_engine = config_.copy_engine_only && !held;
    task.push_by_kernel = !config_.copy_engine_only && peers_->other_gpus > 1;
    copy_blocks_ = task.push_by_kernel ? kCopyBlocks : kCopyBlocksBesidePulls;
    commit_blocks_ = held ? all_blocks(ordinal()) : copy_blocks_;
    schedule_ = make_pull_schedule(batches, ring, task);
    gpu_->pieces.assign(std::move(schedule_.kernel_pieces), std::move(schedule_.engine_pieces));
  }

  size_t commits_before(size_t batch) const override { return after_[batch]; }

  bool has_room(size_t batch) override {
    use_device(ordinal());
    keep_up();
    const std::vector<Push>& pushes = schedule_.batches[batch].push;
    return std::all_of(pushes.begin(), pushes.end(), [&](const Push& push) {
      return board_->has_landed(push.peer, epoch_, board_->after(push.peer, batch));
    });
  }

  void stage(size_t batch) override {
    use_device(ordinal());
    for (Backoff backoff(kEager); !has_room(batch); backoff.pause()) {
      cancellation_.check("stage weights");
      (void)control_->passed(epoch_, fence(batch));  // throws when a peer gave up
    }
    cancellation_.check("stage weights");
    const PullBatch& plan = schedule_.batches[batch];
    const BatchEvents& own = events(batch);
    for (const Push& push : plan.push) {
      gpu_->pieces.copy_by_engine(push.pieces, gpu_->lanes[push.lane % gpu_->lane_count]);
    }
    for (uint32_t lane = 0; lane < gpu_->lane_count; ++lane) {
      own.pushed[lane].record(gpu_->lanes[lane]);
    }
    gpu_->pieces.copy_by_engine(plan.pull, gpu_->pull);
    own.pulled.record(gpu_->pull);
    // Of the batches that had these cells before; commits are done in order.
    if (after_[batch] > 0) gpu_->gather.wait(events(after_[batch] - 1).committed);
    gpu_->pieces.copy(plan.gather, gpu_->gather, copy_blocks_);
    own.gathered.record(gpu_->gather);
    bytes_in += plan.bytes_in;
    bytes_out += plan.bytes_out;
    staged_ = batch + 1;
  }

  // The bytes are still on their way, and the host is needed to stage the next batch: keep_up()
  // announces this one.
  void arrive(size_t) override {}

  void wait(size_t batch) override {
    use_device(ordinal());
    for (Backoff backoff(kEager); announced_ <= batch; backoff.pause()) {
      cancellation_.check("stage weights");
      keep_up();
    }
    control_->wait(epoch_, fence(batch), config_.rank, cancellation_,
                   [this] { return !keep_up(); });
  }

  bool agreed(size_t batch) override {
    cancellation_.check_cancelled("wait for other ranks");
    use_device(ordinal());
    keep_up();
    return control_->passed(epoch_, fence(batch));
  }

  bool resolve(size_t batch) override {
    return control_->resolve(epoch_, fence(batch), config_.rank, cancellation_.cause());
  }

  void commit(size_t batch) override {
    use_device(ordinal());
    for (const Copies& step : schedule_.batches[batch].commit) {
      gpu_->pieces.copy(step, gpu_->commit, commit_blocks_);
    }
    events(batch).committed.record(gpu_->commit);
    begun_ = batch + 1;
  }

  bool landed(size_t batch) override {
    use_device(ordinal());
    publish_landed();
    return landed_ > batch;
  }

  // Not subject to the cancellation: what was decided is carried out, and transfers that a failure
  // has left behind end, so that none touches peers' memory after the run.
  void flush() override {
    use_device(ordinal());
    const auto deadline = std::chrono::steady_clock::now() + kFlushLimit;
    for (Backoff backoff(kEager); !gpu_->idle(); backoff.pause()) {
      if (std::chrono::steady_clock::now() < deadline) continue;
      throw Error(EPLB_CUDA_ERROR,
                  text("Cannot commit expert weights: CUDA device ", ordinal(),
                       " has not finished within ", kFlushLimit.count(), " seconds"));
    }
    publish_landed();
    board_->leave(config_.rank, epoch_);
  }

  void finish() override {
    const uint32_t last = fence(schedule_.batches.size());
    control_->arrive(epoch_, last, config_.rank);
    control_->wait(epoch_, last, config_.rank, cancellation_);
    finished_ = epoch_;
  }

 private:
  struct BatchEvents {
    std::unique_ptr<Event[]> pushed;  // [lanes]
    Event pulled, gathered, committed;
  };

  // Made and freed on the rank's device.
  struct Resources {
    explicit Resources(const MoverConfig& config)
        : lane_count(std::clamp(static_cast<uint32_t>(config.world) - 1, 1u, kMostLanes)),
          pieces(config.device, 0),
          pull(first_priority()),
          events(std::make_unique<BatchEvents[]>(kMostAhead)) {
      for (uint32_t lane = 0; lane < lane_count; ++lane) lanes.emplace_back(first_priority());
      for (uint32_t i = 0; i < kMostAhead; ++i) {
        events[i].pushed = std::make_unique<Event[]>(lane_count);
      }
    }
    bool idle() const {
      return commit.idle() && gather.idle() && pull.idle() &&
             std::all_of(lanes.begin(), lanes.end(),
                         [](const Stream& lane) { return lane.idle(); });
    }

    const uint32_t lane_count;
    PieceLists pieces;
    std::deque<Stream> lanes;
    const Stream pull, gather, commit;
    const std::unique_ptr<BatchEvents[]> events;  // of the batches under way
  };

  static uint32_t fence(size_t batch) { return static_cast<uint32_t>(batch); }
  int32_t ordinal() const { return config_.device->ordinal(); }
  const BatchEvents& events(size_t batch) const { return gpu_->events[batch % kMostAhead]; }

  bool is_here(size_t batch) const {
    const BatchEvents& own = events(batch);
    return own.gathered.done() && own.pulled.done() &&
           std::all_of(own.pushed.get(), own.pushed.get() + gpu_->lane_count,
                       [](const Event& pushed) { return pushed.done(); });
  }

  // Tells other ranks which batches are in place, so that they write the next ones; true if all
  // whose commit was started are.
  bool publish_landed() {
    const size_t before = landed_;
    while (landed_ < begun_ && events(landed_).committed.done()) ++landed_;
    if (landed_ > before) {
      board_->land(config_.rank, epoch_, static_cast<uint32_t>(landed_));
    }
    return landed_ == begun_;
  }

  // Until all ranks have said where they want their experts.
  void await_entries() {
    int32_t rank = 0;
    for (Backoff backoff(kEager);; backoff.pause()) {
      while (rank < config_.world && board_->has_entered(rank, epoch_)) ++rank;
      if (rank == config_.world) return;
      (void)control_->passed(epoch_, 0);  // throws when a peer gave up
      try {
        cancellation_.check("begin run");
      } catch (const Error& error) {
        if (error.status != EPLB_TIMEOUT) throw;
        throw Error(EPLB_TIMEOUT,
                    text("Cannot begin run: the time limit has passed, and rank ", rank,
                         " has not come so far"),
                    rank);
      }
    }
  }

  // After a failure: until no rank that came to the run writes into this one's staging memory. A
  // rank that has died does not say so.
  void await_leavers() const {
    const auto deadline = std::chrono::steady_clock::now() + kLeaveLimit;
    Backoff backoff(kEager);
    for (int32_t rank = 0; rank < config_.world; ++rank) {
      while (board_->has_entered(rank, epoch_) && !board_->has_left(rank, epoch_)) {
        if (std::chrono::steady_clock::now() >= deadline) return;
        backoff.pause();
      }
    }
  }

  // Tells other ranks all that they may be waiting for, whatever this one waits for itself: each
  // may be further ahead than the other. True if nothing is left to tell soon.
  bool keep_up() {
    while (announced_ < staged_ && is_here(announced_)) {
      control_->arrive(epoch_, fence(announced_++), config_.rank);
    }
    return publish_landed() && announced_ == staged_;
  }

  const MoverConfig config_;
  const std::shared_ptr<const GpuPeers> peers_;
  const std::shared_ptr<Control> control_;
  const std::shared_ptr<StagingBoard> board_;
  const Cancellation& cancellation_;
  std::unique_ptr<Resources> gpu_;
  PullSchedule schedule_;
  std::vector<uint32_t> after_;  // of this rank's ring
  uint32_t epoch_ = 0, finished_ = 0, copy_blocks_ = 0, commit_blocks_ = 0;
  size_t staged_ = 0, announced_ = 0, begun_ = 0, landed_ = 0;  // batches of this run
};

}  // namespace

std::unique_ptr<Mover> make_gpu_pull_mover(const MoverConfig& config,
                                           std::shared_ptr<const GpuPeers> peers,
                                           std::shared_ptr<Control> control,
                                           std::shared_ptr<StagingBoard> board,
                                           const Cancellation& cancellation) {
  return std::make_unique<GpuPullMover>(config, std::move(peers), std::move(control),
                                        std::move(board), cancellation);
}

}  // namespace eplb
