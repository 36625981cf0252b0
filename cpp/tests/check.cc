// SPDX-License-Identifier: Apache-2.0
// Runs the cases of a test program; with arguments, those whose names contain one of them.
#include "check.h"

#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <utility>
#include <vector>

namespace check {
namespace {

struct Case {
  const char* name;
  std::function<void()> body;
};

std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

bool chosen(const Case& candidate, int count, char** parts) {
  for (int i = 1; i < count; ++i) {
    if (std::strstr(candidate.name, parts[i]) != nullptr) return true;
  }
  return count <= 1;
}

bool passes(const Case& candidate) {
  try {
    candidate.body();
    return true;
  } catch (const std::exception& error) {
    std::printf("  %s\n", error.what());
    return false;
  }
}

}  // namespace

Registration::Registration(const char* name, std::function<void()> body) {
  cases().push_back({name, std::move(body)});
}

}  // namespace check

int main(int count, char** arguments) {
  int failures = 0, runs = 0;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // also where it is a pipe or a file
  for (const check::Case& candidate : check::cases()) {
    if (!check::chosen(candidate, count, arguments)) continue;
    std::printf("run  %s\n", candidate.name);  // a program that is stopped shows where
    const auto start = std::chrono::steady_clock::now();
    const bool passed = check::passes(candidate);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    std::printf("%s %s (%.2f s)\n", passed ? "ok  " : "FAIL", candidate.name, seconds.count());
    failures += passed ? 0 : 1;
    ++runs;
  }
  std::printf("%d of %d cases failed\n", failures, runs);
  return failures == 0 && runs > 0 ? 0 : 1;
}
