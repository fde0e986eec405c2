/* Storing anew what a file holds already: the same bytes in other extents. A compressed extent that is to be cut
 * becomes several; what came in small writes becomes a compressed one. Nobody but st_blocks can tell the difference, so
 * this is a transaction of its own, before the one that wants to cut or long after those that wrote. */
#include "internal.h"

#include <errno.h>

#define PARTS_MAX 3u

struct rewrite_task {
    struct place place;
    unsigned flags; /* of the transaction */
    uint64_t first;
    uint32_t count;
    bool changed;        /* the file holds something else by now */
    uint32_t blocks_max; /* worth it with so many blocks on the medium */
    bool saved;
    struct compression how;
    uint32_t part_count;
    uint32_t parts[PARTS_MAX]; /* blocks; each becomes extents of its own */
    struct block_address blocks[STORE_EXTENT_BLOCKS_MAX];
    uint32_t run_count;
    struct stored_run runs[STORE_EXTENT_BLOCKS_MAX];
    uint64_t checksums[STORE_EXTENT_BLOCKS_MAX];
};

static int rewrite_inode(struct transaction *transaction, const struct rewrite_task *task, struct inode *inode)
{
    TRY(inode_get(transaction, task->place.inode, inode));
    return S_ISREG(inode->mode) ? 0 : -EINVAL;
}

/* ---- reading and storing ------------------------------------------------------------------------------------- */

/* -EBADMSG: *failed does not verify. */
static int rewrite_read(const struct rewrite_task *task, struct codec *codec, struct block_address *failed)
{
    struct filesystem *filesystem = task->place.filesystem;
    for (uint32_t at = 0, run; at < task->count; at += run) {
        const struct block_address *block = &task->blocks[at];
        uint8_t *out = codec->content + (size_t)at * STORE_BLOCK_SIZE;
        bool whole = block->compression != COMPRESSION_OFF && block->index == 0 && block->blocks <= task->count - at;
        *failed = *block;
        run = whole ? block->blocks : 1;
        int status = whole ? content_fetch(filesystem, codec, block, out) : block_fetch(filesystem, block, out);
        if (status != 0)
            return status;
    }
    return 0;
}

/* Appends runs of all blocks, compressed or not. */
static int store_part(const struct place *place, struct codec *codec, struct compression how, const uint8_t *content,
                      uint32_t blocks, bool use_reserve, struct stored_run *runs, uint32_t *run_count,
                      uint64_t *checksums)
{
    struct store *store = place->filesystem->store;
    bool compress = true;
    for (uint32_t at = 0, tries = 0; at < blocks;) {
        struct stored_run *run = &runs[*run_count];
        const uint8_t *from = content + (size_t)at * STORE_BLOCK_SIZE;
        int status = 0;
        if (compress) {
            const struct compressed compressed = codec_compress(codec, how, from, blocks - at, codec->stored);
            status = run_store_compressed(store, &compressed, from, blocks - at, use_reserve, run, checksums + at);
        }
        if (status == 0 && (!compress || run->content_blocks == 0)) {
            compress = false;
            status = run_store(store, from, blocks - at, use_reserve, run, checksums + at);
        }
        if (status != 0)
            return status;
        compress = compress && ++tries < COMPRESS_TRIES_MAX;
        (*run_count)++;
        at += run->content_blocks;
    }
    return 0;
}

static int rewrite_store(struct rewrite_task *task, struct codec *codec)
{
    uint32_t stored_blocks = 0;
    int status = 0;
    task->run_count = 0;
    for (uint32_t part = 0, at = 0; status == 0 && part < task->part_count; at += task->parts[part++])
        status = store_part(&task->place, codec, task->how, codec->content + (size_t)at * STORE_BLOCK_SIZE,
                            task->parts[part], (task->flags & STORE_TRANSACT_RESERVE) != 0, task->runs,
                            &task->run_count, task->checksums + at);
    for (uint32_t run = 0; run < task->run_count; run++)
        stored_blocks += task->runs[run].blocks;
    task->saved = stored_blocks <= task->blocks_max;
    return status;
}

static int rewrite_commit_body(struct transaction *transaction, void *argument)
{
    struct rewrite_task *task = argument;
    struct block_address blocks[STORE_EXTENT_BLOCKS_MAX];
    struct extent_piece before;
    struct inode inode;
    bool more;
    task->changed = false;
    TRY(rewrite_inode(transaction, task, &inode));
    TRY(extent_map(transaction, inode.number, task->first, task->count, blocks));
    for (uint32_t at = 0; at < task->count && !task->changed; at++)
        task->changed = !block_address_equal(&blocks[at], &task->blocks[at]);
    if (task->changed)
        return -ECANCELED;
    TRY(extent_cut(transaction, &inode, task->first, task->first + task->count - 1, UINT32_MAX, &before, &more));
    TRY(runs_put(transaction, &inode, task->first, task->runs, task->run_count, task->checksums, &before));
    return inode_put(transaction, &inode);
}

