/* Data on its way out. Writers fill memory that stands for a run of free blocks; flushes write it in large pieces.
 * Reads find unwritten blocks here. The log-structured half of the store: random writes leave as sequential ones.
 *
 * A thread writes each segment as soon as it is full, so that writers stall only when the medium is slower than they
 * are, and while the memory is still in the processor's caches. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

static struct segment *open_segment(struct store *store)
{
    if (store->segment_count == 0)
        return NULL;
    struct segment *last = store->segments[store->segment_count - 1];
    return last->reserved < last->blocks ? last : NULL;
}

/* Full segments that one flush takes at most, so that who waits for memory waits for 4 MiB. */
#define FLUSH_FULL_SEGMENTS_MAX 4u
/* Blocks that one read copies at most without giving others a turn. */
#define COPY_BLOCKS_MAX 32u

static size_t run_bytes(const struct store *store)
{
    return (size_t)store->allocator.run_blocks * STORE_BLOCK_SIZE;
}

/* Memory of whole runs is used again: faulting in a fresh MiB costs as much as filling it. data_mutex held. */
static uint8_t *buffer_take(struct store *store, size_t bytes)
{
    if (bytes == run_bytes(store) && store->spare_buffer_count > 0)
        return store->spare_buffers[--store->spare_buffer_count];
    return aligned_alloc(STORE_BLOCK_SIZE, bytes);
}

static void buffer_give(struct store *store, uint8_t *memory, size_t bytes)
{
    if (bytes == run_bytes(store) && store->spare_buffer_count < SPARE_BUFFERS_MAX)
        store->spare_buffers[store->spare_buffer_count++] = memory;
    else
        free(memory);
}

/* Claims a run and gives it memory. data_mutex held. */
static int segment_open(struct store *store, uint32_t blocks_wanted, bool use_reserve)
{
    struct segment *segment = calloc(1, sizeof *segment);
    if (!segment)
        return -ENOMEM;
    int result = allocator_claim(store, 1, store->allocator.run_blocks, &store->allocator.data_cursor,
                                 CLAIM_DATA, &segment->address, &segment->blocks);
    if (result == -ENOSPC && use_reserve) /* no more than asked for: the rest would be anybody's */
        result = allocator_claim(store, 1, blocks_wanted, &store->allocator.data_cursor, CLAIM_ZEROES,
                                 &segment->address, &segment->blocks);
    if (result < 0)
        goto fail;
    size_t bytes = (size_t)segment->blocks * STORE_BLOCK_SIZE;
    segment->memory = buffer_take(store, bytes);
    if (!segment->memory) {
        allocator_unclaim(store, segment->address, segment->blocks);
        result = -ENOMEM;
        goto fail;
    }
    store->segments[store->segment_count++] = segment;
    store->buffer_bytes += bytes;
    return 0;
fail:
    free(segment);
    return result;
}

struct flush_piece {
    struct segment *segment;
    uint32_t from, until;
};

/* Takes what is to be written of each segment; from here on it does not change. data_mutex held. */
static size_t take_pieces(struct store *store, struct flush_piece *pieces)
{
    size_t count = 0;
    for (size_t i = 0; i < store->segment_count; i++) {
        struct segment *segment = store->segments[i];
        if (segment->written == segment->reserved)
            continue;
        segment->frozen = true;
        while (segment->in_flight)
            pthread_cond_wait(&store->data_condition, &store->data_mutex);
        pieces[count++] = (struct flush_piece){segment, segment->written, segment->reserved};
        segment->written = segment->reserved;
        segment->frozen = false;
    }
    pthread_cond_broadcast(&store->data_condition);
    return count;
}

/* Full, and nobody is filling it any more. */
static bool is_ready(const struct segment *segment)
{
    return segment->reserved == segment->blocks && segment->written < segment->blocks && segment->in_flight == 0;
}

/* The same of the oldest segments that are ready. */
static size_t take_full_pieces(struct store *store, struct flush_piece *pieces)
{
    size_t count = 0;
    for (size_t i = 0; i < store->segment_count && count < FLUSH_FULL_SEGMENTS_MAX; i++) {
        struct segment *segment = store->segments[i];
        if (!is_ready(segment))
            continue;
        pieces[count++] = (struct flush_piece){segment, segment->written, segment->blocks};
        segment->written = segment->blocks;
    }
    return count;
}

