/* Checkpoints. Under the lock everything is frozen: the epoch is raised, so that from here on the trees copy before
 * they change (tree.c, writable()). Then, beside the foreground: the frozen unwritten nodes go out bottom-up to new
 * places, the system tree is brought up to date and written, the bitmap pages, a flush, the superblock, a flush. Then
 * and only then is what the previous checkpoint needed reusable (invariant I1).
 *
 * The life of an unwritten node: new_node() or make_writable() -> collect() -> write_node() -> finish() unpins it as
 * a clean node of the cache. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

#define BATCH_BYTES (1u << 20)
/* Nodes gone through in one holding of the store lock: a fraction of a millisecond each, some 60 pointers a node in the
 * pass that resolves. */
#define RESOLVE_NODES_MAX 128u
#define RELEASE_NODES_MAX 512u

/* ---- freezing ------------------------------------------------------------------------------------------------- */

static bool anything_to_do(const struct store *store)
{
    const struct journal *journal = &store->journal;
    return store->dirty_count || store->catalog_dirty || store->queue_head || store->pending_free.count ||
           journal->pending.length || journal->head != journal->tail;
}

static void forget_last(struct checkpoint *checkpoint)
{
    for (size_t i = 0; i < checkpoint->record_count; i++)
        free(checkpoint->records[i].value);
    for (size_t i = 0; i < checkpoint->spill_count; i++)
        free(checkpoint->spills[i].dead.items);
    checkpoint->record_count = checkpoint->spill_count = checkpoint->root_count = 0;
    checkpoint->saved_snapshot_count = checkpoint->deferred_count = checkpoint->written_count = 0;
    checkpoint->frees.count = 0;
    for (size_t level = 0; level < STORE_TREE_HEIGHT_MAX; level++)
        checkpoint->level_count[level] = 0;
}

void checkpoint_destroy(struct store *store)
{
    struct checkpoint *checkpoint = &store->checkpoint;
    for (size_t i = 0; checkpoint->running && i < checkpoint->written_count; i++) {
        struct node *node = checkpoint->written[i]; /* of a checkpoint that failed: pinned, or still on a dirty list */
        if (node->pinned)
            free(node);
    }
    forget_last(checkpoint);
    for (struct queue_item *item = checkpoint->queue, *next; item; item = next) {
        next = item->next;
        free(item);
    }
    free(checkpoint->records);
    free(checkpoint->spills);
    free(checkpoint->roots);
    free(checkpoint->saved_snapshots);
    free(checkpoint->deferred);
    free(checkpoint->written);
    free(checkpoint->frees.items);
    for (size_t level = 0; level < STORE_TREE_HEIGHT_MAX; level++)
        free(checkpoint->levels[level]);
}

/* Under the store lock. What it gathers is bounded: maintenance.c, wants_checkpoint(). */
static int freeze(struct store *store)
{
    struct checkpoint *checkpoint = &store->checkpoint;
    checkpoint->sequence = store->checkpoint_sequence + 1;
    checkpoint->frozen_epoch = store->epoch++;
    checkpoint->running = true;
    checkpoint->dead_entries = atomic_load(&store->allocator.dead_pending);
    checkpoint->catalog_records = atomic_load(&store->allocator.catalog_pending);
    checkpoint->next_object_id = store->next_object_id;
    checkpoint->next_queue_id = store->next_queue_id;
    struct range_list taken = store->pending_free;
    store->pending_free = checkpoint->frees;
    checkpoint->frees = taken;
    checkpoint->pending_blocks = store->pending_free_blocks;
    if (!MUTATED(FREEZE_CUT))
        journal_cut(store);
    if (!MUTATED(FREEZE_BITMAP))
        allocator_freeze(store);
    return catalog_freeze(store);
}

/* ---- writing nodes -------------------------------------------------------------------------------------------- */

/* Gathers the unwritten nodes below a pointer by level. Needs no lock: frozen nodes do not change and are not freed
 * before the end of the checkpoint. */
