/* Views: which tree a node id speaks of, and how often the kernel holds each node. Memory follows what is looked at:
 * a view goes when its tree is gone and none of its nodes is held. */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>

/* Node ids stay below 2^63; the highest number is that of the virtual directories in `.cowfs`. */
#define VIEW_NUMBER_MAX ((UINT32_C(1) << (63 - FILESYSTEM_VIEW_SHIFT)) - 2)

/* How many places of the table of lookups one step looks at. */
#define NODES_PER_STEP 1024u

enum { LOOKUP_UNLINKED = 1, LOOKUP_ONE = 2 };

static struct view *view_find(struct filesystem *filesystem, uint32_t number)
{
    uint64_t *value = map_get(&filesystem->views, (uint64_t)number + 1);
    return value == NULL ? NULL : (struct view *)(uintptr_t)*value;
}

static struct view *view_find_object(struct filesystem *filesystem, uint64_t object_id)
{
    uint64_t *value = object_id == 0 ? NULL : map_get(&filesystem->objects, object_id);
    return value == NULL ? NULL : (struct view *)(uintptr_t)*value;
}

/* ---- opening ------------------------------------------------------------------------------------------------- */

struct view_load {
    uint64_t hash_seed;
    uint64_t generation;
    uint64_t last_inode;
};

static int view_load_body(struct transaction *transaction, void *argument)
{
    struct view_load *load = argument;
    struct volume_record record;
    struct store_item item;
    struct cursor cursor;
    struct key_fields fields;
    struct key key;
    key_set(&key, VOLUME_INODE, ITEM_INODE);
    TRY(transaction_get(transaction, key.bytes, key.length, &item));
    TRY(volume_record_decode(&item, &record));
    TRY(cursor_seek_last(transaction, &cursor, NULL, 0));
    TRY(key_parse(&cursor.item, &fields));
    if (fields.inode > INODE_NUMBER_MAX)
        return -EUCLEAN;
    load->hash_seed = record.hash_seed;
    load->generation = transaction_generation(transaction);
    load->last_inode = fields.inode;
    return 0;
}

static int view_read(struct filesystem *filesystem, uint64_t object_id, bool snapshot, struct view *out)
{
    struct view_load load;
    int status = store_transact(filesystem->store, object_id, STORE_TRANSACT_READ, view_load_body, &load);
    if (status != 0)
        return status;
    *out = (struct view){
        .snapshot = snapshot,
        .object_id = object_id,
        .hash_seed = load.hash_seed,
        .generation = load.generation,
        .next_inode = load.last_inode < FILESYSTEM_ROOT_INODE ? FILESYSTEM_ROOT_INODE + 1 : load.last_inode + 1,
    };
    return 0;
}

/* With the mutex held. */
static struct compression view_compression(struct filesystem *filesystem, const struct view *view)
{
    const uint64_t *own = map_get(&filesystem->compressions, view->object_id);
    uint64_t value = own == NULL ? filesystem->compression_default : *own;
    return view->snapshot ? (struct compression){0} : (struct compression){(uint8_t)(value >> 8), (uint8_t)value};
}

/* With the mutex held; there is room in the maps. */
static int view_install(struct filesystem *filesystem, const struct view *read, uint32_t *number)
{
    struct view *view = NULL;
    if (filesystem->next_view > VIEW_NUMBER_MAX)
        return -ENOSPC;
    int status = map_reserve(&filesystem->views, 1);
    if (status == 0)
        status = map_reserve(&filesystem->objects, 1);
    if (status == 0 && (view = malloc(sizeof *view)) == NULL)
        status = -ENOMEM;
    if (status != 0)
        return status;
    *view = *read;
    view->number = filesystem->next_view++;
    view->compression = view_compression(filesystem, view);
    *map_insert(&filesystem->views, (uint64_t)view->number + 1) = (uintptr_t)view;
    *map_insert(&filesystem->objects, view->object_id) = (uintptr_t)view;
    *number = view->number;
    return 0;
}