static void drop_full_segments(struct store *store, const struct flush_piece *pieces, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct segment *segment = pieces[i].segment;
        if (pieces[i].until != segment->blocks)
            continue;
        size_t at = 0;
        while (store->segments[at] != segment)
            at++;
        memmove(&store->segments[at], &store->segments[at + 1],
                (store->segment_count - at - 1) * sizeof *store->segments);
        store->segment_count--;
        store->buffer_bytes -= (size_t)segment->blocks * STORE_BLOCK_SIZE;
        buffer_give(store, segment->memory, (size_t)segment->blocks * STORE_BLOCK_SIZE);
        free(segment);
    }
}

/* With flush_mutex held. What an earlier flush failed to write counts as written, so its failure is everyone's. */
static int write_pieces(struct store *store, const struct flush_piece *pieces, size_t count)
{
    int result = atomic_load(&store->failed_errno) ? -EIO : 0;
    for (size_t i = 0; i < count && result == 0; i++) {
        const struct segment *segment = pieces[i].segment;
        size_t bytes = (size_t)(pieces[i].until - pieces[i].from) * STORE_BLOCK_SIZE;
        result = storage_write(store, segment->memory + (size_t)pieces[i].from * STORE_BLOCK_SIZE, bytes,
                               (segment->address + pieces[i].from) * STORE_BLOCK_SIZE);
        atomic_fetch_add(&store->data_written_bytes, bytes);
    }
    if (result < 0)
        store_fail(store, result); /* the memory stays, so that reads go on */
    struct hold hold;
    pthread_mutex_lock(&store->data_mutex);
    hold_begin(&hold, STORE_HOLD_SEGMENTS);
    if (result == 0)
        drop_full_segments(store, pieces, count);
    hold_end(store, &hold, count);
    pthread_cond_broadcast(&store->data_condition);
    pthread_mutex_unlock(&store->data_mutex);
    return result < 0 ? -EIO : 0;
}

static int flush_full(struct store *store, size_t *count)
{
    struct flush_piece pieces[FLUSH_FULL_SEGMENTS_MAX];
    pthread_mutex_lock(&store->flush_mutex);
    pthread_mutex_lock(&store->data_mutex);
    *count = take_full_pieces(store, pieces);
    pthread_mutex_unlock(&store->data_mutex);
    int result = *count ? write_pieces(store, pieces, *count) : 0;
    pthread_mutex_unlock(&store->flush_mutex);
    return result;
}

static void *flush_in_background(void *argument)
{
    struct store *store = argument;
    pthread_mutex_lock(&store->data_mutex);
    for (;;) {
        while (!store->flush_wanted && !store->flush_stopping)
            pthread_cond_wait(&store->flush_condition, &store->data_mutex);
        if (store->flush_stopping)
            break;
        store->flush_wanted = false;
        pthread_mutex_unlock(&store->data_mutex);
        size_t count;
        while (flush_full(store, &count) == 0 && count > 0)
            continue; /* a failure is recorded in the store, and every later call reports it */
        pthread_mutex_lock(&store->data_mutex);
    }
    pthread_mutex_unlock(&store->data_mutex);
    return NULL;
}

int segments_start(struct store *store)
{
    int error = pthread_create(&store->flush_thread, NULL, flush_in_background, store);
    store->flush_thread_started = error == 0;
    return -error;
}

void segments_stop(struct store *store)
{
    if (!store->flush_thread_started)
        return;
    pthread_mutex_lock(&store->data_mutex);
    store->flush_stopping = true;
    pthread_cond_signal(&store->flush_condition);
    pthread_mutex_unlock(&store->data_mutex);
    pthread_join(store->flush_thread, NULL);
    store->flush_thread_started = false;
}

static bool has_room(const struct store *store)
{
    return store->segment_count < SEGMENT_COUNT_MAX && store->buffer_bytes < store->buffer_bytes_max;
}

/* Writes something or waits until somebody has. Every segment is full when there is no room for another: it can be
 * written, is being written, or is being filled. */
