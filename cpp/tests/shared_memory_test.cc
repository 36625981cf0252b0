// SPDX-License-Identifier: Apache-2.0
// Shared memory: who may open what, and what is left behind.
#include "memory/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "ranks.h"

using eplb::SegmentReference;
using eplb::SharedMemory;

namespace {

void refused(const SegmentReference& reference, int32_t status, const std::string& part) {
  try {
    SharedMemory::open(reference);
  } catch (const eplb::Error& error) {
    CHECK_EQ(error.status, status);
    CHECK_CONTAINS(error.what(), part);
    return;
  }
  check::fail(__FILE__, __LINE__, "not refused: ", part);
}

std::string path_of(const SegmentReference& reference) {
  return std::string("/dev/shm") + reference.name;
}

TEST("SharedMemory::create() makes a zeroed segment that only its user can open") {
  const SharedMemory memory = SharedMemory::create(10000);
  CHECK_EQ(std::string(static_cast<char*>(memory.data()), 10000), std::string(10000, '\0'));
  CHECK_EQ(reinterpret_cast<uint64_t>(memory.data()) % 256, 0u);
  struct stat status;
  CHECK_EQ(::stat(path_of(memory.reference()).c_str(), &status), 0);
  CHECK_EQ(status.st_mode & 0777, 0600u);
  CHECK(std::strlen(memory.reference().name) >= 6 + 32);  // 128 random bits
}

TEST("SharedMemory::open() sees the same bytes, also after the name is gone") {
  SharedMemory memory = SharedMemory::create(100);
  std::memcpy(memory.data(), "hello", 6);
  const SegmentReference reference = memory.reference();
  const SharedMemory by_name = SharedMemory::open(reference);
  CHECK_EQ(std::string(static_cast<char*>(by_name.data())), "hello");
  eplb::unlink_segment(reference);
  eplb::unlink_segment(reference);  // again does nothing
  CHECK(::access(path_of(reference).c_str(), F_OK) != 0);
  const SharedMemory by_file = SharedMemory::open(reference);
  std::memcpy(by_file.data(), "world", 6);
  CHECK_EQ(std::string(static_cast<char*>(by_name.data())), "world");
  memory = SharedMemory();  // closes the file
  refused(reference, EPLB_SYSTEM_ERROR, "Cannot open shared memory");
}

TEST("the destructor removes the name") {
  std::string path;
  {
    const SharedMemory memory = SharedMemory::create(1);
    path = path_of(memory.reference());
    CHECK_EQ(::access(path.c_str(), F_OK), 0);
  }
  CHECK(::access(path.c_str(), F_OK) != 0);
}

TEST("SharedMemory::open() refuses another token, another size and what is no segment") {
  const SharedMemory memory = SharedMemory::create(5000);
  SegmentReference reference = memory.reference();
  ++reference.token;
  refused(reference, EPLB_PEER_MISMATCH, "its token is another");
  reference = memory.reference();
  reference.bytes = 4999;
  refused(reference, EPLB_PEER_MISMATCH, "not 4999 and a header");
  reference.bytes = ~uint64_t{0};
  refused(reference, EPLB_PEER_MISMATCH, "and a header");
  int ends[2];
  CHECK_EQ(::pipe(ends), 0);
  reference = {"/eplb-none", ::getpid(), ends[0], 0, 8};
  refused(reference, EPLB_PEER_MISMATCH, "not a memory segment");
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST("SharedMemory::open() refuses a segment of another user") {
  if (::geteuid() != 0) return;  // only root can give files away
  const SharedMemory memory = SharedMemory::create(8);
  CHECK_EQ(::chown(path_of(memory.reference()).c_str(), 12345, 12345), 0);
  refused(memory.reference(), EPLB_PEER_MISMATCH, "it belongs to user 12345, not 0");
}

TEST("unlink_segment() leaves names alone that are not eplb's") {
  const int file = ::shm_open("/other-eplb-test", O_RDWR | O_CREAT, 0600);
  CHECK(file >= 0);
  ::close(file);
  eplb::unlink_segment({"/other-eplb-test", 0, 0, 0, 0});
  CHECK_EQ(::shm_unlink("/other-eplb-test"), 0);
}

// Names of eplb on this machine, which may be others', too.
size_t names_in_use() {
  size_t names = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
    names += entry.path().filename().string().rfind("eplb-", 0) == 0 ? 1 : 0;
  }
  return names;
}

TEST("a full /dev/shm is an error that says so, and leaves nothing behind") {
  struct statvfs space;
  CHECK_EQ(::statvfs("/dev/shm", &space), 0);
  const uint64_t free_bytes = space.f_bavail * space.f_frsize;
  const uint64_t too_many = free_bytes + (uint64_t{1} << 40);
  bool leaves_nothing = false;
  for (int attempt = 0; attempt < 50 && !leaves_nothing; ++attempt) {
    const size_t names = names_in_use();
    for (const uint64_t bytes : {too_many, uint64_t{1} << 62, ~uint64_t{0}, ~uint64_t{0} - 4096}) {
      try {
        SharedMemory::create(bytes);
        check::fail(__FILE__, __LINE__, "not refused");
      } catch (const eplb::Error& error) {
        CHECK_EQ(error.status, EPLB_OUT_OF_MEMORY);
        CHECK_CONTAINS(error.what(), "/dev/shm");
      }
    }
    leaves_nothing = names_in_use() == names;
  }
  CHECK(leaves_nothing);
}

}  // namespace
