/* Writing: new blocks are filled and checksummed without the store lock and enter the file in one transaction, which
 * finds out whether what they were merged with is still what the file holds, and starts over when not.
 *
 * Files of up to FILESYSTEM_INLINE_LENGTH_MAX bytes live in the inode's leaf. A write within one block that is still in
 * the write buffer and no snapshot's changes it there: small appends take no new blocks. */
#include "internal.h"

#include <errno.h>

/* Half a MiB. The worst part, single-block extents before and after, takes three changes a block of the 512 that a
 * transaction has. */
#define WRITE_BLOCKS_MAX 128u

/* What the first and last block written held before, where the write covers them only in part. */
enum source_kind { SOURCE_ZEROS, SOURCE_INLINE, SOURCE_BLOCK };
struct block_source {
    enum source_kind kind;
    struct block_address block;
};

struct write_plan {
    struct block_source head;
    struct block_source tail;
    bool move_inline; /* the inline bytes must move to block 0, which the write does not touch, first */
    uint32_t inline_length;
    uint8_t inline_bytes[FILESYSTEM_INLINE_LENGTH_MAX];
};

struct write_task {
    struct place place;
    struct filesystem_time now;
    uint64_t offset;
    uint64_t end;
    const uint8_t *bytes;
    bool moves_inline; /* no bytes are written: inline content moves to block 0 */
    bool appends;      /* an append-only file takes it */
    bool cached;       /* any file takes it, and its times and privileges stay */
    bool keeps_bits;   /* setuid and setgid */
    bool zeroes;       /* part of a block, only where the file has it; the size stays */
    uint64_t first;
    uint32_t count;
    bool again;      /* the body gave up: the plan has to be made or carried out first */
    bool truncating; /* the rest of a truncation has to be removed first */
    struct batch *batch; /* of all of the write; NULL: this thread compresses alone */
    uint8_t *in_place;
    uint32_t in_place_at;
    uint32_t run_count;
    /* From here on 5 KiB of which a small write reads little: set where they are used, not cleared at the start. */
    struct write_plan plan;
    struct write_plan found; /* by the commit */
    struct stored_run runs[WRITE_BLOCKS_MAX];
    uint64_t checksums[WRITE_BLOCKS_MAX];
};

static bool block_source_equal(const struct block_source *a, const struct block_source *b)
{
    return a->kind == b->kind && block_address_equal(&a->block, &b->block);
}

/* Nothing to merge with, no inline bytes. */
static void plan_clear(struct write_plan *plan)
{
    plan->head = plan->tail = (struct block_source){.kind = SOURCE_ZEROS};
    plan->move_inline = false;
    plan->inline_length = 0;
}

static bool plan_equal(const struct write_plan *a, const struct write_plan *b)
{
    return block_source_equal(&a->head, &b->head) && block_source_equal(&a->tail, &b->tail) &&
           a->move_inline == b->move_inline && a->inline_length == b->inline_length &&
           memcmp(a->inline_bytes, b->inline_bytes, a->inline_length) == 0;
}

/* ---- bodies -------------------------------------------------------------------------------------------------- */

/* The write leaves bytes of this block that the file has. Past the size a block holds zeros. */
static int plan_block(struct transaction *transaction, const struct write_task *task, const struct inode *inode,
                      uint64_t block, struct block_source *source)
{
    uint64_t start = block * STORE_BLOCK_SIZE, end = start + STORE_BLOCK_SIZE;
    end = end < inode->size_bytes ? end : inode->size_bytes;
    if (start >= end || (task->offset <= start && task->end >= end && !task->zeroes))
        return 0;
    TRY(extent_map(transaction, inode->number, block, 1, &source->block));
    if (source->block.compression != COMPRESSION_OFF)
        return EXTENT_SPLIT;
    source->kind = source->block.address == 0 ? SOURCE_ZEROS : SOURCE_BLOCK;
    if (source->kind == SOURCE_ZEROS)
        source->block.checksum = 0;
    return 0;
}

static int plan_make(struct transaction *transaction, const struct write_task *task, const struct inode *inode,
                     struct write_plan *plan)
{
    plan_clear(plan);
    plan->inline_length = inode->inline_length;
    if ((inode->flags & INODE_INLINE) != 0) {
        TRY(inline_get(transaction, inode, plan->inline_bytes));
        plan->move_inline = task->first != 0 && inode->inline_length != 0;
        plan->head.kind = task->first == 0 && inode->inline_length != 0 ? SOURCE_INLINE : SOURCE_ZEROS;
        return 0;
    }
    TRY(plan_block(transaction, task, inode, task->first, &plan->head));
    if (task->count == 1)
        return 0;
    return plan_block(transaction, task, inode, task->first + task->count - 1, &plan->tail);
}

