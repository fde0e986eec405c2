/* Scrub: everything that a live tree or a snapshot refers to is read from the medium and verified, each block once, in
 * small steps that a caller can space out, stop and take up again.
 *
 * Once, without remembering blocks: a block born at or before the epoch of a snapshot that is done is in that snapshot
 * if it is in anything newer of its chain, so each tree is walked only for what is younger than the one before it.
 *
 * Nothing goes through the node cache: the medium itself is asked, and what the foreground has there stays. Each leaf
 * is done with checkpoint_mutex held: until it is released, no block that was reached from a root is used for anything
 * else, so that a node that does not verify is damaged, and its good copy may be written over it. Data may change in
 * place meanwhile; a mismatch there counts when looking it up again gives the same several times. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

#define DATA_LOOKS_MAX 8u

struct scrub {
    struct store *store;
    struct scrub_position *position;
    struct scrub_result *result;
    store_damage_report report;
    void *argument;
    uint64_t picked_epoch; /* of the snapshot being walked */
    uint8_t *pages[2];
    uint8_t *data;
    /* the last inner nodes, so that the leaves below one are done without reading it again */
    struct tree_pointer known[STORE_TREE_HEIGHT_MAX];
    uint8_t *known_pages[STORE_TREE_HEIGHT_MAX];
};

static void found(struct scrub *scrub, struct store_damage *damage)
{
    store_note_damage(scrub->store, damage);
    atomic_fetch_add(&scrub->store->checksum_mismatches, 1);
    scrub->result->damaged++;
    if (damage->repaired) {
        atomic_fetch_add(&scrub->store->repairs, 1);
        scrub->result->repaired++;
    }
    scrub->report(scrub->argument, damage);
}

/* ---- what is at fixed places ------------------------------------------------------------------------------------ */

static void scrub_superblocks(struct scrub *scrub)
{
    struct store *store = scrub->store;
    uint8_t blocks[2][STORE_BLOCK_SIZE];
    for (uint64_t slot = 0; slot < SUPERBLOCK_RING_SLOTS; slot++) {
        uint64_t sequence[2] = {0, 0}, place[2] = {slot, store->size_blocks - SUPERBLOCK_RING_SLOTS + slot};
        /* the last checkpoint that wrote this slot; none: nothing is expected there */
        uint64_t back = (store->checkpoint_sequence + SUPERBLOCK_RING_SLOTS - slot) % SUPERBLOCK_RING_SLOTS;
        if (store->checkpoint_sequence <= back)
            continue;
        for (int ring = 0; ring < 2; ring++) {
            if (storage_read(store, blocks[ring], STORE_BLOCK_SIZE, place[ring] * STORE_BLOCK_SIZE) == 0)
                sequence[ring] = superblock_sequence(blocks[ring]);
            scrub->result->bytes += STORE_BLOCK_SIZE;
        }
        for (int ring = 0; ring < 2; ring++) {
            if (sequence[ring])
                continue;
            struct store_damage damage = {.kind = STORE_DAMAGE_SUPERBLOCK, .address = place[ring], .blocks = 1};
            damage.repaired = sequence[!ring] && storage_write(store, blocks[!ring], STORE_BLOCK_SIZE,
                                                               place[ring] * STORE_BLOCK_SIZE) == 0;
            found(scrub, &damage);
        }
    }
}

static void scrub_bitmaps(struct scrub *scrub)
{
    struct store *store = scrub->store;
    for (uint64_t index = 0; index < store->bitmap_pages; index++) {
        uint64_t address;
        if (allocator_page_intact(store, index, &address))
            continue;
        struct store_damage damage = {.kind = STORE_DAMAGE_BITMAP, .address = address, .blocks = 1};
        damage.repaired = !store->read_only; /* memory has the truth; the next checkpoint writes it */
        found(scrub, &damage);
    }
    scrub->result->bytes += store->bitmap_pages * STORE_BLOCK_SIZE;
}

/* ---- nodes ---------------------------------------------------------------------------------------------------- */

