/* SPDX-License-Identifier: Apache-2.0
 * eplb.h is C11, and libeplb.so is usable from it. */
#include <stdio.h>
#include <string.h>

#include "eplb.h"

int main(void) {
  char version[32], error[256];
  const uint64_t bytes[2] = {16, 4};
  eplb_weights_config config = {sizeof(config), 1, -1, 2, 3, 2};
  eplb_handle weights = 0;
  if (eplb_abi_version() != EPLB_ABI_VERSION) return 1;
  if (eplb_version(version, sizeof version) != EPLB_OK || strcmp(version, EPLB_VERSION) != 0) {
    return 2;
  }
  if (eplb_weights_create(&config, bytes, &weights, error, sizeof error) != EPLB_OK) {
    printf("%s\n", error);
    return 3;
  }
  if (eplb_weights_destroy(weights, error, sizeof error) != EPLB_OK) return 4;
  if (eplb_weights_destroy(weights, error, sizeof error) != EPLB_INVALID_HANDLE) return 5;
  return 0;
}
