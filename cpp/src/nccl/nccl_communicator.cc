// SPDX-License-Identifier: Apache-2.0
// NCCL calls that end.
#include "nccl/nccl_communicator.h"

#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <thread>
#include <utility>

#include "base/backoff.h"
#include "base/error.h"
#include "base/text.h"

namespace eplb {
namespace {

// Some calls say ncclSuccess when they have begun: for them, the communicator knows.
ncclResult_t started(ncclResult_t result) {
  return result == ncclSuccess ? ncclInProgress : result;
}

// NCCL finishes a group on a thread of its own, in some 50 microseconds.
constexpr std::chrono::microseconds kEager{200};
// How long leaving a communicator may take. Ranks leave together unless one of them is in trouble.
constexpr std::chrono::milliseconds kLeaveLimit{2000};
// Freeing a healthy communicator takes seconds with many ranks and channels. It must not be cut
// short: a process that ends while NCCL is still at it crashes.
constexpr std::chrono::milliseconds kDestroyLimit{20000};

// Calls that free a communicator may wait for other ranks without a limit. So they get a thread of
// their own, which is left to itself when it takes too long: all it holds is NCCL's.
void run_bounded(std::chrono::milliseconds limit, std::function<void()> work) noexcept {
  try {
    auto done = std::make_shared<std::promise<void>>();
    std::future<void> future = done->get_future();
    std::thread([done, work = std::move(work)] {
      work();
      done->set_value();
    }).detach();
    future.wait_for(limit);
  } catch (...) {
    // No thread to be had: the communicator is leaked rather than waited for.
  }
}

}  // namespace

NcclCommunicator::NcclCommunicator(const MoverConfig& config, const NcclIdBlob& id,
                                   const Cancellation& cancellation)
    : nccl_(nccl_library()),
      cancellation_(cancellation),
      rank_(config.rank),
      ordinal_(config.device->ordinal()) {
  ncclUniqueId unique_id{};
  std::memcpy(unique_id.internal, id.bytes, sizeof(unique_id.internal));
  ncclConfig_t options = NCCL_CONFIG_INITIALIZER;
  options.blocking = 0;
  if (config.max_ctas > 0) {
    // NCCL's own choice follows the message sizes it expects; the caller's is exact.
    options.minCTAs = config.max_ctas;
    options.maxCTAs = config.max_ctas;
  }
  use_device(ordinal_);
  const char* what = "join the NCCL communicator";
  try {
    settle(nccl_.CommInitRankConfig(&communicator_, config.world, unique_id, config.rank, &options),
           "ncclCommInitRankConfig", what);
  } catch (...) {
    abort();
    throw;
  }
}

NcclCommunicator::~NcclCommunicator() {
  if (communicator_ == nullptr) return;
  if (!finalize(kDestroyLimit)) {
    abort();
    return;
  }
  run_bounded(kDestroyLimit, [&nccl = nccl_, ordinal = ordinal_, communicator = communicator_] {
    (void)cudaSetDevice(ordinal);
    (void)nccl.CommDestroy(communicator);
  });
}

void NcclCommunicator::exchange(const Message* first, const Message* last, cudaStream_t stream,
                                const char* what) {
  if (first == last) return;
  expect(nccl_.GroupStart(), "ncclGroupStart", what);
  ncclResult_t result = ncclSuccess;
  const char* function = "";
  for (const Message* m = first; m != last && result == ncclSuccess; ++m) {
    void* address = reinterpret_cast<void*>(m->address);
    function = m->sends ? "ncclSend" : "ncclRecv";
    result = m->sends ? nccl_.Send(address, m->bytes, ncclInt8, m->peer, communicator_, stream)
                      : nccl_.Recv(address, m->bytes, ncclInt8, m->peer, communicator_, stream);
  }
  const ncclResult_t ended = nccl_.GroupEnd();  // also after an error, or the thread stays in it
  expect(result, function, what);
  settle(ended, "ncclGroupEnd", what);
}

void NcclCommunicator::all_reduce(uint64_t* sum, const uint64_t* value, cudaStream_t stream,
                                  const char* what) {
  settle(nccl_.AllReduce(value, sum, 1, ncclUint64, ncclSum, communicator_, stream),
         "ncclAllReduce", what);
}

void NcclCommunicator::all_gather(uint32_t* gathered, const uint32_t* values, uint64_t count,
                                  cudaStream_t stream, const char* what) {
  settle(nccl_.AllGather(values, gathered, count, ncclUint32, communicator_, stream),
         "ncclAllGather", what);
}

std::unique_ptr<NcclCommunicator> NcclCommunicator::split(const char* what) {
  ncclConfig_t options = NCCL_CONFIG_INITIALIZER;
  options.blocking = 0;
  options.minCTAs = options.maxCTAs = 1;
  ncclComm_t other = nullptr;
  settle(started(nccl_.CommSplit(communicator_, 0, rank_, &other, &options)), "ncclCommSplit",
         what);
  std::unique_ptr<NcclCommunicator> result(new NcclCommunicator(*this, other));
  result->settle(ncclInProgress, "ncclCommSplit", what);
  return result;
}

NcclOneSided::Window NcclCommunicator::open_window(uint64_t address, uint64_t bytes,
                                                   const char* what) {
  NcclOneSided::Window window = nullptr;
  settle(started(nccl_.one_sided.CommWindowRegister(communicator_, reinterpret_cast<void*>(address),
                                                    bytes, &window, NcclOneSided::kSymmetric)),
         "ncclCommWindowRegister", what);
  if (window == nullptr) {
    throw Error(EPLB_UNSUPPORTED, text("Cannot ", what,
                                       ": NCCL cannot share this GPU's memory (ncclMemAlloc needs "
                                       "the driver's virtual memory, NCCL_CUMEM_ENABLE)"));
  }
  return window;
}

int32_t NcclCommunicator::reachable_ranks() const {
  return nccl_.one_sided.TeamLsa(communicator_).ranks;
}

void NcclCommunicator::put(const Put* first, const Put* last, NcclOneSided::Window window,
                           cudaStream_t stream, const char* what) {
  if (first == last) return;
  expect(nccl_.GroupStart(), "ncclGroupStart", what);
  ncclResult_t result = ncclSuccess;
  for (const Put* put = first; put != last && result == ncclSuccess; ++put) {
    result =
        nccl_.one_sided.PutSignal(reinterpret_cast<const void*>(put->source), put->bytes, ncclInt8,
                                  put->peer, window, put->offset, 0, 0, 0, communicator_, stream);
  }
  const ncclResult_t ended = nccl_.GroupEnd();  // also after an error, or the thread stays in it
  expect(result, "ncclPutSignal", what);
  settle(ended, "ncclGroupEnd", what);
}

void NcclCommunicator::check(const char* what) {
  const ncclResult_t result = state();
  if (result != ncclInProgress) expect(result, "ncclCommGetAsyncError", what);
}

void NcclCommunicator::abort() noexcept {
  if (communicator_ == nullptr) return;
  run_bounded(kLeaveLimit, [&nccl = nccl_, ordinal = ordinal_,
                            communicator = std::exchange(communicator_, nullptr)] {
    (void)cudaSetDevice(ordinal);
    (void)nccl.CommAbort(communicator);
  });
}

// Waits until a call is finished that may have returned ncclInProgress.
void NcclCommunicator::settle(ncclResult_t result, const char* function, const char* what) {
  Backoff backoff(kEager);
  while (result == ncclInProgress) {
    cancellation_.check(what);
    result = state();
    if (result == ncclInProgress) backoff.pause();
  }
  expect(result, function, what);
}

void NcclCommunicator::expect(ncclResult_t result, const char* function, const char* what) {
  if (result == ncclSuccess) return;
  const char* details = nccl_.GetLastError(communicator_);
  throw Error(
      result == ncclRemoteError ? EPLB_PEER_FAILED : EPLB_NCCL_ERROR,
      text("Cannot ", what, ": ", function, " says \"", nccl_.GetErrorString(result), "\"",
           details == nullptr || *details == '\0' ? "" : ": ", details == nullptr ? "" : details));
}

// ncclInProgress while a call is being finished, else how it, or the communicator, did.
ncclResult_t NcclCommunicator::state() {
  ncclResult_t state = ncclSuccess;
  const ncclResult_t asked = nccl_.CommGetAsyncError(communicator_, &state);
  return asked == ncclSuccess ? state : asked;
}

// Waits until nothing of this communicator is in flight on any rank.
bool NcclCommunicator::finalize(std::chrono::milliseconds limit) noexcept {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  (void)cudaSetDevice(ordinal_);
  ncclResult_t result = nccl_.CommFinalize(communicator_);
  Backoff backoff(kEager);
  while (result == ncclInProgress && std::chrono::steady_clock::now() < deadline) {
    backoff.pause();
    result = state();
  }
  return result == ncclSuccess;
}

}  // namespace eplb
