/* Counters of what may stop requests: holdings of the locks they need, by anything that is no request, and waits of the
 * requests themselves. Requests that wait for nothing are not measured. */
#include <time.h>

#include "internal.h"

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t monotonic_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

static void raise_to(_Atomic uint64_t *most, uint64_t value)
{
    uint64_t seen = atomic_load_explicit(most, memory_order_relaxed);
    while (seen < value && !atomic_compare_exchange_weak_explicit(most, &seen, value, memory_order_relaxed,
                                                                  memory_order_relaxed))
        continue;
}

void hold_begin(struct hold *hold, enum store_hold kind)
{
    *hold = (struct hold){kind, monotonic_ns(), clock_ns(CLOCK_THREAD_CPUTIME_ID)};
}

void hold_end(struct store *store, const struct hold *hold, uint64_t steps)
{
    struct hold_counter *counter = &store->stalls.holds[hold->kind];
    raise_to(&counter->cpu_max_ns, clock_ns(CLOCK_THREAD_CPUTIME_ID) - hold->began_cpu_ns);
    raise_to(&counter->held_max_ns, monotonic_ns() - hold->began_ns);
    raise_to(&counter->steps_max, steps);
    atomic_fetch_add_explicit(&counter->count, 1, memory_order_relaxed);
}

void hold_lock(struct store *store, struct hold *hold, enum store_hold kind)
{
    pthread_mutex_lock(&store->lock);
    hold_begin(hold, kind);
}

void hold_unlock(struct store *store, const struct hold *hold, uint64_t steps)
{
    hold_end(store, hold, steps);
    pthread_mutex_unlock(&store->lock);
}

void wait_note(struct store *store, enum store_wait kind, uint64_t began_ns)
{
    struct wait_counter *counter = &store->stalls.waits[kind];
    raise_to(&counter->waited_max_ns, monotonic_ns() - began_ns);
    atomic_fetch_add_explicit(&counter->count, 1, memory_order_relaxed);
}

void request_lock(struct store *store)
{
    if (pthread_mutex_trylock(&store->lock) == 0)
        return;
    uint64_t began_ns = monotonic_ns();
    pthread_mutex_lock(&store->lock);
    wait_note(store, STORE_WAIT_LOCK, began_ns);
}

void store_stalls(struct store *store, struct store_stalls *out)
{
    for (unsigned kind = 0; kind < STORE_HOLD_KINDS; kind++) {
        const struct hold_counter *counter = &store->stalls.holds[kind];
        out->holds[kind] = (struct store_hold_figures){
            .count = atomic_load_explicit(&counter->count, memory_order_relaxed),
            .steps_max = atomic_load_explicit(&counter->steps_max, memory_order_relaxed),
            .held_max_ns = atomic_load_explicit(&counter->held_max_ns, memory_order_relaxed),
            .cpu_max_ns = atomic_load_explicit(&counter->cpu_max_ns, memory_order_relaxed)};
    }
    for (unsigned kind = 0; kind < STORE_WAIT_KINDS; kind++) {
        const struct wait_counter *counter = &store->stalls.waits[kind];
        out->waits[kind] = (struct store_wait_figures){
            .count = atomic_load_explicit(&counter->count, memory_order_relaxed),
            .waited_max_ns = atomic_load_explicit(&counter->waited_max_ns, memory_order_relaxed)};
    }
}
