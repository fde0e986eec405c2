/* Directories: entries under the hash of their name, which is the readdir cookie too. */
#include "differences.h"
#include "internal.h"

#include <errno.h>
#include <stdlib.h>

/* Entries that one transaction of a listing looks at; each needs its inode, perhaps from the medium. */
#define LISTING_ENTRIES_MAX 32u
/* Longest path that filesystem_path() builds. */
#define PATH_LENGTH_MAX 65536u

int entry_name_check(struct filesystem_name name)
{
    if (name.length > FILESYSTEM_NAME_LENGTH_MAX)
        return -ENAMETOOLONG;
    if (name.length == 0)
        return -ENOENT;
    return memchr(name.bytes, '/', name.length) != NULL || memchr(name.bytes, 0, name.length) != NULL ? -EINVAL : 0;
}

int name_dots(struct filesystem_name name)
{
    if (name.length == 1 && memcmp(name.bytes, ".", 1) == 0)
        return 1;
    return name.length == 2 && memcmp(name.bytes, "..", 2) == 0 ? 2 : 0;
}

static int dirent_of_item(const struct store_item *item, uint64_t directory, uint64_t *cookie,
                          struct dirent_fields *out)
{
    struct key_fields fields;
    if (!key_is_of(item, directory, ITEM_DIRENT))
        return -ENOENT;
    TRY(key_parse(item, &fields));
    TRY(key_number(&fields, cookie));
    return dirent_decode(item, out);
}

int directory_find(struct transaction *transaction, uint64_t hash_seed, uint64_t directory, struct filesystem_name name,
                   struct directory_slot *slot)
{
    struct dirent_fields dirent;
    struct cursor cursor;
    struct key key;
    uint64_t base = cookie_base(hash_seed, name), cookie;
    uint64_t free_cookie = base, end = base + COOKIE_COLLISIONS_MAX;
    key_set_number(&key, directory, ITEM_DIRENT, base);
    int status = cursor_seek(transaction, &cursor, key.bytes, key.length);
    while (status == 0) {
        status = dirent_of_item(&cursor.item, directory, &cookie, &dirent);
        if (status != 0 || cookie >= end)
            break;
        if (dirent.name.length == name.length && memcmp(dirent.name.bytes, name.bytes, name.length) == 0) {
            *slot = (struct directory_slot){cookie, dirent.child, dirent.type};
            return 0;
        }
        if (cookie == free_cookie)
            free_cookie++;
        status = cursor_next(transaction, &cursor);
    }
    if (status != 0 && status != -ENOENT)
        return status;
    *slot = (struct directory_slot){.cookie = free_cookie == end ? 0 : free_cookie};
    return -ENOENT;
}

int directory_put(struct transaction *transaction, uint64_t directory, uint64_t cookie, struct filesystem_name name,
                  uint64_t child, uint8_t type)
{
    uint8_t value[DIRENT_LENGTH_MAX], cookie_bytes[8];
    struct dirent_fields dirent = {child, type, name};
    struct key key;
    key_set_number(&key, directory, ITEM_DIRENT, cookie);
    TRY(transaction_put(transaction, key.bytes, key.length, value, dirent_encode(&dirent, value), STORE_VALUE_PLAIN,
                        false));
    key_set_backref(&key, child, directory, name);
    store_le64(cookie_bytes, cookie);
    return transaction_put(transaction, key.bytes, key.length, cookie_bytes, sizeof cookie_bytes, STORE_VALUE_PLAIN,
                           false);
}

int directory_delete(struct transaction *transaction, uint64_t directory, uint64_t cookie, struct filesystem_name name,
                     uint64_t child)
{
    struct key key;
    key_set_number(&key, directory, ITEM_DIRENT, cookie);
    TRY(transaction_delete(transaction, key.bytes, key.length));
    key_set_backref(&key, child, directory, name);
    return transaction_delete(transaction, key.bytes, key.length);
}

