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
/* Goes through a map in steps, between which it may change: what is there from the first step to the last is visited
 * at least once. *cursor is 0 at the beginning, and again when all has been visited. A step takes a time that follows
 * `homes`, how many of the places where keys belong it looks at. What `visit` returns ends the step when it is not 0,
 * and leaves *cursor where it was. */
int map_step(const struct map *map, uint64_t *cursor, size_t homes, int (*visit)(void *argument, uint64_t key),
             void *argument);
void map_free(struct map *map);

#endif
