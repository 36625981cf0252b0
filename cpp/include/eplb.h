// SPDX-License-Identifier: Apache-2.0
//
// libeplb: the part of eplb that touches expert weights.
//
// Words: a *slot* is a physical expert, one place of one rank that holds one logical expert per
// layer. *Weights* are the expert memory of one rank. An *engine* joins the weights of some ranks
// of a world ("local ranks") to a transport and executes *programs*: flat arrays that say which
// expert goes from which slot to which slot, batch of layers by batch of layers.
//
// Rules that hold for every function:
//  - It never throws, never aborts the process and returns an EPLB_* status; outputs are written
//    only on EPLB_OK, unless its comment says otherwise.
//  - `error` may be NULL; else a NUL-terminated text of at most `capacity` bytes is written on
//    failure. There is no "last error": calls run on whichever thread the host language chooses.
//  - Handles are ids, checked on each call; 0 is never valid. Any thread may use a handle, one call
//    at a time: a second one is refused with EPLB_BUSY, except where marked [any time].
//  - [waits] marks calls that can wait for a peer. They take a timeout in milliseconds (0 is
//    refused) and are ended early by eplb_engine_abort.
//  - Every struct begins with its size and version and may only grow at its end. A caller's shorter
//    struct gets defaults for what it lacks; a longer one must be zero in what is not known here.
//  - Addresses are uint64_t, sizes are bytes, "ordinal" is a CUDA device number or -1 for the host.
#ifndef EPLB_H_
#define EPLB_H_

#include <stdint.h>

#ifdef __cplusplus
#define EPLB_EXTERN_C extern "C"
#define EPLB_NOEXCEPT noexcept
#else
#define EPLB_EXTERN_C
#define EPLB_NOEXCEPT
#endif
#define EPLB_API EPLB_EXTERN_C __attribute__((visibility("default")))

// Library version (parsed by CMake) and ABI version (compared when the library is loaded).
#define EPLB_VERSION "0.1.0"
#define EPLB_ABI_VERSION 1u

typedef uint64_t eplb_handle;

// Status. -1…-19: the caller; -20…-39: this machine; -40…-59: other ranks; -60…: libeplb itself.
enum {
  EPLB_OK = 0,
  EPLB_INVALID_ARGUMENT = -1,
  EPLB_INVALID_HANDLE = -2,
  EPLB_BUSY = -3,
  EPLB_UNSUPPORTED = -4,  // not in this build, or not possible on this machine
  EPLB_BAD_STRUCT = -5,   // struct size or version out of range, unknown field set
  EPLB_BROKEN = -6,       // the engine failed before: destroy it, keep the weights, make a new one
  EPLB_OUT_OF_MEMORY = -20,
  EPLB_SYSTEM_ERROR = -21,
  EPLB_CUDA_ERROR = -22,
  EPLB_NCCL_ERROR = -40,
  EPLB_TIMEOUT = -41,
  EPLB_ABORTED = -42,      // eplb_engine_abort was called here
  EPLB_PEER_FAILED = -43,  // another rank gave up
  EPLB_PEER_MISMATCH = -44,  // another rank's bootstrap blob does not fit this rank's weights
  EPLB_INTERNAL_ERROR = -60,
};

// Bits of eplb_capabilities.
#define EPLB_CAPABILITY_CUDA 1u  // built with CUDA
#define EPLB_CAPABILITY_NCCL 2u  // built against NCCL's header; the library is opened at run time

// PULL: ranks copy from each other's memory. NCCL: they send and receive; GPUs only, one per rank.
// PULL_NCCL: ranks of one node and machine, in processes of their own, pull, all others use NCCL, in the
// same run; GPUs as for NCCL. NCCL_PUT: ranks put into each other's staging memory (ncclPutSignal, so
// NCCL >= 2.29), GPUs of one NVLink domain; takes no direct receives.
enum {
  EPLB_TRANSPORT_PULL = 1,
  EPLB_TRANSPORT_NCCL = 2,
  EPLB_TRANSPORT_PULL_NCCL = 3,
  EPLB_TRANSPORT_NCCL_PUT = 4,
};

