/* Life of a mount, and the verbs that concern all of it. */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

struct initialize_task {
    struct volume_record record;
    struct inode root;
};

static int initialize_body(struct transaction *transaction, void *argument)
{
    struct initialize_task *task = argument;
    uint8_t value[VOLUME_RECORD_LENGTH];
    struct store_item item;
    struct key key;
    key_set(&key, VOLUME_INODE, ITEM_INODE);
    int status = transaction_get(transaction, key.bytes, key.length, &item);
    if (status != -ENOENT)
        return status == 0 ? -EEXIST : status;
    volume_record_encode(&task->record, value);
    TRY(transaction_put(transaction, key.bytes, key.length, value, sizeof value, STORE_VALUE_PLAIN, false));
    return inode_put(transaction, &task->root);
}

int filesystem_initialize(struct store *store, uint64_t volume_id, uint32_t uid, uint32_t gid, uint32_t mode)
{
    struct filesystem_time now = time_now();
    struct initialize_task task = {
        .record = {.items_version = VOLUME_ITEMS_VERSION},
        .root = {.number = FILESYSTEM_ROOT_INODE,
                 .mode = S_IFDIR | (mode & 07777u),
                 .uid = uid,
                 .gid = gid,
                 .nlink = 2,
                 .atime = now,
                 .mtime = now,
                 .ctime = now,
                 .birth = now,
                 .parent = FILESYSTEM_ROOT_INODE},
    };
    if (getrandom(&task.record.hash_seed, sizeof task.record.hash_seed, 0) != sizeof task.record.hash_seed)
        return -errno;
    return store_transact(store, volume_id, 0, initialize_body, &task);
}

/* 0 when the volume has no items, -EEXIST when it has. */
static int is_empty_body(struct transaction *transaction, void *argument)
{
    struct cursor cursor;
    (void)argument;
    int status = cursor_seek_last(transaction, &cursor, NULL, 0);
    return status == -ENOENT ? 0 : status == 0 ? -EEXIST : status;
}

int filesystem_open(struct store *store, uint64_t volume_id, bool read_only, struct filesystem **out)
{
    struct store_volume volume;
    struct filesystem *filesystem;
    int status = store_volume_get(store, volume_id, &volume);
    if (status == 0 && store_item_length_max(store) < ITEM_LENGTH_NEEDED)
        status = -EMSGSIZE;
    if (status == 0 && !read_only) {
        status = store_transact(store, volume_id, STORE_TRANSACT_READ, is_empty_body, NULL);
        if (status == 0)
            status = filesystem_initialize(store, volume_id, 0, 0, 0755);
        else if (status == -EEXIST)
            status = 0;
    }
    if (status != 0)
        return status;
    filesystem = calloc(1, sizeof *filesystem);
    if (filesystem == NULL)
        return -ENOMEM;
    filesystem->store = store;
    filesystem->read_only = read_only;
    contents_init(&filesystem->contents);
    pthread_mutex_init(&filesystem->view_mutex, NULL);
    status = gatherer_init(&filesystem->gatherer);
    if (status == 0 && (status = compressors_create(&filesystem->compressors)) != 0)
        gatherer_destroy(&filesystem->gatherer);
    if (status != 0) {
        pthread_mutex_destroy(&filesystem->view_mutex);
        contents_destroy(&filesystem->contents);
        free(filesystem);
        return status;
    }
    status = view_open(filesystem, volume_id, false, &filesystem->mounted_view);
    if (status == 0 && !read_only)
        status = orphans_finish(filesystem, filesystem->mounted_view);
    if (status != 0)
        filesystem_close(filesystem);
    else
        *out = filesystem;
    return status;
}

void filesystem_close(struct filesystem *filesystem)
{
    filesystem_gather_stop(filesystem);
    gatherer_destroy(&filesystem->gatherer);
    compressors_destroy(filesystem->compressors);
    views_free(filesystem);
    contents_destroy(&filesystem->contents);
    pthread_mutex_destroy(&filesystem->view_mutex);
    free(filesystem);
}

int filesystem_fsync(struct filesystem *filesystem, uint64_t node, uint64_t handle)
{
    struct place place;
    int status = place_of_node(filesystem, node, &place);
    if (status != 0 || !place_is_writable(&place))
        return status;
    status = store_commit(filesystem->store);
    return status == 0 ? 0 : loss_tell(&place, handle, status);
}

bool filesystem_has_failed(const struct filesystem *filesystem)
{
    return store_has_failed(filesystem->store);
}

void filesystem_statfs(struct filesystem *filesystem, struct filesystem_space *out)
{
    struct store_statistics statistics;
    store_statistics(filesystem->store, &statistics);
    out->blocks = statistics.size_blocks - statistics.reserved_blocks;
    out->blocks_available = statistics.available_blocks;
    out->blocks_free = statistics.free_blocks + statistics.pending_blocks;
    if (out->blocks_available > out->blocks_free)
        out->blocks_available = out->blocks_free;
}
