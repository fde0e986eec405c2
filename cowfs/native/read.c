/* Reading: where the blocks are is looked up under the store lock, what they hold is read and verified outside. */
#include "internal.h"

#include <errno.h>

#define READ_BLOCKS_MAX 256u

bool block_address_equal(const struct block_address *a, const struct block_address *b)
{
    return a->address == b->address && a->checksum == b->checksum && a->compressed == b->compressed;
}

int mismatch_note(struct store *store, struct mismatch *mismatch, const struct block_address *block)
{
    if (!block_address_equal(&mismatch->block, block))
        *mismatch = (struct mismatch){*block, 0};
    if (++mismatch->count < MISMATCHES_MAX)
        return 0;
    store_note_data_mismatch(store, block->address);
    return -EIO;
}

int block_fetch(struct filesystem *filesystem, const struct block_address *block, uint8_t *out)
{
    if (block->compression != COMPRESSION_OFF)
        return content_read(filesystem, block, block->index * STORE_BLOCK_SIZE, STORE_BLOCK_SIZE, out);
    int status = store_data_read(filesystem->store, block->address, 1, out);
    if (status == 0 && store_checksum(out, STORE_BLOCK_SIZE) != block->checksum && !MUTATED(DATA_CHECKSUM))
        status = -EBADMSG;
    return status;
}

int inline_get(struct transaction *transaction, const struct inode *inode, uint8_t *out)
{
    struct store_item item;
    struct key key;
    if (inode->inline_length == 0)
        return 0;
    key_set_chunk(&key, inode->number, ITEM_INLINE, 0);
    int status = transaction_get(transaction, key.bytes, key.length, &item);
    if (status != 0)
        return status == -ENOENT ? -EUCLEAN : status;
    if (item.value_length != inode->inline_length || inode->inline_length > FILESYSTEM_INLINE_LENGTH_MAX)
        return -EUCLEAN;
    memcpy(out, item.value, item.value_length);
    return 0;
}

int inline_put(struct transaction *transaction, struct inode *inode, const uint8_t *bytes, uint32_t length)
{
    struct key key;
    uint32_t old_length = inode->inline_length;
    key_set_chunk(&key, inode->number, ITEM_INLINE, 0);
    inode->inline_length = length;
    if (length != 0)
        return transaction_put(transaction, key.bytes, key.length, bytes, length, STORE_VALUE_PLAIN, false);
    return old_length == 0 ? 0 : transaction_delete(transaction, key.bytes, key.length);
}

struct read_task {
    struct place place;
    uint64_t offset;
    uint64_t length; /* wanted; the body cuts it at the end of the file */
    uint8_t *buffer;
    uint64_t got;
    bool done; /* inline: the bytes are in the buffer */
    uint64_t first;
    uint32_t count;
    struct block_address blocks[READ_BLOCKS_MAX];
};

static int read_body(struct transaction *transaction, void *argument)
{
    struct read_task *task = argument;
    uint8_t bytes[FILESYSTEM_INLINE_LENGTH_MAX];
    struct inode inode;
    task->got = 0;
    task->done = true;
    TRY(inode_get(transaction, task->place.inode, &inode));
    if (!S_ISREG(inode.mode))
        return S_ISDIR(inode.mode) ? -EISDIR : -EINVAL;
    if (task->offset >= inode.size_bytes || task->length == 0)
        return 0;
    uint64_t got = inode.size_bytes - task->offset;
    task->got = got < task->length ? got : task->length;
    if ((inode.flags & INODE_INLINE) != 0) {
        TRY(inline_get(transaction, &inode, bytes));
        uint64_t held = task->offset < inode.inline_length ? inode.inline_length - task->offset : 0;
        held = held < task->got ? held : task->got;
        if (held != 0)
            memcpy(task->buffer, bytes + task->offset, held);
        memset(task->buffer + held, 0, task->got - held);
        return 0;
    }
    task->done = false;
    task->first = task->offset / STORE_BLOCK_SIZE;
    task->count = (uint32_t)((task->offset + task->got - 1) / STORE_BLOCK_SIZE - task->first + 1);
    return extent_map(transaction, inode.number, task->first, task->count, task->blocks);
}

/* Blocks from `at` on that lie whole in the wanted range and one after the other on the medium: they are read at once,
 * straight to where they are wanted. */