static int make_room(struct store *store)
{
    size_t count;
    int result = flush_full(store, &count);
    if (result < 0 || count > 0)
        return result;
    pthread_mutex_lock(&store->data_mutex);
    bool wait = !has_room(store);
    for (size_t i = 0; i < store->segment_count && wait; i++)
        wait = !is_ready(store->segments[i]);
    if (wait && !atomic_load(&store->failed_errno))
        pthread_cond_wait(&store->data_condition, &store->data_mutex);
    pthread_mutex_unlock(&store->data_mutex);
    return atomic_load(&store->failed_errno) ? -EIO : 0;
}

int store_data_reserve(struct store *store, uint32_t blocks_wanted, bool use_reserve, struct store_reservation *out)
{
    if (store->read_only || atomic_load(&store->failed_errno))
        return -EROFS;
    if (blocks_wanted == 0)
        return -EINVAL;
    struct space_tries tries = {0};
    for (;;) {
        pthread_mutex_lock(&store->data_mutex);
        struct segment *segment = open_segment(store);
        while (segment && segment->frozen) {
            pthread_cond_wait(&store->data_condition, &store->data_mutex);
            segment = open_segment(store);
        }
        int result = 0;
        if (!segment) {
            if (!has_room(store)) {
                pthread_mutex_unlock(&store->data_mutex);
                uint64_t began_ns = monotonic_ns();
                result = make_room(store);
                wait_note(store, STORE_WAIT_BUFFERS, began_ns);
                if (result < 0)
                    return result;
                continue;
            }
            result = segment_open(store, blocks_wanted, use_reserve);
            segment = open_segment(store);
        }
        if (result == 0) {
            out->blocks = segment->blocks - segment->reserved;
            if (out->blocks > blocks_wanted)
                out->blocks = blocks_wanted;
            out->address = segment->address + segment->reserved;
            out->memory = segment->memory + (size_t)segment->reserved * STORE_BLOCK_SIZE;
            out->segment = segment;
            segment->reserved += out->blocks;
            segment->in_flight++;
            pthread_mutex_unlock(&store->data_mutex);
            return 0;
        }
        pthread_mutex_unlock(&store->data_mutex);
        if (result != -ENOSPC)
            return result;
        result = checkpoint_for_space(store, &tries);
        if (result < 0)
            return result;
    }
}

/* data_mutex held. */
static void unpin(struct store *store, struct segment *segment)
{
    if (--segment->in_flight > 0)
        return;
    if (segment->reserved == segment->blocks && !store->flush_wanted) {
        store->flush_wanted = true;
        pthread_cond_signal(&store->flush_condition);
    }
    pthread_cond_broadcast(&store->data_condition);
}

void store_data_complete(struct store *store, struct store_reservation *reservation)
{
    struct segment *segment = reservation->segment;
    uint32_t first = (uint32_t)(reservation->address - segment->address);
    pthread_mutex_lock(&store->data_mutex);
    for (uint32_t block = first; block < first + reservation->blocks; block++)
        segment->filled[block / 64] |= UINT64_C(1) << block % 64;
    unpin(store, segment);
    pthread_mutex_unlock(&store->data_mutex);
    reservation->segment = NULL;
}

void store_data_change(struct store *store, uint8_t *memory, const void *bytes, size_t length_bytes)
{
    pthread_mutex_lock(&store->data_mutex);
    if (bytes)
        memcpy(memory, bytes, length_bytes);
    else
        memset(memory, 0, length_bytes);
    pthread_mutex_unlock(&store->data_mutex);
}

void store_data_release(struct store *store, uint64_t address, uint32_t blocks)
{
    pthread_mutex_lock(&store->lock);
    free_later(store, address, blocks);
    pthread_mutex_lock(&store->allocator.mutex);
    store->allocator.claimed_unused -= blocks;
    pthread_mutex_unlock(&store->allocator.mutex);
    pthread_mutex_unlock(&store->lock);
}

static struct segment *segment_of(struct store *store, uint64_t address)
{
    for (size_t i = store->segment_count; i-- > 0;) {
        struct segment *segment = store->segments[i];
        if (address >= segment->address && address - segment->address < segment->blocks)
            return segment;
    }
    return NULL;
}

