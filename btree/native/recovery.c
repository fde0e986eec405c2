/* Replay of the journal after the last checkpoint (invariant I3).
 *
 * Groups are read in sequence until one is missing or torn. Groups up to the last one that a later group names as
 * flushed are trusted: their data was durable with them, and what rots later must not cut the journal short. Those
 * after it are believed only if the data they name verifies against the checksums in their records, since data and
 * group were written without an order between them; the first one that does not ends the journal: it and what follows
 * were never acknowledged as durable. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

struct group {
    uint8_t *bytes; /* payload */
    size_t length;
    uint64_t sequence, flushed_sequence, epoch;
    uint64_t end; /* virtual position after it */
};

struct group_list {
    struct group *items;
    size_t count, capacity;
};

/* 1: found; 0: no such group at this place; negative errno. */
static int group_read(struct store *store, uint64_t at, uint64_t sequence, struct group *group)
{
    const struct journal *journal = &store->journal;
    uint64_t place = at % journal->size_bytes;
    uint8_t header[STORE_BLOCK_SIZE];
    int result = storage_read(store, header, sizeof header, journal->start_byte + place);
    if (result < 0)
        return result;
    uint64_t payload = load32(header + JOURNAL_PAYLOAD_LENGTH);
    uint64_t length = (JOURNAL_PAYLOAD + payload + STORE_BLOCK_SIZE - 1) / STORE_BLOCK_SIZE * STORE_BLOCK_SIZE;
    if (load32(header + JOURNAL_MAGIC_AT) != JOURNAL_MAGIC ||
        (load64(header + JOURNAL_SEQUENCE) != sequence && !MUTATED(GROUP_SEQUENCE)) ||
        (load64(header + JOURNAL_POOL_TAG) != journal->pool_tag && !MUTATED(GROUP_POOL)) ||
        length > journal->size_bytes - place)
        return 0;
    uint8_t *bytes = aligned_alloc(STORE_BLOCK_SIZE, length);
    if (!bytes)
        return -ENOMEM;
    result = storage_read(store, bytes, length, journal->start_byte + place);
    uint64_t checksum = load64(bytes + JOURNAL_CHECKSUM);
    save64(bytes + JOURNAL_CHECKSUM, 0);
    if (result < 0 || (store_checksum(bytes, JOURNAL_PAYLOAD + payload) != checksum && !MUTATED(GROUP_CHECKSUM))) {
        free(bytes);
        return result;
    }
    group->sequence = sequence;
    group->flushed_sequence = load64(bytes + JOURNAL_FLUSHED_SEQUENCE);
    group->epoch = load64(bytes + JOURNAL_EPOCH);
    group->length = payload;
    group->end = at + length;
    memmove(bytes, bytes + JOURNAL_PAYLOAD, payload);
    group->bytes = bytes;
    return 1;
}

static int groups_read(struct store *store, uint64_t position, uint64_t sequence, struct group_list *groups)
{
    const struct journal *journal = &store->journal;
    uint64_t at = position;
    while (at - position < journal->size_bytes) {
        if (array_reserve((void **)&groups->items, &groups->capacity, groups->count + 1, sizeof *groups->items) < 0)
            return -ENOMEM;
        struct group *group = &groups->items[groups->count];
        int result = group_read(store, at, sequence, group);
        if (result == 0 && at % journal->size_bytes) { /* it may have been put at the log's start */
            uint64_t start = at - at % journal->size_bytes + journal->size_bytes;
            result = group_read(store, start, sequence, group);
        }
        if (result <= 0)
            return result;
        groups->count++;
        sequence++;
        at = group->end;
    }
    return 0;
}

/* ---- records -------------------------------------------------------------------------------------------------- */

struct reader {
    const uint8_t *at;
    size_t left;
};

static const uint8_t *take(struct reader *reader, size_t length)
{
    if (length > reader->left)
        return NULL;
    const uint8_t *bytes = reader->at;
    reader->at += length;
    reader->left -= length;
    return bytes;
}

static bool take_record(struct reader *reader, uint32_t *type, struct reader *body)
{
    const uint8_t *header = take(reader, 8);
    if (!header)
        return false;
    *type = load32(header);
    size_t length = load32(header + 4);
    body->left = length;
    body->at = take(reader, length);
    return body->at != NULL;
}

