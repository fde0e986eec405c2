/* Space: which blocks are free, and the bitmap pages that say so on the medium.
 *
 * Two bitmaps in memory. `committed` is what trees and buckets own, and what a checkpoint writes; `busy` is what must
 * not be handed out: committed blocks, claimed runs, and blocks freed since the last durable checkpoint (invariant
 * I1). A page on the medium has two places and is always written to the one that does not hold the current copy, so
 * allocation needs no allocation. Next-fit over large runs makes random writes sequential, after LFS (Rosenblum and
 * Ousterhout, 1992). */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

/* Pages looked at in one holding of the mutex when a checkpoint ends. */
#define THAW_PAGES_MAX 1024u

bool allocator_in_zone(const struct allocator *allocator, uint64_t address, uint64_t blocks)
{
    return address >= allocator->first_block && address < allocator->end_block &&
           blocks <= allocator->end_block - address;
}

int allocator_create(struct store *store)
{
    struct allocator *allocator = &store->allocator;
    allocator->size_blocks = store->size_blocks;
    allocator->page_count = store->bitmap_pages;
    /* Nodes of several blocks lie at multiples of their size, so that what they need is countable in a pool whose free
     * space is in pieces. */
    uint32_t group = allocator->group_blocks = store->node_blocks;
    allocator->first_block = (store->bitmap_start + store->bitmap_pages * 2 + group - 1) / group * group;
    allocator->end_block = (store->size_blocks - SUPERBLOCK_RING_SLOTS) / group * group;
    uint64_t zone = allocator->end_block - allocator->first_block;
    allocator->free_group_count = zone / group;
    /* The reserve. Emptying a pool that snapshots pin makes one dead entry of at most DEAD_ENTRY_BYTES, in each copy of
     * the system tree, for at most every block: 2 * 45 / 4096, 2.2 %. Three quarters of 1/32 are 2.3 %; the first
     * eighth is for blocks zeroed in a new place, the last for checkpoints and for deleting snapshots, which goes in
     * steps of at most 24 nodes (checkpoint_queue.c): hence the least. */
    uint64_t reserve_min = (uint64_t)8 * QUEUE_STEP_NODES * group * store->copies;
    allocator->reserve_blocks = zone / 32;
    if (allocator->reserve_blocks < reserve_min)
        allocator->reserve_blocks = reserve_min;
    allocator->run_blocks = DATA_RUN_BLOCKS_MAX;
    while (allocator->run_blocks > STORE_EXTENT_BLOCKS_MAX && allocator->run_blocks > zone / 256)
        allocator->run_blocks /= 2;
    allocator->data_cursor = allocator->first_block;
    allocator->metadata_cursor[0] = allocator->first_block + zone / 3;
    allocator->metadata_cursor[1] = allocator->first_block + zone / 3 * 2;
    allocator->pages = calloc(allocator->page_count, sizeof *allocator->pages);
    return allocator->pages ? 0 : -ENOMEM;
}

void allocator_destroy(struct store *store)
{
    struct allocator *allocator = &store->allocator;
    for (uint64_t i = 0; allocator->pages && i < allocator->page_count; i++) {
        if (allocator->pages[i])
            free(allocator->pages[i]->frozen);
        free(allocator->pages[i]);
    }
    free(allocator->pages);
}

static struct bitmap_page *page_of(struct allocator *allocator, uint64_t index)
{
    if (!allocator->pages[index])
        allocator->pages[index] = calloc(1, sizeof **allocator->pages);
    return allocator->pages[index];
}

static bool bit_get(const uint64_t *bits, uint32_t index)
{
    return (bits[index / 64] >> (index % 64)) & 1;
}

/* Sets or clears bits of [from, from + count) and returns how many changed. */
static uint32_t bits_change(uint64_t *bits, uint32_t from, uint32_t count, bool value)
{
    uint32_t changed = 0;
    while (count) {
        uint32_t bit = from % 64, part = 64 - bit;
        if (part > count)
            part = count;
        uint64_t mask = (part == 64 ? UINT64_MAX : (UINT64_C(1) << part) - 1) << bit;
        uint64_t old = bits[from / 64];
        bits[from / 64] = value ? old | mask : old & ~mask;
        changed += (uint32_t)__builtin_popcountll(old ^ bits[from / 64]);
        from += part;
        count -= part;
    }
    return changed;
}