int view_open(struct filesystem *filesystem, uint64_t object_id, bool snapshot, uint32_t *number)
{
    struct view read;
    pthread_mutex_lock(&filesystem->view_mutex);
    struct view *view = view_find_object(filesystem, object_id);
    if (view != NULL)
        *number = view->number;
    pthread_mutex_unlock(&filesystem->view_mutex);
    if (view != NULL)
        return 0;

    int status = view_read(filesystem, object_id, snapshot, &read);
    if (status != 0)
        return status;
    pthread_mutex_lock(&filesystem->view_mutex);
    view = view_find_object(filesystem, object_id);
    if (view != NULL)
        *number = view->number;
    else
        status = view_install(filesystem, &read, number);
    pthread_mutex_unlock(&filesystem->view_mutex);
    return status;
}

/* With the mutex held. */
static void view_free_when_unused(struct filesystem *filesystem, struct view *view)
{
    if (!view->stale || view->held != 0)
        return;
    map_remove(&filesystem->views, (uint64_t)view->number + 1, 0);
    free(view);
}

static void view_make_stale(struct filesystem *filesystem, struct view *view)
{
    view->stale = true;
    map_remove(&filesystem->objects, view->object_id, 0);
    atomic_fetch_add(&filesystem->stale_views, 1);
    view_free_when_unused(filesystem, view);
}

static uint64_t view_node(const struct filesystem *filesystem, uint32_t view, uint64_t inode)
{
    if (inode == FILESYSTEM_ROOT_INODE && view == filesystem->mounted_view)
        return FILESYSTEM_ROOT_INODE;
    return ((uint64_t)view << FILESYSTEM_VIEW_SHIFT) | inode;
}

int filesystem_view_of_snapshot(struct filesystem *filesystem, uint64_t snapshot_id, uint64_t *root_node)
{
    struct store_snapshot snapshot;
    uint32_t view = 0;
    int status = store_snapshot_get(filesystem->store, snapshot_id, &snapshot);
    if (status == 0)
        status = view_open(filesystem, snapshot_id, true, &view);
    if (status == 0)
        *root_node = ((uint64_t)view << FILESYSTEM_VIEW_SHIFT) | FILESYSTEM_ROOT_INODE;
    return status;
}

int filesystem_view_of_volume(struct filesystem *filesystem, uint64_t volume_id, uint64_t *root_node)
{
    struct store_volume volume;
    uint32_t view = 0;
    int status = store_volume_get(filesystem->store, volume_id, &volume);
    if (status == 0)
        status = view_open(filesystem, volume_id, false, &view);
    if (status != 0)
        return status;
    pthread_mutex_lock(&filesystem->view_mutex);
    *root_node = view_node(filesystem, view, FILESYSTEM_ROOT_INODE);
    pthread_mutex_unlock(&filesystem->view_mutex);
    return filesystem->read_only || *root_node == FILESYSTEM_ROOT_INODE ? 0 : orphans_finish(filesystem, view);
}

bool filesystem_snapshot_is_viewed(struct filesystem *filesystem, uint64_t snapshot_id)
{
    pthread_mutex_lock(&filesystem->view_mutex);
    bool viewed = view_find_object(filesystem, snapshot_id) != NULL;
    pthread_mutex_unlock(&filesystem->view_mutex);
    return viewed;
}

void filesystem_forget_snapshot(struct filesystem *filesystem, uint64_t snapshot_id)
{
    pthread_mutex_lock(&filesystem->view_mutex);
    struct view *view = view_find_object(filesystem, snapshot_id);
    if (view != NULL && view->snapshot)
        view_make_stale(filesystem, view);
    pthread_mutex_unlock(&filesystem->view_mutex);
}

struct view_nodes {
    uint32_t number;
    struct filesystem_nodes *out;
};

