/* A hash table from non-zero 64-bit keys to 64-bit values: open addressing, linear probing, no tombstones. It grows and
 * shrinks with what it holds. Not thread-safe. */
#ifndef COWFS_MAP_H
#define COWFS_MAP_H

#include <stddef.h>
#include <stdint.h>

struct map_slot {
    uint64_t key; /* 0: empty */
    uint64_t value;
};

struct map {
    struct map_slot *slots;
    size_t capacity; /* a power of two, or 0 */
    size_t count;
};

/* Makes room so that `more` insertions cannot fail. */
int map_reserve(struct map *map, size_t more);
/* NULL when absent; valid until the next insertion or removal. */
uint64_t *map_get(const struct map *map, uint64_t key);
/* There must be room. Returns the place of the value, 0 when the key is new. */
uint64_t *map_insert(struct map *map, uint64_t key);
/* `keep` is room for that many insertions that shrinking leaves. */
void map_remove(struct map *map, uint64_t key, size_t keep);
void map_free(struct map *map);

#endif
