// SPDX-License-Identifier: Apache-2.0
// An engine: the weights of some ranks of a world, joined to a transport.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/crew.h"
#include "base/handles.h"
#include "engine/executor.h"
#include "engine/progress.h"
#include "eplb.h"
#include "memory/allocation.h"
#include "memory/weights.h"
#include "pull/control.h"
#include "pull/staging_board.h"
#include "transport/blob.h"
#include "transport/mover.h"

namespace eplb {

// Throws EPLB_INVALID_ARGUMENT for values out of range.
void check_config(const eplb_engine_config& config);

class Engine : public HandleObject {
 public:
  static constexpr char kName[] = "engine";
  static constexpr uint64_t kHandleKind = 2;

  struct Local {
    int32_t rank, node;
    std::shared_ptr<Weights> weights;
  };
  // The config is checked, and the caller holds the turn of all weights.
  Engine(const eplb_engine_config& config, std::vector<Local> locals);
  ~Engine();

  void describe(eplb_engine_info* info) const;
  const std::vector<char>& export_blob(uint32_t index);
  void connect(const char* blobs, const uint64_t* lengths, uint64_t timeout_ms);
  void seal();
  RunOutcome run(const int32_t* program, uint64_t words, const eplb_run_config& config,
                 uint64_t* rank_bytes);
  uint32_t settle(uint32_t batches);
  // Frees everything but what the functions below need.
  void close();

  // Any time, by any thread.
  RunCounts progress() const { return progress_.counts(); }
  void commit(uint32_t batches, uint64_t timeout_ms, uint32_t* committed);
  void abort(int32_t failed_rank, const std::string& reason);

  uint32_t local_count() const { return static_cast<uint32_t>(locals_.size()); }

 private:
  enum class State { kCreated, kConnected, kBroken };
  class WeightsTurns;

  void check_locals() const;
  void check_memory() const;
  bool pulls() const {
    return config_.transport == EPLB_TRANSPORT_PULL ||
           config_.transport == EPLB_TRANSPORT_PULL_NCCL;
  }
  bool uses_nccl() const { return config_.transport != EPLB_TRANSPORT_PULL; }
  bool on_gpus() const { return locals_[0].weights->device()->ordinal() >= 0; }
  RankBlob make_blob(uint32_t index);
  void offer_weights(const Weights& weights, RankBlob* blob);
  void offer_staging(uint32_t index, RankBlob* blob);
  std::vector<GpuAllocation> share_gpu_memory(const Weights& weights, int32_t rank) const;
  std::vector<RankBlob> decode_blobs(const char* bytes, const uint64_t* lengths);
  void check_own(const RankBlob& blob, const char* bytes, uint64_t length) const;
  void join(const std::vector<RankBlob>& blobs);
  void check_neighbors(const std::vector<RankBlob>& blobs) const;
  std::vector<Executor::Member> make_nccl_movers(const std::vector<RankBlob>& blobs);
  std::vector<Executor::Member> make_pull_movers(const std::vector<RankBlob>& blobs);
  std::vector<WeightsView> local_views() const;
  std::shared_ptr<const std::vector<WeightsView>> map_peers(const std::vector<RankBlob>& blobs);
  void join_control(const RankBlob& first);
  void join_board(const RankBlob& first);
  std::vector<Executor::Member> make_movers(
      const std::function<std::unique_ptr<Mover>(const MoverConfig&)>& make);
  MoverConfig mover_config(size_t index) const;
  bool pulls_on_gpus() const { return on_gpus() && config_.transport == EPLB_TRANSPORT_PULL; }
  bool has_remote_ranks() const { return locals_.size() < config_.world; }
  BoardSize board_size() const;
  uint64_t experts() const;  // layers * slots
  uint32_t fences() const;
  void remove_names() noexcept;
  void require_whole(const char* verb) const;
  void break_down(const Error& error);
  void set_deadline(uint64_t timeout_ms);

  const eplb_engine_config config_;
  std::vector<Local> locals_;
  State state_ = State::kCreated;
  std::string why_broken_;
  Cancellation cancellation_;
  Progress progress_;
  std::unique_ptr<Crew> crew_;
  std::vector<std::vector<char>> blobs_;    // of local ranks, once exported
  std::vector<SegmentReference> segments_;  // whose names are to be removed
  std::vector<SharedMemory> mappings_;      // of other processes' weights
  std::vector<Allocation> staging_;         // [locals], of GPUs that pull
  std::shared_ptr<Control> control_;        // made here, when rank 0 is local
  std::shared_ptr<StagingBoard> board_;     // the same; for GPUs that pull
  std::unique_ptr<Executor> executor_;      // once connected
  std::mutex executor_mutex_;  // against commits of other threads, while it is made or freed
};

}  // namespace eplb
