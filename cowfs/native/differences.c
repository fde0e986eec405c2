/* Differences of two trees: the store's, which are those of keys, gathered to those of inodes. */
#include "differences.h"

#include <errno.h>
#include <stdlib.h>

#include "internal.h"

#define PAGE_FULL 1

/* One block of a file as an item of one tree has it. */
struct block {
    uint64_t logical;
    uint64_t address; /* of the block; when compressed, of its extent */
    uint64_t checksum;
    uint32_t index; /* in a compressed extent, else 0 */
    bool verified;  /* the checksum is that of the block alone */
};

struct block_list {
    struct block *items;
    size_t count, capacity;
};

struct gathering {
    uint64_t last_inode;
    size_t limit;
    struct filesystem_differences *out;
    struct filesystem_difference *current;
    struct block_list old_blocks, new_blocks;
    bool inline_old, inline_new;
};

static int grow(void **items, size_t *capacity, size_t count, size_t item_size)
{
    if (count < *capacity)
        return 0;
    size_t more = *capacity == 0 ? 4 : *capacity * 2;
    void *grown = realloc(*items, more * item_size);
    if (grown == NULL)
        return -ENOMEM;
    *items = grown;
    *capacity = more;
    return 0;
}

void filesystem_differences_free(struct filesystem_differences *differences)
{
    for (size_t at = 0; at < differences->count; at++) {
        free(differences->items[at].ranges);
        free(differences->items[at].names);
    }
    free(differences->items);
    *differences = (struct filesystem_differences){0};
}

/* ---- byte ranges ----------------------------------------------------------------------------------------------- */

/* Behind the ranges that are there; one that touches the last makes it longer. */
static int range_add(struct filesystem_difference *difference, uint64_t offset, uint64_t end)
{
    struct filesystem_byte_range *last =
        difference->range_count == 0 ? NULL : &difference->ranges[difference->range_count - 1];
    if (offset >= end)
        return 0;
    if (last != NULL && last->offset_bytes + last->length_bytes >= offset) {
        if (last->offset_bytes + last->length_bytes < end)
            last->length_bytes = end - last->offset_bytes;
        return 0;
    }
    TRY(grow((void **)&difference->ranges, &difference->range_capacity, difference->range_count,
             sizeof *difference->ranges));
    difference->ranges[difference->range_count++] = (struct filesystem_byte_range){offset, end - offset};
    return 0;
}

static int blocks_add(struct block_list *list, const struct store_item *item)
{
    struct store_extent extent;
    struct key_fields fields;
    uint64_t logical;
    TRY(key_parse(item, &fields));
    TRY(key_number(&fields, &logical));
    TRY(store_extent_decode(item->value, item->value_length, &extent));
    if (logical > FILESYSTEM_SIZE_MAX / STORE_BLOCK_SIZE)
        return -EUCLEAN;
    bool plain = extent.compression == 0;
    for (uint32_t at = 0; at < extent.logical_blocks; at++) {
        TRY(grow((void **)&list->items, &list->capacity, list->count, sizeof *list->items));
        list->items[list->count++] =
            (struct block){.logical = logical + at,
                           .address = extent.address + (plain ? at : 0),
                           .checksum = plain && at < extent.checksum_count ? store_extent_checksum(item->value, at) : 0,
                           .index = plain ? 0 : at,
                           .verified = plain && at < extent.checksum_count};
    }
    return 0;
}

static bool block_same(const struct block *a, const struct block *b)
{
    return (a->address == b->address && a->index == b->index) ||
           (a->verified && b->verified && a->checksum == b->checksum);
}

/* Up to `end`, the shorter of the two sizes. */
static int ranges_of_blocks(struct gathering *gathering, uint64_t end)
{
    const struct block_list *old_blocks = &gathering->old_blocks, *new_blocks = &gathering->new_blocks;
    size_t i = 0, j = 0;
    while (i < old_blocks->count || j < new_blocks->count) {
        const struct block *a = i < old_blocks->count ? &old_blocks->items[i] : NULL;
        const struct block *b = j < new_blocks->count ? &new_blocks->items[j] : NULL;
        bool both = a != NULL && b != NULL && a->logical == b->logical;
        const struct block *first = b == NULL || (a != NULL && a->logical <= b->logical) ? a : b;
        uint64_t from = first->logical * STORE_BLOCK_SIZE, to = from + STORE_BLOCK_SIZE;
        if (!both || !block_same(a, b))
            TRY(range_add(gathering->current, from, to < end ? to : end));
        i += both || first == a;
        j += both || first == b;
    }
    return 0;
}

