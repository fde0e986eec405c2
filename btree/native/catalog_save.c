/* The catalog's records in the system tree: pairs of packing at a checkpoint's freeze and unpacking at opening. Their
 * layouts are owned here. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

enum volume_record {
    VOLUME_CREATED = 0,
    VOLUME_GENERATION = 8,
    VOLUME_ORIGIN = 16,
    VOLUME_HEAD = 24,
    VOLUME_NAME = 32,
};
enum chain_record { CHAIN_VOLUME = 0, CHAIN_ORIGIN = 8, CHAIN_FLAGS = 16, CHAIN_ROOT = 24, CHAIN_RECORD_LENGTH = 64 };
enum chain_flags { CHAIN_LIVE = 1, CHAIN_FOREIGN = 2 };
enum snapshot_record {
    SNAPSHOT_CHAIN = 0,
    SNAPSHOT_EPOCH = 8,
    SNAPSHOT_CREATED = 16,
    SNAPSHOT_HOLDS = 24,
    SNAPSHOT_FLAGS = 28,
    SNAPSHOT_ROOT = 32,
    SNAPSHOT_NAME_LENGTH = 72,
    SNAPSHOT_ANNOTATION_LENGTH = 74,
    SNAPSHOT_NAME = 76,
};
/* MOVED: the id of the volume whose it is follows at the end, see promote.c. */
enum snapshot_flags { SNAPSHOT_HIDDEN = 1, SNAPSHOT_MOVED = 2 };

/* ---- packing -------------------------------------------------------------------------------------------------- */

struct saved_record *record_add(struct checkpoint *checkpoint, enum system_key_type type, uint64_t id,
                                size_t value_length, int16_t root_at)
{
    if (array_reserve((void **)&checkpoint->records, &checkpoint->record_capacity, checkpoint->record_count + 1,
                      sizeof *checkpoint->records) < 0)
        return NULL;
    struct saved_record *record = &checkpoint->records[checkpoint->record_count];
    record->value = value_length ? calloc(1, value_length) : NULL;
    if (value_length && !record->value)
        return NULL;
    record->key_length = (uint16_t)system_key(record->key, type, id);
    record->value_length = (uint16_t)value_length;
    record->root_at = root_at;
    checkpoint->record_count++;
    return record;
}

static int root_add(struct checkpoint *checkpoint, const struct tree_root *root)
{
    if (!pointer_is_tagged(&root->pointer))
        return 0;
    int result = array_reserve((void **)&checkpoint->roots, &checkpoint->root_capacity, checkpoint->root_count + 1,
                               sizeof *checkpoint->roots);
    if (result == 0)
        checkpoint->roots[checkpoint->root_count++] = *root;
    return result;
}

static int volume_save(struct checkpoint *checkpoint, struct volume *volume)
{
    size_t name_length = strlen(volume->name);
    struct saved_record *record = record_add(checkpoint, SYSTEM_VOLUME, volume->id, VOLUME_NAME + name_length, -1);
    if (!record)
        return -ENOMEM;
    save64(record->value + VOLUME_CREATED, volume->created_ns);
    save64(record->value + VOLUME_GENERATION, volume->generation);
    save64(record->value + VOLUME_ORIGIN, volume->origin_snapshot_id);
    save64(record->value + VOLUME_HEAD, volume->head->id);
    memcpy(record->value + VOLUME_NAME, volume->name, name_length);
    volume->dirty = false;
    volume->saved = true;
    return 0;
}

static int chain_save(struct checkpoint *checkpoint, struct chain *chain)
{
    struct saved_record *record = record_add(checkpoint, SYSTEM_CHAIN, chain->id, CHAIN_RECORD_LENGTH, CHAIN_ROOT);
    if (!record)
        return -ENOMEM;
    save64(record->value + CHAIN_VOLUME, chain->volume ? chain->volume->id : 0);
    save64(record->value + CHAIN_ORIGIN, chain->origin ? chain->origin->id : 0);
    record->value[CHAIN_FLAGS] = (uint8_t)((chain->live ? CHAIN_LIVE : 0) | (chain->foreign ? CHAIN_FOREIGN : 0));
    root_save(record->value + CHAIN_ROOT, &chain->head);
    chain->dirty = false;
    chain->saved = true;
    return root_add(checkpoint, &chain->head);
}

