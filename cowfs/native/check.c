/* Checking one tree: a scan in key order, so that each inode's items come together and behind it, and for each link
 * between two inodes a look at its other end. Shared blocks come first, with inode 0, and are kept in memory to be
 * compared with the extents that borrow them. Pages of CHECK_ITEMS_MAX items keep the store lock for short times; what
 * a page finds counts only when its body came to its end. */
#include "internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK_ITEMS_MAX 16u
#define MESSAGE_LENGTH_MAX 160u
/* An item and the end of the inode before it have fewer problems than this together; a page's rest goes uncounted. */
#define PAGE_MESSAGES_MAX 128u
#define DEPTH_MAX 65536u

/* An item of a page that has to do with shared blocks. */
enum sharing_kind { SHARING_RUN, SHARING_REFERENCES, SHARING_BORROWED, SHARING_OWNED };
struct sharing {
    enum sharing_kind kind;
    uint64_t inode;
    uint64_t address;
    uint32_t blocks;
    uint32_t count;
};

/* Blocks that extents share, and a sum over what refers to them: a block that is referred to n times adds n times a
 * number of its own, so the sums agree when each block of the run is referred to as often as the run says. */
struct checked_run {
    uint64_t address;
    uint32_t blocks;
    uint32_t count;
    uint64_t sum;
};

/* What was seen of one inode's items so far. */
struct group {
    uint64_t number;
    bool any;
    bool has_inode;
    struct inode inode;
    uint64_t inline_bytes;
    uint32_t inline_chunks;
    uint64_t backrefs;
    uint64_t backref_parent;
    uint64_t entries;
    uint64_t subdirectories;
    uint64_t blocks;
    uint64_t extents_end; /* logical block behind the last extent */
    bool capability;
    uint32_t xattr_chunks; /* of the name in the last xattr item */
};

/* A removal takes the items of an inode without names in several transactions, between which a snapshot may come, a
 * crash, or the end of the space: the first of what it had may be missing. The inode item itself goes last. */
static bool is_going(const struct group *group)
{
    return group->has_inode && group->inode.nlink == 0;
}

struct check_task {
    uint64_t hash_seed;
    bool started;
    struct key after;
    struct group group;
    struct checked_run *runs; /* in the order of their addresses */
    size_t run_count;
    size_t run_capacity;
    uint8_t *owned; /* one bit for each block of the pool */
    uint64_t size_blocks;
    /* of the page under way */
    struct key page_after;
    struct group page_group;
    bool page_last;
    uint32_t page_sharings;
    struct sharing sharings[CHECK_ITEMS_MAX];
    uint32_t page_messages;
    char messages[PAGE_MESSAGES_MAX][MESSAGE_LENGTH_MAX];
};

static void problem(struct check_task *task, uint64_t inode, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void problem(struct check_task *task, uint64_t inode, const char *format, ...)
{
    if (task->page_messages == PAGE_MESSAGES_MAX)
        return;
    char *message = task->messages[task->page_messages++];
    int length = snprintf(message, MESSAGE_LENGTH_MAX, "inode %" PRIu64 ": ", inode);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message + length, MESSAGE_LENGTH_MAX - (size_t)length, format, arguments);
    va_end(arguments);
}

/* An inode item that may be missing or damaged: *valid tells. */
static int inode_look(struct transaction *transaction, uint64_t number, struct inode *out, bool *valid)
{
    int status = inode_get(transaction, number, out);
    *valid = status == 0;
    return status == -ESTALE || status == -EUCLEAN ? 0 : status;
}

static int item_look(struct transaction *transaction, const struct key *key, struct store_item *item, bool *present)
{
    int status = transaction_get(transaction, key->bytes, key->length, item);
    *present = status == 0;
    return status == -ENOENT ? 0 : status;
}

/* ---- shared blocks ------------------------------------------------------------------------------------------- */

static uint64_t blocks_sum(uint64_t address, uint32_t blocks)
{
    uint64_t sum = 0;
    for (uint64_t block = address; block < address + blocks; block++)
        sum += store_checksum(&block, sizeof block);
    return sum;
}

