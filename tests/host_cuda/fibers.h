// Blocks of CUDA threads on the CPU: a block is run by one thread of the
// operating system; every CUDA thread of it is a fiber with a stack of its own,
// which gives way at barriers and warp collectives. Barriers that some threads
// never reach, collectives with different masks and lanes outside their mask
// end the launch with an exception.
//
// AddressSanitizer and ThreadSanitizer are told of every switch. For the
// latter, only barriers order memory, so a missing one is reported as a race;
// every function here that touches shared state is therefore left out of the
// instrumentation.
#pragma once

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1)
      : x(x), y(y), z(z) {}
};

#if defined(__SANITIZE_THREAD__)
#define SHIM_PLAIN inline __attribute__((no_sanitize("thread"), noinline))
#else
#define SHIM_PLAIN inline
#endif

namespace shim {

constexpr size_t kStackBytes = 64 << 10;
constexpr unsigned kLanes = 32;
// What a block may declare, and the room for it with gaps between.
constexpr size_t kSharedBytes = 48 << 10;
constexpr size_t kSharedGap = 256;
constexpr size_t kArenaBytes = kSharedBytes + 32 * kSharedGap;

enum class State : uint8_t { kReady, kBlockBarrier, kWarpBarrier, kDone };

#if defined(__x86_64__)
// Saves the registers that a function must preserve and takes those of the
// other stack. Ten times faster than swapcontext, which also asks the kernel
// for the signal mask.
extern "C" void pathways_shim_switch(void** save, void* load);
__asm__(R"(
.text
.weak pathways_shim_switch
.type pathways_shim_switch,@function
pathways_shim_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size pathways_shim_switch,.-pathways_shim_switch
)");
using Context = void*;
#else
using Context = ucontext_t;
#endif

// A copy from global to shared memory that has been issued and not landed.
struct PendingCopy {
  void* to;
  const void* from;
  int bytes;
  int size;
  unsigned group;
};
constexpr unsigned kPendingCopies = 64;

struct Fiber {
  Context context{};
  char* stack = nullptr;
  uint3 index{};
  unsigned lane = 0;
  unsigned warp = 0;
  State state = State::kReady;
  int predicate = 0;
  void* tsan = nullptr;
  void* asan = nullptr;
  PendingCopy copies[kPendingCopies];
  unsigned copy_count = 0;
  unsigned group = 0;  // of the copies issued now
};

struct Warp {
  uint64_t slot[2][kLanes];
  uint32_t fragment[2][kLanes]
                   [6];  // of an mma instruction: four of A, two of B
  unsigned arrived = 0;
  unsigned mask = 0;
  unsigned epoch = 0;
  char order[2];  // addresses for ThreadSanitizer, as below
};

struct Block {
  Fiber* fibers = nullptr;
  Warp* warps = nullptr;
  unsigned threads = 0;
  unsigned warp_count = 0;
  dim3 grid, block;
  uint3 index{};
  const std::function<void()>* body = nullptr;
  Fiber* current = nullptr;
  Context main{};
  void* main_tsan = nullptr;
  void* main_asan = nullptr;
  const void* main_stack = nullptr;
  size_t main_stack_bytes = 0;
  const char* error = nullptr;
  char* arena = nullptr;  // shared memory
  size_t arena_used = 0;
  size_t shared_bytes = 0;
  uint64_t serial = 0;  // of the block in this process
  int any = 0;
  int count = 0;
  unsigned phase = 0;
  // Two of each kind in turn, and separate ones for the start and the end of a
  // block: with one, a late arrival would be ordered after its own release and
  // hide a race.
  char order[2];
  char start_order, end_order;
};

inline thread_local Block* current_block = nullptr;

// The order in which threads and blocks run; see set_order.
struct Order {
  bool shuffle = false;
  uint64_t state = 0;
};
inline Order run_order;

// seed 0: ascending; otherwise threads are shuffled at every barrier, and
// blocks at every launch.
inline void set_order(unsigned seed) {
  run_order.shuffle = seed != 0;
  run_order.state = seed;
}

// A number below `end`. Not of the standard library, whose code would be
// instrumented.
SHIM_PLAIN unsigned random_below(unsigned end) {
  run_order.state =
      run_order.state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<unsigned>((run_order.state >> 33) % end);
}

template <class T>
SHIM_PLAIN void shuffle(T* items, unsigned count) {
  for (unsigned i = count; i > 1; --i) {
    const unsigned other = random_below(i);
    const T item = items[i - 1];
    items[i - 1] = items[other];
    items[other] = item;
  }
}

SHIM_PLAIN void tsan_release([[maybe_unused]] void* at) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(at);
#endif
}