static int ranges_of_inline(struct filesystem_difference *difference, const struct store_item *old_item,
                            const struct store_item *new_item, uint64_t end)
{
    for (uint64_t at = 0; at < end; at++) {
        uint8_t a = at < old_item->value_length ? old_item->value[at] : 0;
        uint8_t b = at < new_item->value_length ? new_item->value[at] : 0;
        if (a != b)
            TRY(range_add(difference, at, at + 1));
    }
    return 0;
}

/* ---- items ----------------------------------------------------------------------------------------------------- */

static bool time_differs(struct filesystem_time a, struct filesystem_time b)
{
    return a.seconds != b.seconds || a.nanoseconds != b.nanoseconds;
}

static int note_inode(struct filesystem_difference *difference, const struct store_item *old_item,
                      const struct store_item *new_item)
{
    static const struct place nowhere = {0};
    struct inode old_inode, new_inode;
    if (old_item != NULL) {
        TRY(inode_decode(difference->inode, old_item, &old_inode));
        inode_attributes(&nowhere, &old_inode, &difference->old_attributes);
        difference->in_old = true;
    }
    if (new_item != NULL) {
        TRY(inode_decode(difference->inode, new_item, &new_inode));
        inode_attributes(&nowhere, &new_inode, &difference->new_attributes);
        difference->in_new = true;
    }
    if (old_item == NULL || new_item == NULL)
        return 0;
    if (old_inode.mode != new_inode.mode || old_inode.uid != new_inode.uid || old_inode.gid != new_inode.gid ||
        old_inode.rdev != new_inode.rdev ||
        difference->old_attributes.flags != difference->new_attributes.flags)
        difference->kinds |= FILESYSTEM_DIFFERS_METADATA;
    if (time_differs(old_inode.mtime, new_inode.mtime) || time_differs(old_inode.atime, new_inode.atime))
        difference->kinds |= FILESYSTEM_DIFFERS_TIMES;
    if (!S_ISDIR(new_inode.mode) && old_inode.size_bytes != new_inode.size_bytes)
        difference->kinds |= FILESYSTEM_DIFFERS_CONTENT;
    return 0;
}

static int note_name(struct filesystem_difference *difference, const struct key_fields *fields, bool added)
{
    struct filesystem_name_change change = {.added = added};
    struct filesystem_name name;
    TRY(backref_key_parse(fields, &change.parent, &name));
    if (name.length > sizeof change.name)
        return -EUCLEAN;
    TRY(grow((void **)&difference->names, &difference->name_capacity, difference->name_count,
             sizeof *difference->names));
    change.name_length = (uint16_t)name.length;
    memcpy(change.name, name.bytes, name.length);
    difference->names[difference->name_count++] = change;
    difference->kinds |= FILESYSTEM_DIFFERS_NAMES;
    return 0;
}

static bool in_both(const struct filesystem_difference *difference)
{
    return difference->in_old == difference->in_new;
}

static uint64_t smaller_size(const struct filesystem_difference *difference)
{
    if (!difference->in_old || !difference->in_new)
        return FILESYSTEM_SIZE_MAX; /* the inode's item is the same in both: nothing is past its end */
    uint64_t a = difference->old_attributes.size_bytes, b = difference->new_attributes.size_bytes;
    return a < b ? a : b;
}

static int note_item(struct gathering *gathering, const struct key_fields *fields, const struct store_item *old_item,
                     const struct store_item *new_item)
{
    struct filesystem_difference *difference = gathering->current;
    switch (fields->type) {
    case ITEM_INODE:
        return note_inode(difference, old_item, new_item);
    case ITEM_INLINE:
        difference->kinds |= FILESYSTEM_DIFFERS_CONTENT;
        gathering->inline_old |= old_item != NULL;
        gathering->inline_new |= new_item != NULL;
        return old_item != NULL && new_item != NULL
                   ? ranges_of_inline(difference, old_item, new_item, smaller_size(difference) == FILESYSTEM_SIZE_MAX
                                                                          ? new_item->value_length
                                                                          : smaller_size(difference))
                   : 0;
    case ITEM_XATTR:
        difference->kinds |= FILESYSTEM_DIFFERS_XATTRS;
        return 0;
    case ITEM_BACKREF:
        /* The same name at another cookie is no other name. */
        return old_item != NULL && new_item != NULL ? 0 : note_name(difference, fields, new_item != NULL);
    case ITEM_DIRENT:
        difference->kinds |= FILESYSTEM_DIFFERS_ENTRIES;
        return 0;
    case ITEM_EXTENT:
        difference->kinds |= FILESYSTEM_DIFFERS_CONTENT;
        if (!in_both(difference))
            return 0;
        if (old_item != NULL)
            TRY(blocks_add(&gathering->old_blocks, old_item));
        if (new_item != NULL)
            TRY(blocks_add(&gathering->new_blocks, new_item));
        return 0;
    default:
        return 0;
    }
}