static int collect(struct store *store, const struct tree_pointer *pointer)
{
    struct checkpoint *checkpoint = &store->checkpoint;
    if (!pointer_is_tagged(pointer))
        return 0;
    struct node *node = tagged_node(pointer->address[0]);
    if (node->collected == checkpoint->sequence)
        return 0;
    node->collected = checkpoint->sequence;
    int result = 0;
    for (uint16_t slot = 0; node->level > 0 && slot < page_count(node->page) && result == 0; slot++) {
        struct page_item item;
        struct tree_pointer child;
        page_get(node->page, slot, &item);
        pointer_load(item.value, &child);
        result = collect(store, &child);
    }
    uint8_t level = node->level;
    if (result == 0)
        result = array_reserve((void **)&checkpoint->levels[level], &checkpoint->level_capacity[level],
                               checkpoint->level_count[level] + 1, sizeof **checkpoint->levels);
    if (result == 0)
        checkpoint->levels[level][checkpoint->level_count[level]++] = node;
    return result;
}

/* Consecutive nodes on their way to consecutive places in each copy. */
struct batch {
    struct store *store;
    uint8_t *bytes;
    uint64_t start[2];
    uint32_t length;
    size_t first_written;
};

static int batch_write(struct batch *batch)
{
    struct store *store = batch->store;
    int result = 0;
    for (uint32_t copy = 0; copy < store->copies && batch->length && result == 0; copy++) {
        if (copy == 1 && MUTATED(NODE_SECOND))
            break;
        result = storage_write(store, batch->bytes, batch->length, batch->start[copy] * STORE_BLOCK_SIZE);
        atomic_fetch_add(&store->metadata_written_bytes, batch->length);
    }
    struct hold hold;
    size_t before = batch->first_written;
    hold_lock(store, &hold, STORE_HOLD_ENTER);
    for (; batch->first_written < store->checkpoint.written_count; batch->first_written++) {
        struct node *node = store->checkpoint.written[batch->first_written];
        dirty_list_remove(store, node);
        node->pinned = true;
        cache_insert(store, node);
        store->counters.nodes_written++;
    }
    hold_unlock(store, &hold, batch->first_written - before);
    batch->length = 0;
    return result;
}

/* Child pointers in memory become places on the medium. Under the lock, because readers pass through the page. */
static void resolve_children(struct node *node)
{
    for (uint16_t slot = 0; slot < page_count(node->page); slot++) {
        struct page_item item;
        struct tree_pointer pointer;
        uint8_t value[POINTER_LENGTH];
        page_get(node->page, slot, &item);
        pointer_load(item.value, &pointer);
        if (!pointer_is_tagged(&pointer))
            continue;
        const struct node *child = tagged_node(pointer.address[0]);
        if (child->state != NODE_CLEAN)
            continue;
        pointer_save(value, &child->pointer);
        page_overwrite(node->page, slot, value, POINTER_LENGTH, STORE_VALUE_PLAIN);
    }
}

static int write_node(struct batch *batch, struct node *node)
{
    struct store *store = batch->store;
    struct checkpoint *checkpoint = &store->checkpoint;
    struct tree_pointer place = {.birth = node->birth};
    int result = allocator_claim_node(store, place.address);
    if (result < 0)
        return result;
    bool follows = batch->length && batch->length + store->node_size <= BATCH_BYTES;
    for (uint32_t copy = 0; copy < store->copies; copy++)
        follows = follows && place.address[copy] == batch->start[copy] + batch->length / STORE_BLOCK_SIZE;
    if (!follows) {
        result = batch_write(batch);
        batch->start[0] = place.address[0];
        batch->start[1] = place.address[1];
    }
    if (result == 0)
        result = array_reserve((void **)&checkpoint->written, &checkpoint->written_capacity,
                               checkpoint->written_count + 1, sizeof *checkpoint->written);
    if (result < 0)
        return result;
    if (node->level > 0) {
        pthread_mutex_lock(&store->lock);
        resolve_children(node);
        pthread_mutex_unlock(&store->lock);
    }
    place.checksum = store_checksum(node->page, store->node_size);
    memcpy(batch->bytes + batch->length, node->page, store->node_size);
    batch->length += store->node_size;
    node->pointer = place;
    checkpoint->written[checkpoint->written_count++] = node;
    return 0;
}

/* All nodes gathered, leaves first: a parent is written when its children have places and checksums. */
static int write_collected(struct store *store)
{
    struct checkpoint *checkpoint = &store->checkpoint;
    struct batch batch = {.store = store, .first_written = checkpoint->written_count};
    batch.bytes = aligned_alloc(STORE_BLOCK_SIZE, BATCH_BYTES);
    if (!batch.bytes)
        return -ENOMEM;
    int result = 0;
    for (size_t level = 0; level < STORE_TREE_HEIGHT_MAX && result == 0; level++) {
        for (size_t i = 0; i < checkpoint->level_count[level] && result == 0; i++)
            result = write_node(&batch, checkpoint->levels[level][i]);
        if (result == 0)
            result = batch_write(&batch);
        checkpoint->level_count[level] = 0;
    }
    free(batch.bytes);
    return result;
}

