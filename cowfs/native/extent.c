/* Extents: which blocks of the pool hold which blocks of a file. Items are keyed by the first logical block, hold up
 * to 32 blocks each with a checksum per block, and never overlap.
 *
 * A compressed extent has one checksum and is whole or not there at all: what would cut through one answers
 * EXTENT_SPLIT instead, and its caller has rewrite_split() put several in its place before it tries again. */
#include "internal.h"

#include <errno.h>

#define LOGICAL_BLOCKS_MAX (FILESYSTEM_SIZE_MAX / STORE_BLOCK_SIZE)

int extent_of_item(const struct store_item *item, uint64_t inode, uint64_t *logical, struct store_extent *out)
{
    struct key_fields fields;
    if (!key_is_of(item, inode, ITEM_EXTENT))
        return -ENOENT;
    TRY(key_parse(item, &fields));
    TRY(key_number(&fields, logical));
    TRY(store_extent_decode(item->value, item->value_length, out));
    if (out->flags != (item->kind == STORE_VALUE_EXTENT ? 0 : EXTENT_BORROWED))
        return -EUCLEAN;
    if (out->compression != 0 &&
        (out->compression > COMPRESSION_ALGORITHM_LAST || out->blocks >= out->logical_blocks))
        return -EUCLEAN;
    return *logical > LOGICAL_BLOCKS_MAX - out->logical_blocks ? -EUCLEAN : 0;
}

/* To the last extent that begins at or before the block, or to whatever item stands there. The volume record comes
 * before all extents, so there is always an item. */
static int extent_seek_last(struct transaction *transaction, struct cursor *cursor, uint64_t inode, uint64_t block)
{
    struct key key;
    key_set_number(&key, inode, ITEM_EXTENT, block);
    int status = cursor_seek_last(transaction, cursor, key.bytes, key.length);
    return status == -ENOENT ? -EUCLEAN : status;
}

int extent_seek(struct transaction *transaction, struct cursor *cursor, uint64_t inode, uint64_t block)
{
    TRY(extent_seek_last(transaction, cursor, inode, block));
    return key_is_of(&cursor->item, inode, ITEM_EXTENT) ? 0 : cursor_next(transaction, cursor);
}

static void map_compressed(struct block_address *out, const struct store_item *item, const struct store_extent *extent,
                           uint32_t index)
{
    out->address = extent->address;
    out->checksum = store_extent_checksum(item->value, 0);
    out->compression = extent->compression;
    out->index = (uint8_t)index;
    out->stored_blocks = (uint8_t)extent->blocks;
    out->blocks = (uint8_t)extent->logical_blocks;
}

int extent_map(struct transaction *transaction, uint64_t inode, uint64_t first, uint32_t count,
               struct block_address *out)
{
    struct store_extent extent;
    struct cursor cursor;
    uint64_t logical, end = first + count;
    memset(out, 0, count * sizeof *out);
    int status = extent_seek(transaction, &cursor, inode, first);
    while (status == 0) {
        status = extent_of_item(&cursor.item, inode, &logical, &extent);
        if (status != 0 || logical >= end)
            break;
        uint64_t from = logical < first ? first : logical;
        uint64_t to = logical + extent.logical_blocks < end ? logical + extent.logical_blocks : end;
        for (uint64_t block = from; extent.compression == 0 && block < to; block++) {
            out[block - first].address = extent.address + (block - logical);
            out[block - first].checksum = store_extent_checksum(cursor.item.value, (uint32_t)(block - logical));
        }
        for (uint64_t block = from; extent.compression != 0 && block < to; block++)
            map_compressed(&out[block - first], &cursor.item, &extent, (uint32_t)(block - logical));
        status = to == end ? -ENOENT : cursor_next(transaction, &cursor);
    }
    return status == -ENOENT ? 0 : status;
}