static int snapshot_save(struct checkpoint *checkpoint, struct snapshot *snapshot)
{
    size_t name_length = strlen(snapshot->name);
    bool moved = snapshot->volume && snapshot->volume != snapshot->chain->volume;
    struct saved_record *record =
        record_add(checkpoint, SYSTEM_SNAPSHOT, snapshot->id,
                   SNAPSHOT_NAME + name_length + snapshot->annotation_length + (moved ? 8 : 0), SNAPSHOT_ROOT);
    if (!record)
        return -ENOMEM;
    if (moved)
        save64(record->value + SNAPSHOT_NAME + name_length + snapshot->annotation_length, snapshot->volume->id);
    save64(record->value + SNAPSHOT_CHAIN, snapshot->chain->id);
    save64(record->value + SNAPSHOT_EPOCH, snapshot->epoch);
    save64(record->value + SNAPSHOT_CREATED, snapshot->created_ns);
    save32(record->value + SNAPSHOT_HOLDS, snapshot->hold_count);
    save32(record->value + SNAPSHOT_FLAGS, (snapshot->hidden ? SNAPSHOT_HIDDEN : 0u) | (moved ? SNAPSHOT_MOVED : 0u));
    root_save(record->value + SNAPSHOT_ROOT, &snapshot->root);
    save16(record->value + SNAPSHOT_NAME_LENGTH, (uint16_t)name_length);
    save16(record->value + SNAPSHOT_ANNOTATION_LENGTH, snapshot->annotation_length);
    memcpy(record->value + SNAPSHOT_NAME, snapshot->name, name_length);
    if (snapshot->annotation_length)
        memcpy(record->value + SNAPSHOT_NAME + name_length, snapshot->annotation, snapshot->annotation_length);
    int result = root_add(checkpoint, &snapshot->root);
    if (result == 0)
        result = array_reserve((void **)&checkpoint->saved_snapshots, &checkpoint->saved_snapshot_capacity,
                               checkpoint->saved_snapshot_count + 1, sizeof *checkpoint->saved_snapshots);
    if (result == 0)
        checkpoint->saved_snapshots[checkpoint->saved_snapshot_count++] = snapshot->id;
    snapshot->saved = true;
    return result;
}

static int bucket_spill(struct checkpoint *checkpoint, struct snapshot *snapshot)
{
    if (snapshot->dead.count == 0)
        return 0;
    int result = array_reserve((void **)&checkpoint->spills, &checkpoint->spill_capacity, checkpoint->spill_count + 1,
                               sizeof *checkpoint->spills);
    if (result < 0)
        return result;
    checkpoint->spills[checkpoint->spill_count++] = (struct spilled_bucket){snapshot->id, snapshot->dead};
    snapshot->dead = (struct dead_list){0};
    return 0;
}

static int snapshots_freeze(struct store *store)
{
    struct checkpoint *checkpoint = &store->checkpoint;
    int result = 0;
    for (struct snapshot *snapshot = store->dirty_snapshots, *next; snapshot && result == 0; snapshot = next) {
        next = snapshot->dirty_next;
        size_t dead = snapshot->dead.count;
        result = snapshot_save(checkpoint, snapshot);
        if (result == 0)
            result = bucket_spill(checkpoint, snapshot);
        store->dead_bytes -= dead * sizeof(struct dead_entry);
        snapshot->dirty = false;
        snapshot->dirty_previous = snapshot->dirty_next = NULL;
    }
    store->dirty_snapshots = NULL;
    return result;
}

/* The checkpoint works the queue off in order; what it does not get to it saves as records. */
static void queue_freeze(struct store *store)
{
    store->checkpoint.queue = store->queue_head;
    store->queue_head = store->queue_tail = NULL;
}

int catalog_freeze(struct store *store)
{
    struct checkpoint *checkpoint = &store->checkpoint;
    int result = 0;
    for (size_t i = 0; i < store->removed_count && result == 0; i += 2)
        if (!record_add(checkpoint, (enum system_key_type)store->removed_records[i], store->removed_records[i + 1], 0,
                        -1))
            result = -ENOMEM;
    store->removed_count = 0;
    for (struct volume *volume = volume_after(store, 0); volume && result == 0;
         volume = volume_after(store, volume->id)) {
        if (volume->dirty)
            result = volume_save(checkpoint, volume);
        if (result == 0)
            result = properties_save(checkpoint, volume);
    }
    for (struct chain *chain = store->chains; chain && result == 0; chain = chain->next)
        if (chain->dirty)
            result = chain_save(checkpoint, chain);
    if (result == 0)
        result = snapshots_freeze(store);
    queue_freeze(store);
    store->catalog_dirty = false;
    return result;
}

/* ---- unpacking ------------------------------------------------------------------------------------------------ */

