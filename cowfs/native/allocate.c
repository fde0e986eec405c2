/* fallocate(2). What is punched or zeroed becomes a hole: whole blocks are cut out, REMOVAL_ITEMS_MAX extents to a
 * transaction, and what is left of a block at either end is overwritten with zeros. A crash between two transactions
 * leaves a part of the range as it was, which is a state that a punch may stop in; so nothing has to be recorded. */
#include "internal.h"

#include <errno.h>

struct allocate_task {
    struct place place;
    struct filesystem_time now;
    uint64_t offset;
    uint64_t end;
    uint32_t items_max;
    bool grows;      /* the file ends no earlier than the range */
    bool grows_only; /* which an append-only file takes */
    bool more;       /* extents are left in the range */
    uint64_t first_block; /* of what is punched whole */
    uint64_t end_block;
    bool truncating; /* the rest of a truncation has to be removed before the size grows */
};

static int allocate_inode(struct transaction *transaction, const struct allocate_task *task, struct inode *inode)
{
    TRY(inode_get(transaction, task->place.inode, inode));
    if (!S_ISREG(inode->mode))
        return S_ISDIR(inode->mode) ? -EISDIR : -ENODEV;
    TRY(task->grows_only ? inode_check_append(inode) : inode_check_change(inode));
    TRY(inode_drop_privileges(transaction, inode, false));
    inode->mtime = task->now;
    inode->ctime = task->now;
    return 0;
}

/* ---- growing ------------------------------------------------------------------------------------------------- */

static int grow_body(struct transaction *transaction, void *argument)
{
    struct allocate_task *task = argument;
    struct inode inode;
    task->truncating = false;
    TRY(allocate_inode(transaction, task, &inode));
    if (task->grows && task->end > inode.size_bytes) {
        if ((inode.flags & INODE_CANNOT_GROW) != 0) {
            task->truncating = true;
            return -ECANCELED;
        }
        inode.size_bytes = task->end;
    }
    return inode_put(transaction, &inode);
}

static int grow(struct allocate_task *task)
{
    for (;;) {
        task->truncating = false; /* the body may not be reached */
        int status = place_transact(&task->place, 0, grow_body, task);
        if (!task->truncating)
            return status;
        status = truncate_for_growth(&task->place);
        if (status != 0)
            return status;
    }
}

/* -ENOSPC when the range takes more than the blocks that the file has and those that are left. Which of the file's
 * blocks lie in the range does not matter: an answer of 0 promises nothing. */
static int room_check(const struct allocate_task *task)
{
    struct filesystem *filesystem = task->place.filesystem;
    struct filesystem_attributes attributes;
    struct filesystem_space space;
    int status = filesystem_getattr(filesystem, place_node(&task->place, task->place.inode), &attributes);
    uint64_t first = task->offset / STORE_BLOCK_SIZE, last = (task->end - 1) / STORE_BLOCK_SIZE;
    filesystem_statfs(filesystem, &space);
    if (status != 0)
        return status;
    return last - first >= attributes.blocks_512 / (STORE_BLOCK_SIZE / 512) + space.blocks_available ? -ENOSPC : 0;
}

/* ---- punching ------------------------------------------------------------------------------------------------ */

static int punch_inline(struct transaction *transaction, const struct allocate_task *task, struct inode *inode)
{
    uint8_t bytes[FILESYSTEM_INLINE_LENGTH_MAX];
    uint32_t length = inode->inline_length;
    if (task->offset >= length)
        return 0;
    TRY(inline_get(transaction, inode, bytes));
    if (task->end >= length)
        return inline_put(transaction, inode, bytes, (uint32_t)task->offset);
    memset(bytes + task->offset, 0, task->end - task->offset);
    return inline_put(transaction, inode, bytes, length);
}