int extent_seek_edge(struct transaction *transaction, uint64_t inode, uint64_t block, bool hole, uint32_t items_max,
                     uint64_t *found, bool *more)
{
    struct store_extent extent;
    struct cursor cursor;
    uint64_t logical;
    uint32_t items = 0;
    *found = block;
    *more = false;
    int status = extent_seek(transaction, &cursor, inode, block);
    for (; status == 0; status = cursor_next(transaction, &cursor)) {
        status = extent_of_item(&cursor.item, inode, &logical, &extent);
        if (status != 0)
            break;
        uint64_t end = logical + extent.logical_blocks;
        if (end <= *found)
            continue;
        if (!hole || logical > *found) {
            *found = logical > *found && !hole ? logical : *found;
            return 0;
        }
        *found = end;
        *more = ++items == items_max;
        if (*more)
            return 0;
    }
    return status == -ENOENT && hole ? 0 : status;
}

int extent_put(struct transaction *transaction, uint64_t inode, const struct extent_piece *piece, bool fresh)
{
    uint8_t value[STORE_EXTENT_LENGTH_MAX];
    struct key key;
    key_set_number(&key, inode, ITEM_EXTENT, piece->logical);
    size_t length = store_extent_encode(&piece->extent, piece->checksums, value);
    bool borrowed = (piece->extent.flags & EXTENT_BORROWED) != 0;
    return transaction_put(transaction, key.bytes, key.length, value, length,
                           borrowed ? STORE_VALUE_PLAIN : STORE_VALUE_EXTENT, fresh);
}

void extent_piece_of(struct extent_piece *piece, const struct store_item *item, const struct store_extent *extent,
                     uint64_t logical, uint64_t from, uint64_t to)
{
    piece->logical = from;
    piece->extent = *extent;
    if (extent->compression != 0) {
        piece->checksums[0] = store_extent_checksum(item->value, 0);
        return;
    }
    piece->extent.address += from - logical;
    piece->extent.blocks = (uint16_t)(to - from);
    piece->extent.logical_blocks = piece->extent.blocks;
    piece->extent.checksum_count = piece->extent.blocks;
    for (uint32_t at = 0; at < piece->extent.blocks; at++)
        piece->checksums[at] = store_extent_checksum(item->value, (uint32_t)(from - logical) + at);
}

int extent_find(struct transaction *transaction, uint64_t inode, uint64_t block, struct extent_piece *out)
{
    struct store_extent extent;
    struct cursor cursor;
    uint64_t logical;
    TRY(extent_seek_last(transaction, &cursor, inode, block));
    TRY(extent_of_item(&cursor.item, inode, &logical, &extent));
    if (block - logical >= extent.logical_blocks)
        return -ENOENT;
    extent_piece_of(out, &cursor.item, &extent, logical, logical, logical + extent.logical_blocks);
    return 0;
}

int extent_cut(struct transaction *transaction, struct inode *inode, uint64_t first, uint64_t last, uint32_t items_max,
               struct extent_piece *before, bool *more)
{
    struct shared_changes changes;
    shared_begin(&changes, items_max);
    TRY(extent_cut_gathering(transaction, inode, first, last, items_max, before, &changes, more));
    return shared_apply(transaction, &changes);
}