static uint32_t read_run(const struct read_task *task, uint32_t at)
{
    uint64_t end = task->offset + task->got, run = 0;
    uint64_t start = (task->first + at) * STORE_BLOCK_SIZE;
    if (start < task->offset)
        return 0;
    while (at + run < task->count && start + (run + 1) * STORE_BLOCK_SIZE <= end &&
           task->blocks[at + run].address == task->blocks[at].address + run &&
           task->blocks[at + run].compression == COMPRESSION_OFF)
        run++;
    return (uint32_t)run;
}

/* From `at` on, blocks of one compressed extent. */
static uint32_t read_compressed_run(const struct read_task *task, uint32_t at)
{
    uint32_t run = 1;
    while (at + run < task->count && task->blocks[at + run].compression != COMPRESSION_OFF &&
           task->blocks[at + run].address == task->blocks[at].address &&
           task->blocks[at + run].index == task->blocks[at].index + run)
        run++;
    return run;
}

/* -EBADMSG: block *failed does not verify. */
static int read_blocks(const struct read_task *task, uint32_t *failed)
{
    struct filesystem *filesystem = task->place.filesystem;
    uint8_t bounce[STORE_BLOCK_SIZE];
    uint64_t end = task->offset + task->got;
    for (uint32_t at = 0, run; at < task->count; at += run) {
        uint64_t start = (task->first + at) * STORE_BLOCK_SIZE;
        uint64_t from = start < task->offset ? task->offset : start;
        uint64_t to = start + STORE_BLOCK_SIZE < end ? start + STORE_BLOCK_SIZE : end;
        uint8_t *out = task->buffer + (from - task->offset);
        *failed = at;
        run = 1;
        if (task->blocks[at].address == 0) {
            memset(out, 0, to - from);
        } else if (task->blocks[at].compression != COMPRESSION_OFF) {
            run = read_compressed_run(task, at);
            to = start + run * STORE_BLOCK_SIZE < end ? start + run * STORE_BLOCK_SIZE : end;
            uint32_t skipped = task->blocks[at].index * STORE_BLOCK_SIZE + (uint32_t)(from - start);
            TRY(content_read(filesystem, &task->blocks[at], skipped, (uint32_t)(to - from), out));
        } else if ((run = read_run(task, at)) == 0) {
            run = 1;
            TRY(block_fetch(filesystem, &task->blocks[at], bounce));
            memcpy(out, bounce + (from - start), to - from);
        } else {
            TRY(store_data_read(filesystem->store, task->blocks[at].address, run, out));
            for (; *failed < at + run; (*failed)++, out += STORE_BLOCK_SIZE)
                if (store_checksum(out, STORE_BLOCK_SIZE) != task->blocks[*failed].checksum && !MUTATED(DATA_CHECKSUM))
                    return -EBADMSG;
        }
    }
    return 0;
}

static int read_part(struct read_task *task)
{
    struct mismatch mismatch = {0};
    uint32_t failed = 0;
    for (;;) {
        int status = place_transact(&task->place, STORE_TRANSACT_READ, read_body, task);
        if (status != 0 || task->done)
            return status;
        status = read_blocks(task, &failed);
        if (status == -EBADMSG)
            status = mismatch_note(task->place.filesystem->store, &mismatch, &task->blocks[failed]);
        else
            return damage_note(&task->place, task->first + failed, status);
        if (status != 0)
            return damage_note(&task->place, task->first + failed, status);
    }
}

int filesystem_read(struct filesystem *filesystem, uint64_t node, uint64_t offset_bytes, void *buffer,
                    size_t length_bytes, size_t *got)
{
    struct read_task task;
    int status = place_of_node(filesystem, node, &task.place);
    *got = 0;
    while (status == 0) {
        /* A part ends on a multiple of its largest size, so that it never spans more blocks. */
        uint64_t span = (uint64_t)READ_BLOCKS_MAX * STORE_BLOCK_SIZE;
        task.offset = offset_bytes + *got;
        task.length = span - task.offset % span;
        task.length = task.length < length_bytes - *got ? task.length : length_bytes - *got;
        task.buffer = (uint8_t *)buffer + *got;
        if (task.offset >= FILESYSTEM_SIZE_MAX)
            task.length = 0;
        status = read_part(&task);
        if (status == 0)
            *got += task.got;
        if (status == 0 && (task.got < task.length || *got == length_bytes || task.length == 0))
            break;
    }
    return status;
}
