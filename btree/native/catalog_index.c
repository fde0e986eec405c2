/* Finding volumes and chains among many, in sorted arrays: every transaction asks for a volume, and opening a pool for
 * the chain of every snapshot. Ids ascend, so what is added mostly goes to the end. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

/* First place with id >= the given one. */
static size_t id_place(const struct id_table *table, uint64_t id)
{
    size_t low = 0, high = table->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (table->items[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void *id_find(const struct id_table *table, uint64_t id)
{
    size_t at = id_place(table, id);
    return at < table->count && table->items[at].id == id ? table->items[at].object : NULL;
}

static int id_add(struct id_table *table, uint64_t id, void *object)
{
    int result = array_reserve((void **)&table->items, &table->capacity, table->count + 1, sizeof *table->items);
    if (result < 0)
        return result;
    size_t at = id_place(table, id);
    memmove(table->items + at + 1, table->items + at, (table->count - at) * sizeof *table->items);
    table->items[at] = (struct id_entry){id, object};
    table->count++;
    return 0;
}

static void id_remove(struct id_table *table, uint64_t id)
{
    size_t at = id_place(table, id);
    table->count--;
    memmove(table->items + at, table->items + at + 1, (table->count - at) * sizeof *table->items);
}

/* First place with a name >= the given one. */
static size_t name_place(const struct store *store, const char *name)
{
    size_t low = 0, high = store->volume_table.count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(store->volume_names[middle]->name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct volume *volume_by_id(struct store *store, uint64_t id)
{
    return id_find(&store->volume_table, id);
}

struct volume *volume_by_name(struct store *store, const char *name)
{
    size_t at = name_place(store, name);
    return at < store->volume_table.count && strcmp(store->volume_names[at]->name, name) == 0
               ? store->volume_names[at]
               : NULL;
}

struct volume *volume_after(struct store *store, uint64_t id)
{
    const struct id_table *table = &store->volume_table;
    size_t at = id == UINT64_MAX ? table->count : id_place(table, id + 1);
    return at < table->count ? table->items[at].object : NULL;
}

struct chain *chain_by_id(struct store *store, uint64_t id)
{
    return id_find(&store->chain_table, id);
}

int volume_index(struct store *store, struct volume *volume)
{
    size_t count = store->volume_table.count, at = name_place(store, volume->name);
    int result = array_reserve((void **)&store->volume_names, &store->volume_names_capacity, count + 1,
                               sizeof(struct volume *));
    if (result == 0)
        result = id_add(&store->volume_table, volume->id, volume);
    if (result < 0)
        return result;
    memmove(store->volume_names + at + 1, store->volume_names + at, (count - at) * sizeof(struct volume *));
    store->volume_names[at] = volume;
    return 0;
}

void volume_unindex(struct store *store, const struct volume *volume)
{
    size_t at = name_place(store, volume->name);
    id_remove(&store->volume_table, volume->id);
    memmove(store->volume_names + at, store->volume_names + at + 1,
            (store->volume_table.count - at) * sizeof(struct volume *));
}

int chain_index(struct store *store, struct chain *chain)
{
    return id_add(&store->chain_table, chain->id, chain);
}

void chain_unindex(struct store *store, const struct chain *chain)
{
    id_remove(&store->chain_table, chain->id);
}

void catalog_index_destroy(struct store *store)
{
    free(store->volume_table.items);
    free(store->volume_names);
    free(store->chain_table.items);
}
