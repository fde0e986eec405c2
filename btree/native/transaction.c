/* Transactions: a restartable body under the store lock gathers changes; they are made ready (every node in memory,
 * room in journal and pool), journaled and applied as one, or not at all. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

#define INLINE_CHANGES 24u
#define INLINE_ARENA_BYTES 3072u
#define APPLY_HOOKS_MAX 4u
#define PINS_MAX 4u

/* Beside STORE_AGAIN, what commit_changes() may ask its caller to do with the lock released. */
enum { NEED_CHECKPOINT = 2, NEED_SPACE = 3 };

struct transaction {
    struct store *store;
    struct chain *chain;          /* NULL for a snapshot */
    const struct tree_root *root;
    unsigned flags;
    struct miss miss;
    struct known_leaves known;
    struct change *changes;
    size_t change_count, change_capacity;
    uint8_t *arena;
    size_t arena_length, arena_capacity;
    struct {
        void (*function)(void *);
        void *argument;
    } hooks[APPLY_HOOKS_MAX];
    size_t hook_count;
    struct segment *pins[PINS_MAX];
    size_t pin_count;
    struct change inline_changes[INLINE_CHANGES];
    uint8_t inline_arena[INLINE_ARENA_BYTES];
};

static int change_add(struct transaction *transaction, const struct change *change, size_t bytes, uint8_t **at)
{
    if (transaction->flags & STORE_TRANSACT_READ)
        return -EROFS;
    if (transaction->change_count == CHANGES_MAX || transaction->arena_length + bytes > ARENA_BYTES_MAX)
        return -E2BIG;
    if (transaction->change_count == transaction->change_capacity) {
        size_t capacity = transaction->change_capacity * 4;
        struct change *grown = malloc(capacity * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        memcpy(grown, transaction->changes, transaction->change_count * sizeof *grown);
        if (transaction->changes != transaction->inline_changes)
            free(transaction->changes);
        transaction->changes = grown;
        transaction->change_capacity = capacity;
    }
    if (transaction->arena_length + bytes > transaction->arena_capacity) {
        size_t capacity = transaction->arena_capacity * 4;
        while (capacity < transaction->arena_length + bytes)
            capacity *= 2;
        uint8_t *grown = malloc(capacity);
        if (!grown)
            return -ENOMEM;
        memcpy(grown, transaction->arena, transaction->arena_length);
        if (transaction->arena != transaction->inline_arena)
            free(transaction->arena);
        transaction->arena = grown;
        transaction->arena_capacity = capacity;
    }
    struct change *added = &transaction->changes[transaction->change_count++];
    *added = *change;
    added->at = (uint32_t)transaction->arena_length;
    *at = transaction->arena + transaction->arena_length;
    transaction->arena_length += bytes;
    return 0;
}

int transaction_put(struct transaction *transaction, const void *key, size_t key_length, const void *value,
                    size_t value_length, enum store_value_kind kind, bool fresh)
{
    if (key_length == 0 || key_length > STORE_KEY_LENGTH_MAX)
        return -EINVAL;
    if (key_length + value_length > store_item_length_max(transaction->store))
        return -EMSGSIZE;
    struct store_extent extent;
    if (kind == STORE_VALUE_EXTENT &&
        (store_extent_decode(value, value_length, &extent) < 0 ||
         !allocator_in_zone(&transaction->store->allocator, extent.address, extent.blocks)))
        return -EINVAL;
    uint8_t *at;
    struct change change = {.type = CHANGE_PUT,
                            .flags = (uint16_t)((kind == STORE_VALUE_EXTENT ? CHANGE_FLAG_EXTENT : 0) |
                                                (fresh ? CHANGE_FLAG_FRESH : 0)),
                            .key_length = (uint16_t)key_length,
                            .value_length = (uint16_t)value_length};
    int result = change_add(transaction, &change, key_length + value_length, &at);
    if (result < 0)
        return result;
    memcpy(at, key, key_length);
    if (value_length)
        memcpy(at + key_length, value, value_length);
    return 0;
}

int transaction_delete(struct transaction *transaction, const void *key, size_t key_length)
{
    if (key_length == 0 || key_length > STORE_KEY_LENGTH_MAX)
        return -EINVAL;
    uint8_t *at;
    struct change change = {.type = CHANGE_DELETE, .key_length = (uint16_t)key_length};
    int result = change_add(transaction, &change, key_length, &at);
    if (result == 0)
        memcpy(at, key, key_length);
    return result;
}

int transaction_kill(struct transaction *transaction, uint64_t address, uint32_t blocks, uint64_t birth)
{
    if (blocks == 0 || !allocator_in_zone(&transaction->store->allocator, address, blocks))
        return -EINVAL;
    uint8_t *at;
    struct change change = {.type = CHANGE_KILL};
    int result = change_add(transaction, &change, 20, &at);
    if (result == 0) {
        save64(at, address);
        save64(at + 8, birth);
        save32(at + 16, blocks);
    }
    return result;
}

int transaction_on_apply(struct transaction *transaction, void (*function)(void *argument), void *argument)
{
    if (transaction->hook_count == APPLY_HOOKS_MAX)
        return -E2BIG;
    transaction->hooks[transaction->hook_count].function = function;
    transaction->hooks[transaction->hook_count++].argument = argument;
    return 0;
}

uint64_t transaction_epoch(const struct transaction *transaction)
{
    return transaction->store->epoch;
}

uint64_t transaction_generation(const struct transaction *transaction)
{
    return transaction->chain ? transaction->chain->volume->generation : 0;
}

int transaction_get(struct transaction *transaction, const void *key, size_t key_length, struct store_item *item)
{
    for (size_t i = transaction->change_count; i-- > 0;) {
        const struct change *change = &transaction->changes[i];
        const uint8_t *at = transaction->arena + change->at;
        if (change->type == CHANGE_KILL || change->key_length != key_length || memcmp(at, key, key_length) != 0)
            continue;
        if (change->type == CHANGE_DELETE)
            return -ENOENT;
        *item = (struct store_item){
            .key = at,
            .key_length = change->key_length,
            .value = at + key_length,
            .value_length = change->value_length,
            .kind = (change->flags & CHANGE_FLAG_EXTENT) ? STORE_VALUE_EXTENT : STORE_VALUE_PLAIN};
        return 0;
    }
    struct page_item found;
    int result = tree_get(transaction->store, transaction->root, &transaction->known, key, key_length, &found,
                          &transaction->miss);
    if (result)
        return result;
    *item = (struct store_item){.key = key,
                                .key_length = (uint16_t)key_length,
                                .value = found.value,
                                .value_length = found.value_length,
                                .kind = (enum store_value_kind)found.kind};
    return 0;
}

int cursor_seek(struct transaction *transaction, struct cursor *cursor, const void *key, size_t key_length)
{
    return tree_cursor_seek(transaction->store, transaction->root, &transaction->known, cursor, key, key_length,
                            &transaction->miss);
}

int cursor_seek_last(struct transaction *transaction, struct cursor *cursor, const void *key, size_t key_length)
{
    return tree_cursor_seek_last(transaction->store, transaction->root, &transaction->known, cursor, key, key_length,
                                 &transaction->miss);
}

int cursor_next(struct transaction *transaction, struct cursor *cursor)
{
    return tree_cursor_step(transaction->store, cursor, true, &transaction->miss);
}

int cursor_previous(struct transaction *transaction, struct cursor *cursor)
{
    return tree_cursor_step(transaction->store, cursor, false, &transaction->miss);
}

int transaction_birth(struct transaction *transaction, const void *start, size_t start_length, const void *stop,
                      size_t stop_length, uint64_t *birth)
{
    struct key_range range = {start, stop, start_length, stop_length};
    return tree_range_birth(transaction->store, transaction->root, &range, birth, &transaction->miss);
}

bool transaction_owns(const struct transaction *transaction, uint64_t birth)
{
    return transaction->chain && birth > chain_floor(transaction->chain);
}

uint8_t *transaction_data_in_place(struct transaction *transaction, uint64_t address, uint64_t birth)
{
    if (transaction->pin_count == PINS_MAX || !transaction_owns(transaction, birth))
        return NULL;
    struct segment *segment;
    uint8_t *memory = segment_pin(transaction->store, address, &segment);
    if (memory)
        transaction->pins[transaction->pin_count++] = segment;
    return memory;
}

int changes_prepare(struct store *store, struct chain *chain, struct known_leaves *known, const struct change *changes,
                    size_t count, const uint8_t *arena, struct miss *miss)
{
    for (size_t i = 0; i < count; i++) {
        if (changes[i].type == CHANGE_KILL)
            continue;
        int result = tree_prepare(store, &chain->head, known, arena + changes[i].at, changes[i].key_length, miss);
        if (result)
            return result;
    }
    return 0;
}

void changes_apply(struct store *store, struct chain *chain, struct change *changes, size_t count,
                   const uint8_t *arena)
{
    struct path path = {.valid = false};
    for (size_t i = 0; i < count; i++) {
        struct change *change = &changes[i];
        const uint8_t *at = arena + change->at;
        if (change->type == CHANGE_KILL) {
            kill_blocks(store, chain, load64(at), load32(at + 16), load64(at + 8));
        } else if (change->type == CHANGE_DELETE) {
            change->sparse = tree_delete(store, chain, &path, at, change->key_length);
        } else {
            const uint8_t *value = at + change->key_length;
            bool extent = change->flags & CHANGE_FLAG_EXTENT;
            if (extent && (change->flags & CHANGE_FLAG_FRESH))
                allocator_commit(store, load64(value + EXTENT_ADDRESS), load16(value + EXTENT_BLOCKS), false);
            tree_put(store, chain, &path, at, change->key_length, value, change->value_length,
                     extent ? STORE_VALUE_EXTENT : STORE_VALUE_PLAIN);
        }
    }
    for (size_t i = 0; i < count; i++)
        if (changes[i].type == CHANGE_DELETE && changes[i].sparse)
            tree_tidy(store, chain, arena + changes[i].at, changes[i].key_length);
    mark_chain_dirty(store, chain);
}

static size_t record_length(const struct transaction *transaction)
{
    return 12 + transaction->change_count * 6 + transaction->arena_length;
}

static void record_write(const struct transaction *transaction, uint64_t volume_id, uint8_t *to)
{
    save64(to, volume_id);
    save32(to + 8, (uint32_t)transaction->change_count);
    to += 12;
    for (size_t i = 0; i < transaction->change_count; i++) {
        const struct change *change = &transaction->changes[i];
        size_t bytes = change->type == CHANGE_KILL ? 20 : (size_t)change->key_length + change->value_length;
        to[0] = (uint8_t)change->type;
        to[1] = (uint8_t)change->flags;
        save16(to + 2, change->key_length);
        save16(to + 4, change->value_length);
        memcpy(to + 6, transaction->arena + change->at, bytes);
        to += 6 + bytes;
    }
}

/* Nodes that the changes may newly dirty. Large batches mostly share their leaves; what this estimate lacks, the
 * reserve covers until the next transaction sees the true demand. */
static uint64_t nodes_estimate(const struct transaction *transaction)
{
    size_t count = transaction->change_count <= 8 ? transaction->change_count : 8 + (transaction->change_count - 8) / 4;
    return (uint64_t)count * (transaction->root->level + 2u);
}

static int commit_changes(struct transaction *transaction)
{
    struct store *store = transaction->store;
    struct chain *chain = transaction->chain;
    /* Whoever was told of a failure must not see a change accepted that began before it. */
    if (!chain || !chain->live || store_has_failed(store))
        return -EROFS;
    int result = changes_prepare(store, chain, &transaction->known, transaction->changes, transaction->change_count,
                                 transaction->arena, &transaction->miss);
    if (result)
        return result;
    /* every change may copy a path, split each of its nodes, and each inner one once more to lower its first key; the
     * batch may make the tree two levels higher */
    size_t spares = transaction->change_count * (3u * chain->head.level + 12u);
    if (spares_fill(store, spares) < 0)
        return -ENOMEM;
    size_t bytes = record_length(transaction);
    if (!journal_has_room(store, bytes))
        return NEED_CHECKPOINT;
    uint64_t blocks = nodes_estimate(transaction) * store->node_blocks * store->copies;
    if (!allocator_room(store, blocks, (transaction->flags & STORE_TRANSACT_RESERVE) ? CLAIM_RESERVE : CLAIM_DATA, 0))
        return NEED_SPACE;
    uint8_t *record = journal_record(store, RECORD_TRANSACTION, bytes);
    if (!record)
        return -ENOMEM;
    record_write(transaction, chain->volume->id, record);
    for (size_t i = 0; i < transaction->hook_count; i++)
        transaction->hooks[i].function(transaction->hooks[i].argument);
    changes_apply(store, chain, transaction->changes, transaction->change_count, transaction->arena);
    spares_trim(store);
    store->counters.transactions++;
    return 0;
}

static void reset(struct transaction *transaction)
{
    for (size_t i = 0; i < transaction->pin_count; i++)
        segment_unpin(transaction->store, transaction->pins[i]);
    transaction->pin_count = 0;
    transaction->hook_count = 0;
    transaction->change_count = 0;
    transaction->arena_length = 0;
}

/* One run of the body and what follows from it, under the lock. */
static int attempt(struct transaction *transaction, uint64_t object_id, transaction_body body, void *argument)
{
    struct store *store = transaction->store;
    int result;
    request_lock(store);
    transaction->known.count = transaction->known.next = 0;
    transaction->root = object_root(store, object_id, &transaction->chain);
    if (!transaction->root) {
        result = -ENOENT;
    } else if (!(transaction->flags & STORE_TRANSACT_READ) && !transaction->chain) {
        result = -EROFS;
    } else {
        result = body(transaction, argument);
        if (result == 0 && (transaction->change_count || transaction->hook_count))
            result = commit_changes(transaction);
    }
    reset(transaction);
    pthread_mutex_unlock(&store->lock);
    return result;
}

int store_transact(struct store *store, uint64_t object_id, unsigned flags, transaction_body body, void *argument)
{
    struct transaction transaction;
    struct tree_pointer failed = {0};
    unsigned misses = 0;
    int result = 0;
    struct space_tries tries = {0};
    transaction.store = store;
    transaction.flags = flags;
    transaction.changes = transaction.inline_changes;
    transaction.change_capacity = INLINE_CHANGES;
    transaction.arena = transaction.inline_arena;
    transaction.arena_capacity = INLINE_ARENA_BYTES;
    transaction.change_count = transaction.arena_length = transaction.hook_count = transaction.pin_count = 0;
    if (!(flags & STORE_TRANSACT_READ))
        result = store_throttle(store);
    while (result == 0) {
        result = attempt(&transaction, object_id, body, argument);
        if (result == STORE_AGAIN) {
            if (++misses == CACHE_MISSES_BEFORE_HOLD)
                cache_hold(store, true);
            result = cache_load(store, &transaction.miss.pointer, transaction.miss.level, &failed);
        } else if (result == NEED_CHECKPOINT) {
            uint64_t began_ns = monotonic_ns();
            result = checkpoint_run(store, false);
            wait_note(store, STORE_WAIT_JOURNAL, began_ns);
        } else if (result == NEED_SPACE) {
            result = checkpoint_for_space(store, &tries);
        } else {
            break;
        }
    }
    if (misses >= CACHE_MISSES_BEFORE_HOLD)
        cache_hold(store, false);
    if (transaction.changes != transaction.inline_changes)
        free(transaction.changes);
    if (transaction.arena != transaction.inline_arena)
        free(transaction.arena);
    return result;
}
