/* Taking and destroying snapshots of the volume that a node belongs to. */
#include "internal.h"

#include <errno.h>

static int writable_place(struct filesystem *filesystem, uint64_t node, struct place *place)
{
    int status = place_of_node(filesystem, node, place);
    return status == 0 && !place_is_writable(place) ? -EROFS : status;
}

int filesystem_take_snapshot(struct filesystem *filesystem, uint64_t node, const char *name, bool durable,
                             struct store_snapshot *taken)
{
    struct place place;
    int status = writable_place(filesystem, node, &place);
    if (status == 0)
        status = store_snapshot_create(filesystem->store, place.object_id, name, taken);
    if (status == 0 && durable && !MUTATED(SNAPSHOT_DURABLE))
        status = store_commit(filesystem->store);
    return status;
}

int filesystem_snapshot(struct filesystem *filesystem, uint64_t node, const char *name, bool durable)
{
    struct store_snapshot taken;
    return filesystem_take_snapshot(filesystem, node, name, durable, &taken);
}

int filesystem_destroy_snapshot(struct filesystem *filesystem, uint64_t node, const char *name, bool durable)
{
    struct store_snapshot found;
    struct place place;
    int status = writable_place(filesystem, node, &place);
    if (status == 0)
        status = store_snapshot_find(filesystem->store, place.object_id, name, &found);
    if (status == 0 && filesystem_snapshot_is_viewed(filesystem, found.id))
        status = -ENOTTY;
    if (status == 0)
        status = store_snapshot_delete(filesystem->store, found.id);
    if (status == 0)
        filesystem_forget_snapshot(filesystem, found.id); /* somebody may have looked at it just now */
    if (status == 0 && durable)
        status = store_commit(filesystem->store);
    return status;
}