/* The blocks of a word that lie in groups without a busy block. */
static uint64_t whole_groups(uint64_t busy, uint32_t group)
{
    uint64_t whole = ~busy;
    if (group > 1)
        whole &= whole >> 1;
    if (group > 2)
        whole &= whole >> 2;
    return group == 4   ? (whole & UINT64_C(0x1111111111111111)) * 15
           : group == 2 ? (whole & UINT64_C(0x5555555555555555)) * 3
                        : whole;
}

/* Blocks in free groups within the words that hold [from, from + count). */
static uint64_t whole_group_blocks(const struct allocator *allocator, const struct bitmap_page *page, uint32_t from,
                                   uint32_t count)
{
    uint64_t blocks = 0;
    for (uint32_t word = from / 64; word <= (from + count - 1) / 64; word++)
        blocks += (uint64_t)__builtin_popcountll(whole_groups(page->busy[word], allocator->group_blocks));
    return blocks;
}

static int busy_change(struct allocator *allocator, uint64_t address, uint32_t blocks, bool value)
{
    while (blocks) {
        uint32_t at = (uint32_t)(address % BITMAP_BLOCKS_PER_PAGE), part = BITMAP_BLOCKS_PER_PAGE - at;
        if (part > blocks)
            part = blocks;
        struct bitmap_page *page = page_of(allocator, address / BITMAP_BLOCKS_PER_PAGE);
        if (!page)
            return -ENOMEM;
        uint64_t before = whole_group_blocks(allocator, page, at, part);
        uint32_t changed = bits_change(page->busy, at, part, value);
        uint64_t after = whole_group_blocks(allocator, page, at, part);
        allocator->free_group_count += after / allocator->group_blocks;
        allocator->free_group_count -= before / allocator->group_blocks;
        page->busy_count = value ? page->busy_count + changed : page->busy_count - changed;
        allocator->busy_count = value ? allocator->busy_count + changed : allocator->busy_count - changed;
        address += part;
        blocks -= part;
    }
    return 0;
}

/* `by_checkpoint`: the change belongs to the state that the running checkpoint writes. */
static int committed_change(struct allocator *allocator, uint64_t address, uint32_t blocks, bool value,
                            bool by_checkpoint)
{
    while (blocks) {
        uint32_t at = (uint32_t)(address % BITMAP_BLOCKS_PER_PAGE), part = BITMAP_BLOCKS_PER_PAGE - at;
        if (part > blocks)
            part = blocks;
        struct bitmap_page *page = page_of(allocator, address / BITMAP_BLOCKS_PER_PAGE);
        if (!page)
            return -ENOMEM;
        if (allocator->checkpoint_running && !by_checkpoint && !page->frozen) {
            page->frozen = malloc(sizeof page->committed);
            if (!page->frozen)
                return -ENOMEM;
            memcpy(page->frozen, page->committed, sizeof page->committed);
        }
        uint32_t changed = bits_change(page->committed, at, part, value);
        page->committed_count = value ? page->committed_count + changed : page->committed_count - changed;
        allocator->committed_count =
            value ? allocator->committed_count + changed : allocator->committed_count - changed;
        if (by_checkpoint) {
            if (page->frozen)
                bits_change(page->frozen, at, part, value);
            page->frozen_dirty = true;
        } else {
            page->dirty = true;
        }
        address += part;
        blocks -= part;
    }
    return 0;
}

/* Where a claim looks: anywhere; in free groups only (nodes); or in groups that are in pieces already, so that places
 * for nodes remain. */
enum find_mode { FIND_ANY, FIND_GROUPS, FIND_PIECES };

/* The word as the mode sees it: set bits are not to be taken. */
static uint64_t taken_bits(const struct allocator *allocator, const struct bitmap_page *page, uint32_t word,
                           enum find_mode mode)
{
    uint64_t busy = page->busy[word];
    if (mode == FIND_ANY)
        return busy;
    uint64_t whole = whole_groups(busy, allocator->group_blocks);
    return mode == FIND_GROUPS ? ~whole : busy | whole;
}