int extent_cut_gathering(struct transaction *transaction, struct inode *inode, uint64_t first, uint64_t last,
                         uint32_t items_max, struct extent_piece *before, struct shared_changes *changes, bool *more)
{
    struct store_extent extent;
    struct extent_piece after;
    struct cursor cursor;
    uint64_t logical;
    uint32_t items = 0;
    before->extent.blocks = 0;
    *more = false;
    int status = extent_seek(transaction, &cursor, inode->number, first == 0 ? 0 : first - 1);
    for (; status == 0; status = cursor_next(transaction, &cursor)) {
        status = extent_of_item(&cursor.item, inode->number, &logical, &extent);
        if (status != 0 || logical > last)
            break;
        uint64_t end = logical + extent.logical_blocks;
        if (end <= first) {
            if (end == first)
                extent_piece_of(before, &cursor.item, &extent, logical, logical, end);
            continue;
        }
        bool borrowed = (extent.flags & EXTENT_BORROWED) != 0;
        uint64_t from = logical < first ? first : logical;
        uint64_t to = end - 1 > last ? last + 1 : end;
        bool compressed = extent.compression != 0;
        if (compressed && to - from != extent.logical_blocks)
            return EXTENT_SPLIT;
        uint32_t room = extent.logical_blocks;
        if (borrowed)
            room = shared_room(changes, compressed ? 1 : (uint32_t)(to - from)) * (compressed ? room : 1);
        if (items++ == items_max || room == 0) {
            *more = true;
            break;
        }
        bool part = from + room < to;
        to = part ? from + room : to;
        if (logical < from) {
            extent_piece_of(before, &cursor.item, &extent, logical, logical, from);
            TRY(extent_put(transaction, inode->number, before, false));
        } else {
            TRY(transaction_delete(transaction, cursor.item.key, cursor.item.key_length));
        }
        if (to < end) {
            extent_piece_of(&after, &cursor.item, &extent, logical, to, end);
            TRY(extent_put(transaction, inode->number, &after, false));
        }
        uint64_t address = extent.address + (from - logical);
        uint32_t blocks = compressed ? extent.blocks : (uint32_t)(to - from);
        if (borrowed)
            TRY(shared_change(transaction, changes, address, blocks, false));
        else
            TRY(transaction_kill(transaction, address, blocks, extent.birth));
        if (inode->blocks < blocks)
            return -EUCLEAN;
        inode->blocks -= blocks;
        *more = part;
        if (part)
            break;
    }
    return status == -ENOENT ? 0 : status;
}

int extent_add(struct transaction *transaction, struct inode *inode, uint64_t logical, uint64_t address,
               uint32_t blocks, const uint64_t *checksums, struct extent_piece *before)
{
    uint64_t birth = transaction_epoch(transaction);
    for (uint32_t at = 0, count; at < blocks; at += count) {
        uint32_t held = before->extent.blocks;
        bool grows = held != 0 && before->extent.flags == 0 && before->extent.compression == 0 &&
                     before->extent.birth == birth &&
                     before->logical + held == logical + at &&
                     before->extent.address + held == address + at;
        count = blocks - at < STORE_EXTENT_BLOCKS_MAX ? blocks - at : STORE_EXTENT_BLOCKS_MAX;
        if (!grows || held + count > STORE_EXTENT_BLOCKS_MAX) {
            before->logical = logical + at;
            before->extent = (struct store_extent){.address = address + at, .birth = birth};
            held = 0;
        }
        before->extent.blocks = (uint16_t)(held + count);
        before->extent.logical_blocks = before->extent.blocks;
        before->extent.checksum_count = before->extent.blocks;
        memcpy(before->checksums + held, checksums + at, count * sizeof *checksums);
        TRY(extent_put(transaction, inode->number, before, true));
    }
    inode->blocks += blocks;
    return 0;
}

int extent_add_compressed(struct transaction *transaction, struct inode *inode, uint64_t logical,
                          const struct store_extent *extent, uint64_t checksum, struct extent_piece *before)
{
    before->logical = logical;
    before->extent = *extent;
    before->extent.birth = transaction_epoch(transaction);
    before->extent.checksum_count = 1;
    before->checksums[0] = checksum;
    inode->blocks += extent->blocks;
    return extent_put(transaction, inode->number, before, true);
}

uint8_t *extent_in_place(struct transaction *transaction, const struct extent_piece *piece, uint64_t block)
{
    if ((piece->extent.flags & EXTENT_BORROWED) != 0 || piece->extent.compression != 0)
        return NULL;
    return transaction_data_in_place(transaction, piece->extent.address + (block - piece->logical),
                                     piece->extent.birth);
}
