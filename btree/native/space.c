/* What destroying snapshots would free, exactly, and what a snapshot alone holds.
 *
 * A block in the dead bucket of snapshot s is in a run of snapshots that ends with s and begins with the first that is
 * not older than the block's birth. So destroying a set frees of each bucket in it what was born after the last
 * predecessor that stays: sums over buckets, run by run, that need neither the trees nor the sizes of what remains.
 *
 * With checkpoint_mutex held the system tree stays as it is. What the deletion queue has not merged yet counts where it
 * will go. The newest snapshot of a chain without a live head owns its blocks through its tree: that is walked. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

struct merge {
    uint64_t bucket, target, floor_epoch;
};

/* One bucket to be summed. */
struct bucket_sum {
    uint64_t bucket, floor_epoch;
};

/* A tree that goes with its chain's newest snapshot. */
struct tree_sum {
    struct tree_root root;
    uint64_t floor_epoch;
};

struct space {
    struct store *store;
    struct merge *merges;
    size_t merge_count, merge_capacity;
    struct bucket_sum *buckets;
    size_t bucket_count, bucket_capacity;
    struct tree_sum *trees;
    size_t tree_count, tree_capacity;
    uint64_t *wanted; /* ascending ids */
    size_t wanted_count;
    const struct chain **vanishing; /* without a live head, and all their snapshots go */
    size_t vanishing_count, vanishing_capacity;
    uint64_t blocks;
};

static int id_compare(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return left < right ? -1 : left > right;
}

static bool is_wanted(const struct space *space, uint64_t id)
{
    return bsearch(&id, space->wanted, space->wanted_count, sizeof id, id_compare) != NULL;
}

/* Whether a snapshot goes when the set does: one that a chain begins at stays, hidden, until the chain goes. */
static bool goes(const struct space *space, const struct snapshot *snapshot)
{
    if (!snapshot->hidden && !is_wanted(space, snapshot->id))
        return false;
    uint32_t references = snapshot->chain_references;
    for (size_t i = 0; references && i < space->vanishing_count; i++)
        references -= space->vanishing[i]->origin == snapshot;
    return references == 0;
}

static bool vanishes(const struct space *space, const struct chain *chain)
{
    for (size_t i = 0; i < space->vanishing_count; i++)
        if (space->vanishing[i] == chain)
            return false; /* known already */
    for (const struct snapshot *snapshot = chain->newest; snapshot; snapshot = snapshot->older)
        if (!goes(space, snapshot))
            return false;
    return !chain->live;
}

/* A chain that vanishes releases its origin, by which another may. */
static int gather_vanishing(struct space *space)
{
    bool found = true;
    while (found) {
        found = false;
        for (const struct chain *chain = space->store->chains; chain; chain = chain->next) {
            if (chain->live || !vanishes(space, chain))
                continue;
            if (array_reserve((void **)&space->vanishing, &space->vanishing_capacity, space->vanishing_count + 1,
                              sizeof *space->vanishing) < 0)
                return -ENOMEM;
            space->vanishing[space->vanishing_count++] = chain;
            found = true;
        }
    }
    return 0;
}

static int merge_compare(const void *a, const void *b)
{
    const struct merge *left = a, *right = b;
    return left->target < right->target ? -1 : left->target > right->target;
}

static int gather_merges(struct space *space)
{
    for (const struct queue_item *item = space->store->queue_head; item; item = item->next) {
        if (item->kind != QUEUE_MERGE || item->target == 0)
            continue;
        if (array_reserve((void **)&space->merges, &space->merge_capacity, space->merge_count + 1,
                          sizeof *space->merges) < 0)
            return -ENOMEM;
        space->merges[space->merge_count++] = (struct merge){item->bucket, item->target, item->floor_epoch};
    }
    return 0;
}

static uint64_t predecessor_epoch(const struct snapshot *snapshot)
{
    return snapshot->older ? snapshot->older->epoch : snapshot->chain->origin ? snapshot->chain->origin->epoch : 0;
}

/* The last predecessor that stays, when `snapshot` and maybe some before it go. */
static uint64_t floor_of_run(const struct space *space, const struct snapshot *snapshot)
{
    while (snapshot->older && goes(space, snapshot->older))
        snapshot = snapshot->older;
    return predecessor_epoch(snapshot);
}

/* Under the store lock: one snapshot of the set, whose run begins after `floor_epoch`. */
static int gather_snapshot(struct space *space, const struct snapshot *snapshot, uint64_t floor_epoch)
{
    if (!snapshot->chain->live && snapshot->chain->newest == snapshot) {
        if (pointer_is_tagged(&snapshot->root.pointer))
            return -EAGAIN;
        if (array_reserve((void **)&space->trees, &space->tree_capacity, space->tree_count + 1,
                          sizeof *space->trees) < 0)
            return -ENOMEM;
        space->trees[space->tree_count++] = (struct tree_sum){snapshot->root, floor_epoch};
        return 0;
    }
    if (array_reserve((void **)&space->buckets, &space->bucket_capacity, space->bucket_count + 1,
                      sizeof *space->buckets) < 0)
        return -ENOMEM;
    for (size_t i = 0; i < snapshot->dead.count; i++) {
        const struct dead_entry *entry = &snapshot->dead.items[i];
        if (entry->birth > floor_epoch)
            space->blocks += entry->blocks;
    }
    space->buckets[space->bucket_count++] = (struct bucket_sum){snapshot->id, floor_epoch};
    return 0;
}

