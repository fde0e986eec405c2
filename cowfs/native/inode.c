/* Inodes: their items, attributes, and the removal of those that have no name left. */
#include "internal.h"

#include <errno.h>
#include <time.h>

struct filesystem_time time_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (struct filesystem_time){now.tv_sec, (uint32_t)now.tv_nsec};
}

int inode_get(struct transaction *transaction, uint64_t number, struct inode *out)
{
    struct store_item item;
    struct key key;
    key_set(&key, number, ITEM_INODE);
    int status = transaction_get(transaction, key.bytes, key.length, &item);
    if (status == -ENOENT)
        return -ESTALE;
    return status != 0 ? status : inode_decode(number, &item, out);
}

int inode_put(struct transaction *transaction, const struct inode *inode)
{
    uint8_t value[INODE_LENGTH];
    struct key key;
    key_set(&key, inode->number, ITEM_INODE);
    inode_encode(inode, value);
    return transaction_put(transaction, key.bytes, key.length, value, sizeof value, STORE_VALUE_PLAIN, false);
}

int inode_get_directory(struct transaction *transaction, uint64_t number, struct inode *out)
{
    TRY(inode_get(transaction, number, out));
    return S_ISDIR(out->mode) ? 0 : -ENOTDIR;
}

void inode_attributes(const struct place *place, const struct inode *inode, struct filesystem_attributes *out)
{
    *out = (struct filesystem_attributes){
        .node = place_node(place, inode->number),
        .mode = inode->mode,
        .nlink = inode->nlink,
        .uid = inode->uid,
        .gid = inode->gid,
        .rdev = inode->rdev,
        .size_bytes = inode->size_bytes,
        /* Inline bytes count as what they take: no blocks at all would pass for a hole (tar --sparse). */
        .blocks_512 = inode->blocks * (STORE_BLOCK_SIZE / 512) + (inode->inline_length + 511) / 512,
        .atime = inode->atime,
        .mtime = inode->mtime,
        .ctime = inode->ctime,
        .birth = inode->birth,
        .flags = inode->flags & INODE_FLAGS_PUBLIC,
    };
}

int inode_drop_privileges(struct transaction *transaction, struct inode *inode, bool keeps_bits)
{
    bool found;
    if (S_ISDIR(inode->mode))
        return 0;
    if (!keeps_bits && (inode->mode & S_IXGRP) != 0)
        inode->mode &= ~(uint32_t)S_ISGID;
    if (!keeps_bits)
        inode->mode &= ~(uint32_t)S_ISUID;
    if ((inode->flags & INODE_CAPABILITY) == 0)
        return 0;
    inode->flags &= ~(uint32_t)INODE_CAPABILITY;
    return xattr_delete_chunks(transaction, inode->number, xattr_capability_name, 0, &found);
}

int items_version_raise(struct transaction *transaction)
{
    uint8_t value[VOLUME_RECORD_LENGTH];
    struct volume_record record;
    struct store_item item;
    struct key key;
    key_set(&key, VOLUME_INODE, ITEM_INODE);
    int status = transaction_get(transaction, key.bytes, key.length, &item);
    if (status != 0)
        return status == -ENOENT ? -EUCLEAN : status;
    TRY(volume_record_decode(&item, &record));
    if (record.items_version == VOLUME_ITEMS_VERSION)
        return 0;
    record.items_version = VOLUME_ITEMS_VERSION;
    volume_record_encode(&record, value);
    return transaction_put(transaction, key.bytes, key.length, value, sizeof value, STORE_VALUE_PLAIN, false);
}

/* ---- getattr ------------------------------------------------------------------------------------------------- */

struct getattr_task {
    struct place place;
    struct inode inode;
};

static int getattr_body(struct transaction *transaction, void *argument)
{
    struct getattr_task *task = argument;
    return inode_get(transaction, task->place.inode, &task->inode);
}

int filesystem_getattr(struct filesystem *filesystem, uint64_t node, struct filesystem_attributes *out)
{
    struct getattr_task task;
    int status = place_of_node(filesystem, node, &task.place);
    if (status == 0)
        status = place_transact(&task.place, STORE_TRANSACT_READ, getattr_body, &task);
    if (status == 0)
        inode_attributes(&task.place, &task.inode, out);
    return status;
}

/* ---- removal ------------------------------------------------------------------------------------------------- */

int orphan_update(struct transaction *transaction, const struct inode *inode)
{
    struct key key;
    uint8_t kinds = (uint8_t)((inode->nlink == 0 ? ORPHAN_UNLINKED : 0) |
                              ((inode->flags & INODE_TRUNCATING) != 0 ? ORPHAN_TRUNCATING : 0));
    key_set_number(&key, VOLUME_INODE, ITEM_ORPHAN, inode->number);
    if (kinds == 0 || MUTATED(ORPHAN_RECORD))
        return transaction_delete(transaction, key.bytes, key.length);
    return transaction_put(transaction, key.bytes, key.length, &kinds, sizeof kinds, STORE_VALUE_PLAIN, false);
}