static int punch_body(struct transaction *transaction, void *argument)
{
    struct allocate_task *task = argument;
    struct extent_piece before;
    struct inode inode;
    task->more = false;
    TRY(allocate_inode(transaction, task, &inode));
    task->first_block = (task->offset + STORE_BLOCK_SIZE - 1) / STORE_BLOCK_SIZE;
    task->end_block = task->end / STORE_BLOCK_SIZE;
    /* Past the end of the file a block has nothing that could be left. */
    if (task->end >= inode.size_bytes)
        task->end_block = (task->end + STORE_BLOCK_SIZE - 1) / STORE_BLOCK_SIZE;
    if ((inode.flags & INODE_INLINE) != 0)
        TRY(punch_inline(transaction, task, &inode));
    else if (task->first_block < task->end_block)
        TRY(extent_cut(transaction, &inode, task->first_block, task->end_block - 1, task->items_max, &before,
                       &task->more));
    return inode_put(transaction, &inode);
}

/* What the body met has to be done before it runs again. */
static int punch_split(struct allocate_task *task)
{
    task->more = true;
    return rewrite_split(&task->place, task->first_block, task->end_block, true);
}

int range_punch(const struct place *place, uint64_t offset, uint64_t end)
{
    struct allocate_task task = {
        .place = *place, .now = time_now(), .offset = offset, .end = end, .items_max = REMOVAL_ITEMS_MAX};
    int status;
    do {
        status = place_transact_removal(place, punch_body, &task, &task.items_max);
        if (status == EXTENT_SPLIT)
            status = punch_split(&task);
    } while (status == 0 && task.more);
    uint64_t head = offset % STORE_BLOCK_SIZE == 0 ? 0 : STORE_BLOCK_SIZE - offset % STORE_BLOCK_SIZE;
    uint64_t tail = end % STORE_BLOCK_SIZE;
    if (offset / STORE_BLOCK_SIZE == end / STORE_BLOCK_SIZE)
        return status != 0 ? status : write_zeros(place, offset, (uint32_t)(end - offset));
    if (status == 0 && head != 0)
        status = write_zeros(place, offset, (uint32_t)head);
    if (status == 0 && tail != 0)
        status = write_zeros(place, end - tail, (uint32_t)tail);
    return status;
}

int range_zero(const struct place *place, uint64_t offset, uint64_t end)
{
    struct allocate_task task = {.place = *place, .now = time_now(), .offset = offset, .end = end, .grows = true};
    int status = range_punch(place, offset, end);
    return status != 0 ? status : grow(&task);
}

/* ---- the verb ------------------------------------------------------------------------------------------------ */

int filesystem_allocate(struct filesystem *filesystem, uint64_t node, unsigned mode, uint64_t offset_bytes,
                        uint64_t length_bytes)
{
    struct allocate_task task = {.now = time_now(), .offset = offset_bytes};
    unsigned kind = mode & ~(unsigned)FILESYSTEM_ALLOCATE_KEEP_SIZE;
    bool keeps_size = mode != kind;
    if (kind != 0 && kind != FILESYSTEM_ALLOCATE_ZERO_RANGE && (kind != FILESYSTEM_ALLOCATE_PUNCH_HOLE || !keeps_size))
        return -EOPNOTSUPP;
    if (length_bytes == 0)
        return -EINVAL;
    if (offset_bytes > FILESYSTEM_SIZE_MAX || length_bytes > FILESYSTEM_SIZE_MAX - offset_bytes)
        return -EFBIG;
    task.end = offset_bytes + length_bytes;
    task.grows = !keeps_size;
    task.grows_only = kind == 0;
    int status = place_of_node(filesystem, node, &task.place);
    if (status == 0 && !place_is_writable(&task.place))
        status = -EROFS;
    if (status == 0 && kind != FILESYSTEM_ALLOCATE_PUNCH_HOLE)
        status = room_check(&task);
    if (status == 0 && kind != 0)
        status = range_punch(&task.place, task.offset, task.end);
    if (status == 0 && kind != FILESYSTEM_ALLOCATE_PUNCH_HOLE)
        status = grow(&task);
    return status;
}
