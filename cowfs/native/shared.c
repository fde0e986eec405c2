/* Blocks that several extents refer to.
 *
 * To the store a block belongs to one item of the tree. So before an extent is shared its blocks move from the file's
 * item to an item of the volume (ITEM_SHARED), which holds them, and one beside it (ITEM_REFERENCES), which counts the
 * extents that refer to each of them. An extent that refers to such blocks borrows them: its item is a plain value with
 * EXTENT_BORROWED. All of this lies in the one tree, so snapshots, clones and rollbacks have the counts that go with
 * their extents, and when the last reference goes the blocks are killed with the birth that they always had.
 *
 * A run (one such pair of items) has one count; where references to a part of it come or go it is split; a compressed
 * one is referred to as a whole only. A body gathers what changes and applies it once: its cursors do not see its own
 * changes. */
#include "internal.h"

#include <errno.h>

/* Of one transaction: with REMOVAL_ITEMS_MAX extents as bad as they can be, some 420 of its 512 changes. */
#define SHARED_EXTENTS_MAX 40u

int shared_decode(const struct store_item *item, struct store_extent *out)
{
    struct key_fields fields;
    uint64_t address;
    TRY(key_parse(item, &fields));
    TRY(key_number(&fields, &address));
    if (item->kind != STORE_VALUE_EXTENT)
        return -EUCLEAN;
    TRY(store_extent_decode(item->value, item->value_length, out));
    if (out->compression != 0 &&
        (out->compression > COMPRESSION_ALGORITHM_LAST || out->blocks >= out->logical_blocks))
        return -EUCLEAN;
    return out->flags != 0 || out->address != address ? -EUCLEAN : 0;
}

void shared_begin(struct shared_changes *changes, uint32_t items_max)
{
    changes->extents_left = items_max == UINT32_MAX ? UINT32_MAX : SHARED_EXTENTS_MAX;
    changes->runs_max = items_max < SHARED_RUNS_MAX ? items_max : SHARED_RUNS_MAX;
    changes->run_count = 0;
}

uint32_t shared_room(const struct shared_changes *changes, uint32_t blocks)
{
    uint32_t runs_left = changes->runs_max - changes->run_count;
    if (changes->extents_left == UINT32_MAX)
        return blocks;
    if (changes->extents_left == 0)
        return 0;
    return blocks < runs_left ? blocks : runs_left;
}

static int references_put(struct transaction *transaction, uint64_t address, uint32_t count)
{
    uint8_t value[REFERENCES_LENGTH];
    struct key key;
    key_set_number(&key, VOLUME_INODE, ITEM_REFERENCES, address);
    references_encode(count, value);
    return transaction_put(transaction, key.bytes, key.length, value, sizeof value, STORE_VALUE_PLAIN, false);
}

static int blocks_put(struct transaction *transaction, const struct store_extent *extent, const uint64_t *checksums)
{
    uint8_t value[STORE_EXTENT_LENGTH_MAX];
    struct key key;
    key_set_number(&key, VOLUME_INODE, ITEM_SHARED, extent->address);
    size_t length = store_extent_encode(extent, checksums, value);
    return transaction_put(transaction, key.bytes, key.length, value, length, STORE_VALUE_EXTENT, false);
}

/* ---- gathering ----------------------------------------------------------------------------------------------- */

/* The run that a block lies in, as the tree has it. */
static int run_load(struct transaction *transaction, uint64_t address, struct shared_run *run)
{
    struct store_extent extent;
    struct store_item item;
    struct cursor cursor;
    struct key key;
    key_set_number(&key, VOLUME_INODE, ITEM_SHARED, address);
    int status = cursor_seek_last(transaction, &cursor, key.bytes, key.length);
    if (status != 0)
        return status == -ENOENT ? -EUCLEAN : status;
    if (!key_is_of(&cursor.item, VOLUME_INODE, ITEM_SHARED))
        return -EUCLEAN;
    TRY(shared_decode(&cursor.item, &extent));
    if (address - extent.address >= extent.blocks)
        return -EUCLEAN;
    key_set_number(&key, VOLUME_INODE, ITEM_REFERENCES, extent.address);
    status = transaction_get(transaction, key.bytes, key.length, &item);
    if (status != 0)
        return status == -ENOENT ? -EUCLEAN : status;
    TRY(references_decode(&item, &run->count));
    run->extent = extent;
    for (uint32_t at = 0; at < extent.blocks; at++)
        run->counts[at] = run->count;
    return 0;
}

static int run_find(struct transaction *transaction, struct shared_changes *changes, uint64_t address,
                    struct shared_run **out)
{
    for (uint32_t at = 0; at < changes->run_count; at++) {
        *out = &changes->runs[at];
        if (address >= (*out)->extent.address && address - (*out)->extent.address < (*out)->extent.blocks)
            return 0;
    }
    if (changes->run_count == SHARED_RUNS_MAX)
        return -E2BIG;
    *out = &changes->runs[changes->run_count];
    TRY(run_load(transaction, address, *out));
    changes->run_count++;
    return 0;
}