/* What the trees of the checkpoint before this one needed, and nothing else does, is free in the bitmap that this one
 * writes. */
static void clear_frees(struct store *store)
{
    const struct checkpoint *checkpoint = &store->checkpoint;
    for (size_t i = 0; i < checkpoint->frees.count; i++)
        allocator_clear(store, checkpoint->frees.items[i].address, checkpoint->frees.items[i].blocks);
}

static void release_frees(struct store *store)
{
    const struct checkpoint *checkpoint = &store->checkpoint;
    for (size_t i = 0; i < checkpoint->frees.count; i++)
        allocator_release(store, checkpoint->frees.items[i].address, checkpoint->frees.items[i].blocks);
}

static int write_trees(struct store *store)
{
    struct checkpoint *checkpoint = &store->checkpoint;
    int result = 0;
    if (MUTATED(FREES_AFTER_CHECKPOINT)) {
        clear_frees(store);
        release_frees(store);
        checkpoint->frees.count = 0;
    }
    for (size_t i = 0; i < checkpoint->root_count && result == 0; i++)
        result = collect(store, &checkpoint->roots[i].pointer);
    return result < 0 ? result : write_collected(store);
}

/* ---- the system tree ------------------------------------------------------------------------------------------ */

static int save_records(struct store *store)
{
    struct checkpoint *checkpoint = &store->checkpoint;
    int result = 0;
    for (size_t i = 0; i < checkpoint->record_count && result == 0; i++) {
        struct saved_record *record = &checkpoint->records[i];
        if (record->value_length == 0) {
            result = system_delete(store, record->key, record->key_length);
            continue;
        }
        if (record->root_at >= 0) {
            struct tree_pointer pointer;
            pointer_load(record->value + record->root_at, &pointer);
            if (pointer_is_tagged(&pointer))
                pointer_save(record->value + record->root_at, &tagged_node(pointer.address[0])->pointer);
        }
        result = system_put(store, record->key, record->key_length, record->value, record->value_length);
    }
    if (result == 0)
        result = buckets_forget(store);
    for (size_t i = 0; i < checkpoint->spill_count && result == 0; i++)
        result = queue_spill(store, &checkpoint->spills[i]);
    if (result < 0)
        return result;
    /* now they are unwritten nodes */
    atomic_fetch_sub(&store->allocator.dead_pending, checkpoint->dead_entries);
    atomic_fetch_sub(&store->allocator.catalog_pending, checkpoint->catalog_records);
    return queue_work(store);
}

static int write_system(struct store *store)
{
    int result = save_records(store);
    if (result == 0)
        result = collect(store, &store->system_chain.head.pointer);
    if (result == 0)
        result = write_collected(store);
    if (result < 0)
        return result;
    struct tree_root *root = &store->system_chain.head;
    pthread_mutex_lock(&store->lock);
    if (pointer_is_tagged(&root->pointer))
        root->pointer = tagged_node(root->pointer.address[0])->pointer;
    atomic_store(&store->allocator.system_nodes, root->node_count);
    pthread_mutex_unlock(&store->lock);
    return 0;
}

/* ---- finishing ------------------------------------------------------------------------------------------------ */

static void resolve_root(struct tree_root *root)
{
    if (!pointer_is_tagged(&root->pointer))
        return;
    const struct node *node = tagged_node(root->pointer.address[0]);
    if (node->state == NODE_CLEAN)
        root->pointer = node->pointer;
}

static void resolve_dead(struct store *store, struct snapshot *snapshot)
{
    size_t count = snapshot->dead.count;
    for (size_t i = 0; i < count; i++) {
        struct dead_entry *entry = &snapshot->dead.items[i];
        if (!(entry->address & POINTER_TAG))
            continue;
        const struct node *node = tagged_node(entry->address);
        if (node->state != NODE_CLEAN)
            continue;
        entry->address = node->pointer.address[0];
        entry->blocks = store->node_blocks;
        store->dead_pending_blocks += store->node_blocks;
        if (!node->pointer.address[1])
            continue;
        if (dead_list_add(&snapshot->dead, node->pointer.address[1], node->birth, store->node_blocks) < 0)
            store_fail(store, ENOMEM);
        store->dead_bytes += sizeof *entry;
        atomic_fetch_add(&store->allocator.dead_pending, 1);
        store->dead_pending_blocks += store->node_blocks;
    }
}

