/* What deletions leave to do, done inside a checkpoint: dead buckets in the system tree are filled, merged, forgotten,
 * and trees that nothing names any more are walked. Costs follow what is freed, not what exists: of two buckets the
 * smaller one moves, so an entry moves O(log n) times in all. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

/* What is left of an item when a checkpoint has done its share waits for the next one. The share ends when the system
 * tree has so much unwritten, or after queue_steps_max steps (an entry swept, a node read, of a leaf 21): 24 MiB and
 * 131,072 with the default limit of dirty bytes. That is about half a second of work beside the foreground. */
#define QUEUE_DIRTY_DIVISOR 2u
#define QUEUE_UNFINISHED 1

static uint64_t system_dirty_count(struct store *store)
{
    pthread_mutex_lock(&store->lock);
    uint64_t count = store->system_dirty_count;
    pthread_mutex_unlock(&store->lock);
    return count;
}

static bool share_is_done(struct store *store)
{
    const struct checkpoint *checkpoint = &store->checkpoint;
    if (checkpoint->queue_steps >= store->queue_steps_max)
        return true;
    return system_dirty_count(store) * store->node_size >=
           checkpoint->queue_first_dirty * store->node_size + store->dirty_bytes_max / QUEUE_DIRTY_DIVISOR;
}

/* Whether there is hardly more room than the unwritten nodes take. The next checkpoint finds what this one frees. */
static bool space_is_short(struct store *store)
{
    return allocator_spare_blocks(store) < (uint64_t)QUEUE_STEP_NODES * store->node_blocks * store->copies;
}

struct bucket {
    uint64_t id, storage, entries, blocks;
};

static int bucket_load(struct store *store, uint64_t id, struct bucket *bucket)
{
    struct system_item item;
    uint8_t key[9];
    size_t key_length = system_key(key, SYSTEM_BUCKET, id);
    memcpy(item.key, key, key_length);
    item.key_length = (uint16_t)key_length;
    *bucket = (struct bucket){.id = id, .storage = id};
    int result = system_seek(store, &item);
    if (result == -ENOENT || (result == 0 && (item.key_length != key_length || memcmp(item.key, key, key_length))))
        return 0;
    if (result < 0)
        return result;
    if (item.value_length != BUCKET_RECORD_LENGTH)
        return -EUCLEAN;
    bucket->storage = load64(item.value + BUCKET_STORAGE);
    bucket->entries = load64(item.value + BUCKET_ENTRIES);
    bucket->blocks = load64(item.value + BUCKET_BLOCKS);
    return 0;
}

static int bucket_save(struct store *store, const struct bucket *bucket)
{
    uint8_t key[9], value[BUCKET_RECORD_LENGTH];
    size_t key_length = system_key(key, SYSTEM_BUCKET, bucket->id);
    pthread_mutex_lock(&store->lock);
    struct snapshot *snapshot = snapshot_by_id(store, bucket->id);
    if (snapshot)
        snapshot->bucket_blocks = bucket->blocks;
    pthread_mutex_unlock(&store->lock);
    if (bucket->entries == 0)
        return system_delete(store, key, key_length);
    save64(value + BUCKET_STORAGE, bucket->storage);
    save64(value + BUCKET_ENTRIES, bucket->entries);
    save64(value + BUCKET_BLOCKS, bucket->blocks);
    return system_put(store, key, key_length, value, sizeof value);
}

void dead_key(uint8_t *key, uint64_t storage, uint64_t birth, uint64_t address)
{
    key[0] = SYSTEM_DEAD;
    save64_big(key + 1, storage);
    save64_big(key + 9, birth);
    save64_big(key + 17, address);
}

static int dead_put(struct store *store, uint64_t storage, uint64_t birth, uint64_t address, uint32_t blocks)
{
    uint8_t key[DEAD_KEY_LENGTH], value[4];
    dead_key(key, storage, birth, address);
    save32(value, blocks);
    return system_put(store, key, sizeof key, value, sizeof value);
}

static void dead_total(struct store *store, uint64_t added, uint64_t removed)
{
    pthread_mutex_lock(&store->lock);
    store->bucket_blocks_total += added;
    store->bucket_blocks_total -= removed;
    pthread_mutex_unlock(&store->lock);
}

