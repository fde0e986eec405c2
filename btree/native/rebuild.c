/* Which blocks are in use, found out again by walking: for a pool whose bitmap pages are damaged, when it is opened,
 * and for fsck, with the dead buckets too. Both happen between reading the catalog and replaying the journal, so that
 * what follows finds what it expects; the checkpoint of the recovery writes it. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

struct rebuild {
    struct store *store;
    uint64_t *marks;
    uint64_t floor_epoch;
    struct snapshot *snapshot; /* whose bucket gets what is met for the first time; NULL: none */
    bool unreadable;
    int status;
};

/* Whether any of them was met for the first time. Of an extent these may be some blocks only, which then are all that a
 * bucket gets: the others are in something newer, which has a part of the same extent. */
static bool take(struct rebuild *rebuild, uint64_t address, uint32_t blocks, uint64_t birth)
{
    bool any = false;
    for (uint64_t end = address + blocks, next; address < end; address = next + 1) {
        for (next = address; next < end && !(rebuild->marks[next / 64] & UINT64_C(1) << (next % 64)); next++)
            rebuild->marks[next / 64] |= UINT64_C(1) << (next % 64);
        if (next == address)
            continue;
        any = true;
        allocator_commit(rebuild->store, address, (uint32_t)(next - address), false);
        if (rebuild->snapshot)
            bury(rebuild->store, rebuild->snapshot, address, birth, (uint32_t)(next - address));
    }
    return any;
}

static void take_extent(struct rebuild *rebuild, const struct page_item *item)
{
    struct store_extent extent;
    if (store_extent_decode(item->value, item->value_length, &extent) == 0 && extent.birth > rebuild->floor_epoch)
        take(rebuild, extent.address, extent.blocks, extent.birth);
}

/* Recursion is as deep as the tree is high: levels fall. */
static void walk(struct rebuild *rebuild, const struct tree_pointer *pointer, uint8_t level)
{
    struct store *store = rebuild->store;
    if (pointer->birth <= rebuild->floor_epoch || rebuild->status < 0 ||
        !take(rebuild, pointer->address[0], store->node_blocks, pointer->birth))
        return;
    if (pointer->address[1])
        take(rebuild, pointer->address[1], store->node_blocks, pointer->birth);
    uint8_t *page = malloc(store->node_size);
    int result = page ? cache_copy_page(store, pointer, level, page) : -ENOMEM;
    if (result == -ENOMEM)
        rebuild->status = result;
    else if (result < 0)
        rebuild->unreadable = true;
    for (uint16_t slot = 0; result == 0 && slot < page_count(page); slot++) {
        struct page_item item;
        struct tree_pointer child;
        page_get(page, slot, &item);
        if (level > 0) {
            pointer_load(item.value, &child);
            walk(rebuild, &child, (uint8_t)(level - 1));
        } else if (item.kind == STORE_VALUE_EXTENT) {
            take_extent(rebuild, &item);
        }
    }
    free(page);
}

static void walk_root(struct rebuild *rebuild, const struct tree_root *root)
{
    if (root->pointer.address[0])
        walk(rebuild, &root->pointer, root->level);
}

/* Newest first: what is in a snapshot and in nothing newer of its chain is in that snapshot's bucket. What is as old as
 * the chain's origin is the origin's chain's. */
static void walk_chain(struct rebuild *rebuild, struct chain *chain, bool buckets)
{
    rebuild->floor_epoch = chain->origin ? chain->origin->epoch : 0;
    walk_root(rebuild, &chain->head);
    for (struct snapshot *snapshot = chain->newest; snapshot; snapshot = snapshot->older) {
        rebuild->snapshot = buckets ? snapshot : NULL;
        walk_root(rebuild, &snapshot->root);
    }
    rebuild->snapshot = NULL;
    rebuild->floor_epoch = 0;
}

/* What only dead buckets name: those of deletions that are not worked off. */
static int take_buckets(struct rebuild *rebuild)
{
    struct store *store = rebuild->store;
    struct system_item item;
    struct stale_entries stale;
    item.key[0] = SYSTEM_DEAD;
    item.key_length = 1;
    int result = stale_entries_load(store, &stale);
    while (result == 0 && (result = system_seek(store, &item)) == 0 && item.key[0] == SYSTEM_DEAD) {
        uint64_t birth = load64_big(item.key + 9), address = load64_big(item.key + 17);
        if (item.key_length != 25 || item.value_length != 4 ||
            !allocator_in_zone(&store->allocator, address, load32(item.value))) {
            result = -EUCLEAN;
            break;
        }
        if (!stale_entries_have(&stale, load64_big(item.key + 1), birth))
            take(rebuild, address, load32(item.value), birth);
        item.key[item.key_length++] = 0;
    }
    stale_entries_free(&stale);
    return result == -ENOENT ? 0 : result;
}

static void forget_queue(struct store *store)
{
    while (store->queue_head) {
        struct queue_item *item = store->queue_head;
        store->queue_head = item->next;
        free(item);
    }
    store->queue_tail = NULL;
    store->queue_length = 0;
}

static int rebuild_everything(struct rebuild *rebuild, bool buckets)
{
    struct store *store = rebuild->store;
    int result = allocator_start_over(store);
    if (result < 0)
        return result;
    if (buckets) {
        forget_queue(store);
        store->bucket_blocks_total = 0;
        store->forget_buckets = true;
    }
    walk_root(rebuild, &store->system_chain.head);
    for (struct chain *chain = store->chains; chain; chain = chain->next) {
        for (struct snapshot *snapshot = chain->oldest; buckets && snapshot; snapshot = snapshot->newer)
            snapshot->bucket_blocks = 0;
        walk_chain(rebuild, chain, buckets);
    }
    if (buckets)
        return rebuild->status;
    for (const struct queue_item *item = store->queue_head; item; item = item->next)
        if (item->kind == QUEUE_WALK)
            walk_root(rebuild, &item->root);
    result = take_buckets(rebuild);
    return rebuild->status < 0 ? rebuild->status : result;
}

int space_rebuild(struct store *store, bool buckets, struct store_failure *failure)
{
    struct rebuild rebuild = {.store = store};
    rebuild.marks = calloc(store->size_blocks / 64 + 1, 8);
    if (!rebuild.marks)
        return -ENOMEM;
    store->replaying = true; /* what is in use is not claimed first */
    int result = rebuild_everything(&rebuild, buckets);
    store->replaying = false;
    free(rebuild.marks);
    if (result == 0 && rebuild.unreadable && !store->read_only && !buckets) {
        failure_set(failure, "the free-space bitmap is damaged, and so is a node that would tell what is in use; copy "
                             "what you need from a read-only mount (-o ro), then run fsck.cowfs -y");
        return -EUCLEAN;
    }
    store->catalog_dirty = true;
    return result;
}

int buckets_forget(struct store *store)
{
    static const enum system_key_type types[] = {SYSTEM_DEAD, SYSTEM_QUEUE, SYSTEM_BUCKET};
    int result = 0;
    for (size_t i = 0; store->forget_buckets && i < sizeof types / sizeof types[0]; i++) {
        struct system_item item;
        item.key[0] = (uint8_t)types[i];
        item.key_length = 1;
        while ((result = system_seek(store, &item)) == 0 && item.key[0] == (uint8_t)types[i]) {
            result = system_delete(store, item.key, item.key_length);
            if (result < 0)
                return result;
        }
        if (result < 0 && result != -ENOENT)
            return result;
    }
    store->forget_buckets = false;
    return 0;
}
