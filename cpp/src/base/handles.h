// SPDX-License-Identifier: Apache-2.0
// Handles: ids of objects, checked on each call, and the rule "one call at a time".
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/text.h"
#include "eplb.h"

namespace eplb {

// What a handle refers to.
struct HandleObject {
  std::mutex turn;      // held by the call that uses the object
  bool closed = false;  // guarded by `turn`
};

// One call's turn on an object.
template <class Object>
class Lease {
 public:
  // Throws EPLB_BUSY while another call has its turn.
  explicit Lease(std::shared_ptr<Object> object)
      : object_(std::move(object)), turn_(object_->turn, std::try_to_lock) {
    if (!turn_.owns_lock()) {
      throw Error(EPLB_BUSY, text("Cannot use ", Object::kName, ": another call is using it"));
    }
    if (object_->closed) {
      throw Error(EPLB_INVALID_HANDLE, text("Cannot use ", Object::kName, ": it is destroyed"));
    }
  }

  Object* operator->() const { return object_.get(); }
  Object& operator*() const { return *object_; }
  const std::shared_ptr<Object>& object() const { return object_; }

 private:
  std::shared_ptr<Object> object_;
  std::unique_lock<std::mutex> turn_;
};

// An id is kind (8 bits), generation (32) and place (24). A place that is used again has another
// generation, so that stale ids are noticed, and other kinds of objects have other ids.
template <class Object>
class HandleTable {
 public:
  eplb_handle insert(std::shared_ptr<Object> object) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) {
      if (places_.size() > kPlaceMask) {
        throw Error(EPLB_OUT_OF_MEMORY, text("Cannot create ", Object::kName, ": too many exist"));
      }
      free_.reserve(places_.size() + 1);  // so that remove() does not allocate
      places_.emplace_back();
      free_.push_back(places_.size() - 1);
    }
    const uint64_t index = free_.back();
    free_.pop_back();
    Place& place = places_[index];
    place.object = std::move(object);
    return kKind << kKindShift | static_cast<uint64_t>(++place.generation) << kPlaceBits | index;
  }

  // Throws EPLB_INVALID_HANDLE.
  std::shared_ptr<Object> find(eplb_handle handle) {
    std::lock_guard<std::mutex> lock(mutex_);
    return at(handle).object;
  }

  Lease<Object> borrow(eplb_handle handle) { return Lease<Object>(find(handle)); }

  void remove(eplb_handle handle) {
    std::shared_ptr<Object> last;  // dies outside of the lock
    std::lock_guard<std::mutex> lock(mutex_);
    at(handle).object.swap(last);
    free_.push_back(handle & kPlaceMask);
  }

 private:
  static constexpr uint64_t kKind = Object::kHandleKind;
  static constexpr int kPlaceBits = 24, kKindShift = 56;
  static constexpr uint64_t kPlaceMask = (1 << kPlaceBits) - 1;

  struct Place {
    std::shared_ptr<Object> object;
    uint32_t generation = 0;
  };

  Place& at(eplb_handle handle) {
    const uint64_t index = handle & kPlaceMask;
    if (handle >> kKindShift == kKind && index < places_.size()) {
      Place& place = places_[index];
      if (place.object && place.generation == static_cast<uint32_t>(handle >> kPlaceBits)) {
        return place;
      }
    }
    throw Error(EPLB_INVALID_HANDLE, text("Cannot use ", Object::kName, ": handle ", handle,
                                          " is not of one that exists"));
  }

  std::mutex mutex_;
  std::vector<Place> places_;
  std::vector<uint64_t> free_;
};

}  // namespace eplb
