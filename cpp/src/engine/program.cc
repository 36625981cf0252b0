// SPDX-License-Identifier: Apache-2.0
// Parsing and checking of programs.
#include "engine/program.h"

#include <algorithm>
#include <array>
#include <tuple>

#include "base/text.h"
#include "eplb.h"

namespace eplb {
namespace {

struct Header {
  int32_t magic, version, batches, operations, layers, slots, world, zero;
};
struct BatchWords {
  int32_t first_layer, end_layer;
};
struct OperationWords {
  int32_t batch, round, rank, flagged_code, layer, slot, peer, peer_slot;
  int32_t code() const { return flagged_code & ~EPLB_OP_DIRECT; }
  bool is_direct() const { return (flagged_code & EPLB_OP_DIRECT) != 0; }
};
static_assert(sizeof(Header) == EPLB_PROGRAM_HEADER_WORDS * sizeof(int32_t));
static_assert(sizeof(BatchWords) == EPLB_PROGRAM_BATCH_WORDS * sizeof(int32_t));
static_assert(sizeof(OperationWords) == EPLB_PROGRAM_OP_WORDS * sizeof(int32_t));

// What a batch has put where, by local rank, layer and slot.
constexpr int32_t kUntouched = -1, kDuplicated = -2, kDirect = -3;  // else the staging cell

[[noreturn]] void refuse(const std::string& message) {
  throw Error(EPLB_INVALID_ARGUMENT, "Cannot run program: " + message);
}

bool inside(int32_t value, int32_t end) { return value >= 0 && value < end; }

const char* name_of(int32_t code) {
  constexpr const char* kNames[] = {"", "SEND", "RECEIVE", "COPY", "DUPLICATE"};
  return kNames[code];
}

class Parser {
 public:
  Parser(const int32_t* words, uint64_t count, const ProgramLimits& limits)
      : limits_(limits), locals_(limits.local_ranks.size()) {
    read_header(words, count);
    batches_ = reinterpret_cast<const BatchWords*>(words + EPLB_PROGRAM_HEADER_WORDS);
    operations_ = reinterpret_cast<const OperationWords*>(batches_ + header_.batches);
    local_of_.assign(limits.world, -1);
    for (size_t local = 0; local < locals_; ++local) {
      local_of_[limits.local_ranks[local]] = static_cast<int32_t>(local);
    }
  }

  Program parse() {
    check_batches();
    for (int32_t i = 0; i < header_.operations; ++i) check_operation(i);
    check_pairs();
    Program program(locals_, std::vector<RankBatch>(header_.batches));
    written_.assign(locals_ * limits_.layers * limits_.slots, kUntouched);
    for (int32_t i = 0; i < header_.operations; ++i) add_transfer(i, program);
    for (int32_t i = 0; i < header_.operations; ++i) add_duplicate(i, program);
    for (int32_t i = 0; i < header_.operations; ++i) check_source(i);
    return program;
  }

 private:
  void read_header(const int32_t* words, uint64_t count) {
    if (count < EPLB_PROGRAM_HEADER_WORDS) refuse(text(count, " words hold no header"));
    header_ = *reinterpret_cast<const Header*>(words);
    if (header_.magic != EPLB_PROGRAM_MAGIC) {
      refuse(text("its first word is ", header_.magic, ", not ", EPLB_PROGRAM_MAGIC));
    }
    if (header_.version != EPLB_PROGRAM_VERSION) {
      refuse(text("its version is ", header_.version, ", not ", EPLB_PROGRAM_VERSION));
    }
    if (header_.zero != 0) refuse(text("its last header word is ", header_.zero, ", not 0"));
    if (header_.layers != limits_.layers || header_.slots != limits_.slots ||
        header_.world != limits_.world) {
      refuse(text("it is for ", header_.layers, " layers, ", header_.slots, " slots and ",
                  header_.world, " ranks; the engine has ", limits_.layers, ", ", limits_.slots,
                  " and ", limits_.world));
    }
    const uint64_t expected = EPLB_PROGRAM_HEADER_WORDS +
                              static_cast<uint64_t>(header_.batches) * EPLB_PROGRAM_BATCH_WORDS +
                              static_cast<uint64_t>(header_.operations) * EPLB_PROGRAM_OP_WORDS;
    if (header_.batches < 0 || header_.operations < 0 || expected != count) {
      refuse(text("it has ", count, " words, not those of ", header_.batches, " batches and ",
                  header_.operations, " operations"));
    }
  }