static int view_nodes_visit(void *argument, uint64_t node)
{
    struct view_nodes *nodes = argument;
    struct filesystem_nodes *out = nodes->out;
    if (node <= FILESYSTEM_ROOT_INODE || node >> FILESYSTEM_VIEW_SHIFT != nodes->number)
        return 0;
    if (out->count == out->capacity) {
        size_t capacity = out->capacity == 0 ? NODES_PER_STEP : out->capacity * 2;
        uint64_t *ids = realloc(out->ids, capacity * sizeof *ids);
        if (ids == NULL)
            return -ENOMEM;
        out->ids = ids;
        out->capacity = capacity;
    }
    out->ids[out->count++] = node;
    return 0;
}

int filesystem_held_nodes(struct filesystem *filesystem, uint32_t view, uint64_t *cursor,
                          struct filesystem_nodes *nodes)
{
    struct view_nodes found = {view, nodes};
    int status = 0;
    pthread_mutex_lock(&filesystem->view_mutex);
    if (view_find(filesystem, view) == NULL)
        *cursor = 0;
    else
        status = map_step(&filesystem->lookups, cursor, NODES_PER_STEP, view_nodes_visit, &found);
    pthread_mutex_unlock(&filesystem->view_mutex);
    return status;
}

int filesystem_rolled_back(struct filesystem *filesystem, uint64_t volume_id, struct filesystem_nodes *open,
                           uint32_t *old_view)
{
    struct view read;
    uint32_t number = 0;
    uint64_t cursor = 0;
    *open = (struct filesystem_nodes){0};
    *old_view = UINT32_MAX;
    int status = view_read(filesystem, volume_id, false, &read);
    if (status != 0)
        return status;
    pthread_mutex_lock(&filesystem->view_mutex);
    struct view *old = view_find_object(filesystem, volume_id);
    if (old == NULL) {
        pthread_mutex_unlock(&filesystem->view_mutex);
        return 0;
    }
    struct view_nodes found = {old->number, open};
    status = map_step(&filesystem->opens, &cursor, SIZE_MAX, view_nodes_visit, &found);
    if (status == 0)
        status = view_install(filesystem, &read, &number);
    if (status == 0) {
        *old_view = old->number;
        if (old->number == filesystem->mounted_view)
            filesystem->mounted_view = number;
        view_make_stale(filesystem, old);
        *map_insert(&filesystem->objects, volume_id) = (uintptr_t)view_find(filesystem, number);
    }
    pthread_mutex_unlock(&filesystem->view_mutex);
    if (status == 0 && !filesystem->read_only)
        status = orphans_finish(filesystem, number);
    if (status != 0) {
        free(open->ids);
        *open = (struct filesystem_nodes){0};
    }
    return status;
}

int filesystem_set_compression(struct filesystem *filesystem, uint64_t volume_id, unsigned algorithm, unsigned level)
{
    if (algorithm > COMPRESSION_ALGORITHM_LAST ||
        (algorithm == COMPRESSION_ZSTD && (level == 0 || level > COMPRESSION_ZSTD_LEVEL_MAX)))
        return -EINVAL;
    pthread_mutex_lock(&filesystem->view_mutex);
    int status = volume_id == 0 ? 0 : map_reserve(&filesystem->compressions, 1);
    uint64_t *value = &filesystem->compression_default;
    if (status == 0 && volume_id != 0)
        value = map_insert(&filesystem->compressions, volume_id);
    if (status == 0)
        *value = (uint64_t)algorithm << 8 | level;
    for (size_t at = 0; status == 0 && at < filesystem->views.capacity; at++) {
        struct view *view = (struct view *)(uintptr_t)filesystem->views.slots[at].value;
        if (filesystem->views.slots[at].key != 0)
            view->compression = view_compression(filesystem, view);
    }
    pthread_mutex_unlock(&filesystem->view_mutex);
    return status;
}

