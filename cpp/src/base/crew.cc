// SPDX-License-Identifier: Apache-2.0
// Threads of local ranks.
#include "base/crew.h"

#include <system_error>

#include "base/error.h"
#include "base/text.h"

namespace eplb {

Crew::Crew(size_t members) {
  try {
    for (size_t i = 1; i < members; ++i) threads_.emplace_back([this, i] { serve(i); });
  } catch (const std::system_error& error) {
    dismiss();
    throw Error(EPLB_SYSTEM_ERROR,
                text("Cannot start a thread for each of ", members, " ranks: ", error.what()));
  }
}

Crew::~Crew() { dismiss(); }

void Crew::dismiss() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    dismissed_ = true;
  }
  start_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Crew::run(const std::function<void(size_t)>& task) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    task_ = &task;
    busy_ = threads_.size();
    ++runs_;
  }
  start_.notify_all();
  task(0);
  std::unique_lock<std::mutex> lock(mutex_);
  done_.wait(lock, [this] { return busy_ == 0; });
}

void Crew::serve(size_t member) {
  std::unique_lock<std::mutex> lock(mutex_);
  for (uint64_t seen = 0;;) {
    start_.wait(lock, [&] { return dismissed_ || runs_ != seen; });
    if (dismissed_) return;
    seen = runs_;
    const std::function<void(size_t)>& task = *task_;
    lock.unlock();
    task(member);
    lock.lock();
    if (--busy_ == 0) done_.notify_one();
  }
}

}  // namespace eplb
