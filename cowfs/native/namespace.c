/* Names come and go: create, link, unlink, rmdir, readlink. Each is one transaction over both ends of the link: the
 * entry, its back-reference, the inode's link count, the directory's size and times. rename is in rename.c. */
#include "internal.h"

#include <errno.h>

void directory_touch(struct inode *directory, int entries, struct filesystem_time now)
{
    directory->size_bytes += (uint64_t)((int64_t)entries * (int64_t)DIRECTORY_ENTRY_SIZE_BYTES);
    directory->mtime = now;
    directory->ctime = now;
}

/* The name must be absent: sets the cookie for it. */
static int find_free_name(struct transaction *transaction, const struct place *place, struct filesystem_name name,
                          struct directory_slot *slot)
{
    int status = directory_find(transaction, place->hash_seed, place->inode, name, slot);
    if (status == 0)
        return -EEXIST;
    if (status != -ENOENT)
        return status;
    return slot->cookie == 0 ? -ENOSPC : 0;
}

/* ---- create -------------------------------------------------------------------------------------------------- */

struct create_task {
    struct place place; /* of the parent */
    struct filesystem_name name;
    const struct filesystem_creation *creation;
    struct filesystem_time now;
    bool unnamed;
    uint64_t number;
    bool number_taken;
    struct inode inode;
};

static void create_applied(void *argument)
{
    struct create_task *task = argument;
    uint64_t node = place_node(&task->place, task->inode.number);
    lookups_raise_promised(&task->place, node);
    if (task->unnamed)
        lookups_mark_unlinked(task->place.filesystem, node);
}

static void create_fill(struct create_task *task, const struct inode *parent)
{
    const struct filesystem_creation *creation = task->creation;
    uint32_t mode = creation->mode & (S_IFMT | 07777u);
    if ((mode & S_IFMT) == 0)
        mode |= S_IFREG;
    task->inode = (struct inode){
        .number = task->number,
        .mode = mode,
        .uid = creation->uid,
        .gid = creation->gid,
        .nlink = S_ISDIR(mode) ? 2 : 1,
        .rdev = S_ISCHR(mode) || S_ISBLK(mode) ? creation->rdev : 0,
        .flags = S_ISREG(mode) ? (uint32_t)INODE_INLINE : 0,
        .parent = S_ISDIR(mode) ? parent->number : 0,
        .atime = task->now,
        .mtime = task->now,
        .ctime = task->now,
        .birth = task->now,
    };
    if ((parent->mode & S_ISGID) != 0) {
        task->inode.gid = parent->gid;
        task->inode.mode |= S_ISDIR(mode) ? (uint32_t)S_ISGID : 0;
    }
    if (S_ISLNK(mode)) {
        task->inode.size_bytes = creation->target.length;
        task->inode.inline_length = (uint32_t)creation->target.length;
    }
}

static int put_target(struct transaction *transaction, uint64_t number, struct filesystem_name target)
{
    struct key key;
    uint8_t chunk = 0;
    for (size_t at = 0; at < target.length; at += FILESYSTEM_INLINE_LENGTH_MAX, chunk++) {
        size_t length = target.length - at;
        if (length > FILESYSTEM_INLINE_LENGTH_MAX)
            length = FILESYSTEM_INLINE_LENGTH_MAX;
        key_set_chunk(&key, number, ITEM_INLINE, chunk);
        TRY(transaction_put(transaction, key.bytes, key.length, (const uint8_t *)target.bytes + at, length,
                            STORE_VALUE_PLAIN, false));
    }
    return 0;
}

static int create_nameless(struct transaction *transaction, struct create_task *task)
{
    task->inode.nlink = 0;
    task->inode.flags |= (uint32_t)INODE_UNNAMED;
    TRY(items_version_raise(transaction));
    TRY(inode_put(transaction, &task->inode));
    TRY(orphan_update(transaction, &task->inode));
    return transaction_on_apply(transaction, create_applied, task);
}

static int create_body(struct transaction *transaction, void *argument)
{
    struct create_task *task = argument;
    struct directory_slot slot;
    struct inode parent, taken;
    task->number_taken = false;
    TRY(inode_get_directory(transaction, task->place.inode, &parent));
    if (parent.nlink == 0)
        return -ENOENT;
    if (!task->unnamed)
        TRY(find_free_name(transaction, &task->place, task->name, &slot));
    TRY(inode_check_append(&parent));
    int status = inode_get(transaction, task->number, &taken);
    if (status != -ESTALE) {
        task->number_taken = status == 0;
        return status == 0 ? -EEXIST : status;
    }
    create_fill(task, &parent);
    if (task->unnamed)
        return create_nameless(transaction, task);
    directory_touch(&parent, 1, task->now);
    if (S_ISDIR(task->inode.mode) && ++parent.nlink > FILESYSTEM_LINKS_MAX)
        return -EMLINK;
    TRY(inode_put(transaction, &task->inode));
    if (S_ISLNK(task->inode.mode))
        TRY(put_target(transaction, task->number, task->creation->target));
    TRY(directory_put(transaction, parent.number, slot.cookie, task->name, task->number,
                      (uint8_t)(task->inode.mode >> 12)));
    TRY(inode_put(transaction, &parent));
    return transaction_on_apply(transaction, create_applied, task);
}

