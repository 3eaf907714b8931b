#include "pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* An operator follows the one before it within microseconds, a step within a millisecond or two. In between,
 * whoever wants the core shall have it; but a thread that sleeps is woken on any core, and mostly on that of
 * the one who wakes it, where it then waits for milliseconds. */
enum { SPIN_NS = 50000, YIELD_NS = 3000000, LOOKS = 64, MOST_THREADS = 256 };

/* A job's ticket: its number, how many parts it has, and the next part, in one word, so that nobody can take
 * a part of one job for a part of another. A part that nobody has finished keeps the job in place. */
static _Atomic uint64_t ticket;
static _Atomic int finished;
static void (*job_work)(void *, int);
static void *job_data;

static _Atomic uint32_t bell;
static _Atomic int sleepers;
static int running = 1;
static pid_t owner;
static pthread_mutex_t growing = PTHREAD_MUTEX_INITIALIZER;

static const uint64_t PART = (1 << 20) - 1;

static inline void relax(void) {
    __builtin_ia32_pause();
}

static int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static int has_parts(uint64_t word) { return (word & PART) < (word >> 20 & PART); }

/* Take parts until there are none; return whether there were any. */
static int help(void) {
    int helped = 0;
    while (has_parts(atomic_load(&ticket))) {
        uint64_t mine = atomic_fetch_add(&ticket, 1);
        if (!has_parts(mine)) break;
        job_work(job_data, (int)(mine & PART));
        atomic_fetch_add(&finished, 1);
        helped = 1;
    }
    return helped;
}

static void *worker(void *unused) {
    (void)unused;
    int64_t idle_since = now_ns();
    for (int looks = 0;; looks++) {
        if (help()) {
            looks = 0;
            idle_since = now_ns();
            continue;
        }
        relax();
        if (looks % LOOKS) continue;
        int64_t idle_ns = now_ns() - idle_since;
        if (idle_ns < SPIN_NS) continue;
        if (idle_ns < YIELD_NS) {
            sched_yield();
            looks = -1; /* look before yielding again */
            continue;
        }
        atomic_fetch_add(&sleepers, 1);
        uint32_t rung = atomic_load(&bell);
        if (!has_parts(atomic_load(&ticket)))
            syscall(SYS_futex, &bell, FUTEX_WAIT_PRIVATE, rung, NULL, NULL, 0);
        atomic_fetch_sub(&sleepers, 1);
        idle_since = now_ns();
    }
}

static void ring(void) {
    if (atomic_load(&sleepers) == 0) return;
    atomic_fetch_add(&bell, 1);
    syscall(SYS_futex, &bell, FUTEX_WAKE_PRIVATE, MOST_THREADS, NULL, NULL, 0);
}

void pool_grow(int threads) {
    pthread_mutex_lock(&growing);
    if (owner != getpid()) { /* a forked process has none of its parent's threads */
        owner = getpid();
        running = 1;
        atomic_store(&sleepers, 0);
    }
    threads = threads < 1 ? 1 : threads > MOST_THREADS ? MOST_THREADS : threads;
    if (threads > running) {
        sigset_t every, before;
        sigfillset(&every);
        pthread_sigmask(SIG_SETMASK, &every, &before); /* signals are the caller's business */
        for (; running < threads; running++) {
            pthread_t thread;
            if (pthread_create(&thread, NULL, worker, NULL) != 0) break;
            pthread_detach(thread);
        }
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    pthread_mutex_unlock(&growing);
}

int pool_threads(void) { return running; }

void pool_run(void (*work)(void *, int), void *data, int count) {
    if (count == 1 || running == 1) {
        for (int part = 0; part < count; part++) work(data, part);
        return;
    }
    job_work = work;
    job_data = data;
    atomic_store(&finished, 0);
    atomic_store(&ticket, (uint64_t)count << 20);
    ring();
    help();
    for (int looks = 1; atomic_load(&finished) < count; looks++) {
        relax();
        if (looks % 1024 == 0) sched_yield(); /* whoever has the last part may wait for this very core */
    }
}