int queue_spill(struct store *store, const struct spilled_bucket *spill)
{
    struct bucket bucket;
    int result = bucket_load(store, spill->bucket, &bucket);
    uint64_t before = bucket.blocks, counted = 0;
    for (size_t i = 0; i < spill->dead.count && result == 0; i++) {
        const struct dead_entry *entry = &spill->dead.items[i];
        uint64_t addresses[2] = {entry->address, 0};
        uint32_t blocks = entry->blocks;
        counted += blocks;
        if (entry->address & POINTER_TAG) {
            const struct node *node = tagged_node(entry->address);
            memcpy(addresses, node->pointer.address, sizeof addresses);
            blocks = store->node_blocks;
        }
        for (int copy = 0; copy < 2 && result == 0; copy++) {
            if (!addresses[copy])
                continue;
            result = dead_put(store, bucket.storage, entry->birth, addresses[copy], blocks);
            bucket.entries++;
            bucket.blocks += blocks;
        }
    }
    if (result == 0)
        result = bucket_save(store, &bucket);
    dead_total(store, bucket.blocks - before, 0);
    pthread_mutex_lock(&store->lock);
    store->dead_pending_blocks -= counted;
    pthread_mutex_unlock(&store->lock);
    return result;
}

/* What to do with each entry of a bucket's storage whose birth is at least `from_birth`. */
enum dead_action { DEAD_FREE, DEAD_FORGET, DEAD_MOVE };
#define SWEEPS_PER_LOOK 64u

/* QUEUE_UNFINISHED when the checkpoint's share is done, or the room used up, before; both buckets then say what is
 * where. */
static int dead_sweep(struct store *store, struct bucket *bucket, uint64_t from_birth, enum dead_action action,
                      struct bucket *into)
{
    struct system_item item;
    for (unsigned swept = 0;; swept++, store->checkpoint.queue_steps++) {
        if ((swept % SWEEPS_PER_LOOK == SWEEPS_PER_LOOK - 1 && share_is_done(store)) ||
            (swept > 0 && space_is_short(store)))
            return QUEUE_UNFINISHED;
        dead_key(item.key, bucket->storage, from_birth, 0);
        item.key_length = DEAD_KEY_LENGTH;
        int result = system_seek(store, &item);
        if (result == -ENOENT)
            return 0;
        if (result < 0)
            return result;
        if (item.key[0] != SYSTEM_DEAD || load64_big(item.key + 1) != bucket->storage)
            return 0;
        if (item.key_length != DEAD_KEY_LENGTH || item.value_length != 4)
            return -EUCLEAN;
        uint64_t birth = load64_big(item.key + 9), address = load64_big(item.key + 17);
        uint32_t blocks = load32(item.value);
        if (!allocator_in_zone(&store->allocator, address, blocks))
            return -EUCLEAN;
        result = system_delete(store, item.key, item.key_length);
        if (result == 0 && action == DEAD_FREE)
            result = free_by_checkpoint(store, address, blocks);
        if (result == 0 && action == DEAD_MOVE) {
            result = dead_put(store, into->storage, birth, address, blocks);
            into->entries++;
            into->blocks += blocks;
        } else {
            dead_total(store, 0, blocks);
        }
        if (result < 0)
            return result;
        bucket->entries--;
        bucket->blocks -= blocks;
    }
}

/* What an item's work comes to after its bucket was saved too. */
static int saved_result(int result, int saved)
{
    return result < 0 || saved == 0 ? result : saved;
}

static int queue_merge(struct store *store, const struct queue_item *item)
{
    struct bucket bucket, target;
    int result = bucket_load(store, item->bucket, &bucket);
    if (result < 0 || bucket.entries == 0)
        return result;
    result = dead_sweep(store, &bucket, MUTATED(DELETION_FLOOR) ? 0 : item->floor_epoch + 1, DEAD_FREE, NULL);
    if (result == 0 && item->target == 0)
        result = dead_sweep(store, &bucket, 0, DEAD_FORGET, NULL);
    if (result == 0 && bucket.entries) {
        result = bucket_load(store, item->target, &target);
        /* The smaller one moves. What is in the target is not younger than `floor_epoch`, so nothing of it is freed
         * when the item is taken up again after some of it has moved. */
        bool swapped = result == 0 && bucket.entries > target.entries;
        if (swapped)
            result = dead_sweep(store, &target, 0, DEAD_MOVE, &bucket);
        else if (result == 0)
            result = dead_sweep(store, &bucket, 0, DEAD_MOVE, &target);
        if (result == 0 && swapped) {
            target = (struct bucket){item->target, bucket.storage, bucket.entries, bucket.blocks};
            bucket.entries = bucket.blocks = 0;
        }
        if (result >= 0)
            result = saved_result(result, bucket_save(store, &target));
    }
    return saved_result(result, bucket_save(store, &bucket));
}

static int queue_drop(struct store *store, const struct queue_item *item)
{
    struct bucket bucket;
    int result = bucket_load(store, item->bucket, &bucket);
    if (result == 0 && bucket.entries)
        result = dead_sweep(store, &bucket, 0, DEAD_FORGET, NULL);
    return saved_result(result, bucket_save(store, &bucket));
}

/* What a leaf counts for: about as many extents. */
#define WALK_LEAF_STEPS 20u

