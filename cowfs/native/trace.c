/* Where a path leads in a tree, and since when it has led to the same. */
#include <errno.h>

#include "differences.h"
#include "internal.h"

struct trace_task {
    struct filesystem_name path;
    struct filesystem_trace trace;
};

/* The birth of one item that is there. */
static int birth_of_key(struct transaction *transaction, const struct key *key, uint64_t *birth)
{
    uint8_t stop[KEY_LENGTH_MAX + 1];
    memcpy(stop, key->bytes, key->length);
    stop[key->length] = 0; /* the least key after it */
    return transaction_birth(transaction, key->bytes, key->length, stop, key->length + 1u, birth);
}

static int birth_of_inode(struct transaction *transaction, uint64_t number, uint64_t *birth)
{
    struct key start, stop;
    key_set(&start, number, ITEM_INODE);
    key_set(&stop, number + 1, ITEM_INODE);
    return transaction_birth(transaction, start.bytes, start.length, stop.bytes, stop.length, birth);
}

/* Every change to a directory's entries changes its inode's item: as old as that is, is a name's absence. */
static int birth_of_absence(struct transaction *transaction, uint64_t directory, uint64_t *birth)
{
    struct key key;
    key_set(&key, directory, ITEM_INODE);
    return birth_of_key(transaction, &key, birth);
}

static int trace_body(struct transaction *transaction, void *argument)
{
    struct trace_task *task = argument;
    struct filesystem_trace *trace = &task->trace;
    static const struct place nowhere = {0};
    const char *at = task->path.bytes, *end = at + task->path.length;
    uint64_t number = FILESYSTEM_ROOT_INODE;
    struct volume_record record;
    struct store_item item;
    struct inode inode;
    struct key key;
    *trace = (struct filesystem_trace){0};
    key_set(&key, VOLUME_INODE, ITEM_INODE);
    TRY(transaction_get(transaction, key.bytes, key.length, &item));
    TRY(volume_record_decode(&item, &record));
    for (;;) {
        struct directory_slot slot;
        TRY(inode_get(transaction, number, &inode));
        while (at < end && *at == '/')
            at++;
        if (at == end)
            break;
        const char *slash = memchr(at, '/', (size_t)(end - at));
        struct filesystem_name name = {at, (size_t)((slash ? slash : end) - at)};
        int status = entry_name_check(name) != 0 || !S_ISDIR(inode.mode)
                         ? -ENOENT
                         : directory_find(transaction, record.hash_seed, number, name, &slot);
        if (status == -ENOENT)
            return birth_of_absence(transaction, number, &trace->birth);
        TRY(status);
        key_set_number(&key, number, ITEM_DIRENT, slot.cookie);
        TRY(birth_of_key(transaction, &key, &trace->birth));
        number = slot.child;
        at += name.length;
    }
    TRY(birth_of_inode(transaction, number, &trace->birth));
    inode_attributes(&nowhere, &inode, &trace->attributes);
    trace->found = true;
    return 0;
}

int filesystem_trace(struct filesystem *filesystem, uint64_t object_id, struct filesystem_name path,
                     struct filesystem_trace *out)
{
    struct trace_task task = {.path = path};
    int status = store_transact(filesystem->store, object_id, STORE_TRANSACT_READ, trace_body, &task);
    *out = task.trace;
    return status;
}