/* Decodes one change of a transaction record; `base` is what change->at counts from. */
static int take_change(const struct store *store, struct reader *body, const uint8_t *base, struct change *change)
{
    const uint8_t *header = take(body, 6);
    if (!header)
        return -EUCLEAN;
    change->type = (enum journal_change_type)header[0];
    change->flags = header[1];
    change->key_length = load16(header + 2);
    change->value_length = load16(header + 4);
    if (change->type < CHANGE_PUT || change->type > CHANGE_KILL)
        return -EUCLEAN;
    size_t length = change->type == CHANGE_KILL ? 20 : (size_t)change->key_length + change->value_length;
    const uint8_t *bytes = take(body, length);
    if (!bytes)
        return -EUCLEAN;
    change->at = (uint32_t)(bytes - base);
    if (change->type == CHANGE_KILL)
        return load32(bytes + 16) && allocator_in_zone(&store->allocator, load64(bytes), load32(bytes + 16))
                   ? 0
                   : -EUCLEAN;
    if (change->key_length == 0 || change->key_length > STORE_KEY_LENGTH_MAX ||
        length > store_item_length_max(store))
        return -EUCLEAN;
    struct store_extent extent;
    if ((change->flags & CHANGE_FLAG_EXTENT) &&
        (store_extent_decode(bytes + change->key_length, change->value_length, &extent) < 0 ||
         !allocator_in_zone(&store->allocator, extent.address, extent.blocks)))
        return -EUCLEAN;
    return 0;
}

/* ---- believing a group that may not have been flushed ------------------------------------------------------------ */

/* One block, or all blocks of a compressed extent, which has one checksum. */
struct named_block {
    uint64_t address, checksum;
    uint32_t blocks;
    size_t order;
};

struct named_blocks {
    struct named_block *items;
    size_t count, capacity;
};

static int named_compare(const void *a, const void *b)
{
    const struct named_block *left = a, *right = b;
    if (left->address != right->address)
        return left->address < right->address ? -1 : 1;
    return left->order < right->order ? -1 : left->order > right->order;
}

static int name_blocks(struct named_blocks *blocks, const uint8_t *value, size_t value_length)
{
    struct store_extent extent;
    if (store_extent_decode(value, value_length, &extent) < 0)
        return -EUCLEAN;
    for (uint32_t i = 0; i < extent.checksum_count && !(extent.compression && MUTATED(GROUP_COMPRESSED)); i++) {
        if (array_reserve((void **)&blocks->items, &blocks->capacity, blocks->count + 1, sizeof *blocks->items) < 0)
            return -ENOMEM;
        blocks->items[blocks->count] = (struct named_block){.address = extent.address + i,
                                                            .checksum = store_extent_checksum(value, i),
                                                            .blocks = extent.compression ? extent.blocks : 1,
                                                            .order = blocks->count};
        blocks->count++;
    }
    return 0;
}

static int group_named_blocks(const struct store *store, const struct group *group, struct named_blocks *blocks)
{
    struct reader records = {group->bytes, group->length}, body;
    uint32_t type;
    while (records.left && take_record(&records, &type, &body)) {
        if (type != RECORD_TRANSACTION)
            continue;
        const uint8_t *head = take(&body, 12);
        for (uint32_t i = 0; head && i < load32(head + 8); i++) {
            struct change change;
            int result = take_change(store, &body, group->bytes, &change);
            const uint8_t *at = group->bytes + change.at;
            if (result == 0 && (change.flags & CHANGE_FLAG_FRESH) && (change.flags & CHANGE_FLAG_EXTENT))
                result = name_blocks(blocks, at + change.key_length, change.value_length);
            if (result < 0)
                return result;
        }
    }
    return 0;
}

/* 1 when every block that the group names is on the medium as named (the last word on a block counts: it may have been
 * changed in place within the group), 0 when not. */
