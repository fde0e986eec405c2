/* Proof by walking (invariant I6): every tree is read, and what it refers to is compared with the dead buckets and the
 * bitmap. Three statements are checked: each allocated block is referred to and each referred block is allocated;
 * a block in a snapshot is in a head or in a dead bucket; no block is in two buckets. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "internal.h"

struct check {
    struct store *store;
    store_report report;
    void *argument;
    bool read_data;
    int64_t problems;
    uint64_t *heads; /* blocks that heads refer to, and the system tree */
    uint64_t *all;   /* those, and what snapshots and queued trees refer to */
    uint64_t *owned_otherwise; /* dead buckets and queued trees */
    uint64_t *queued;          /* queued trees alone: a bucket still to be forgotten names parts of them too */
    uint64_t *pending;
    uint64_t *marks; /* which of the above the current walk fills */
    uint64_t stamp;
    uint64_t floor_epoch; /* what is not younger is passed over: a queued tree does not own it */
};

static void problem(struct check *check, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void problem(struct check *check, const char *format, ...)
{
    char message[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    check->problems++;
    if (check->report && check->problems <= 1000)
        check->report(check->argument, message);
}

static bool marked(const uint64_t *bits, uint64_t block)
{
    return (bits[block / 64] >> (block % 64)) & 1;
}

static void mark(uint64_t *bits, uint64_t address, uint64_t blocks)
{
    for (uint64_t block = address; block < address + blocks; block++)
        bits[block / 64] |= UINT64_C(1) << (block % 64);
}

static void check_extent(struct check *check, const struct page_item *item, uint64_t birth_max)
{
    struct store *store = check->store;
    struct store_extent extent;
    if (store_extent_decode(item->value, item->value_length, &extent) < 0 ||
        !allocator_in_zone(&store->allocator, extent.address, extent.blocks)) {
        problem(check, "an extent item points outside the pool");
        return;
    }
    if (extent.birth <= check->floor_epoch)
        return;
    if (extent.birth > birth_max)
        problem(check, "extent at block %llu was born after what holds it", (unsigned long long)extent.address);
    mark(check->marks, extent.address, extent.blocks);
    if (!check->read_data)
        return;
    size_t checked_bytes = (size_t)(extent.compression ? extent.blocks : 1) * STORE_BLOCK_SIZE;
    uint8_t *data = aligned_alloc(STORE_BLOCK_SIZE, (size_t)extent.blocks * STORE_BLOCK_SIZE);
    if (!data || store_data_read(store, extent.address, extent.blocks, data) < 0)
        problem(check, "data at block %llu cannot be read", (unsigned long long)extent.address);
    else
        for (uint32_t i = 0; i < extent.checksum_count; i++)
            if (store_checksum(data + (size_t)i * STORE_BLOCK_SIZE, checked_bytes) !=
                store_extent_checksum(item->value, i))
                problem(check, "data block %llu does not match its checksum", (unsigned long long)extent.address + i);
    free(data);
}

/* True when the node was met before in this walk or, for walks over snapshots, below a head. */
static bool seen(struct check *check, const struct tree_pointer *pointer)
{
    if (pointer_is_tagged(pointer)) {
        pthread_mutex_lock(&check->store->lock);
        struct node *node = tagged_node(pointer->address[0]);
        bool before = node->collected == check->stamp;
        node->collected = check->stamp;
        pthread_mutex_unlock(&check->store->lock);
        return before;
    }
    return marked(check->marks, pointer->address[0]);
}

static void check_copies(struct check *check, const struct tree_pointer *pointer)
{
    struct store *store = check->store;
    uint8_t *page = malloc(store->node_size);
    for (int copy = 0; page && copy < 2; copy++) {
        if (!pointer->address[copy])
            continue;
        if (storage_read(store, page, store->node_size, pointer->address[copy] * STORE_BLOCK_SIZE) < 0 ||
            store_checksum(page, store->node_size) != pointer->checksum)
            problem(check, "copy %d of the node at block %llu is damaged", copy + 1,
                    (unsigned long long)pointer->address[copy]);
    }
    free(page);
}

/* A child may be younger than its parent when other volumes' snapshots raised the epoch meanwhile, but nothing in a
 * snapshot is younger than that. */
static bool pointer_plausible(struct check *check, const struct tree_pointer *pointer, uint64_t birth_max)
{
    if (pointer->birth > birth_max) {
        problem(check, "a node was born after what holds it");
        return false;
    }
    if (pointer_is_tagged(pointer))
        return true;
    for (int copy = 0; copy < 2; copy++) {
        if ((copy == 0 || pointer->address[copy]) &&
            !allocator_in_zone(&check->store->allocator, pointer->address[copy], check->store->node_blocks)) {
            problem(check, "a node pointer leads outside the pool");
            return false;
        }
    }
    return true;
}

struct bounds {
    uint8_t low[STORE_KEY_LENGTH_MAX], high[STORE_KEY_LENGTH_MAX];
    uint16_t low_length, high_length;
    bool has_high;
};

static void check_bounds(struct check *check, const uint8_t *page, const struct bounds *bounds, uint64_t address)
{
    struct page_item first, last;
    page_get(page, 0, &first);
    page_get(page, (uint16_t)(page_count(page) - 1), &last);
    if (item_compare(&first, bounds->low, bounds->low_length) < 0 ||
        (bounds->has_high && item_compare(&last, bounds->high, bounds->high_length) >= 0))
        problem(check, "keys of the node at block %llu are outside its parent's bounds", (unsigned long long)address);
}

static void walk_node(struct check *check, const struct tree_pointer *pointer, uint8_t level, uint64_t birth_max,
                      const struct bounds *bounds)
{
    struct store *store = check->store;
    if (pointer->birth <= check->floor_epoch || !pointer_plausible(check, pointer, birth_max) || seen(check, pointer))
        return;
    if (!pointer_is_tagged(pointer)) {
        for (int copy = 0; copy < 2; copy++)
            if (pointer->address[copy])
                mark(check->marks, pointer->address[copy], store->node_blocks);
        check_copies(check, pointer);
    }
    uint8_t *page = malloc(store->node_size);
    struct bounds *below = malloc(sizeof *below);
    if (!page || !below || cache_copy_page(store, pointer, level, page) < 0) {
        problem(check, "the node at block %llu (level %u) cannot be read", (unsigned long long)pointer->address[0],
                level);
        goto done;
    }
    check_bounds(check, page, bounds, pointer->address[0]);
    for (uint16_t slot = 0; slot < page_count(page); slot++) {
        struct page_item item;
        page_get(page, slot, &item);
        if (level == 0) {
            if (item.kind == STORE_VALUE_EXTENT)
                check_extent(check, &item, birth_max);
            continue;
        }
        struct tree_pointer child;
        pointer_load(item.value, &child);
        *below = *bounds;
        below->low_length = page_copy_key(page, slot, below->low);
        if (slot + 1 < page_count(page)) {
            below->high_length = page_copy_key(page, (uint16_t)(slot + 1), below->high);
            below->has_high = true;
        }
        walk_node(check, &child, (uint8_t)(level - 1), birth_max, below);
    }
done:
    free(below);
    free(page);
}

static void walk_root(struct check *check, const struct tree_root *root, uint64_t birth_max)
{
    struct bounds bounds = {0};
    if (root->pointer.address[0])
        walk_node(check, &root->pointer, root->level, birth_max, &bounds);
}

static void own(struct check *check, uint64_t address, uint32_t blocks)
{
    if (!allocator_in_zone(&check->store->allocator, address, blocks)) {
        problem(check, "a dead bucket names blocks outside the pool");
        return;
    }
    for (uint64_t block = address; block < address + blocks; block++)
        if (marked(check->owned_otherwise, block))
            problem(check, "block %llu is in two dead buckets", (unsigned long long)block);
    mark(check->owned_otherwise, address, blocks);
}

static void gather_dead(struct check *check)
{
    struct store *store = check->store;
    struct system_item item;
    struct stale_entries stale;
    item.key[0] = SYSTEM_DEAD;
    item.key_length = 1;
    int result = stale_entries_load(store, &stale);
    if (result < 0)
        problem(check, "the deletion queue cannot be gone through: error %d", -result);
    while ((result = system_seek(store, &item)) == 0 && item.key[0] == SYSTEM_DEAD) {
        if (item.key_length != 25 || item.value_length != 4) {
            problem(check, "a dead bucket has a malformed entry");
            break;
        }
        if (!stale_entries_have(&stale, load64_big(item.key + 1), load64_big(item.key + 9)))
            own(check, load64_big(item.key + 17), load32(item.value));
        item.key[item.key_length++] = 0;
    }
    stale_entries_free(&stale);
    if (result < 0 && result != -ENOENT)
        problem(check, "the system tree cannot be read");
    for (const struct chain *chain = store->chains; chain; chain = chain->next)
        for (const struct snapshot *snapshot = chain->oldest; snapshot; snapshot = snapshot->newer)
            for (size_t i = 0; i < snapshot->dead.count; i++)
                if (!(snapshot->dead.items[i].address & POINTER_TAG))
                    own(check, snapshot->dead.items[i].address, snapshot->dead.items[i].blocks);
}

static void compare_block(struct check *check, uint64_t block, bool allocated)
{
    bool referred = marked(check->all, block) || marked(check->owned_otherwise, block);
    bool freed = marked(check->pending, block);
    if (referred && !allocated)
        problem(check, "block %llu is in use but marked free", (unsigned long long)block);
    if (referred && freed)
        problem(check, "block %llu is in use but about to be freed", (unsigned long long)block);
    if (!referred && allocated && !freed)
        problem(check, "block %llu is allocated but nothing refers to it", (unsigned long long)block);
    if (marked(check->all, block) && !marked(check->heads, block) && !marked(check->owned_otherwise, block))
        problem(check, "block %llu is in a snapshot but in no head and no dead bucket", (unsigned long long)block);
}

static void compare_space(struct check *check)
{
    const struct allocator *allocator = &check->store->allocator;
    uint64_t counted = 0;
    for (uint64_t index = 0; index < allocator->page_count; index++) {
        const struct bitmap_page *page = allocator->pages[index];
        uint64_t base = index * BITMAP_BLOCKS_PER_PAGE;
        for (uint64_t i = 0; i < BITMAP_BLOCKS_PER_PAGE && base + i < allocator->size_blocks; i++) {
            bool allocated = page && marked(page->committed, i);
            counted += allocated;
            if (allocated || marked(check->all, base + i) || marked(check->owned_otherwise, base + i))
                compare_block(check, base + i, allocated);
        }
    }
    if (counted != allocator->committed_count)
        problem(check, "%llu blocks are allocated but %llu are counted", (unsigned long long)counted,
                (unsigned long long)allocator->committed_count);
}

static void check_everything(struct check *check)
{
    struct store *store = check->store;
    size_t words = store->size_blocks / 64 + 1;
    check->marks = check->heads;
    check->stamp = UINT64_MAX - 1;
    walk_root(check, &store->system_chain.head, store->epoch);
    for (const struct chain *chain = store->chains; chain; chain = chain->next)
        walk_root(check, &chain->head, store->epoch);
    memcpy(check->all, check->heads, words * 8);
    check->marks = check->all;
    for (const struct chain *chain = store->chains; chain; chain = chain->next)
        for (const struct snapshot *snapshot = chain->oldest; snapshot; snapshot = snapshot->newer)
            walk_root(check, &snapshot->root, snapshot->epoch);
    gather_dead(check);
    /* queued trees own what no head or bucket does until the checkpoint that walks them */
    check->marks = check->queued;
    check->stamp = UINT64_MAX;
    for (const struct queue_item *item = store->queue_head; item; item = item->next) {
        check->floor_epoch = item->floor_epoch;
        if (item->kind == QUEUE_WALK)
            walk_root(check, &item->root, store->epoch);
    }
    for (size_t word = 0; word < words; word++)
        check->owned_otherwise[word] |= check->queued[word];
    for (size_t i = 0; i < store->pending_free.count; i++)
        mark(check->pending, store->pending_free.items[i].address, store->pending_free.items[i].blocks);
    compare_space(check);
    int64_t buckets = check_buckets(store, check->report, check->argument);
    if (buckets < 0)
        problem(check, "the dead buckets cannot be compared: error %lld", (long long)-buckets);
    else
        check->problems += buckets;
}

int64_t store_check(struct store *store, bool read_data, store_report report, void *argument)
{
    size_t words = store->size_blocks / 64 + 1;
    struct check check = {.store = store, .report = report, .argument = argument, .read_data = read_data};
    if (!store->read_only && store_checkpoint(store) < 0)
        return -EIO;
    pthread_mutex_lock(&store->checkpoint_mutex);
    check.heads = calloc(words, 8);
    check.all = calloc(words, 8);
    check.owned_otherwise = calloc(words, 8);
    check.queued = calloc(words, 8);
    check.pending = calloc(words, 8);
    if (store->journal_damaged)
        problem(&check, "the journal is damaged: what was committed last is lost");
    if (store->bitmap_damaged && store->read_only)
        problem(&check, "the free-space bitmap is damaged");
    if (check.heads && check.all && check.owned_otherwise && check.queued && check.pending)
        check_everything(&check);
    else
        check.problems = -ENOMEM;
    pthread_mutex_unlock(&store->checkpoint_mutex);
    free(check.heads);
    free(check.all);
    free(check.owned_otherwise);
    free(check.queued);
    free(check.pending);
    return check.problems;
}
