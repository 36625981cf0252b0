// SPDX-License-Identifier: Apache-2.0
// Life of an engine.
#include "engine/engine.h"

#include <algorithm>
#include <mutex>
#include <thread>
#include <utility>

#include "base/text.h"
#include "nccl/nccl_factory.h"
#include "transport/cell_layout.h"

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
  if (config.transport < EPLB_TRANSPORT_PULL || config.transport > EPLB_TRANSPORT_NCCL_PUT) {
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
  if (config_.transport == EPLB_TRANSPORT_NCCL_PUT) nccl_check_puts();
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
  terms.expert_bytes = view.expert_bytes();
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
    if (executor_) executor_->commit_permitted(deadline);
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
  std::unique_ptr<Executor> leaving;  // which may take long: nobody waits for it at the lock
  {
    const std::lock_guard<std::mutex> lock(executor_mutex_);
    leaving = std::move(executor_);
  }
  leaving.reset();
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
