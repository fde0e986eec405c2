/* Opening, formatting and closing pools, and their figures. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#include "internal.h"

#define CACHE_BYTES_DEFAULT ((size_t)96 << 20)
#define CACHE_BYTES_MIN ((size_t)1 << 20)
#define DIRTY_BYTES_DEFAULT ((size_t)48 << 20)
#define DIRTY_BYTES_MIN ((size_t)256 << 10)
#define QUEUE_STEPS_DIVISOR 384u /* of dirty bytes */
#define BUFFER_BYTES_DEFAULT ((size_t)32 << 20)
#define BUFFER_BYTES_MIN ((size_t)1 << 20)
#define COMMIT_INTERVAL_MS_DEFAULT 1000u
#define NODE_SIZE_DEFAULT 4096u
#define JOURNAL_BYTES_DEFAULT_MAX (UINT64_C(64) << 20)
/* After a crash sequence numbers jump, so that no group of before can follow one of after. */
#define SEQUENCE_JUMP (UINT64_C(1) << 20)

static int choose_layout(struct storage *storage, const struct store_parameters *parameters,
                         struct superblock *superblock, struct store_failure *failure)
{
    uint64_t size = storage->operations->size(storage);
    memset(superblock, 0, sizeof *superblock);
    if (size < STORE_POOL_SIZE_MIN_BYTES) {
        failure_set(failure, "a pool needs at least %u MiB, this one would have %llu bytes; use a larger --size",
                    STORE_POOL_SIZE_MIN_BYTES >> 20, (unsigned long long)size);
        return -ENOSPC;
    }
    superblock->version = FORMAT_VERSION;
    superblock->node_size = parameters->node_size_bytes ? parameters->node_size_bytes : NODE_SIZE_DEFAULT;
    superblock->copies = parameters->metadata_copies ? parameters->metadata_copies : 2;
    superblock->size_blocks = size / STORE_BLOCK_SIZE;
    if ((superblock->node_size != 4096 && superblock->node_size != 8192 && superblock->node_size != 16384) ||
        superblock->copies > 2) {
        failure_set(failure, "node size must be 4096, 8192 or 16384 and metadata copies 1 or 2");
        return -EINVAL;
    }
    uint64_t journal = parameters->journal_size_bytes;
    if (!journal) {
        journal = size / 16;
        if (journal > JOURNAL_BYTES_DEFAULT_MAX)
            journal = JOURNAL_BYTES_DEFAULT_MAX;
    }
    if (journal < JOURNAL_SIZE_MIN_BYTES)
        journal = JOURNAL_SIZE_MIN_BYTES;
    if (journal > size / 4 || journal > (UINT64_C(1) << 30)) {
        failure_set(failure, "a journal of %llu bytes is too large for this pool; at most a quarter of it, and 1 GiB",
                    (unsigned long long)journal);
        return -EINVAL;
    }
    superblock->journal_start = SUPERBLOCK_RING_SLOTS;
    superblock->journal_blocks = journal / STORE_BLOCK_SIZE;
    superblock->bitmap_start = superblock->journal_start + superblock->journal_blocks;
    superblock->bitmap_pages = (superblock->size_blocks + BITMAP_BLOCKS_PER_PAGE - 1) / BITMAP_BLOCKS_PER_PAGE;
    superblock->sequence = 1;
    superblock->epoch = 1;
    superblock->journal_sequence = now_ns(); /* above all of a pool that was here before, even with this uuid */
    superblock->next_object_id = 1;
    superblock->next_queue_id = 1;
    superblock->flags = SUPERBLOCK_FLAG_CLEAN;
    memcpy(superblock->label, parameters->label, sizeof superblock->label);
    memcpy(superblock->uuid, parameters->uuid, sizeof superblock->uuid);
    static const uint8_t no_uuid[16];
    if (memcmp(superblock->uuid, no_uuid, 16) == 0) {
        if (getrandom(superblock->uuid, 16, 0) != 16)
            return -EIO;
        superblock->uuid[6] = (uint8_t)((superblock->uuid[6] & 0x0f) | 0x40); /* RFC 9562, version 4 */
        superblock->uuid[8] = (uint8_t)((superblock->uuid[8] & 0x3f) | 0x80);
    }
    return 0;
}

/* Whatever an earlier file system or pool left where it would be taken for ours: both superblock rings, the bitmap
 * pages, the journal's first block. A pool's journal is told from an older one's by the tag made of the new uuid. */