int directory_check_empty(struct transaction *transaction, uint64_t directory)
{
    struct cursor cursor;
    struct key key;
    key_set(&key, directory, ITEM_DIRENT);
    int status = cursor_seek(transaction, &cursor, key.bytes, key.length);
    if (status == -ENOENT)
        return 0;
    return status == 0 && key_is_of(&cursor.item, directory, ITEM_DIRENT) ? -ENOTEMPTY : status;
}

/* ---- lookup -------------------------------------------------------------------------------------------------- */

struct lookup_task {
    struct place place;
    struct filesystem_name name;
    struct inode inode;
};

static int lookup_body(struct transaction *transaction, void *argument)
{
    struct lookup_task *task = argument;
    struct directory_slot slot;
    struct inode directory;
    if (name_dots(task->name) == 1) {
        TRY(inode_get(transaction, task->place.inode, &task->inode));
    } else {
        TRY(inode_get_directory(transaction, task->place.inode, &directory));
        if (name_dots(task->name) == 2) {
            slot.child = directory.parent;
        } else {
            TRY(directory_find(transaction, task->place.hash_seed, directory.number, task->name, &slot));
        }
        TRY(inode_get(transaction, slot.child, &task->inode));
    }
    uint64_t node = place_node(&task->place, task->inode.number);
    return lookups_raise(&task->place, &node, 1);
}

int filesystem_lookup(struct filesystem *filesystem, uint64_t parent, struct filesystem_name name,
                      struct filesystem_attributes *out)
{
    struct lookup_task task = {.name = name};
    int status = entry_name_check(name);
    if (status == 0)
        status = place_of_node(filesystem, parent, &task.place);
    if (status == 0)
        status = place_transact(&task.place, STORE_TRANSACT_READ, lookup_body, &task);
    if (status == 0)
        inode_attributes(&task.place, &task.inode, out);
    return status;
}

/* ---- listing ------------------------------------------------------------------------------------------------- */

struct listing_task {
    struct place place;
    uint64_t cookie;
    size_t limit;
    bool lookup;
    struct filesystem_entry *entries;
    size_t count;
};

static int listing_body(struct transaction *transaction, void *argument)
{
    struct listing_task *task = argument;
    uint64_t nodes[LISTING_ENTRIES_MAX];
    struct dirent_fields dirent;
    struct inode inode;
    struct cursor cursor;
    struct key key;
    task->count = 0;
    TRY(inode_get_directory(transaction, task->place.inode, &inode));
    key_set_number(&key, task->place.inode, ITEM_DIRENT, task->cookie + 1);
    int status = cursor_seek(transaction, &cursor, key.bytes, key.length);
    while (status == 0 && task->count < task->limit) {
        struct filesystem_entry *entry = &task->entries[task->count];
        status = dirent_of_item(&cursor.item, task->place.inode, &entry->cookie, &dirent);
        if (status != 0)
            break;
        entry->name_length = (uint16_t)dirent.name.length;
        memcpy(entry->name, dirent.name.bytes, dirent.name.length);
        status = inode_get(transaction, dirent.child, &inode);
        if (status != 0)
            return status == -ESTALE ? -EUCLEAN : status;
        inode_attributes(&task->place, &inode, &entry->attributes);
        nodes[task->count++] = entry->attributes.node;
        status = cursor_next(transaction, &cursor);
    }
    if (status != 0 && status != -ENOENT)
        return status;
    return task->lookup ? lookups_raise(&task->place, nodes, task->count) : 0;
}

