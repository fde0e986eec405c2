/* The circular log of logical redo records. A group holds everything that happened since the group before it; one
 * flush makes the group and the data it names durable together, because recovery checks that data against the
 * checksums in the records (recovery.c). Group commit after Gawlick and Kinkade, "Varieties of concurrency control in
 * IMS/VS Fast Path" (1985); journaling of a whole transaction as one unit after Giampaolo, "Practical File System
 * Design with the Be File System" (1999), chapter 7. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

#define RECORD_HEADER_LENGTH 8u

int journal_create(struct store *store)
{
    struct journal *journal = &store->journal;
    journal->pending_bytes_max = journal->size_bytes / 8;
    if (journal->pending_bytes_max > (4u << 20))
        journal->pending_bytes_max = 4u << 20;
    journal->pool_tag = store_checksum(store->uuid, sizeof store->uuid);
    return 0;
}

static uint64_t group_bytes(uint64_t payload)
{
    return (JOURNAL_PAYLOAD + payload + STORE_BLOCK_SIZE - 1) / STORE_BLOCK_SIZE * STORE_BLOCK_SIZE;
}

/* The group may have to begin at the log's start, leaving less than its own length unused at the end: hence twice. A
 * group cut off but not yet written counts with the gathered records. */
bool journal_has_room(const struct store *store, size_t record_bytes)
{
    const struct journal *journal = &store->journal;
    uint64_t next = group_bytes(journal->pending.length + RECORD_HEADER_LENGTH + record_bytes);
    uint64_t writing = journal->writing.length ? group_bytes(journal->writing.length) : 0;
    return journal->head - journal->tail + 2 * (next + writing) <= journal->size_bytes || MUTATED(JOURNAL_ROOM);
}

uint8_t *journal_record(struct store *store, enum journal_record_type type, size_t body_bytes)
{
    struct byte_buffer *pending = &store->journal.pending;
    if (buffer_reserve(pending, RECORD_HEADER_LENGTH + body_bytes) < 0)
        return NULL;
    uint8_t *at = pending->bytes + pending->length;
    save32(at, (uint32_t)type);
    save32(at + 4, (uint32_t)body_bytes);
    pending->length += RECORD_HEADER_LENGTH + body_bytes;
    pressure_note(store);
    return at + RECORD_HEADER_LENGTH;
}

int journal_write_group(struct store *store, const struct byte_buffer *payload)
{
    struct journal *journal = &store->journal;
    uint64_t length = group_bytes(payload->length);
    pthread_mutex_lock(&store->lock); /* a finishing checkpoint raises it too */
    uint64_t flushed_sequence = journal->flushed_sequence;
    pthread_mutex_unlock(&store->lock);
    uint8_t *group = aligned_alloc(STORE_BLOCK_SIZE, length);
    if (!group)
        return -ENOMEM;
    memset(group, 0, JOURNAL_PAYLOAD);
    memcpy(group + JOURNAL_PAYLOAD, payload->bytes, payload->length);
    memset(group + JOURNAL_PAYLOAD + payload->length, 0, length - JOURNAL_PAYLOAD - payload->length);
    save32(group + JOURNAL_MAGIC_AT, JOURNAL_MAGIC);
    save32(group + JOURNAL_PAYLOAD_LENGTH, (uint32_t)payload->length);
    save64(group + JOURNAL_SEQUENCE, journal->sequence);
    save64(group + JOURNAL_FLUSHED_SEQUENCE, MUTATED(GROUP_TRUSTED_EARLY) ? journal->sequence : flushed_sequence);
    save64(group + JOURNAL_POOL_TAG, journal->pool_tag);
    save64(group + JOURNAL_EPOCH, journal->writing_epoch);
    save64(group + JOURNAL_CHECKSUM, store_checksum(group, JOURNAL_PAYLOAD + payload->length));
    uint64_t at = journal->head, place = at % journal->size_bytes;
    if (place + length > journal->size_bytes) {
        at += journal->size_bytes - place;
        place = 0;
    }
    int result = storage_write(store, group, length, journal->start_byte + place);
    if (result < 0) {
        free(group);
        return result;
    }
    free(journal->written);
    journal->written = group;
    journal->written_length = JOURNAL_PAYLOAD + payload->length;
    atomic_fetch_add(&store->journal_written_bytes, length);
    pthread_mutex_lock(&store->lock);
    journal->head = at + length;
    journal->written_sequence = journal->sequence++;
    journal->writing.length = 0;
    pthread_mutex_unlock(&store->lock);
    return 0;
}

void journal_cut(struct store *store)
{
    struct journal *journal = &store->journal;
    struct byte_buffer taken = journal->pending;
    journal->pending = journal->writing;
    journal->pending.length = 0;
    journal->writing = taken;
    journal->writing_epoch = store->epoch;
    segments_seal(store);
}