static int group_data_verifies(struct store *store, const struct group *group)
{
    struct named_blocks blocks = {0};
    uint8_t *data = aligned_alloc(STORE_BLOCK_SIZE, (size_t)STORE_EXTENT_BLOCKS_MAX * STORE_BLOCK_SIZE);
    int result = data ? group_named_blocks(store, group, &blocks) : -ENOMEM;
    if (result == 0 && blocks.count)
        qsort(blocks.items, blocks.count, sizeof *blocks.items, named_compare);
    bool verified = true;
    for (size_t i = 0; i < blocks.count && result == 0 && verified; i++) {
        const struct named_block *block = &blocks.items[i];
        if (i + 1 < blocks.count && blocks.items[i + 1].address == block->address && !MUTATED(GROUP_LAST_WORD))
            continue;
        size_t length = (size_t)block->blocks * STORE_BLOCK_SIZE;
        result = storage_read(store, data, length, block->address * STORE_BLOCK_SIZE);
        verified = result == 0 && store_checksum(data, length) == block->checksum;
    }
    free(blocks.items);
    free(data);
    return result < 0 ? result : verified;
}

/* ---- applying ------------------------------------------------------------------------------------------------- */

static int replay_transaction(struct store *store, struct reader *body)
{
    const uint8_t *base = body->at, *head = take(body, 12);
    if (!head)
        return -EUCLEAN;
    struct volume *volume = volume_by_id(store, load64(head));
    uint32_t count = load32(head + 8);
    if (!volume || count > CHANGES_MAX)
        return -EUCLEAN;
    struct change *changes = calloc(count ? count : 1, sizeof *changes);
    int result = changes ? 0 : -ENOMEM;
    for (uint32_t i = 0; i < count && result == 0; i++)
        result = take_change(store, body, base, &changes[i]);
    cache_hold(store, true);
    while (result == 0) {
        struct miss miss;
        result = changes_prepare(store, volume->head, NULL, changes, count, base, &miss);
        if (result == STORE_AGAIN)
            result = cache_load(store, &miss.pointer, miss.level, NULL);
        else
            break;
    }
    if (result == 0)
        result = spares_fill(store, count * (3u * volume->head->head.level + 12u));
    if (result == 0)
        changes_apply(store, volume->head, changes, count, base);
    cache_hold(store, false);
    free(changes);
    return result;
}

static void note_id(struct store *store, uint64_t id)
{
    if (id >= store->next_object_id && !MUTATED(REPLAY_IDS))
        store->next_object_id = id + 1;
}

static bool take_name(struct reader *body, char *name)
{
    size_t length = body->left;
    const uint8_t *bytes = take(body, length);
    if (!bytes || length > STORE_NAME_LENGTH_MAX)
        return false;
    memcpy(name, bytes, length);
    name[length] = 0;
    return strlen(name) == length && name_check(name) == 0;
}

static int replay_record(struct store *store, uint32_t type, struct reader *body)
{
    static const size_t fixed_lengths[] = {[RECORD_SNAPSHOT] = 32,      [RECORD_SNAPSHOT_DELETE] = 8,
                                           [RECORD_ANNOTATE] = 12,      [RECORD_VOLUME_CREATE] = 32,
                                           [RECORD_VOLUME_DESTROY] = 8, [RECORD_CLONE] = 32,
                                           [RECORD_ROLLBACK] = 48};
    if (type == RECORD_TRANSACTION)
        return replay_transaction(store, body);
    if (type == RECORD_PROPERTY)
        return property_replay(store, body->at, body->left);
    if (type == RECORD_PROMOTE)
        return body->left == 8 ? apply_promote(store, load64(body->at)) : -EUCLEAN;
    if (type == 0 || type > RECORD_ROLLBACK)
        return -EUCLEAN;
    const uint8_t *fixed = take(body, fixed_lengths[type]);
    char name[STORE_NAME_LENGTH_MAX + 1];
    if (!fixed)
        return -EUCLEAN;
    if (type == RECORD_SNAPSHOT_DELETE)
        return apply_snapshot_delete(store, load64(fixed));
    if (type == RECORD_VOLUME_DESTROY)
        return apply_volume_destroy(store, load64(fixed));
    if (type == RECORD_ANNOTATE)
        return body->left <= STORE_ANNOTATION_LENGTH_MAX
                   ? apply_annotate(store, load64(fixed), load32(fixed + 8), body->at, body->left)
                   : -EUCLEAN;
    if (!take_name(body, name))
        return -EUCLEAN;
    if (type == RECORD_SNAPSHOT || type == RECORD_ROLLBACK) {
        /* births in trees and extents are compared with this epoch: it must be the one of the original run */
        uint64_t epoch = load64(fixed + (type == RECORD_SNAPSHOT ? 16 : 32));
        if (epoch < store->epoch || epoch >= UINT64_MAX / 2)
            return -EUCLEAN;
        store->epoch = MUTATED(REPLAY_SNAPSHOT_EPOCH) ? store->epoch : epoch;
    }
    if (type == RECORD_SNAPSHOT) {
        note_id(store, load64(fixed + 8));
        return apply_snapshot_create(store, load64(fixed), load64(fixed + 8), load64(fixed + 24), name);
    }
    if (type == RECORD_ROLLBACK) {
        note_id(store, load64(fixed + 24));
        return apply_rollback(store, load64(fixed), load64(fixed + 8), load64(fixed + 16), load64(fixed + 24),
                              load64(fixed + 40), name);
    }
    struct volume_arguments arguments = {load64(fixed + 8), load64(fixed + 16), load64(fixed + 24), name};
    note_id(store, arguments.chain_id);
    return type == RECORD_CLONE ? apply_clone(store, load64(fixed), &arguments)
                                : apply_volume_create(store, &arguments);
}

