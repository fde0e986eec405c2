/* What comes in small writes is stored as it is, since a compressed extent of a block or two saves nothing. What such
 * writes made of 128 KiB of a file, one after the other, is compressed afterwards by a thread of its own: when they go
 * on behind it, or when they have ended for IDLE_NS.
 *
 * One write alone is not followed up: who writes 16 KiB here and there does so again.
 *
 * All of it is by the way: what finds no place in the tables here, or fails, stays stored as it is. */
#include "internal.h"

#include <errno.h>
#include <time.h>

#define UNIT_BYTES ((uint64_t)COMPRESSION_BYTES_MAX)
/* Longer writes were compressed as they came, in pieces so long that larger ones save little more. */
#define NOTED_BYTES_MAX (UNIT_BYTES / 2)
#define IDLE_NS 1000000000
#define TICK_NS 250000000
/* Attributes that were read before a file was compressed have reached the kernel after so long. */
#define SETTLING_NS 100000000

static int64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int gatherer_init(struct gatherer *gatherer)
{
    pthread_condattr_t attributes;
    pthread_mutex_init(&gatherer->mutex, NULL);
    int error = pthread_condattr_init(&attributes);
    if (error != 0)
        return -error;
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    error = pthread_cond_init(&gatherer->condition, &attributes);
    pthread_condattr_destroy(&attributes);
    return -error;
}

void gatherer_destroy(struct gatherer *gatherer)
{
    pthread_cond_destroy(&gatherer->condition);
    pthread_mutex_destroy(&gatherer->mutex);
}

/* ---- noting, with the mutex held ------------------------------------------------------------------------------ */

/* Bytes of one unit. */
static void enqueue(struct gatherer *gatherer, uint64_t node, uint64_t start, uint64_t end)
{
    uint64_t first = start / STORE_BLOCK_SIZE, blocks = end / STORE_BLOCK_SIZE - first;
    if (end / STORE_BLOCK_SIZE <= first || blocks < COMPRESS_BLOCKS_MIN || gatherer->count == GATHER_QUEUE)
        return;
    gatherer->queue[(gatherer->head + gatherer->count++) % GATHER_QUEUE] =
        (struct gather_request){.node = node, .first = first, .blocks = (uint32_t)blocks};
}

static void region_end(struct gatherer *gatherer, struct gather_region *region)
{
    if (region->node != 0 && region->writes > 1)
        enqueue(gatherer, region->node, region->start, region->end);
    region->node = 0;
}

void gather_note(struct filesystem *filesystem, uint64_t node, uint64_t offset, uint64_t length)
{
    struct gatherer *gatherer = &filesystem->gatherer;
    if (length == 0 || length >= NOTED_BYTES_MAX)
        return;
    atomic_store_explicit(&gatherer->used, true, memory_order_relaxed);
    pthread_mutex_lock(&gatherer->mutex);
    uint32_t before = gatherer->count;
    struct gather_region *region = &gatherer->regions[node % GATHER_REGIONS];
    if (region->node != node || region->end != offset) {
        region_end(gatherer, region);
        *region = (struct gather_region){.node = node, .start = offset, .end = offset};
    }
    region->end += length;
    region->writes++;
    region->noted_ns = clock_ns(CLOCK_MONOTONIC_COARSE);
    uint64_t boundary = region->end / UNIT_BYTES * UNIT_BYTES;
    if (boundary > region->start) {
        enqueue(gatherer, node, region->start, boundary);
        region->start = boundary;
    }
    if (gatherer->count != before)
        pthread_cond_signal(&gatherer->condition);
    pthread_mutex_unlock(&gatherer->mutex);
}

static void regions_end(struct gatherer *gatherer, int64_t noted_before_ns)
{
    for (size_t at = 0; at < GATHER_REGIONS; at++)
        if (gatherer->regions[at].noted_ns < noted_before_ns)
            region_end(gatherer, &gatherer->regions[at]);
}