static int erase_old(struct store *store, const struct superblock *superblock)
{
    static const uint8_t zeros[SUPERBLOCK_RING_SLOTS * STORE_BLOCK_SIZE];
    uint8_t block[2 * STORE_BLOCK_SIZE];
    int result = storage_write(store, zeros, sizeof zeros, 0);
    if (result == 0)
        result = storage_write(store, zeros, sizeof zeros,
                               (superblock->size_blocks - SUPERBLOCK_RING_SLOTS) * STORE_BLOCK_SIZE);
    if (result == 0)
        result = storage_write(store, zeros, STORE_BLOCK_SIZE, superblock->journal_start * STORE_BLOCK_SIZE);
    for (uint64_t page = 0; page < superblock->bitmap_pages && result == 0; page++) {
        uint64_t at = (superblock->bitmap_start + page * 2) * STORE_BLOCK_SIZE;
        result = storage_read(store, block, sizeof block, at); /* a sparse file stays sparse */
        if (result == 0 && memcmp(block, zeros, sizeof block) != 0)
            result = storage_write(store, zeros, sizeof block, at);
    }
    return result;
}

int store_format(struct storage *storage, const struct store_parameters *parameters, struct store_failure *failure)
{
    struct superblock superblock;
    int result = choose_layout(storage, parameters, &superblock, failure);
    if (result < 0)
        return result;
    struct store *store = calloc(1, sizeof *store);
    if (!store)
        return -ENOMEM;
    store->storage = storage;
    result = MUTATED(FORMAT_ERASES) ? 0 : erase_old(store, &superblock);
    if (result == 0)
        result = storage_flush(store);
    if (result == 0)
        result = superblock_write(store, &superblock);
    if (result == 0 && !MUTATED(FORMAT_FLUSH))
        result = storage_flush(store);
    if (result < 0)
        failure_set(failure, "writing the pool failed: %s", strerror(-result));
    free(store);
    return result;
}

void superblock_describe(struct store *store, struct superblock *out)
{
    memset(out, 0, sizeof *out);
    out->version = FORMAT_VERSION;
    memcpy(out->uuid, store->uuid, sizeof out->uuid);
    memcpy(out->label, store->label, sizeof out->label);
    out->node_size = store->node_size;
    out->copies = store->copies;
    out->size_blocks = store->size_blocks;
    out->journal_start = store->journal.start_byte / STORE_BLOCK_SIZE;
    out->journal_blocks = store->journal.size_bytes / STORE_BLOCK_SIZE;
    out->bitmap_start = store->bitmap_start;
    out->bitmap_pages = store->bitmap_pages;
    out->bitmap_digest = store->allocator.digest;
    out->root = store->system_chain.head;
}

static void adopt(struct store *store, const struct superblock *superblock)
{
    memcpy(store->uuid, superblock->uuid, sizeof store->uuid);
    memcpy(store->label, superblock->label, sizeof store->label);
    store->node_size = superblock->node_size;
    store->node_blocks = superblock->node_size / STORE_BLOCK_SIZE;
    store->copies = superblock->copies;
    store->size_blocks = superblock->size_blocks;
    store->bitmap_start = superblock->bitmap_start;
    store->bitmap_pages = superblock->bitmap_pages;
    store->journal.start_byte = superblock->journal_start * STORE_BLOCK_SIZE;
    store->journal.size_bytes = superblock->journal_blocks * STORE_BLOCK_SIZE;
    store->epoch = superblock->epoch;
    store->next_object_id = superblock->next_object_id;
    store->next_queue_id = superblock->next_queue_id;
    store->checkpoint_sequence = superblock->sequence;
    store->clean_superblock = superblock->flags & SUPERBLOCK_FLAG_CLEAN;
}

static size_t option(size_t given, size_t standard, size_t least)
{
    return given == 0 ? standard : given < least ? least : given;
}

static void adopt_options(struct store *store, const struct store_options *options)
{
    store->cache_bytes_max = option(options->cache_bytes_max, CACHE_BYTES_DEFAULT, CACHE_BYTES_MIN);
    store->dirty_bytes_max = option(options->dirty_bytes_max, DIRTY_BYTES_DEFAULT, DIRTY_BYTES_MIN);
    store->queue_steps_max = store->dirty_bytes_max / QUEUE_STEPS_DIVISOR;
    store->buffer_bytes_max = option(options->buffer_bytes_max, BUFFER_BYTES_DEFAULT, BUFFER_BYTES_MIN);
    store->commit_interval_ms = (uint32_t)option(options->commit_interval_ms, COMMIT_INTERVAL_MS_DEFAULT, 1);
    store->read_only = options->read_only;
    store->accept_journal_loss = options->rebuild_space || options->read_only;
}