static bool root_plausible(const struct store *store, const struct tree_root *root)
{
    if (root->pointer.address[0] == 0)
        return root->level == 0;
    return root->level < STORE_TREE_HEIGHT_MAX && root->pointer.birth < store->epoch &&
           pointer_in_zone(store, &root->pointer);
}

static bool name_load(char *name, const uint8_t *from, size_t length)
{
    if (length > STORE_NAME_LENGTH_MAX)
        return false;
    memcpy(name, from, length);
    name[length] = 0;
    return strlen(name) == length && name_check(name) == 0;
}

typedef int (*record_loader)(struct store *store, uint64_t id, const uint8_t *value, size_t length);

static int volume_load(struct store *store, uint64_t id, const uint8_t *value, size_t length)
{
    char name[STORE_NAME_LENGTH_MAX + 1];
    if (id == 0 || id >= store->next_object_id || volume_by_id(store, id) || length <= VOLUME_NAME ||
        !name_load(name, value + VOLUME_NAME, length - VOLUME_NAME) || volume_by_name(store, name))
        return -EUCLEAN;
    struct volume *volume = volume_attach(store, id, name);
    if (!volume)
        return -ENOMEM;
    volume->created_ns = load64(value + VOLUME_CREATED);
    volume->generation = load64(value + VOLUME_GENERATION);
    volume->origin_snapshot_id = load64(value + VOLUME_ORIGIN);
    volume->dirty = false;
    volume->saved = true;
    return 0;
}

static int chain_load(struct store *store, uint64_t id, const uint8_t *value, size_t length)
{
    if (id == 0 || id >= store->next_object_id || chain_by_id(store, id) || length != CHAIN_RECORD_LENGTH)
        return -EUCLEAN;
    struct tree_root root;
    root_load(value + CHAIN_ROOT, &root);
    uint64_t volume_id = load64(value + CHAIN_VOLUME);
    struct volume *volume = volume_id ? volume_by_id(store, volume_id) : NULL;
    if (!root_plausible(store, &root) || (volume_id && !volume))
        return -EUCLEAN;
    struct chain *chain = chain_attach(store, id, volume, NULL);
    if (!chain)
        return -ENOMEM;
    chain->head = root;
    chain->live = value[CHAIN_FLAGS] & CHAIN_LIVE;
    chain->foreign = value[CHAIN_FLAGS] & CHAIN_FOREIGN;
    chain->dirty = false;
    chain->saved = true;
    return 0;
}

static int snapshot_load(struct store *store, uint64_t id, const uint8_t *value, size_t length)
{
    if (id >= store->next_object_id || length <= SNAPSHOT_NAME)
        return -EUCLEAN;
    size_t name_length = load16(value + SNAPSHOT_NAME_LENGTH);
    size_t annotation_length = load16(value + SNAPSHOT_ANNOTATION_LENGTH);
    char name[STORE_NAME_LENGTH_MAX + 1];
    struct tree_root root;
    root_load(value + SNAPSHOT_ROOT, &root);
    struct chain *chain = chain_by_id(store, load64(value + SNAPSHOT_CHAIN));
    uint64_t epoch = load64(value + SNAPSHOT_EPOCH);
    bool hidden = load32(value + SNAPSHOT_FLAGS) & SNAPSHOT_HIDDEN;
    size_t moved_length = load32(value + SNAPSHOT_FLAGS) & SNAPSHOT_MOVED ? 8 : 0;
    if (annotation_length > STORE_ANNOTATION_LENGTH_MAX ||
        length != SNAPSHOT_NAME + name_length + annotation_length + moved_length ||
        !name_load(name, value + SNAPSHOT_NAME, name_length) || !root_plausible(store, &root) || !chain ||
        epoch >= store->epoch || (chain->newest && chain->newest->epoch >= epoch))
        return -EUCLEAN;
    struct volume *volume = hidden         ? NULL
                            : moved_length ? volume_by_id(store, load64(value + length - moved_length))
                                           : chain->volume;
    if (!hidden && (!volume || snapshot_by_name(store, volume, name)))
        return -EUCLEAN;
    struct snapshot *snapshot = snapshot_attach(store, chain, volume, id, name);
    if (!snapshot)
        return -ENOMEM;
    snapshot->root = root;
    snapshot->epoch = epoch;
    snapshot->created_ns = load64(value + SNAPSHOT_CREATED);
    snapshot->saved = true;
    return apply_annotate(store, id, load32(value + SNAPSHOT_HOLDS), value + SNAPSHOT_NAME + name_length,
                          annotation_length) == -ENOMEM
               ? -ENOMEM
               : 0;
}