/* Most of the inner nodes that were made since the freeze, a few in each holding of the lock: those at the list's head
 * are resolved and go to its end, where also those go that are made meanwhile. What is changed after its turn counts as
 * not resolved (tree.c, path_make_writable()). */
static void resolve_beside(struct store *store)
{
    uint64_t sequence = store->checkpoint.sequence;
    bool more = true;
    while (more) {
        struct hold hold;
        uint64_t steps = 0;
        hold_lock(store, &hold, STORE_HOLD_RESOLVE);
        struct node *node;
        while ((node = store->dirty_inner.head) != NULL && node->resolved != sequence && steps < RESOLVE_NODES_MAX) {
            resolve_children(node);
            node->resolved = sequence;
            dirty_inner_rotate(store);
            steps++;
        }
        more = steps == RESOLVE_NODES_MAX;
        hold_unlock(store, &hold, steps);
    }
}

/* Replaces every tagged pointer to a node that is written now. Under the store lock; how much it looked at. */
static uint64_t resolve_everything(struct store *store)
{
    struct checkpoint *checkpoint = &store->checkpoint;
    uint64_t steps = store->dirty_inner.count + checkpoint->saved_snapshot_count;
    for (struct node *node = store->dirty_inner.head; node; node = node->next)
        if (node->resolved != checkpoint->sequence)
            resolve_children(node);
    for (struct chain *chain = store->chains; chain; chain = chain->next)
        resolve_root(&chain->head);
    for (size_t i = 0; i < checkpoint->saved_snapshot_count; i++) {
        struct snapshot *snapshot = snapshot_by_id(store, checkpoint->saved_snapshots[i]);
        if (snapshot)
            resolve_root(&snapshot->root);
    }
    for (struct snapshot *snapshot = store->dirty_snapshots; snapshot; snapshot = snapshot->dirty_next) {
        resolve_root(&snapshot->root);
        resolve_dead(store, snapshot);
        steps += 1 + snapshot->dead.count;
    }
    return steps;
}

/* Blocks of nodes that were given up while they were being written. */
static void free_deferred(struct store *store)
{
    const struct checkpoint *checkpoint = &store->checkpoint;
    for (size_t i = 0; i < checkpoint->deferred_count;) {
        struct hold hold;
        size_t before = i;
        hold_lock(store, &hold, STORE_HOLD_RELEASE);
        for (; i < checkpoint->deferred_count && i - before < RELEASE_NODES_MAX; i++)
            for (int copy = 0; copy < 2; copy++)
                if (checkpoint->deferred[i]->pointer.address[copy] && !MUTATED(DEFERRED_FREED))
                    free_later(store, checkpoint->deferred[i]->pointer.address[copy], store->node_blocks);
        hold_unlock(store, &hold, i - before);
    }
}

/* No tagged pointer leads to them any more. The cache is trimmed on the way, or it would outgrow its limit by all. */
static void unpin_written(struct store *store)
{
    struct checkpoint *checkpoint = &store->checkpoint;
    size_t done = 0;
    for (bool more = true; more;) {
        struct hold hold;
        size_t before = done;
        hold_lock(store, &hold, STORE_HOLD_RELEASE);
        for (; done < checkpoint->written_count && done - before < RELEASE_NODES_MAX; done++)
            cache_unpin(store, checkpoint->written[done]);
        more = cache_trim(store) || done < checkpoint->written_count;
        hold_unlock(store, &hold, done - before);
    }
    checkpoint->written_count = 0;
}

static struct queue_item *queue_last(struct queue_item *item)
{
    while (item && item->next)
        item = item->next;
    return item;
}

/* What the queue did not get to, up to `last`, goes before what was added meanwhile. */
static void requeue(struct store *store, struct queue_item *last)
{
    if (!last)
        return;
    last->next = store->queue_head;
    if (!store->queue_tail)
        store->queue_tail = last;
    store->queue_head = store->checkpoint.queue;
    store->checkpoint.queue = NULL;
}