/* ---- compressing --------------------------------------------------------------------------------------------- */

/* Takes the oldest out of the queue and compresses it with the mutex released. False: there was none. */
static bool gather_next(struct filesystem *filesystem)
{
    struct gatherer *gatherer = &filesystem->gatherer;
    struct place place;
    if (gatherer->count == 0)
        return false;
    struct gather_request request = gatherer->queue[gatherer->head];
    gatherer->head = (gatherer->head + 1) % GATHER_QUEUE;
    gatherer->count--;
    gatherer->current = request.node;
    pthread_mutex_unlock(&gatherer->mutex);
    /* A failure leaves the file as it is; one of the medium is counted where it was met, and the file's readers and
     * writers are told. */
    if (place_of_node(filesystem, request.node, &place) == 0 && place_is_writable(&place) &&
        place.compression.algorithm != COMPRESSION_OFF && attempts_allowed(filesystem, &place))
        (void)rewrite_gather(&place, request.first, request.blocks);
    pthread_mutex_lock(&gatherer->mutex);
    gatherer->current = 0;
    gatherer->ended_ns = clock_ns(CLOCK_MONOTONIC_COARSE);
    return true;
}

static void *gather(void *argument)
{
    struct filesystem *filesystem = argument;
    struct gatherer *gatherer = &filesystem->gatherer;
    pthread_mutex_lock(&gatherer->mutex);
    while (!gatherer->ending) {
        int64_t now = clock_ns(CLOCK_MONOTONIC);
        regions_end(gatherer, now - IDLE_NS);
        if (gather_next(filesystem))
            continue;
        const struct timespec until = {.tv_sec = (now + TICK_NS) / 1000000000, .tv_nsec = (now + TICK_NS) % 1000000000};
        (void)pthread_cond_timedwait(&gatherer->condition, &gatherer->mutex, &until);
    }
    pthread_mutex_unlock(&gatherer->mutex);
    return NULL;
}

int filesystem_gather_start(struct filesystem *filesystem)
{
    struct gatherer *gatherer = &filesystem->gatherer;
    if (filesystem->read_only || gatherer->started)
        return 0;
    gatherer->ending = false;
    int error = pthread_create(&gatherer->thread, NULL, gather, filesystem);
    gatherer->started = error == 0;
    return -error;
}

void filesystem_gather_stop(struct filesystem *filesystem)
{
    struct gatherer *gatherer = &filesystem->gatherer;
    if (!gatherer->started)
        return;
    pthread_mutex_lock(&gatherer->mutex);
    gatherer->ending = true;
    pthread_cond_signal(&gatherer->condition);
    pthread_mutex_unlock(&gatherer->mutex);
    pthread_join(gatherer->thread, NULL);
    gatherer->started = false;
}

void filesystem_gather(struct filesystem *filesystem)
{
    struct gatherer *gatherer = &filesystem->gatherer;
    pthread_mutex_lock(&gatherer->mutex);
    regions_end(gatherer, INT64_MAX);
    for (uint32_t left = gatherer->count; left != 0 && gather_next(filesystem); left--)
        continue;
    pthread_mutex_unlock(&gatherer->mutex);
}

bool filesystem_is_settling(struct filesystem *filesystem, uint64_t node)
{
    struct gatherer *gatherer = &filesystem->gatherer;
    if (!atomic_load_explicit(&gatherer->used, memory_order_relaxed))
        return false;
    pthread_mutex_lock(&gatherer->mutex);
    bool settling = gatherer->current == node || gatherer->regions[node % GATHER_REGIONS].node == node ||
                    clock_ns(CLOCK_MONOTONIC_COARSE) - gatherer->ended_ns < SETTLING_NS;
    for (uint32_t at = 0; at < gatherer->count && !settling; at++)
        settling = gatherer->queue[(gatherer->head + at) % GATHER_QUEUE].node == node;
    pthread_mutex_unlock(&gatherer->mutex);
    return settling;
}