static int creation_check(const struct filesystem_creation *creation)
{
    switch (creation->mode & S_IFMT) {
    case 0:
    case S_IFREG:
    case S_IFDIR:
    case S_IFCHR:
    case S_IFBLK:
    case S_IFIFO:
    case S_IFSOCK:
        return 0;
    case S_IFLNK:
        if (creation->target.length == 0)
            return -ENOENT;
        if (creation->target.length > FILESYSTEM_TARGET_LENGTH_MAX)
            return -ENAMETOOLONG;
        return memchr(creation->target.bytes, 0, creation->target.length) != NULL ? -EINVAL : 0;
    default:
        return -EINVAL;
    }
}

static int create_run(struct filesystem *filesystem, uint64_t parent, struct create_task *task,
                      struct filesystem_attributes *out)
{
    int status = place_of_node(filesystem, parent, &task->place);
    if (status == 0 && !place_is_writable(&task->place))
        status = -EROFS;
    if (status == 0)
        status = lookups_promise(filesystem);
    if (status != 0)
        return status;
    /* Another mount of the same volume in this process may have taken the number. */
    do {
        status = place_next_inode(&task->place, &task->number);
        if (status == 0)
            status = place_transact(&task->place, 0, create_body, task);
    } while (status == -EEXIST && task->number_taken);
    if (status == 0)
        inode_attributes(&task->place, &task->inode, out);
    else
        lookups_promise_back(filesystem);
    return status;
}

int filesystem_create(struct filesystem *filesystem, uint64_t parent, struct filesystem_name name,
                      const struct filesystem_creation *creation, struct filesystem_attributes *out)
{
    struct create_task task = {.name = name, .creation = creation, .now = time_now()};
    int status = entry_name_check(name);
    if (status == 0 && name_dots(name) != 0)
        status = -EEXIST;
    if (status == 0)
        status = creation_check(creation);
    return status != 0 ? status : create_run(filesystem, parent, &task, out);
}

int filesystem_create_unnamed(struct filesystem *filesystem, uint64_t parent,
                              const struct filesystem_creation *creation, struct filesystem_attributes *out)
{
    struct create_task task = {.creation = creation, .now = time_now(), .unnamed = true};
    uint32_t type = creation->mode & S_IFMT;
    return type != 0 && type != S_IFREG ? -EINVAL : create_run(filesystem, parent, &task, out);
}

/* ---- link ---------------------------------------------------------------------------------------------------- */

struct link_task {
    struct place place; /* of the inode */
    struct place parent;
    struct filesystem_name name;
    struct filesystem_time now;
    bool first_name;
    struct inode inode;
};

static void link_applied(void *argument)
{
    struct link_task *task = argument;
    uint64_t node = place_node(&task->place, task->inode.number);
    lookups_raise_promised(&task->place, node);
    if (task->first_name)
        lookups_mark_named(task->place.filesystem, node);
}

static int link_body(struct transaction *transaction, void *argument)
{
    struct link_task *task = argument;
    struct directory_slot slot;
    struct inode parent;
    TRY(inode_get(transaction, task->place.inode, &task->inode));
    TRY(inode_get_directory(transaction, task->parent.inode, &parent));
    task->first_name = task->inode.nlink == 0;
    if (parent.nlink == 0 || (task->first_name && (task->inode.flags & INODE_UNNAMED) == 0))
        return -ENOENT;
    TRY(find_free_name(transaction, &task->parent, task->name, &slot));
    if (S_ISDIR(task->inode.mode))
        return -EPERM;
    TRY(inode_check_append(&parent));
    TRY(inode_check_change(&task->inode));
    if (++task->inode.nlink > FILESYSTEM_LINKS_MAX)
        return -EMLINK;
    task->inode.ctime = task->now;
    directory_touch(&parent, 1, task->now);
    TRY(directory_put(transaction, parent.number, slot.cookie, task->name, task->inode.number,
                      (uint8_t)(task->inode.mode >> 12)));
    task->inode.flags &= ~(uint32_t)INODE_UNNAMED;
    if (task->first_name)
        TRY(orphan_update(transaction, &task->inode));
    TRY(inode_put(transaction, &task->inode));
    TRY(inode_put(transaction, &parent));
    return transaction_on_apply(transaction, link_applied, task);
}