bool filesystem_is_read_only_node(struct filesystem *filesystem, uint64_t node)
{
    struct place place;
    return place_of_node(filesystem, node, &place) != 0 || !place_is_writable(&place);
}

bool filesystem_compresses(struct filesystem *filesystem, uint64_t node)
{
    struct place place;
    return place_of_node(filesystem, node, &place) == 0 && place.compression.algorithm != COMPRESSION_OFF;
}

bool filesystem_is_stale(struct filesystem *filesystem, uint64_t node)
{
    struct place place;
    return place_of_node(filesystem, node, &place) != 0;
}

/* ---- places -------------------------------------------------------------------------------------------------- */

/* With the mutex held. */
static int place_fill(struct filesystem *filesystem, uint32_t number, uint64_t inode, struct place *out)
{
    const struct view *view = view_find(filesystem, number);
    if (view == NULL || view->stale || inode == VOLUME_INODE)
        return -ESTALE;
    *out = (struct place){
        .filesystem = filesystem,
        .object_id = view->object_id,
        .inode = inode,
        .hash_seed = view->hash_seed,
        .generation = view->generation,
        .stale_views = atomic_load(&filesystem->stale_views),
        .view = number,
        .snapshot = view->snapshot,
        .mounted = number == filesystem->mounted_view,
        .compression = view->compression,
    };
    return 0;
}

int place_of_view(struct filesystem *filesystem, uint32_t view, uint64_t inode, struct place *out)
{
    pthread_mutex_lock(&filesystem->view_mutex);
    int status = place_fill(filesystem, view, inode, out);
    pthread_mutex_unlock(&filesystem->view_mutex);
    return status;
}

int place_of_node(struct filesystem *filesystem, uint64_t node, struct place *out)
{
    uint64_t view = node >> FILESYSTEM_VIEW_SHIFT;
    if (view > VIEW_NUMBER_MAX)
        return -ESTALE;
    pthread_mutex_lock(&filesystem->view_mutex);
    if (node == FILESYSTEM_ROOT_INODE)
        view = filesystem->mounted_view;
    int status = place_fill(filesystem, (uint32_t)view, node & INODE_NUMBER_MAX, out);
    pthread_mutex_unlock(&filesystem->view_mutex);
    return status;
}

int place_pair(struct filesystem *filesystem, uint64_t node, uint64_t other, struct place *out, struct place *out_other)
{
    int status = place_of_node(filesystem, node, out);
    if (status == 0)
        status = place_of_node(filesystem, other, out_other);
    return status == 0 && out->view != out_other->view ? -EXDEV : status;
}

uint64_t place_node(const struct place *place, uint64_t inode)
{
    if (place->mounted && inode == FILESYSTEM_ROOT_INODE)
        return FILESYSTEM_ROOT_INODE;
    return ((uint64_t)place->view << FILESYSTEM_VIEW_SHIFT) | inode;
}

bool place_is_writable(const struct place *place)
{
    return !place->snapshot && !place->filesystem->read_only;
}

/* Whether the view turned stale since the place was resolved. The counter spares the mutex nearly always. */
static bool place_is_stale(const struct place *place)
{
    struct filesystem *filesystem = place->filesystem;
    if (atomic_load(&filesystem->stale_views) == place->stale_views)
        return false;
    pthread_mutex_lock(&filesystem->view_mutex);
    const struct view *view = view_find(filesystem, place->view);
    bool stale = view == NULL || view->stale;
    pthread_mutex_unlock(&filesystem->view_mutex);
    return stale;
}

struct guarded {
    const struct place *place;
    transaction_body body;
    void *argument;
    bool entered;
};

/* The generation is compared under the store lock, so that nothing meant for the old tree reaches the new one in the
 * moment between a rollback and filesystem_rolled_back(). */
static int guarded_body(struct transaction *transaction, void *argument)
{
    struct guarded *guarded = argument;
    guarded->entered = true;
    if (transaction_generation(transaction) != guarded->place->generation || place_is_stale(guarded->place))
        return -ESTALE;
    return guarded->body(transaction, guarded->argument);
}

