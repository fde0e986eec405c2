/* One node's page: sorted items behind a slot array, keys stored without their common prefix.
 *
 * Layout: header, slots growing up, heap of key suffixes and values growing down. A page is the same in memory and on
 * the medium, except that in memory a child pointer's first address may be tagged (see tree.h). Pages are validated
 * once, when read (page_validate); everything else relies on that.
 *
 * Prefix truncation after Bayer and Unterauer, "Prefix B-trees" (1977). */
#ifndef BTREE_NODE_H
#define BTREE_NODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "format.h"
#include "store.h"

/* An item with its key in two parts, as it lies in a page or comes from a caller. */
struct page_item {
    const uint8_t *prefix;
    const uint8_t *suffix;
    const uint8_t *value;
    uint16_t prefix_length;
    uint16_t suffix_length;
    uint16_t value_length;
    uint16_t kind;
};

static inline uint8_t page_level(const uint8_t *page)
{
    return page[NODE_LEVEL];
}

static inline uint16_t page_count(const uint8_t *page)
{
    return load16(page + NODE_COUNT);
}

static inline uint64_t page_birth(const uint8_t *page)
{
    return load64(page + NODE_BIRTH);
}

void page_initialize(uint8_t *page, uint32_t size, uint8_t level, uint64_t birth);
/* 0, or -EUCLEAN with nothing of the page to be used. */
int page_validate(const uint8_t *page, uint32_t size, uint8_t level, uint64_t birth);
/* Largest key + value of an item: so much that a full node and one item more fit in two. */
uint32_t page_item_length_max(uint32_t size);
void page_get(const uint8_t *page, uint16_t slot, struct page_item *item);
/* Copies the whole key of a slot; returns its length (at most STORE_KEY_LENGTH_MAX). */
uint16_t page_copy_key(const uint8_t *page, uint16_t slot, uint8_t *out);
/* First slot whose key is >= key; `exact` tells whether it equals. */
uint16_t page_find(const uint8_t *page, const uint8_t *key, size_t key_length, bool *exact);
/* Slot of the child that covers key in an inner page (count > 0). */
uint16_t page_find_child(const uint8_t *page, const uint8_t *key, size_t key_length);
/* False when it does not fit, even compacted; the page is then unchanged in content. `scratch` is a page. */
bool page_insert(uint8_t *page, uint32_t size, uint16_t slot, const struct page_item *item, uint8_t *scratch);
void page_delete(uint8_t *page, uint16_t slot);
/* Replaces a value of equal length in place. */
void page_overwrite(uint8_t *page, uint16_t slot, const uint8_t *value, uint16_t value_length, uint16_t kind);
/* Builds a page out of items in order; false when they do not fit. */
bool page_build(uint8_t *page, uint32_t size, uint8_t level, uint64_t birth, const struct page_item *items,
                size_t count);
/* Bytes in use: header, slots, prefix and live heap. */
uint32_t page_used(const uint8_t *page, uint32_t size);
uint16_t item_copy_key(const struct page_item *item, uint8_t *out);
int item_compare(const struct page_item *item, const uint8_t *key, size_t key_length);
/* Where to cut a sequence of items in two so that both halves fit: an item appended at the end goes alone to the
 * right, so that ascending inserts leave full nodes. */
size_t page_split_point(const struct page_item *items, size_t count, size_t inserted);

#endif
