/* The background thread: commits every interval, checkpoints when memory, journal or freed space ask for it. And the
 * throttle, by which writers wait for it when it falls behind (invariant I7). */
#include <errno.h>
#include <time.h>

#include "internal.h"

/* Without pressure a checkpoint is written after this long, so that recovery and freed space stay near the present. */
#define CHECKPOINT_INTERVAL_NS (UINT64_C(15) * 1000000000u)
#define DELETION_INTERVAL_NS (UINT64_C(1) * 1000000000u)

/* What a freeze, its end, or the deletion of a snapshot goes through in one holding of the store lock: a few
 * milliseconds' worth. A checkpoint begins at these, and whoever gathers twice as many waits for it. */
#define GATHERED_DEAD_MAX 131072u
#define GATHERED_RECORDS_MAX 8192u

struct pressure {
    size_t dirty_bytes, pending_bytes;
    uint64_t dead_entries, catalog_records;
    uint64_t journal_live_bytes, journal_wanted_bytes;
    bool changes, deletions;
};

/* Under the store lock. */
static void measure_locked(const struct store *store, struct pressure *out)
{
    out->dirty_bytes = store->dirty_count * store->node_size + store->dead_bytes;
    out->pending_bytes = store->journal.pending.length;
    out->dead_entries = atomic_load_explicit(&store->allocator.dead_pending, memory_order_relaxed);
    out->catalog_records = atomic_load_explicit(&store->allocator.catalog_pending, memory_order_relaxed);
    out->journal_live_bytes = store->journal.head - store->journal.tail;
    out->journal_wanted_bytes = out->journal_live_bytes + 2 * (out->pending_bytes + store->journal.writing.length);
    out->changes = out->journal_live_bytes || out->pending_bytes;
    out->deletions = store->queue_head != NULL;
}

static void measure(struct store *store, struct pressure *out)
{
    pthread_mutex_lock(&store->lock);
    measure_locked(store, out);
    pthread_mutex_unlock(&store->lock);
}

/* Of what a checkpoint has to write, that which is the most: in thousandths of its limit. */
static uint64_t load_permille(const struct store *store, const struct pressure *pressure)
{
    uint64_t most = pressure->dirty_bytes * 1000 / store->dirty_bytes_max;
    uint64_t dead = pressure->dead_entries * 1000 / GATHERED_DEAD_MAX;
    uint64_t records = pressure->catalog_records * 1000 / GATHERED_RECORDS_MAX;
    if (most < dead)
        most = dead;
    return most < records ? records : most;
}

static bool wants_checkpoint(const struct store *store, const struct pressure *pressure)
{
    return load_permille(store, pressure) > 1000 || pressure->journal_live_bytes > store->journal.size_bytes / 2;
}

void pressure_note(struct store *store)
{
    struct pressure pressure;
    measure_locked(store, &pressure);
    bool pressed = wants_checkpoint(store, &pressure) || pressure.pending_bytes > store->journal.pending_bytes_max;
    atomic_store_explicit(&store->pressed, pressed, memory_order_relaxed);
}

static void wake(struct store *store)
{
    pthread_mutex_lock(&store->maintenance_mutex);
    store->maintenance_wanted = true;
    pthread_cond_signal(&store->maintenance_condition);
    pthread_mutex_unlock(&store->maintenance_mutex);
}

/* From here on each change waits a little, the longer the nearer to twice the limit, where all wait until it is less:
 * many waits that nobody notices instead of one for the whole of a checkpoint. */
#define DELAY_FROM_PERMILLE 1500u
#define DELAY_ALL_PERMILLE 2000u
#define DELAY_MAX_NS 4000000u
#define DELAYS_MAX 500u

/* The journal's share too, as journal_has_room() counts; who finds it full does not wait here. */
static uint64_t delay_permille(const struct store *store, const struct pressure *pressure)
{
    uint64_t load = load_permille(store, pressure);
    uint64_t journal = pressure->journal_wanted_bytes * DELAY_ALL_PERMILLE / store->journal.size_bytes;
    if (journal >= DELAY_ALL_PERMILLE)
        journal = DELAY_ALL_PERMILLE - 1;
    return load < journal ? journal : load;
}

