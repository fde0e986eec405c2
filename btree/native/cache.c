/* Nodes in memory: the bounded cache of clean ones, found by address and dropped by a clock hand, and the lists of
 * unwritten ones. Everything under the store lock, except the reading itself. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

/* What trees may be several levels of nodes away from: never trim below this many, or descents could starve. */
#define CACHE_NODES_MIN 64u
/* The clock hand's steps in one holding of the lock: a round over a cache of gigabytes takes longer than requests may
 * wait. Each node read in makes as many again. */
#define TRIM_STEPS_MAX 1024u
/* Spares kept after a large transaction. */
#define SPARES_MAX 512u

static size_t hash_slot(const struct store *store, uint64_t address)
{
    return (size_t)((address * UINT64_C(0x9e3779b97f4a7c15)) >> 20) & (store->hash_size - 1);
}

int cache_create(struct store *store)
{
    size_t nodes = store->cache_bytes_max / store->node_size;
    store->hash_size = HASH_BUCKETS_MIN;
    while (store->hash_size < nodes * 2)
        store->hash_size *= 2;
    store->hash = calloc(store->hash_size, sizeof *store->hash);
    store->scratch_page = malloc(store->node_size);
    store->scratch_items = malloc((store->node_size / SLOT_LENGTH + 2) * sizeof *store->scratch_items);
    return store->hash && store->scratch_page && store->scratch_items ? 0 : -ENOMEM;
}

static void list_destroy(struct node_list *list)
{
    for (struct node *node = list->head, *next; node; node = next) {
        next = node->next;
        free(node);
    }
    *list = (struct node_list){0};
}

void cache_destroy(struct store *store)
{
    list_destroy(&store->clock);
    list_destroy(&store->dirty_leaves);
    list_destroy(&store->dirty_inner);
    while (store->spare) {
        struct node *node = store->spare;
        store->spare = node->next;
        free(node);
    }
    free(store->hash);
    free(store->scratch_page);
    free(store->scratch_items);
}

static void list_append(struct node_list *list, struct node *node)
{
    node->previous = list->tail;
    node->next = NULL;
    if (list->tail)
        list->tail->next = node;
    else
        list->head = node;
    list->tail = node;
    list->count++;
}

static void list_unlink(struct node_list *list, struct node *node)
{
    if (node->previous)
        node->previous->next = node->next;
    else
        list->head = node->next;
    if (node->next)
        node->next->previous = node->previous;
    else
        list->tail = node->previous;
    node->previous = node->next = NULL;
    list->count--;
}

void dirty_list_add(struct store *store, struct node *node)
{
    list_append(node->level ? &store->dirty_inner : &store->dirty_leaves, node);
    store->dirty_count++;
    store->system_dirty_count += node->system;
    atomic_fetch_add(&store->allocator.metadata_demand_blocks, (uint64_t)store->node_blocks * store->copies);
}

/* Takes an unwritten node off its list: it is being freed, or a checkpoint has taken it over. */
void dirty_list_remove(struct store *store, struct node *node)
{
    list_unlink(node->level ? &store->dirty_inner : &store->dirty_leaves, node);
    store->dirty_count--;
    store->system_dirty_count -= node->system;
    atomic_fetch_sub(&store->allocator.metadata_demand_blocks, (uint64_t)store->node_blocks * store->copies);
}

void dirty_inner_rotate(struct store *store)
{
    struct node *node = store->dirty_inner.head;
    list_unlink(&store->dirty_inner, node);
    list_append(&store->dirty_inner, node);
}

struct node *cache_find(struct store *store, uint64_t address)
{
    struct node *node = store->hash[hash_slot(store, address)];
    while (node && node->pointer.address[0] != address)
        node = node->hash_next;
    return node;
}

/* Drops a node whose block has been freed and used again. A pinned one is still named by tagged pointers: it only
 * stops being found, and is freed by the checkpoint that pinned it. */
static void cache_discard(struct store *store, struct node *node)
{
    cache_remove(store, node);
    if (node->pinned)
        node->orphaned = true;
    else
        node_release(store, node);
}