SHIM_PLAIN void tsan_acquire([[maybe_unused]] void* at) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(at);
#endif
}

SHIM_PLAIN void to_main(Block* block, [[maybe_unused]] bool last = false) {
  Fiber* self = block->current;
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(block->main_tsan, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &self->asan,
                                 block->main_stack, block->main_stack_bytes);
#endif
#if defined(__x86_64__)
  pathways_shim_switch(&self->context, block->main);
#else
  swapcontext(&self->context, &block->main);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(self->asan, nullptr, nullptr);
#endif
}

SHIM_PLAIN void to_fiber(Block* block, Fiber* fiber) {
  block->current = fiber;
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(fiber->tsan, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&block->main_asan, fiber->stack, kStackBytes);
#endif
#if defined(__x86_64__)
  pathways_shim_switch(&block->main, fiber->context);
#else
  swapcontext(&block->main, &fiber->context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(block->main_asan, nullptr, nullptr);
#endif
}

// Ends the launch. The fiber is not resumed.
[[noreturn]] SHIM_PLAIN void fail(Block* block, const char* what) {
  block->error = what;
  to_main(block, true);
  __builtin_unreachable();
}

SHIM_PLAIN void call_body() {
  (*current_block->body)();
}

// Shared memory is new in every block: full of a pattern that is NaN as a
// floating-point number and -1 as an integer, and closed to AddressSanitizer
// but for what has been declared.
SHIM_PLAIN void start_arena(Block* block) {
  static uint64_t blocks = 0;
  block->serial = ++blocks;
  block->arena_used = 0;
  block->shared_bytes = 0;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(block->arena, kArenaBytes);
#endif
  memset(block->arena, 0xff, kArenaBytes);
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(block->arena, kArenaBytes);
#endif
}

// One per declaration, and for templates per instantiation.
struct SharedVariable {
  void* data;
  uint64_t serial;
};

// The memory of a declaration in this block; the first thread there reserves
// it.
SHIM_PLAIN void* shared_memory(SharedVariable* variable, size_t bytes) {
  Block* block = current_block;
  if (variable->serial == block->serial) {
    return variable->data;
  }
  block->shared_bytes += bytes;
  if (block->shared_bytes > kSharedBytes ||
      block->arena_used + bytes + kSharedGap > kArenaBytes) {
    fail(block, "a block declares more than 48 KiB of shared memory");
  }
  variable->serial = block->serial;
  variable->data = block->arena + block->arena_used;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(variable->data, bytes);
#endif
  const size_t rounded = (bytes + kSharedGap - 1) / kSharedGap * kSharedGap;
  block->arena_used += rounded + kSharedGap;
  return variable->data;
}

SHIM_PLAIN void fiber_entry() {
  Block* block = current_block;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block->main_stack,
                                  &block->main_stack_bytes);
#endif
  tsan_acquire(&block->start_order);
  call_body();
  if (block->current->copy_count != 0) {
    fail(block, "a thread ends before its asynchronous copies have landed");
  }
  tsan_release(&block->end_order);
  block->current->state = State::kDone;
  to_main(block, true);
  __builtin_unreachable();
}

SHIM_PLAIN void start_fiber(Fiber* fiber) {
  fiber->state = State::kReady;
  fiber->copy_count = 0;
  fiber->group = 0;
#if defined(__x86_64__)
  // As if pathways_shim_switch had been called by fiber_entry's caller: six
  // registers to pop, then the address to return to. The stack is aligned the
  // way a call leaves it.
  void** top = reinterpret_cast<void**>(fiber->stack + kStackBytes - 64);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&fiber_entry);
  for (int i = 0; i < 6; ++i) {
    *--top = nullptr;
  }
  fiber->context = top;