  void check_batches() const {
    int32_t end = 0;
    for (int32_t i = 0; i < header_.batches; ++i) {
      const BatchWords& batch = batches_[i];
      if (batch.first_layer < end || batch.end_layer <= batch.first_layer ||
          batch.end_layer > limits_.layers) {
        refuse(text("batch ", i, " has layers ", batch.first_layer, " to ", batch.end_layer,
                    "; they must ascend from ", end, " and end at most at ", limits_.layers));
      }
      end = batch.end_layer;
    }
  }

  void check_operation(int32_t index) const {
    const OperationWords& op = operations_[index];
    const auto wrong = [&](const std::string& what) {
      refuse(text("operation ", index, " ", what));
    };
    if (!inside(op.batch, header_.batches)) wrong(text("has batch ", op.batch));
    if (op.round < 0) wrong(text("has round ", op.round));
    if (op.code() < EPLB_OP_SEND || op.code() > EPLB_OP_DUPLICATE) {
      wrong(text("has code ", op.flagged_code));
    }
    if (op.is_direct() && op.code() != EPLB_OP_RECEIVE && op.code() != EPLB_OP_COPY) {
      wrong(text("is a ", name_of(op.code()), ", which cannot be direct"));
    }
    if (!inside(op.rank, limits_.world) || local_of_[op.rank] < 0) {
      wrong(text("is of rank ", op.rank, ", which is not of this engine"));
    }
    if (!inside(op.peer, limits_.world)) {
      wrong(text("has peer ", op.peer, " in a world of ", limits_.world));
    }
    const bool transfer = op.code() == EPLB_OP_SEND || op.code() == EPLB_OP_RECEIVE;
    if (transfer == (op.peer == op.rank)) {
      wrong(text("is a ", name_of(op.code()), " of rank ", op.rank, " with peer ", op.peer));
    }
    const BatchWords& batch = batches_[op.batch];
    if (op.layer < batch.first_layer || op.layer >= batch.end_layer) {
      wrong(text("has layer ", op.layer, ", but batch ", op.batch, " has layers ",
                 batch.first_layer, " to ", batch.end_layer));
    }
    if (!inside(op.slot, limits_.slots)) wrong(text("has slot ", op.slot));
    if (!inside(op.peer_slot, limits_.slots)) wrong(text("has peer slot ", op.peer_slot));
    if (index == 0) return;
    const OperationWords& before = operations_[index - 1];
    if (std::tie(op.batch, op.round) < std::tie(before.batch, before.round)) {
      wrong(text("(batch ", op.batch, ", round ", op.round, ") comes after batch ", before.batch,
                 ", round ", before.round));
    }
  }

  // Where both ends of transfers are local, they must agree; else bytes would go astray.
  void check_pairs() const {
    using Key = std::array<int32_t, 7>;  // batch, round, from, to, layer, slot at each end
    struct End {
      Key key;
      int32_t index;
    };
    std::vector<End> sends, receives;
    for (int32_t i = 0; i < header_.operations; ++i) {
      const OperationWords& op = operations_[i];
      if (local_of_[op.peer] < 0) continue;
      if (op.code() == EPLB_OP_SEND) {
        sends.push_back(
            {{op.batch, op.round, op.rank, op.peer, op.layer, op.slot, op.peer_slot}, i});
      } else if (op.code() == EPLB_OP_RECEIVE) {
        receives.push_back(
            {{op.batch, op.round, op.peer, op.rank, op.layer, op.peer_slot, op.slot}, i});
      }
    }
    // By batch, round and pair; the order of the operations between two ranks stays.
    const auto earlier = [](const End& a, const End& b) {
      return std::lexicographical_compare(a.key.begin(), a.key.begin() + 4, b.key.begin(),
                                          b.key.begin() + 4);
    };
    std::stable_sort(sends.begin(), sends.end(), earlier);
    std::stable_sort(receives.begin(), receives.end(), earlier);
    const size_t common = std::min(sends.size(), receives.size());
    for (size_t i = 0; i < common; ++i) {
      if (sends[i].key != receives[i].key) {
        refuse(text("operation ", sends[i].index, ", a SEND, does not fit operation ",
                    receives[i].index, ", a RECEIVE"));
      }
    }
    if (sends.size() != receives.size()) {
      const int32_t index = sends.size() > common ? sends[common].index : receives[common].index;
      refuse(text("operation ", index, ", a ", name_of(operations_[index].code()),
                  ", has no other end"));
    }
  }