int filesystem_link(struct filesystem *filesystem, uint64_t node, uint64_t new_parent, struct filesystem_name new_name,
                    struct filesystem_attributes *out)
{
    struct link_task task = {.name = new_name, .now = time_now()};
    int status = entry_name_check(new_name);
    if (status == 0 && name_dots(new_name) != 0)
        status = -EEXIST;
    if (status == 0)
        status = place_pair(filesystem, node, new_parent, &task.place, &task.parent);
    if (status == 0)
        status = lookups_promise(filesystem);
    if (status != 0)
        return status;
    status = place_transact(&task.place, 0, link_body, &task);
    if (status == 0)
        inode_attributes(&task.place, &task.inode, out);
    else
        lookups_promise_back(filesystem);
    return status;
}

/* ---- unlink and rmdir ---------------------------------------------------------------------------------------- */

struct unlink_task {
    struct place place; /* of the parent */
    struct filesystem_name name;
    struct filesystem_time now;
    bool directory;
    struct inode inode;
    bool removable; /* no name and no lookup left */
};

static void unlink_applied(void *argument)
{
    struct unlink_task *task = argument;
    if (task->inode.nlink == 0)
        task->removable = !lookups_mark_unlinked(task->place.filesystem, place_node(&task->place, task->inode.number));
}

static int unlink_body(struct transaction *transaction, void *argument)
{
    struct unlink_task *task = argument;
    struct directory_slot slot;
    struct inode parent;
    task->removable = false;
    TRY(inode_get_directory(transaction, task->place.inode, &parent));
    TRY(directory_find(transaction, task->place.hash_seed, parent.number, task->name, &slot));
    int status = inode_get(transaction, slot.child, &task->inode);
    if (status != 0)
        return status == -ESTALE ? -EUCLEAN : status;
    TRY(inode_check_change(&parent));
    TRY(inode_check_change(&task->inode));
    if (S_ISDIR(task->inode.mode) != task->directory)
        return task->directory ? -ENOTDIR : -EISDIR;
    if (task->directory)
        TRY(directory_check_empty(transaction, slot.child));
    if (task->inode.nlink == 0 || (task->directory && parent.nlink <= 2))
        return -EUCLEAN;
    task->inode.nlink = task->directory ? 0 : task->inode.nlink - 1;
    task->inode.ctime = task->now;
    parent.nlink -= task->directory ? 1 : 0;
    directory_touch(&parent, -1, task->now);
    TRY(directory_delete(transaction, parent.number, slot.cookie, task->name, slot.child));
    TRY(inode_put(transaction, &task->inode));
    TRY(inode_put(transaction, &parent));
    if (task->inode.nlink == 0)
        TRY(orphan_update(transaction, &task->inode));
    return transaction_on_apply(transaction, unlink_applied, task);
}

static int unlink_name(struct filesystem *filesystem, uint64_t parent, struct filesystem_name name, bool directory)
{
    struct unlink_task task = {.name = name, .now = time_now(), .directory = directory};
    int status = entry_name_check(name);
    if (status == 0)
        status = place_of_node(filesystem, parent, &task.place);
    if (status == 0)
        status = place_transact(&task.place, STORE_TRANSACT_RESERVE, unlink_body, &task);
    if (status != 0 || !task.removable)
        return status;
    task.place.inode = task.inode.number;
    return inode_reclaim(&task.place);
}

int filesystem_unlink(struct filesystem *filesystem, uint64_t parent, struct filesystem_name name)
{
    return name_dots(name) != 0 ? -EISDIR : unlink_name(filesystem, parent, name, false);
}

int filesystem_rmdir(struct filesystem *filesystem, uint64_t parent, struct filesystem_name name)
{
    if (name_dots(name) != 0)
        return name_dots(name) == 1 ? -EINVAL : -ENOTEMPTY;
    return unlink_name(filesystem, parent, name, true);
}

/* ---- readlink ------------------------------------------------------------------------------------------------ */

struct readlink_task {
    struct place place;
    uint8_t *target;
    size_t length;
};

static int readlink_body(struct transaction *transaction, void *argument)
{
    struct readlink_task *task = argument;
    struct store_item item;
    struct inode inode;
    struct key key;
    uint8_t chunk = 0;
    TRY(inode_get(transaction, task->place.inode, &inode));
    if (!S_ISLNK(inode.mode))
        return -EINVAL;
    for (task->length = 0; task->length < inode.inline_length; chunk++) {
        key_set_chunk(&key, inode.number, ITEM_INLINE, chunk);
        int status = transaction_get(transaction, key.bytes, key.length, &item);
        if (status != 0)
            return status == -ENOENT ? -EUCLEAN : status;
        if (item.value_length == 0 || item.value_length > inode.inline_length - task->length)
            return -EUCLEAN;
        memcpy(task->target + task->length, item.value, item.value_length);
        task->length += item.value_length;
    }
    return 0;
}

int filesystem_readlink(struct filesystem *filesystem, uint64_t node, void *target, size_t *length)
{
    struct readlink_task task = {.target = target};
    int status = place_of_node(filesystem, node, &task.place);
    if (status == 0)
        status = place_transact(&task.place, STORE_TRANSACT_READ, readlink_body, &task);
    *length = status == 0 ? task.length : 0;
    return status;
}