static bool journal_is_flushed(struct store *store)
{
    pthread_mutex_lock(&store->lock);
    bool result = store->journal.flushed_sequence == store->journal.written_sequence;
    pthread_mutex_unlock(&store->lock);
    return result;
}

static int journal_flush(struct store *store)
{
    int result = storage_flush(store);
    if (result < 0)
        return result;
    pthread_mutex_lock(&store->lock);
    store->journal.flushed_sequence = store->journal.written_sequence;
    pthread_mutex_unlock(&store->lock);
    free(store->journal.written);
    store->journal.written = NULL;
    return 0;
}

/* Never two unflushed groups: a crash could keep the second without the first, and after the opening of a clean pool,
 * where sequence numbers go on, it would pass for the successor of the next first one. Costs a second flush when
 * something is committed beside a checkpoint. */
int journal_write_cut(struct store *store)
{
    int result = MUTATED(DATA_WITH_GROUP) ? 0 : segments_flush(store);
    if (result == 0 && store->journal.writing.length && !journal_is_flushed(store) && !MUTATED(ONE_GROUP_IN_DOUBT))
        result = journal_flush(store);
    if (result == 0 && store->journal.writing.length)
        result = journal_write_group(store, &store->journal.writing);
    if (result < 0)
        store_fail(store, result);
    return result;
}

int store_commit(struct store *store)
{
    struct journal *journal = &store->journal;
    if (store->read_only)
        return 0;
    pthread_mutex_lock(&store->commit_mutex);
    int result = atomic_load(&store->failed_errno) ? -EIO : 0;
    pthread_mutex_lock(&store->lock);
    bool outstanding = journal->pending.length > 0 ||
                       (journal->written_sequence != journal->flushed_sequence && !MUTATED(COMMIT_OF_WRITTEN));
    if (result == 0 && outstanding)
        journal_cut(store);
    pthread_mutex_unlock(&store->lock);
    if (result == 0 && outstanding) {
        result = journal_write_cut(store);
        if (result == 0) {
            result = MUTATED(COMMIT_FLUSH) ? 0 : journal_flush(store);
            if (result < 0)
                store_fail(store, result);
        }
        pthread_mutex_lock(&store->lock);
        store->counters.commits++;
        pthread_mutex_unlock(&store->lock);
    }
    pthread_mutex_unlock(&store->commit_mutex);
    return result < 0 ? -EIO : 0;
}

/* ---- what is durable --------------------------------------------------------------------------------------------- */

struct key_prefix {
    uint64_t volume_id;
    const void *bytes;
    size_t length;
};

static bool transaction_touches(const uint8_t *body, const struct key_prefix *prefix)
{
    if (load64(body) != prefix->volume_id)
        return false;
    const uint8_t *at = body + 12;
    for (uint32_t left = load32(body + 8); left > 0; left--) {
        size_t key_length = load16(at + 2), value_length = load16(at + 4);
        bool has_key = at[0] != CHANGE_KILL;
        if (has_key && key_length >= prefix->length && memcmp(at + 6, prefix->bytes, prefix->length) == 0)
            return true;
        at += 6 + (has_key ? key_length + value_length : 20);
    }
    return false;
}

/* Records of our own making. Of those that bring or replace whole trees it is not asked which. */
static bool records_touch(const uint8_t *records, size_t length, const struct key_prefix *prefix)
{
    for (size_t at = 0; at < length; at += RECORD_HEADER_LENGTH + load32(records + at + 4)) {
        uint32_t type = load32(records + at);
        if (type == RECORD_VOLUME_CREATE || type == RECORD_CLONE || type == RECORD_ROLLBACK)
            return true;
        if (type == RECORD_TRANSACTION && transaction_touches(records + at + RECORD_HEADER_LENGTH, prefix))
            return true;
    }
    return false;
}

bool store_is_durable(struct store *store, uint64_t volume_id, const void *key, size_t key_length)
{
    struct key_prefix prefix = {volume_id, key, key_length};
    struct journal *journal = &store->journal;
    pthread_mutex_lock(&store->commit_mutex);
    bool touched = false;
    if (journal->written && !journal_is_flushed(store))
        touched = records_touch(journal->written + JOURNAL_PAYLOAD, journal->written_length - JOURNAL_PAYLOAD, &prefix);
    pthread_mutex_lock(&store->lock);
    touched = touched || records_touch(journal->writing.bytes, journal->writing.length, &prefix) ||
              records_touch(journal->pending.bytes, journal->pending.length, &prefix);
    pthread_mutex_unlock(&store->lock);
    pthread_mutex_unlock(&store->commit_mutex);
    return !touched;
}