/* What the task says the file holds. 0 also when it turned out to hold something else. */
static int rewrite(struct rewrite_task *task, struct mismatch *mismatch)
{
    struct filesystem *filesystem = task->place.filesystem;
    struct codec *codec = codec_take(filesystem);
    struct block_address failed;
    task->saved = false;
    task->run_count = 0;
    if (codec == NULL)
        return -ENOMEM;
    int status = rewrite_read(task, codec, &failed);
    if (status == -EBADMSG)
        status = mismatch_note(filesystem->store, mismatch, &failed);
    else if (status == 0)
        status = rewrite_store(task, codec);
    codec_give(filesystem, codec);
    if (status == 0 && task->saved) {
        task->changed = false;
        status = place_transact(&task->place, task->flags, rewrite_commit_body, task);
        if (status == 0) {
            runs_count(filesystem, task->runs, task->run_count);
            return 0;
        }
        task->saved = false;
        if (task->changed)
            status = 0;
    }
    runs_release(filesystem->store, task->runs, &task->run_count);
    return status;
}

/* ---- splitting ----------------------------------------------------------------------------------------------- */

struct split_task {
    uint64_t inode;
    uint64_t boundaries[2];
    struct extent_piece found; /* a compressed extent with a boundary inside; no blocks: none */
};

static int split_find_body(struct transaction *transaction, void *argument)
{
    struct split_task *task = argument;
    for (size_t at = 0; at < 2; at++) {
        int status = extent_find(transaction, task->inode, task->boundaries[at], &task->found);
        if (status == 0 && task->found.extent.compression != 0 && task->found.logical < task->boundaries[at])
            return 0;
        if (status != 0 && status != -ENOENT)
            return status;
    }
    task->found.extent.blocks = 0;
    return 0;
}

static void split_plan(struct rewrite_task *task, const struct split_task *split)
{
    const struct store_extent *extent = &split->found.extent;
    uint32_t from = 0;
    task->first = split->found.logical;
    task->count = extent->logical_blocks;
    task->how = (struct compression){extent->compression, COMPRESSION_ZSTD_LEVEL_QUICK};
    task->blocks_max = UINT32_MAX;
    task->part_count = task->run_count = 0;
    for (size_t at = 0; at < 2; at++) {
        uint64_t inside = split->boundaries[at] - task->first;
        if (split->boundaries[at] <= task->first + from || inside >= task->count)
            continue;
        task->parts[task->part_count++] = (uint32_t)inside - from;
        from = (uint32_t)inside;
    }
    task->parts[task->part_count++] = task->count - from;
    for (uint32_t at = 0; at < task->count; at++)
        task->blocks[at] = (struct block_address){.address = extent->address,
                                                  .checksum = split->found.checksums[0],
                                                  .compression = extent->compression,
                                                  .index = (uint8_t)at,
                                                  .stored_blocks = (uint8_t)extent->blocks,
                                                  .blocks = (uint8_t)extent->logical_blocks};
}

int rewrite_split(const struct place *place, uint64_t first, uint64_t end, bool use_reserve)
{
    struct rewrite_task task = {.place = *place, .flags = use_reserve ? (unsigned)STORE_TRANSACT_RESERVE : 0};
    struct split_task split = {.inode = place->inode, .boundaries = {first, end}};
    struct mismatch mismatch = {0};
    int status;
    while ((status = place_transact(place, STORE_TRANSACT_READ, split_find_body, &split)) == 0 &&
           split.found.extent.blocks != 0) {
        split_plan(&task, &split);
        status = rewrite(&task, &mismatch);
        if (status != 0)
            break;
    }
    return status;
}

/* ---- gathering ----------------------------------------------------------------------------------------------- */

struct gather_task {
    struct rewrite_task rewrite;
    uint64_t wanted; /* block that must be among them */
    uint64_t unit_end;
    uint64_t end; /* of the blocks found so far, which follow each other */
    uint32_t parts; /* two for a plain extent: one compressed extent is not compressed again */
    uint32_t stored_blocks;
};