/* First free run at or after `from` within one page that is at least `enough` long, at most `wanted` of it. */
static uint32_t find_in_page(const struct allocator *allocator, uint64_t index, uint32_t from, uint32_t until,
                             uint32_t enough, uint32_t wanted, enum find_mode mode, uint32_t *found)
{
    const struct bitmap_page *page = allocator->pages[index];
    if (!page) {
        uint32_t length = until > from && mode != FIND_PIECES ? until - from : 0;
        *found = from;
        return length < enough ? 0 : length > wanted ? wanted : length;
    }
    uint32_t start = from, at = from; /* [start, at) is free */
    while (at < until) {
        uint32_t left = 64 - at % 64 < until - at ? 64 - at % 64 : until - at;
        uint64_t taken = taken_bits(allocator, page, at / 64, mode) >> at % 64;
        uint32_t length = taken ? (uint32_t)__builtin_ctzll(taken) : left;
        if (length > left)
            length = left;
        at += length;
        *found = start;
        if (at - start >= wanted)
            return wanted;
        if (length == left)
            continue; /* the run may go on in the next word */
        if (at - start >= enough)
            return at - start;
        taken >>= length;
        length = ~taken ? (uint32_t)__builtin_ctzll(~taken) : 64;
        at += length < 64 - at % 64 ? length : 64 - at % 64;
        start = at;
    }
    return start < until && until - start >= enough ? until - start : 0;
}

/* One round over the zone, from the cursor. */
static uint32_t find_run(struct allocator *allocator, uint64_t cursor, uint32_t enough, uint32_t wanted,
                         enum find_mode mode, uint64_t *address)
{
    uint64_t first_page = allocator->first_block / BITMAP_BLOCKS_PER_PAGE;
    uint64_t last_page = (allocator->end_block - 1) / BITMAP_BLOCKS_PER_PAGE;
    if (mode == FIND_GROUPS)
        cursor = cursor / allocator->group_blocks * allocator->group_blocks;
    uint64_t index = cursor / BITMAP_BLOCKS_PER_PAGE, rounds = last_page - first_page + 2;
    for (uint64_t from = cursor; rounds > 0; rounds--) {
        uint64_t base = index * BITMAP_BLOCKS_PER_PAGE;
        uint64_t until = base + BITMAP_BLOCKS_PER_PAGE;
        if (until > allocator->end_block)
            until = allocator->end_block;
        if (from < allocator->first_block)
            from = allocator->first_block;
        const struct bitmap_page *page = allocator->pages[index];
        uint32_t found, length = 0;
        if (!page || page->busy_count < BITMAP_BLOCKS_PER_PAGE)
            length = find_in_page(allocator, index, (uint32_t)(from - base), (uint32_t)(until - base), enough, wanted,
                                  mode, &found);
        if (length) {
            *address = base + found;
            return length;
        }
        index = index == last_page ? first_page : index + 1;
        from = index * BITMAP_BLOCKS_PER_PAGE;
    }
    return 0;
}

/* Blocks in places for nodes. Smaller pieces are room for data only. */
static uint64_t group_room(const struct allocator *allocator)
{
    return allocator->free_group_count * allocator->group_blocks;
}

/* Nodes of the system tree that the next checkpoint writes: new ones for what is gathered (splits waste half of it),
 * and, until it is durable, those of the old that it replaces. */
static uint64_t system_demand_nodes(const struct allocator *allocator)
{
    uint64_t dead = atomic_load(&allocator->dead_pending), others = atomic_load(&allocator->catalog_pending);
    if (dead + others == 0)
        return 0;
    uint64_t bytes = 2 * (dead * DEAD_ENTRY_BYTES + others * CATALOG_RECORD_BYTES), touched = 2 * (dead + others);
    uint64_t present = atomic_load(&allocator->system_nodes);
    return bytes / (allocator->group_blocks * (uint64_t)STORE_BLOCK_SIZE) + (touched < present ? touched : present) + 4;
}

