/* copy_file_range(2). Whole blocks within one tree are shared, in two kinds of transactions: one moves the blocks of
 * the source's extents to the volume (extent_lend), the other replaces what the target has by extents that borrow the
 * same blocks. Each leaves a sound tree, and the second looks at everything again. What cannot be shared is copied as
 * bytes; holes stay holes in either case. */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>

#define COPY_EXTENTS_MAX 32u
#define COPY_BLOCKS_MAX (COPY_EXTENTS_MAX * STORE_EXTENT_BLOCKS_MAX)
/* One call ends after so much, or so much copied as bytes, and says how far it came: it keeps no caller for long. */
#define COPY_LENGTH_MAX (UINT64_C(1) << 30)
#define COPY_BYTES_MAX (UINT64_C(8) << 20)
#define COPY_PIECE_BYTES (UINT64_C(256) << 10)

/* What a transaction that did nothing asks for first. */
enum copy_need { NEED_NOTHING, NEED_LENDING, NEED_BYTES, NEED_TRUNCATION, NEED_INLINE_MOVED, NEED_SPLIT };

struct copy_task {
    struct place in;
    struct place out;
    struct filesystem_time now;
    uint64_t offset_in;
    uint64_t offset_out;
    uint64_t length;
    uint64_t blocks_max;
    enum copy_need need;
    uint64_t got;
    const struct place *split; /* with NEED_SPLIT: the file, and which blocks no compressed extent may leave */
    uint64_t split_first;
    uint64_t split_end;
    uint32_t piece_count;
    struct extent_piece pieces[COPY_EXTENTS_MAX];
};

static int copy_need(struct copy_task *task, enum copy_need need)
{
    task->need = need;
    return -ECANCELED;
}

static int copy_need_split(struct copy_task *task, const struct place *place, uint64_t first, uint64_t end)
{
    task->split = place;
    task->split_first = first;
    task->split_end = end;
    return copy_need(task, NEED_SPLIT);
}

static int copy_inode(struct transaction *transaction, const struct place *place, struct inode *out)
{
    TRY(inode_get(transaction, place->inode, out));
    if (!S_ISREG(out->mode))
        return S_ISDIR(out->mode) ? -EISDIR : -EINVAL;
    return 0;
}

/* ---- sharing ------------------------------------------------------------------------------------------------- */

/* How many blocks may be shared from here on. The last one may be a part when neither file has more behind it: past
 * the end of a file that was cut a block holds zeros. */
static uint64_t share_blocks(const struct copy_task *task, const struct inode *in, const struct inode *out,
                             uint64_t left)
{
    uint64_t blocks = left / STORE_BLOCK_SIZE;
    if (left % STORE_BLOCK_SIZE != 0 && task->offset_in + left == in->size_bytes &&
        task->offset_out + left >= out->size_bytes && (in->flags & INODE_UNCUT) == 0)
        blocks++;
    return blocks < task->blocks_max ? blocks : task->blocks_max;
}

/* Gathers the extents of [first, *end) that borrow already; *end becomes where one does not, or where there are
 * enough. */
static int share_gather(struct transaction *transaction, struct copy_task *task, uint64_t first, uint64_t *end)
{
    struct store_extent extent;
    struct cursor cursor;
    uint64_t logical;
    task->piece_count = 0;
    int status = extent_seek(transaction, &cursor, task->in.inode, first);
    for (; status == 0; status = cursor_next(transaction, &cursor)) {
        status = extent_of_item(&cursor.item, task->in.inode, &logical, &extent);
        if (status != 0 || logical >= *end)
            break;
        uint64_t from = logical < first ? first : logical;
        uint64_t to = logical + extent.logical_blocks < *end ? logical + extent.logical_blocks : *end;
        if (to <= from)
            continue;
        if (extent.compression != 0 && to - from != extent.logical_blocks) {
            if (task->piece_count == 0)
                return copy_need_split(task, &task->in, from, to);
            *end = from;
            break;
        }
        bool borrowed = (extent.flags & EXTENT_BORROWED) != 0;
        if (!borrowed && task->piece_count == 0)
            return copy_need(task, NEED_LENDING);
        if (!borrowed || task->piece_count == COPY_EXTENTS_MAX) {
            *end = from;
            break;
        }
        extent_piece_of(&task->pieces[task->piece_count++], &cursor.item, &extent, logical, from, to);
    }
    return status == -ENOENT ? 0 : status;
}