struct bounds {
    uint8_t high[STORE_KEY_LENGTH_MAX];
    uint16_t high_length;
    bool has_high;
};

static void node_damage(struct scrub *scrub, const struct tree_pointer *pointer, int copy, bool repaired,
                        const struct bounds *bounds)
{
    const struct scrub_position *position = scrub->position;
    struct store_damage damage = {.kind = copy < 0 ? STORE_DAMAGE_NODE : STORE_DAMAGE_NODE_COPY,
                                  .repaired = repaired,
                                  .copy = (uint8_t)(copy < 0 ? 0 : copy + 1),
                                  .address = pointer->address[copy < 0 ? 0 : copy],
                                  .blocks = scrub->store->node_blocks,
                                  .object_id = position->object_id};
    damage_set_key(&damage, position->key, position->key_length);
    damage.end_length = bounds->has_high ? bounds->high_length : 0;
    if (damage.end_length > STORE_DAMAGE_KEY_LENGTH_MAX)
        damage.end_length = STORE_DAMAGE_KEY_LENGTH_MAX;
    memcpy(damage.end, bounds->high, damage.end_length);
    found(scrub, &damage);
}

/* Reads and verifies each copy, and writes the good one over the bad one. The good page, or NULL. */
static const uint8_t *scrub_node(struct scrub *scrub, const struct tree_pointer *pointer, uint8_t level,
                                 const struct bounds *bounds)
{
    struct store *store = scrub->store;
    int results[2] = {0, 0}, good = -1;
    for (int copy = 0; copy < 2; copy++) {
        if (!pointer->address[copy])
            continue;
        results[copy] = node_read_copy(store, pointer, copy, level, scrub->pages[copy]);
        scrub->result->bytes += store->node_size;
        if (results[copy] == 0 && good < 0)
            good = copy;
    }
    scrub->result->nodes++;
    if (good < 0) {
        node_damage(scrub, pointer, -1, false, bounds);
        return NULL;
    }
    for (int copy = 0; copy < 2; copy++) {
        if (results[copy] == 0)
            continue;
        bool repaired = storage_write(store, scrub->pages[good], store->node_size,
                                      pointer->address[copy] * STORE_BLOCK_SIZE) == 0;
        node_damage(scrub, pointer, copy, repaired, bounds);
    }
    return scrub->pages[good];
}

/* An inner node's page, read once for all leaves below it that come in one step. */
static const uint8_t *scrub_inner(struct scrub *scrub, const struct tree_pointer *pointer, uint8_t level,
                                  const struct bounds *bounds)
{
    struct tree_pointer *known = &scrub->known[level];
    if (!scrub->known_pages[level])
        scrub->known_pages[level] = calloc(1, scrub->store->node_size);
    if (!scrub->known_pages[level])
        return NULL;
    if (known->address[0] == pointer->address[0] && known->checksum == pointer->checksum &&
        known->birth == pointer->birth)
        return scrub->known_pages[level];
    known->address[0] = 0;
    const uint8_t *page = scrub_node(scrub, pointer, level, bounds);
    if (!page)
        return NULL;
    *known = *pointer;
    return memcpy(scrub->known_pages[level], page, scrub->store->node_size);
}

/* ---- data ----------------------------------------------------------------------------------------------------- */

/* First block that does not verify, or -1. */
static int32_t verify_data(struct scrub *scrub, const struct store_extent *extent, const uint8_t *value)
{
    const uint8_t *data = scrub->data;
    if (extent->compression)
        return store_checksum(data, (size_t)extent->blocks * STORE_BLOCK_SIZE) == store_extent_checksum(value, 0) ? -1
                                                                                                                  : 0;
    for (uint32_t i = 0; i < extent->blocks; i++)
        if (store_checksum(data + (size_t)i * STORE_BLOCK_SIZE, STORE_BLOCK_SIZE) != store_extent_checksum(value, i))
            return (int32_t)i;
    return -1;
}