/* Under the store lock. Ids ascend, and so do snapshots in a chain: the floor of a run is found once. */
static int gather(struct space *space)
{
    struct store *store = space->store;
    const struct snapshot *last = NULL;
    uint64_t floor_epoch = 0;
    int result = gather_vanishing(space);
    for (size_t i = 0; i < space->wanted_count && result == 0; i++) {
        const struct snapshot *snapshot = snapshot_by_id(store, space->wanted[i]);
        if (!snapshot || snapshot->hidden) {
            result = -ENOENT;
        } else if (goes(space, snapshot)) {
            if (!last || snapshot->older != last)
                floor_epoch = floor_of_run(space, snapshot);
            last = snapshot;
            result = gather_snapshot(space, snapshot, floor_epoch);
        }
    }
    /* hidden ones that were kept by chains which vanish */
    for (size_t i = 0; i < space->vanishing_count && result == 0; i++) {
        const struct snapshot *origin = space->vanishing[i]->origin;
        bool counted = !origin || !origin->hidden || !goes(space, origin);
        for (size_t j = 0; j < i && !counted; j++)
            counted = space->vanishing[j]->origin == origin;
        if (!counted)
            result = gather_snapshot(space, origin, floor_of_run(space, origin));
    }
    return result;
}

static size_t first_merge(const struct space *space, uint64_t target)
{
    size_t low = 0, high = space->merge_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (space->merges[middle].target < target)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Entries of a bucket with a birth above `floor_epoch` and up to `birth_max`. */
static int sum_bucket(struct space *space, uint64_t id, uint64_t floor_epoch, uint64_t birth_max)
{
    struct store *store = space->store;
    struct system_item item;
    uint64_t storage = id;
    if (floor_epoch >= birth_max)
        return 0;
    item.key_length = (uint16_t)system_key(item.key, SYSTEM_BUCKET, id);
    int result = system_seek(store, &item);
    if (result < 0 && result != -ENOENT)
        return result;
    bool present = result == 0 && item.key_length == 9 && item.key[0] == SYSTEM_BUCKET &&
                   load64_big(item.key + 1) == id && item.value_length == BUCKET_RECORD_LENGTH;
    if (present) {
        storage = load64(item.value + BUCKET_STORAGE);
        dead_key(item.key, storage, floor_epoch + 1, 0);
        item.key_length = DEAD_KEY_LENGTH;
        while ((result = system_seek(store, &item)) == 0 && item.key[0] == SYSTEM_DEAD &&
               item.key_length == DEAD_KEY_LENGTH && load64_big(item.key + 1) == storage &&
               load64_big(item.key + 9) <= birth_max) {
            if (item.value_length != 4)
                return -EUCLEAN;
            space->blocks += load32(item.value);
            item.key[item.key_length++] = 0; /* the least key after it */
        }
        if (result < 0 && result != -ENOENT)
            return result;
    }
    result = 0;
    for (size_t i = first_merge(space, id); i < space->merge_count && result == 0; i++) {
        const struct merge *merge = &space->merges[i];
        if (merge->target != id)
            break;
        result = sum_bucket(space, merge->bucket, floor_epoch,
                            merge->floor_epoch < birth_max ? merge->floor_epoch : birth_max);
    }
    return result;
}

static int sum_tree(struct space *space, const struct tree_pointer *pointer, uint8_t level, uint64_t floor_epoch)
{
    struct store *store = space->store;
    if (pointer->address[0] == 0 || pointer->birth <= floor_epoch)
        return 0;
    uint8_t *page = malloc(store->node_size);
    int result = page ? cache_copy_page(store, pointer, level, page) : -ENOMEM;
    for (uint16_t slot = 0; result == 0 && slot < page_count(page); slot++) {
        struct page_item item;
        page_get(page, slot, &item);
        if (level > 0) {
            struct tree_pointer child;
            pointer_load(item.value, &child);
            result = sum_tree(space, &child, (uint8_t)(level - 1), floor_epoch);
        } else if (item.kind == STORE_VALUE_EXTENT) {
            struct store_extent extent;
            result = store_extent_decode(item.value, item.value_length, &extent);
            if (result == 0 && extent.birth > floor_epoch)
                space->blocks += extent.blocks;
        }
    }
    space->blocks += (uint64_t)store->node_blocks * (pointer->address[1] ? 2u : 1u);
    free(page);
    return result;
}

static void forget(struct space *space)
{
    space->bucket_count = space->tree_count = space->vanishing_count = 0;
    space->blocks = 0;
}

/* With checkpoint_mutex held: what the set `wanted` would free. -EAGAIN: one of its trees is not written yet. */
static int sum(struct space *space)
{
    struct hold hold;
    forget(space);
    hold_lock(space->store, &hold, STORE_HOLD_SUM);
    int result = gather(space);
    hold_unlock(space->store, &hold, space->wanted_count);
    for (size_t i = 0; i < space->bucket_count && result == 0; i++)
        result = sum_bucket(space, space->buckets[i].bucket, space->buckets[i].floor_epoch, UINT64_MAX);
    for (size_t i = 0; i < space->tree_count && result == 0; i++) {
        const struct tree_sum *tree = &space->trees[i];
        result = sum_tree(space, &tree->root.pointer, tree->root.level, tree->floor_epoch);
    }
    return result;
}

static int sum_begin(struct space *space)
{
    pthread_mutex_lock(&space->store->checkpoint_mutex);
    struct hold hold;
    hold_lock(space->store, &hold, STORE_HOLD_SUM);
    int result = gather_merges(space);
    hold_unlock(space->store, &hold, space->merge_count);
    if (result == 0 && space->merge_count)
        qsort(space->merges, space->merge_count, sizeof *space->merges, merge_compare);
    return result;
}

static void sum_end(struct space *space)
{
    pthread_mutex_unlock(&space->store->checkpoint_mutex);
    free(space->merges);
    free(space->buckets);
    free(space->trees);
    free(space->vanishing);
    space->merges = NULL;
    space->buckets = NULL;
    space->trees = NULL;
    space->vanishing = NULL;
    space->merge_count = space->merge_capacity = space->bucket_capacity = space->tree_capacity = 0;
    space->vanishing_capacity = 0;
}

#define UNWRITTEN_TRIES 16

int store_snapshots_space(struct store *store, const uint64_t *snapshot_ids, size_t count, uint64_t *blocks)
{
    struct space space = {.store = store, .wanted_count = count, .wanted = malloc(count * sizeof *space.wanted + 1)};
    int result = -EAGAIN;
    if (!space.wanted)
        return -ENOMEM;
    if (count) {
        memcpy(space.wanted, snapshot_ids, count * sizeof *space.wanted);
        qsort(space.wanted, count, sizeof *space.wanted, id_compare);
    }
    for (int attempt = 0; attempt < UNWRITTEN_TRIES && result == -EAGAIN; attempt++) {
        /* Unwritten nodes have no size yet. */
        result = store->read_only ? 0 : store_checkpoint(store);
        if (result < 0)
            break;
        result = sum_begin(&space);
        if (result == 0)
            result = sum(&space);
        sum_end(&space);
    }
    *blocks = space.blocks;
    free(space.wanted);
    return result;
}

int store_snapshots_unique(struct store *store, const uint64_t *snapshot_ids, size_t count, uint64_t *blocks)
{
    uint64_t wanted = 0;
    struct space space = {.store = store, .wanted = &wanted, .wanted_count = 1};
    int result = sum_begin(&space);
    for (size_t i = 0; i < count && result == 0; i++) {
        wanted = snapshot_ids[i];
        result = sum(&space);
        blocks[i] = space.blocks;
        if (result == -ENOENT || result == -EAGAIN) {
            blocks[i] = UINT64_MAX;
            result = 0;
        }
    }
    sum_end(&space);
    return result;
}

/* ---- what a snapshot brought ----------------------------------------------------------------------------------- */

struct written {
    uint64_t floor_epoch, blocks, items_left;
};

static int add_written(void *argument, const struct store_item *old_item, const struct store_item *new_item)
{
    struct written *written = argument;
    struct store_extent extent;
    (void)old_item;
    if (written->items_left-- == 0)
        return -E2BIG;
    if (new_item && new_item->kind == STORE_VALUE_EXTENT &&
        store_extent_decode(new_item->value, new_item->value_length, &extent) == 0 &&
        extent.birth > written->floor_epoch)
        written->blocks += extent.blocks;
    return 0;
}

int store_snapshot_written(struct store *store, uint64_t snapshot_id, uint64_t items_max, uint64_t *blocks)
{
    struct written written = {.items_left = items_max};
    uint64_t previous_id = 0;
    pthread_mutex_lock(&store->lock);
    const struct snapshot *snapshot = snapshot_by_id(store, snapshot_id);
    int result = snapshot && !snapshot->hidden ? 0 : -ENOENT;
    if (result == 0) {
        const struct snapshot *previous = snapshot->older ? snapshot->older : snapshot->chain->origin;
        while (previous && previous->hidden)
            previous = previous->older ? previous->older : previous->chain->origin;
        if (previous) {
            previous_id = previous->id;
            written.floor_epoch = previous->epoch;
        }
    }
    pthread_mutex_unlock(&store->lock);
    if (result == 0)
        result = store_diff(store, previous_id, snapshot_id, NULL, 0, add_written, &written);
    *blocks = written.blocks;
    return result;
}