static int share_put(struct transaction *transaction, struct copy_task *task, struct inode *out, uint64_t first,
                     uint64_t end)
{
    struct shared_changes changes;
    struct extent_piece before;
    uint64_t target = task->offset_out / STORE_BLOCK_SIZE;
    bool more;
    shared_begin(&changes, UINT32_MAX);
    int status = extent_cut_gathering(transaction, out, target, target + (end - first) - 1, UINT32_MAX, &before,
                                      &changes, &more);
    if (status == EXTENT_SPLIT)
        return copy_need_split(task, &task->out, target, target + (end - first));
    TRY(status);
    for (uint32_t at = 0; at < task->piece_count; at++) {
        struct extent_piece *piece = &task->pieces[at];
        piece->logical = target + (piece->logical - first);
        TRY(extent_put(transaction, out->number, piece, false));
        TRY(shared_change(transaction, &changes, piece->extent.address, piece->extent.blocks, true));
        out->blocks += piece->extent.blocks;
    }
    return shared_apply(transaction, &changes);
}

static int share_body(struct transaction *transaction, void *argument)
{
    struct copy_task *task = argument;
    struct inode in, other, *out = task->in.inode == task->out.inode ? &in : &other;
    task->need = NEED_NOTHING;
    task->got = 0;
    TRY(copy_inode(transaction, &task->in, &in));
    if (out == &other)
        TRY(copy_inode(transaction, &task->out, &other));
    TRY(inode_check_change(out));
    if (task->offset_in >= in.size_bytes)
        return 0;
    uint64_t left = in.size_bytes - task->offset_in;
    left = left < task->length ? left : task->length;
    uint64_t first = task->offset_in / STORE_BLOCK_SIZE, end = first + share_blocks(task, &in, out, left);
    if (end == first || (first == 0 && in.inline_length != 0))
        return copy_need(task, NEED_BYTES);
    TRY(share_gather(transaction, task, first, &end));
    left = left < (end - first) * STORE_BLOCK_SIZE ? left : (end - first) * STORE_BLOCK_SIZE;
    if (task->offset_out + left > out->size_bytes && (out->flags & INODE_CANNOT_GROW) != 0)
        return copy_need(task, NEED_TRUNCATION);
    if (out->inline_length != 0 && task->offset_out != 0)
        return copy_need(task, NEED_INLINE_MOVED);
    TRY(inline_put(transaction, out, NULL, 0));
    out->flags &= ~(uint32_t)INODE_INLINE;
    TRY(share_put(transaction, task, out, first, end));
    TRY(inode_drop_privileges(transaction, out, false));
    if (task->offset_out + left > out->size_bytes)
        out->size_bytes = task->offset_out + left;
    out->mtime = task->now;
    out->ctime = task->now;
    task->got = left;
    return inode_put(transaction, out);
}

static int lend_body(struct transaction *transaction, void *argument)
{
    const struct copy_task *task = argument;
    uint64_t first = task->offset_in / STORE_BLOCK_SIZE;
    uint64_t blocks = (task->length + STORE_BLOCK_SIZE - 1) / STORE_BLOCK_SIZE;
    blocks = blocks < task->blocks_max ? blocks : task->blocks_max;
    return extent_lend(transaction, task->in.inode, first, first + blocks - 1, COPY_EXTENTS_MAX);
}

/* Shares some blocks; with task->need NEED_BYTES nothing that can be. */
static int share_some(struct copy_task *task)
{
    int status = 0;
    while (status == 0) {
        task->need = NEED_NOTHING;
        status = place_transact(&task->out, 0, share_body, task);
        if (status == -E2BIG && task->blocks_max > 1) {
            task->blocks_max /= 2;
            status = 0;
            continue;
        }
        switch (task->need) {
        case NEED_NOTHING:
            return status;
        case NEED_BYTES:
            return 0;
        case NEED_LENDING:
            status = place_transact(&task->out, 0, lend_body, task);
            break;
        case NEED_TRUNCATION:
            status = truncate_for_growth(&task->out);
            break;
        case NEED_INLINE_MOVED:
            status = write_move_inline(&task->out);
            break;
        case NEED_SPLIT:
            status = rewrite_split(task->split, task->split_first, task->split_end, false);
            break;
        }
    }
    return status;
}

/* ---- bytes --------------------------------------------------------------------------------------------------- */

/* The hole from here on, if there is one: *got is how much of it was copied. */
static int copy_hole(struct copy_task *task)
{
    struct filesystem *filesystem = task->in.filesystem;
    uint64_t node = place_node(&task->in, task->in.inode), data;
    struct filesystem_attributes attributes;
    int status = filesystem_seek(filesystem, node, task->offset_in, false, &data);
    if (status == -ENXIO) {
        status = filesystem_getattr(filesystem, node, &attributes);
        data = attributes.size_bytes;
    }
    if (status != 0 || data <= task->offset_in)
        return status;
    task->got = data - task->offset_in < task->length ? data - task->offset_in : task->length;
    return range_zero(&task->out, task->offset_out, task->offset_out + task->got);
}