void cache_insert(struct store *store, struct node *node)
{
    struct node *stale = cache_find(store, node->pointer.address[0]);
    if (stale)
        cache_discard(store, stale);
    size_t slot = hash_slot(store, node->pointer.address[0]);
    node->hash_next = store->hash[slot];
    store->hash[slot] = node;
    node->state = NODE_CLEAN;
    node->referenced = true;
    if (!node->pinned)
        list_append(&store->clock, node);
    store->cached_count++;
}

void cache_unpin(struct store *store, struct node *node)
{
    node->pinned = false;
    if (node->orphaned)
        node_release(store, node);
    else
        list_append(&store->clock, node);
}

void cache_remove(struct store *store, struct node *node)
{
    struct node **at = &store->hash[hash_slot(store, node->pointer.address[0])];
    while (*at != node)
        at = &(*at)->hash_next;
    *at = node->hash_next;
    node->hash_next = NULL;
    store->cached_count--;
    if (node->pinned)
        return;
    if (store->clock_hand == node)
        store->clock_hand = node->next;
    list_unlink(&store->clock, node);
}

void cache_hold(struct store *store, bool hold)
{
    pthread_mutex_lock(&store->lock);
    store->cache_holds += hold ? 1 : -1;
    cache_trim(store);
    pthread_mutex_unlock(&store->lock);
}

bool cache_trim(struct store *store)
{
    if (store->cache_holds)
        return false;
    size_t limit = store->cache_bytes_max / store->node_size;
    if (limit < CACHE_NODES_MIN)
        limit = CACHE_NODES_MIN;
    for (unsigned step = 0; store->clock.count > limit && step < TRIM_STEPS_MAX; step++) {
        struct node *node = store->clock_hand ? store->clock_hand : store->clock.head;
        store->clock_hand = node->next;
        if (node->referenced) {
            node->referenced = false;
            continue;
        }
        cache_remove(store, node);
        node_release(store, node);
    }
    return store->clock.count > limit;
}

/* The good copy goes over the bad one. Only under the lock and on the way from a root is it sure that the block still
 * is this node's. */
static void repair(struct store *store, struct node *node)
{
    node->damaged = false;
    atomic_fetch_add(&store->checksum_mismatches, 1);
    struct store_damage damage = {.kind = STORE_DAMAGE_NODE_COPY, .copy = 1, .address = node->pointer.address[0],
                                  .blocks = store->node_blocks};
    damage.repaired = storage_write(store, node->page, store->node_size,
                                    node->pointer.address[0] * STORE_BLOCK_SIZE) == 0;
    if (damage.repaired)
        atomic_fetch_add(&store->repairs, 1);
    store_note_damage(store, &damage);
}

struct node *cache_resolve(struct store *store, const struct tree_pointer *pointer, uint8_t level)
{
    store->counters.nodes_touched++;
    if (pointer_is_tagged(pointer))
        return tagged_node(pointer->address[0]);
    struct node *node = cache_find(store, pointer->address[0]);
    if (!node)
        return NULL;
    if (node->pointer.checksum != pointer->checksum || node->birth != pointer->birth) {
        cache_discard(store, node);
        return NULL;
    }
    if (node->level != level)
        return NULL;
    node->referenced = true;
    if (node->damaged)
        repair(store, node);
    return node;
}

struct node *node_allocate(struct store *store)
{
    struct node *node = store->spare;
    if (node) {
        store->spare = node->next;
        store->spare_count--;
    } else {
        node = malloc(sizeof *node + store->node_size);
        if (!node)
            return NULL;
    }
    memset(node, 0, sizeof *node);
    return node;
}

int spares_fill(struct store *store, size_t count)
{
    while (store->spare_count < count) {
        struct node *node = malloc(sizeof *node + store->node_size);
        if (!node)
            return -ENOMEM;
        node->next = store->spare;
        store->spare = node;
        store->spare_count++;
    }
    return 0;
}

void spares_trim(struct store *store)
{
    while (store->spare_count > SPARES_MAX) {
        struct node *node = store->spare;
        store->spare = node->next;
        store->spare_count--;
        free(node);
    }
}

void node_release(struct store *store, struct node *node)
{
    if (store->spare_count >= SPARES_MAX) {
        free(node);
        return;
    }
    node->next = store->spare;
    store->spare = node;
    store->spare_count++;
}

