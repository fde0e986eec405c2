/* Tells a journal that ends from one that has lost a group. A group that comes after the end, and was written when the
 * one missing there was known to be flushed, proves that this one was on the medium and has rotted since. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

#define CHUNK_BYTES (1u << 20)
#define LOOKED_AT_WHEN_CLOSED 4u

/* 1 when a whole group lies at this place of the journal. */
static int group_is_whole(struct store *store, uint64_t place, uint64_t length)
{
    uint8_t *bytes = aligned_alloc(STORE_BLOCK_SIZE, length);
    if (!bytes)
        return -ENOMEM;
    bool whole = storage_read(store, bytes, length, store->journal.start_byte + place) == 0;
    uint64_t checksum = load64(bytes + JOURNAL_CHECKSUM);
    save64(bytes + JOURNAL_CHECKSUM, 0);
    whole = whole && store_checksum(bytes, JOURNAL_PAYLOAD + (uint64_t)load32(bytes + JOURNAL_PAYLOAD_LENGTH)) ==
                         checksum;
    free(bytes);
    return whole;
}

static int header_proves(struct store *store, const uint8_t *header, uint64_t place, uint64_t sequence)
{
    uint64_t payload = load32(header + JOURNAL_PAYLOAD_LENGTH);
    uint64_t length = (JOURNAL_PAYLOAD + payload + STORE_BLOCK_SIZE - 1) / STORE_BLOCK_SIZE * STORE_BLOCK_SIZE;
    if (load32(header + JOURNAL_MAGIC_AT) != JOURNAL_MAGIC ||
        load64(header + JOURNAL_POOL_TAG) != store->journal.pool_tag ||
        load64(header + JOURNAL_SEQUENCE) <= sequence || load64(header + JOURNAL_FLUSHED_SEQUENCE) < sequence ||
        length > store->journal.size_bytes - place)
        return 0;
    return group_is_whole(store, place, length);
}

/* How much of the journal is looked at, from its head on. After a crash all of it. When the last checkpoint closed the
 * pool, opening should not cost that: only so much that the first group of a later session, which is written at twice
 * pending_bytes_max at the latest, and the beginning of the one after it are in there. */
static uint64_t bytes_looked_at(const struct store *store)
{
    const struct journal *journal = &store->journal;
    bool closed = store->clean_superblock && store->counters.replayed_groups == 0;
    uint64_t some = LOOKED_AT_WHEN_CLOSED * journal->pending_bytes_max / STORE_BLOCK_SIZE * STORE_BLOCK_SIZE;
    return closed && some < journal->size_bytes ? some : journal->size_bytes;
}

int journal_lost(struct store *store, uint64_t sequence)
{
    const struct journal *journal = &store->journal;
    uint8_t *chunk = aligned_alloc(STORE_BLOCK_SIZE, CHUNK_BYTES);
    int result = chunk ? 0 : -ENOMEM;
    uint64_t at = journal->head % journal->size_bytes, length;
    /* what cannot be read proves nothing */
    for (uint64_t left = bytes_looked_at(store); result == 0 && left > 0; left -= length) {
        length = left < CHUNK_BYTES ? left : CHUNK_BYTES;
        if (length > journal->size_bytes - at)
            length = journal->size_bytes - at;
        bool readable = storage_read(store, chunk, length, journal->start_byte + at) == 0;
        for (uint64_t offset = 0; readable && result == 0 && offset < length; offset += STORE_BLOCK_SIZE)
            result = header_proves(store, chunk + offset, at + offset, sequence);
        at = (at + length) % journal->size_bytes;
    }
    free(chunk);
    return result;
}
