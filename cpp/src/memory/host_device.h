// SPDX-License-Identifier: Apache-2.0
// Marks functions that the host and the GPU share, so that both compute the same.
#pragma once

#ifdef __CUDACC__
#define EPLB_HOST_DEVICE __host__ __device__
#else
#define EPLB_HOST_DEVICE
#endif