uint64_t allocator_withheld(const struct store *store, enum claim_class claim_class, uint64_t newly_pinned_nodes)
{
    const struct allocator *allocator = &store->allocator;
    uint64_t node = (uint64_t)allocator->group_blocks * store->copies;
    uint64_t demand = atomic_load(&allocator->metadata_demand_blocks);
    /* the inner nodes and system tree nodes that a checkpoint adds */
    demand += demand / 8 + system_demand_nodes(allocator) * node;
    if (claim_class == CLAIM_METADATA)
        return 0;
    if (claim_class == CLAIM_RESERVE)
        return allocator->reserve_blocks / 8 + demand;
    uint64_t pinned = atomic_load(&allocator->pinned_nodes) + newly_pinned_nodes;
    uint64_t reserve = allocator->reserve_blocks - (claim_class == CLAIM_ZEROES ? allocator->reserve_blocks / 8 : 0);
    return reserve + demand + (pinned + pinned / 8) * node;
}

static uint64_t node_room(const struct store *store)
{
    const struct allocator *allocator = &store->allocator;
    uint64_t room = group_room(allocator);
    for (uint32_t copy = 0; copy < store->copies; copy++)
        room += allocator->metadata_run[copy].blocks - allocator->metadata_run[copy].used;
    return room;
}

uint64_t allocator_spare_blocks(struct store *store)
{
    struct allocator *allocator = &store->allocator;
    pthread_mutex_lock(&allocator->mutex);
    uint64_t room = node_room(store), demand = atomic_load(&allocator->metadata_demand_blocks);
    pthread_mutex_unlock(&allocator->mutex);
    demand += demand / 8;
    return room > demand ? room - demand : 0;
}

bool allocator_room(struct store *store, uint64_t blocks, enum claim_class claim_class, uint64_t newly_pinned_nodes)
{
    struct allocator *allocator = &store->allocator;
    pthread_mutex_lock(&allocator->mutex);
    bool result = node_room(store) >= allocator_withheld(store, claim_class, newly_pinned_nodes) + blocks;
    pthread_mutex_unlock(&allocator->mutex);
    return result;
}

static int claim_locked(struct store *store, uint32_t blocks_min, uint32_t blocks_max, uint64_t *cursor,
                        enum claim_class claim_class, uint64_t *address, uint32_t *blocks)
{
    struct allocator *allocator = &store->allocator;
    uint64_t keep = allocator_withheld(store, claim_class, 0), room = group_room(allocator);
    enum find_mode mode = claim_class == CLAIM_METADATA ? FIND_GROUPS : FIND_ANY;
    /* a run that begins and ends within groups takes places from nodes that it does not fill */
    uint32_t edges = mode == FIND_ANY ? 2 * (allocator->group_blocks - 1) : 0;
    if (room >= keep + edges + blocks_min) {
        if (blocks_max > room - keep - edges)
            blocks_max = (uint32_t)(room - keep - edges);
    } else if (edges) {
        mode = FIND_PIECES;
        blocks_max = blocks_max < edges ? blocks_max : edges;
    } else {
        return -ENOSPC;
    }
    uint32_t length = 0;
    for (uint32_t enough = blocks_max;; enough /= 4) {
        if (enough < blocks_min)
            enough = blocks_min;
        length = find_run(allocator, *cursor, enough, blocks_max, mode, address);
        if (length || enough == blocks_min)
            break;
    }
    if (!length)
        return -ENOSPC;
    *blocks = length;
    *cursor = *address + length < allocator->end_block ? *address + length : allocator->first_block;
    int result = busy_change(allocator, *address, length, true);
    if (result == 0)
        allocator->claimed_unused += length;
    return result;
}

int allocator_claim(struct store *store, uint32_t blocks_min, uint32_t blocks_max, uint64_t *cursor,
                    enum claim_class claim_class, uint64_t *address, uint32_t *blocks)
{
    pthread_mutex_lock(&store->allocator.mutex);
    int result = claim_locked(store, blocks_min, blocks_max, cursor, claim_class, address, blocks);
    pthread_mutex_unlock(&store->allocator.mutex);
    return result;
}

void allocator_unclaim(struct store *store, uint64_t address, uint32_t blocks)
{
    struct allocator *allocator = &store->allocator;
    pthread_mutex_lock(&allocator->mutex);
    if (busy_change(allocator, address, blocks, false) < 0)
        store_fail(store, ENOMEM);
    allocator->claimed_unused -= blocks;
    pthread_mutex_unlock(&allocator->mutex);
}