/* 0: verified or reported; STORE_AGAIN: to be looked up again. */
static int scrub_extent(struct scrub *scrub, const struct page_item *item, unsigned looks)
{
    struct store *store = scrub->store;
    struct store_extent extent;
    if (store_extent_decode(item->value, item->value_length, &extent) < 0 ||
        !allocator_in_zone(&store->allocator, extent.address, extent.blocks) ||
        extent.birth <= scrub->position->floor_epoch)
        return 0;
    int result = store_data_read(store, extent.address, extent.blocks, scrub->data);
    int32_t bad = result < 0 ? 0 : verify_data(scrub, &extent, item->value);
    if (bad >= 0 && looks + 1 < DATA_LOOKS_MAX)
        return STORE_AGAIN;
    scrub->result->bytes += (uint64_t)extent.blocks * STORE_BLOCK_SIZE;
    scrub->result->data_blocks += extent.blocks;
    uint8_t key[STORE_KEY_LENGTH_MAX];
    uint16_t key_length = item_copy_key(item, key);
    for (uint32_t i = (uint32_t)bad; bad >= 0 && i < extent.blocks; i++) {
        const uint8_t *block = scrub->data + (size_t)i * STORE_BLOCK_SIZE;
        if (result < 0) /* one unreadable block need not mean that the others are */
            memset(scrub->data, 0, STORE_BLOCK_SIZE);
        if (result < 0 && store_data_read(store, extent.address + i, 1, scrub->data) == 0)
            block = scrub->data;
        if (!extent.compression &&
            store_checksum(block, STORE_BLOCK_SIZE) == store_extent_checksum(item->value, i))
            continue;
        struct store_damage damage = {.kind = STORE_DAMAGE_DATA, .address = extent.address + i, .blocks = 1,
                                      .extent_block = i, .object_id = scrub->position->object_id};
        if (extent.compression) /* one checksum for all of them */
            damage.blocks = extent.blocks;
        damage_set_key(&damage, key, key_length);
        found(scrub, &damage);
        if (extent.compression)
            break;
    }
    return 0;
}

static int scrub_leaf(struct scrub *scrub, const uint8_t *page, unsigned looks)
{
    struct scrub_position *position = scrub->position;
    struct page_item item;
    bool exact;
    uint16_t slot = page_find(page, position->key, position->key_length, &exact);
    for (; slot < page_count(page); slot++) {
        page_get(page, slot, &item);
        if (item.kind != STORE_VALUE_EXTENT)
            continue;
        if (scrub_extent(scrub, &item, looks) == STORE_AGAIN) {
            position->key_length = item_copy_key(&item, position->key);
            return STORE_AGAIN;
        }
    }
    return 0;
}

/* ---- one tree ------------------------------------------------------------------------------------------------- */

static void bound(struct bounds *bounds, const uint8_t *page, uint16_t slot)
{
    if (slot + 1 < page_count(page)) {
        bounds->high_length = page_copy_key(page, (uint16_t)(slot + 1), bounds->high);
        bounds->has_high = true;
    }
}

/* From this node's position on the first child that is younger than the floor; false when there is none. */
static bool young_child(const struct scrub *scrub, const uint8_t *page, struct tree_pointer *pointer,
                        struct bounds *bounds)
{
    struct scrub_position *position = scrub->position;
    uint16_t slot = page_find_child(page, position->key, position->key_length);
    for (uint16_t first = slot; slot < page_count(page); slot++) {
        struct page_item item;
        page_get(page, slot, &item);
        pointer_load(item.value, pointer);
        if (pointer->birth <= scrub->position->floor_epoch)
            continue;
        if (slot > first)
            position->key_length = page_copy_key(page, slot, position->key);
        bound(bounds, page, slot);
        return true;
    }
    return false;
}

/* Goes from the root towards the position's key, through unwritten nodes under the lock, which it gives back. 0: a leaf
 * is in *page; 1: what lies before the bounds' end is done. */
