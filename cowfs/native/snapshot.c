/* Taking a snapshot of the volume that a node belongs to. */
#include "internal.h"

#include <errno.h>

int filesystem_snapshot(struct filesystem *filesystem, uint64_t node, const char *name, bool durable)
{
    struct store_snapshot snapshot;
    struct place place;
    int status = place_of_node(filesystem, node, &place);
    if (status == 0 && !place_is_writable(&place))
        status = -EROFS;
    if (status == 0)
        status = store_snapshot_create(filesystem->store, place.object_id, name, &snapshot);
    if (status == 0 && durable)
        status = store_commit(filesystem->store);
    return status;
}