#else
  getcontext(&fiber->context);
  fiber->context.uc_stack.ss_sp = fiber->stack;
  fiber->context.uc_stack.ss_size = kStackBytes;
  fiber->context.uc_link = nullptr;
  makecontext(&fiber->context, &fiber_entry, 0);
#endif
}

// Waits for all lanes of `mask`.
SHIM_PLAIN void warp_barrier(unsigned mask, bool orders_memory) {
  Block* block = current_block;
  Fiber* self = block->current;
  Warp& warp = block->warps[self->warp];
  if (!(mask >> self->lane & 1)) {
    fail(block, "a lane called a warp collective whose mask leaves it out");
  }
  if (warp.arrived != 0 && warp.mask != mask) {
    fail(block, "lanes of a warp met in a collective with different masks");
  }
  char* order = &warp.order[warp.epoch & 1];
  warp.mask = mask;
  warp.arrived |= 1u << self->lane;
  self->state = State::kWarpBarrier;
  if (orders_memory) {
    tsan_release(order);
  }
  to_main(block);
  if (orders_memory) {
    tsan_acquire(order);
  }
}

// Every lane leaves a value and reads that of lane `source`. Like the hardware,
// this orders no memory accesses.
template <class T>
SHIM_PLAIN T exchange(unsigned mask, T value, unsigned source) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  Block* block = current_block;
  Fiber* self = block->current;
  Warp& warp = block->warps[self->warp];
  uint64_t* slots = warp.slot[warp.epoch & 1];
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  slots[self->lane] = bits;
  warp_barrier(mask, false);
  if (!(mask >> source & 1)) {
    fail(block, "a lane read from a lane outside the mask of the shuffle");
  }
  T result;
  __builtin_memcpy(&result, &slots[source], sizeof(T));
  return result;
}

SHIM_PLAIN void block_barrier(int predicate) {
  Block* block = current_block;
  Fiber* self = block->current;
  char* order = &block->order[block->phase & 1];
  self->predicate = predicate;
  self->state = State::kBlockBarrier;
  tsan_release(order);
  to_main(block);
  tsan_acquire(order);
}

// Lets waiting threads go on where all of them have arrived. Returns whether
// any could.
SHIM_PLAIN bool release_barriers(Block* block, unsigned live) {
  bool progress = false;
  for (unsigned w = 0; w < block->warp_count; ++w) {
    Warp& warp = block->warps[w];
    if (warp.arrived == 0 || warp.arrived != warp.mask) {
      continue;
    }
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      if (warp.mask >> lane & 1) {
        block->fibers[w * kLanes + lane].state = State::kReady;
      }
    }
    warp.arrived = 0;
    ++warp.epoch;
    progress = true;
  }
  unsigned waiting = 0;
  int any = 0;
  int count = 0;
  for (unsigned i = 0; i < block->threads; ++i) {
    if (block->fibers[i].state == State::kBlockBarrier) {
      ++waiting;
      any |= block->fibers[i].predicate != 0;
      count += block->fibers[i].predicate != 0;
    }
  }
  if (waiting != 0 && waiting == live) {
    block->any = any;
    block->count = count;
    ++block->phase;
    for (unsigned i = 0; i < block->threads; ++i) {
      if (block->fibers[i].state == State::kBlockBarrier) {
        block->fibers[i].state = State::kReady;
      }
    }
    progress = true;
  }
  return progress;
}

SHIM_PLAIN void run_block(Block* block, unsigned* order) {
  for (unsigned w = 0; w < block->warp_count; ++w) {
    block->warps[w].arrived = 0;
    block->warps[w].epoch = 0;
  }
  start_arena(block);
  tsan_release(&block->start_order);
  for (unsigned i = 0; i < block->threads; ++i) {
    start_fiber(&block->fibers[i]);
    order[i] = i;
  }
  unsigned live = block->threads;
  while (live != 0) {
    if (run_order.shuffle) {
      shuffle(order, block->threads);
    }
    bool progress = false;
    for (unsigned i = 0; i < block->threads; ++i) {
      Fiber* fiber = &block->fibers[order[i]];
      if (fiber->state != State::kReady) {
        continue;
      }
      progress = true;
      to_fiber(block, fiber);
      if (block->error != nullptr) {
        return;
      }
      live -= fiber->state == State::kDone;
    }
    progress |= release_barriers(block, live);
    if (!progress) {
      block->error =
          "threads wait at a barrier that others of the block never reach";
      return;
    }
  }
  tsan_acquire(&block->end_order);
}