static void locks_create(struct store *store)
{
    /* Held for a microsecond or two: who waits turns a while before it sleeps, which would cost more than that. */
    pthread_mutexattr_t brief;
    pthread_mutexattr_init(&brief);
    pthread_mutexattr_settype(&brief, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&store->lock, &brief);
    pthread_mutex_init(&store->data_mutex, &brief);
    pthread_mutex_init(&store->allocator.mutex, &brief);
    pthread_mutexattr_destroy(&brief);
    pthread_mutex_init(&store->commit_mutex, NULL);
    pthread_mutex_init(&store->checkpoint_mutex, NULL);
    pthread_mutex_init(&store->flush_mutex, NULL);
    pthread_mutex_init(&store->maintenance_mutex, NULL);
    pthread_mutex_init(&store->damage.mutex, NULL);
    pthread_cond_init(&store->data_condition, NULL);
    pthread_cond_init(&store->flush_condition, NULL);
    pthread_condattr_t attributes; /* intervals go on when somebody sets the clock back */
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&store->maintenance_condition, &attributes);
    pthread_condattr_destroy(&attributes);
}

static void destroy(struct store *store)
{
    segments_destroy(store);
    checkpoint_destroy(store);
    cache_destroy(store);
    catalog_destroy(store);
    allocator_destroy(store);
    free(store->pending_free.items);
    free(store->journal.pending.bytes);
    free(store->journal.writing.bytes);
    free(store->journal.written);
    pthread_mutex_destroy(&store->lock);
    pthread_mutex_destroy(&store->commit_mutex);
    pthread_mutex_destroy(&store->checkpoint_mutex);
    pthread_mutex_destroy(&store->flush_mutex);
    pthread_mutex_destroy(&store->data_mutex);
    pthread_mutex_destroy(&store->maintenance_mutex);
    pthread_mutex_destroy(&store->allocator.mutex);
    pthread_mutex_destroy(&store->damage.mutex);
    pthread_cond_destroy(&store->data_condition);
    pthread_cond_destroy(&store->flush_condition);
    pthread_cond_destroy(&store->maintenance_condition);
    free(store);
}

/* Checkpoint state, then journal; after a crash a checkpoint, so that the old journal can never be read again. */
static int recover(struct store *store, const struct superblock *superblock, bool rebuild_space,
                   struct store_failure *failure)
{
    const struct tree_root *root = &superblock->root;
    if (root->pointer.address[0] && (root->pointer.birth > store->epoch || !pointer_in_zone(store, &root->pointer))) {
        failure_set(failure, "the pool's superblock names an impossible root; run fsck.cowfs");
        return -EUCLEAN;
    }
    store->system_chain.head = *root;
    int result = allocator_load(store, superblock->bitmap_digest, superblock->sequence, failure);
    store->bitmap_damaged = result == -EUCLEAN;
    if (result == 0 || store->bitmap_damaged)
        result = catalog_load(store, failure);
    if (result == 0 && (store->bitmap_damaged || rebuild_space))
        result = space_rebuild(store, rebuild_space, failure);
    if (result == 0 && store->bitmap_damaged) {
        struct store_damage damage = {.kind = STORE_DAMAGE_BITMAP, .address = superblock->bitmap_start,
                                      .blocks = (uint32_t)(superblock->bitmap_pages * 2),
                                      .repaired = !store->read_only};
        store_note_damage(store, &damage);
    }
    if (result == 0)
        result = journal_replay(store, superblock->journal_position, superblock->journal_sequence, failure);
    bool rebuilt = store->bitmap_damaged || rebuild_space;
    if (result < 0 || store->read_only || (store->counters.replayed_groups == 0 && store->clean_superblock && !rebuilt))
        return result;
    store->journal.sequence += MUTATED(SEQUENCE_JUMP) ? 0 : SEQUENCE_JUMP;
    store->journal.flushed_sequence = store->journal.written_sequence = store->journal.sequence - 1;
    store->catalog_dirty = true;
    result = MUTATED(CHECKPOINT_AFTER_RECOVERY) ? 0 : checkpoint_run(store, false);
    if (result < 0)
        failure_set(failure, "the pool cannot be written: %s", strerror(atomic_load(&store->failed_errno)));
    return result;
}

