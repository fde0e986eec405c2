/* Extended attributes: values in chunks of XATTR_CHUNK_LENGTH, under the inode, in the order of their names. */
#include "internal.h"

#include <errno.h>

const struct filesystem_name xattr_capability_name = {"security.capability", sizeof "security.capability" - 1};

static int xattr_name_check(struct filesystem_name name)
{
    if (name.length == 0 || name.length > FILESYSTEM_NAME_LENGTH_MAX)
        return -ERANGE;
    return memchr(name.bytes, 0, name.length) != NULL ? -EINVAL : 0;
}

static bool xattr_is_capability(struct filesystem_name name)
{
    return name.length == xattr_capability_name.length &&
           memcmp(name.bytes, xattr_capability_name.bytes, name.length) == 0;
}

/* Whether the item is a chunk of the name that the key (of any chunk) was made from. */
static bool is_chunk(const struct store_item *item, const struct key *key)
{
    return item->key_length == key->length && memcmp(item->key, key->bytes, key->length - 1u) == 0;
}

int xattr_delete_chunks(struct transaction *transaction, uint64_t inode, struct filesystem_name name, uint8_t chunk,
                        bool *found)
{
    struct cursor cursor;
    struct key key;
    *found = false;
    key_set_xattr(&key, inode, name, chunk);
    int status = cursor_seek(transaction, &cursor, key.bytes, key.length);
    while (status == 0 && is_chunk(&cursor.item, &key)) {
        *found = true;
        TRY(transaction_delete(transaction, cursor.item.key, cursor.item.key_length));
        status = cursor_next(transaction, &cursor);
    }
    return status == -ENOENT ? 0 : status;
}

struct xattr_task {
    struct place place;
    struct filesystem_name name;
    struct filesystem_time now;
    const uint8_t *value;
    uint8_t *buffer;
    size_t length; /* of the value, or what there is room for */
    size_t got;
    uint32_t flags;
};

static int xattr_prepare(struct xattr_task *task, struct filesystem *filesystem, uint64_t node)
{
    int status = xattr_name_check(task->name);
    return status != 0 ? status : place_of_node(filesystem, node, &task->place);
}

/* ---- get ----------------------------------------------------------------------------------------------------- */

static int getxattr_body(struct transaction *transaction, void *argument)
{
    struct xattr_task *task = argument;
    struct inode inode;
    struct cursor cursor;
    struct key key;
    uint32_t chunks = 0;
    task->got = 0;
    TRY(inode_get(transaction, task->place.inode, &inode));
    key_set_xattr(&key, inode.number, task->name, 0);
    int status = cursor_seek(transaction, &cursor, key.bytes, key.length);
    while (status == 0 && is_chunk(&cursor.item, &key)) {
        if (cursor.item.key[key.length - 1] != chunks++ || cursor.item.value_length > XATTR_CHUNK_LENGTH)
            return -EUCLEAN;
        if (task->got + cursor.item.value_length <= task->length)
            memcpy(task->buffer + task->got, cursor.item.value, cursor.item.value_length);
        task->got += cursor.item.value_length;
        status = cursor_next(transaction, &cursor);
    }
    if (status != 0 && status != -ENOENT)
        return status;
    return chunks == 0 ? -ENODATA : 0;
}

int filesystem_getxattr(struct filesystem *filesystem, uint64_t node, struct filesystem_name name, void *value,
                        size_t size, size_t *length)
{
    struct xattr_task task = {.name = name, .buffer = value, .length = size};
    int status = xattr_prepare(&task, filesystem, node);
    if (status == 0)
        status = place_transact(&task.place, STORE_TRANSACT_READ, getxattr_body, &task);
    *length = status == 0 ? task.got : 0;
    return status == 0 && task.got > size ? -ERANGE : status;
}

/* ---- set and remove ------------------------------------------------------------------------------------------ */

