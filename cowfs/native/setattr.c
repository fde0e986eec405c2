/* setattr, and with it truncation. Making a file shorter zeroes the rest of its last block, so that bytes past the end
 * are always zeros and making it longer is a matter of the size alone. Extents past the new size go in transactions of
 * REMOVAL_ITEMS_MAX each; until the last of them the inode is marked, and recorded as an orphan, as truncating. Of a
 * compressed extent that the size lies in, what is left is compressed anew: it takes no more room than before.
 *
 * Where snapshots hold the last extent and a full pool has no room for its new end, it stays as it is and the inode is
 * marked as uncut: nobody reads past the size, and who makes the file longer cuts the extent first. So making a file
 * shorter takes no data blocks at the worst. */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>

struct setattr_task {
    struct place place;
    const struct filesystem_change *change; /* NULL: cuts the last extent of an uncut inode, nothing else */
    struct filesystem_time now;
    uint64_t size_bytes; /* to cut at */
    uint32_t items_max;
    bool no_room;              /* for what is left of the last extent */
    bool uncut;                /* so it stayed as it is */
    bool again;                /* the body gave up: something has to be done first */
    bool truncating;           /* namely the rest of an earlier truncation */
    bool more;                 /* extents are left past the size */
    struct block_address tail; /* the last block as it is; what has to be prepared */
    struct block_address prepared_for;
    struct block_address prepared; /* address 0: none */
    bool prepared_used;
    struct stored_prefix *prefix; /* or what a compressed last extent becomes; NULL: none */
    bool prefix_used;
    uint8_t *in_place;
    uint32_t in_place_at;
    struct inode inode;
};

static uint64_t blocks_of_size(uint64_t size_bytes)
{
    return (size_bytes + STORE_BLOCK_SIZE - 1) / STORE_BLOCK_SIZE;
}

/* Where the extents end that a file of this size may have: behind the last one, as long as it is not cut. */
static int extents_end(struct transaction *transaction, const struct inode *inode, uint64_t size_bytes, bool uncut,
                       uint64_t *end)
{
    struct extent_piece last;
    *end = blocks_of_size(size_bytes);
    int status = uncut ? extent_find(transaction, inode->number, size_bytes / STORE_BLOCK_SIZE, &last) : -ENOENT;
    if (status == 0 && last.extent.compression != COMPRESSION_OFF)
        *end = last.logical + last.extent.logical_blocks;
    return status == -ENOENT ? 0 : status;
}

/* After a cut past the size: what the inode and its orphan record say about the rest. */
static int truncate_marks(struct transaction *transaction, struct inode *inode, bool more)
{
    uint32_t flags = inode->flags & ~(uint32_t)INODE_TRUNCATING;
    flags |= more && !MUTATED(TRUNCATION_MARK) ? (uint32_t)INODE_TRUNCATING : 0;
    if (!more && inode->size_bytes == 0 && inode->blocks == 0)
        flags |= (uint32_t)INODE_INLINE;
    bool changes = ((flags ^ inode->flags) & (uint32_t)INODE_TRUNCATING) != 0;
    inode->flags = flags;
    return changes ? orphan_update(transaction, inode) : 0;
}

static void tail_applied(void *argument)
{
    struct setattr_task *task = argument;
    store_data_change(task->place.filesystem->store, task->in_place + task->in_place_at, NULL,
                      STORE_BLOCK_SIZE - task->in_place_at);
}

/* The last block, mapped, may be changed in place: cuts what is behind it and puts its new checksum. */
static int cut_in_place(struct transaction *transaction, struct setattr_task *task, struct inode *inode)
{
    uint8_t changed[STORE_BLOCK_SIZE];
    struct extent_piece before;
    uint64_t block = task->size_bytes / STORE_BLOCK_SIZE;
    TRY(extent_cut(transaction, inode, block + 1, UINT64_MAX, task->items_max, &before, &task->more));
    if (before.extent.blocks == 0)
        return -EUCLEAN;
    memcpy(changed, task->in_place, task->in_place_at);
    memset(changed + task->in_place_at, 0, STORE_BLOCK_SIZE - task->in_place_at);
    before.checksums[block - before.logical] = store_checksum(changed, STORE_BLOCK_SIZE);
    return extent_put(transaction, inode->number, &before, true);
}

