// SPDX-License-Identifier: Apache-2.0
// POSIX shared memory.
#include "memory/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <utility>

#include "base/error.h"
#include "base/text.h"

namespace eplb {
namespace {

constexpr uint64_t kMagic = 0x31'47'45'53'42'4C'50'45;  // "EPLBSEG1"
constexpr uint64_t kHeaderBytes = 4096;
constexpr char kNamePrefix[] = "/eplb-";

struct SegmentHeader {
  uint64_t magic, token, bytes;
};

[[noreturn]] void fail(const char* verb, const std::string& name, int code,
                       int32_t status = EPLB_SYSTEM_ERROR) {
  throw Error(status,
              text("Cannot ", verb, " shared memory \"", name, "\": ", std::strerror(code)));
}

void fill_random(void* target, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t got = ::getrandom(static_cast<char*>(target) + done, bytes - done, 0);
    if (got > 0) done += static_cast<size_t>(got);
    if (got < 0 && errno != EINTR) fail("name", "eplb", errno);
  }
}

std::string random_name() {
  uint64_t bits[2];
  fill_random(bits, sizeof(bits));
  char name[48];
  std::snprintf(name, sizeof(name), "%s%016llx%016llx", kNamePrefix,
                static_cast<unsigned long long>(bits[0]), static_cast<unsigned long long>(bits[1]));
  return name;
}

// Backs every byte with memory now: a full /dev/shm is an error here, and not a SIGBUS later.
void reserve(int file, const std::string& name, uint64_t bytes) {
  int code = EFBIG;
  if (bytes <= static_cast<uint64_t>(INT64_MAX)) {
    do {
      code = ::posix_fallocate(file, 0, static_cast<off_t>(bytes));
    } while (code == EINTR);
  }
  if (code == 0) return;
  if (code != ENOSPC && code != EFBIG && code != ENOMEM) fail("reserve", name, code);
  throw Error(EPLB_OUT_OF_MEMORY,
              text("Cannot reserve ", bytes, " bytes of shared memory: ", std::strerror(code),
                   " in /dev/shm (containers often limit it: --shm-size, or --ipc=host)"));
}

// Names that this process has made. What is left of them when it exits, by an uncaught error say,
// is removed then: nobody could be told of them any more.
class LiveNames {
 public:
  void add(const std::string& name) {
    std::lock_guard<std::mutex> lock(mutex_);
    owners_[name] = ::getpid();
  }

  void remove(const std::string& name) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (owners_.erase(name) > 0) ::shm_unlink(name.c_str());
  }

  void remove_all() {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [name, owner] : owners_) {
      if (owner == ::getpid()) ::shm_unlink(name.c_str());  // not those of a forking parent
    }
    owners_.clear();
  }

 private:
  std::mutex mutex_;
  std::map<std::string, pid_t> owners_;
};

LiveNames& live_names() {
  static auto* names = new LiveNames;  // other threads may outlive static objects
  return *names;
}

const struct Sweeper {
  ~Sweeper() { live_names().remove_all(); }
} sweeper;

class File {
 public:
  explicit File(int descriptor) : descriptor_(descriptor) {}
  File(const File&) = delete;
  ~File() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  int get() const { return descriptor_; }
  int release() { return std::exchange(descriptor_, -1); }

 private:
  int descriptor_;
};

// By name, or where the name was removed already, through the creator's open file.
int open_reference(const SegmentReference& reference) {
  const int file = ::shm_open(reference.name, O_RDWR | O_CLOEXEC, 0);
  if (file >= 0 || errno != ENOENT) return file;
  const std::string path = text("/proc/", reference.pid, "/fd/", reference.file);
  return ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
}

}  // namespace

uint64_t random_token() {
  uint64_t token;
  fill_random(&token, sizeof(token));
  return token;
}