static void finish(struct store *store)
{
    struct checkpoint *checkpoint = &store->checkpoint;
    struct journal *journal = &store->journal;
    struct queue_item *last = queue_last(checkpoint->queue);
    struct hold hold;
    resolve_beside(store);
    hold_lock(store, &hold, STORE_HOLD_FINISH);
    uint64_t steps = resolve_everything(store);
    requeue(store, last);
    checkpoint->running = false;
    store->checkpoint_sequence = checkpoint->sequence;
    store->pending_free_blocks -= checkpoint->pending_blocks;
    store->counters.checkpoints++;
    journal->tail = checkpoint->journal_tail;
    if (journal->flushed_sequence < checkpoint->journal_sequence - 1)
        journal->flushed_sequence = checkpoint->journal_sequence - 1;
    hold_unlock(store, &hold, steps);
    free_deferred(store); /* before they are dropped from memory */
    unpin_written(store);
    release_frees(store);
    allocator_thaw(store);
    forget_last(checkpoint);
}

static int make_durable(struct store *store, bool clean)
{
    const struct checkpoint *checkpoint = &store->checkpoint;
    clear_frees(store);
    int result = MUTATED(BITMAP_WRITTEN) ? 0 : allocator_write(store, checkpoint->sequence);
    if (result == 0 && !MUTATED(FLUSH_BEFORE_SUPERBLOCK))
        result = storage_flush(store);
    if (result < 0)
        return result;
    struct superblock superblock;
    superblock_describe(store, &superblock);
    superblock.sequence = checkpoint->sequence;
    superblock.epoch = checkpoint->frozen_epoch + !MUTATED(FREEZE_EPOCH);
    superblock.journal_position = checkpoint->journal_position;
    superblock.journal_sequence = MUTATED(JOURNAL_FROM_FREEZE) ? store->journal.sequence : checkpoint->journal_sequence;
    if (MUTATED(JOURNAL_FROM_FREEZE))
        superblock.journal_position = store->journal.head % store->journal.size_bytes;
    superblock.next_object_id = checkpoint->next_object_id;
    superblock.next_queue_id = checkpoint->next_queue_id;
    superblock.flags = clean ? SUPERBLOCK_FLAG_CLEAN : 0;
    result = superblock_write(store, &superblock);
    if (result == 0 && !MUTATED(FLUSH_AFTER_SUPERBLOCK))
        result = storage_flush(store);
    return result;
}

int checkpoint_run(struct store *store, bool clean)
{
    struct checkpoint *checkpoint = &store->checkpoint;
    if (store->read_only)
        return 0;
    pthread_mutex_lock(&store->checkpoint_mutex);
    int result = atomic_load(&store->failed_errno) ? -EIO : 0;
    if (result < 0)
        goto unlock;
    struct hold hold;
    pthread_mutex_lock(&store->commit_mutex);
    hold_lock(store, &hold, STORE_HOLD_FREEZE);
    bool needed = anything_to_do(store) || (clean && !store->clean_superblock);
    if (needed)
        result = freeze(store);
    hold_unlock(store, &hold, needed ? checkpoint->record_count : 0);
    if (needed && result == 0 && !MUTATED(CHECKPOINT_DATA))
        result = journal_write_cut(store);
    if (needed) {
        checkpoint->journal_tail = store->journal.head;
        checkpoint->journal_position = store->journal.head % store->journal.size_bytes;
        checkpoint->journal_sequence = store->journal.sequence;
        if (MUTATED(JOURNAL_TAIL))
            store->journal.tail = checkpoint->journal_tail;
    }
    pthread_mutex_unlock(&store->commit_mutex);
    if (!needed)
        goto unlock;
    if (result == 0)
        result = write_trees(store);
    if (result == 0)
        result = write_system(store);
    if (result == 0)
        result = make_durable(store, clean);
    if (result == 0) {
        finish(store);
        store->clean_superblock = clean;
    } else {
        store_fail(store, result); /* what was frozen stays readable in memory; nothing more is promised */
        result = -EIO;
    }
unlock:
    pthread_mutex_unlock(&store->checkpoint_mutex);
    return result;
}

int checkpoint_for_space(struct store *store, struct space_tries *tries)
{
    uint64_t before = allocator_spare_blocks(store);
    if (tries->count > 0 && before <= tries->free_blocks)
        return -ENOSPC;
    tries->count++;
    tries->free_blocks = before;
    uint64_t began_ns = monotonic_ns();
    int result = checkpoint_run(store, false);
    wait_note(store, STORE_WAIT_SPACE, began_ns);
    return result;
}

int store_checkpoint(struct store *store)
{
    return checkpoint_run(store, false);
}