// Stacks, shared memory and, for ThreadSanitizer, the fibers of a block. Kept
// from launch to launch: to return the pages of the stacks would cost more than
// most launches.
struct Pool {
  static constexpr unsigned kThreads = 1024;
  char* stacks = map(kStackBytes * kThreads);
  char* arena = map(kArenaBytes);
  void* tsan[kThreads] = {};

  static char* map(size_t bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      throw std::runtime_error("shim: no memory for a block");
    }
    return static_cast<char*>(memory);
  }

  static Pool& get() {
    static Pool pool;
    return pool;
  }

  // For a launch of so many threads.
  void prepare([[maybe_unused]] unsigned threads) {
#if defined(__SANITIZE_ADDRESS__)
    // Frames of fibers that were never resumed have left their marks.
    __asan_unpoison_memory_region(stacks, kStackBytes * threads);
#endif
#if defined(__SANITIZE_THREAD__)
    for (unsigned i = 0; i < threads; ++i) {
      if (tsan[i] == nullptr) {
        tsan[i] = __tsan_create_fiber(0);
      }
    }
#endif
  }
};

// After an error: what the fibers have done came before what follows, although
// some of them stand at a barrier for ever.
SHIM_PLAIN void settle([[maybe_unused]] Block* block) {
#if defined(__SANITIZE_THREAD__)
  for (unsigned i = 0; i < block->threads; ++i) {
    __tsan_switch_to_fiber(block->fibers[i].tsan,
                           __tsan_switch_to_fiber_no_sync);
    __tsan_release(&block->end_order);
    __tsan_switch_to_fiber(block->main_tsan, __tsan_switch_to_fiber_no_sync);
  }
  __tsan_acquire(&block->end_order);
#endif
}

template <class Kernel, class... Arguments>
void launch(Kernel kernel, dim3 grid, dim3 block_size, Arguments... arguments) {
  const std::function<void()> body = [&] { kernel(arguments...); };
  const unsigned threads = block_size.x * block_size.y * block_size.z;
  if (threads == 0 || threads > Pool::kThreads || grid.x == 0 || grid.y == 0 ||
      grid.z == 0) {
    throw std::runtime_error("shim: invalid launch configuration");
  }
  Pool& pool = Pool::get();
  pool.prepare(threads);
  std::vector<Fiber> fibers(threads);
  std::vector<Warp> warps((threads + kLanes - 1) / kLanes);
  std::vector<unsigned> order(threads);
  Block block;
  block.fibers = fibers.data();
  block.warps = warps.data();
  block.threads = threads;
  block.warp_count = static_cast<unsigned>(warps.size());
  block.grid = grid;
  block.block = block_size;
  block.body = &body;
  block.arena = pool.arena;
  for (unsigned i = 0; i < threads; ++i) {
    fibers[i].index = {i % block_size.x, i / block_size.x % block_size.y,
                       i / block_size.x / block_size.y};
    fibers[i].lane = i % kLanes;
    fibers[i].warp = i / kLanes;
    fibers[i].stack = pool.stacks + kStackBytes * i;
    fibers[i].tsan = pool.tsan[i];
  }
#if defined(__SANITIZE_THREAD__)
  block.main_tsan = __tsan_get_current_fiber();
#endif
  const size_t count = static_cast<size_t>(grid.x) * grid.y * grid.z;
  std::vector<size_t> blocks(count);
  for (size_t i = 0; i < count; ++i) {
    blocks[i] = i;
  }
  if (run_order.shuffle) {
    shuffle(blocks.data(), static_cast<unsigned>(count));
  }
  current_block = &block;
  for (size_t i : blocks) {
    block.index = {static_cast<unsigned>(i % grid.x),
                   static_cast<unsigned>(i / grid.x % grid.y),
                   static_cast<unsigned>(i / grid.x / grid.y)};
    run_block(&block, order.data());
    if (block.error != nullptr) {
      settle(&block);
      break;
    }
  }
  current_block = nullptr;
  if (block.error != nullptr) {
    throw std::runtime_error(std::string("shim: ") + block.error);
  }
}

}  // namespace shim