// ---- library ------------------------------------------------------------------------------------

EPLB_API uint32_t eplb_abi_version(void) EPLB_NOEXCEPT;
EPLB_API uint32_t eplb_capabilities(void) EPLB_NOEXCEPT;
// sizeof of the struct with this kind (EPLB_STRUCT_*), 0 for an unknown kind.
enum {
  EPLB_STRUCT_DEVICE_INFO = 1,
  EPLB_STRUCT_WEIGHTS_CONFIG = 2,
  EPLB_STRUCT_ENGINE_CONFIG = 3,
  EPLB_STRUCT_ENGINE_INFO = 4,
  EPLB_STRUCT_RUN_RESULT = 5,
  EPLB_STRUCT_COPY_MEASURE = 6,
  EPLB_STRUCT_PRODUCT_MEASURE = 7,
  EPLB_STRUCT_RUN_CONFIG = 8,
  EPLB_STRUCT_DISPATCH_CONFIG = 9,
  EPLB_STRUCT_DISPATCH_CALL = 10,
};
EPLB_API uint32_t eplb_struct_size(uint32_t kind) EPLB_NOEXCEPT;
// Writes the library version / the name of a status, NUL-terminated.
EPLB_API int32_t eplb_version(char* text, uint64_t capacity) EPLB_NOEXCEPT;
EPLB_API int32_t eplb_status_name(int32_t status, char* text, uint64_t capacity) EPLB_NOEXCEPT;

// ---- devices ------------------------------------------------------------------------------------

typedef struct {
  uint32_t size, version;  // version 1
  int32_t ordinal;
  int32_t compute_major, compute_minor, multiprocessors;
  uint64_t total_bytes, free_bytes;
  char name[128];
  char pci_bus_id[32];
} eplb_device_info;

// Number of CUDA devices; 0 with EPLB_OK where there is no driver or no device.
// `error` then says why (this is the one place where it is written on success).
EPLB_API int32_t eplb_device_count(int32_t* count, char* error, uint64_t capacity) EPLB_NOEXCEPT;
EPLB_API int32_t eplb_device_describe(int32_t ordinal, eplb_device_info* info, char* error,
                                      uint64_t capacity) EPLB_NOEXCEPT;
// *reachable = 1 when `ordinal` can map memory of `peer`.
EPLB_API int32_t eplb_device_peer_access(int32_t ordinal, int32_t peer, int32_t* reachable,
                                         char* error, uint64_t capacity) EPLB_NOEXCEPT;
// Opens NCCL (`path` NULL or "": the usual names), reports its version (22803 for 2.28.3) and file.
// Opened once per process; a later call with another path returns what is open.
EPLB_API int32_t eplb_nccl_open(const char* path, int32_t* version, char* found,
                                uint64_t found_capacity, char* error,
                                uint64_t capacity) EPLB_NOEXCEPT;

// ---- measuring the machine at hand -----------------------------------------------------------------

enum { EPLB_ENGINE_COPY = 0, EPLB_ENGINE_KERNEL = 1 };

typedef struct {
  uint32_t size, version;   // version 1
  int32_t ordinal, peer;    // copies go from peer's memory to ordinal's; the same device: inside it
  uint32_t both_ways;       // != 0: and the other way at the same time
  uint32_t engine;          // EPLB_ENGINE_*: the copy engine (batched), or a kernel
  uint32_t pieces, repeats;
  uint64_t piece_bytes;
} eplb_copy_measure;

// Seconds of each repeat of copying all pieces, of the slower direction: `seconds` [repeats].
EPLB_API int32_t eplb_measure_copies(const eplb_copy_measure* what, double* seconds, char* error,
                                     uint64_t capacity) EPLB_NOEXCEPT;