int place_transact(const struct place *place, unsigned flags, transaction_body body, void *argument)
{
    struct guarded guarded = {place, body, argument, false};
    if ((flags & STORE_TRANSACT_READ) == 0 && !place_is_writable(place))
        return -EROFS;
    int status = store_transact(place->filesystem->store, place->object_id, flags, guarded_body, &guarded);
    return status == -ENOENT && !guarded.entered ? -ESTALE : damage_note(place, 0, status);
}

int place_transact_removal(const struct place *place, transaction_body body, void *argument, uint32_t *items_max)
{
    int status;
    while ((status = place_transact(place, STORE_TRANSACT_RESERVE, body, argument)) == -ENOSPC && *items_max > 1)
        *items_max /= 8;
    return status;
}

int place_next_inode(const struct place *place, uint64_t *number)
{
    struct filesystem *filesystem = place->filesystem;
    int status = -ESTALE;
    pthread_mutex_lock(&filesystem->view_mutex);
    struct view *view = view_find(filesystem, place->view);
    if (view != NULL && !view->stale)
        status = view->next_inode > INODE_NUMBER_MAX ? -ENOSPC : 0;
    if (status == 0)
        *number = view->next_inode++;
    pthread_mutex_unlock(&filesystem->view_mutex);
    return status;
}

/* ---- lookup counts ------------------------------------------------------------------------------------------- */

/* With the mutex held and room in the table. */
static void lookup_raise(struct filesystem *filesystem, uint64_t node)
{
    uint64_t *value = map_insert(&filesystem->lookups, node);
    if (*value < LOOKUP_ONE && node != FILESYSTEM_ROOT_INODE) {
        struct view *view = view_find(filesystem, (uint32_t)(node >> FILESYSTEM_VIEW_SHIFT));
        if (view != NULL)
            view->held++;
    }
    *value += LOOKUP_ONE;
}

/* With the mutex held. */
static void lookup_remove(struct filesystem *filesystem, uint64_t node)
{
    map_remove(&filesystem->lookups, node, filesystem->promised);
    struct view *view = view_find(filesystem, (uint32_t)(node >> FILESYSTEM_VIEW_SHIFT));
    if (node != FILESYSTEM_ROOT_INODE && view != NULL) {
        view->held--;
        view_free_when_unused(filesystem, view);
    }
}

int lookups_raise(const struct place *place, const uint64_t *nodes, size_t count)
{
    struct filesystem *filesystem = place->filesystem;
    pthread_mutex_lock(&filesystem->view_mutex);
    int status = map_reserve(&filesystem->lookups, filesystem->promised + count);
    for (size_t at = 0; status == 0 && at < count; at++)
        lookup_raise(filesystem, nodes[at]);
    pthread_mutex_unlock(&filesystem->view_mutex);
    return status;
}

int lookups_promise(struct filesystem *filesystem)
{
    pthread_mutex_lock(&filesystem->view_mutex);
    int status = map_reserve(&filesystem->lookups, filesystem->promised + 1);
    if (status == 0)
        filesystem->promised++;
    pthread_mutex_unlock(&filesystem->view_mutex);
    return status;
}

void lookups_promise_back(struct filesystem *filesystem)
{
    pthread_mutex_lock(&filesystem->view_mutex);
    filesystem->promised--;
    pthread_mutex_unlock(&filesystem->view_mutex);
}

void lookups_raise_promised(const struct place *place, uint64_t node)
{
    struct filesystem *filesystem = place->filesystem;
    pthread_mutex_lock(&filesystem->view_mutex);
    lookup_raise(filesystem, node);
    filesystem->promised--;
    pthread_mutex_unlock(&filesystem->view_mutex);
}