struct reclaim_task {
    struct place place;
    uint32_t items_max;
    bool more;
};

/* Gives up what an extent item refers to, or its first part: then an item of the rest takes its place. *whole
 * tells. */
static int reclaim_extent(struct transaction *transaction, const struct store_item *item, uint64_t number,
                          struct shared_changes *changes, bool *whole)
{
    struct store_extent extent;
    struct extent_piece rest;
    uint64_t logical;
    TRY(extent_of_item(item, number, &logical, &extent));
    *whole = true;
    if ((extent.flags & EXTENT_BORROWED) == 0)
        return transaction_kill(transaction, extent.address, extent.blocks, extent.birth);
    uint32_t room = extent.compression == 0 ? shared_room(changes, extent.blocks)
                                            : shared_room(changes, 1) * extent.blocks;
    *whole = room == extent.blocks;
    if (room == 0)
        return 0;
    TRY(shared_change(transaction, changes, extent.address, room, false));
    if (*whole)
        return 0;
    extent_piece_of(&rest, item, &extent, logical, logical + room, logical + extent.blocks);
    TRY(transaction_delete(transaction, item->key, item->key_length));
    return extent_put(transaction, number, &rest, false);
}

/* Deletes up to items_max items behind the inode item; that one goes, with the orphan record, when nothing else is
 * left, so that an interrupted removal is found again. */
static int reclaim_body(struct transaction *transaction, void *argument)
{
    struct reclaim_task *task = argument;
    struct shared_changes changes;
    uint64_t number = task->place.inode;
    struct inode inode;
    struct cursor cursor;
    struct key key;
    uint32_t items = 0;
    bool whole = true;
    task->more = false;
    shared_begin(&changes, task->items_max);
    TRY(inode_get(transaction, number, &inode));
    if (inode.nlink != 0 || filesystem_lookup_count(task->place.filesystem, place_node(&task->place, number)) != 0)
        return 0;
    key_set(&key, number, ITEM_INLINE);
    int status = cursor_seek(transaction, &cursor, key.bytes, key.length);
    while (status == 0 && cursor.item.key_length >= KEY_PREFIX_LENGTH && load_be64(cursor.item.key) == number) {
        task->more = items++ == task->items_max;
        if (!task->more && key_is_of(&cursor.item, number, ITEM_EXTENT)) {
            TRY(reclaim_extent(transaction, &cursor.item, number, &changes, &whole));
            task->more = !whole;
        }
        if (task->more)
            return shared_apply(transaction, &changes);
        TRY(transaction_delete(transaction, cursor.item.key, cursor.item.key_length));
        status = cursor_next(transaction, &cursor);
    }
    if (status != 0 && status != -ENOENT)
        return status;
    TRY(shared_apply(transaction, &changes));
    key_set_number(&key, VOLUME_INODE, ITEM_ORPHAN, number);
    TRY(transaction_delete(transaction, key.bytes, key.length));
    key_set(&key, number, ITEM_INODE);
    return transaction_delete(transaction, key.bytes, key.length);
}

int inode_reclaim(const struct place *place)
{
    struct reclaim_task task = {*place, REMOVAL_ITEMS_MAX, false};
    int status;
    do
        status = place_transact_removal(&task.place, reclaim_body, &task, &task.items_max);
    while (status == 0 && task.more);
    return status;
}

struct orphan_task {
    uint64_t after;
    uint64_t inode;
    uint8_t kinds;
};

static int orphan_next_body(struct transaction *transaction, void *argument)
{
    struct orphan_task *task = argument;
    struct key_fields fields;
    struct cursor cursor;
    struct key key;
    if (task->after >= INODE_NUMBER_MAX)
        return -ENOENT;
    key_set_number(&key, VOLUME_INODE, ITEM_ORPHAN, task->after + 1);
    TRY(cursor_seek(transaction, &cursor, key.bytes, key.length));
    if (!key_is_of(&cursor.item, VOLUME_INODE, ITEM_ORPHAN))
        return -ENOENT;
    TRY(key_parse(&cursor.item, &fields));
    TRY(key_number(&fields, &task->inode));
    if (task->inode == VOLUME_INODE || task->inode > INODE_NUMBER_MAX)
        return -EUCLEAN;
    return orphan_decode(&cursor.item, &task->kinds);
}

int orphans_finish(struct filesystem *filesystem, uint32_t view)
{
    struct orphan_task task = {0};
    struct place place;
    int status = place_of_view(filesystem, view, FILESYSTEM_ROOT_INODE, &place);
    while (status == 0 && !MUTATED(ORPHANS_FINISHED)) {
        status = place_transact(&place, STORE_TRANSACT_READ, orphan_next_body, &task);
        if (status != 0)
            break;
        place.inode = task.inode;
        if ((task.kinds & ORPHAN_UNLINKED) != 0)
            status = inode_reclaim(&place);
        else
            status = truncate_finish(&place);
        task.after = task.inode;
    }
    /* A pool too full for this must still be mounted, or nothing could be deleted: the next opening finds the rest. */
    return status == -ENOENT || status == -ENOSPC ? 0 : status;
}
