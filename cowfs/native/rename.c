/* rename(2): one transaction, whatever is replaced, exchanged or moved. */
#include "internal.h"

#include <errno.h>

struct rename_task {
    struct place place;  /* of the old parent */
    struct place target; /* of the new one */
    struct filesystem_name old_name;
    struct filesystem_name new_name;
    uint32_t flags;
    struct filesystem_time now;
    struct inode replaced; /* nlink 0: it has no name left */
    bool replaces;
    bool removable;
};

/* Both directories, and what the two names stand for. One directory is one struct. */
struct rename_ends {
    struct inode old_directory;
    struct inode other_directory;
    struct inode *new_directory;
    struct directory_slot old_slot;
    struct directory_slot new_slot;
    struct inode moved;
    struct inode met; /* at the new name */
    bool is_met;
};

static int child_get(struct transaction *transaction, uint64_t number, struct inode *out)
{
    int status = inode_get(transaction, number, out);
    return status == -ESTALE ? -EUCLEAN : status;
}

static int rename_find(struct transaction *transaction, const struct rename_task *task, struct rename_ends *ends)
{
    TRY(inode_get_directory(transaction, task->place.inode, &ends->old_directory));
    ends->new_directory = &ends->old_directory;
    if (task->target.inode != task->place.inode) {
        ends->new_directory = &ends->other_directory;
        TRY(inode_get_directory(transaction, task->target.inode, &ends->other_directory));
    }
    if (ends->new_directory->nlink == 0)
        return -ENOENT;
    TRY(directory_find(transaction, task->place.hash_seed, task->place.inode, task->old_name, &ends->old_slot));
    TRY(child_get(transaction, ends->old_slot.child, &ends->moved));
    int status =
        directory_find(transaction, task->place.hash_seed, task->target.inode, task->new_name, &ends->new_slot);
    ends->is_met = status == 0;
    if (status == 0)
        return child_get(transaction, ends->new_slot.child, &ends->met);
    if (status == -ENOENT && ends->new_slot.cookie == 0)
        return -ENOSPC;
    return status == -ENOENT ? 0 : status;
}

/* Deeper than real trees go; ends the walk in a damaged one. */
#define DEPTH_MAX 1000000u

/* -EINVAL when `directory` is `ancestor` or lies below it. */
static int check_not_below(struct transaction *transaction, uint64_t directory, uint64_t ancestor)
{
    struct inode inode;
    for (uint32_t depth = 0; depth < DEPTH_MAX; depth++) {
        if (directory == ancestor)
            return -EINVAL;
        if (directory == FILESYSTEM_ROOT_INODE)
            return 0;
        TRY(child_get(transaction, directory, &inode));
        if (!S_ISDIR(inode.mode))
            return -EUCLEAN;
        directory = inode.parent;
    }
    return -EUCLEAN;
}

static int rename_check(struct transaction *transaction, const struct rename_task *task, const struct rename_ends *ends)
{
    bool exchange = task->flags == FILESYSTEM_RENAME_EXCHANGE;
    if (exchange && !ends->is_met)
        return -ENOENT;
    if (task->flags == FILESYSTEM_RENAME_NOREPLACE && ends->is_met)
        return -EEXIST;
    if (S_ISDIR(ends->moved.mode))
        TRY(check_not_below(transaction, task->target.inode, ends->moved.number));
    if (exchange && S_ISDIR(ends->met.mode))
        TRY(check_not_below(transaction, task->place.inode, ends->met.number));
    if (exchange || !ends->is_met || ends->met.number == ends->moved.number)
        return 0;
    if (S_ISDIR(ends->met.mode)) {
        int status = check_not_below(transaction, task->place.inode, ends->met.number);
        if (status != 0)
            return status == -EINVAL ? -ENOTEMPTY : status;
    }
    if (S_ISDIR(ends->moved.mode) != S_ISDIR(ends->met.mode))
        return S_ISDIR(ends->met.mode) ? -EISDIR : -ENOTDIR;
    return S_ISDIR(ends->met.mode) ? directory_check_empty(transaction, ends->met.number) : 0;
}

/* A child changes from one directory to another: "..", and the link counts that come from "..". */
static int move_parent(struct inode *child, struct inode *from, struct inode *to)
{
    if (!S_ISDIR(child->mode) || from == to)
        return 0;
    if (from->nlink <= 2)
        return -EUCLEAN;
    if (to->nlink >= FILESYSTEM_LINKS_MAX)
        return -EMLINK;
    from->nlink--;
    to->nlink++;
    child->parent = to->number;
    return 0;
}

static int rename_check_flags(const struct rename_ends *ends)
{
    TRY(inode_check_change(&ends->old_directory));
    TRY(inode_check_change(&ends->moved));
    if (!ends->is_met)
        return inode_check_append(ends->new_directory);
    TRY(inode_check_change(ends->new_directory));
    return inode_check_change(&ends->met);
}