bool lookups_mark_unlinked(struct filesystem *filesystem, uint64_t node)
{
    pthread_mutex_lock(&filesystem->view_mutex);
    uint64_t *value = map_get(&filesystem->lookups, node);
    if (value != NULL)
        *value |= LOOKUP_UNLINKED;
    pthread_mutex_unlock(&filesystem->view_mutex);
    return value != NULL;
}

void lookups_mark_named(struct filesystem *filesystem, uint64_t node)
{
    pthread_mutex_lock(&filesystem->view_mutex);
    uint64_t *value = map_get(&filesystem->lookups, node);
    if (value != NULL)
        *value &= ~(uint64_t)LOOKUP_UNLINKED;
    pthread_mutex_unlock(&filesystem->view_mutex);
}

uint64_t filesystem_lookup_count(struct filesystem *filesystem, uint64_t node)
{
    pthread_mutex_lock(&filesystem->view_mutex);
    const uint64_t *value = map_get(&filesystem->lookups, node);
    uint64_t count = value == NULL ? 0 : *value / LOOKUP_ONE;
    pthread_mutex_unlock(&filesystem->view_mutex);
    return count;
}

int filesystem_forget(struct filesystem *filesystem, uint64_t node, uint64_t count)
{
    struct place place;
    bool unlinked = false;
    pthread_mutex_lock(&filesystem->view_mutex);
    uint64_t *value = map_get(&filesystem->lookups, node);
    if (value != NULL && *value / LOOKUP_ONE > count) {
        *value -= count * LOOKUP_ONE;
    } else if (value != NULL) {
        unlinked = (*value & LOOKUP_UNLINKED) != 0;
        lookup_remove(filesystem, node);
    }
    pthread_mutex_unlock(&filesystem->view_mutex);
    /* In a stale view the inode belongs to snapshots alone. */
    if (!unlinked || place_of_node(filesystem, node, &place) != 0)
        return 0;
    int status = inode_reclaim(&place);
    return status == -ESTALE ? 0 : status;
}

#define RELEASE_BATCH 128u

int filesystem_release_all(struct filesystem *filesystem)
{
    uint64_t nodes[RELEASE_BATCH];
    size_t count;
    int status = 0;
    filesystem_gather_stop(filesystem);
    filesystem_gather(filesystem);
    do {
        count = 0;
        pthread_mutex_lock(&filesystem->view_mutex);
        const struct map *lookups = &filesystem->lookups;
        for (size_t at = 0; at < lookups->capacity && count < RELEASE_BATCH; at++)
            if (lookups->slots[at].key != 0 && (lookups->slots[at].value & LOOKUP_UNLINKED) != 0)
                nodes[count++] = lookups->slots[at].key;
        pthread_mutex_unlock(&filesystem->view_mutex);
        for (size_t at = 0; at < count; at++) {
            int forgotten = filesystem_forget(filesystem, nodes[at], UINT64_MAX / LOOKUP_ONE);
            status = status == 0 ? forgotten : status;
        }
    } while (count != 0);

    pthread_mutex_lock(&filesystem->view_mutex);
    while (filesystem->lookups.count != 0) {
        count = 0;
        for (size_t at = 0; at < filesystem->lookups.capacity && count < RELEASE_BATCH; at++)
            if (filesystem->lookups.slots[at].key != 0)
                nodes[count++] = filesystem->lookups.slots[at].key;
        for (size_t at = 0; at < count; at++)
            lookup_remove(filesystem, nodes[at]);
    }
    pthread_mutex_unlock(&filesystem->view_mutex);
    return status;
}

void views_free(struct filesystem *filesystem)
{
    for (size_t at = 0; at < filesystem->views.capacity; at++)
        if (filesystem->views.slots[at].key != 0)
            free((struct view *)(uintptr_t)filesystem->views.slots[at].value);
    map_free(&filesystem->views);
    map_free(&filesystem->objects);
    map_free(&filesystem->compressions);
    map_free(&filesystem->lookups);
    map_free(&filesystem->opens);
    map_free(&filesystem->told);
}