int allocator_claim_node(struct store *store, uint64_t address[2])
{
    struct allocator *allocator = &store->allocator;
    int result = 0;
    address[1] = 0;
    pthread_mutex_lock(&allocator->mutex);
    for (uint32_t copy = 0; copy < store->copies && result == 0; copy++) {
        struct claim_run *run = &allocator->metadata_run[copy];
        if (run->blocks - run->used < store->node_blocks) {
            if (run->blocks > run->used) {
                result = busy_change(allocator, run->address + run->used, run->blocks - run->used, false);
                allocator->claimed_unused -= run->blocks - run->used;
            }
            run->blocks = run->used = 0;
            if (result == 0)
                result = claim_locked(store, store->node_blocks, allocator->run_blocks,
                                      &allocator->metadata_cursor[copy], CLAIM_METADATA, &run->address, &run->blocks);
        }
        if (result == 0) {
            address[copy] = run->address + run->used;
            run->used += store->node_blocks;
            result = committed_change(allocator, address[copy], store->node_blocks, true, true);
            allocator->claimed_unused -= store->node_blocks;
        }
    }
    pthread_mutex_unlock(&allocator->mutex);
    return result;
}

void allocator_commit(struct store *store, uint64_t address, uint32_t blocks, bool by_checkpoint)
{
    struct allocator *allocator = &store->allocator;
    pthread_mutex_lock(&allocator->mutex);
    uint64_t before = allocator->committed_count;
    if (committed_change(allocator, address, blocks, true, by_checkpoint) < 0)
        store_fail(store, ENOMEM);
    uint64_t fresh = allocator->committed_count - before;
    if (store->replaying) {
        if (!MUTATED(REPLAY_BUSY) && busy_change(allocator, address, blocks, true) < 0)
            store_fail(store, ENOMEM);
    } else {
        allocator->claimed_unused -= fresh < allocator->claimed_unused ? fresh : allocator->claimed_unused;
    }
    pthread_mutex_unlock(&allocator->mutex);
}

void allocator_release(struct store *store, uint64_t address, uint32_t blocks)
{
    pthread_mutex_lock(&store->allocator.mutex);
    if (busy_change(&store->allocator, address, blocks, false) < 0)
        store_fail(store, ENOMEM);
    pthread_mutex_unlock(&store->allocator.mutex);
}

void allocator_freeze(struct store *store)
{
    struct allocator *allocator = &store->allocator;
    pthread_mutex_lock(&allocator->mutex);
    for (uint64_t i = 0; i < allocator->page_count; i++) {
        struct bitmap_page *page = allocator->pages[i];
        if (page && page->dirty) {
            page->frozen_dirty = true;
            page->dirty = false;
        }
    }
    allocator->checkpoint_running = true;
    pthread_mutex_unlock(&allocator->mutex);
}

void allocator_clear(struct store *store, uint64_t address, uint32_t blocks)
{
    struct allocator *allocator = &store->allocator;
    pthread_mutex_lock(&allocator->mutex);
    if (committed_change(allocator, address, blocks, false, true) < 0)
        store_fail(store, ENOMEM);
    pthread_mutex_unlock(&allocator->mutex);
}

/* What a page adds to the digest in the superblock, by which a lost or stale bitmap page is noticed. */
static uint64_t page_digest(uint64_t index, uint64_t sequence, uint64_t checksum)
{
    uint8_t bytes[24];
    save64(bytes, index);
    save64(bytes + 8, sequence);
    save64(bytes + 16, checksum);
    return store_checksum(bytes, sizeof bytes);
}

static uint64_t bitmap_offset_bytes(const struct store *store, uint64_t index, unsigned slot)
{
    return (store->bitmap_start + index * 2 + slot) * STORE_BLOCK_SIZE;
}

static uint64_t page_image_checksum(const uint8_t *image)
{
    uint8_t copy[STORE_BLOCK_SIZE];
    memcpy(copy, image, sizeof copy);
    save64(copy + BITMAP_CHECKSUM, 0);
    return store_checksum(copy, sizeof copy);
}

