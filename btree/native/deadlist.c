/* Freeing by birth epoch. A block that a live tree gives up is free if it was born after the newest snapshot of its
 * chain; otherwise it goes to that snapshot's dead bucket. So every allocated block is owned by a live tree or by
 * exactly one bucket, and deleting a snapshot frees the part of its bucket born after its predecessor and hands on
 * the rest. After the dead lists of ZFS (Ahrens, "How ZFS snapshots really work").
 *
 * Under the store lock. Running out of memory here loses track of space, not of data: the store then stops. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

uint64_t chain_floor(const struct chain *chain)
{
    if (chain->newest)
        return chain->newest->epoch;
    return chain->origin && !MUTATED(CLONE_FLOOR) ? chain->origin->epoch : 0;
}

void chain_count_pinned(struct store *store, struct chain *chain)
{
    uint32_t count = chain->live && !chain->is_system && chain_floor(chain) ? chain->head.node_count : 0;
    atomic_fetch_add(&store->allocator.pinned_nodes, (uint64_t)count - chain->pinned_nodes);
    chain->pinned_nodes = count;
}

void free_later(struct store *store, uint64_t address, uint32_t blocks)
{
    if (MUTATED(FREES_AT_ONCE))
        allocator_release(store, address, blocks);
    bool too_early = store->checkpoint.running && MUTATED(FREES_BESIDE);
    if (range_list_add(too_early ? &store->checkpoint.frees : &store->pending_free, address, blocks) < 0)
        store_fail(store, ENOMEM);
    store->pending_free_blocks += blocks;
}

int free_by_checkpoint(struct store *store, uint64_t address, uint32_t blocks)
{
    if (MUTATED(FREES_BY_CHECKPOINT))
        allocator_release(store, address, blocks);
    return range_list_add(&store->checkpoint.frees, address, blocks);
}

static void drop_unwritten(struct store *store, struct node *node)
{
    if (node->state == NODE_DIRTY && store->checkpoint.running && node->birth <= store->checkpoint.frozen_epoch) {
        struct checkpoint *checkpoint = &store->checkpoint;
        if (array_reserve((void **)&checkpoint->deferred, &checkpoint->deferred_capacity,
                          checkpoint->deferred_count + 1, sizeof *checkpoint->deferred) < 0) {
            store_fail(store, ENOMEM);
            return;
        }
        checkpoint->deferred[checkpoint->deferred_count++] = node;
        return;
    }
    if (node->state == NODE_CLEAN) { /* written by the running checkpoint, reached by a pointer not yet replaced */
        for (int copy = 0; copy < 2; copy++)
            if (node->pointer.address[copy])
                free_later(store, node->pointer.address[copy], store->node_blocks);
        return;
    }
    dirty_list_remove(store, node);
    node_release(store, node);
}

void free_entry(struct store *store, const struct dead_entry *entry)
{
    if (entry->address & POINTER_TAG)
        drop_unwritten(store, tagged_node(entry->address));
    else
        free_later(store, entry->address, entry->blocks);
}

/* An unwritten node has pointers to nodes of its origin's chain, which may be freed as soon as the origin is released:
 * so it cannot wait for a checkpoint. What is on the medium can, and is queued subtree by subtree. Recursion is
 * as deep as the tree is high, and bounded in all by the unwritten nodes. */
void drop_tree(struct store *store, const struct tree_pointer *pointer, uint8_t level, uint64_t floor_epoch)
{
    if (pointer->birth <= floor_epoch)
        return;
    if (!pointer_is_tagged(pointer)) {
        struct queue_item *walk = queue_append(store, QUEUE_WALK);
        if (walk) {
            walk->root = (struct tree_root){.pointer = *pointer, .level = level};
            walk->floor_epoch = floor_epoch;
        }
        return;
    }
    struct node *node = tagged_node(pointer->address[0]);
    for (uint16_t slot = 0; slot < page_count(node->page); slot++) {
        struct page_item item;
        struct tree_pointer child;
        page_get(node->page, slot, &item);
        if (level > 0) {
            pointer_load(item.value, &child);
            drop_tree(store, &child, (uint8_t)(level - 1), floor_epoch);
        } else if (item.kind == STORE_VALUE_EXTENT && load64(item.value + EXTENT_BIRTH) > floor_epoch) {
            free_later(store, load64(item.value + EXTENT_ADDRESS), load16(item.value + EXTENT_BLOCKS));
        }
    }
    drop_unwritten(store, node);
}