/* Takes out what lies behind the last extent, which needs room that there is not: it stays, or that is made first. */
static int cut_behind(struct transaction *transaction, struct setattr_task *task, struct inode *inode)
{
    struct extent_piece before;
    uint64_t end;
    task->again = !task->no_room;
    if (task->again)
        return -ECANCELED;
    task->uncut = true;
    TRY(items_version_raise(transaction));
    TRY(extents_end(transaction, inode, task->size_bytes, true, &end));
    return extent_cut(transaction, inode, end, UINT64_MAX, task->items_max, &before, &task->more);
}

/* The new size lies in a compressed extent, of which the tail is a block: what is left of it takes its place. */
static int cut_compressed(struct transaction *transaction, struct setattr_task *task, struct inode *inode,
                          uint64_t block)
{
    struct extent_piece piece;
    uint64_t start = block - task->tail.index;
    if (task->prefix == NULL || !block_address_equal(&task->tail, &task->prefix->of))
        return cut_behind(transaction, task, inode);
    TRY(extent_cut(transaction, inode, start, UINT64_MAX, task->items_max, &piece, &task->more));
    task->prefix_used = true;
    return runs_put(transaction, inode, start, task->prefix->runs, task->prefix->run_count, task->prefix->checksums,
                    &piece);
}

static int cut_extents(struct transaction *transaction, struct setattr_task *task, struct inode *inode)
{
    struct extent_piece piece;
    uint64_t block = task->size_bytes / STORE_BLOCK_SIZE;
    task->in_place_at = (uint32_t)(task->size_bytes % STORE_BLOCK_SIZE);
    task->tail = (struct block_address){0};
    if (task->size_bytes != 0)
        TRY(extent_map(transaction, inode->number, block, 1, &task->tail));
    if (task->tail.compression != COMPRESSION_OFF && (task->in_place_at != 0 || task->tail.index != 0))
        return cut_compressed(transaction, task, inode, block);
    if (task->tail.address == 0 || task->in_place_at == 0)
        return extent_cut(transaction, inode, blocks_of_size(task->size_bytes), UINT64_MAX, task->items_max, &piece,
                          &task->more);
    if (task->prepared.address != 0 && block_address_equal(&task->tail, &task->prepared_for)) {
        TRY(extent_cut(transaction, inode, block, UINT64_MAX, task->items_max, &piece, &task->more));
        task->prepared_used = true;
        return extent_add(transaction, inode, block, task->prepared.address, 1, &task->prepared.checksum, &piece);
    }
    TRY(extent_find(transaction, inode->number, block, &piece));
    task->in_place = extent_in_place(transaction, &piece, block);
    if (task->in_place != NULL)
        return cut_in_place(transaction, task, inode);
    return cut_behind(transaction, task, inode);
}

static void uncut_mark(struct inode *inode, bool uncut)
{
    inode->flags = (inode->flags & ~(uint32_t)INODE_UNCUT) | (uncut ? (uint32_t)INODE_UNCUT : 0);
}

static int change_size(struct transaction *transaction, struct setattr_task *task, struct inode *inode)
{
    uint8_t bytes[FILESYSTEM_INLINE_LENGTH_MAX];
    uint64_t size_bytes = task->change->size_bytes;
    if (!S_ISREG(inode->mode))
        return S_ISDIR(inode->mode) ? -EISDIR : -EINVAL;
    TRY(inode_drop_privileges(transaction, inode, (task->change->fields & FILESYSTEM_SET_KEEP_BITS) != 0));
    inode->mtime = task->now;
    if (size_bytes > inode->size_bytes && (inode->flags & INODE_CANNOT_GROW) != 0) {
        task->truncating = task->again = true;
        return -ECANCELED;
    }
    if (size_bytes >= inode->size_bytes) {
        inode->size_bytes = size_bytes;
        return 0;
    }
    if ((inode->flags & INODE_INLINE) != 0) {
        TRY(inline_get(transaction, inode, bytes));
        if (inode->inline_length > size_bytes)
            TRY(inline_put(transaction, inode, bytes, (uint32_t)size_bytes));
        inode->size_bytes = size_bytes;
        return 0;
    }
    task->size_bytes = size_bytes;
    TRY(cut_extents(transaction, task, inode));
    inode->size_bytes = size_bytes;
    uncut_mark(inode, task->uncut);
    return truncate_marks(transaction, inode, task->more);
}