int filesystem_readdir(struct filesystem *filesystem, uint64_t node, uint64_t cookie, size_t limit, bool lookup,
                       struct filesystem_entry *entries, size_t *count)
{
    struct listing_task task = {.cookie = cookie, .lookup = lookup};
    *count = 0;
    if (cookie > INT64_MAX - 1)
        return -EINVAL;
    int status = place_of_node(filesystem, node, &task.place);
    while (status == 0 && *count < limit) {
        task.entries = entries + *count;
        task.limit = limit - *count < LISTING_ENTRIES_MAX ? limit - *count : LISTING_ENTRIES_MAX;
        status = place_transact(&task.place, STORE_TRANSACT_READ, listing_body, &task);
        if (status != 0 || task.count == 0)
            break;
        *count += task.count;
        task.cookie = entries[*count - 1].cookie;
    }
    /* What was listed carries lookup counts: it is handed out, and the failure met again behind it. */
    return *count != 0 ? 0 : status;
}

/* ---- upwards ------------------------------------------------------------------------------------------------- */

struct parent_task {
    struct place place;
    struct inode inode;
};

static int parent_body(struct transaction *transaction, void *argument)
{
    struct parent_task *task = argument;
    return inode_get_directory(transaction, task->place.inode, &task->inode);
}

int filesystem_parent(struct filesystem *filesystem, uint64_t node, uint64_t *parent)
{
    struct parent_task task;
    int status = place_of_node(filesystem, node, &task.place);
    if (status == 0)
        status = place_transact(&task.place, STORE_TRANSACT_READ, parent_body, &task);
    if (status == 0)
        *parent = place_node(&task.place, task.inode.parent);
    return status;
}

struct path_task {
    struct place place;
    char *buffer; /* filled from its end */
    size_t start;
};

static int path_body(struct transaction *transaction, void *argument)
{
    struct path_task *task = argument;
    struct filesystem_name name;
    struct key_fields fields;
    struct inode inode;
    struct cursor cursor;
    struct key key;
    uint64_t number = task->place.inode;
    task->start = PATH_LENGTH_MAX;
    TRY(inode_get(transaction, number, &inode));
    while (number != FILESYSTEM_ROOT_INODE) {
        key_set(&key, number, ITEM_BACKREF);
        TRY(cursor_seek(transaction, &cursor, key.bytes, key.length));
        if (!key_is_of(&cursor.item, number, ITEM_BACKREF))
            return -ENOENT;
        TRY(key_parse(&cursor.item, &fields));
        TRY(backref_key_parse(&fields, &number, &name));
        if (task->start < name.length + 1)
            return -ENAMETOOLONG;
        task->start -= name.length + 1;
        task->buffer[task->start] = '/';
        memcpy(task->buffer + task->start + 1, name.bytes, name.length);
    }
    if (task->start == PATH_LENGTH_MAX)
        task->buffer[--task->start] = '/';
    return 0;
}

/* With the status of the walk: hands the buffer over, or frees it. */
static int path_finish(struct path_task *task, int status, char **path, size_t *length)
{
    if (status != 0) {
        free(task->buffer);
        return status;
    }
    *length = PATH_LENGTH_MAX - task->start;
    memmove(task->buffer, task->buffer + task->start, *length);
    *path = task->buffer;
    return 0;
}

int filesystem_path(struct filesystem *filesystem, uint64_t node, char **path, size_t *length)
{
    struct path_task task = {.buffer = malloc(PATH_LENGTH_MAX)};
    int status = task.buffer == NULL ? -ENOMEM : place_of_node(filesystem, node, &task.place);
    if (status == 0)
        status = place_transact(&task.place, STORE_TRANSACT_READ, path_body, &task);
    return path_finish(&task, status, path, length);
}

int filesystem_object_path(struct filesystem *filesystem, uint64_t object_id, uint64_t inode, char **path,
                           size_t *length)
{
    struct path_task task = {.place = {.inode = inode}, .buffer = malloc(PATH_LENGTH_MAX)};
    int status = task.buffer == NULL ? -ENOMEM
                                     : store_transact(filesystem->store, object_id, STORE_TRANSACT_READ, path_body,
                                                      &task);
    return path_finish(&task, status == -ESTALE ? -ENOENT : status, path, length);
}
