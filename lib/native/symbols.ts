// SPDX-License-Identifier: Apache-2.0
// Every C function of libeplb, as declared in cpp/include/eplb.h. Functions that
// can take long or wait for a peer are nonblocking; all others answer at once.

const error = ["buffer", "u64"] as const; // char* error, uint64_t capacity

/** The symbol table handed to `Deno.dlopen`. */
const commit = {
  parameters: [
    "u64", // eplb_handle engine
    "u32", // uint32_t batches
    "u64", // uint64_t timeout_ms
    "buffer", // uint32_t* committed
    ...error,
  ],
  result: "i32",
} as const;

export const SYMBOLS = {
  eplb_abi_version: { parameters: [], result: "u32" },
  eplb_capabilities: { parameters: [], result: "u32" },
  eplb_struct_size: {
    parameters: ["u32"], // uint32_t kind
    result: "u32",
  },
  eplb_version: {
    parameters: [
      "buffer", // char* text
      "u64", // uint64_t capacity
    ],
    result: "i32",
  },
  eplb_status_name: {
    parameters: [
      "i32", // int32_t status
      "buffer", // char* text
      "u64", // uint64_t capacity
    ],
    result: "i32",
  },
  eplb_device_count: {
    parameters: [
      "buffer", // int32_t* count
      ...error,
    ],
    result: "i32",
  },
  eplb_device_describe: {
    parameters: [
      "i32", // int32_t ordinal
      "buffer", // eplb_device_info* info
      ...error,
    ],
    result: "i32",
  },
  eplb_device_peer_access: {
    parameters: [
      "i32", // int32_t ordinal
      "i32", // int32_t peer
      "buffer", // int32_t* reachable
      ...error,
    ],
    result: "i32",
  },
  eplb_nccl_open: {
    parameters: [
      "buffer", // const char* path
      "buffer", // int32_t* version
      "buffer", // char* found
      "u64", // uint64_t found_capacity
      ...error,
    ],
    result: "i32",
  },
  eplb_measure_copies: {
    parameters: [
      "buffer", // const eplb_copy_measure* what
      "buffer", // double* seconds
      ...error,
    ],
    result: "i32",
    nonblocking: true,
  },
  eplb_products_create: {
    parameters: [
      "buffer", // const eplb_product_measure* what
      "buffer", // eplb_handle* products
      ...error,
    ],
    result: "i32",
    nonblocking: true,
  },
  eplb_products_run: {
    parameters: [
      "u64", // eplb_handle products
      "buffer", // double* seconds
      ...error,
    ],
    result: "i32",
    nonblocking: true,
  },
  eplb_products_destroy: {
    parameters: [
      "u64", // eplb_handle products
      ...error,
    ],
    result: "i32",
  },
  eplb_weights_create: {
    parameters: [
      "buffer", // const eplb_weights_config* config
      "buffer", // const uint64_t* tensor_bytes
      "buffer", // eplb_handle* weights
      ...error,
    ],
    result: "i32",
  },
  eplb_weights_register: {
    parameters: [
      "u64", // eplb_handle weights
      "buffer", // const uint64_t* table
      ...error,
    ],
    result: "i32",
  },
  eplb_weights_allocate: {
    parameters: [
      "u64", // eplb_handle weights
      "u32", // uint32_t shareable
      ...error,
    ],
    result: "i32",
    nonblocking: true,
  },
  eplb_weights_write: {
    parameters: [
      "u64", // eplb_handle weights
      "u32", // uint32_t layer
      "u32", // uint32_t slot
      "u32", // uint32_t tensor
      "u64", // uint64_t offset
      "buffer", // const void* source
      "u64", // uint64_t bytes
      ...error,
    ],
    result: "i32",
  },
  eplb_weights_read: {
    parameters: [
      "u64", // eplb_handle weights
      "u32", // uint32_t layer
      "u32", // uint32_t slot
      "u32", // uint32_t tensor
      "u64", // uint64_t offset
      "buffer", // void* target
      "u64", // uint64_t bytes
      ...error,
    ],
    result: "i32",
  },
  eplb_weights_fill: {
    parameters: [
      "u64", // eplb_handle weights
      "buffer", // const int32_t* map
      "u64", // uint64_t seed
      ...error,
    ],
    result: "i32",
    nonblocking: true,
  },
  eplb_weights_digest: {
    parameters: [
      "u64", // eplb_handle weights
      "buffer", // uint64_t* digests
      ...error,
    ],
    result: "i32",
    nonblocking: true,
  },
  eplb_weights_address: {
    parameters: [
      "u64", // eplb_handle weights
      "u32", // uint32_t layer
      "u32", // uint32_t tensor
      "buffer", // uint64_t* address
      "buffer", // uint64_t* stride
      ...error,
    ],
    result: "i32",
  },
  eplb_weights_destroy: {
    parameters: [
      "u64", // eplb_handle weights
      ...error,
    ],
    result: "i32",
  },
  eplb_engine_create: {
    parameters: [
      "buffer", // const eplb_engine_config* config
      "buffer", // const int32_t* local_ranks
      "buffer", // const int32_t* local_nodes
      "buffer", // const eplb_handle* weights
      "buffer", // eplb_handle* engine
      ...error,
    ],
    result: "i32",
  },
  eplb_engine_describe: {
    parameters: [
      "u64", // eplb_handle engine
      "buffer", // eplb_engine_info* info
      ...error,
    ],
    result: "i32",
  },
  eplb_engine_export: {
    parameters: [
      "u64", // eplb_handle engine
      "u32", // uint32_t index
      "buffer", // void* blob
      "u64", // uint64_t capacity_bytes
      "buffer", // uint64_t* bytes
      ...error,
    ],
    result: "i32",
  },
  eplb_engine_connect: {
    parameters: [
      "u64", // eplb_handle engine
      "buffer", // const void* blobs
      "buffer", // const uint64_t* lengths
      "u64", // uint64_t timeout_ms
      ...error,
    ],
    result: "i32",
    nonblocking: true,
  },
  eplb_engine_seal: {
    parameters: [
      "u64", // eplb_handle engine
      ...error,
    ],
    result: "i32",
  },
  eplb_engine_run: {
    parameters: [
      "u64", // eplb_handle engine
      "buffer", // const int32_t* program
      "u64", // uint64_t words
      "buffer", // const eplb_run_config* config
      "buffer", // eplb_run_result* result
      "buffer", // uint64_t* rank_bytes
      ...error,
    ],
    result: "i32",
    nonblocking: true,
  },
  eplb_engine_commit: { ...commit, nonblocking: true },
  /** The same on the calling thread, for commits that take less than a change of threads. */
  eplb_engine_commit_here: { ...commit, name: "eplb_engine_commit" },
  eplb_engine_settle: {
    parameters: [
      "u64", // eplb_handle engine
      "u32", // uint32_t batches
      "buffer", // uint32_t* committed
      ...error,
    ],
    result: "i32",
    nonblocking: true,
  },
  eplb_engine_progress: {
    parameters: [
      "u64", // eplb_handle engine
      "buffer", // uint32_t* committed
      "buffer", // uint32_t* agreed
      "buffer", // uint32_t* runs
      ...error,
    ],
    result: "i32",
  },
  eplb_engine_abort: {
    parameters: [
      "u64", // eplb_handle engine
      "i32", // int32_t failed_rank
      "buffer", // const char* reason
      ...error,
    ],
    result: "i32",
  },
  eplb_engine_destroy: {
    parameters: [
      "u64", // eplb_handle engine
      ...error,
    ],
    result: "i32",
    nonblocking: true,
  },
  eplb_dispatch_create: {
    parameters: [
      "buffer", // const eplb_dispatch_config* config
      "buffer", // eplb_handle* dispatcher
      ...error,
    ],
    result: "i32",
  },
  eplb_dispatch_update: {
    parameters: [
      "u64", // eplb_handle dispatcher
      "u32", // uint32_t first_layer
      "u32", // uint32_t layers
      "buffer", // const int32_t* physical
      "buffer", // const int32_t* count
      "buffer", // const uint32_t* threshold
      "u64", // uint64_t stream
      "u64", // uint64_t timeout_ms
      ...error,
    ],
    result: "i32", // blocking: the launches after it must find the new tables
  },
  eplb_dispatch_launch: {
    parameters: [
      "u64", // eplb_handle dispatcher
      "buffer", // const eplb_dispatch_call* what
      ...error,
    ],
    result: "i32",
  },
  eplb_dispatch_host: {
    parameters: [
      "u64", // eplb_handle dispatcher
      "buffer", // const eplb_dispatch_call* what
      "buffer", // const void* logical
      "buffer", // void* physical
      ...error,
    ],
    result: "i32",
  },
  eplb_dispatch_snapshot: {
    parameters: [
      "u64", // eplb_handle dispatcher
      "u64", // uint64_t stream
      ...error,
    ],
    result: "i32",
  },
  eplb_dispatch_read: {
    parameters: [
      "u64", // eplb_handle dispatcher
      "u64", // uint64_t timeout_ms
      "buffer", // uint64_t* loads
      ...error,
    ],
    result: "i32",
    nonblocking: true,
  },
  eplb_dispatch_address: {
    parameters: [
      "u64", // eplb_handle dispatcher
      "buffer", // uint64_t* addresses
      ...error,
    ],
    result: "i32",
  },
  eplb_dispatch_measure: {
    parameters: [
      "u64", // eplb_handle dispatcher
      "buffer", // const eplb_dispatch_call* what
      "u32", // uint32_t repeats
      "buffer", // double* seconds
      ...error,
    ],
    result: "i32",
    nonblocking: true,
  },
  eplb_dispatch_destroy: {
    parameters: [
      "u64", // eplb_handle dispatcher
      ...error,
    ],
    result: "i32",
  },
} as const satisfies Deno.ForeignLibraryInterface;

/** The opened functions, by name. */
export type Symbols = Deno.DynamicLibrary<typeof SYMBOLS>["symbols"];
