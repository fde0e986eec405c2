/* Whether each dead bucket holds what it has to: the blocks that its snapshot has and nothing newer of its chain. Both
 * sides are added up block by block, so that nothing has to be kept but two sums for each snapshot. Only for a pool
 * without unwritten nodes and without deletions still to be worked off. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "internal.h"

struct bucket_sums {
    uint64_t id, storage;
    uint64_t expected, found;
    uint64_t blocks_expected, blocks_found;
};

struct bucket_check {
    struct store *store;
    uint64_t *marks;
    uint64_t floor_epoch;
    struct bucket_sums *sums;
    size_t count;
    struct bucket_sums *current; /* NULL: blocks of the head */
    bool unreadable;
};

static uint64_t block_sum(uint64_t block, uint64_t birth)
{
    uint64_t words[2] = {block, birth};
    return store_checksum(words, sizeof words);
}

static int compare_ids(const void *a, const void *b)
{
    const struct bucket_sums *left = a, *right = b;
    return left->id < right->id ? -1 : left->id > right->id;
}

static int compare_storages(const void *a, const void *b)
{
    const struct bucket_sums *left = a, *right = b;
    return left->storage < right->storage ? -1 : left->storage > right->storage;
}

/* Whether any of them was met for the first time. */
static bool take(struct bucket_check *check, uint64_t address, uint32_t blocks, uint64_t birth)
{
    bool fresh = false;
    for (uint64_t block = address; block < address + blocks; block++) {
        uint64_t bit = UINT64_C(1) << (block % 64);
        if (check->marks[block / 64] & bit)
            continue;
        check->marks[block / 64] |= bit;
        fresh = true;
        if (check->current) {
            check->current->expected += block_sum(block, birth);
            check->current->blocks_expected++;
        }
    }
    return fresh;
}

static void walk(struct bucket_check *check, const struct tree_pointer *pointer, uint8_t level)
{
    struct store *store = check->store;
    if (pointer->birth <= check->floor_epoch || !pointer_in_zone(store, pointer) ||
        !take(check, pointer->address[0], store->node_blocks, pointer->birth))
        return;
    if (pointer->address[1])
        take(check, pointer->address[1], store->node_blocks, pointer->birth);
    uint8_t *page = malloc(store->node_size);
    if (!page || cache_copy_page(store, pointer, level, page) < 0) {
        check->unreadable = true;
        free(page);
        return;
    }
    for (uint16_t slot = 0; slot < page_count(page); slot++) {
        struct page_item item;
        struct tree_pointer child;
        struct store_extent extent;
        page_get(page, slot, &item);
        if (level > 0) {
            pointer_load(item.value, &child);
            walk(check, &child, (uint8_t)(level - 1));
            continue;
        }
        if (item.kind == STORE_VALUE_EXTENT && store_extent_decode(item.value, item.value_length, &extent) == 0 &&
            allocator_in_zone(&store->allocator, extent.address, extent.blocks) && extent.birth > check->floor_epoch)
            take(check, extent.address, extent.blocks, extent.birth);
    }
    free(page);
}

static void walk_root(struct bucket_check *check, const struct tree_root *root)
{
    if (root->pointer.address[0])
        walk(check, &root->pointer, root->level);
}

static struct bucket_sums *sums_of(const struct bucket_check *check, uint64_t id)
{
    struct bucket_sums key = {.id = id};
    return bsearch(&key, check->sums, check->count, sizeof key, compare_ids);
}

static void expect(struct bucket_check *check)
{
    for (const struct chain *chain = check->store->chains; chain; chain = chain->next) {
        check->floor_epoch = chain->origin ? chain->origin->epoch : 0;
        check->current = NULL;
        walk_root(check, &chain->head);
        for (const struct snapshot *snapshot = chain->newest; snapshot; snapshot = snapshot->older) {
            check->current = sums_of(check, snapshot->id);
            walk_root(check, &snapshot->root);
        }
    }
}

/* Where each bucket's entries lie. */
static int load_storages(struct bucket_check *check)
{
    struct system_item item;
    int result;
    item.key[0] = SYSTEM_BUCKET;
    item.key_length = 1;
    while ((result = system_seek(check->store, &item)) == 0 && item.key[0] == SYSTEM_BUCKET) {
        if (item.key_length != 9 || item.value_length != BUCKET_RECORD_LENGTH)
            return -EUCLEAN;
        struct bucket_sums *sums = sums_of(check, load64_big(item.key + 1));
        if (sums)
            sums->storage = load64(item.value + BUCKET_STORAGE);
        item.key[item.key_length++] = 0;
    }
    return result == -ENOENT ? 0 : result;
}

static int load_entries(struct bucket_check *check)
{
    struct system_item item;
    int result;
    item.key[0] = SYSTEM_DEAD;
    item.key_length = 1;
    while ((result = system_seek(check->store, &item)) == 0 && item.key[0] == SYSTEM_DEAD) {
        if (item.key_length != DEAD_KEY_LENGTH || item.value_length != 4)
            return -EUCLEAN;
        struct bucket_sums key = {.storage = load64_big(item.key + 1)};
        struct bucket_sums *sums = bsearch(&key, check->sums, check->count, sizeof key, compare_storages);
        uint64_t birth = load64_big(item.key + 9), address = load64_big(item.key + 17);
        uint32_t blocks = load32(item.value);
        for (uint32_t i = 0; sums && i < blocks && blocks < (1u << 20); i++)
            sums->found += block_sum(address + i, birth);
        if (sums)
            sums->blocks_found += blocks;
        item.key[item.key_length++] = 0;
    }
    return result == -ENOENT ? 0 : result;
}

static size_t number_buckets(struct bucket_check *check)
{
    size_t count = 0;
    for (const struct chain *chain = check->store->chains; chain; chain = chain->next)
        for (const struct snapshot *snapshot = chain->oldest; snapshot; snapshot = snapshot->newer) {
            if (check->sums)
                check->sums[count] = (struct bucket_sums){.id = snapshot->id, .storage = snapshot->id};
            count++;
        }
    return count;
}

int64_t check_buckets(struct store *store, store_report report, void *argument)
{
    struct bucket_check check = {.store = store};
    char message[160];
    int64_t problems = 0;
    if (store->dirty_count || store->queue_head || store->dead_pending_blocks)
        return 0;
    check.count = number_buckets(&check);
    check.sums = calloc(check.count + 1, sizeof *check.sums);
    check.marks = calloc(store->size_blocks / 64 + 1, 8);
    int result = check.sums && check.marks ? 0 : -ENOMEM;
    if (result == 0) {
        number_buckets(&check);
        qsort(check.sums, check.count, sizeof *check.sums, compare_ids);
        expect(&check);
        result = load_storages(&check);
    }
    if (result == 0) {
        qsort(check.sums, check.count, sizeof *check.sums, compare_storages);
        result = load_entries(&check);
    }
    for (size_t i = 0; result == 0 && !check.unreadable && i < check.count; i++) {
        const struct bucket_sums *sums = &check.sums[i];
        if (sums->expected == sums->found && sums->blocks_expected == sums->blocks_found)
            continue;
        problems++;
        snprintf(message, sizeof message,
                 "the dead bucket of snapshot %" PRIu64 " has %" PRIu64 " blocks, and not the %" PRIu64
                 " that it has to have",
                 sums->id, sums->blocks_found, sums->blocks_expected);
        if (report && problems <= 100)
            report(argument, message);
    }
    free(check.sums);
    free(check.marks);
    return result < 0 ? result : problems;
}