  int32_t& written(const OperationWords& op, int32_t slot) {
    const size_t row = static_cast<size_t>(local_of_[op.rank]) * limits_.layers + op.layer;
    return written_[row * limits_.slots + slot];
  }

  void write_slot(int32_t index, int32_t value) {
    const OperationWords& op = operations_[index];
    int32_t& state = written(op, op.slot);
    if (state != kUntouched) {
      refuse(text("operation ", index, " writes layer ", op.layer, ", slot ", op.slot, " of rank ",
                  op.rank, " a second time"));
    }
    state = value;
  }

  void add_transfer(int32_t index, Program& program) {
    const OperationWords& op = operations_[index];
    if (op.code() == EPLB_OP_DUPLICATE) return;
    RankBatch& batch = program[local_of_[op.rank]][op.batch];
    batch.operations.push_back(
        {op.round, op.code(), op.layer, op.slot, op.peer, op.peer_slot, op.is_direct()});
    if (op.code() == EPLB_OP_SEND) return;
    if (op.is_direct()) return write_slot(index, kDirect);
    const int32_t cell = static_cast<int32_t>(batch.commits.size());
    if (cell >= limits_.staging_cells) {
      refuse(text("operation ", index, " needs staging cell ", cell, " of rank ", op.rank,
                  " in batch ", op.batch, ", which has ", limits_.staging_cells));
    }
    write_slot(index, cell);
    batch.commits.push_back({op.layer, op.slot, cell});
  }

  void add_duplicate(int32_t index, Program& program) {
    const OperationWords& op = operations_[index];
    if (op.code() != EPLB_OP_DUPLICATE) return;
    // A layer belongs to one batch, so a cell found here is of this batch.
    const int32_t cell = written(op, op.peer_slot);
    if (cell == kDirect) {
      refuse(text("operation ", index, " duplicates layer ", op.layer, ", slot ", op.peer_slot,
                  " of rank ", op.rank, ", which is written directly"));
    }
    if (cell < 0) {
      refuse(text("operation ", index, " duplicates layer ", op.layer, ", slot ", op.peer_slot,
                  " of rank ", op.rank, ", which its batch neither receives nor copies"));
    }
    write_slot(index, kDuplicated);
    program[local_of_[op.rank]][op.batch].commits.push_back({op.layer, op.slot, cell});
  }

  // A slot that is written while a batch is staged has no bytes for others to stage.
  void check_source(int32_t index) {
    const OperationWords& op = operations_[index];
    if (op.code() != EPLB_OP_SEND && op.code() != EPLB_OP_COPY) return;
    const int32_t slot = op.code() == EPLB_OP_SEND ? op.slot : op.peer_slot;
    if (written(op, slot) == kDirect) {
      refuse(text("operation ", index, ", a ", name_of(op.code()), ", reads layer ", op.layer,
                  ", slot ", slot, " of rank ", op.rank, ", which is written directly"));
    }
  }

  const ProgramLimits& limits_;
  const size_t locals_;
  Header header_;
  const BatchWords* batches_;
  const OperationWords* operations_;
  std::vector<int32_t> local_of_;  // [world], -1: in another process
  std::vector<int32_t> written_;   // [locals][layers][slots]
};

}  // namespace

Program parse_program(const int32_t* words, uint64_t count, const ProgramLimits& limits) {
  return Parser(words, count, limits).parse();
}

}  // namespace eplb