static int replay_group(struct store *store, const struct group *group)
{
    struct reader records = {group->bytes, group->length}, body;
    uint32_t type;
    while (records.left) {
        if (!take_record(&records, &type, &body))
            return -EUCLEAN;
        int result = replay_record(store, type, &body);
        if (result < 0)
            return result == -ENOMEM || result == -EIO ? result : -EUCLEAN;
    }
    /* What is born after a freeze that came to nothing is as young as it was. No crash test can tell: snapshots bring
     * their own epochs, and the checkpoint that ends the recovery raises it past that one freeze. */
    if (group->epoch > store->epoch && group->epoch < UINT64_MAX / 2)
        store->epoch = group->epoch;
    return 0;
}

/* A group that was flushed is missing: all that was committed after it is lost, which only fsck may accept. */
static int journal_end_check(struct store *store, uint64_t sequence, struct store_failure *failure)
{
    int lost = MUTATED(JOURNAL_LOST) ? 0 : journal_lost(store, sequence);
    if (lost <= 0)
        return lost;
    struct store_damage damage = {.kind = STORE_DAMAGE_JOURNAL,
                                  .address = store->journal.start_byte / STORE_BLOCK_SIZE,
                                  .blocks = (uint32_t)(store->journal.size_bytes / STORE_BLOCK_SIZE)};
    store_note_damage(store, &damage);
    store->journal_damaged = true;
    if (store->accept_journal_loss)
        return 0;
    failure_set(failure, "group %llu of the journal is damaged, and with it all that was committed after it; "
                         "fsck.cowfs -y goes on without that, a read-only mount (-o ro) shows it",
                (unsigned long long)sequence);
    return -EIO;
}

int journal_replay(struct store *store, uint64_t position, uint64_t sequence, struct store_failure *failure)
{
    struct journal *journal = &store->journal;
    struct group_list groups = {0};
    int result = groups_read(store, position, sequence, &groups);
    uint64_t flushed = 0;
    for (size_t i = 0; i < groups.count; i++)
        if (groups.items[i].flushed_sequence > flushed)
            flushed = groups.items[i].flushed_sequence;
    journal->head = journal->tail = position;
    journal->sequence = sequence;
    store->replaying = true;
    for (size_t i = 0; i < groups.count && result == 0; i++) {
        const struct group *group = &groups.items[i];
        if ((group->sequence > flushed || MUTATED(GROUP_FLUSHED)) && !MUTATED(GROUP_DATA)) {
            result = group_data_verifies(store, group);
            if (result <= 0)
                break;
        }
        result = replay_group(store, group);
        journal->head = group->end;
        journal->sequence = group->sequence + 1;
        store->counters.replayed_groups++;
    }
    store->replaying = false;
    journal->flushed_sequence = journal->written_sequence = journal->sequence - 1;
    if (result < 0)
        failure_set(failure, "the journal cannot be replayed (group %llu); run fsck.cowfs",
                    (unsigned long long)journal->sequence);
    if (result == 0)
        result = journal_end_check(store, journal->sequence, failure);
    for (size_t i = 0; i < groups.count; i++)
        free(groups.items[i].bytes);
    free(groups.items);
    return result < 0 ? result : 0;
}