static int write_inode(struct transaction *transaction, struct write_task *task, struct inode *inode)
{
    TRY(inode_get(transaction, task->place.inode, inode));
    if (!S_ISREG(inode->mode))
        return S_ISDIR(inode->mode) ? -EISDIR : -EINVAL;
    if (!task->moves_inline && !task->cached)
        TRY(task->appends ? inode_check_append(inode) : inode_check_change(inode));
    task->truncating = !task->zeroes && task->end > inode->size_bytes && (inode->flags & INODE_CANNOT_GROW) != 0;
    task->again = task->truncating;
    return task->again ? -ECANCELED : 0;
}

static int write_inode_done(struct transaction *transaction, const struct write_task *task, struct inode *inode)
{
    if (!task->moves_inline) {
        if (!task->zeroes && task->end > inode->size_bytes)
            inode->size_bytes = task->end;
    }
    if (!task->moves_inline && !task->cached) {
        TRY(inode_drop_privileges(transaction, inode, task->keeps_bits));
        inode->mtime = task->now;
        inode->ctime = task->now;
    }
    return inode_put(transaction, inode);
}

static int write_inline(struct transaction *transaction, const struct write_task *task, struct inode *inode)
{
    uint8_t bytes[FILESYSTEM_INLINE_LENGTH_MAX] = {0};
    TRY(inline_get(transaction, inode, bytes));
    memcpy(bytes + task->offset, task->bytes, task->end - task->offset);
    uint32_t length = task->end > inode->inline_length ? (uint32_t)task->end : inode->inline_length;
    TRY(inline_put(transaction, inode, bytes, length));
    return write_inode_done(transaction, task, inode);
}

static void write_applied(void *argument)
{
    struct write_task *task = argument;
    store_data_change(task->place.filesystem->store, task->in_place + task->in_place_at, task->bytes,
                      task->end - task->offset);
}

/* Sets task->in_place when the block may be changed where it is, and then does all but the change. */
static int write_in_place(struct transaction *transaction, struct write_task *task, struct inode *inode)
{
    uint8_t changed[STORE_BLOCK_SIZE];
    struct extent_piece piece;
    task->in_place = NULL;
    TRY(extent_find(transaction, inode->number, task->first, &piece));
    uint8_t *memory = extent_in_place(transaction, &piece, task->first);
    if (memory == NULL)
        return 0;
    task->in_place_at = (uint32_t)(task->offset % STORE_BLOCK_SIZE);
    memcpy(changed, memory, STORE_BLOCK_SIZE);
    memcpy(changed + task->in_place_at, task->bytes, task->end - task->offset);
    piece.checksums[task->first - piece.logical] = store_checksum(changed, STORE_BLOCK_SIZE);
    TRY(extent_put(transaction, inode->number, &piece, true));
    TRY(write_inode_done(transaction, task, inode));
    TRY(transaction_on_apply(transaction, write_applied, task));
    task->in_place = memory;
    return 0;
}

/* Does the write when it takes no new blocks; else makes the plan, sets `again` and gives up. */
static int write_plan_body(struct transaction *transaction, void *argument)
{
    struct write_task *task = argument;
    struct inode inode;
    TRY(write_inode(transaction, task, &inode));
    bool is_inline = (inode.flags & INODE_INLINE) != 0;
    if (task->moves_inline && inode.inline_length == 0)
        return 0;
    if (is_inline && task->zeroes)
        return 0;
    if (is_inline && !task->moves_inline && task->end <= FILESYSTEM_INLINE_LENGTH_MAX)
        return write_inline(transaction, task, &inode);
    TRY(plan_make(transaction, task, &inode, &task->plan));
    if (task->zeroes && task->plan.head.kind != SOURCE_BLOCK)
        return 0;
    if (task->count == 1 && task->plan.head.kind == SOURCE_BLOCK) {
        TRY(write_in_place(transaction, task, &inode));
        if (task->in_place != NULL)
            return 0;
    }
    task->again = true;
    return -ECANCELED;
}