bool pointer_in_zone(const struct store *store, const struct tree_pointer *pointer)
{
    return allocator_in_zone(&store->allocator, pointer->address[0], store->node_blocks) &&
           (pointer->address[1] == 0 ||
            allocator_in_zone(&store->allocator, pointer->address[1], store->node_blocks));
}

/* Everything that a page names is in the data zone; above all, no pointer of the medium is tagged (invariant I8). */
static bool names_in_zone(const struct store *store, const uint8_t *page)
{
    struct page_item item;
    struct tree_pointer child;
    struct store_extent extent;
    for (uint16_t slot = 0; slot < page_count(page); slot++) {
        page_get(page, slot, &item);
        if (page_level(page) > 0) {
            pointer_load(item.value, &child);
            if (!pointer_in_zone(store, &child))
                return false;
        } else if (item.kind == STORE_VALUE_EXTENT) {
            if (store_extent_decode(item.value, item.value_length, &extent) < 0 ||
                !allocator_in_zone(&store->allocator, extent.address, extent.blocks))
                return false;
        }
    }
    return true;
}

int node_read_copy(struct store *store, const struct tree_pointer *pointer, int copy, uint8_t level, uint8_t *page)
{
    uint64_t address = pointer->address[copy];
    if (!allocator_in_zone(&store->allocator, address, store->node_blocks))
        return -EUCLEAN;
    int result = storage_read(store, page, store->node_size, address * STORE_BLOCK_SIZE);
    if (result < 0)
        return result;
    if (store_checksum(page, store->node_size) != pointer->checksum && !MUTATED(NODE_CHECKSUM))
        return -EIO;
    result = page_validate(page, store->node_size, level, pointer->birth);
    return result == 0 && !names_in_zone(store, page) ? -EUCLEAN : result;
}

/* The node from its first good copy. */
static int read_node(struct store *store, const struct tree_pointer *pointer, uint8_t level, struct node *node)
{
    memset(node, 0, sizeof *node);
    node->pointer = *pointer;
    node->birth = pointer->birth;
    node->level = level;
    int result = node_read_copy(store, pointer, 0, level, node->page);
    if (result < 0 && pointer->address[1] && !MUTATED(NODE_SECOND_READ)) {
        node->damaged = result == -EIO;
        result = node_read_copy(store, pointer, 1, level, node->page);
    }
    return result;
}

static bool same_pointer(const struct tree_pointer *a, const struct tree_pointer *b)
{
    return a->address[0] == b->address[0] && a->checksum == b->checksum && a->birth == b->birth;
}

int cache_load(struct store *store, const struct tree_pointer *pointer, uint8_t level, struct tree_pointer *failed)
{
    struct node *node = malloc(sizeof *node + store->node_size);
    if (!node)
        return -ENOMEM;
    int result = read_node(store, pointer, level, node);
    if (result < 0) {
        free(node);
        if (failed && !same_pointer(failed, pointer)) {
            *failed = *pointer;
            return 0;
        }
        atomic_fetch_add(&store->checksum_mismatches, 1);
        struct store_damage damage = {.kind = STORE_DAMAGE_NODE, .address = pointer->address[0],
                                      .blocks = store->node_blocks};
        store_note_damage(store, &damage);
        return -EIO;
    }
    pthread_mutex_lock(&store->lock);
    store->counters.nodes_read++;
    const struct node *present = cache_find(store, pointer->address[0]);
    if (present && same_pointer(&present->pointer, pointer)) {
        free(node);
    } else {
        cache_insert(store, node);
        cache_trim(store);
    }
    pthread_mutex_unlock(&store->lock);
    return 0;
}

int cache_copy_page(struct store *store, const struct tree_pointer *pointer, uint8_t level, uint8_t *page)
{
    for (;;) {
        pthread_mutex_lock(&store->lock);
        const struct node *node = cache_resolve(store, pointer, level);
        if (node)
            memcpy(page, node->page, store->node_size);
        pthread_mutex_unlock(&store->lock);
        if (node)
            return 0;
        int result = cache_load(store, pointer, level, NULL);
        if (result < 0)
            return result;
    }
}
