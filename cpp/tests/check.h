// SPDX-License-Identifier: Apache-2.0
// A small test harness: named cases, checks that end a case, one main.
#pragma once

#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>

namespace check {

// What a failed check throws. Checks are for the thread of the test case.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Registration {
  Registration(const char* name, std::function<void()> body);
};

template <class... Parts>
[[noreturn]] void fail(const char* file, int line, const Parts&... parts) {
  std::ostringstream out;
  out << file << ':' << line << ": ";
  (out << ... << parts);
  throw Failure(out.str());
}

template <class A, class B>
void equal(const A& actual, const B& expected, const char* text, const char* file, int line) {
  if (!(actual == expected)) {
    fail(file, line, text, " is ", actual, ", expected ", expected);
  }
}

inline void contains(const std::string& text, const std::string& part, const char* file, int line) {
  if (text.find(part) == std::string::npos) {
    fail(file, line, "\"", text, "\" does not contain \"", part, "\"");
  }
}

}  // namespace check

#define CHECK_JOIN_(a, b) a##b
#define CHECK_JOIN(a, b) CHECK_JOIN_(a, b)

// A case: TEST("criterion") { … }
#define TEST(name) TEST_(name, CHECK_JOIN(test_case_, __LINE__))
#define TEST_(name, function)                                                      \
  static void function();                                                          \
  static const ::check::Registration CHECK_JOIN(function, _entry)(name, function); \
  static void function()

#define CHECK(condition)                                                          \
  do {                                                                            \
    if (!(condition)) ::check::fail(__FILE__, __LINE__, #condition " is not so"); \
  } while (false)
#define CHECK_EQ(actual, expected) ::check::equal((actual), (expected), #actual, __FILE__, __LINE__)
#define CHECK_CONTAINS(text, part) ::check::contains((text), (part), __FILE__, __LINE__)