static int write_commit_body(struct transaction *transaction, void *argument)
{
    struct write_task *task = argument;
    struct extent_piece before;
    struct inode inode;
    bool more;
    TRY(write_inode(transaction, task, &inode));
    TRY(plan_make(transaction, task, &inode, &task->found));
    if (!plan_equal(&task->plan, &task->found)) {
        task->again = true;
        return -ECANCELED;
    }
    TRY(inline_put(transaction, &inode, NULL, 0));
    inode.flags &= ~(uint32_t)INODE_INLINE;
    TRY(extent_cut(transaction, &inode, task->first, task->first + task->count - 1, UINT32_MAX, &before, &more));
    TRY(runs_put(transaction, &inode, task->first, task->runs, task->run_count, task->checksums, &before));
    return write_inode_done(transaction, task, &inode);
}

/* ---- outside the lock ---------------------------------------------------------------------------------------- */

struct write_sources {
    uint8_t head[STORE_BLOCK_SIZE];
    uint8_t tail[STORE_BLOCK_SIZE];
};

/* -EBADMSG: *block does not verify. */
static int source_fetch(const struct write_task *task, const struct block_source *source, uint8_t *out,
                        struct block_address *block)
{
    *block = source->block;
    if (source->kind == SOURCE_BLOCK)
        return block_fetch(task->place.filesystem, block, out);
    memset(out, 0, STORE_BLOCK_SIZE);
    if (source->kind == SOURCE_INLINE)
        memcpy(out, task->plan.inline_bytes, task->plan.inline_length);
    return 0;
}

/* Where the block number `at` of the write begins in the file. */
static uint64_t start_of(const struct write_task *task, uint32_t at)
{
    return (task->first + at) * STORE_BLOCK_SIZE;
}

static void block_fill(const struct write_task *task, const struct write_sources *sources, uint32_t at, uint8_t *out)
{
    uint64_t start = start_of(task, at);
    uint64_t from = task->offset > start ? task->offset : start;
    uint64_t to = task->end < start + STORE_BLOCK_SIZE ? task->end : start + STORE_BLOCK_SIZE;
    if (to <= from)
        to = from;
    if (to - from != STORE_BLOCK_SIZE)
        memcpy(out, at == 0 ? sources->head : sources->tail, STORE_BLOCK_SIZE);
    if (to != from)
        memcpy(out + (from - start), task->bytes + (from - task->offset), to - from);
}

static void write_release(struct write_task *task)
{
    runs_release(task->place.filesystem->store, task->runs, &task->run_count);
}

/* Blocks from `at` on that are whole and may become one compressed extent: it ends on a multiple of its largest size,
 * so that a file written a second time in the same way finds extents that it replaces as a whole. */
static uint32_t unit_blocks(const struct write_task *task, uint32_t at)
{
    if (task->offset > start_of(task, at))
        return 0;
    uint32_t unit = STORE_EXTENT_BLOCKS_MAX - (uint32_t)((task->first + at) % STORE_EXTENT_BLOCKS_MAX);
    uint64_t whole = (task->end - start_of(task, at)) / STORE_BLOCK_SIZE;
    return whole < unit ? (uint32_t)whole : unit;
}

/* Stores a unit up to `end` compressed; *at is where what has to be stored as it is begins. */
static int store_compressed(struct write_task *task, struct codec *codec, uint32_t *at, uint32_t end)
{
    struct filesystem *filesystem = task->place.filesystem;
    bool saves = true;
    for (uint32_t tries = 0; tries < COMPRESS_TRIES_MAX && saves && *at < end; tries++) {
        struct stored_run *run = &task->runs[task->run_count];
        const uint8_t *content = task->bytes + (start_of(task, *at) - task->offset);
        const struct compressed compressed =
            batch_compress(task->batch, codec, task->place.compression, content, end - *at);
        int status = run_store_compressed(filesystem->store, &compressed, content, end - *at, false, run,
                                          task->checksums + *at);
        if (status != 0)
            return status;
        saves = run->content_blocks != 0;
        task->run_count += saves ? 1 : 0;
        *at += run->content_blocks;
    }
    attempts_note(filesystem, &task->place, saves);
    if (!saves)
        batch_withdraw(task->batch);
    return 0;
}

