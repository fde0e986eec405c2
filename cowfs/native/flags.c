/* The flags of chattr(1) that forbid changes: what they forbid, and setting them. */
#include "internal.h"

#include <errno.h>

static int forbidden(const struct inode *inode, unsigned flags)
{
    return (inode->flags & flags) != 0 ? -EPERM : 0;
}

int inode_check_change(const struct inode *inode)
{
    return forbidden(inode, INODE_IMMUTABLE | INODE_APPEND);
}

int inode_check_append(const struct inode *inode)
{
    return forbidden(inode, INODE_IMMUTABLE);
}

/* ---- the verbs ----------------------------------------------------------------------------------------------- */

struct flags_task {
    struct place place;
    uint32_t flags;
    struct filesystem_time now;
};

static int setflags_body(struct transaction *transaction, void *argument)
{
    struct flags_task *task = argument;
    struct inode inode;
    TRY(inode_get(transaction, task->place.inode, &inode));
    inode.flags = (inode.flags & ~INODE_FLAGS_PUBLIC) | task->flags;
    inode.ctime = task->now;
    return inode_put(transaction, &inode);
}

int filesystem_setflags(struct filesystem *filesystem, uint64_t node, uint32_t flags)
{
    struct flags_task task = {.flags = flags, .now = time_now()};
    if ((flags & ~INODE_FLAGS_PUBLIC) != 0)
        return -EOPNOTSUPP;
    int status = place_of_node(filesystem, node, &task.place);
    return status != 0 ? status : place_transact(&task.place, 0, setflags_body, &task);
}

static int may_open_body(struct transaction *transaction, void *argument)
{
    const struct flags_task *task = argument;
    struct inode inode;
    bool writes = (task->flags & (FILESYSTEM_OPEN_WRITE | FILESYSTEM_OPEN_TRUNCATE)) != 0;
    bool only_appends = (task->flags & FILESYSTEM_OPEN_APPEND) != 0 && (task->flags & FILESYSTEM_OPEN_TRUNCATE) == 0;
    TRY(inode_get(transaction, task->place.inode, &inode));
    if (!writes)
        return 0;
    return only_appends ? inode_check_append(&inode) : inode_check_change(&inode);
}

int filesystem_may_open(struct filesystem *filesystem, uint64_t node, unsigned flags)
{
    struct flags_task task = {.flags = flags};
    int status = place_of_node(filesystem, node, &task.place);
    return status != 0 ? status : place_transact(&task.place, STORE_TRANSACT_READ, may_open_body, &task);
}