/* A subtree that this checkpoint does not get to becomes an item of its own, next in turn. */
static int walk_later(struct store *store, const struct tree_pointer *pointer, uint8_t level, uint64_t floor_epoch)
{
    struct checkpoint *checkpoint = &store->checkpoint;
    struct queue_item *item = calloc(1, sizeof *item), *current = checkpoint->queue;
    if (!item)
        return -ENOMEM;
    item->kind = QUEUE_WALK;
    item->root = (struct tree_root){.pointer = *pointer, .level = level};
    item->floor_epoch = floor_epoch;
    item->next = current->next;
    current->next = item;
    pthread_mutex_lock(&store->lock);
    item->id = store->next_queue_id++;
    store->queue_length++;
    pthread_mutex_unlock(&store->lock);
    checkpoint->next_queue_id = MUTATED(QUEUE_IDS) ? checkpoint->next_queue_id : item->id + 1;
    return 0;
}

/* Frees what was born after `floor_epoch` below and at a node. An older node cannot hold younger ones. `left` is how
 * many blocks can be freed in all: a forged tree may lead to a node in more ways than there are blocks. */
static int walk(struct store *store, const struct tree_pointer *pointer, uint8_t level, uint64_t floor_epoch,
                uint64_t *left)
{
    if (pointer->birth <= floor_epoch)
        return 0;
    if (*left < store->node_blocks)
        return -EUCLEAN;
    *left -= store->node_blocks;
    uint8_t *page = malloc(store->node_size);
    store->checkpoint.queue_steps += 1u + (level == 0 ? WALK_LEAF_STEPS : 0u);
    int result = page ? cache_copy_page(store, pointer, level, page) : -ENOMEM;
    for (uint16_t slot = 0; result == 0 && slot < page_count(page); slot++) {
        struct page_item item;
        page_get(page, slot, &item);
        if (level > 0) {
            struct tree_pointer child;
            pointer_load(item.value, &child);
            if (child.birth <= floor_epoch)
                continue;
            result = share_is_done(store) ? walk_later(store, &child, (uint8_t)(level - 1), floor_epoch)
                                          : walk(store, &child, (uint8_t)(level - 1), floor_epoch, left);
        } else if (item.kind == STORE_VALUE_EXTENT) {
            struct store_extent extent;
            result = store_extent_decode(item.value, item.value_length, &extent);
            if (result == 0 && extent.birth > floor_epoch) {
                result = *left < extent.blocks ? -EUCLEAN : free_by_checkpoint(store, extent.address, extent.blocks);
                *left -= result == 0 ? extent.blocks : 0;
            }
        }
    }
    for (int copy = 0; copy < 2 && result == 0; copy++)
        if (pointer->address[copy])
            result = free_by_checkpoint(store, pointer->address[copy], store->node_blocks);
    free(page);
    return result;
}

static int queue_save(struct store *store, struct queue_item *item)
{
    uint8_t key[9], value[QUEUE_RECORD_LENGTH] = {0};
    if (item->saved || MUTATED(QUEUE_SAVED))
        return 0;
    value[QUEUE_KIND] = (uint8_t)item->kind;
    save64(value + QUEUE_BUCKET, item->bucket);
    save64(value + QUEUE_TARGET, item->target);
    save64(value + QUEUE_FLOOR, item->floor_epoch);
    root_save(value + QUEUE_ROOT, &item->root);
    item->saved = true;
    return system_put(store, key, system_key(key, SYSTEM_QUEUE, item->id), value, sizeof value);
}

static int queue_do(struct store *store, struct queue_item *item)
{
    if (item->kind == QUEUE_MERGE)
        return queue_merge(store, item);
    if (item->kind == QUEUE_DROP)
        return queue_drop(store, item);
    uint64_t left = store->size_blocks;
    return walk(store, &item->root.pointer, item->root.level, item->floor_epoch, &left);
}

int queue_work(struct store *store)
{
    struct checkpoint *checkpoint = &store->checkpoint;
    checkpoint->queue_steps = 0;
    checkpoint->queue_first_dirty = system_dirty_count(store);
    for (bool first = true; checkpoint->queue && !share_is_done(store); first = false) {
        if (!first && space_is_short(store))
            break;
        struct queue_item *item = checkpoint->queue;
        int result = queue_do(store, item);
        uint8_t key[9];
        if (result == QUEUE_UNFINISHED)
            break;
        if (result == 0 && item->saved && !MUTATED(QUEUE_DONE))
            result = system_delete(store, key, system_key(key, SYSTEM_QUEUE, item->id));
        if (result < 0)
            return result;
        checkpoint->queue = item->next;
        free(item);
        pthread_mutex_lock(&store->lock);
        store->queue_length--;
        pthread_mutex_unlock(&store->lock);
    }
    int result = 0;
    for (struct queue_item *item = checkpoint->queue; item && result == 0; item = item->next)
        result = queue_save(store, item);
    return result;
}
