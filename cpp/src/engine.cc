// SPDX-License-Identifier: Apache-2.0
// Life of an engine.
#include "engine.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <numeric>
#include <thread>
#include <utility>

#include "gpu_peers.h"
#include "gpu_pull_mover.h"
#include "nccl_factory.h"
#include "pull_mover.h"
#include "text.h"

namespace eplb {
namespace {

constexpr uint32_t kMostRanks = 65536;
constexpr uint32_t kMostSets = 4;
constexpr uint64_t kLongestTimeout = uint64_t{1} << 40;  // milliseconds: 34 years

[[noreturn]] void refuse(const std::string& message, int32_t status = EPLB_INVALID_ARGUMENT) {
  throw Error(status, message);
}

std::chrono::steady_clock::time_point deadline_after(uint64_t timeout_ms) {
  if (timeout_ms == 0) refuse("Cannot wait for other ranks: the timeout is 0 milliseconds");
  return std::chrono::steady_clock::now() +
         std::chrono::milliseconds(std::min(timeout_ms, kLongestTimeout));
}

void check_run_config(const eplb_run_config& config) {
  if (config.held > 1) refuse(text("Cannot run program: held is ", config.held, ", not 0 or 1"));
  if (config.reserved != 0) {
    refuse(text("Cannot run program: reserved is ", config.reserved, ", not 0"));
  }
}

}  // namespace

void check_config(const eplb_engine_config& config) {
  const auto wrong = [](const char* field, auto value, const std::string& rule) {
    refuse(text("Cannot create engine: ", field, " is ", value, ", not ", rule));
  };
  if (config.world < 1 || config.world > kMostRanks) {
    wrong("world", config.world, text("1 to ", kMostRanks));
  }
  if (config.locals < 1 || config.locals > config.world) {
    wrong("locals", config.locals, text("1 to the world of ", config.world));
  }
  if (config.transport < EPLB_TRANSPORT_PULL || config.transport > EPLB_TRANSPORT_PULL_NCCL) {
    wrong("transport", config.transport, "a known one");
  }
  if (config.staging_cells < 1) wrong("staging_cells", config.staging_cells, "at least 1");
  if (config.staging_sets < 1 || config.staging_sets > kMostSets) {
    wrong("staging_sets", config.staging_sets, text("1 to ", kMostSets));
  }
  if (config.max_ctas < 0) wrong("max_ctas", config.max_ctas, "at least 0");
  if (config.copy_engine_only > 1) wrong("copy_engine_only", config.copy_engine_only, "0 or 1");
  if (config.reserved != 0) wrong("reserved", config.reserved, "0");
}

// While a run uses weights, other calls on them are refused; a run waits for those that were first,
// all of which are short, but for another engine's.
class Engine::WeightsTurns {
 public:
  WeightsTurns(const std::vector<Local>& locals, const Cancellation& cancellation) {
    while (!take(locals)) {
      turns_.clear();
      cancellation.check("use weights");
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

 private:
  bool take(const std::vector<Local>& locals) {
    for (const Local& local : locals) {
      if (!turns_.emplace_back(local.weights->turn, std::try_to_lock).owns_lock()) return false;
    }
    return true;
  }

  std::vector<std::unique_lock<std::mutex>> turns_;
};

Engine::Engine(const eplb_engine_config& config, std::vector<Local> locals)
    : config_(config), locals_(std::move(locals)), progress_(locals_.size()) {
  check_locals();
  check_memory();
  if (uses_nccl()) nccl_open(nullptr, nullptr);
  blobs_.resize(locals_.size());
  staging_.resize(locals_.size());
  crew_ = std::make_unique<Crew>(locals_.size());
  for (const Local& local : locals_) ++local.weights->users;
}

Engine::~Engine() { close(); }

void Engine::check_locals() const {
  const WeightsView& first = locals_[0].weights->view();
  std::vector<bool> seen(config_.world);
  for (const Local& local : locals_) {
    const int32_t rank = local.rank;
    if (rank < 0 || static_cast<uint32_t>(rank) >= config_.world) {
      refuse(text("Cannot create engine: rank ", rank, " is not in a world of ", config_.world));
    }
    if (seen[rank]) refuse(text("Cannot create engine: rank ", rank, " is there twice"));
    seen[rank] = true;
    const WeightsView& view = local.weights->view();
    if (view.layers != first.layers || view.slots != first.slots ||
        view.tensor_bytes != first.tensor_bytes) {
      refuse(text("Cannot create engine: the weights of ranks ", locals_[0].rank, " and ", rank,
                  " differ in layers, slots or tensors"));
    }
  }
  if (config_.staging_cells > experts()) {
    refuse(text("Cannot create engine: staging_cells is ", config_.staging_cells, ", above the ",
                experts(), " experts of a rank"));
  }
}

void Engine::check_memory() const {
  std::vector<Range> hulls;
  for (const Local& local : locals_) {
    const std::string start = text("Cannot create engine: the weights of rank ", local.rank);
    if (!local.weights->has_memory()) refuse(start + " have no memory");
    const bool host = local.weights->device()->ordinal() < 0;
    if (host && uses_nccl()) {
      refuse(start + " are in host memory; nccl moves GPU memory, use pull", EPLB_UNSUPPORTED);
    }
    if (host == on_gpus()) {
      refuse(text(start, " are ", host ? "in host memory" : "on a GPU", ", but those of rank ",
                  locals_[0].rank, host ? " on a GPU" : " in host memory",
                  "; a job moves one kind of memory"),
             EPLB_UNSUPPORTED);
    }
    const std::vector<Range> own = local.weights->hulls(local.rank);
    hulls.insert(hulls.end(), own.begin(), own.end());
  }
  if (const auto overlap = find_overlap(hulls)) {
    refuse(text("Cannot create engine: the weights of ranks ", overlap->first, " and ",
                overlap->second, " overlap"));
  }
}

void Engine::describe(eplb_engine_info* info) const {
  info->cell_bytes = CellLayout(locals_[0].weights->view().tensor_bytes).bytes;
  info->staging_bytes = executor_ ? executor_->mover(0).staging_bytes
                                  : info->cell_bytes * config_.staging_cells * config_.staging_sets;
}

const std::vector<char>& Engine::export_blob(uint32_t index) {
  if (index >= locals_.size()) {
    refuse(text("Cannot export blob ", index, ": the engine has ", locals_.size(), " local ranks"));
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
  } else if (on_gpus() && config_.transport != EPLB_TRANSPORT_NCCL) {
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

void Engine::connect(const char* blobs, const uint64_t* lengths, uint64_t timeout_ms) {
  if (state_ == State::kConnected) refuse("Cannot connect engine: it is connected already");
  require_whole("connect engine");
  set_deadline(timeout_ms);
  try {
    join(decode_blobs(blobs, lengths));
    state_ = State::kConnected;
  } catch (...) {
    break_down(current_error());
    remove_names();
    throw;
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
  const std::lock_guard<std::mutex> lock(executor_mutex_);
  executor_ =
      std::make_unique<Executor>(uses_nccl() ? make_nccl_movers(blobs) : make_pull_movers(blobs),
                                 cancellation_, *crew_, progress_);
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
    return make_nccl_mover(config, blobs[0].fixed.nccl_id,
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
  config.staging_address = staging_[index].address();
  config.max_ctas = config_.max_ctas;
  config.copy_engine_only =
      config_.copy_engine_only != 0 && config_.transport != EPLB_TRANSPORT_NCCL;
  return config;
}

BoardSize Engine::board_size() const {
  const WeightsView& view = locals_[0].weights->view();
  return {config_.world, static_cast<uint32_t>(view.layers), static_cast<uint32_t>(view.slots)};
}

uint64_t Engine::experts() const {
  const WeightsView& view = locals_[0].weights->view();
  return uint64_t{1} * view.layers * view.slots;
}

uint32_t Engine::fences() const {
  // A batch has at least one layer; the last fence is the end of a run.
  return static_cast<uint32_t>(locals_[0].weights->view().layers) + 1;
}

void Engine::seal() {
  if (state_ == State::kCreated) refuse("Cannot seal engine: it is not connected");
  remove_names();
}

void Engine::remove_names() noexcept {
  for (const SegmentReference& segment : segments_) unlink_segment(segment);
}

RunOutcome Engine::run(const int32_t* program, uint64_t words, const eplb_run_config& config,
                       uint64_t* rank_bytes) {
  require_whole("run program");
  if (state_ != State::kConnected) refuse("Cannot run program: the engine is not connected");
  check_run_config(config);
  const WeightsView& view = locals_[0].weights->view();
  ProgramLimits limits = {view.layers,
                          view.slots,
                          static_cast<int32_t>(config_.world),
                          static_cast<int32_t>(config_.staging_cells),
                          {}};
  for (const Local& local : locals_) limits.local_ranks.push_back(local.rank);
  Program parsed = parse_program(program, words, limits);

  set_deadline(config.timeout_ms);
  // Beside a held run the model reads its weights; it does not while it lets layers change.
  std::optional<WeightsTurns> turns;
  if (config.held == 0) turns.emplace(locals_, cancellation_);
  RunTerms terms;
  terms.held = config.held != 0;
  terms.bytes_per_second = config.bytes_per_second;
  terms.expert_bytes =
      std::accumulate(view.tensor_bytes.begin(), view.tensor_bytes.end(), uint64_t{0});
  const RunOutcome outcome = executor_->run(std::move(parsed), terms);
  if (outcome.error) break_down(*outcome.error);
  for (size_t i = 0; rank_bytes != nullptr && i < locals_.size(); ++i) {
    rank_bytes[2 * i] = executor_->mover(i).bytes_in;
    rank_bytes[2 * i + 1] = executor_->mover(i).bytes_out;
  }
  return outcome;
}

void Engine::commit(uint32_t batches, uint64_t timeout_ms, uint32_t* committed) {
  const auto deadline = deadline_after(timeout_ms);
  progress_.permit(batches);
  {
    const std::lock_guard<std::mutex> lock(executor_mutex_);
    if (executor_) executor_->commit_permitted();
  }
  progress_.commit(batches, deadline, committed);
}

uint32_t Engine::settle(uint32_t batches) {
  if (!executor_) refuse("Cannot settle engine: it is not connected");
  const WeightsTurns turns(locals_, Cancellation());
  return executor_->settle(batches);
}

void Engine::abort(int32_t failed_rank, const std::string& reason) {
  if (failed_rank < -1 || failed_rank >= static_cast<int32_t>(config_.world)) {
    refuse(
        text("Cannot abort engine: rank ", failed_rank, " is not in a world of ", config_.world));
  }
  cancellation_.cancel(EPLB_ABORTED, failed_rank,
                       reason.empty() ? "the engine was aborted" : "aborted: " + reason);
  progress_.wake();
}

void Engine::close() {
  {
    const std::lock_guard<std::mutex> lock(executor_mutex_);
    executor_.reset();
  }
  crew_.reset();
  mappings_.clear();
  staging_.clear();
  control_.reset();
  board_.reset();
  remove_names();
  // Weights count their users last: whoever sees none may free them.
  for (const Local& local : locals_) --local.weights->users;
  locals_.clear();
}

void Engine::require_whole(const char* verb) const {
  if (state_ != State::kBroken) return;
  refuse(text("Cannot ", verb, ": the engine is broken (", why_broken_, ")"), EPLB_BROKEN);
}

void Engine::break_down(const Error& error) {
  state_ = State::kBroken;
  why_broken_ = error.what();
}

void Engine::set_deadline(uint64_t timeout_ms) { cancellation_.reset(deadline_after(timeout_ms)); }

}  // namespace eplb