typedef struct {
  uint32_t size, version;  // version 1
  int32_t ordinal;
  uint32_t m, n, k;        // [m, k] x [k, n], bf16
  uint32_t count;          // products, one after the other
  uint32_t reserved;       // 0
} eplb_product_measure;

// A model-like stream of matrix products. Matrices, stream and events are made once, so that a run can
// stand for a forward pass. Needs cuBLAS, which is opened at run time; EPLB_UNSUPPORTED without it.
EPLB_API int32_t eplb_products_create(const eplb_product_measure* what, eplb_handle* products,
                                      char* error, uint64_t capacity) EPLB_NOEXCEPT;
// Computes all of them and waits for the last: `seconds` [count] of each.
EPLB_API int32_t eplb_products_run(eplb_handle products, double* seconds, char* error,
                                   uint64_t capacity) EPLB_NOEXCEPT;
EPLB_API int32_t eplb_products_destroy(eplb_handle products, char* error,
                                       uint64_t capacity) EPLB_NOEXCEPT;

// ---- weights: expert memory of one rank -----------------------------------------------------------

typedef struct {
  uint32_t size, version;  // version 1
  int32_t ordinal;         // -1: host memory
  uint32_t layers;         // >= 1
  uint32_t slots;          // slots of this rank per layer, >= 1
  uint32_t tensors;        // tensors per expert, >= 1
} eplb_weights_config;

// `tensor_bytes` [tensors]: bytes of one expert in each tensor, >= 1.
EPLB_API int32_t eplb_weights_create(const eplb_weights_config* config,
                                     const uint64_t* tensor_bytes, eplb_handle* weights,
                                     char* error, uint64_t capacity) EPLB_NOEXCEPT;
// Memory that the caller owns and keeps until the weights are destroyed. `table` [layers][tensors][2]:
// address of slot 0, and bytes from one slot to the next (>= tensor_bytes). Refused: null addresses,
// strides below an expert's bytes, ranges that overlap, CUDA pointers of another device. To be pulled from by
// other processes or GPUs, GPU memory must be of cudaMalloc.
EPLB_API int32_t eplb_weights_register(eplb_handle weights, const uint64_t* table, char* error,
                                       uint64_t capacity) EPLB_NOEXCEPT;
// Memory that the library owns, zeroed. `shareable` != 0: peers in other processes can map it (host: POSIX
// shared memory; CUDA memory is always shareable).
EPLB_API int32_t eplb_weights_allocate(eplb_handle weights, uint32_t shareable, char* error,
                                       uint64_t capacity) EPLB_NOEXCEPT;
// Copies `bytes` at `offset` inside one expert's tensor from / to host memory.
EPLB_API int32_t eplb_weights_write(eplb_handle weights, uint32_t layer, uint32_t slot,
                                    uint32_t tensor, uint64_t offset, const void* source,
                                    uint64_t bytes, char* error, uint64_t capacity) EPLB_NOEXCEPT;
EPLB_API int32_t eplb_weights_read(eplb_handle weights, uint32_t layer, uint32_t slot,
                                   uint32_t tensor, uint64_t offset, void* target, uint64_t bytes,
                                   char* error, uint64_t capacity) EPLB_NOEXCEPT;
// Synthetic weights where the bytes are. `map` [layers][slots] of logical experts; -1 is left as it is.
// The bytes depend on seed, layer, expert and tensor alone, alike on host and GPU.
EPLB_API int32_t eplb_weights_fill(eplb_handle weights, const int32_t* map, uint64_t seed,
                                   char* error, uint64_t capacity) EPLB_NOEXCEPT;
// A 64-bit digest per tensor of each expert, computed where the bytes are, alike on host and GPU:
// `digests` [layers][slots][tensors].
EPLB_API int32_t eplb_weights_digest(eplb_handle weights, uint64_t* digests, char* error,
                                     uint64_t capacity) EPLB_NOEXCEPT;
