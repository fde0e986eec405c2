#include "map.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#define MAP_CAPACITY_MIN 64u

/* So many of a hash's high bits say where a key belongs: tables of all sizes have their keys in the same order. */
static unsigned map_shift(const struct map *map)
{
    return (unsigned)__builtin_clzll(map->capacity) + 1;
}

static size_t map_home(const struct map *map, uint64_t key)
{
    /* Fibonacci hashing: node ids count up, the multiplication spreads them over the high bits. */
    return (size_t)((key * UINT64_C(0x9e3779b97f4a7c15)) >> map_shift(map));
}

/* The slot of the key, or the empty one where it belongs. There is always an empty slot: at most 3/4 are taken. */
static struct map_slot *map_slot(const struct map *map, uint64_t key)
{
    size_t at = map_home(map, key);
    while (map->slots[at].key != 0 && map->slots[at].key != key)
        at = (at + 1) & (map->capacity - 1);
    return &map->slots[at];
}

static int map_resize(struct map *map, size_t capacity)
{
    struct map resized = {calloc(capacity, sizeof *resized.slots), capacity, map->count};
    if (resized.slots == NULL)
        return -ENOMEM;
    for (size_t at = 0; at < map->capacity; at++)
        if (map->slots[at].key != 0)
            *map_slot(&resized, map->slots[at].key) = map->slots[at];
    free(map->slots);
    *map = resized;
    return 0;
}

int map_reserve(struct map *map, size_t more)
{
    size_t capacity = map->capacity == 0 ? MAP_CAPACITY_MIN : map->capacity;
    while ((map->count + more) * 4 > capacity * 3)
        capacity *= 2;
    return capacity == map->capacity ? 0 : map_resize(map, capacity);
}

uint64_t *map_get(const struct map *map, uint64_t key)
{
    if (map->capacity == 0)
        return NULL;
    struct map_slot *slot = map_slot(map, key);
    return slot->key == 0 ? NULL : &slot->value;
}

uint64_t *map_insert(struct map *map, uint64_t key)
{
    struct map_slot *slot = map_slot(map, key);
    if (slot->key == 0) {
        *slot = (struct map_slot){key, 0};
        map->count++;
    }
    return &slot->value;
}

void map_remove(struct map *map, uint64_t key, size_t keep)
{
    if (map->capacity == 0)
        return;
    struct map_slot *slot = map_slot(map, key);
    if (slot->key == 0)
        return;
    /* Close the gap: an entry moves into the hole unless its home lies (cyclically) after the hole. */
    size_t mask = map->capacity - 1;
    size_t hole = (size_t)(slot - map->slots);
    for (size_t at = (hole + 1) & mask; map->slots[at].key != 0; at = (at + 1) & mask) {
        size_t home = map_home(map, map->slots[at].key);
        if (((at - home) & mask) >= ((at - hole) & mask)) {
            map->slots[hole] = map->slots[at];
            hole = at;
        }
    }
    map->slots[hole].key = 0;
    map->count--;
    /* A failed shrink leaves the larger table, which serves as well. */
    if (map->capacity > MAP_CAPACITY_MIN && (map->count + keep) * 8 < map->capacity)
        (void)map_resize(map, map->capacity / 2);
}

int map_step(const struct map *map, uint64_t *cursor, size_t homes, int (*visit)(void *argument, uint64_t key),
             void *argument)
{
    if (map->capacity == 0) {
        *cursor = 0;
        return 0;
    }
    /* The cursor is a hash, which means the same place in a table that has grown, and an earlier one in a smaller. */
    size_t first = (size_t)(*cursor >> map_shift(map));
    size_t end = map->capacity - first > homes ? first + homes : map->capacity;
    /* Keys lie at or behind their homes, with no empty slot between; from the last slot it goes on at the first. */
    for (size_t at = first; at < end || map->slots[at & (map->capacity - 1)].key != 0; at++) {
        uint64_t key = map->slots[at & (map->capacity - 1)].key;
        size_t home = key == 0 ? end : map_home(map, key);
        bool wrapped = home > (at & (map->capacity - 1));
        if (home < first || home >= end || wrapped != (at >= map->capacity))
            continue;
        int status = visit(argument, key);
        if (status != 0)
            return status;
    }
    *cursor = end == map->capacity ? 0 : (uint64_t)end << map_shift(map);
    return 0;
}

void map_free(struct map *map)
{
    free(map->slots);
    *map = (struct map){0};
}