/* Waits for the checkpoint that the background thread writes; after some seconds at twice the limit for a whole one. */
static int delay_change(struct store *store, struct pressure *pressure)
{
    uint64_t load = delay_permille(store, pressure), began_ns = monotonic_ns();
    unsigned delays = 0;
    if (load <= DELAY_FROM_PERMILLE)
        return 0;
    do {
        uint64_t share = load < DELAY_ALL_PERMILLE ? load - DELAY_FROM_PERMILLE
                                                   : DELAY_ALL_PERMILLE - DELAY_FROM_PERMILLE;
        struct timespec delay = {
            .tv_nsec = (long)(DELAY_MAX_NS * share / (DELAY_ALL_PERMILLE - DELAY_FROM_PERMILLE))};
        nanosleep(&delay, NULL);
        measure(store, pressure);
        load = delay_permille(store, pressure);
    } while (load >= DELAY_ALL_PERMILLE && ++delays < DELAYS_MAX && !atomic_load(&store->failed_errno));
    int result = load >= DELAY_ALL_PERMILLE ? checkpoint_run(store, false) : 0;
    wait_note(store, STORE_WAIT_UNWRITTEN, began_ns);
    return result;
}

int store_throttle(struct store *store)
{
    if (store->read_only || atomic_load(&store->failed_errno))
        return -EROFS;
    if (!atomic_load_explicit(&store->pressed, memory_order_relaxed))
        return 0;
    struct pressure pressure;
    measure(store, &pressure); /* it may be over by now */
    bool background = store->maintenance_started;
    int result = 0;
    uint64_t began_ns = monotonic_ns();
    if (wants_checkpoint(store, &pressure)) {
        if (background) {
            wake(store);
            result = delay_change(store, &pressure);
        } else {
            result = checkpoint_run(store, false);
            wait_note(store, STORE_WAIT_UNWRITTEN, began_ns);
        }
    } else if (pressure.pending_bytes > store->journal.pending_bytes_max) {
        if (!background || pressure.pending_bytes > store->journal.pending_bytes_max * 2) {
            result = store_commit(store);
            wait_note(store, STORE_WAIT_JOURNAL, began_ns);
        } else {
            wake(store);
        }
    }
    return result < 0 || atomic_load(&store->failed_errno) ? -EROFS : 0;
}

/* Sleeps until the interval is over or somebody wakes it; false when the store is closing. */
static bool wait_interval(struct store *store)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += store->commit_interval_ms / 1000;
    until.tv_nsec += (long)(store->commit_interval_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&store->maintenance_mutex);
    int result = 0;
    while (!store->stopping && !store->maintenance_wanted && result != ETIMEDOUT)
        result = pthread_cond_timedwait(&store->maintenance_condition, &store->maintenance_mutex, &until);
    store->maintenance_wanted = false;
    bool go_on = !store->stopping;
    pthread_mutex_unlock(&store->maintenance_mutex);
    return go_on;
}

static void *maintain(void *argument)
{
    struct store *store = argument;
    uint64_t last_ns = monotonic_ns();
    while (wait_interval(store)) {
        struct pressure pressure;
        measure(store, &pressure);
        uint64_t since_ns = monotonic_ns() - last_ns;
        bool due = (pressure.changes && since_ns >= CHECKPOINT_INTERVAL_NS) ||
                   (pressure.deletions && since_ns >= DELETION_INTERVAL_NS);
        /* a failure is recorded in the store, and every later call reports it */
        if (wants_checkpoint(store, &pressure) || due) {
            (void)checkpoint_run(store, false);
            last_ns = monotonic_ns();
        } else {
            (void)store_commit(store);
        }
    }
    return NULL;
}

int maintenance_start(struct store *store)
{
    int error = pthread_create(&store->maintenance_thread, NULL, maintain, store);
    store->maintenance_started = error == 0;
    int result = error ? -error : segments_start(store);
    if (result < 0)
        maintenance_stop(store);
    return result;
}

void maintenance_stop(struct store *store)
{
    segments_stop(store);
    if (!store->maintenance_started)
        return;
    pthread_mutex_lock(&store->maintenance_mutex);
    store->stopping = true;
    pthread_cond_signal(&store->maintenance_condition);
    pthread_mutex_unlock(&store->maintenance_mutex);
    pthread_join(store->maintenance_thread, NULL);
    store->maintenance_started = false;
}