SharedMemory SharedMemory::create(uint64_t bytes) {
  const std::string name = random_name();
  File file(::shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (file.get() < 0) fail("create", name, errno);
  SharedMemory memory;
  live_names().add(name);
  memory.name_ = name;  // from here on the destructor removes it
  memory.token_ = random_token();
  reserve(file.get(), name, bytes > UINT64_MAX - kHeaderBytes ? UINT64_MAX : bytes + kHeaderBytes);
  memory.map(file.get(), bytes);
  *static_cast<SegmentHeader*>(memory.mapping_) = {kMagic, memory.token_, bytes};
  memory.file_ = file.release();
  return memory;
}

SharedMemory SharedMemory::open(const SegmentReference& reference) {
  const std::string name(reference.name, ::strnlen(reference.name, sizeof(reference.name)));
  File file(open_reference(reference));
  if (file.get() < 0) fail("open", name, errno);
  struct stat status;
  if (::fstat(file.get(), &status) != 0) fail("examine", name, errno);
  const auto mismatch = [&](const std::string& what) {
    throw Error(EPLB_PEER_MISMATCH, text("Cannot open shared memory \"", name, "\": ", what));
  };
  if (status.st_uid != ::geteuid()) {
    mismatch(text("it belongs to user ", status.st_uid, ", not ", ::geteuid()));
  }
  if (!S_ISREG(status.st_mode)) mismatch("it is not a memory segment");
  if (reference.bytes > static_cast<uint64_t>(INT64_MAX) - kHeaderBytes ||
      static_cast<uint64_t>(status.st_size) != reference.bytes + kHeaderBytes) {
    mismatch(text("it has ", status.st_size, " bytes, not ", reference.bytes, " and a header"));
  }
  SharedMemory memory;
  memory.map(file.get(), reference.bytes);
  const SegmentHeader header = *static_cast<const SegmentHeader*>(memory.mapping_);
  if (header.magic != kMagic || header.token != reference.token ||
      header.bytes != reference.bytes) {
    mismatch("its token is another");
  }
  return memory;
}

SharedMemory::~SharedMemory() {
  if (!name_.empty()) live_names().remove(name_);
  if (mapping_ != nullptr) ::munmap(mapping_, bytes_ + kHeaderBytes);
  if (file_ >= 0) ::close(file_);
}

void SharedMemory::swap(SharedMemory& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(bytes_, other.bytes_);
  std::swap(token_, other.token_);
  std::swap(file_, other.file_);
  std::swap(name_, other.name_);
}

void SharedMemory::map(int file, uint64_t data_bytes) {
  void* mapping =
      ::mmap(nullptr, data_bytes + kHeaderBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (mapping == MAP_FAILED) {
    fail("map", name_, errno, errno == ENOMEM ? EPLB_OUT_OF_MEMORY : EPLB_SYSTEM_ERROR);
  }
  mapping_ = mapping;
  bytes_ = data_bytes;
}

void* SharedMemory::data() const { return static_cast<char*>(mapping_) + kHeaderBytes; }

SegmentReference SharedMemory::reference() const {
  SegmentReference reference = {};
  name_.copy(reference.name, sizeof(reference.name) - 1);
  reference.pid = ::getpid();
  reference.file = file_;
  reference.token = token_;
  reference.bytes = bytes_;
  return reference;
}

void unlink_segment(const SegmentReference& reference) noexcept {
  // Only names as this library makes them: blobs come from outside.
  if (std::strncmp(reference.name, kNamePrefix, sizeof(kNamePrefix) - 1) == 0) {
    ::shm_unlink(reference.name);
  }
}

bool HostIdentity::same_memory(const HostIdentity& other) const {
  return std::strncmp(boot_id, other.boot_id, sizeof(boot_id)) == 0 &&
         shared_memory_device == other.shared_memory_device;
}

HostIdentity this_host() {
  HostIdentity identity = {};
  ::gethostname(identity.name, sizeof(identity.name) - 1);
  std::ifstream("/proc/sys/kernel/random/boot_id")
      .getline(identity.boot_id, sizeof(identity.boot_id));
  struct stat status;
  if (::stat("/dev/shm", &status) == 0) identity.shared_memory_device = status.st_dev;
  return identity;
}

}  // namespace eplb