/* An append-only inode has its times set to the present by those who append to it. */
static int setattr_check(const struct filesystem_change *change, const struct inode *inode)
{
    if ((change->fields & FILESYSTEM_SET_CACHED) != 0)
        return 0;
    unsigned times = FILESYSTEM_SET_ATIME | FILESYSTEM_SET_MTIME | FILESYSTEM_SET_CTIME | FILESYSTEM_SET_NOW;
    bool only_now = (change->fields & FILESYSTEM_SET_NOW) != 0 && (change->fields & ~times) == 0;
    return only_now ? inode_check_append(inode) : inode_check_change(inode);
}

static int setattr_begin(struct transaction *transaction, struct setattr_task *task)
{
    task->again = task->truncating = task->more = task->uncut = task->prepared_used = task->prefix_used = false;
    task->in_place = NULL;
    return inode_get(transaction, task->place.inode, &task->inode);
}

static int setattr_body(struct transaction *transaction, void *argument)
{
    struct setattr_task *task = argument;
    const struct filesystem_change *change = task->change;
    struct inode *inode = &task->inode;
    TRY(setattr_begin(transaction, task));
    TRY(setattr_check(change, inode));
    inode->ctime = (change->fields & FILESYSTEM_SET_CTIME) != 0 ? change->ctime : task->now;
    if ((change->fields & (FILESYSTEM_SET_UID | FILESYSTEM_SET_GID)) != 0)
        TRY(inode_drop_privileges(transaction, inode, false));
    if ((change->fields & FILESYSTEM_SET_SIZE) != 0)
        TRY(change_size(transaction, task, inode));
    if ((change->fields & FILESYSTEM_SET_MODE) != 0)
        inode->mode = (inode->mode & S_IFMT) | (change->mode & 07777u);
    if ((change->fields & FILESYSTEM_SET_UID) != 0)
        inode->uid = change->uid;
    if ((change->fields & FILESYSTEM_SET_GID) != 0)
        inode->gid = change->gid;
    if ((change->fields & FILESYSTEM_SET_ATIME) != 0)
        inode->atime = change->atime;
    if ((change->fields & FILESYSTEM_SET_MTIME) != 0)
        inode->mtime = change->mtime;
    TRY(inode_put(transaction, inode));
    return task->in_place == NULL ? 0 : transaction_on_apply(transaction, tail_applied, task);
}

/* The cut that an earlier truncation had no room for. */
static int cut_body(struct transaction *transaction, void *argument)
{
    struct setattr_task *task = argument;
    struct inode *inode = &task->inode;
    TRY(setattr_begin(transaction, task));
    if ((inode->flags & INODE_UNCUT) == 0)
        return 0;
    task->size_bytes = inode->size_bytes;
    TRY(cut_extents(transaction, task, inode));
    uncut_mark(inode, false);
    TRY(truncate_marks(transaction, inode, task->more));
    TRY(inode_put(transaction, inode));
    return task->in_place == NULL ? 0 : transaction_on_apply(transaction, tail_applied, task);
}

static void prepared_release(struct setattr_task *task)
{
    if (task->prepared.address != 0)
        store_data_release(task->place.filesystem->store, task->prepared.address, 1);
    task->prepared.address = 0;
}

/* A copy of the last block with zeros past the new size. -EBADMSG: the old one does not verify. */
static int prepare_tail(struct setattr_task *task)
{
    struct store *store = task->place.filesystem->store;
    struct store_reservation reservation;
    uint8_t block[STORE_BLOCK_SIZE];
    prepared_release(task);
    int status = block_fetch(task->place.filesystem, &task->tail, block);
    if (status == 0)
        status = store_data_reserve(store, 1, true, &reservation);
    if (status != 0)
        return status;
    memcpy(reservation.memory, block, task->in_place_at);
    memset(reservation.memory + task->in_place_at, 0, STORE_BLOCK_SIZE - task->in_place_at);
    task->prepared = (struct block_address){
        .address = reservation.address, .checksum = store_checksum(reservation.memory, STORE_BLOCK_SIZE)};
    task->prepared_for = task->tail;
    store_data_complete(store, &reservation);
    return 0;
}

static void prefix_release(struct setattr_task *task)
{
    if (task->prefix != NULL)
        runs_release(task->place.filesystem->store, task->prefix->runs, &task->prefix->run_count);
}

