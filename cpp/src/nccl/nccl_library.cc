// SPDX-License-Identifier: Apache-2.0
// Opens NCCL.
#include "nccl/nccl_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>

#include "base/error.h"
#include "base/text.h"
#include "nccl/nccl_factory.h"

namespace eplb {
namespace {

constexpr char kUsualName[] = "libnccl.so.2";
constexpr char kEnvironment[] = "EPLB_NCCL_LIBRARY";

std::string version_text(int32_t version) {
  return text(version / 10000, '.', version / 100 % 100, '.', version % 100);
}

std::string last_dl_error() {
  const char* message = dlerror();
  return message == nullptr ? "unknown error" : message;
}

// The file to open: what the caller names, else what the environment names, else the usual name.
std::string choose_file(const char* path) {
  if (path != nullptr && *path != '\0') return path;
  const char* named = std::getenv(kEnvironment);
  return named != nullptr && *named != '\0' ? named : kUsualName;
}

// A handle for dlsym. Where no file has the usual name, NCCL may still be part of the program.
void* open_file(const std::string& file) {
  if (void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL)) return handle;
  const std::string reason = last_dl_error();
  if (file == kUsualName && dlsym(RTLD_DEFAULT, "ncclGetVersion") != nullptr) return RTLD_DEFAULT;
  throw Error(EPLB_UNSUPPORTED, text("Cannot open NCCL: ", reason, " (set ", kEnvironment,
                                     " to the path of ", kUsualName, ")"));
}

template <class Function>
void find(void* handle, const char* name, Function* function) {
  void* symbol = dlsym(handle, name);
  if (symbol == nullptr) {
    throw Error(EPLB_UNSUPPORTED, text("Cannot use NCCL: ", last_dl_error()));
  }
  *function = reinterpret_cast<Function>(symbol);
}

template <class Function>
void find_if_there(void* handle, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(handle, name));
}

std::string file_of(const void* symbol, const std::string& otherwise) {
  Dl_info info{};
  return dladdr(symbol, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : otherwise;
}

std::unique_ptr<NcclLibrary> load(const char* path) {
  const std::string file = choose_file(path);
  void* handle = open_file(file);
  auto library = std::make_unique<NcclLibrary>();
  find(handle, "ncclGetVersion", &library->GetVersion);
  library->file = file_of(reinterpret_cast<const void*>(library->GetVersion), file);
  library->GetVersion(&library->version);
  if (library->version < kOldestNccl) {
    throw Error(EPLB_UNSUPPORTED,
                text("Cannot use NCCL ", version_text(library->version), " of \"", library->file,
                     "\": at least ", version_text(kOldestNccl), " is needed"));
  }
#define EPLB_NCCL_FIND(name) find(handle, "nccl" #name, &library->name);
  EPLB_NCCL_FUNCTIONS(EPLB_NCCL_FIND)
#undef EPLB_NCCL_FIND
  find_if_there(handle, "ncclCommWindowRegister", &library->one_sided.CommWindowRegister);
  find_if_there(handle, "ncclPutSignal", &library->one_sided.PutSignal);
  find_if_there(handle, "ncclTeamLsa", &library->one_sided.TeamLsa);
  return library;
}

const NcclLibrary& open_once(const char* path) {
  static std::mutex mutex;
  // Never destroyed: communicators may still be in use when the process ends.
  static const NcclLibrary* library = nullptr;
  std::lock_guard<std::mutex> lock(mutex);
  if (library == nullptr) library = load(path).release();
  return *library;
}

}  // namespace

const NcclLibrary& nccl_library() { return open_once(nullptr); }

void nccl_check_puts() {
  const NcclLibrary& library = nccl_library();
  const NcclOneSided& found = library.one_sided;
  if (found.CommWindowRegister && found.PutSignal && found.TeamLsa) return;
  throw Error(EPLB_UNSUPPORTED,
              text("Cannot use nccl-put: NCCL ", version_text(library.version), " of \"",
                   library.file, "\" has no one-sided transfers; 2.29 or later is needed"));
}

int32_t nccl_open(const char* path, std::string* found) {
  const NcclLibrary& library = open_once(path);
  if (found != nullptr) *found = library.file;
  return library.version;
}

NcclIdBlob nccl_make_id() {
  const NcclLibrary& library = nccl_library();
  ncclUniqueId id{};
  const ncclResult_t result = library.GetUniqueId(&id);
  if (result != ncclSuccess) {
    throw Error(EPLB_NCCL_ERROR, text("Cannot make an NCCL id: ", library.GetErrorString(result),
                                      " (", library.GetLastError(nullptr), ")"));
  }
  NcclIdBlob blob{};
  static_assert(sizeof(blob.bytes) == sizeof(id.internal));
  std::memcpy(blob.bytes, id.internal, sizeof(blob.bytes));
  return blob;
}

}  // namespace eplb
