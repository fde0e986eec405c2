/* The public calls on volumes and snapshots: checks, the change in memory (catalog.c), one journal record. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

/* Nodes of the system tree that one change of the catalog dirties at most: three records, each with its path. */
#define CHANGE_NODES 12u

static uint64_t node_count(struct store *store, uint64_t object_id)
{
    struct chain *chain;
    const struct tree_root *root = object_id ? object_root(store, object_id, &chain) : NULL;
    return root ? root->node_count : 0;
}

static uint64_t pinned_count(struct store *store, uint64_t volume_id)
{
    const struct volume *volume = volume_id ? volume_by_id(store, volume_id) : NULL;
    return volume ? volume->head->pinned_nodes : 0;
}

static bool has_space(struct store *store, const struct space_need *need)
{
    if (need->claim_class == CLAIM_METADATA)
        return true;
    uint64_t pins = node_count(store, need->pins), unpins = pinned_count(store, need->unpins);
    return allocator_room(store, (uint64_t)CHANGE_NODES * store->node_blocks * store->copies, need->claim_class,
                          pins > unpins ? pins - unpins : 0);
}

int catalog_begin_change(struct store *store, size_t record_bytes, const struct space_need *need)
{
    struct space_tries tries = {0};
    for (;;) {
        int result = store_throttle(store);
        if (result < 0)
            return result;
        request_lock(store);
        bool space = has_space(store, need);
        if (!space || !journal_has_room(store, record_bytes)) {
            pthread_mutex_unlock(&store->lock);
            uint64_t began_ns = monotonic_ns();
            result = space ? checkpoint_run(store, false) : checkpoint_for_space(store, &tries);
            if (space)
                wait_note(store, STORE_WAIT_JOURNAL, began_ns);
            if (result < 0)
                return result;
            continue;
        }
        if (buffer_reserve(&store->journal.pending, record_bytes + 64) == 0)
            return 0;
        pthread_mutex_unlock(&store->lock);
        return -ENOMEM;
    }
}

int catalog_end_change(struct store *store, int result)
{
    pthread_mutex_unlock(&store->lock);
    return result;
}

static void fill_snapshot(const struct snapshot *snapshot, struct store_snapshot *out)
{
    memset(out, 0, sizeof *out);
    out->id = snapshot->id;
    out->volume_id = snapshot->volume ? snapshot->volume->id : 0;
    out->epoch = snapshot->epoch;
    out->created_ns = snapshot->created_ns;
    out->clone_count = snapshot->clone_count;
    out->hold_count = snapshot->hold_count;
    out->annotation_length = snapshot->annotation_length;
    if (snapshot->annotation_length)
        memcpy(out->annotation, snapshot->annotation, snapshot->annotation_length);
    memcpy(out->name, snapshot->name, strlen(snapshot->name));
}

static void fill_volume(const struct volume *volume, struct store_volume *out)
{
    memset(out, 0, sizeof *out);
    out->id = volume->id;
    out->created_ns = volume->created_ns;
    out->generation = volume->generation;
    out->origin_snapshot_id = volume->origin_snapshot_id;
    out->snapshot_count = volume->slot_live;
    memcpy(out->name, volume->name, strlen(volume->name));
}

/* ---- volumes -------------------------------------------------------------------------------------------------- */

/* RECORD_VOLUME_CREATE and RECORD_CLONE: [origin snapshot id, 0 for none][id][chain id][created][name] */
static int volume_begin(struct store *store, uint64_t snapshot_id, const char *name, uint64_t *id)
{
    int result = name_check(name);
    size_t name_length = strlen(name);
    if (result == 0)
        result = catalog_begin_change(store, 32 + name_length, &(struct space_need){CLAIM_DATA, snapshot_id, 0});
    if (result < 0)
        return result;
    struct volume_arguments arguments = {store->next_object_id, store->next_object_id + 1, now_ns(), name};
    result = snapshot_id ? apply_clone(store, snapshot_id, &arguments) : apply_volume_create(store, &arguments);
    if (result == 0) {
        if (store->next_object_id < arguments.chain_id + 1) /* a clone's properties have got ids too */
            store->next_object_id = arguments.chain_id + 1;
        uint8_t *body = journal_record(store, snapshot_id ? RECORD_CLONE : RECORD_VOLUME_CREATE, 32 + name_length);
        save64(body, snapshot_id);
        save64(body + 8, arguments.id);
        save64(body + 16, arguments.chain_id);
        save64(body + 24, arguments.created_ns);
        memcpy(body + 32, name, name_length);
        *id = arguments.id;
    }
    return catalog_end_change(store, result);
}

