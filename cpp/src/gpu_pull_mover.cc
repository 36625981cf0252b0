// SPDX-License-Identifier: Apache-2.0
// The pull transport of one rank on a GPU: see gpu_pull_mover.h.
#include "gpu_pull_mover.h"

#include <utility>
#include <vector>

#include "allocation.h"
#include "backoff.h"
#include "copy_engine.h"
#include "cuda_check.h"
#include "kernels.h"
#include "pull_mover.h"
#include "pull_schedule.h"

namespace eplb {
namespace {

// Blocks of the copy kernels that run beside pulls. 32 copy 1.4 TB/s inside an H200, more than a pull
// brings in; with 64 the pulls of another process' memory fall from 366 to 295 GB/s.
constexpr uint32_t kLocalBlocks = 32;

constexpr std::chrono::microseconds kEager{50};
// Copies between and within GPUs of one machine: what takes longer is stuck.
constexpr std::chrono::seconds kFlushLimit{60};

// What everything waits for goes first where there is a choice.
int pull_priority() {
  int least = 0, greatest = 0;
  EPLB_CUDA(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  return greatest;
}

// A run's pieces for the copy kernel, in device memory.
class UploadedPieces {
 public:
  explicit UploadedPieces(std::shared_ptr<Device> device) : device_(std::move(device)) {}

  void upload(const std::vector<Piece>& pieces) {
    first_chunk_ = count_chunks(pieces);
    const uint64_t piece_bytes = pieces.size() * sizeof(Piece);
    const uint64_t chunk_bytes = first_chunk_.size() * sizeof(uint64_t);
    if (piece_bytes + chunk_bytes > capacity_) {
      capacity_ = 2 * (piece_bytes + chunk_bytes);
      memory_ = Allocation(device_, capacity_);
    }
    chunks_ = memory_.address() + piece_bytes;
    if (piece_bytes > 0) device_->write(memory_.address(), pieces.data(), piece_bytes);
    device_->write(chunks_, first_chunk_.data(), chunk_bytes);
  }

  WorkList<Piece> work(const IndexRange& range) const {
    return {reinterpret_cast<const Piece*>(memory_.address()) + range.first,
            reinterpret_cast<const uint64_t*>(chunks_) + range.first, range.last - range.first,
            first_chunk_[range.first], first_chunk_[range.last]};
  }

 private:
  const std::shared_ptr<Device> device_;
  Allocation memory_;  // pieces, then their running sum of chunks
  uint64_t capacity_ = 0, chunks_ = 0;
  std::vector<uint64_t> first_chunk_;
};

class GpuPullMover : public Mover {
 public:
  GpuPullMover(const MoverConfig& config, std::shared_ptr<const GpuPeers> peers,
               std::shared_ptr<Control> control, const Cancellation& cancellation)
      : config_(config),
        peers_(std::move(peers)),
        control_(std::move(control)),
        cancellation_(cancellation) {
    use_device(ordinal());
    load_kernels();
    staging_bytes =
        CellLayout(config.weights.tensor_bytes).bytes * config.staging.cells * config.staging.sets;
    gpu_ = std::make_unique<Resources>(config, staging_bytes);
  }

  ~GpuPullMover() override {
    (void)cudaSetDevice(ordinal());
    try {
      flush();  // peers' memory must not be unmapped while it is read
    } catch (...) {
      // The device is lost, and with it what it was doing.
    }
  }

  void begin(const std::vector<RankBatch>& batches) override {
    ++epoch_;
    staged_ = announced_ = 0;
    bytes_in = bytes_out = 0;
    control_->enter(epoch_, static_cast<uint32_t>(batches.size()));
    use_device(ordinal());
    PullTask task;
    task.rank = config_.rank;
    task.sources = &peers_->ranks;
    task.staging = config_.staging;
    task.staging_address = gpu_->staging.address();
    task.copy_engine_only = config_.copy_engine_only;
    schedule_ = make_pull_schedule(batches, task);
    gpu_->pieces.upload(schedule_.kernel_pieces);
  }

  void stage(size_t batch) override {
    cancellation_.check("stage weights");
    use_device(ordinal());
    const PullBatch& plan = schedule_.batches[batch];
    const SetEvents& set = events(batch);
    gpu_->pull.wait(set.committed);  // of the batch that had this staging set before
    gpu_->gather.wait(set.committed);
    submit(plan.pull, gpu_->pull);
    set.pulled.record(gpu_->pull);
    submit(plan.gather, gpu_->gather);
    set.gathered.record(gpu_->gather);
    bytes_in += plan.bytes_in;
    bytes_out += plan.bytes_out;
    staged_ = batch + 1;
  }

  // The bytes are still on their way, and the host is needed to stage the next batch: wait() or
  // agreed() announces this one. Nobody waits for its fence before the one of the batch before is
  // passed.
  void arrive(size_t) override {}

  void wait(size_t batch) override {
    use_device(ordinal());
    for (Backoff backoff(kEager); !is_here(batch); backoff.pause()) {
      cancellation_.check("stage weights");
    }
    announce(batch);
    control_->wait(epoch_, fence(batch), config_.rank, cancellation_);
  }

  bool agreed(size_t batch) override {
    cancellation_.check_cancelled("wait for other ranks");
    use_device(ordinal());
    if (batch < staged_ && is_here(batch)) announce(batch);
    return control_->passed(epoch_, fence(batch));
  }

  bool resolve(size_t batch) override {
    return control_->resolve(epoch_, fence(batch), config_.rank, cancellation_.cause());
  }

  void commit(size_t batch) override {
    use_device(ordinal());
    for (const Copies& step : schedule_.batches[batch].commit) submit(step, gpu_->commit);
    events(batch).committed.record(gpu_->commit);
  }

  void land(size_t batch) override {
    await_device([&] { return events(batch).committed.done(); });
  }

  // Pulls and gathers that a failure has left behind end, too, so that nothing reads peers' memory
  // after the run.
  void flush() override {
    await_device([&] { return gpu_->commit.idle() && gpu_->gather.idle() && gpu_->pull.idle(); });
  }

  void finish() override {
    const uint32_t last = fence(schedule_.batches.size());
    control_->arrive(epoch_, last, config_.rank);
    control_->wait(epoch_, last, config_.rank, cancellation_);
  }

 private:
  struct SetEvents {
    Event pulled, gathered, committed;
  };

  // Made and freed on the rank's device.
  struct Resources {
    Resources(const MoverConfig& config, uint64_t staging_bytes)
        : staging(config.device, staging_bytes),
          pieces(config.device),
          pull(pull_priority()),
          sets(std::make_unique<SetEvents[]>(config.staging.sets)) {}

    const Allocation staging;
    UploadedPieces pieces;
    CopyEngine engine;
    const Stream pull, gather, commit;
    const std::unique_ptr<SetEvents[]> sets;
  };

  static uint32_t fence(size_t batch) { return static_cast<uint32_t>(batch); }
  int32_t ordinal() const { return config_.device->ordinal(); }
  const SetEvents& events(size_t batch) const { return gpu_->sets[batch % config_.staging.sets]; }

  void submit(const IndexRange& range, const Stream& stream) {
    const Piece* pieces = schedule_.engine_pieces.data();
    gpu_->engine.submit(pieces + range.first, pieces + range.last, stream);
  }

  void submit(const Copies& copies, const Stream& stream) {
    launch_copy(gpu_->pieces.work(copies.kernel), stream, kLocalBlocks);
    submit(copies.engine, stream);
  }

  bool is_here(size_t batch) const {
    const SetEvents& set = events(batch);
    return set.gathered.done() && set.pulled.done();
  }

  // Once for each batch.
  void announce(size_t batch) {
    if (batch < announced_) return;
    announced_ = batch + 1;
    control_->arrive(epoch_, fence(batch), config_.rank);
  }

  // Not subject to the cancellation: what was decided is carried out.
  template <class Condition>
  void await_device(Condition is_done) const {
    use_device(ordinal());
    const auto deadline = std::chrono::steady_clock::now() + kFlushLimit;
    for (Backoff backoff(kEager); !is_done(); backoff.pause()) {
      if (std::chrono::steady_clock::now() < deadline) continue;
      throw Error(EPLB_CUDA_ERROR,
                  text("Cannot commit expert weights: CUDA device ", ordinal(),
                       " has not finished within ", kFlushLimit.count(), " seconds"));
    }
  }

  const MoverConfig config_;
  const std::shared_ptr<const GpuPeers> peers_;
  const std::shared_ptr<Control> control_;
  const Cancellation& cancellation_;
  std::unique_ptr<Resources> gpu_;
  PullSchedule schedule_;
  uint32_t epoch_ = 0;
  size_t staged_ = 0, announced_ = 0;  // batches of this run
};

}  // namespace

std::unique_ptr<Mover> make_gpu_pull_mover(const MoverConfig& config,
                                           std::shared_ptr<const GpuPeers> peers,
                                           std::shared_ptr<Control> control,
                                           const Cancellation& cancellation) {
  return std::make_unique<GpuPullMover>(config, std::move(peers), std::move(control), cancellation);
}

}  // namespace eplb