static int setxattr_body(struct transaction *transaction, void *argument)
{
    struct xattr_task *task = argument;
    struct inode inode;
    struct key key;
    bool exists;
    size_t at = 0;
    uint32_t chunk = 0;
    TRY(inode_get(transaction, task->place.inode, &inode));
    TRY(inode_check_change(&inode));
    TRY(xattr_delete_chunks(transaction, inode.number, task->name, 0, &exists));
    if (exists && task->flags == FILESYSTEM_XATTR_CREATE)
        return -EEXIST;
    if (!exists && task->flags == FILESYSTEM_XATTR_REPLACE)
        return -ENODATA;
    do {
        size_t length = task->length - at < XATTR_CHUNK_LENGTH ? task->length - at : XATTR_CHUNK_LENGTH;
        key_set_xattr(&key, inode.number, task->name, (uint8_t)chunk++);
        TRY(transaction_put(transaction, key.bytes, key.length, task->value + at, length, STORE_VALUE_PLAIN, false));
        at += length;
    } while (at < task->length);
    inode.ctime = task->now;
    if (xattr_is_capability(task->name))
        inode.flags |= (uint32_t)INODE_CAPABILITY;
    return inode_put(transaction, &inode);
}

int filesystem_setxattr(struct filesystem *filesystem, uint64_t node, struct filesystem_name name, const void *value,
                        size_t length, uint32_t flags)
{
    struct xattr_task task = {.name = name, .now = time_now(), .value = value, .length = length, .flags = flags};
    int status = xattr_prepare(&task, filesystem, node);
    if (status == 0 && flags > FILESYSTEM_XATTR_REPLACE)
        status = -EINVAL;
    if (status == 0 && length > FILESYSTEM_XATTR_LENGTH_MAX)
        status = -E2BIG;
    return status != 0 ? status : place_transact(&task.place, 0, setxattr_body, &task);
}

static int removexattr_body(struct transaction *transaction, void *argument)
{
    struct xattr_task *task = argument;
    struct inode inode;
    bool exists;
    TRY(inode_get(transaction, task->place.inode, &inode));
    TRY(inode_check_change(&inode));
    TRY(xattr_delete_chunks(transaction, inode.number, task->name, 0, &exists));
    if (!exists)
        return -ENODATA;
    inode.ctime = task->now;
    if (xattr_is_capability(task->name))
        inode.flags &= ~(uint32_t)INODE_CAPABILITY;
    return inode_put(transaction, &inode);
}

int filesystem_removexattr(struct filesystem *filesystem, uint64_t node, struct filesystem_name name)
{
    struct xattr_task task = {.name = name, .now = time_now()};
    int status = xattr_prepare(&task, filesystem, node);
    return status != 0 ? status : place_transact(&task.place, STORE_TRANSACT_RESERVE, removexattr_body, &task);
}

/* ---- list ---------------------------------------------------------------------------------------------------- */

static int listxattr_body(struct transaction *transaction, void *argument)
{
    struct xattr_task *task = argument;
    struct filesystem_name name;
    struct key_fields fields;
    struct inode inode;
    struct cursor cursor;
    struct key key;
    uint8_t chunk;
    task->got = 0;
    TRY(inode_get(transaction, task->place.inode, &inode));
    key_set(&key, inode.number, ITEM_XATTR);
    int status = cursor_seek(transaction, &cursor, key.bytes, key.length);
    while (status == 0 && key_is_of(&cursor.item, inode.number, ITEM_XATTR)) {
        TRY(key_parse(&cursor.item, &fields));
        TRY(xattr_key_parse(&fields, &name, &chunk));
        if (chunk == 0) {
            if (task->got + name.length + 1 <= task->length) {
                memcpy(task->buffer + task->got, name.bytes, name.length);
                task->buffer[task->got + name.length] = 0;
            }
            task->got += name.length + 1;
        }
        status = cursor_next(transaction, &cursor);
    }
    return status == -ENOENT ? 0 : status;
}

int filesystem_listxattr(struct filesystem *filesystem, uint64_t node, char *list, size_t size, size_t *length)
{
    struct xattr_task task = {.buffer = (uint8_t *)list, .length = size};
    int status = place_of_node(filesystem, node, &task.place);
    if (status == 0)
        status = place_transact(&task.place, STORE_TRANSACT_READ, listxattr_body, &task);
    *length = status == 0 ? task.got : 0;
    return status == 0 && task.got > size ? -ERANGE : status;
}
