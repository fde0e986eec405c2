/* Data on its way out. Writers fill memory that stands for a run of free blocks; flushes write it in large pieces.
 * Reads find unwritten blocks here. The log-structured half of the store: random writes leave as sequential ones. */
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

/* Claims a run and gives it memory. data_mutex held. */
static int segment_open(struct store *store, bool use_reserve)
{
    struct segment *segment = calloc(1, sizeof *segment);
    if (!segment)
        return -ENOMEM;
    int result = allocator_claim(store, 1, store->allocator.run_blocks, &store->allocator.data_cursor,
                                 use_reserve ? CLAIM_RESERVE : CLAIM_DATA, &segment->address, &segment->blocks);
    if (result < 0)
        goto fail;
    size_t bytes = (size_t)segment->blocks * STORE_BLOCK_SIZE;
    segment->memory = aligned_alloc(STORE_BLOCK_SIZE, bytes);
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

int store_data_reserve(struct store *store, uint32_t blocks_wanted, bool use_reserve, struct store_reservation *out)
{
    if (store->read_only || atomic_load(&store->failed_errno))
        return -EROFS;
    if (blocks_wanted == 0)
        return -EINVAL;
    bool tried_checkpoint = false;
    for (;;) {
        pthread_mutex_lock(&store->data_mutex);
        struct segment *segment = open_segment(store);
        while (segment && segment->frozen) {
            pthread_cond_wait(&store->data_condition, &store->data_mutex);
            segment = open_segment(store);
        }
        int result = 0;
        if (!segment) {
            if (store->segment_count == SEGMENT_COUNT_MAX || store->buffer_bytes >= store->buffer_bytes_max) {
                pthread_mutex_unlock(&store->data_mutex);
                result = segments_flush(store);
                if (result < 0)
                    return result;
                continue;
            }
            result = segment_open(store, use_reserve);
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
        if (result != -ENOSPC || tried_checkpoint)
            return result;
        tried_checkpoint = true;
        result = checkpoint_run(store, false);
        if (result < 0)
            return result;
    }
}

void store_data_complete(struct store *store, struct store_reservation *reservation)
{
    segment_unpin(store, reservation->segment);
    reservation->segment = NULL;
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
        if (index >= segment->written && index >= segment->sealed && index < segment->reserved) {
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
    if (--segment->in_flight == 0)
        pthread_cond_broadcast(&store->data_condition);
    pthread_mutex_unlock(&store->data_mutex);
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
            memcpy(to, segment->memory + index * STORE_BLOCK_SIZE, (size_t)part * STORE_BLOCK_SIZE);
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
        free(segment->memory);
        free(segment);
    }
}

int segments_flush(struct store *store)
{
    struct flush_piece pieces[SEGMENT_COUNT_MAX];
    int result = 0;
    pthread_mutex_lock(&store->flush_mutex);
    pthread_mutex_lock(&store->data_mutex);
    size_t count = take_pieces(store, pieces);
    pthread_mutex_unlock(&store->data_mutex);
    for (size_t i = 0; i < count && result == 0; i++) {
        const struct segment *segment = pieces[i].segment;
        size_t bytes = (size_t)(pieces[i].until - pieces[i].from) * STORE_BLOCK_SIZE;
        result = storage_write(store, segment->memory + (size_t)pieces[i].from * STORE_BLOCK_SIZE, bytes,
                               (segment->address + pieces[i].from) * STORE_BLOCK_SIZE);
        atomic_fetch_add(&store->data_written_bytes, bytes);
    }
    if (result < 0)
        store_fail(store, result); /* the memory stays, so that reads go on */
    pthread_mutex_lock(&store->data_mutex);
    if (result == 0)
        drop_full_segments(store, pieces, count);
    pthread_mutex_unlock(&store->data_mutex);
    pthread_mutex_unlock(&store->flush_mutex);
    return result < 0 ? -EIO : 0;
}

void segments_destroy(struct store *store)
{
    for (size_t i = 0; i < store->segment_count; i++) {
        free(store->segments[i]->memory);
        free(store->segments[i]);
    }
    store->segment_count = 0;
}