/* Stores blocks up to `end` as they are. */
static int store_plain(struct write_task *task, const struct write_sources *sources, uint32_t at, uint32_t end)
{
    struct store *store = task->place.filesystem->store;
    struct store_reservation reservation;
    while (at < end) {
        int status = store_data_reserve(store, end - at, task->zeroes, &reservation);
        if (status != 0)
            return status;
        task->runs[task->run_count++] = (struct stored_run){
            .address = reservation.address, .blocks = reservation.blocks, .content_blocks = reservation.blocks};
        for (uint32_t filled = 0; filled < reservation.blocks; filled++, at++) {
            uint8_t *memory = reservation.memory + (size_t)filled * STORE_BLOCK_SIZE;
            block_fill(task, sources, at, memory);
            task->checksums[at] = store_checksum(memory, STORE_BLOCK_SIZE);
        }
        store_data_complete(store, &reservation);
    }
    return 0;
}

static int store_units(struct write_task *task, const struct write_sources *sources)
{
    struct filesystem *filesystem = task->place.filesystem;
    struct codec *codec = codec_take(filesystem);
    int status = 0;
    if (codec == NULL)
        return store_plain(task, sources, 0, task->count);
    for (uint32_t at = 0, end; status == 0 && at < task->count; at = end) {
        uint32_t unit = unit_blocks(task, at);
        end = at + (unit == 0 ? 1 : unit);
        if (unit >= COMPRESS_BLOCKS_MIN && attempts_allowed(filesystem, &task->place))
            status = store_compressed(task, codec, &at, end);
        if (status == 0)
            status = store_plain(task, sources, at, end);
    }
    codec_give(filesystem, codec);
    return status;
}

/* Takes and fills the new blocks. -EBADMSG: *block, an old one, does not verify. */
static int write_prepare(struct write_task *task, struct block_address *block)
{
    struct write_sources sources;
    task->run_count = 0;
    bool whole_head = task->offset <= start_of(task, 0) && task->end >= start_of(task, 1);
    bool whole_tail = task->count == 1 || task->end == start_of(task, task->count);
    if (!whole_head)
        TRY(source_fetch(task, &task->plan.head, sources.head, block));
    if (!whole_tail)
        TRY(source_fetch(task, &task->plan.tail, sources.tail, block));
    bool compress = task->place.compression.algorithm != COMPRESSION_OFF && task->count >= COMPRESS_BLOCKS_MIN;
    int status = compress ? store_units(task, &sources) : store_plain(task, &sources, 0, task->count);
    if (status != 0)
        write_release(task);
    return status;
}

/* A block that is written in part has to lie in no compressed extent, one that is written whole in none that goes on
 * before or behind. */
static int write_split(const struct write_task *task)
{
    const struct place *place = &task->place;
    uint64_t end = task->first + task->count;
    int status = 0;
    if (task->offset % STORE_BLOCK_SIZE != 0 || task->count == 1)
        status = rewrite_split(place, task->first, task->first + 1, task->zeroes);
    if (status == 0 && task->end % STORE_BLOCK_SIZE != 0)
        status = rewrite_split(place, end - 1, end, task->zeroes);
    return status != 0 ? status : rewrite_split(place, task->first, end, task->zeroes);
}

static int write_part(struct write_task *task);

int write_move_inline(const struct place *place)
{
    struct write_task move = {.place = *place, .moves_inline = true, .count = 1};
    return write_part(&move);
}

static int write_part(struct write_task *task)
{
    struct mismatch mismatch = {0};
    struct block_address block = {0};
    plan_clear(&task->plan);
    task->truncating = false;
    /* A write of whole blocks is planned as if the file had no inline bytes; the commit finds out. */
    unsigned flags = task->zeroes ? STORE_TRANSACT_RESERVE : 0;
    bool planned = !task->moves_inline && task->offset % STORE_BLOCK_SIZE == 0 && task->end % STORE_BLOCK_SIZE == 0;
    int status = 0;
    while (status == 0) {
        task->again = false;
        if (!planned) {
            status = place_transact(&task->place, flags, write_plan_body, task);
            if (status == EXTENT_SPLIT) {
                status = write_split(task);
                continue;
            }
            if (!task->again)
                return status;
        }
        planned = false;
        if (task->truncating) {
            status = truncate_for_growth(&task->place);
            task->truncating = false;
        } else if (task->plan.move_inline) {
            status = write_move_inline(&task->place);
        } else if ((status = write_prepare(task, &block)) == -EBADMSG) {
            status = mismatch_note(task->place.filesystem->store, &mismatch, &block);
            damage_note(&task->place, task->offset / STORE_BLOCK_SIZE, status);
        } else if (status == 0) {
            while ((status = place_transact(&task->place, flags, write_commit_body, task)) == EXTENT_SPLIT &&
                   (status = write_split(task)) == 0)
                continue;
            if (status == 0 && task->place.compression.algorithm != COMPRESSION_OFF)
                runs_count(task->place.filesystem, task->runs, task->run_count);
            if (status == 0)
                return 0;
            write_release(task);
            if (task->again)
                status = 0;
        }
    }
    return status;
}