// Address of slot 0 and stride, of one layer's tensor.
EPLB_API int32_t eplb_weights_address(eplb_handle weights, uint32_t layer, uint32_t tensor,
                                      uint64_t* address, uint64_t* stride, char* error,
                                      uint64_t capacity) EPLB_NOEXCEPT;
// [any time] Frees what the library owns. Refused with EPLB_BUSY while an engine uses the weights.
EPLB_API int32_t eplb_weights_destroy(eplb_handle weights, char* error,
                                      uint64_t capacity) EPLB_NOEXCEPT;

// ---- engine: local ranks joined to a transport ----------------------------------------------------

typedef struct {
  uint32_t size, version;  // version 1
  uint32_t world;          // ranks of the whole job
  uint32_t locals;         // ranks of this process, 1 … world
  uint32_t transport;      // EPLB_TRANSPORT_*
  uint32_t staging_cells;  // experts that one staging set holds, 1 … layers * slots
  uint32_t staging_sets;   // 1 to 4; with more than 1 the next batches move while one commits
  int32_t max_ctas;        // NCCL's thread blocks per communicator, 0: NCCL's own choice
  uint64_t small_bytes;    // tensors up to this size are packed instead of sent one by one
  // GPUs that pull or put. 0: kernels copy what stays on its GPU, and where three or more GPUs pull
  // also what goes to others, to all of them at once; 1: copy engines do all that, and kernels copy
  // small tensors only.
  uint32_t copy_engine_only;
  uint32_t reserved;       // 0
} eplb_engine_config;

typedef struct {
  uint32_t size, version;   // version 1
  uint64_t cell_bytes;      // staging memory of one expert, padding included
  uint64_t staging_bytes;   // staging memory of one local rank, all sets, pack buffers included
} eplb_engine_info;

typedef struct {
  uint32_t size, version;  // version 1
  uint64_t timeout_ms;     // of the whole run, permissions to commit included
  uint32_t held;           // 1: batches are committed only as eplb_engine_commit permits it
  uint32_t reserved;       // 0
  // The most bytes per second that each rank gathers, on average over the run, so that a model beside it
  // hardly notices; 0: no bound. A rank gathers what it receives and what it copies. A batch begins when
  // the bound allows all before it, and then goes as fast as it can; commits do not wait for the bound.
  // The run ends when the bound allows all of it, if that is within the timeout.
  uint64_t bytes_per_second;
} eplb_run_config;

typedef struct {
  uint32_t size, version;     // version 1
  uint32_t committed_batches;  // batches whose weights are in place on every local rank
  int32_t failed_rank;         // the rank to blame, -1 if none is known
  double seconds;              // wall time, first byte to last commit, or to the end that a bound sets
} eplb_run_result;

// `local_ranks`, `weights` [locals]. All weights must agree in layers, slots and tensors. `local_nodes`
// [locals]: any numbers that say which ranks of the job are on one node; may be NULL: all on node 0.
EPLB_API int32_t eplb_engine_create(const eplb_engine_config* config, const int32_t* local_ranks,
                                    const int32_t* local_nodes, const eplb_handle* weights,
                                    eplb_handle* engine, char* error,
                                    uint64_t capacity) EPLB_NOEXCEPT;
EPLB_API int32_t eplb_engine_describe(eplb_handle engine, eplb_engine_info* info, char* error,
                                      uint64_t capacity) EPLB_NOEXCEPT;
// Bootstrap blob of local rank `index`, for eplb_engine_connect on every rank. *bytes is the blob's
// size, also when `capacity_bytes` is too small (EPLB_INVALID_ARGUMENT; call again).
EPLB_API int32_t eplb_engine_export(eplb_handle engine, uint32_t index, void* blob,
                                    uint64_t capacity_bytes, uint64_t* bytes, char* error,
                                    uint64_t capacity) EPLB_NOEXCEPT;
