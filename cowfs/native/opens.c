/* Which nodes are open, and which handles have heard that writes were lost.
 *
 * What is not open can be shown by no descriptor: after a rollback the kernel has to drop at once only what it keeps of
 * those that are.
 *
 * Lost writes are told as Linux tells them (errseq_t, Documentation/filesystems/vfs.rst, "Handling errors during
 * writeback"): once by fsync(2) to each open file description that there was. An fsync here speaks for all files: the
 * descriptions of all are told. Those opened later hear of changes of their own file that are in memory and will
 * never be durable; Linux tells them only what nobody has heard of. close(2) tells nothing and leaves it to be told, as
 * with the local file systems of the kernel. */
#include "internal.h"

/* In a handle; above it a serial number. */
#define HANDLE_OPENED_AFTER_FAILURE 1u
#define HANDLE_SERIAL_SHIFT 1

int filesystem_opened(struct filesystem *filesystem, uint64_t node, uint64_t *handle)
{
    pthread_mutex_lock(&filesystem->view_mutex);
    int status = map_reserve(&filesystem->opens, 1);
    if (status == 0) {
        (*map_insert(&filesystem->opens, node))++;
        filesystem->open_count++;
    }
    pthread_mutex_unlock(&filesystem->view_mutex);
    uint64_t serial = atomic_fetch_add(&filesystem->handle_serial, 1) + 1;
    bool after = store_has_failed(filesystem->store);
    *handle = serial << HANDLE_SERIAL_SHIFT | (after ? HANDLE_OPENED_AFTER_FAILURE : 0);
    return status;
}

void filesystem_closed(struct filesystem *filesystem, uint64_t node, uint64_t handle)
{
    pthread_mutex_lock(&filesystem->view_mutex);
    uint64_t *count = map_get(&filesystem->opens, node);
    if (count != NULL) {
        filesystem->open_count--;
        if (--*count == 0)
            map_remove(&filesystem->opens, node, 0);
    }
    if (map_get(&filesystem->told, handle) != NULL)
        map_remove(&filesystem->told, handle, 0);
    pthread_mutex_unlock(&filesystem->view_mutex);
}

static bool is_durable(const struct place *place)
{
    struct key key;
    key_set(&key, place->inode, ITEM_INODE); /* all items of a file begin like this one, but for the type at its end */
    return store_is_durable(place->filesystem->store, place->object_id, key.bytes, KEY_PREFIX_LENGTH - 1);
}

/* Where it cannot be noted that somebody was told, they are told again. */
int loss_tell(const struct place *place, uint64_t handle, int error)
{
    struct filesystem *filesystem = place->filesystem;
    if ((handle & HANDLE_OPENED_AFTER_FAILURE) != 0 && is_durable(place))
        return 0;
    int status = 0;
    pthread_mutex_lock(&filesystem->view_mutex);
    struct map *told = &filesystem->told;
    if (handle == 0 || map_get(told, handle) == NULL) {
        status = error;
        if (handle != 0 && told->count < filesystem->open_count && map_reserve(told, 1) == 0)
            *map_insert(told, handle) = 1;
    }
    pthread_mutex_unlock(&filesystem->view_mutex);
    return status;
}

size_t filesystem_open_nodes(struct filesystem *filesystem)
{
    pthread_mutex_lock(&filesystem->view_mutex);
    size_t count = filesystem->opens.count;
    pthread_mutex_unlock(&filesystem->view_mutex);
    return count;
}