static int descend(struct scrub *scrub, const struct tree_root *root, struct bounds *bounds, const uint8_t **page)
{
    struct store *store = scrub->store;
    struct tree_pointer pointer = root->pointer;
    uint8_t level = root->level;
    bool any = pointer.address[0] && pointer.birth > scrub->position->floor_epoch;
    while (any && pointer_is_tagged(&pointer)) {
        const uint8_t *memory = tagged_node(pointer.address[0])->page;
        if (level == 0) {
            *page = memcpy(scrub->pages[0], memory, store->node_size);
            break;
        }
        any = young_child(scrub, memory, &pointer, bounds);
        level--;
    }
    pthread_mutex_unlock(&store->lock);
    if (!any || *page)
        return !any;
    for (; level > 0; level--) {
        const uint8_t *inner = scrub_inner(scrub, &pointer, level, bounds);
        if (!inner || !young_child(scrub, inner, &pointer, bounds))
            return 1;
    }
    *page = scrub_node(scrub, &pointer, 0, bounds);
    return *page ? 0 : 1;
}

/* ---- the order of trees --------------------------------------------------------------------------------------- */

enum scrub_phase { PHASE_FIXED, PHASE_SYSTEM, PHASE_CHAIN, PHASE_SNAPSHOTS, PHASE_HEAD, PHASE_DONE };

/* The chain of this id, or with the least id above it. */
static const struct chain *chain_from(const struct store *store, uint64_t id)
{
    const struct chain *found_chain = NULL;
    for (const struct chain *chain = store->chains; chain; chain = chain->next)
        if (chain->id >= id && (!found_chain || chain->id < found_chain->id))
            found_chain = chain;
    return found_chain;
}

static const struct snapshot *oldest_above(const struct chain *chain, uint64_t epoch)
{
    const struct snapshot *snapshot = chain->newest;
    if (!snapshot || snapshot->epoch <= epoch)
        return NULL;
    if (chain->oldest->epoch > epoch) /* where each chain begins: no walk over all of it */
        return chain->oldest;
    while (snapshot->older && snapshot->older->epoch > epoch)
        snapshot = snapshot->older;
    return snapshot;
}

static void restart_tree(struct scrub_position *position, uint64_t object_id)
{
    position->object_id = object_id;
    position->key_length = 0;
}

/* The snapshot being walked may be deleted meanwhile: what it shared with its successor is then the successor's. */
static const struct tree_root *pick_snapshot(struct scrub *scrub, const struct chain *chain)
{
    struct scrub_position *position = scrub->position;
    const struct snapshot *snapshot = position->object_id ? snapshot_by_id(scrub->store, position->object_id) : NULL;
    if (!snapshot || snapshot->chain != chain) {
        snapshot = oldest_above(chain, position->floor_epoch);
        restart_tree(position, snapshot ? snapshot->id : 0);
    }
    if (!snapshot)
        return NULL;
    scrub->picked_epoch = snapshot->epoch;
    return &snapshot->root;
}

/* When a snapshot is taken while the live tree is walked, it has what was there and is gone on with; what the live tree
 * has got since is newer than the scrub. */
static const struct tree_root *pick_head(struct scrub *scrub, const struct chain *chain)
{
    const struct snapshot *snapshot = oldest_above(chain, scrub->position->floor_epoch);
    scrub->position->object_id = snapshot ? snapshot->id : chain->volume ? chain->volume->id : 0;
    return snapshot ? &snapshot->root : &chain->head;
}

/* Under the lock: the tree to go on with, or NULL at the end of all. */
static const struct tree_root *pick(struct scrub *scrub)
{
    struct store *store = scrub->store;
    struct scrub_position *position = scrub->position;
    if (position->phase == PHASE_SYSTEM)
        return &store->system_chain.head;
    for (;;) {
        const struct chain *chain = chain_from(store, position->chain_id);
        if (!chain) {
            position->phase = PHASE_DONE;
            return NULL;
        }
        if (position->phase == PHASE_CHAIN || chain->id != position->chain_id) {
            position->phase = PHASE_SNAPSHOTS;
            position->chain_id = chain->id;
            position->floor_epoch = chain->origin ? chain->origin->epoch : 0;
            restart_tree(position, 0);
        }
        if (position->phase == PHASE_HEAD)
            return pick_head(scrub, chain);
        const struct tree_root *root = pick_snapshot(scrub, chain);
        if (root)
            return root;
        position->phase = PHASE_HEAD;
    }
}