/* All items of the current inode have been seen. */
static int finish_inode(struct gathering *gathering)
{
    struct filesystem_difference *difference = gathering->current;
    if (difference == NULL)
        return 0;
    uint64_t shorter = smaller_size(difference), longer = shorter;
    if (difference->in_old && difference->in_new) {
        uint64_t a = difference->old_attributes.size_bytes, b = difference->new_attributes.size_bytes;
        longer = a < b ? b : a;
    }
    if (in_both(difference) && (difference->kinds & FILESYSTEM_DIFFERS_CONTENT) != 0) {
        if (gathering->inline_old != gathering->inline_new)
            TRY(range_add(difference, 0, longer));
        else
            TRY(ranges_of_blocks(gathering, shorter));
        TRY(range_add(difference, shorter, longer));
        if (difference->range_count == 0)
            difference->kinds &= ~(unsigned)FILESYSTEM_DIFFERS_CONTENT; /* other places, the same bytes */
    }
    gathering->old_blocks.count = gathering->new_blocks.count = 0;
    gathering->inline_old = gathering->inline_new = false;
    gathering->current = NULL;
    return 0;
}

static int begin_inode(struct gathering *gathering, uint64_t inode)
{
    struct filesystem_differences *out = gathering->out;
    TRY(finish_inode(gathering));
    if (out->count == gathering->limit)
        return PAGE_FULL;
    TRY(grow((void **)&out->items, &out->capacity, out->count, sizeof *out->items));
    gathering->current = &out->items[out->count++];
    *gathering->current = (struct filesystem_difference){.inode = inode};
    return 0;
}

static int gather(void *argument, const struct store_item *old_item, const struct store_item *new_item)
{
    struct gathering *gathering = argument;
    struct key_fields fields;
    TRY(key_parse(old_item != NULL ? old_item : new_item, &fields));
    if (fields.inode > gathering->last_inode)
        return PAGE_FULL;
    if (gathering->current == NULL || gathering->current->inode != fields.inode)
        TRY(begin_inode(gathering, fields.inode));
    return note_item(gathering, &fields, old_item, new_item);
}

/* ---- the whole ------------------------------------------------------------------------------------------------- */

struct attributes_task {
    uint64_t inode;
    struct filesystem_attributes attributes;
};

static int attributes_body(struct transaction *transaction, void *argument)
{
    static const struct place nowhere = {0};
    struct attributes_task *task = argument;
    struct inode inode;
    TRY(inode_get(transaction, task->inode, &inode));
    inode_attributes(&nowhere, &inode, &task->attributes);
    return 0;
}

/* An inode whose own item is the same in both trees; in neither, when a live tree has lost it since. */
static int complete(struct filesystem *filesystem, uint64_t object_id, struct filesystem_difference *difference)
{
    struct attributes_task task = {.inode = difference->inode};
    if (difference->in_old || difference->in_new)
        return 0;
    int status = store_transact(filesystem->store, object_id, STORE_TRANSACT_READ, attributes_body, &task);
    if (status != 0)
        return status == -ESTALE ? 0 : status;
    difference->in_old = difference->in_new = true;
    difference->old_attributes = difference->new_attributes = task.attributes;
    return 0;
}

int filesystem_diff(struct filesystem *filesystem, uint64_t old_object_id, uint64_t new_object_id, uint64_t first_inode,
                    uint64_t last_inode, size_t limit, struct filesystem_differences *out)
{
    struct gathering gathering = {.last_inode = last_inode, .limit = limit, .out = out};
    struct key start;
    *out = (struct filesystem_differences){0};
    /* What belongs to the volume is nobody's file. */
    key_set(&start, first_inode < FILESYSTEM_ROOT_INODE ? FILESYSTEM_ROOT_INODE : first_inode, ITEM_INODE);
    int status = store_diff(filesystem->store, old_object_id, new_object_id, start.bytes, start.length, gather,
                            &gathering);
    if (status >= 0)
        status = finish_inode(&gathering);
    for (size_t at = 0; status == 0 && at < out->count; at++)
        status = complete(filesystem, old_object_id, &out->items[at]);
    free(gathering.old_blocks.items);
    free(gathering.new_blocks.items);
    return status;
}
