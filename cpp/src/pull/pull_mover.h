// SPDX-License-Identifier: Apache-2.0
// Host memory: every rank copies what it needs from its peers' slots, mapped into this process.
#pragma once

#include <memory>
#include <vector>

#include "pull/control.h"
#include "transport/mover.h"

namespace eplb {

// `views` [world]: every rank's weights as this process sees them.
std::unique_ptr<Mover> make_pull_mover(const MoverConfig& config,
                                       std::shared_ptr<const std::vector<WeightsView>> views,
                                       std::shared_ptr<Control> control,
                                       const Cancellation& cancellation);

}  // namespace eplb