// On GPUs an engine keeps the memory that it pulls from mapped until it is destroyed: no rank may free
// weights while another rank's engine of the job lives.
// [waits] `blobs`: the blobs of all ranks, back to back in rank order; `lengths` [world]. Maps peers' memory
// and joins NCCL communicators, warming every pair that they serve. A blob that does not fit is EPLB_PEER_MISMATCH.
EPLB_API int32_t eplb_engine_connect(eplb_handle engine, const void* blobs,
                                     const uint64_t* lengths, uint64_t timeout_ms, char* error,
                                     uint64_t capacity) EPLB_NOEXCEPT;
// Call when every rank is connected: removes the names of shared memory, so that nothing is left
// behind however the processes end. (Destroying an engine or a failing connect removes them too.)
EPLB_API int32_t eplb_engine_seal(eplb_handle engine, char* error,
                                  uint64_t capacity) EPLB_NOEXCEPT;
// [waits] Executes a program (layout below) on all local ranks. `rank_bytes` [locals][2], may be NULL:
// bytes that came in from, and went out to, other ranks. `result` and `rank_bytes` are written on failure
// too; the engine is then broken, and weights and maps agree for result->committed_batches batches.
//
// A run that is *held* stages batches as any other, but commits a batch only once eplb_engine_commit has
// permitted it, so that a model may read the slots meanwhile. It returns when every rank of the job has
// committed all batches. When it fails it commits nothing more, not even what was permitted; where
// another rank was faster, eplb_engine_settle does.
EPLB_API int32_t eplb_engine_run(eplb_handle engine, const int32_t* program, uint64_t words,
                                 const eplb_run_config* config, eplb_run_result* result,
                                 uint64_t* rank_bytes, char* error,
                                 uint64_t capacity) EPLB_NOEXCEPT;
// [any time] [waits] Permits the held run in progress to commit its leading `batches` batches, and
// waits until these are in place on every local rank. That takes no longer than the copies for batches
// that are agreed on (eplb_engine_progress); for others it waits until all ranks have staged them. A
// permission stays, also when this call has timed out, and ends with the run. *committed: the batches in
// place, written on failure too. If the run fails first, status and text are the run's. When no run is
// in progress: EPLB_OK if the last one has committed `batches`, else its failure, or
// EPLB_INVALID_ARGUMENT.
EPLB_API int32_t eplb_engine_commit(eplb_handle engine, uint32_t batches, uint64_t timeout_ms,
                                    uint32_t* committed, char* error,
                                    uint64_t capacity) EPLB_NOEXCEPT;
// After a failed run: commits batches that this engine has staged but not committed, up to `batches` in all.
// `batches` must be what a surviving rank reported as committed: its fence proves that this rank
// has staged them. Smaller numbers change nothing. *committed: the batches committed now.
EPLB_API int32_t eplb_engine_settle(eplb_handle engine, uint32_t batches, uint32_t* committed,
                                    char* error, uint64_t capacity) EPLB_NOEXCEPT;
// [any time] How far the run in progress is, or the last one came. *committed: batches that every local
// rank has committed; in a held run they are in place. *agreed: batches that every rank of the job has
// staged, as every local rank knows, and so at least *committed. *runs: the runs begun so far, by which to
// tell a run's numbers from those of the one before.
EPLB_API int32_t eplb_engine_progress(eplb_handle engine, uint32_t* committed, uint32_t* agreed,
                                      uint32_t* runs, char* error,
                                      uint64_t capacity) EPLB_NOEXCEPT;
// [any time] Ends waits of this engine early; `failed_rank` (-1: none) and `reason` go into their error.
EPLB_API int32_t eplb_engine_abort(eplb_handle engine, int32_t failed_rank, const char* reason,
                                   char* error, uint64_t capacity) EPLB_NOEXCEPT;
// [any time] Aborts, waits for a running call to return, frees. The weights stay.
EPLB_API int32_t eplb_engine_destroy(eplb_handle engine, char* error,
                                     uint64_t capacity) EPLB_NOEXCEPT;