/* The first run that ends behind an address; NULL when there is none. */
static struct checked_run *run_behind(struct check_task *task, uint64_t address)
{
    size_t low = 0, high = task->run_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (task->runs[middle].address + task->runs[middle].blocks <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low == task->run_count ? NULL : &task->runs[low];
}

static int run_add(struct check_task *task, const struct sharing *sharing)
{
    const struct checked_run *last = task->run_count == 0 ? NULL : &task->runs[task->run_count - 1];
    if (last != NULL && last->address + last->blocks > sharing->address)
        problem(task, VOLUME_INODE, "shared blocks overlap at %" PRIu64, sharing->address);
    if (task->run_count == task->run_capacity) {
        size_t capacity = task->run_capacity == 0 ? 64 : 2 * task->run_capacity;
        struct checked_run *grown = realloc(task->runs, capacity * sizeof *grown);
        if (grown == NULL)
            return -ENOMEM;
        task->runs = grown;
        task->run_capacity = capacity;
    }
    task->runs[task->run_count++] = (struct checked_run){.address = sharing->address, .blocks = sharing->blocks};
    return 0;
}

static void borrowed_add(struct check_task *task, const struct sharing *sharing)
{
    uint64_t at = sharing->address, end = at + sharing->blocks;
    while (at < end) {
        struct checked_run *run = run_behind(task, at);
        if (run == NULL || run->address > at) {
            problem(task, sharing->inode, "borrows block %" PRIu64 ", which is not shared", at);
            return;
        }
        uint64_t to = run->address + run->blocks < end ? run->address + run->blocks : end;
        run->sum += blocks_sum(at, (uint32_t)(to - at));
        at = to;
    }
}

/* Each block belongs to one item of a tree. */
static void owned_add(struct check_task *task, const struct sharing *sharing)
{
    uint64_t end = sharing->address + sharing->blocks;
    bool doubled = false;
    for (uint64_t block = sharing->address; block < end && end <= task->size_blocks; block++) {
        uint8_t bit = (uint8_t)(1u << block % 8);
        doubled |= (task->owned[block / 8] & bit) != 0;
        task->owned[block / 8] |= bit;
    }
    if (doubled)
        problem(task, sharing->inode, "owns blocks at %" PRIu64 " that another extent owns", sharing->address);
}

/* Outside the body, which may run more than once. */
static int sharing_take(struct check_task *task, const struct sharing *sharing)
{
    struct checked_run *run = sharing->kind == SHARING_RUN ? NULL : run_behind(task, sharing->address);
    switch (sharing->kind) {
    case SHARING_RUN:
        owned_add(task, sharing);
        return run_add(task, sharing);
    case SHARING_REFERENCES:
        if (run == NULL || run->address != sharing->address)
            problem(task, VOLUME_INODE, "references to %" PRIu64 ", where no shared blocks begin", sharing->address);
        else
            run->count = sharing->count;
        return 0;
    case SHARING_BORROWED:
        borrowed_add(task, sharing);
        return 0;
    case SHARING_OWNED:
        owned_add(task, sharing);
        if (run != NULL && run->address < sharing->address + sharing->blocks)
            problem(task, sharing->inode, "owns block %" PRIu64 ", which is shared", sharing->address);
        return 0;
    }
    return 0;
}

static void check_run(struct check_task *task, const struct checked_run *run)
{
    task->page_messages = 0;
    if (run->count == 0 || run->sum != run->count * blocks_sum(run->address, run->blocks))
        problem(task, VOLUME_INODE, "shared blocks at %" PRIu64 " count %" PRIu32 " references, and have others",
                run->address, run->count);
}

static void sharing_note(struct check_task *task, const struct sharing *sharing)
{
    task->sharings[task->page_sharings++] = *sharing;
}

/* ---- the end of an inode's items ----------------------------------------------------------------------------- */

static int check_orphan_record(struct transaction *transaction, struct check_task *task, const struct inode *inode)
{
    struct store_item item;
    struct key key;
    bool present;
    uint8_t kinds = 0;
    key_set_number(&key, VOLUME_INODE, ITEM_ORPHAN, inode->number);
    TRY(item_look(transaction, &key, &item, &present));
    if (present && orphan_decode(&item, &kinds) != 0)
        kinds = 0;
    if (inode->nlink == 0 && (kinds & ORPHAN_UNLINKED) == 0)
        problem(task, inode->number, "has no name and no orphan record");
    if ((inode->flags & INODE_TRUNCATING) != 0 && (kinds & ORPHAN_TRUNCATING) == 0)
        problem(task, inode->number, "is being truncated and has no orphan record");
    return 0;
}

static int check_reachable(struct transaction *transaction, struct check_task *task, const struct inode *directory)
{
    struct inode inode = *directory;
    bool valid = true;
    uint32_t depth = 0;
    while (valid && S_ISDIR(inode.mode) && inode.number != FILESYSTEM_ROOT_INODE && depth++ < DEPTH_MAX)
        TRY(inode_look(transaction, inode.parent, &inode, &valid));
    if (!valid || inode.number != FILESYSTEM_ROOT_INODE)
        problem(task, directory->number, "is a directory that cannot be reached from the root");
    return 0;
}

static int check_directory(struct transaction *transaction, struct check_task *task, const struct group *group)
{
    const struct inode *inode = &group->inode;
    bool root = inode->number == FILESYSTEM_ROOT_INODE;
    if (inode->nlink != 0 && inode->nlink != 2 + group->subdirectories)
        problem(task, inode->number, "link count %" PRIu32 " with %" PRIu64 " subdirectories", inode->nlink,
                group->subdirectories);
    if (inode->size_bytes != group->entries * DIRECTORY_ENTRY_SIZE_BYTES)
        problem(task, inode->number, "directory size %" PRIu64 " with %" PRIu64 " entries", inode->size_bytes,
                group->entries);
    if (inode->nlink == 0 && group->entries != 0)
        problem(task, inode->number, "is removed and has %" PRIu64 " entries", group->entries);
    uint64_t backrefs = root || inode->nlink == 0 ? 0 : 1;
    if (group->backrefs != backrefs)
        problem(task, inode->number, "is a directory with %" PRIu64 " names", group->backrefs);
    else if (backrefs == 1 && group->backref_parent != inode->parent)
        problem(task, inode->number, "parent is %" PRIu64 ", the name is in %" PRIu64, inode->parent,
                group->backref_parent);
    return inode->nlink == 0 ? 0 : check_reachable(transaction, task, inode);
}

static void check_data(struct check_task *task, const struct group *group)
{
    const struct inode *inode = &group->inode;
    uint64_t blocks = (inode->size_bytes + STORE_BLOCK_SIZE - 1) / STORE_BLOCK_SIZE;
    bool going = is_going(group);
    if (going ? group->blocks > inode->blocks : group->blocks != inode->blocks)
        problem(task, inode->number, "counts %" PRIu64 " blocks and has %" PRIu64, inode->blocks, group->blocks);
    if (going ? group->inline_bytes > inode->inline_length : group->inline_bytes != inode->inline_length)
        problem(task, inode->number, "counts %" PRIu32 " inline bytes and has %" PRIu64, inode->inline_length,
                group->inline_bytes);
    if (group->blocks != 0 && (!S_ISREG(inode->mode) || (inode->flags & INODE_INLINE) != 0))
        problem(task, inode->number, "has extents and must not");
    if (group->inline_bytes != 0 && S_ISREG(inode->mode) && (inode->flags & INODE_INLINE) == 0)
        problem(task, inode->number, "has inline bytes and must not");
    if ((inode->flags & INODE_UNCUT) != 0 && (!S_ISREG(inode->mode) || (inode->flags & INODE_INLINE) != 0))
        problem(task, inode->number, "has no extent to be cut and is marked as if it had");
    /* An extent that is not cut may be the last one only. */
    uint64_t more = (inode->flags & INODE_UNCUT) != 0 ? STORE_EXTENT_BLOCKS_MAX : 0;
    if (group->extents_end > blocks + more && (inode->flags & INODE_TRUNCATING) == 0)
        problem(task, inode->number, "has extents up to block %" PRIu64 " and ends at %" PRIu64, group->extents_end,
                blocks);
    if (group->capability && (inode->flags & INODE_CAPABILITY) == 0)
        problem(task, inode->number, "has security.capability and no mark of it");
    if (S_ISLNK(inode->mode) && inode->size_bytes != inode->inline_length)
        problem(task, inode->number, "is a symlink with %" PRIu32 " of %" PRIu64 " bytes", inode->inline_length,
                inode->size_bytes);
}

static int check_group_end(struct transaction *transaction, struct check_task *task, const struct group *group)
{
    if (!group->any || group->number == VOLUME_INODE)
        return 0;
    if (!group->has_inode) {
        problem(task, group->number, "has items and no valid inode item");
        return 0;
    }
    check_data(task, group);
    TRY(check_orphan_record(transaction, task, &group->inode));
    if (S_ISDIR(group->inode.mode))
        return check_directory(transaction, task, group);
    if (group->entries != 0)
        problem(task, group->number, "has directory entries and is none");
    if ((group->inode.flags & INODE_UNNAMED) != 0 && group->inode.nlink != 0)
        problem(task, group->number, "has a name and is marked as made without one");
    if (group->backrefs != group->inode.nlink)
        problem(task, group->number, "link count %" PRIu32 " with %" PRIu64 " names", group->inode.nlink,
                group->backrefs);
    return 0;
}

/* ---- items --------------------------------------------------------------------------------------------------- */

static int check_volume_item(struct transaction *transaction, struct check_task *task, const struct store_item *item,
                             const struct key_fields *fields)
{
    struct store_extent extent;
    struct inode inode;
    uint64_t number;
    uint32_t count;
    uint8_t kinds;
    bool valid;
    if (fields->type == ITEM_INODE || fields->type >= ITEM_INDEX_FIRST)
        return 0;
    if (fields->type == ITEM_SHARED && shared_decode(item, &extent) == 0) {
        sharing_note(task, &(struct sharing){SHARING_RUN, VOLUME_INODE, extent.address, extent.blocks, 0});
        return 0;
    }
    if (fields->type == ITEM_REFERENCES && key_number(fields, &number) == 0 && references_decode(item, &count) == 0) {
        sharing_note(task, &(struct sharing){SHARING_REFERENCES, VOLUME_INODE, number, 0, count});
        return 0;
    }
    if (fields->type != ITEM_ORPHAN || key_number(fields, &number) != 0 || orphan_decode(item, &kinds) != 0) {
        problem(task, VOLUME_INODE, "unknown or damaged item of type %u", fields->type);
        return 0;
    }
    TRY(inode_look(transaction, number, &inode, &valid));
    if (!valid)
        problem(task, number, "orphan record without an inode");
    else if (((kinds & ORPHAN_UNLINKED) != 0) != (inode.nlink == 0) ||
             ((kinds & ORPHAN_TRUNCATING) != 0) != ((inode.flags & INODE_TRUNCATING) != 0))
        problem(task, number, "orphan record %u does not fit the inode", kinds);
    return 0;
}

static int check_dirent(struct transaction *transaction, struct check_task *task, struct group *group,
                        const struct store_item *item, const struct key_fields *fields)
{
    struct dirent_fields dirent;
    struct store_item backref;
    struct inode child;
    struct key key;
    uint64_t cookie, named;
    bool valid, present;
    group->entries++;
    if (key_number(fields, &cookie) != 0 || dirent_decode(item, &dirent) != 0 || entry_name_check(dirent.name) != 0) {
        problem(task, group->number, "damaged directory entry");
        return 0;
    }
    if (cookie >> COOKIE_COLLISION_BITS != cookie_base(task->hash_seed, dirent.name) >> COOKIE_COLLISION_BITS)
        problem(task, group->number, "entry at %" PRIu64 " has a name of another hash", cookie);
    TRY(inode_look(transaction, dirent.child, &child, &valid));
    if (!valid) {
        problem(task, group->number, "entry at %" PRIu64 " leads to inode %" PRIu64 ", which is none", cookie,
                dirent.child);
        return 0;
    }
    if (child.mode >> 12 != dirent.type)
        problem(task, group->number, "entry at %" PRIu64 " has type %u, its inode %u", cookie, dirent.type,
                child.mode >> 12);
    group->subdirectories += S_ISDIR(child.mode) ? 1 : 0;
    key_set_backref(&key, dirent.child, group->number, dirent.name);
    TRY(item_look(transaction, &key, &backref, &present));
    if (!present || backref_decode(&backref, &named) != 0 || named != cookie)
        problem(task, group->number, "entry at %" PRIu64 ": inode %" PRIu64 " does not refer back", cookie,
                dirent.child);
    return 0;
}

static int check_backref(struct transaction *transaction, struct check_task *task, struct group *group,
                         const struct store_item *item, const struct key_fields *fields)
{
    struct filesystem_name name;
    struct dirent_fields dirent;
    struct store_item entry;
    struct key key;
    uint64_t cookie;
    bool present;
    group->backrefs++;
    if (backref_key_parse(fields, &group->backref_parent, &name) != 0 || backref_decode(item, &cookie) != 0) {
        problem(task, group->number, "damaged back-reference");
        return 0;
    }
    key_set_number(&key, group->backref_parent, ITEM_DIRENT, cookie);
    TRY(item_look(transaction, &key, &entry, &present));
    if (!present || dirent_decode(&entry, &dirent) != 0 || dirent.child != group->number ||
        dirent.name.length != name.length || memcmp(dirent.name.bytes, name.bytes, name.length) != 0)
        problem(task, group->number, "refers back to directory %" PRIu64 ", which has no such entry",
                group->backref_parent);
    return 0;
}

static void check_extent(struct check_task *task, struct group *group, const struct store_item *item)
{
    struct store_extent extent;
    uint64_t logical;
    if (extent_of_item(item, group->number, &logical, &extent) != 0) {
        problem(task, group->number, "damaged extent item");
        return;
    }
    if (logical < group->extents_end)
        problem(task, group->number, "extents overlap at block %" PRIu64, logical);
    group->extents_end = logical + extent.logical_blocks;
    group->blocks += extent.blocks;
    bool borrowed = (extent.flags & EXTENT_BORROWED) != 0;
    sharing_note(task, &(struct sharing){borrowed ? SHARING_BORROWED : SHARING_OWNED, group->number, extent.address,
                                         extent.blocks, 0});
}

static void check_xattr(struct check_task *task, struct group *group, const struct store_item *item,
                        const struct key_fields *fields)
{
    struct filesystem_name name;
    uint8_t chunk;
    if (xattr_key_parse(fields, &name, &chunk) != 0 || item->value_length > XATTR_CHUNK_LENGTH) {
        problem(task, group->number, "damaged extended attribute");
        return;
    }
    group->xattr_chunks = chunk == 0 ? 0 : group->xattr_chunks;
    if (chunk != group->xattr_chunks++ && !is_going(group))
        problem(task, group->number, "a chunk of an extended attribute is missing");
    if (name.length == xattr_capability_name.length &&
        memcmp(name.bytes, xattr_capability_name.bytes, name.length) == 0)
        group->capability = true;
}

static int check_item(struct transaction *transaction, struct check_task *task, struct group *group,
                      const struct store_item *item, const struct key_fields *fields)
{
    if (fields->inode == VOLUME_INODE)
        return check_volume_item(transaction, task, item, fields);
    switch (fields->type) {
    case ITEM_INODE:
        group->has_inode = inode_decode(fields->inode, item, &group->inode) == 0 && fields->rest_length == 0;
        return 0;
    case ITEM_INLINE:
        if (fields->rest_length != 1 || (fields->rest[0] != group->inline_chunks++ && !is_going(group)))
            problem(task, group->number, "a chunk of inline bytes is missing");
        group->inline_bytes += item->value_length;
        return 0;
    case ITEM_XATTR:
        check_xattr(task, group, item, fields);
        return 0;
    case ITEM_BACKREF:
        return check_backref(transaction, task, group, item, fields);
    case ITEM_DIRENT:
        return check_dirent(transaction, task, group, item, fields);
    case ITEM_EXTENT:
        check_extent(task, group, item);
        return 0;
    default:
        problem(task, group->number, "item of unknown type %u", fields->type);
        return 0;
    }
}

/* ---- pages --------------------------------------------------------------------------------------------------- */

static int check_start_body(struct transaction *transaction, void *argument)
{
    struct check_task *task = argument;
    struct volume_record record;
    struct store_item item;
    struct inode root;
    struct key key;
    bool valid;
    task->page_messages = 0;
    key_set(&key, VOLUME_INODE, ITEM_INODE);
    int status = transaction_get(transaction, key.bytes, key.length, &item);
    if (status == 0)
        status = volume_record_decode(&item, &record);
    if (status == -ENOENT || status == -EUCLEAN) {
        problem(task, VOLUME_INODE, "the volume record is missing or damaged");
        task->page_last = true;
        return 0;
    }
    TRY(status);
    task->hash_seed = record.hash_seed;
    TRY(inode_look(transaction, FILESYSTEM_ROOT_INODE, &root, &valid));
    if (!valid || !S_ISDIR(root.mode) || root.parent != FILESYSTEM_ROOT_INODE)
        problem(task, FILESYSTEM_ROOT_INODE, "the root directory is missing or damaged");
    return 0;
}

static int check_page_body(struct transaction *transaction, void *argument)
{
    struct check_task *task = argument;
    struct group *group = &task->page_group;
    struct key_fields fields;
    struct cursor cursor;
    task->page_messages = 0;
    task->page_sharings = 0;
    task->page_last = false;
    *group = task->group;
    int status = cursor_seek(transaction, &cursor, task->after.bytes, task->after.length);
    if (status == 0 && task->started && cursor.item.key_length == task->after.length &&
        memcmp(cursor.item.key, task->after.bytes, task->after.length) == 0)
        status = cursor_next(transaction, &cursor);
    for (uint32_t items = 0; status == 0 && items < CHECK_ITEMS_MAX; items++) {
        if (cursor.item.key_length > KEY_LENGTH_MAX || key_parse(&cursor.item, &fields) != 0) {
            problem(task, group->number, "an item follows whose key is none of a file system");
            task->page_last = true;
            return 0;
        }
        if (!group->any || fields.inode != group->number) {
            TRY(check_group_end(transaction, task, group));
            *group = (struct group){.number = fields.inode, .any = true};
        }
        TRY(check_item(transaction, task, group, &cursor.item, &fields));
        task->page_after.length = cursor.item.key_length;
        memcpy(task->page_after.bytes, cursor.item.key, cursor.item.key_length);
        status = cursor_next(transaction, &cursor);
    }
    if (status != -ENOENT)
        return status;
    task->page_last = true;
    return check_group_end(transaction, task, group);
}

int64_t filesystem_check(struct filesystem *filesystem, uint64_t object_id, filesystem_report report, void *argument)
{
    struct check_task *task = calloc(1, sizeof *task);
    struct store_statistics statistics;
    int64_t problems = 0;
    if (task == NULL)
        return -ENOMEM;
    store_statistics(filesystem->store, &statistics);
    task->size_blocks = statistics.size_blocks;
    task->owned = calloc(statistics.size_blocks / 8 + 1, 1);
    if (task->owned == NULL) {
        free(task);
        return -ENOMEM;
    }
    key_set(&task->after, VOLUME_INODE, (enum item_type)0);
    int status = store_transact(filesystem->store, object_id, STORE_TRANSACT_READ, check_start_body, task);
    while (status == 0) {
        for (uint32_t at = 0; at < task->page_messages; at++)
            report(argument, task->messages[at]);
        problems += task->page_messages;
        if (task->page_last)
            break;
        status = store_transact(filesystem->store, object_id, STORE_TRANSACT_READ, check_page_body, task);
        task->after = task->page_after;
        task->group = task->page_group;
        task->started = true;
        for (uint32_t at = 0; status == 0 && at < task->page_sharings; at++)
            status = sharing_take(task, &task->sharings[at]);
    }
    for (size_t at = 0; status == 0 && at < task->run_count; at++) {
        check_run(task, &task->runs[at]);
        for (uint32_t message = 0; message < task->page_messages; message++)
            report(argument, task->messages[message]);
        problems += task->page_messages;
    }
    free(task->owned);
    free(task->runs);
    free(task);
    return status != 0 ? status : problems;
}