int write_zeros(const struct place *place, uint64_t offset, uint32_t length)
{
    static const uint8_t zeros[STORE_BLOCK_SIZE];
    struct write_task task = {.place = *place,
                              .now = time_now(),
                              .zeroes = true,
                              .offset = offset,
                              .end = offset + length,
                              .bytes = zeros,
                              .first = offset / STORE_BLOCK_SIZE,
                              .count = 1};
    return length == 0 ? 0 : write_part(&task);
}

/* Offers the units of a write to other threads: those that store_units() will ask for. NULL: it is not worth it. */
static struct batch *write_offer(const struct place *place, uint64_t offset, const uint8_t *bytes, size_t length)
{
    const uint64_t unit = STORE_EXTENT_BLOCKS_MAX;
    uint64_t first = (offset + STORE_BLOCK_SIZE - 1) / STORE_BLOCK_SIZE, end = (offset + length) / STORE_BLOCK_SIZE;
    if (place->compression.algorithm == COMPRESSION_OFF || end <= first + unit ||
        !attempts_promise(place->filesystem, place))
        return NULL;
    struct batch *batch = batch_begin(place->filesystem->compressors, place->compression);
    bool more = batch != NULL;
    for (uint64_t at = first, next; more && at < end; at = next) {
        next = at / unit * unit + unit < end ? at / unit * unit + unit : end;
        if (next - at >= COMPRESS_BLOCKS_MIN)
            more = batch_add(batch, bytes + (at * STORE_BLOCK_SIZE - offset), (uint32_t)(next - at));
    }
    return batch;
}

int filesystem_write(struct filesystem *filesystem, uint64_t node, uint64_t offset_bytes, const void *bytes,
                     size_t length_bytes)
{
    return filesystem_write_flagged(filesystem, node, offset_bytes, bytes, length_bytes, 0);
}

int filesystem_write_flagged(struct filesystem *filesystem, uint64_t node, uint64_t offset_bytes, const void *bytes,
                             size_t length_bytes, unsigned flags)
{
    struct write_task task;
    memset(&task, 0, offsetof(struct write_task, plan));
    task.now = time_now();
    task.appends = (flags & FILESYSTEM_WRITE_APPEND) != 0;
    task.cached = (flags & FILESYSTEM_WRITE_CACHED) != 0;
    task.keeps_bits = (flags & FILESYSTEM_WRITE_KEEP_BITS) != 0;
    int status = place_of_node(filesystem, node, &task.place);
    if (status == 0 && !place_is_writable(&task.place))
        status = -EROFS;
    if (status == 0 && length_bytes != 0 &&
        (offset_bytes >= FILESYSTEM_SIZE_MAX || length_bytes > FILESYSTEM_SIZE_MAX - offset_bytes))
        status = -EFBIG;
    if (status == 0)
        task.batch = write_offer(&task.place, offset_bytes, bytes, length_bytes);
    uint64_t span = (uint64_t)WRITE_BLOCKS_MAX * STORE_BLOCK_SIZE;
    for (size_t done = 0; status == 0 && done < length_bytes; done += task.end - task.offset) {
        /* A part ends on a multiple of its largest size, so that it never spans more blocks. */
        task.offset = offset_bytes + done;
        uint64_t length = span - task.offset % span;
        length = length < length_bytes - done ? length : length_bytes - done;
        task.end = task.offset + length;
        task.bytes = (const uint8_t *)bytes + done;
        task.first = task.offset / STORE_BLOCK_SIZE;
        task.count = (uint32_t)((task.end - 1) / STORE_BLOCK_SIZE - task.first + 1);
        status = write_part(&task);
        /* Borrowed blocks may take more changes than the rest; one block always fits. */
        if (status == -E2BIG && span > STORE_BLOCK_SIZE) {
            span /= 2;
            task.end = task.offset;
            status = 0;
        }
    }
    batch_end(task.batch);
    if (status == 0 && task.place.compression.algorithm != COMPRESSION_OFF)
        gather_note(filesystem, node, offset_bytes, length_bytes);
    return status;
}