/* Up to the next place from where blocks may be shared again, where there is one. */
static uint64_t bytes_length(const struct copy_task *task, bool shares)
{
    uint64_t length = shares ? STORE_BLOCK_SIZE - task->offset_in % STORE_BLOCK_SIZE : COPY_PIECE_BYTES;
    return length < task->length ? length : task->length;
}

static int copy_bytes(struct copy_task *task, bool shares, uint8_t *buffer)
{
    struct filesystem *filesystem = task->in.filesystem;
    uint64_t node = place_node(&task->in, task->in.inode), length = bytes_length(task, shares), hole;
    size_t got = 0;
    task->got = 0;
    int status = copy_hole(task);
    if (status != 0 || task->got != 0)
        return status;
    status = filesystem_seek(filesystem, node, task->offset_in, true, &hole);
    if (status != 0)
        return status == -ENXIO ? 0 : status;
    length = length < hole - task->offset_in ? length : hole - task->offset_in;
    status = filesystem_read(filesystem, node, task->offset_in, buffer, (size_t)length, &got);
    task->got = got;
    if (status != 0 || got == 0)
        return status;
    return filesystem_write(filesystem, place_node(&task->out, task->out.inode), task->offset_out, buffer, got);
}

/* ---- the verb ------------------------------------------------------------------------------------------------ */

static int copy_run(struct copy_task *task, uint64_t *copied)
{
    bool one_tree = task->in.view == task->out.view;
    bool shares = one_tree && task->offset_in % STORE_BLOCK_SIZE == task->offset_out % STORE_BLOCK_SIZE;
    uint64_t by_bytes = 0;
    uint8_t *buffer = NULL;
    int status = 0;
    while (status == 0 && task->length != 0 && by_bytes < COPY_BYTES_MAX) {
        task->need = NEED_BYTES;
        task->got = 0;
        if (shares && task->offset_in % STORE_BLOCK_SIZE == 0)
            status = share_some(task);
        if (status == 0 && task->need == NEED_BYTES) {
            if (buffer == NULL && (buffer = malloc(COPY_PIECE_BYTES)) == NULL)
                status = -ENOMEM;
            else
                status = copy_bytes(task, shares, buffer);
            by_bytes += task->got < COPY_PIECE_BYTES ? task->got : COPY_PIECE_BYTES;
        }
        if (status != 0 || task->got == 0)
            break;
        *copied += task->got;
        task->offset_in += task->got;
        task->offset_out += task->got;
        task->length -= task->got;
    }
    free(buffer);
    return *copied != 0 ? 0 : status;
}

static int copy_check(struct copy_task *task, const struct filesystem_attributes *in,
                      const struct filesystem_attributes *out)
{
    if (S_ISDIR(in->mode) || S_ISDIR(out->mode))
        return -EISDIR;
    if (!S_ISREG(in->mode) || !S_ISREG(out->mode))
        return -EINVAL;
    if (!place_is_writable(&task->out))
        return -EROFS;
    if (task->offset_out >= FILESYSTEM_SIZE_MAX)
        return -EFBIG;
    uint64_t left = task->offset_in < in->size_bytes ? in->size_bytes - task->offset_in : 0;
    uint64_t room = FILESYSTEM_SIZE_MAX - task->offset_out;
    left = left < room ? left : room;
    task->length = task->length < left ? task->length : left;
    bool apart = task->offset_in >= task->offset_out + task->length ||
                 task->offset_out >= task->offset_in + task->length;
    if (in->node == out->node && task->length != 0 && !apart)
        return -EINVAL;
    task->length = task->length < COPY_LENGTH_MAX ? task->length : COPY_LENGTH_MAX;
    return 0;
}

int filesystem_copy_range(struct filesystem *filesystem, uint64_t node_in, uint64_t offset_in, uint64_t node_out,
                          uint64_t offset_out, uint64_t length_bytes, uint64_t *copied)
{
    struct copy_task task = {.now = time_now(), .offset_in = offset_in, .offset_out = offset_out,
                             .length = length_bytes, .blocks_max = COPY_BLOCKS_MAX};
    struct filesystem_attributes in, out;
    *copied = 0;
    int status = place_of_node(filesystem, node_in, &task.in);
    if (status == 0)
        status = place_of_node(filesystem, node_out, &task.out);
    if (status == 0)
        status = filesystem_getattr(filesystem, node_in, &in);
    if (status == 0)
        status = filesystem_getattr(filesystem, node_out, &out);
    if (status == 0)
        status = copy_check(&task, &in, &out);
    return status != 0 ? status : copy_run(&task, copied);
}
