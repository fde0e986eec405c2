/* SEEK_DATA and SEEK_HOLE. Data are the blocks that extents map and the inline bytes, whatever they hold. */
#include "internal.h"

#include <errno.h>

/* Extents that one transaction looks at; a search for the end of a long file's data goes on in the next. */
#define SEEK_ITEMS_MAX 256u

struct seek_task {
    struct place place;
    uint64_t offset;
    bool hole;
    uint64_t block; /* where this run begins */
    uint64_t next;  /* and the next one */
    bool more;
    uint64_t found;
};

static int seek_inline(struct seek_task *task, const struct inode *inode)
{
    bool data = task->offset < inode->inline_length;
    task->found = task->hole && data ? inode->inline_length : task->offset;
    return task->hole || data ? 0 : -ENXIO;
}

static int seek_body(struct transaction *transaction, void *argument)
{
    struct seek_task *task = argument;
    struct inode inode;
    uint64_t block;
    task->more = false;
    TRY(inode_get(transaction, task->place.inode, &inode));
    if (!S_ISREG(inode.mode))
        return S_ISDIR(inode.mode) ? -EISDIR : -EINVAL;
    if (task->offset >= inode.size_bytes)
        return -ENXIO;
    if ((inode.flags & INODE_INLINE) != 0)
        return seek_inline(task, &inode);
    int status = extent_seek_edge(transaction, inode.number, task->block, task->hole, SEEK_ITEMS_MAX, &block,
                                  &task->more);
    if (status != 0)
        return status == -ENOENT ? -ENXIO : status;
    task->next = block;
    task->found = block * STORE_BLOCK_SIZE;
    if (task->found < task->offset)
        task->found = task->offset;
    if (task->found < inode.size_bytes)
        return 0;
    /* Blocks past the end are what a truncation has still to remove. */
    task->more = false;
    task->found = inode.size_bytes;
    return task->hole ? 0 : -ENXIO;
}

int filesystem_seek(struct filesystem *filesystem, uint64_t node, uint64_t offset_bytes, bool hole, uint64_t *found)
{
    struct seek_task task = {.offset = offset_bytes, .hole = hole, .block = offset_bytes / STORE_BLOCK_SIZE};
    int status = place_of_node(filesystem, node, &task.place);
    /* Larger than any file; it must not enter a key's arithmetic. */
    if (status == 0 && offset_bytes >= FILESYSTEM_SIZE_MAX)
        status = -ENXIO;
    while (status == 0) {
        status = place_transact(&task.place, STORE_TRANSACT_READ, seek_body, &task);
        if (!task.more)
            break;
        task.block = task.next;
    }
    if (status == 0)
        *found = task.found;
    return status;
}