static int queue_load(struct store *store, uint64_t id, const uint8_t *value, size_t length)
{
    struct tree_root root;
    if (id >= store->next_queue_id || length != QUEUE_RECORD_LENGTH || value[QUEUE_KIND] < QUEUE_MERGE ||
        value[QUEUE_KIND] > QUEUE_DROP)
        return -EUCLEAN;
    root_load(value + QUEUE_ROOT, &root);
    if (!root_plausible(store, &root))
        return -EUCLEAN;
    uint64_t next_id = store->next_queue_id;
    struct queue_item *item = queue_append(store, (enum queue_kind)value[QUEUE_KIND]);
    if (!item)
        return -ENOMEM;
    store->next_queue_id = next_id;
    item->id = id;
    item->bucket = load64(value + QUEUE_BUCKET);
    item->target = load64(value + QUEUE_TARGET);
    item->floor_epoch = load64(value + QUEUE_FLOOR);
    item->root = root;
    item->saved = true;
    return 0;
}

static int bucket_load(struct store *store, uint64_t id, const uint8_t *value, size_t length)
{
    if (length != BUCKET_RECORD_LENGTH)
        return -EUCLEAN;
    struct snapshot *snapshot = snapshot_by_id(store, id);
    uint64_t blocks = load64(value + BUCKET_BLOCKS);
    if (snapshot)
        snapshot->bucket_blocks = blocks;
    store->bucket_blocks_total += blocks;
    return 0;
}

static int load_type(struct store *store, enum system_key_type type, record_loader loader)
{
    struct system_item item;
    item.key_length = (uint16_t)system_key(item.key, type, 0);
    for (;;) {
        int result = system_seek(store, &item);
        if (result == -ENOENT || (result == 0 && item.key[0] != (uint8_t)type))
            return 0;
        if (result == 0 && item.key_length != 9)
            result = -EUCLEAN;
        if (result == 0)
            result = loader(store, load64_big(item.key + 1), item.value, item.value_length);
        if (result < 0)
            return result;
        item.key[item.key_length++] = 0; /* the least key after it */
    }
}

/* Second pass: what chains and volumes say of each other and of snapshots. */
static int link_origin(struct store *store, uint64_t id, const uint8_t *value, size_t length)
{
    (void)length;
    struct chain *chain = chain_by_id(store, id);
    uint64_t origin_id = load64(value + CHAIN_ORIGIN);
    if (origin_id == 0)
        return 0;
    struct snapshot *origin = snapshot_by_id(store, origin_id);
    if (!origin || origin->chain == chain || (chain->oldest && chain->oldest->epoch <= origin->epoch))
        return -EUCLEAN;
    chain->origin = origin;
    origin->chain_references++;
    if (chain->foreign)
        origin->clone_count++;
    return 0;
}

static int link_head(struct store *store, uint64_t id, const uint8_t *value, size_t length)
{
    (void)length;
    struct volume *volume = volume_by_id(store, id);
    volume->head = chain_by_id(store, load64(value + VOLUME_HEAD));
    return volume->head && volume->head->live && volume->head->volume == volume ? 0 : -EUCLEAN;
}

int catalog_load(struct store *store, struct store_failure *failure)
{
    static const struct {
        enum system_key_type type;
        record_loader loader;
    } passes[] = {{SYSTEM_VOLUME, volume_load}, {SYSTEM_CHAIN, chain_load},   {SYSTEM_SNAPSHOT, snapshot_load},
                  {SYSTEM_QUEUE, queue_load},   {SYSTEM_BUCKET, bucket_load}, {SYSTEM_CHAIN, link_origin},
                  {SYSTEM_VOLUME, link_head},   {SYSTEM_PROPERTY, property_load}};
    for (size_t i = 0; i < sizeof passes / sizeof *passes; i++) {
        int result = load_type(store, passes[i].type, passes[i].loader);
        if (result < 0) {
            failure_set(failure, "the pool's catalog is damaged (record type %u); run fsck.cowfs",
                        (unsigned)passes[i].type);
            return result;
        }
    }
    for (struct snapshot *snapshot = store->dirty_snapshots, *next; snapshot; snapshot = next) {
        next = snapshot->dirty_next;
        snapshot->dirty = false;
        snapshot->dirty_previous = snapshot->dirty_next = NULL;
    }
    store->dirty_snapshots = NULL;
    for (struct chain *chain = store->chains; chain; chain = chain->next)
        chain_count_pinned(store, chain);
    atomic_store(&store->allocator.catalog_pending, 0); /* loading marks what it loads */
    atomic_store(&store->allocator.system_nodes, store->system_chain.head.node_count);
    store->catalog_dirty = store->queue_head != NULL;
    return 0;
}