int allocator_write(struct store *store, uint64_t sequence)
{
    struct allocator *allocator = &store->allocator;
    uint8_t image[STORE_BLOCK_SIZE];
    for (uint64_t i = 0; i < allocator->page_count; i++) {
        pthread_mutex_lock(&allocator->mutex);
        struct bitmap_page *page = allocator->pages[i];
        bool wanted = page && page->frozen_dirty;
        pthread_mutex_unlock(&allocator->mutex);
        if (!wanted)
            continue;
        memset(image, 0, sizeof image);
        save32(image + BITMAP_MAGIC_AT, BITMAP_MAGIC);
        save32(image + BITMAP_PAGE_NUMBER, (uint32_t)i);
        save64(image + BITMAP_SEQUENCE, sequence);
        pthread_mutex_lock(&allocator->mutex);
        const uint64_t *bits = page->frozen ? page->frozen : page->committed;
        uint32_t used = 0;
        for (uint32_t word = 0; word < BITMAP_WORDS; word++) {
            save64(image + BITMAP_BITS + word * 8u, bits[word]);
            used += (uint32_t)__builtin_popcountll(bits[word]);
        }
        pthread_mutex_unlock(&allocator->mutex);
        save32(image + BITMAP_USED, used);
        uint64_t checksum = page_image_checksum(image);
        save64(image + BITMAP_CHECKSUM, checksum);
        unsigned slot = page->sequence && !MUTATED(BITMAP_ALTERNATES) ? !page->slot : 0;
        int result = storage_write(store, image, sizeof image, bitmap_offset_bytes(store, i, slot));
        if (result < 0)
            return result;
        atomic_fetch_add(&store->metadata_written_bytes, sizeof image);
        if (page->sequence)
            allocator->digest ^= page_digest(i, page->sequence, page->checksum);
        allocator->digest ^= page_digest(i, sequence, checksum);
        page->sequence = sequence;
        page->checksum = checksum;
        page->slot = (uint8_t)slot;
        page->frozen_dirty = false;
    }
    return 0;
}

void allocator_thaw(struct store *store)
{
    struct allocator *allocator = &store->allocator;
    struct hold hold;
    uint64_t i = 0, before;
    do {
        pthread_mutex_lock(&allocator->mutex);
        hold_begin(&hold, STORE_HOLD_BITMAP);
        allocator->checkpoint_running = false; /* so that nothing is frozen behind these steps */
        for (before = i; i < allocator->page_count && i - before < THAW_PAGES_MAX; i++) {
            if (allocator->pages[i] && allocator->pages[i]->frozen && !MUTATED(BITMAP_THAWED)) {
                free(allocator->pages[i]->frozen);
                allocator->pages[i]->frozen = NULL;
            }
        }
        hold_end(store, &hold, i - before);
        pthread_mutex_unlock(&allocator->mutex);
    } while (i < allocator->page_count);
}

/* Bits outside the data zone must be zero: they would be handed out or counted wrongly (invariant I8). */
static bool bits_in_zone(const struct allocator *allocator, uint64_t index, const struct bitmap_page *page)
{
    uint64_t base = index * BITMAP_BLOCKS_PER_PAGE;
    for (uint32_t i = 0; i < BITMAP_BLOCKS_PER_PAGE; i++) {
        if (page->committed[i / 64] == 0) {
            i |= 63;
            continue;
        }
        if (bit_get(page->committed, i) && (base + i < allocator->first_block || base + i >= allocator->end_block))
            return false;
    }
    return true;
}