static uint8_t inode_type(const struct inode *inode)
{
    return (uint8_t)(inode->mode >> 12);
}

static int rename_exchange(struct transaction *transaction, const struct rename_task *task, struct rename_ends *ends)
{
    uint64_t old_number = ends->old_directory.number, new_number = ends->new_directory->number;
    TRY(move_parent(&ends->moved, &ends->old_directory, ends->new_directory));
    TRY(move_parent(&ends->met, ends->new_directory, &ends->old_directory));
    directory_touch(&ends->old_directory, 0, task->now);
    directory_touch(ends->new_directory, 0, task->now);
    TRY(directory_delete(transaction, old_number, ends->old_slot.cookie, task->old_name, ends->moved.number));
    TRY(directory_delete(transaction, new_number, ends->new_slot.cookie, task->new_name, ends->met.number));
    TRY(directory_put(transaction, old_number, ends->old_slot.cookie, task->old_name, ends->met.number,
                      inode_type(&ends->met)));
    TRY(directory_put(transaction, new_number, ends->new_slot.cookie, task->new_name, ends->moved.number,
                      inode_type(&ends->moved)));
    ends->met.ctime = task->now;
    return inode_put(transaction, &ends->met);
}

static int rename_replace(struct transaction *transaction, struct rename_task *task, struct rename_ends *ends)
{
    uint64_t old_number = ends->old_directory.number, new_number = ends->new_directory->number;
    TRY(move_parent(&ends->moved, &ends->old_directory, ends->new_directory));
    TRY(directory_delete(transaction, old_number, ends->old_slot.cookie, task->old_name, ends->moved.number));
    directory_touch(&ends->old_directory, -1, task->now);
    if (ends->is_met) {
        bool directory = S_ISDIR(ends->met.mode);
        if (ends->met.nlink == 0 || (directory && ends->new_directory->nlink <= 2))
            return -EUCLEAN;
        ends->met.nlink = directory ? 0 : ends->met.nlink - 1;
        ends->met.ctime = task->now;
        ends->new_directory->nlink -= directory ? 1 : 0;
        TRY(directory_delete(transaction, new_number, ends->new_slot.cookie, task->new_name, ends->met.number));
        TRY(inode_put(transaction, &ends->met));
        if (ends->met.nlink == 0)
            TRY(orphan_update(transaction, &ends->met));
        task->replaced = ends->met;
        task->replaces = true;
    }
    directory_touch(ends->new_directory, ends->is_met ? 0 : 1, task->now);
    return directory_put(transaction, new_number, ends->new_slot.cookie, task->new_name, ends->moved.number,
                         inode_type(&ends->moved));
}

static void rename_applied(void *argument)
{
    struct rename_task *task = argument;
    if (task->replaces && task->replaced.nlink == 0)
        task->removable =
            !lookups_mark_unlinked(task->place.filesystem, place_node(&task->place, task->replaced.number));
}

static int rename_body(struct transaction *transaction, void *argument)
{
    struct rename_task *task = argument;
    struct rename_ends ends;
    task->replaces = false;
    task->removable = false;
    TRY(rename_find(transaction, task, &ends));
    TRY(rename_check(transaction, task, &ends));
    if (ends.is_met && ends.met.number == ends.moved.number)
        return 0;
    TRY(rename_check_flags(&ends));
    if (task->flags == FILESYSTEM_RENAME_EXCHANGE)
        TRY(rename_exchange(transaction, task, &ends));
    else
        TRY(rename_replace(transaction, task, &ends));
    ends.moved.ctime = task->now;
    TRY(inode_put(transaction, &ends.moved));
    TRY(inode_put(transaction, &ends.old_directory));
    if (ends.new_directory != &ends.old_directory)
        TRY(inode_put(transaction, ends.new_directory));
    return transaction_on_apply(transaction, rename_applied, task);
}

int filesystem_rename(struct filesystem *filesystem, uint64_t old_parent, struct filesystem_name old_name,
                      uint64_t new_parent, struct filesystem_name new_name, uint32_t flags)
{
    struct rename_task task = {.old_name = old_name, .new_name = new_name, .flags = flags, .now = time_now()};
    int status = flags > FILESYSTEM_RENAME_EXCHANGE ? -EINVAL : entry_name_check(old_name);
    if (status == 0)
        status = entry_name_check(new_name);
    if (status == 0 && (name_dots(old_name) != 0 || name_dots(new_name) != 0))
        status = -EBUSY;
    if (status == 0)
        status = place_pair(filesystem, old_parent, new_parent, &task.place, &task.target);
    if (status == 0)
        status = place_transact(&task.place, 0, rename_body, &task);
    if (status != 0 || !task.removable)
        return status;
    task.place.inode = task.replaced.number;
    return inode_reclaim(&task.place);
}