/* Extents may be taken that nobody else refers to: what a snapshot has too would take room twice. */
static bool gather_may_take(struct transaction *transaction, const struct gather_task *task,
                            const struct store_extent *extent, uint64_t from, uint64_t to)
{
    return (extent->flags & EXTENT_BORROWED) == 0 && transaction_owns(transaction, extent->birth) &&
           (extent->compression == COMPRESSION_OFF || to - from == extent->logical_blocks) &&
           to <= task->unit_end;
}

static int gather_find_body(struct transaction *transaction, void *argument)
{
    struct gather_task *task = argument;
    struct rewrite_task *rewriting = &task->rewrite;
    struct store_extent extent;
    struct cursor cursor;
    struct inode inode;
    uint64_t logical, first = task->wanted / STORE_EXTENT_BLOCKS_MAX * STORE_EXTENT_BLOCKS_MAX;
    rewriting->count = 0;
    TRY(rewrite_inode(transaction, rewriting, &inode));
    if ((inode.flags & (uint32_t)(INODE_INLINE | INODE_TRUNCATING)) != 0)
        return 0;
    /* The last block stays as it is when it is not full: who appends changes it. */
    uint64_t whole = inode.size_bytes / STORE_BLOCK_SIZE;
    task->unit_end = first + STORE_EXTENT_BLOCKS_MAX < whole ? first + STORE_EXTENT_BLOCKS_MAX : whole;
    rewriting->first = task->end = first;
    task->parts = task->stored_blocks = 0;
    int status = extent_seek(transaction, &cursor, inode.number, first);
    for (; status == 0; status = cursor_next(transaction, &cursor)) {
        status = extent_of_item(&cursor.item, inode.number, &logical, &extent);
        if (status != 0 || logical >= task->unit_end)
            break;
        bool plain = extent.compression == COMPRESSION_OFF;
        uint64_t from = logical < first ? first : logical, to = logical + extent.logical_blocks;
        to = plain && to > task->unit_end ? task->unit_end : to;
        if (to <= from)
            continue;
        bool takes = gather_may_take(transaction, task, &extent, from, to);
        if ((!takes || from != task->end) && task->end > task->wanted)
            break;
        if (!takes || from != task->end) {
            rewriting->first = takes ? from : to;
            task->parts = task->stored_blocks = 0;
        }
        task->end = to;
        if (takes) {
            task->parts += plain ? 2 : 1;
            task->stored_blocks += plain ? (uint32_t)(to - from) : extent.blocks;
        }
    }
    if (status != 0 && status != -ENOENT)
        return status;
    if (rewriting->first > task->wanted || task->end <= task->wanted || task->parts < 2)
        return 0;
    rewriting->count = (uint32_t)(task->end - rewriting->first);
    return extent_map(transaction, inode.number, rewriting->first, rewriting->count, rewriting->blocks);
}

int rewrite_gather(const struct place *place, uint64_t first, uint32_t blocks)
{
    struct gather_task task = {.rewrite = {.place = *place, .how = place->compression, .part_count = 1}};
    struct mismatch mismatch = {0};
    task.wanted = first + blocks - 1;
    int status = place_transact(place, STORE_TRANSACT_READ, gather_find_body, &task);
    if (status != 0 || task.rewrite.count < COMPRESS_BLOCKS_MIN)
        return status;
    task.rewrite.parts[0] = task.rewrite.count;
    task.rewrite.blocks_max = task.stored_blocks - 1;
    status = rewrite(&task.rewrite, &mismatch);
    if (status == 0 && !task.rewrite.changed)
        attempts_note(place->filesystem, place, task.rewrite.saved);
    return status;
}

/* ---- cutting off --------------------------------------------------------------------------------------------- */

int prefix_store(const struct place *place, const struct block_address *block, uint32_t length,
                 struct stored_prefix *out)
{
    struct filesystem *filesystem = place->filesystem;
    struct codec *codec = codec_take(filesystem);
    uint32_t blocks = (length + STORE_BLOCK_SIZE - 1) / STORE_BLOCK_SIZE;
    const struct compression how = {block->compression, COMPRESSION_ZSTD_LEVEL_QUICK};
    out->of = *block;
    if (codec == NULL)
        return -ENOMEM;
    int status = content_fetch(filesystem, codec, block, codec->content);
    memset(codec->content + length, 0, (size_t)blocks * STORE_BLOCK_SIZE - length);
    if (status == 0)
        status = store_part(place, codec, how, codec->content, blocks, true, out->runs, &out->run_count,
                            out->checksums);
    codec_give(filesystem, codec);
    return status;
}