static int load_page(struct store *store, uint64_t index, uint64_t sequence_max, uint64_t *digest)
{
    struct allocator *allocator = &store->allocator;
    uint8_t images[2][STORE_BLOCK_SIZE];
    int best = -1, result = storage_read(store, images, sizeof images, bitmap_offset_bytes(store, index, 0));
    if (result < 0)
        return result;
    uint64_t best_sequence = 0;
    bool stale = false;
    for (int slot = 0; slot < 2; slot++) {
        const uint8_t *image = images[slot];
        uint64_t sequence = load64(image + BITMAP_SEQUENCE);
        if (load32(image + BITMAP_MAGIC_AT) != BITMAP_MAGIC || load32(image + BITMAP_PAGE_NUMBER) != index ||
            (page_image_checksum(image) != load64(image + BITMAP_CHECKSUM) && !MUTATED(BITMAP_CHECKSUM)))
            continue;
        if (sequence > sequence_max && !MUTATED(BITMAP_OF_SUPERBLOCK)) {
            stale = true;
        } else if (sequence > best_sequence) {
            best = slot;
            best_sequence = sequence;
        }
    }
    if (best < 0 && !stale)
        return 0;
    struct bitmap_page *page = page_of(allocator, index);
    if (!page)
        return -ENOMEM;
    /* a checkpoint that did not become durable left a copy under the number of the next one, which must overwrite it */
    page->dirty = stale && !MUTATED(BITMAP_STALE);
    if (best < 0)
        return 0;
    for (uint32_t word = 0; word < BITMAP_WORDS; word++) {
        page->committed[word] = load64(images[best] + BITMAP_BITS + word * 8u);
        page->committed_count += (uint32_t)__builtin_popcountll(page->committed[word]);
    }
    if (!bits_in_zone(allocator, index, page))
        return -EUCLEAN;
    uint64_t groups_before = whole_group_blocks(allocator, page, 0, BITMAP_BLOCKS_PER_PAGE) / allocator->group_blocks;
    memcpy(page->busy, page->committed, sizeof page->busy);
    page->busy_count = page->committed_count;
    page->sequence = best_sequence;
    page->slot = (uint8_t)best;
    page->checksum = load64(images[best] + BITMAP_CHECKSUM);
    allocator->busy_count += page->busy_count;
    allocator->free_group_count -= groups_before - whole_group_blocks(allocator, page, 0, BITMAP_BLOCKS_PER_PAGE) /
                                                       allocator->group_blocks;
    allocator->committed_count += page->committed_count;
    *digest ^= page_digest(index, page->sequence, page->checksum);
    return 0;
}

int allocator_load(struct store *store, uint64_t digest, uint64_t sequence_max, struct store_failure *failure)
{
    uint64_t found = 0;
    for (uint64_t i = 0; i < store->allocator.page_count; i++) {
        int result = load_page(store, i, sequence_max, &found);
        if (result < 0) {
            failure_set(failure, "free-space page %llu cannot be read or is damaged; run fsck.cowfs",
                        (unsigned long long)i);
            return result == -ENOMEM ? result : -EUCLEAN;
        }
    }
    if (found != digest && !MUTATED(BITMAP_DIGEST)) {
        failure_set(failure, "the free-space bitmap does not match its superblock; run fsck.cowfs");
        return -EUCLEAN;
    }
    store->allocator.digest = digest;
    return 0;
}

bool allocator_page_intact(struct store *store, uint64_t index, uint64_t *address)
{
    struct allocator *allocator = &store->allocator;
    uint8_t image[STORE_BLOCK_SIZE];
    struct bitmap_page *page = allocator->pages[index];
    if (!page || !page->sequence)
        return true;
    uint64_t offset = bitmap_offset_bytes(store, index, page->slot);
    *address = offset / STORE_BLOCK_SIZE;
    if (storage_read(store, image, sizeof image, offset) == 0 && load32(image + BITMAP_PAGE_NUMBER) == index &&
        load64(image + BITMAP_SEQUENCE) == page->sequence && load64(image + BITMAP_CHECKSUM) == page->checksum &&
        page_image_checksum(image) == page->checksum)
        return true;
    pthread_mutex_lock(&allocator->mutex);
    page->dirty = true;
    pthread_mutex_unlock(&allocator->mutex);
    pthread_mutex_lock(&store->lock);
    store->catalog_dirty = true; /* so that there is something for a checkpoint to do */
    pthread_mutex_unlock(&store->lock);
    return false;
}

int allocator_start_over(struct store *store)
{
    struct allocator *allocator = &store->allocator;
    uint8_t images[2][STORE_BLOCK_SIZE];
    allocator_destroy(store);
    allocator->busy_count = allocator->committed_count = allocator->claimed_unused = allocator->digest = 0;
    int result = allocator_create(store);
    for (uint64_t i = 0; result == 0 && i < allocator->page_count; i++) {
        /* a place that cannot be read may hold a page, too */
        if (storage_read(store, images, sizeof images, bitmap_offset_bytes(store, i, 0)) == 0 &&
            load32(images[0] + BITMAP_MAGIC_AT) != BITMAP_MAGIC && load32(images[1] + BITMAP_MAGIC_AT) != BITMAP_MAGIC)
            continue;
        struct bitmap_page *page = page_of(allocator, i);
        if (!page)
            return -ENOMEM;
        page->dirty = true;
    }
    return result;
}