void segments_seal(struct store *store)
{
    pthread_mutex_lock(&store->data_mutex);
    for (size_t i = 0; i < store->segment_count; i++)
        store->segments[i]->sealed = store->segments[i]->reserved;
    pthread_mutex_unlock(&store->data_mutex);
}

uint8_t *segment_pin(struct store *store, uint64_t address, struct segment **pinned)
{
    uint8_t *memory = NULL;
    pthread_mutex_lock(&store->data_mutex);
    struct segment *segment = segment_of(store, address);
    if (segment && !segment->frozen) {
        uint64_t index = address - segment->address;
        bool named = index < segment->written || index < segment->sealed;
        if ((!named || MUTATED(IN_PLACE)) && index < segment->reserved) {
            segment->in_flight++;
            *pinned = segment;
            memory = segment->memory + index * STORE_BLOCK_SIZE;
        }
    }
    pthread_mutex_unlock(&store->data_mutex);
    return memory;
}

void segment_unpin(struct store *store, struct segment *segment)
{
    pthread_mutex_lock(&store->data_mutex);
    unpin(store, segment);
    pthread_mutex_unlock(&store->data_mutex);
}

/* Blocks still being filled are asked for only by who looked up a mapping that is gone by now: no copy beside the
 * writer, its checksum would not match anyway. */
static void copy_filled(const struct segment *segment, uint32_t from, uint32_t count, uint8_t *to)
{
    for (uint32_t block = from; block < from + count; block++, to += STORE_BLOCK_SIZE) {
        if (segment->filled[block / 64] >> block % 64 & 1)
            memcpy(to, segment->memory + (size_t)block * STORE_BLOCK_SIZE, STORE_BLOCK_SIZE);
        else
            memset(to, 0, STORE_BLOCK_SIZE);
    }
}

int store_data_read(struct store *store, uint64_t address, uint32_t blocks, void *buffer)
{
    uint8_t *to = buffer;
    if (!allocator_in_zone(&store->allocator, address, blocks))
        return -EIO;
    while (blocks) {
        uint32_t part = 0;
        pthread_mutex_lock(&store->data_mutex);
        for (size_t i = store->segment_count; i-- > 0;) {
            const struct segment *segment = store->segments[i];
            if (address + blocks <= segment->address || address >= segment->address + segment->reserved)
                continue;
            if (address < segment->address) { /* read up to the segment from the medium first */
                if (part == 0 || part > segment->address - address)
                    part = (uint32_t)(segment->address - address);
                continue;
            }
            uint64_t index = address - segment->address;
            part = segment->reserved - (uint32_t)index < blocks ? segment->reserved - (uint32_t)index : blocks;
            if (part > COPY_BLOCKS_MAX)
                part = COPY_BLOCKS_MAX;
            copy_filled(segment, (uint32_t)index, part, to);
            blocks -= part;
            address += part;
            to += (size_t)part * STORE_BLOCK_SIZE;
            part = UINT32_MAX;
            break;
        }
        pthread_mutex_unlock(&store->data_mutex);
        if (part == UINT32_MAX)
            continue;
        if (part == 0)
            part = blocks;
        int result = storage_read(store, to, (size_t)part * STORE_BLOCK_SIZE, address * STORE_BLOCK_SIZE);
        if (result < 0)
            return result;
        blocks -= part;
        address += part;
        to += (size_t)part * STORE_BLOCK_SIZE;
    }
    return 0;
}

int segments_flush(struct store *store)
{
    struct flush_piece pieces[SEGMENT_COUNT_MAX];
    pthread_mutex_lock(&store->flush_mutex);
    pthread_mutex_lock(&store->data_mutex);
    size_t count = take_pieces(store, pieces);
    pthread_mutex_unlock(&store->data_mutex);
    int result = write_pieces(store, pieces, count);
    pthread_mutex_unlock(&store->flush_mutex);
    return result;
}

void segments_destroy(struct store *store)
{
    for (size_t i = 0; i < store->segment_count; i++) {
        free(store->segments[i]->memory);
        free(store->segments[i]);
    }
    store->segment_count = 0;
    while (store->spare_buffer_count > 0)
        free(store->spare_buffers[--store->spare_buffer_count]);
}