static int prepare_prefix(struct setattr_task *task)
{
    prefix_release(task);
    if (task->prefix == NULL)
        task->prefix = calloc(1, sizeof *task->prefix);
    if (task->prefix == NULL)
        return -ENOMEM;
    int status = prefix_store(&task->place, &task->tail, task->tail.index * STORE_BLOCK_SIZE + task->in_place_at,
                              task->prefix);
    if (status != 0) {
        prefix_release(task);
        task->prefix->of = (struct block_address){0};
    }
    return status;
}

static int prepare(struct setattr_task *task)
{
    if (task->truncating)
        return truncate_for_growth(&task->place);
    return task->tail.compression != COMPRESSION_OFF ? prepare_prefix(task) : prepare_tail(task);
}

static int setattr_run(struct setattr_task *task)
{
    bool sizes = task->change == NULL || (task->change->fields & FILESYSTEM_SET_SIZE) != 0;
    transaction_body body = task->change == NULL ? cut_body : setattr_body;
    struct mismatch mismatch = {0};
    int status;
    do {
        task->again = false; /* the body may not be reached again: after a rollback, or when the store has failed */
        if (sizes)
            status = place_transact_removal(&task->place, body, task, &task->items_max);
        else
            status = place_transact(&task->place, 0, body, task);
        if (!task->again)
            break;
        status = prepare(task);
        if (status == -EBADMSG)
            status = damage_note(&task->place, task->size_bytes / STORE_BLOCK_SIZE,
                                 mismatch_note(task->place.filesystem->store, &mismatch, &task->tail));
        task->no_room = status == -ENOSPC && task->change != NULL && !task->truncating;
        if (task->no_room)
            status = 0;
    } while (status == 0);
    if (status != 0 || !task->prepared_used)
        prepared_release(task);
    if (status != 0 || !task->prefix_used)
        prefix_release(task);
    free(task->prefix);
    return status;
}

int filesystem_setattr(struct filesystem *filesystem, uint64_t node, const struct filesystem_change *change,
                       struct filesystem_attributes *out)
{
    struct setattr_task task = {.change = change, .now = time_now(), .items_max = REMOVAL_ITEMS_MAX};
    if ((change->fields & FILESYSTEM_SET_SIZE) != 0 && change->size_bytes > FILESYSTEM_SIZE_MAX)
        return -EFBIG;
    if (change->fields == 0)
        return filesystem_getattr(filesystem, node, out);
    int status = place_of_node(filesystem, node, &task.place);
    if (status == 0)
        status = setattr_run(&task);
    if (status == 0 && task.more) {
        status = truncate_finish(&task.place);
        return status != 0 ? status : filesystem_getattr(filesystem, node, out);
    }
    if (status == 0)
        inode_attributes(&task.place, &task.inode, out);
    return status;
}

/* ---- the rest of a truncation -------------------------------------------------------------------------------- */

struct finish_task {
    struct place place;
    uint32_t items_max;
    bool more;
};

static int finish_body(struct transaction *transaction, void *argument)
{
    struct finish_task *task = argument;
    struct extent_piece before;
    struct inode inode;
    uint64_t end;
    task->more = false;
    TRY(inode_get(transaction, task->place.inode, &inode));
    if ((inode.flags & INODE_TRUNCATING) == 0)
        return 0;
    TRY(extents_end(transaction, &inode, inode.size_bytes, (inode.flags & INODE_UNCUT) != 0, &end));
    TRY(extent_cut(transaction, &inode, end, UINT64_MAX, task->items_max, &before, &task->more));
    TRY(truncate_marks(transaction, &inode, task->more));
    return inode_put(transaction, &inode);
}

int truncate_finish(const struct place *place)
{
    struct finish_task task = {*place, REMOVAL_ITEMS_MAX, false};
    int status;
    do
        status = place_transact_removal(&task.place, finish_body, &task, &task.items_max);
    while (status == 0 && task.more);
    return status;
}

int truncate_for_growth(const struct place *place)
{
    struct setattr_task task = {.place = *place, .items_max = REMOVAL_ITEMS_MAX};
    int status = truncate_finish(place);
    if (status == 0)
        status = setattr_run(&task);
    return status != 0 || !task.more ? status : truncate_finish(place);
}