int shared_change(struct transaction *transaction, struct shared_changes *changes, uint64_t address, uint32_t blocks,
                  bool taken)
{
    struct shared_run *run;
    changes->extents_left -= changes->extents_left == UINT32_MAX ? 0 : 1;
    while (blocks != 0) {
        TRY(run_find(transaction, changes, address, &run));
        uint32_t first = (uint32_t)(address - run->extent.address);
        uint32_t end = run->extent.blocks - first < blocks ? run->extent.blocks : first + blocks;
        for (uint32_t at = first; at < end; at++) {
            if (run->counts[at] == (taken ? UINT32_MAX : 0))
                return taken ? -EMLINK : -EUCLEAN;
            run->counts[at] = taken ? run->counts[at] + 1 : run->counts[at] - 1;
        }
        address += end - first;
        blocks -= end - first;
    }
    return 0;
}

/* ---- applying ------------------------------------------------------------------------------------------------ */

/* Blocks [first, end) of the run have one count now. What the tree has of them already is left. */
static int run_put_part(struct transaction *transaction, const struct shared_run *run, const uint64_t *checksums,
                        uint32_t first, uint32_t end)
{
    struct store_extent extent = run->extent;
    if (extent.compression != 0 && end - first != extent.blocks)
        return -EUCLEAN;
    extent.address += first;
    extent.blocks = (uint16_t)(end - first);
    if (extent.compression == 0)
        extent.logical_blocks = extent.checksum_count = extent.blocks;
    if (run->counts[first] == 0)
        return transaction_kill(transaction, extent.address, extent.blocks, extent.birth);
    if (extent.blocks != run->extent.blocks)
        TRY(blocks_put(transaction, &extent, checksums + first));
    return first == 0 && run->counts[0] == run->count
               ? 0
               : references_put(transaction, extent.address, run->counts[first]);
}

static int run_apply(struct transaction *transaction, const struct shared_run *run)
{
    uint64_t checksums[STORE_EXTENT_BLOCKS_MAX];
    struct store_item item;
    struct key key;
    uint32_t same = 0;
    while (same < run->extent.blocks && run->counts[same] == run->count)
        same++;
    if (same == run->extent.blocks)
        return 0;
    key_set_number(&key, VOLUME_INODE, ITEM_SHARED, run->extent.address);
    TRY(transaction_get(transaction, key.bytes, key.length, &item));
    for (uint32_t at = 0; at < run->extent.checksum_count; at++)
        checksums[at] = store_extent_checksum(item.value, at);
    if (run->counts[0] == 0) {
        TRY(transaction_delete(transaction, key.bytes, key.length));
        key_set_number(&key, VOLUME_INODE, ITEM_REFERENCES, run->extent.address);
        TRY(transaction_delete(transaction, key.bytes, key.length));
    }
    for (uint32_t first = 0, end; first < run->extent.blocks; first = end) {
        for (end = first + 1; end < run->extent.blocks && run->counts[end] == run->counts[first]; end++)
            ;
        TRY(run_put_part(transaction, run, checksums, first, end));
    }
    return 0;
}

int shared_apply(struct transaction *transaction, const struct shared_changes *changes)
{
    for (uint32_t at = 0; at < changes->run_count; at++)
        TRY(run_apply(transaction, &changes->runs[at]));
    return 0;
}

/* ---- lending ------------------------------------------------------------------------------------------------- */

static int lend_part(struct transaction *transaction, uint64_t inode, struct extent_piece *piece)
{
    TRY(blocks_put(transaction, &piece->extent, piece->checksums));
    TRY(references_put(transaction, piece->extent.address, 1));
    piece->extent.flags |= EXTENT_BORROWED;
    return extent_put(transaction, inode, piece, false);
}

int extent_lend(struct transaction *transaction, uint64_t inode, uint64_t first, uint64_t last, uint32_t items_max)
{
    struct store_extent extent;
    struct extent_piece piece;
    struct cursor cursor;
    uint64_t logical;
    uint32_t items = 0;
    TRY(items_version_raise(transaction));
    int status = extent_seek(transaction, &cursor, inode, first);
    for (; status == 0 && items < items_max; status = cursor_next(transaction, &cursor)) {
        status = extent_of_item(&cursor.item, inode, &logical, &extent);
        if (status != 0 || logical > last)
            break;
        uint64_t end = logical + extent.logical_blocks;
        if (end <= first || (extent.flags & EXTENT_BORROWED) != 0)
            continue;
        bool compressed = extent.compression != 0;
        uint64_t from = logical < first && !compressed ? first : logical;
        uint64_t to = end - 1 > last && !compressed ? last + 1 : end;
        items++;
        if (logical < from) {
            extent_piece_of(&piece, &cursor.item, &extent, logical, logical, from);
            TRY(extent_put(transaction, inode, &piece, false));
        }
        if (to < end) {
            extent_piece_of(&piece, &cursor.item, &extent, logical, to, end);
            TRY(extent_put(transaction, inode, &piece, false));
        }
        extent_piece_of(&piece, &cursor.item, &extent, logical, from, to);
        TRY(lend_part(transaction, inode, &piece));
    }
    return status == -ENOENT ? 0 : status;
}