static void finish_tree(struct scrub *scrub)
{
    struct scrub_position *position = scrub->position;
    if (position->phase == PHASE_SNAPSHOTS) {
        pthread_mutex_lock(&scrub->store->lock);
        const struct snapshot *snapshot = snapshot_by_id(scrub->store, position->object_id);
        restart_tree(position, snapshot && snapshot->newer ? snapshot->newer->id : 0);
        pthread_mutex_unlock(&scrub->store->lock);
        position->floor_epoch = scrub->picked_epoch;
        return;
    }
    position->chain_id = position->phase == PHASE_SYSTEM ? 0 : position->chain_id + 1;
    position->phase = PHASE_CHAIN;
    restart_tree(position, 0);
}

/* One leaf of the tree that is next. */
static void scrub_some(struct scrub *scrub)
{
    struct scrub_position *position = scrub->position;
    struct scrub_position before;
    struct bounds bounds;
    unsigned looks = 0;
    for (;;) {
        const uint8_t *page = NULL;
        bounds.has_high = false;
        bounds.high_length = 0;
        pthread_mutex_lock(&scrub->store->lock);
        const struct tree_root *root = pick(scrub);
        if (!root) {
            pthread_mutex_unlock(&scrub->store->lock);
            return;
        }
        if (descend(scrub, root, &bounds, &page) != 0 || scrub_leaf(scrub, page, looks) != STORE_AGAIN)
            break;
        bool same = looks && before.object_id == position->object_id && before.key_length == position->key_length &&
                    memcmp(before.key, position->key, before.key_length) == 0;
        looks = same ? looks + 1 : 1;
        before = *position;
    }
    if (!bounds.has_high) {
        finish_tree(scrub);
        return;
    }
    position->key_length = bounds.high_length;
    memcpy(position->key, bounds.high, bounds.high_length);
}

/* Steps end by trees too: many small ones cost more time than their bytes tell. */
#define STEP_LEAVES_MAX 1024u

int store_scrub(struct store *store, struct scrub_position *position, uint64_t bytes_max, struct scrub_result *result,
                store_damage_report report, void *argument)
{
    struct scrub scrub = {.store = store, .position = position, .result = result, .report = report,
                          .argument = argument};
    memset(result, 0, sizeof *result);
    if (position->phase > PHASE_DONE || position->key_length > STORE_KEY_LENGTH_MAX)
        return -EINVAL;
    scrub.pages[0] = calloc(1, store->node_size);
    scrub.pages[1] = calloc(1, store->node_size);
    scrub.data = aligned_alloc(STORE_BLOCK_SIZE, (size_t)STORE_EXTENT_BLOCKS_MAX * STORE_BLOCK_SIZE);
    int status = scrub.pages[0] && scrub.pages[1] && scrub.data ? 0 : -ENOMEM;
    for (uint32_t i = 0; status == 0 && i < STEP_LEAVES_MAX && position->phase != PHASE_DONE; i++) {
        pthread_mutex_lock(&store->checkpoint_mutex);
        if (position->phase == PHASE_FIXED) {
            scrub_superblocks(&scrub);
            scrub_bitmaps(&scrub);
            position->phase = PHASE_SYSTEM;
            position->floor_epoch = 0;
        } else {
            scrub_some(&scrub);
        }
        pthread_mutex_unlock(&store->checkpoint_mutex);
        if (result->bytes >= bytes_max)
            break;
    }
    result->finished = position->phase == PHASE_DONE;
    free(scrub.pages[0]);
    free(scrub.pages[1]);
    free(scrub.data);
    for (size_t level = 0; level < STORE_TREE_HEIGHT_MAX; level++)
        free(scrub.known_pages[level]);
    return status;
}