int store_volume_create(struct store *store, const char *name, uint64_t *id)
{
    return volume_begin(store, 0, name, id);
}

int store_clone(struct store *store, uint64_t snapshot_id, const char *name, uint64_t *volume_id)
{
    return snapshot_id ? volume_begin(store, snapshot_id, name, volume_id) : -ENOENT;
}

int store_volume_destroy(struct store *store, uint64_t volume_id)
{
    int result = catalog_begin_change(store, 8, &(struct space_need){.claim_class = CLAIM_METADATA});
    if (result < 0)
        return result;
    struct hold hold;
    hold_begin(&hold, STORE_HOLD_DELETE);
    uint64_t steps = store->snapshot_count;
    result = apply_volume_destroy(store, volume_id);
    if (result == 0)
        save64(journal_record(store, RECORD_VOLUME_DESTROY, 8), volume_id);
    hold_end(store, &hold, steps - store->snapshot_count);
    return catalog_end_change(store, result);
}

int store_volume_find(struct store *store, const char *name, struct store_volume *out)
{
    pthread_mutex_lock(&store->lock);
    const struct volume *volume = volume_by_name(store, name);
    if (volume)
        fill_volume(volume, out);
    pthread_mutex_unlock(&store->lock);
    return volume ? 0 : -ENOENT;
}

int store_volume_get(struct store *store, uint64_t volume_id, struct store_volume *out)
{
    pthread_mutex_lock(&store->lock);
    const struct volume *volume = volume_by_id(store, volume_id);
    if (volume)
        fill_volume(volume, out);
    pthread_mutex_unlock(&store->lock);
    return volume ? 0 : -ENOENT;
}

int store_volume_next(struct store *store, uint64_t after_id, struct store_volume *out)
{
    pthread_mutex_lock(&store->lock);
    const struct volume *volume = volume_after(store, after_id);
    if (volume)
        fill_volume(volume, out);
    pthread_mutex_unlock(&store->lock);
    return volume ? 0 : -ENOENT;
}

/* ---- snapshots ------------------------------------------------------------------------------------------------ */

/* RECORD_SNAPSHOT: [volume id][id][epoch][created][name] */
int store_snapshot_create(struct store *store, uint64_t volume_id, const char *name, struct store_snapshot *out)
{
    int result = name_check(name);
    size_t name_length = strlen(name);
    const struct space_need need = {CLAIM_DATA, volume_id, volume_id};
    if (result == 0)
        result = catalog_begin_change(store, 32 + name_length, &need);
    if (result < 0)
        return result;
    uint64_t id = store->next_object_id, epoch = store->epoch, created_ns = now_ns();
    result = apply_snapshot_create(store, volume_id, id, created_ns, name);
    if (result == 0) {
        store->next_object_id++;
        uint8_t *body = journal_record(store, RECORD_SNAPSHOT, 32 + name_length);
        save64(body, volume_id);
        save64(body + 8, id);
        save64(body + 16, epoch);
        save64(body + 24, created_ns);
        memcpy(body + 32, name, name_length);
        fill_snapshot(snapshot_by_id(store, id), out);
    }
    return catalog_end_change(store, result);
}

/* Whatever changes a tree after a snapshot copies its root, which is then younger. */
int store_volume_changed(struct store *store, uint64_t volume_id)
{
    int result = -ENOENT;
    pthread_mutex_lock(&store->lock);
    const struct volume *volume = volume_by_id(store, volume_id);
    if (volume) {
        const struct chain *chain = volume->head;
        uint64_t floor_epoch = chain_floor(chain);
        if (floor_epoch < chain->last_snapshot_epoch)
            floor_epoch = chain->last_snapshot_epoch;
        result = floor_epoch == 0 || chain->head.pointer.birth > floor_epoch;
    }
    pthread_mutex_unlock(&store->lock);
    return result;
}

int store_snapshot_delete(struct store *store, uint64_t snapshot_id)
{
    int result = catalog_begin_change(store, 8, &(struct space_need){.claim_class = CLAIM_METADATA});
    if (result < 0)
        return result;
    struct hold hold;
    hold_begin(&hold, STORE_HOLD_DELETE);
    const struct snapshot *snapshot = snapshot_by_id(store, snapshot_id);
    uint64_t steps = snapshot ? 1 + snapshot->dead.count : 0;
    result = apply_snapshot_delete(store, snapshot_id);
    if (result == 0)
        save64(journal_record(store, RECORD_SNAPSHOT_DELETE, 8), snapshot_id);
    hold_end(store, &hold, steps);
    return catalog_end_change(store, result);
}