// ---- program ------------------------------------------------------------------------------------
//
// int32 words: a header, a table of batches, then operations.
//
//   header  [8]           magic, version, batches, operations, layers, slots, world, 0
//   batches [batches][2]  first layer, one past the last layer; ascending, without overlap
//   ops     [operations][8]  batch, round, rank, code, layer, slot, peer, peer slot
//
// Operations are sorted by batch, then round; only those of the caller's local ranks are executed
// (others are refused). Operations of one rank in one round form a group: they start together and
// none waits for another. Both ends of a transfer carry the same batch and round, and the
// operations between two ranks stand in the same order at both ends.
//
//   SEND       rank's `slot` goes to `peer`'s `peer slot`
//   RECEIVE    rank's `slot` gets what `peer` holds in `peer slot`
//   COPY       rank's `slot` gets what the same rank holds in `peer slot` (peer = rank)
//   DUPLICATE  rank's `slot` gets what this batch RECEIVEs or COPYs into `peer slot` of the same layer
//              (peer = rank)
//
// Sources are read as they were before the batch. A slot is written at most once per layer.
//
// EPLB_OP_DIRECT, or-ed to the code of a RECEIVE or COPY, says that nobody reads the slot and that what
// it holds is given up: it may be written from the time when the batch is staged, and is complete when
// the batch is committed. It takes no staging cell. No operation of the same layer may read the slot;
// its SEND, if any, carries no flag.
#define EPLB_PROGRAM_MAGIC 0x424C5045  // "EPLB"
#define EPLB_PROGRAM_VERSION 1
#define EPLB_PROGRAM_HEADER_WORDS 8
#define EPLB_PROGRAM_BATCH_WORDS 2
#define EPLB_PROGRAM_OP_WORDS 8
enum { EPLB_OP_SEND = 1, EPLB_OP_RECEIVE = 2, EPLB_OP_COPY = 3, EPLB_OP_DUPLICATE = 4 };
#define EPLB_OP_DIRECT 0x100


// ---- dispatch: which replica gets a token --------------------------------------------------------
//
// A dispatcher has the tables of one rank and model, in arrays whose addresses never change (row major):
//
//   logical_to_physical_map  int32   [layers][experts][max_replicas]  slots, numbered over all ranks; -1
//                                                                     behind those that are listed
//   logical_replica_count    int32   [layers][experts]   slots listed; 0: tokens of the expert go nowhere
//   threshold                uint32  [layers][experts][max_replicas]  ascending where slots are listed, the
//                                                                     last one 0xFFFFFFFF
//   loads                    uint64  [layers][experts]   tokens counted since the last snapshot
//
// A token of an expert goes to the first slot listed whose threshold is above
//
//   hash = fmix32(token * 0x9E3779B1 + expert * 0x85EBCA77 + salt * 0xC2B2AE3D)  mod 2^32
//
// and to the last one if there is none; `token` is the row of the token in its call, and fmix32 is
// MurmurHash3's: h ^= h >> 16, h *= 0x85EBCA6B, h ^= h >> 13, h *= 0xC2B2AE35, h ^= h >> 16. So the
// thresholds are the running sum of the slots' shares, times 2^32; and the host, every GPU and every rank
// with the same table choose alike.

typedef struct {
  uint32_t size, version;  // version 1
  int32_t ordinal;         // -1: host memory
  uint32_t layers, experts, max_replicas;  // each >= 1
} eplb_dispatch_config;

typedef struct {
  uint32_t size, version;  // version 1
  uint32_t layer;
  uint32_t tokens, top_k;   // ids are [tokens][top_k]
  uint32_t id_bytes;        // 4: int32, 8: int64
  uint32_t salt;
  uint32_t record;          // 1: count loads
  // Addresses on the dispatcher's device, read when the kernel runs.
  uint64_t logical, physical;  // of the ids; may be the same
  uint64_t valid_tokens;    // of an int32: rows from this one on are padding; 0: there are none
  uint64_t step_salt;       // of a uint32 that is added to `salt`; 0: nothing is
  uint64_t stream;          // a cudaStream_t of the device; 0: the default stream. Unused on the host
} eplb_dispatch_call;

