// SPDX-License-Identifier: Apache-2.0
// How an engine's ranks meet those of other engines: blobs out, blobs in, and a mover for each
// rank.
#include <algorithm>
#include <cstring>
#include <utility>

#include "base/text.h"
#include "engine/engine.h"
#include "nccl/nccl_factory.h"
#include "pull/gpu_pull_mover.h"
#include "pull/pull_mover.h"
#include "transport/cell_layout.h"

namespace eplb {

const std::vector<char>& Engine::export_blob(uint32_t index) {
  if (index >= locals_.size()) {
    throw Error(EPLB_INVALID_ARGUMENT, text("Cannot export blob ", index, ": the engine has ",
                                            locals_.size(), " local ranks"));
  }
  if (blobs_[index].empty()) blobs_[index] = make_blob(index).encode();
  return blobs_[index];
}

RankBlob Engine::make_blob(uint32_t index) {
  const Local& local = locals_[index];
  const WeightsView& view = local.weights->view();
  RankBlob blob;
  blob.fixed.rank = local.rank;
  blob.fixed.world = static_cast<int32_t>(config_.world);
  blob.fixed.transport = static_cast<int32_t>(config_.transport);
  blob.fixed.layers = view.layers;
  blob.fixed.slots = view.slots;
  blob.fixed.tensors = view.tensors;
  blob.fixed.ordinal = local.weights->device()->ordinal();
  blob.fixed.staging_cells = config_.staging_cells;
  blob.fixed.node = local.node;
  blob.fixed.staging_sets = config_.staging_sets;
  blob.fixed.small_bytes = config_.small_bytes;
  blob.fixed.host = this_host();
  blob.fixed.process = this_process();
  blob.tensor_bytes = view.tensor_bytes;
  offer_weights(*local.weights, &blob);
  if (pulls_on_gpus()) offer_staging(index, &blob);
  if (local.rank != 0) return blob;
  if (uses_nccl()) {
    blob.fixed.nccl_id = nccl_make_id();
  } else if (has_remote_ranks()) {
    control_ = Control::create_shared(config_.world, fences());
    blob.fixed.control = control_->reference();
    segments_.push_back(blob.fixed.control);
    if (pulls_on_gpus()) {
      board_ = StagingBoard::create_shared(board_size());
      blob.fixed.board = board_->reference();
      segments_.push_back(blob.fixed.board);
    }
  }
  return blob;
}

// Tells other processes how to map the weights, if they can.
void Engine::offer_weights(const Weights& weights, RankBlob* blob) {
  const WeightsView& view = weights.view();
  std::vector<Span> memory;
  if (const SharedMemory* segment = weights.segment()) {
    blob->fixed.weights = segment->reference();
    segments_.push_back(blob->fixed.weights);
    memory.push_back({reinterpret_cast<uint64_t>(segment->data()), segment->bytes()});
  } else if (on_gpus() && pulls()) {
    const std::string gpu = pci_bus_id(weights.device()->ordinal());
    gpu.copy(blob->fixed.gpu, sizeof(blob->fixed.gpu) - 1);
    if (has_remote_ranks()) blob->allocations = share_gpu_memory(weights, blob->fixed.rank);
    for (const GpuAllocation& one : blob->allocations) memory.push_back({one.address, one.bytes});
  }
  if (!memory.empty()) blob->offer(view, memory);
}

// Peers write into it, so it is there before they are told of it.
void Engine::offer_staging(uint32_t index, RankBlob* blob) {
  const std::shared_ptr<Device> device = locals_[index].weights->device();
  const uint64_t cell = CellLayout(blob->tensor_bytes).bytes;
  staging_[index] = Allocation(device, cell * config_.staging_cells * config_.staging_sets);
  const uint64_t address = staging_[index].address();
  blob->fixed.staging.address = address;
  if (!has_remote_ranks()) return;
  blob->fixed.staging = export_gpu_allocation(address, device->ordinal());
  blob->fixed.staging_offset = address - blob->fixed.staging.address;
}

// Empty for memory that cannot be shared, if that may turn out not to matter: check_neighbors()
// knows.
std::vector<GpuAllocation> Engine::share_gpu_memory(const Weights& weights, int32_t rank) const {
  try {
    return export_gpu_memory(weights.view(), rank, weights.device()->ordinal());
  } catch (const Error& error) {
    if (!uses_nccl() || error.status != EPLB_UNSUPPORTED) throw;
    return {};
  }
}

// All are decoded before a damaged one is refused, so that all names are known and removed.
std::vector<RankBlob> Engine::decode_blobs(const char* bytes, const uint64_t* lengths) {
  std::vector<RankBlob> blobs(config_.world);
  std::optional<Error> error;
  for (uint32_t rank = 0; rank < config_.world; bytes += lengths[rank++]) {
    try {
      blobs[rank] = RankBlob::decode(bytes, lengths[rank], static_cast<int32_t>(rank));
      segments_.push_back(blobs[rank].fixed.weights);
      segments_.push_back(blobs[rank].fixed.control);
      segments_.push_back(blobs[rank].fixed.board);
      check_own(blobs[rank], bytes, lengths[rank]);
    } catch (const Error& found) {
      if (!error) error = found;
    }
  }
  if (error) throw *error;
  return blobs;
}

// A local rank's blob must be what this engine exported, not what an earlier engine did.
void Engine::check_own(const RankBlob& blob, const char* bytes, uint64_t length) const {
  for (size_t i = 0; i < locals_.size(); ++i) {
    if (locals_[i].rank != blob.fixed.rank) continue;
    if (blobs_[i].size() == length && std::memcmp(blobs_[i].data(), bytes, length) == 0) return;
    throw Error(EPLB_PEER_MISMATCH,
                text("Cannot connect to rank ", blob.fixed.rank,
                     ": its blob is not the one that this engine exported"),
                blob.fixed.rank);
  }
}

void Engine::join(const std::vector<RankBlob>& blobs) {
  const RankBlob& own = blobs[locals_[0].rank];
  for (const RankBlob& peer : blobs) check_compatible(own, peer);
  cancellation_.check("connect engine");
  check_neighbors(blobs);
  auto executor =
      std::make_unique<Executor>(uses_nccl() ? make_nccl_movers(blobs) : make_pull_movers(blobs),
                                 cancellation_, *crew_, progress_);
  const std::lock_guard<std::mutex> lock(executor_mutex_);
  executor_ = std::move(executor);
}

// Neighbors in different engines must be able to map each other. Both ends refuse if they cannot,
// so that none waits for the other.
void Engine::check_neighbors(const std::vector<RankBlob>& blobs) const {
  std::vector<bool> is_local(config_.world);
  for (const Local& local : locals_) is_local[local.rank] = true;
  for (const Local& local : locals_) {
    for (const RankBlob& peer : blobs) {
      const RankBlob& own = blobs[local.rank];
      if (is_local[peer.fixed.rank] || !are_neighbors(own, peer)) continue;
      check_reachable(own, peer);
      check_reachable(peer, own);
    }
  }
}

std::vector<Executor::Member> Engine::make_nccl_movers(const std::vector<RankBlob>& blobs) {
  return make_movers([&](const MoverConfig& config) {
    if (config_.transport == EPLB_TRANSPORT_NCCL_PUT) {
      return make_put_mover(config, blobs[0].fixed.nccl_id, cancellation_);
    }
    return make_send_mover(config, blobs[0].fixed.nccl_id,
                           map_gpu_peers(blobs, local_views(), config.rank), cancellation_);
  });
}

std::vector<Executor::Member> Engine::make_pull_movers(const std::vector<RankBlob>& blobs) {
  if (on_gpus()) {
    join_control(blobs[0]);
    join_board(blobs[0]);
    return make_movers([&](const MoverConfig& config) {
      return make_gpu_pull_mover(config, map_gpu_peers(blobs, local_views(), config.rank), control_,
                                 board_, cancellation_);
    });
  }
  const auto views = map_peers(blobs);
  join_control(blobs[0]);
  return make_movers([&](const MoverConfig& config) {
    return make_pull_mover(config, views, control_, cancellation_);
  });
}

// [world]; empty for ranks of other engines.
std::vector<WeightsView> Engine::local_views() const {
  std::vector<WeightsView> views(config_.world);
  for (const Local& local : locals_) views[local.rank] = local.weights->view();
  return views;
}

std::shared_ptr<const std::vector<WeightsView>> Engine::map_peers(
    const std::vector<RankBlob>& blobs) {
  std::vector<WeightsView> views = local_views();
  for (const RankBlob& peer : blobs) {
    WeightsView& view = views[peer.fixed.rank];
    if (!view.address.empty()) continue;
    mappings_.push_back(SharedMemory::open(peer.fixed.weights));
    view = peer.located({reinterpret_cast<uint64_t>(mappings_.back().data())});
  }
  return std::make_shared<const std::vector<WeightsView>>(std::move(views));
}

void Engine::join_control(const RankBlob& first) {
  if (control_) return;  // made for rank 0's blob
  control_ = has_remote_ranks() ? Control::open_shared(first.fixed.control, config_.world, fences())
                                : Control::create_local(config_.world, fences());
}

void Engine::join_board(const RankBlob& first) {
  if (board_) return;  // made for rank 0's blob
  board_ = has_remote_ranks() ? StagingBoard::open_shared(first.fixed.board, board_size())
                              : StagingBoard::create_local(board_size());
}

std::vector<Executor::Member> Engine::make_movers(
    const std::function<std::unique_ptr<Mover>(const MoverConfig&)>& make) {
  std::vector<Executor::Member> members(locals_.size());
  std::vector<std::optional<Error>> errors(locals_.size());
  crew_->run([&](size_t i) {
    members[i].rank = locals_[i].rank;
    try {
      members[i].mover = make(mover_config(i));
    } catch (...) {
      errors[i] = current_error();
      cancellation_.cancel(errors[i]->status, errors[i]->rank, errors[i]->what());
    }
  });
  if (!cancellation_.cancelled()) return members;
  crew_->run([&](size_t i) { members[i].mover.reset(); });
  throw cancellation_.cause();
}

MoverConfig Engine::mover_config(size_t index) const {
  const Local& local = locals_[index];
  MoverConfig config;
  config.rank = local.rank;
  config.world = static_cast<int32_t>(config_.world);
  config.device = local.weights->device();
  config.weights = local.weights->view();
  config.staging = {config_.staging_cells, config_.staging_sets, config_.small_bytes};
  config.max_ctas = config_.max_ctas;
  config.copy_engine_only =
      config_.copy_engine_only != 0 && config_.transport != EPLB_TRANSPORT_NCCL;
  return config;
}

}  // namespace eplb