/* RECORD_ANNOTATE: [snapshot id][hold count u32][annotation] */
int store_snapshot_annotate(struct store *store, uint64_t snapshot_id, uint32_t hold_count, const void *annotation,
                            size_t annotation_length)
{
    if (annotation_length > STORE_ANNOTATION_LENGTH_MAX)
        return -EMSGSIZE;
    const struct space_need need = {.claim_class = CLAIM_RESERVE};
    int result = catalog_begin_change(store, 12 + annotation_length, &need);
    if (result < 0)
        return result;
    result = apply_annotate(store, snapshot_id, hold_count, annotation, annotation_length);
    if (result == 0) {
        uint8_t *body = journal_record(store, RECORD_ANNOTATE, 12 + annotation_length);
        save64(body, snapshot_id);
        save32(body + 8, hold_count);
        if (annotation_length)
            memcpy(body + 12, annotation, annotation_length);
    }
    return catalog_end_change(store, result);
}

/* RECORD_ROLLBACK: [volume id][snapshot id][guard id][chain id][epoch][created][guard name] */
int store_rollback(struct store *store, uint64_t volume_id, uint64_t snapshot_id, const char *guard_name,
                   struct store_snapshot *guard)
{
    int result = name_check(guard_name);
    size_t name_length = strlen(guard_name);
    const struct space_need need = {CLAIM_DATA, snapshot_id, volume_id};
    if (result == 0)
        result = catalog_begin_change(store, 48 + name_length, &need);
    if (result < 0)
        return result;
    uint64_t guard_id = store->next_object_id, chain_id = guard_id + 1, epoch = store->epoch, created_ns = now_ns();
    result = apply_rollback(store, volume_id, snapshot_id, guard_id, chain_id, created_ns, guard_name);
    if (result == 0) {
        store->next_object_id += 2;
        uint8_t *body = journal_record(store, RECORD_ROLLBACK, 48 + name_length);
        save64(body, volume_id);
        save64(body + 8, snapshot_id);
        save64(body + 16, guard_id);
        save64(body + 24, chain_id);
        save64(body + 32, epoch);
        save64(body + 40, created_ns);
        memcpy(body + 48, guard_name, name_length);
        fill_snapshot(snapshot_by_id(store, guard_id), guard);
    }
    return catalog_end_change(store, result);
}

int store_snapshot_get(struct store *store, uint64_t snapshot_id, struct store_snapshot *out)
{
    pthread_mutex_lock(&store->lock);
    const struct snapshot *snapshot = snapshot_by_id(store, snapshot_id);
    bool visible = snapshot && !snapshot->hidden;
    if (visible)
        fill_snapshot(snapshot, out);
    pthread_mutex_unlock(&store->lock);
    return visible ? 0 : -ENOENT;
}

int store_snapshot_find(struct store *store, uint64_t volume_id, const char *name, struct store_snapshot *out)
{
    pthread_mutex_lock(&store->lock);
    const struct volume *volume = volume_by_id(store, volume_id);
    const struct snapshot *snapshot = volume ? snapshot_by_name(store, volume, name) : NULL;
    if (snapshot)
        fill_snapshot(snapshot, out);
    pthread_mutex_unlock(&store->lock);
    return snapshot ? 0 : -ENOENT;
}

int store_snapshot_next(struct store *store, uint64_t volume_id, uint64_t after_id, struct store_snapshot *out)
{
    int result = -ENOENT;
    pthread_mutex_lock(&store->lock);
    const struct volume *volume = volume_by_id(store, volume_id);
    if (volume) {
        for (size_t at = volume_slot(volume, after_id + 1); at < volume->slot_count; at++) {
            if (volume->slots[at].snapshot) {
                fill_snapshot(volume->slots[at].snapshot, out);
                result = 0;
                break;
            }
        }
    }
    pthread_mutex_unlock(&store->lock);
    return result;
}

int store_snapshot_previous(struct store *store, uint64_t volume_id, uint64_t before_id, struct store_snapshot *out)
{
    int result = -ENOENT;
    pthread_mutex_lock(&store->lock);
    const struct volume *volume = volume_by_id(store, volume_id);
    if (volume) {
        for (size_t at = volume_slot(volume, before_id); at-- > 0 && result < 0;) {
            if (volume->slots[at].snapshot) {
                fill_snapshot(volume->slots[at].snapshot, out);
                result = 0;
            }
        }
    }
    pthread_mutex_unlock(&store->lock);
    return result;
}
