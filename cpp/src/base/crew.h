// SPDX-License-Identifier: Apache-2.0
// One thread per local rank, kept between runs: starting 32 threads takes longer than a small run.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace eplb {

class Crew {
 public:
  // The caller of run() is the first of `members`; the others sleep between runs.
  explicit Crew(size_t members);
  Crew(const Crew&) = delete;
  ~Crew();

  // Calls task(i), which must not throw, for each member at the same time and waits for all.
  void run(const std::function<void(size_t)>& task);

 private:
  void serve(size_t member);
  void dismiss();

  std::mutex mutex_;
  std::condition_variable start_, done_;
  const std::function<void(size_t)>* task_ = nullptr;
  uint64_t runs_ = 0;
  size_t busy_ = 0;
  bool dismissed_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace eplb
