// SPDX-License-Identifier: Apache-2.0
// How a thread waits for a device.
#pragma once

#include <chrono>
#include <thread>

namespace eplb {

// A model stands still until a commit has landed, which takes some hundred microseconds.
constexpr std::chrono::microseconds kLandEager{2000};

// Between two looks at something: gives way for a while, then sleeps, so that short waits end at
// once and long ones leave the processor to others.
class Backoff {
 public:
  explicit Backoff(std::chrono::microseconds eager)
      : sleep_from_(std::chrono::steady_clock::now() + eager) {}

  // Whether pause() would give way only.
  bool is_eager() const { return std::chrono::steady_clock::now() < sleep_from_; }

  // Returns true when it slept: the time for costlier checks.
  bool pause() {
    if (is_eager()) {
      std::this_thread::yield();
      return false;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(20));  // the kernel adds about 50
    return true;
  }

 private:
  std::chrono::steady_clock::time_point sleep_from_;
};

}  // namespace eplb
