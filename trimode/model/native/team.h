// Threads that share a machine with others.
//
// A pass is a row of phases, and a phase is a number of pieces. A thread takes pieces of its own first, then
// what others have not begun. So a thread that lost its core holds up the rest only if it lost it inside of
// a piece. Who waits spins for a few microseconds and then sleeps: a spinning thread would keep the core from
// the one that it waits for. If threads wait much nevertheless, fewer are used; `Governor` says how many.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <thread>

#include <immintrin.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

namespace {

constexpr int64_t kMostThreads = 128;

inline int64_t nanoseconds() {
  using namespace std::chrono;
  return duration_cast<std::chrono::nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

// A number that threads wait for: they spin, then sleep.
class Signal {
 public:
  uint32_t value() const { return value_.load(std::memory_order_acquire); }

  void set(uint32_t value) {
    value_.store(value);
    if (sleepers_.load()) wake();
  }

  // Returns once the value is another one.
  void wait(uint32_t old, int64_t spin) {
    if (value() != old) return;
    const int64_t began = nanoseconds();
    do {
      for (int i = 0; i < 16; ++i) {
        _mm_pause();
        if (value() != old) return;
      }
    } while (nanoseconds() - began < spin);
    sleepers_.fetch_add(1);
    while (value_.load() == old) sleep(old);
    sleepers_.fetch_sub(1);
  }

 private:
  std::atomic<uint32_t> value_{0};
  std::atomic<int32_t> sleepers_{0};

#ifdef __linux__
  void sleep(uint32_t old) { syscall(SYS_futex, &value_, FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0); }
  void wake() { syscall(SYS_futex, &value_, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0); }
#else
  void sleep(uint32_t) { usleep(50); }
  void wake() {}
#endif
};

// What the threads of a region share.
struct Region {
  int64_t threads = 1;
  Signal phase;
  struct alignas(64) Queue {
    std::atomic<uint64_t> next{0};  // phase, then the next piece of this thread
  };
  Queue queue[kMostThreads];
  alignas(64) std::atomic<int64_t> done{0};
  std::atomic<int64_t> waited{0};  // nanoseconds, the most of any thread

  void begin(int64_t count) {
    threads = count;
    done = 0;
    waited = 0;
    open(0);
  }
  void open(uint32_t number) {
    for (int64_t t = 0; t < threads; ++t) queue[t].next.store(static_cast<uint64_t>(number) << 32);
    phase.set(number);
  }
};

// One thread's part in a region. All threads go through the same phases, with the same numbers of pieces.
class Member {
 public:
  Member(Region& region, int64_t index) : region_(region), index_(index) {}

  int64_t threads() const { return region_.threads; }
  bool leads() const { return index_ == 0; }
  int64_t waited() const { return waited_; }

  // Runs f(piece) for each piece, then `then` once; returns when all of it is done.
  template <class F, class G>
  void phase(int64_t pieces, const F& f, const G& then) {
    const int64_t threads = region_.threads, all = std::max<int64_t>(pieces, 1);  // one does nothing if there are none
    if (threads == 1) {
      for (int64_t i = 0; i < pieces; ++i) f(i);
      then();
      return;
    }
    const uint32_t number = number_++;
    for (int64_t s = 0; s < threads; ++s) {
      const int64_t owner = (index_ + s) % threads;
      const int64_t first = all * owner / threads, count = all * (owner + 1) / threads - first;
      std::atomic<uint64_t>& next = region_.queue[owner].next;
      uint64_t at = next.load(std::memory_order_acquire);
      while (at >> 32 == number && static_cast<int64_t>(at & UINT32_MAX) < count) {
        if (!next.compare_exchange_weak(at, at + 1)) continue;
        if (pieces > 0) f(first + static_cast<int64_t>(at & UINT32_MAX));
        if (region_.done.fetch_add(1) + 1 == all) {
          then();
          region_.done.store(0);
          region_.open(number + 1);
          return;
        }
        at = next.load(std::memory_order_acquire);
      }
    }
    if (region_.phase.value() != number) return;  // it may be further on: then this thread came late
    const int64_t began = nanoseconds();
    region_.phase.wait(number, kSpin);
    waited_ += nanoseconds() - began;
  }
  template <class F>
  void phase(int64_t pieces, const F& f) {
    phase(pieces, f, [] {});
  }
  // A phase over rows, in pieces of one or more.
  template <class F>
  void rows(int64_t count, const F& f) {
    const int64_t pieces = std::min(count, 4 * threads());
    phase(pieces, [&](int64_t p) {
      for (int64_t i = count * p / pieces; i < count * (p + 1) / pieces; ++i) f(i);
    });
  }

 private:
  static constexpr int64_t kSpin = 20'000;  // nanoseconds: about what sleeping and waking cost
  Region& region_;
  int64_t index_;
  uint32_t number_ = 0;
  int64_t waited_ = 0;
};

// How many threads a region gets. Those of an idle machine hardly wait. If they do, one fewer is used, and
// one more is tried again after a while, seldom if it fails.
class Governor {
 public:
  int64_t choose(int64_t most) {
    if (allowed_ >= most || tried_ > 0) return std::min(most, allowed_ + (tried_ > 0));
    if (nanoseconds() < next_trial_) return allowed_;
    tried_ = 1;
    shares_ = 0;
    return allowed_ + 1;
  }
  void report(int64_t threads, int64_t waited, int64_t took) {
    if (threads == 1 || took < kShort) return;
    const double share = static_cast<double>(waited) / static_cast<double>(took);
    if (tried_ > 0) {
      shares_ += share;
      if (tried_++ < kTrials) return;
      tried_ = 0;
      if (shares_ / kTrials < kFine) {
        allowed_ = threads;
        usual_ = 0;
        pause_ = kPause;
      } else {
        pause_ = std::min(2 * pause_, kLongestPause);
        next_trial_ = nanoseconds() + pause_;
      }
      return;
    }
    usual_ += (share - usual_) / 4;
    if (usual_ < kMuch) return;
    allowed_ = threads - 1;
    usual_ = 0;
    next_trial_ = nanoseconds() + pause_;
  }

 private:
  static constexpr double kMuch = 0.3, kFine = 0.15;  // of the time of a region
  static constexpr int64_t kShort = 200'000, kPause = 100'000'000, kLongestPause = 2'000'000'000;
  static constexpr int kTrials = 3;
  int64_t allowed_ = kMostThreads;
  int tried_ = 0;  // regions of a trial, this one included
  double shares_ = 0, usual_ = 0;
  int64_t next_trial_ = 0, pause_ = kPause;
};

// The threads of this process, kept between regions.
class Team {
 public:
  // Runs f(member) on at most `threads` threads, the caller among them. While another caller uses the
  // team, on the caller alone.
  template <class F>
  static void run(int64_t threads, const F& f) {
    Team& team = own();
    std::unique_lock<std::mutex> lock(team.mutex_, std::try_to_lock);
    threads = std::min(threads, kMostThreads);
    if (threads > 1 && lock.owns_lock()) threads = team.governor_.choose(threads);
    if (threads <= 1 || !lock.owns_lock()) {
      Region alone;
      Member member(alone, 0);
      f(member);
      return;
    }
    team.lead(threads, [](const void* g, Member& member) { (*static_cast<const F*>(g))(member); }, &f);
  }

 private:
  using Body = void (*)(const void*, Member&);
  static constexpr int64_t kSpin = 50'000;  // nanoseconds before a thread without work sleeps
  static constexpr uint64_t kClosed = 1u << 31;

  std::mutex mutex_;
  Governor governor_;
  int64_t workers_ = 0;
  pid_t process_ = getpid();
  Region region_;
  Body body_ = nullptr;
  const void* context_ = nullptr;
  Signal job_;
  std::atomic<uint64_t> gate_{kClosed};  // number of the job, whether it is closed, members inside

  static Team& own() {
    static std::mutex making;
    static Team* team = nullptr;  // never destroyed: its threads may outlive static objects
    std::lock_guard<std::mutex> lock(making);
    if (!team || team->process_ != getpid()) team = new Team;  // a child of fork has none of its parent's threads
    return *team;
  }

  void lead(int64_t threads, Body body, const void* context) {
    for (; workers_ < threads - 1; ++workers_) start(workers_ + 1);
    region_.begin(threads);
    body_ = body;
    context_ = context;
    const uint32_t number = job_.value() + 1;
    gate_.store(static_cast<uint64_t>(number) << 32);
    job_.set(number);
    const int64_t began = nanoseconds();
    enter(0);
    gate_.fetch_or(kClosed);
    while (gate_.load() & (kClosed - 1)) {  // the others are on their way out
      const int64_t since = nanoseconds();
      while (gate_.load() & (kClosed - 1))
        if (nanoseconds() - since < kSpin)
          _mm_pause();
        else
          sched_yield();
    }
    governor_.report(threads, region_.waited.load(), nanoseconds() - began);
  }

  void enter(int64_t index) {
    Member member(region_, index);
    body_(context_, member);
    int64_t most = region_.waited.load();
    while (most < member.waited() && !region_.waited.compare_exchange_weak(most, member.waited())) {
    }
  }

  void start(int64_t index) {
    sigset_t all, before;  // signals are for the program's own threads
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread([this, index, last = job_.value()]() mutable {
      for (;;) {
        job_.wait(last, kSpin);
        last = job_.value();
        uint64_t gate = gate_.load();
        bool inside = false;
        while (!inside && gate >> 32 == last && !(gate & kClosed)) inside = gate_.compare_exchange_weak(gate, gate + 1);
        if (!inside) continue;
        if (index < region_.threads) enter(index);
        gate_.fetch_sub(1);
      }
    }).detach();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
};

// Runs f(i) for each i, in pieces, by a team.
template <class F>
void for_each(int64_t count, int64_t threads, const F& f) {
  Team::run(threads, [&](Member& member) { member.rows(count, f); });
}

}  // namespace