int store_open(struct storage *storage, const struct store_options *options, struct store **out,
               struct store_failure *failure)
{
    struct superblock superblock;
    if (failure)
        failure->message[0] = 0;
    uint64_t newest;
    int result = superblock_read(storage, options->sequence_max ? options->sequence_max : UINT64_MAX, &superblock,
                                 &newest, failure);
    if (result < 0)
        return result;
    struct store *store = calloc(1, sizeof *store);
    if (!store)
        return -ENOMEM;
    locks_create(store);
    store->storage = storage;
    adopt(store, &superblock);
    adopt_options(store, options);
    result = allocator_create(store);
    if (result == 0)
        result = cache_create(store);
    if (result == 0)
        result = catalog_create(store);
    if (result == 0)
        result = journal_create(store);
    store->checkpoint_sequence = newest; /* the next checkpoint has to be newer than one that was passed over */
    if (result == 0)
        result = recover(store, &superblock, options->rebuild_space, failure);
    if (result == 0 && !store->read_only && !options->no_background)
        result = maintenance_start(store);
    if (result < 0) {
        if (failure && !failure->message[0])
            failure_set(failure, "the pool cannot be opened: %s", strerror(-result));
        destroy(store);
        return result;
    }
    *out = store;
    return 0;
}

int store_close(struct store *store)
{
    int result = 0;
    maintenance_stop(store);
    if (!store->read_only)
        result = checkpoint_run(store, true);
    struct storage *storage = store->storage;
    destroy(store);
    storage->operations->close(storage);
    return result;
}

void store_abandon(struct store *store)
{
    maintenance_stop(store);
    struct storage *storage = store->storage;
    destroy(store);
    storage->operations->close(storage);
}

void store_note_data_mismatch(struct store *store, uint64_t address)
{
    (void)address;
    atomic_fetch_add(&store->checksum_mismatches, 1);
}

static void space_statistics(struct store *store, struct store_statistics *out)
{
    struct allocator *allocator = &store->allocator;
    pthread_mutex_lock(&allocator->mutex);
    uint64_t zone = allocator->end_block - allocator->first_block;
    uint64_t room = zone - allocator->busy_count + allocator->claimed_unused;
    uint64_t kept = allocator_withheld(store, CLAIM_DATA, 0);
    out->size_blocks = store->size_blocks;
    out->free_blocks = room;
    out->used_blocks = zone - room;
    out->reserved_blocks = store->size_blocks - zone;
    room += out->pending_blocks; /* a write that finds no room has them freed by a checkpoint */
    out->available_blocks = room > kept ? room - kept : 0;
    pthread_mutex_unlock(&allocator->mutex);
}

void store_statistics(struct store *store, struct store_statistics *out)
{
    pthread_mutex_lock(&store->lock);
    *out = store->counters;
    memcpy(out->uuid, store->uuid, sizeof out->uuid);
    memcpy(out->label, store->label, sizeof out->label);
    out->format_version = FORMAT_VERSION;
    out->node_size_bytes = store->node_size;
    out->metadata_copies = store->copies;
    out->read_only = store->read_only || atomic_load(&store->failed_errno);
    out->failed_errno = atomic_load(&store->failed_errno);
    out->epoch = store->epoch;
    out->checkpoint_sequence = store->checkpoint_sequence;
    out->dead_blocks = store->bucket_blocks_total + store->dead_pending_blocks;
    out->pending_blocks = store->pending_free_blocks;
    out->volume_count = store->volume_table.count;
    for (size_t i = 0; i < store->volume_table.count; i++) {
        const struct volume *volume = store->volume_table.items[i].object;
        out->snapshot_count += volume->slot_live;
    }
    out->deletion_queue_length = store->queue_length;
    out->cache_bytes = store->cached_count * store->node_size;
    out->dirty_bytes = store->dirty_count * store->node_size + store->dead_bytes;
    out->journal_used_bytes = store->journal.head - store->journal.tail;
    out->journal_size_bytes = store->journal.size_bytes;
    space_statistics(store, out);
    pthread_mutex_unlock(&store->lock);
    pthread_mutex_lock(&store->data_mutex);
    out->buffer_bytes = store->buffer_bytes;
    pthread_mutex_unlock(&store->data_mutex);
    out->storage_reads = atomic_load(&store->storage_reads);
    out->storage_writes = atomic_load(&store->storage_writes);
    out->storage_flushes = atomic_load(&store->storage_flushes);
    out->storage_read_bytes = atomic_load(&store->storage_read_bytes);
    out->storage_written_bytes = atomic_load(&store->storage_written_bytes);
    out->data_written_bytes = atomic_load(&store->data_written_bytes);
    out->journal_written_bytes = atomic_load(&store->journal_written_bytes);
    out->metadata_written_bytes = atomic_load(&store->metadata_written_bytes);
    out->checksum_mismatches = atomic_load(&store->checksum_mismatches);
    out->repairs = atomic_load(&store->repairs);
}