// Allocates the arrays. No expert has slots yet.
EPLB_API int32_t eplb_dispatch_create(const eplb_dispatch_config* config, eplb_handle* dispatcher,
                                      char* error, uint64_t capacity) EPLB_NOEXCEPT;
// New tables of `layers` layers from `first_layer` on, shaped as above, from host memory that the caller
// may reuse afterwards. Calls launched on `stream` from now on use them; those of other streams are for the
// caller to order. Counts above max_replicas, slots below 0 among those listed or other than -1 behind
// them, and thresholds that do not ascend to 0xFFFFFFFF are refused. [waits] on GPUs, while the last update
// of one of the layers is still queued on its stream. Refused while `stream` is being captured.
EPLB_API int32_t eplb_dispatch_update(eplb_handle dispatcher, uint32_t first_layer, uint32_t layers,
                                      const int32_t* physical, const int32_t* count,
                                      const uint32_t* threshold, uint64_t stream,
                                      uint64_t timeout_ms, char* error,
                                      uint64_t capacity) EPLB_NOEXCEPT;
// Turns logical ids into slots and counts them. Padding, -1, ids that are no expert's and experts
// without slots give -1; the last are counted, the others not. On a GPU: one kernel, enqueued without waiting
// or allocating anything, so that it may be captured into a graph, whose replays read the tables as they
// are then. On the host: done when it returns.
EPLB_API int32_t eplb_dispatch_launch(eplb_handle dispatcher, const eplb_dispatch_call* what,
                                      char* error, uint64_t capacity) EPLB_NOEXCEPT;
// The same with these buffers in place of the addresses of the ids. Host dispatchers only.
EPLB_API int32_t eplb_dispatch_host(eplb_handle dispatcher, const eplb_dispatch_call* what,
                                    const void* logical, void* physical, char* error,
                                    uint64_t capacity) EPLB_NOEXCEPT;
// Enqueues on `stream`: take the loads out and leave zeros. Each token is in one snapshot. Refused with
// EPLB_BUSY until the last snapshot is read, and while `stream` is being captured.
EPLB_API int32_t eplb_dispatch_snapshot(eplb_handle dispatcher, uint64_t stream, char* error,
                                        uint64_t capacity) EPLB_NOEXCEPT;
// [any time] [waits] Waits until the snapshot is taken and gives its `loads` [layers][experts]. Refused
// without a snapshot. After a timeout it may be called again.
EPLB_API int32_t eplb_dispatch_read(eplb_handle dispatcher, uint64_t timeout_ms, uint64_t* loads,
                                    char* error, uint64_t capacity) EPLB_NOEXCEPT;
// The addresses of the four arrays, in the order above: `addresses` [4].
EPLB_API int32_t eplb_dispatch_address(eplb_handle dispatcher, uint64_t* addresses, char* error,
                                       uint64_t capacity) EPLB_NOEXCEPT;
// Launches the call over and over: `seconds` [repeats] that one launch takes on the device. On GPUs it uses
// a stream of its own, not the call's, and each repeat is the mean of 20 launches. Loads are counted.
EPLB_API int32_t eplb_dispatch_measure(eplb_handle dispatcher, const eplb_dispatch_call* what,
                                       uint32_t repeats, double* seconds, char* error,
                                       uint64_t capacity) EPLB_NOEXCEPT;
// [any time] Ends waits (EPLB_ABORTED), waits for a running call to return, frees the arrays. On GPUs it waits
// for all work of the device.
EPLB_API int32_t eplb_dispatch_destroy(eplb_handle dispatcher, char* error,
                                       uint64_t capacity) EPLB_NOEXCEPT;

#endif  // EPLB_H_