void bury(struct store *store, struct snapshot *snapshot, uint64_t address, uint64_t birth, uint32_t blocks)
{
    if (dead_list_add(&snapshot->dead, address, birth, blocks) < 0)
        store_fail(store, ENOMEM);
    store->dead_bytes += sizeof(struct dead_entry);
    atomic_fetch_add(&store->allocator.dead_pending, 1);
    store->dead_pending_blocks += blocks;
    mark_snapshot_dirty(store, snapshot);
}

/* Whether a block that the head gives up goes to a bucket of this chain: what is as old as the chain's origin belongs
 * to the origin's chain. */
static bool chain_owns(const struct chain *chain, uint64_t birth)
{
    return chain->newest && (!chain->origin || birth > chain->origin->epoch || MUTATED(ORIGIN_BLOCKS));
}

void kill_node(struct store *store, struct chain *chain, const struct tree_pointer *pointer)
{
    if (chain->head.node_count)
        chain->head.node_count--;
    if (pointer->birth > chain_floor(chain)) {
        if (pointer_is_tagged(pointer)) {
            drop_unwritten(store, tagged_node(pointer->address[0]));
            return;
        }
        struct node *node = cache_find(store, pointer->address[0]);
        if (node && !node->pinned) {
            cache_remove(store, node);
            node_release(store, node);
        }
        for (int copy = 0; copy < 2; copy++) {
            if (!pointer->address[copy])
                continue;
            if (!chain->is_system)
                free_later(store, pointer->address[copy], store->node_blocks);
            else if (free_by_checkpoint(store, pointer->address[copy], store->node_blocks) < 0)
                store_fail(store, ENOMEM);
        }
        return;
    }
    if (chain->pinned_nodes) {
        chain->pinned_nodes--;
        atomic_fetch_sub(&store->allocator.pinned_nodes, 1);
    }
    if (!chain_owns(chain, pointer->birth))
        return;
    if (pointer_is_tagged(pointer)) {
        bury(store, chain->newest, pointer->address[0], pointer->birth, 0);
        return;
    }
    for (int copy = 0; copy < 2; copy++)
        if (pointer->address[copy])
            bury(store, chain->newest, pointer->address[copy], pointer->birth, store->node_blocks);
}

void kill_blocks(struct store *store, struct chain *chain, uint64_t address, uint32_t blocks, uint64_t birth)
{
    if (birth > chain_floor(chain) || MUTATED(SNAPSHOT_BLOCKS))
        free_later(store, address, blocks);
    else if (chain_owns(chain, birth))
        bury(store, chain->newest, address, birth, blocks);
}

void dead_hand_over(struct store *store, struct snapshot *snapshot, struct snapshot *predecessor, uint64_t floor_epoch)
{
    for (size_t i = 0; i < snapshot->dead.count; i++) {
        const struct dead_entry *entry = &snapshot->dead.items[i];
        store->dead_bytes -= sizeof *entry;
        atomic_fetch_sub(&store->allocator.dead_pending, 1);
        store->dead_pending_blocks -= entry->blocks;
        if (entry->birth > floor_epoch || MUTATED(DELETION_FLOOR))
            free_entry(store, entry);
        else if (predecessor)
            bury(store, predecessor, entry->address, entry->birth, entry->blocks);
    }
    free(snapshot->dead.items);
    snapshot->dead = (struct dead_list){0};
}
