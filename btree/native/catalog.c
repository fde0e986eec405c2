/* Volumes, chains and snapshots in memory: creation, naming, deletion, clones, rollback. Every change here is memory
 * work under the store lock plus one journal record; the same functions serve replay. The medium's copy is the system
 * tree, written by checkpoints (catalog_save.c). */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

int name_check(const char *name)
{
    size_t length = strlen(name);
    if (length > STORE_NAME_LENGTH_MAX)
        return -ENAMETOOLONG;
    if (length == 0 || strchr(name, '/') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return -EINVAL;
    return 0;
}

int catalog_create(struct store *store)
{
    store->snapshot_hash_size = store->snapshot_hash_half = HASH_BUCKETS_MIN;
    store->snapshot_by_id_capacity = store->snapshot_by_name_capacity = HASH_BUCKETS_MIN;
    store->snapshot_by_id = calloc(HASH_BUCKETS_MIN, sizeof(struct snapshot *));
    store->snapshot_by_name = calloc(HASH_BUCKETS_MIN, sizeof(struct snapshot *));
    store->system_chain = (struct chain){.is_system = true, .live = true};
    return store->snapshot_by_id && store->snapshot_by_name ? 0 : -ENOMEM;
}

static void snapshot_free(struct snapshot *snapshot)
{
    free(snapshot->dead.items);
    free(snapshot->annotation);
    free(snapshot->name);
    free(snapshot);
}

void catalog_destroy(struct store *store)
{
    for (struct chain *chain = store->chains, *next; chain; chain = next) {
        next = chain->next;
        for (struct snapshot *snapshot = chain->oldest, *newer; snapshot; snapshot = newer) {
            newer = snapshot->newer;
            snapshot_free(snapshot);
        }
        free(chain);
    }
    for (struct volume *volume = volume_after(store, 0), *next; volume; volume = next) {
        next = volume_after(store, volume->id);
        properties_free(volume);
        free(volume->slots);
        free(volume->name);
        free(volume);
    }
    for (struct queue_item *item = store->queue_head, *next; item; item = next) {
        next = item->next;
        free(item);
    }
    free(store->snapshot_by_id);
    free(store->snapshot_by_name);
    free(store->removed_records);
    catalog_index_destroy(store);
}

/* ---- looking up ----------------------------------------------------------------------------------------------- */

/* Linear hashing (Litwin, 1980): the table grows slot by slot, so that no snapshot pays for all of them. A hash goes to
 * the slot that the next greater power of two gives it, or, as long as there is no such slot, the one below. */
static size_t hash_slot(const struct store *store, uint64_t hash)
{
    size_t slot = (size_t)hash & (2 * store->snapshot_hash_half - 1);
    return slot < store->snapshot_hash_size ? slot : slot - store->snapshot_hash_half;
}

static size_t id_slot(const struct store *store, uint64_t id)
{
    return hash_slot(store, id * UINT64_C(0x9e3779b97f4a7c15) >> 32);
}

static size_t name_slot(const struct store *store, uint64_t volume_id, const char *name)
{
    return hash_slot(store, (store_checksum(name, strlen(name)) ^ volume_id * UINT64_C(0x9e3779b97f4a7c15)) >> 16);
}

struct snapshot *snapshot_by_id(struct store *store, uint64_t id)
{
    struct snapshot *snapshot = store->snapshot_by_id[id_slot(store, id)];
    while (snapshot && snapshot->id != id)
        snapshot = snapshot->id_next;
    return snapshot;
}

struct snapshot *snapshot_by_name(struct store *store, const struct volume *volume, const char *name)
{
    struct snapshot *snapshot = store->snapshot_by_name[name_slot(store, volume->id, name)];
    while (snapshot && (snapshot->volume != volume || strcmp(snapshot->name, name) != 0))
        snapshot = snapshot->name_next;
    return snapshot;
}

const struct tree_root *object_root(struct store *store, uint64_t object_id, struct chain **chain)
{
    struct volume *volume = volume_by_id(store, object_id);
    if (volume) {
        *chain = volume->head;
        return &volume->head->head;
    }
    *chain = NULL;
    struct snapshot *snapshot = snapshot_by_id(store, object_id);
    return snapshot && !snapshot->hidden ? &snapshot->root : NULL;
}

/* ---- hash tables, lists ------------------------------------------------------------------------------------------ */

static void name_link(struct store *store, struct snapshot *snapshot)
{
    size_t slot = name_slot(store, snapshot->volume->id, snapshot->name);
    snapshot->name_next = store->snapshot_by_name[slot];
    store->snapshot_by_name[slot] = snapshot;
}

/* One slot more in each table: what belongs there now is in one other. */
static void hash_grow(struct store *store)
{
    size_t added = store->snapshot_hash_size, from = added - store->snapshot_hash_half;
    if (array_reserve((void **)&store->snapshot_by_id, &store->snapshot_by_id_capacity, added + 1,
                      sizeof *store->snapshot_by_id) < 0 ||
        array_reserve((void **)&store->snapshot_by_name, &store->snapshot_by_name_capacity, added + 1,
                      sizeof *store->snapshot_by_name) < 0)
        return; /* longer chains are slower, not wrong */
    store->snapshot_hash_size = added + 1;
    struct snapshot *next, *snapshot = store->snapshot_by_id[from];
    store->snapshot_by_id[from] = store->snapshot_by_id[added] = NULL;
    for (; snapshot; snapshot = next) {
        next = snapshot->id_next;
        size_t slot = id_slot(store, snapshot->id);
        snapshot->id_next = store->snapshot_by_id[slot];
        store->snapshot_by_id[slot] = snapshot;
    }
    snapshot = store->snapshot_by_name[from];
    store->snapshot_by_name[from] = store->snapshot_by_name[added] = NULL;
    for (; snapshot; snapshot = next) {
        next = snapshot->name_next;
        name_link(store, snapshot);
    }
    if (store->snapshot_hash_size == 2 * store->snapshot_hash_half)
        store->snapshot_hash_half = store->snapshot_hash_size;
}

static void name_unlink(struct store *store, struct snapshot *snapshot)
{
    struct snapshot **at = &store->snapshot_by_name[name_slot(store, snapshot->volume->id, snapshot->name)];
    while (*at && *at != snapshot)
        at = &(*at)->name_next;
    if (*at)
        *at = snapshot->name_next;
}

static void id_unlink(struct store *store, struct snapshot *snapshot)
{
    struct snapshot **at = &store->snapshot_by_id[id_slot(store, snapshot->id)];
    while (*at != snapshot)
        at = &(*at)->id_next;
    *at = snapshot->id_next;
}

/* First slot with id >= the given one. */
size_t volume_slot(const struct volume *volume, uint64_t id)
{
    size_t low = 0, high = volume->slot_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (volume->slots[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int volume_slot_add(struct volume *volume, struct snapshot *snapshot)
{
    int result = array_reserve((void **)&volume->slots, &volume->slot_capacity, volume->slot_count + 1,
                               sizeof *volume->slots);
    if (result < 0)
        return result;
    volume->slots[volume->slot_count++] = (struct snapshot_slot){snapshot->id, snapshot};
    volume->slot_live++;
    return 0;
}

static void volume_slot_remove(struct volume *volume, const struct snapshot *snapshot)
{
    size_t at = volume_slot(volume, snapshot->id);
    volume->slots[at].snapshot = NULL;
    volume->slot_live--;
    if (volume->slot_live * 2 >= volume->slot_count)
        return;
    size_t kept = 0;
    for (size_t i = 0; i < volume->slot_count; i++)
        if (volume->slots[i].snapshot)
            volume->slots[kept++] = volume->slots[i];
    volume->slot_count = kept;
}

void mark_chain_dirty(struct store *store, struct chain *chain)
{
    chain->dirty = true;
    store->catalog_dirty = true;
}

void mark_snapshot_dirty(struct store *store, struct snapshot *snapshot)
{
    store->catalog_dirty = true;
    if (snapshot->dirty)
        return;
    snapshot->dirty = true;
    atomic_fetch_add(&store->allocator.catalog_pending, 1);
    snapshot->dirty_previous = NULL;
    snapshot->dirty_next = store->dirty_snapshots;
    if (store->dirty_snapshots)
        store->dirty_snapshots->dirty_previous = snapshot;
    store->dirty_snapshots = snapshot;
}

static void unmark_snapshot(struct store *store, struct snapshot *snapshot)
{
    if (!snapshot->dirty)
        return;
    if (snapshot->dirty_previous)
        snapshot->dirty_previous->dirty_next = snapshot->dirty_next;
    else
        store->dirty_snapshots = snapshot->dirty_next;
    if (snapshot->dirty_next)
        snapshot->dirty_next->dirty_previous = snapshot->dirty_previous;
    snapshot->dirty = false;
}

struct queue_item *queue_append(struct store *store, enum queue_kind kind)
{
    struct queue_item *item = calloc(1, sizeof *item);
    if (!item) {
        store_fail(store, ENOMEM); /* space would be lost */
        return NULL;
    }
    item->id = store->next_queue_id++;
    item->kind = kind;
    if (store->queue_tail)
        store->queue_tail->next = item;
    else
        store->queue_head = item;
    store->queue_tail = item;
    store->queue_length++;
    atomic_fetch_add(&store->allocator.catalog_pending, 1);
    store->catalog_dirty = true;
    return item;
}

void record_removed(struct store *store, enum system_key_type type, uint64_t id)
{
    atomic_fetch_add(&store->allocator.catalog_pending, 1);
    store->catalog_dirty = true;
    if (array_reserve((void **)&store->removed_records, &store->removed_capacity, store->removed_count + 2,
                      sizeof *store->removed_records) < 0) {
        store_fail(store, ENOMEM);
        return;
    }
    store->removed_records[store->removed_count++] = (uint64_t)type;
    store->removed_records[store->removed_count++] = id;
}

/* ---- snapshots ------------------------------------------------------------------------------------------------ */

void snapshot_give(struct store *store, struct snapshot *snapshot, struct volume *volume)
{
    name_unlink(store, snapshot);
    volume_slot_remove(snapshot->volume, snapshot);
    snapshot->volume = volume;
    name_link(store, snapshot);
    mark_snapshot_dirty(store, snapshot);
}

struct snapshot *snapshot_attach(struct store *store, struct chain *chain, struct volume *volume, uint64_t id,
                                 const char *name)
{
    struct snapshot *snapshot = calloc(1, sizeof *snapshot);
    if (!snapshot)
        return NULL;
    snapshot->id = id;
    snapshot->chain = chain;
    snapshot->volume = volume;
    snapshot->hidden = volume == NULL;
    snapshot->name = strdup(name);
    if (!snapshot->name || (volume && volume_slot_add(volume, snapshot) < 0)) {
        snapshot_free(snapshot);
        return NULL;
    }
    if (store->snapshot_count > store->snapshot_hash_size)
        hash_grow(store);
    snapshot->older = chain->newest;
    if (chain->newest)
        chain->newest->newer = snapshot;
    else
        chain->oldest = snapshot;
    chain->newest = snapshot;
    size_t slot = id_slot(store, id);
    snapshot->id_next = store->snapshot_by_id[slot];
    store->snapshot_by_id[slot] = snapshot;
    if (volume)
        name_link(store, snapshot);
    store->snapshot_count++;
    return snapshot;
}

int apply_snapshot_create(struct store *store, uint64_t volume_id, uint64_t snapshot_id, uint64_t created_ns,
                          const char *name)
{
    struct volume *volume = volume_by_id(store, volume_id);
    if (!volume)
        return -ENOENT;
    if (snapshot_by_name(store, volume, name) || snapshot_by_id(store, snapshot_id))
        return -EEXIST;
    struct snapshot *snapshot = snapshot_attach(store, volume->head, volume, snapshot_id, name);
    if (!snapshot)
        return -ENOMEM;
    snapshot->root = volume->head->head;
    snapshot->created_ns = created_ns;
    snapshot->epoch = store->epoch++;
    volume->head->last_snapshot_epoch = snapshot->epoch;
    mark_snapshot_dirty(store, snapshot);
    chain_count_pinned(store, volume->head);
    store->counters.snapshots_created++;
    return 0;
}

static void chain_unlink(struct store *store, struct chain *chain)
{
    struct chain **at = &store->chains;
    while (*at != chain)
        at = &(*at)->next;
    *at = chain->next;
    chain_unindex(store, chain);
    if (chain->saved)
        record_removed(store, SYSTEM_CHAIN, chain->id);
    free(chain);
}

static void snapshot_detach(struct store *store, struct snapshot *snapshot);

static void origin_release(struct store *store, struct snapshot *origin, bool foreign)
{
    origin->chain_references--;
    if (foreign)
        origin->clone_count--;
    mark_snapshot_dirty(store, origin);
    if (origin->hidden && origin->chain_references == 0)
        snapshot_detach(store, origin);
}

/* The head of a chain goes: what only it refers to is freed, on the medium by the checkpoint's walk. The newest
 * snapshot that remains, if any, takes its place as the tree that owns blocks, so its bucket means nothing any more. */
static void chain_drop_head(struct store *store, struct chain *chain)
{
    struct snapshot *newest = chain->newest;
    if (chain->head.pointer.address[0])
        drop_tree(store, &chain->head.pointer, chain->head.level, chain_floor(chain));
    chain->live = false;
    chain_count_pinned(store, chain);
    if (!newest) {
        struct snapshot *origin = chain->origin;
        bool foreign = chain->foreign;
        chain_unlink(store, chain);
        if (origin)
            origin_release(store, origin, foreign);
        return;
    }
    for (size_t i = 0; i < newest->dead.count; i++) {
        store->dead_bytes -= sizeof(struct dead_entry);
        atomic_fetch_sub(&store->allocator.dead_pending, 1);
        store->dead_pending_blocks -= newest->dead.items[i].blocks;
    }
    newest->dead.count = 0;
    chain->head = newest->root;
    if (newest->saved) {
        struct queue_item *drop = queue_append(store, QUEUE_DROP);
        if (drop)
            drop->bucket = newest->id;
    }
    mark_chain_dirty(store, chain);
}

/* Takes a snapshot that nothing begins at out of its chain and leaves the rest to the deletion queue. */
static void snapshot_detach(struct store *store, struct snapshot *snapshot)
{
    struct chain *chain = snapshot->chain;
    bool was_newest = chain->newest == snapshot;
    struct snapshot *older = snapshot->older;
    uint64_t floor_epoch = older ? older->epoch : chain->origin ? chain->origin->epoch : 0;
    if (older)
        older->newer = snapshot->newer;
    else
        chain->oldest = snapshot->newer;
    if (snapshot->newer)
        snapshot->newer->older = older;
    else
        chain->newest = older;
    dead_hand_over(store, snapshot, older, floor_epoch);
    if (snapshot->saved) {
        struct queue_item *merge = queue_append(store, QUEUE_MERGE);
        if (merge) {
            merge->bucket = snapshot->id;
            merge->target = older ? older->id : 0;
            merge->floor_epoch = floor_epoch;
        }
        record_removed(store, SYSTEM_SNAPSHOT, snapshot->id);
    }
    unmark_snapshot(store, snapshot);
    id_unlink(store, snapshot);
    store->snapshot_count--;
    snapshot_free(snapshot);
    if (was_newest && !chain->live)
        chain_drop_head(store, chain);
    else if (chain_floor(chain) == 0)
        chain_count_pinned(store, chain);
}

static void snapshot_hide(struct store *store, struct snapshot *snapshot)
{
    name_unlink(store, snapshot);
    volume_slot_remove(snapshot->volume, snapshot);
    snapshot->volume = NULL;
    store->counters.snapshots_deleted++;
    if (snapshot->chain_references == 0) {
        snapshot_detach(store, snapshot);
        return;
    }
    snapshot->hidden = true;
    mark_snapshot_dirty(store, snapshot);
}

int apply_snapshot_delete(struct store *store, uint64_t snapshot_id)
{
    struct snapshot *snapshot = snapshot_by_id(store, snapshot_id);
    if (!snapshot || snapshot->hidden)
        return -ENOENT;
    if (snapshot->hold_count)
        return -EBUSY;
    snapshot_hide(store, snapshot);
    return 0;
}

int apply_annotate(struct store *store, uint64_t snapshot_id, uint32_t hold_count, const void *annotation,
                   size_t annotation_length)
{
    struct snapshot *snapshot = snapshot_by_id(store, snapshot_id);
    if (!snapshot || snapshot->hidden)
        return -ENOENT;
    uint8_t *copy = NULL;
    if (annotation_length) {
        copy = malloc(annotation_length);
        if (!copy)
            return -ENOMEM;
        memcpy(copy, annotation, annotation_length);
    }
    free(snapshot->annotation);
    snapshot->annotation = copy;
    snapshot->annotation_length = (uint16_t)annotation_length;
    snapshot->hold_count = hold_count;
    mark_snapshot_dirty(store, snapshot);
    return 0;
}

/* ---- volumes -------------------------------------------------------------------------------------------------- */

struct chain *chain_attach(struct store *store, uint64_t id, struct volume *volume, struct snapshot *origin)
{
    struct chain *chain = calloc(1, sizeof *chain);
    if (!chain)
        return NULL;
    chain->id = id;
    if (chain_index(store, chain) < 0) {
        free(chain);
        return NULL;
    }
    chain->volume = volume;
    chain->origin = origin;
    chain->next = store->chains;
    store->chains = chain;
    mark_chain_dirty(store, chain);
    return chain;
}

struct volume *volume_attach(struct store *store, uint64_t id, const char *name)
{
    struct volume *volume = calloc(1, sizeof *volume);
    if (!volume)
        return NULL;
    volume->id = id;
    volume->name = strdup(name);
    if (!volume->name || volume_index(store, volume) < 0) {
        free(volume->name);
        free(volume);
        return NULL;
    }
    volume->dirty = true;
    store->catalog_dirty = true;
    return volume;
}

static int volume_begin(struct store *store, const struct volume_arguments *arguments, struct snapshot *origin)
{
    /* Ids that are taken, or none: only a forged journal gives them out. */
    if (volume_by_name(store, arguments->name) || arguments->id == 0 || volume_by_id(store, arguments->id) ||
        arguments->chain_id == 0 || chain_by_id(store, arguments->chain_id))
        return -EEXIST;
    struct chain *chain = chain_attach(store, arguments->chain_id, NULL, origin);
    if (!chain)
        return -ENOMEM;
    struct volume *volume = volume_attach(store, arguments->id, arguments->name);
    if (!volume) {
        chain_unlink(store, chain);
        return -ENOMEM;
    }
    chain->volume = volume;
    volume->head = chain;
    volume->created_ns = arguments->created_ns;
    volume->head->live = true;
    if (origin) {
        volume->origin_snapshot_id = origin->id;
        volume->head->head = origin->root;
        volume->head->foreign = true;
        origin->chain_references++;
        origin->clone_count++;
        mark_snapshot_dirty(store, origin);
        chain_count_pinned(store, chain);
    }
    return 0;
}

int apply_volume_create(struct store *store, const struct volume_arguments *arguments)
{
    return volume_begin(store, arguments, NULL);
}

int apply_clone(struct store *store, uint64_t snapshot_id, const struct volume_arguments *arguments)
{
    struct snapshot *origin = snapshot_by_id(store, snapshot_id);
    if (!origin || origin->hidden)
        return -ENOENT;
    int result = volume_begin(store, arguments, origin);
    if (result < 0)
        return result;
    /* Their ids follow from the record's, so replay gives out the same. */
    result = properties_copy(store, origin->volume, volume_by_id(store, arguments->id), arguments->chain_id + 1);
    if (result < 0)
        store_fail(store, ENOMEM); /* the clone is there, but no record will say so */
    return result;
}

int apply_rollback(struct store *store, uint64_t volume_id, uint64_t snapshot_id, uint64_t guard_id,
                   uint64_t chain_id, uint64_t created_ns, const char *guard_name)
{
    struct volume *volume = volume_by_id(store, volume_id);
    struct snapshot *snapshot = snapshot_by_id(store, snapshot_id);
    if (!volume || !snapshot || snapshot->volume != volume)
        return -ENOENT;
    if (chain_by_id(store, chain_id))
        return -EEXIST;
    int result = apply_snapshot_create(store, volume_id, guard_id, created_ns, guard_name);
    if (result < 0)
        return result;
    struct chain *chain = chain_attach(store, chain_id, volume, snapshot);
    if (!chain) {
        store_fail(store, ENOMEM); /* the guard is there, but no record will say so */
        return -ENOMEM;
    }
    volume->head->live = false;
    chain_count_pinned(store, volume->head);
    mark_chain_dirty(store, volume->head);
    chain->live = true;
    chain->head = snapshot->root;
    chain_count_pinned(store, chain);
    snapshot->chain_references++;
    mark_snapshot_dirty(store, snapshot);
    volume->head = chain;
    volume->generation++;
    volume->dirty = true;
    return 0;
}

static bool volume_is_held(const struct volume *volume)
{
    for (size_t i = 0; i < volume->slot_count; i++)
        if (volume->slots[i].snapshot && volume->slots[i].snapshot->hold_count)
            return true;
    return false;
}

/* One chain of a volume that is being destroyed, or NULL. */
static struct chain *chain_of(struct store *store, const struct volume *volume)
{
    struct chain *chain = store->chains;
    while (chain && chain->volume != volume)
        chain = chain->next;
    return chain;
}

static void volume_hide_snapshots(struct store *store, struct volume *volume)
{
    for (size_t i = 0; i < volume->slot_count; i++) {
        struct snapshot *snapshot = volume->slots[i].snapshot;
        if (!snapshot)
            continue;
        name_unlink(store, snapshot);
        snapshot->hidden = true;
        snapshot->volume = NULL;
        mark_snapshot_dirty(store, snapshot);
        store->counters.snapshots_deleted++;
        /* In another volume's chain, which stays; those of its own go with theirs. */
        if (snapshot->chain->volume != volume && snapshot->chain_references == 0)
            snapshot_detach(store, snapshot);
    }
    volume->slot_count = volume->slot_live = 0;
}

/* Deletes what can go now. A snapshot that is another chain's origin, or another volume's, keeps this chain, nameless;
 * it goes when that does. */
static void chain_destroy(struct store *store, struct chain *chain)
{
    chain->volume = NULL;
    chain->live = true; /* the head goes last, so that each snapshot sees its true predecessor */
    for (struct snapshot *snapshot = chain->oldest, *newer; snapshot; snapshot = newer) {
        newer = snapshot->newer;
        if (snapshot->hidden && snapshot->chain_references == 0)
            snapshot_detach(store, snapshot);
    }
    mark_chain_dirty(store, chain);
    chain_drop_head(store, chain);
}

int apply_volume_destroy(struct store *store, uint64_t volume_id)
{
    struct volume *volume = volume_by_id(store, volume_id);
    if (!volume)
        return -ENOENT;
    if (volume_is_held(volume))
        return -EBUSY;
    volume_hide_snapshots(store, volume);
    for (struct chain *chain; (chain = chain_of(store, volume)) != NULL;)
        chain_destroy(store, chain);
    volume_unindex(store, volume);
    properties_forget(store, volume);
    if (volume->saved)
        record_removed(store, SYSTEM_VOLUME, volume->id);
    free(volume->slots);
    free(volume->name);
    free(volume);
    store->catalog_dirty = true;
    return 0;
}
