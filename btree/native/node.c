#include "node.h"

#include <errno.h>

static inline const uint8_t *slot_at(const uint8_t *page, uint16_t slot)
{
    return page + NODE_SLOTS + (size_t)slot * SLOT_LENGTH;
}

static inline uint32_t contiguous_free(const uint8_t *page)
{
    return (uint32_t)load16(page + NODE_HEAP_START) - (uint32_t)NODE_SLOTS - page_count(page) * SLOT_LENGTH;
}

/* An empty page but for what lies behind the header, which page_end() sees to. */
static void page_begin(uint8_t *page, uint32_t size, uint8_t level, uint64_t birth)
{
    memset(page, 0, NODE_SLOTS);
    save32(page + NODE_MAGIC_AT, NODE_MAGIC);
    page[NODE_LEVEL] = level;
    save16(page + NODE_HEAP_START, (uint16_t)size);
    save16(page + NODE_PREFIX_OFFSET, (uint16_t)size);
    save64(page + NODE_BIRTH, birth);
}

/* Zeros between slots and heap: what a page held before does not go to the medium. */
static void page_end(uint8_t *page)
{
    memset(page + NODE_SLOTS + (size_t)page_count(page) * SLOT_LENGTH, 0, contiguous_free(page));
}

void page_initialize(uint8_t *page, uint32_t size, uint8_t level, uint64_t birth)
{
    page_begin(page, size, level, birth);
    page_end(page);
}

static int compare_bytes(const uint8_t *a, size_t a_length, const uint8_t *b, size_t b_length)
{
    size_t shared = a_length < b_length ? a_length : b_length;
    int order = shared ? memcmp(a, b, shared) : 0;
    if (order)
        return order;
    return a_length < b_length ? -1 : a_length > b_length;
}

int item_compare(const struct page_item *item, const uint8_t *key, size_t key_length)
{
    size_t shared = item->prefix_length < key_length ? item->prefix_length : key_length;
    int order = shared ? memcmp(item->prefix, key, shared) : 0;
    if (order)
        return order;
    if (key_length < item->prefix_length)
        return 1;
    return compare_bytes(item->suffix, item->suffix_length, key + item->prefix_length,
                         key_length - item->prefix_length);
}

uint32_t page_item_length_max(uint32_t size)
{
    return (size - (uint32_t)NODE_SLOTS - STORE_KEY_LENGTH_MAX) / 4 - SLOT_LENGTH;
}

int page_validate(const uint8_t *page, uint32_t size, uint8_t level, uint64_t birth)
{
    if (load32(page + NODE_MAGIC_AT) != NODE_MAGIC || page[NODE_LEVEL] != level || page[NODE_LEVEL + 1] != 0 ||
        page_birth(page) != birth)
        return -EUCLEAN;
    uint32_t count = page_count(page), heap = load16(page + NODE_HEAP_START);
    uint32_t prefix_offset = load16(page + NODE_PREFIX_OFFSET), prefix_length = load16(page + NODE_PREFIX_LENGTH);
    if (count == 0 || NODE_SLOTS + count * SLOT_LENGTH > heap || heap > size ||
        load16(page + NODE_GARBAGE) > size - heap)
        return -EUCLEAN;
    if (prefix_length > STORE_KEY_LENGTH_MAX || prefix_offset < heap || prefix_offset + prefix_length > size)
        return -EUCLEAN;
    struct page_item previous = {0}, item;
    uint8_t key[STORE_KEY_LENGTH_MAX];
    uint32_t heap_used = prefix_length + load16(page + NODE_GARBAGE);
    for (uint32_t slot = 0; slot < count; slot++) {
        const uint8_t *at = slot_at(page, (uint16_t)slot);
        uint32_t offset = load16(at + SLOT_OFFSET), key_length = load16(at + SLOT_KEY_LENGTH);
        uint32_t value_length = load16(at + SLOT_VALUE_LENGTH) & ~SLOT_KIND_BIT;
        if (offset < heap || offset + key_length + value_length > size ||
            prefix_length + key_length > STORE_KEY_LENGTH_MAX ||
            prefix_length + key_length + value_length > page_item_length_max(size))
            return -EUCLEAN;
        heap_used += key_length + value_length;
        if (level > 0 && value_length != POINTER_LENGTH)
            return -EUCLEAN;
        page_get(page, (uint16_t)slot, &item);
        if (slot > 0 && item_compare(&previous, key, item_copy_key(&item, key)) >= 0)
            return -EUCLEAN;
        if (level == 0 && item.kind == STORE_VALUE_EXTENT) {
            struct store_extent extent;
            if (store_extent_decode(item.value, item.value_length, &extent) < 0)
                return -EUCLEAN;
        }
        previous = item;
    }
    return heap_used == size - heap ? 0 : -EUCLEAN; /* items that overlapped could not be split into two nodes */
}

void page_get(const uint8_t *page, uint16_t slot, struct page_item *item)
{
    const uint8_t *at = slot_at(page, slot);
    uint16_t value = load16(at + SLOT_VALUE_LENGTH);
    item->prefix = page + load16(page + NODE_PREFIX_OFFSET);
    item->prefix_length = load16(page + NODE_PREFIX_LENGTH);
    item->suffix = page + load16(at + SLOT_OFFSET);
    item->suffix_length = load16(at + SLOT_KEY_LENGTH);
    item->value = item->suffix + item->suffix_length;
    item->value_length = (uint16_t)(value & ~SLOT_KIND_BIT);
    item->kind = (value & SLOT_KIND_BIT) ? STORE_VALUE_EXTENT : STORE_VALUE_PLAIN;
}

uint16_t item_copy_key(const struct page_item *item, uint8_t *out)
{
    if (item->prefix_length)
        memcpy(out, item->prefix, item->prefix_length);
    if (item->suffix_length)
        memcpy(out + item->prefix_length, item->suffix, item->suffix_length);
    return (uint16_t)(item->prefix_length + item->suffix_length);
}

uint16_t page_copy_key(const uint8_t *page, uint16_t slot, uint8_t *out)
{
    struct page_item item;
    page_get(page, slot, &item);
    return item_copy_key(&item, out);
}

/* Keys as numbers of eight bytes that sort like them, zeros behind the last byte. Two comparisons decide nearly always:
 * file systems' keys are an inode number, a type and a number. */
#define PROBE_WORDS 3u
struct probe {
    const uint8_t *key;
    size_t length;
    uint64_t words[PROBE_WORDS];
};

static inline void probe_set(struct probe *probe, const uint8_t *key, size_t length)
{
    uint8_t bytes[8 * PROBE_WORDS] = {0};
    if (length)
        memcpy(bytes, key, length < sizeof bytes ? length : sizeof bytes);
    probe->key = key;
    probe->length = length;
    for (uint32_t i = 0; i < PROBE_WORDS; i++)
        probe->words[i] = load64_big(bytes + 8 * i);
}

/* How a key in a page compares. Of the last word's bytes those in front are shifted out, of which a page always has
 * eight: reading behind the key could leave the page. */
static inline int probe_compare(const uint8_t *key, uint32_t length, const struct probe *probe)
{
    for (uint32_t word = 0; word < PROBE_WORDS; word++) {
        uint32_t at = 8 * word;
        uint64_t value = 0;
        if (length >= at + 8)
            value = load64_big(key + at);
        else if (length > at)
            value = load64_big(key + length - 8) << (8 * (at + 8 - length));
        if (value != probe->words[word])
            return value < probe->words[word] ? -1 : 1;
        if (length <= at + 8 && probe->length <= at + 8)
            return length < probe->length ? -1 : length > probe->length;
    }
    return compare_bytes(key, length, probe->key, probe->length);
}

uint16_t page_find(const uint8_t *page, const uint8_t *key, size_t key_length, bool *exact)
{
    uint16_t prefix_length = load16(page + NODE_PREFIX_LENGTH), count = page_count(page);
    *exact = false;
    if (count == 0)
        return 0;
    size_t shared = key_length < prefix_length ? key_length : prefix_length;
    int order = shared ? memcmp(key, page + load16(page + NODE_PREFIX_OFFSET), shared) : 0;
    if (order < 0 || (order == 0 && key_length < prefix_length))
        return 0;
    if (order > 0)
        return count;
    key += prefix_length;
    key_length -= prefix_length;
    struct probe probe;
    probe_set(&probe, key, key_length);
    /* invariant: keys of slots < low are less than key, keys of slots >= high are not */
    uint16_t low = 0, high = count;
    while (low < high) {
        uint16_t middle = (uint16_t)((low + high) / 2);
        const uint8_t *at = slot_at(page, middle);
        order = probe_compare(page + load16(at + SLOT_OFFSET), load16(at + SLOT_KEY_LENGTH), &probe);
        if (order == 0) {
            *exact = true;
            return middle;
        }
        if (order < 0)
            low = (uint16_t)(middle + 1);
        else
            high = middle;
    }
    return low;
}

uint16_t page_find_child(const uint8_t *page, const uint8_t *key, size_t key_length)
{
    bool exact;
    uint16_t slot = page_find(page, key, key_length, &exact);
    return (uint16_t)(exact || slot == 0 ? slot : slot - 1);
}

static uint8_t item_key_byte(const struct page_item *item, size_t index)
{
    return index < item->prefix_length ? item->prefix[index] : item->suffix[index - item->prefix_length];
}

static size_t item_key_length(const struct page_item *item)
{
    return (size_t)item->prefix_length + item->suffix_length;
}

static size_t common_prefix(const struct page_item *a, const struct page_item *b)
{
    size_t limit = item_key_length(a), other = item_key_length(b), index = 0;
    if (other < limit)
        limit = other;
    if (a->prefix == b->prefix)
        index = a->prefix_length < b->prefix_length ? a->prefix_length : b->prefix_length;
    while (index < limit && item_key_byte(a, index) == item_key_byte(b, index))
        index++;
    return index;
}

static void copy_key_part(uint8_t *out, const struct page_item *item, size_t from)
{
    if (from < item->prefix_length) {
        memcpy(out, item->prefix + from, item->prefix_length - from);
        out += item->prefix_length - from;
        from = item->prefix_length;
    }
    size_t skip = from - item->prefix_length;
    if (skip < item->suffix_length)
        memcpy(out, item->suffix + skip, item->suffix_length - skip);
}

bool page_build(uint8_t *page, uint32_t size, uint8_t level, uint64_t birth, const struct page_item *items,
                size_t count)
{
    size_t prefix_length = count > 1 ? common_prefix(&items[0], &items[count - 1]) : 0;
    size_t need = NODE_SLOTS + count * SLOT_LENGTH + prefix_length;
    for (size_t i = 0; i < count; i++)
        need += item_key_length(&items[i]) - prefix_length + items[i].value_length;
    if (need > size)
        return false;
    page_begin(page, size, level, birth);
    uint32_t heap = size - (uint32_t)prefix_length;
    if (prefix_length) {
        struct page_item cut = items[0];
        if (prefix_length <= cut.prefix_length) {
            cut.prefix_length = (uint16_t)prefix_length;
            cut.suffix_length = 0;
        } else {
            cut.suffix_length = (uint16_t)(prefix_length - cut.prefix_length);
        }
        copy_key_part(page + heap, &cut, 0);
    }
    save16(page + NODE_PREFIX_OFFSET, (uint16_t)heap);
    save16(page + NODE_PREFIX_LENGTH, (uint16_t)prefix_length);
    for (size_t i = 0; i < count; i++) {
        size_t suffix_length = item_key_length(&items[i]) - prefix_length;
        heap -= (uint32_t)suffix_length + items[i].value_length;
        copy_key_part(page + heap, &items[i], prefix_length);
        if (items[i].value_length)
            memcpy(page + heap + suffix_length, items[i].value, items[i].value_length);
        uint8_t *at = page + NODE_SLOTS + i * SLOT_LENGTH;
        save16(at + SLOT_OFFSET, (uint16_t)heap);
        save16(at + SLOT_KEY_LENGTH, (uint16_t)suffix_length);
        save16(at + SLOT_VALUE_LENGTH, (uint16_t)(items[i].value_length | (items[i].kind ? SLOT_KIND_BIT : 0)));
    }
    save16(page + NODE_HEAP_START, (uint16_t)heap);
    save16(page + NODE_COUNT, (uint16_t)count);
    page_end(page);
    return true;
}

uint32_t page_used(const uint8_t *page, uint32_t size)
{
    return (uint32_t)NODE_SLOTS + page_count(page) * SLOT_LENGTH + size - load16(page + NODE_HEAP_START) -
           load16(page + NODE_GARBAGE);
}

/* Opens a gap for the item in a page where its suffix fits as it is. */
static void insert_suffix(uint8_t *page, uint16_t slot, const struct page_item *item, size_t skip)
{
    size_t suffix_length = item_key_length(item) - skip;
    uint16_t count = page_count(page);
    uint16_t heap = (uint16_t)(load16(page + NODE_HEAP_START) - suffix_length - item->value_length);
    copy_key_part(page + heap, item, skip);
    if (item->value_length)
        memcpy(page + heap + suffix_length, item->value, item->value_length);
    uint8_t *at = page + NODE_SLOTS + (size_t)slot * SLOT_LENGTH;
    memmove(at + SLOT_LENGTH, at, (size_t)(count - slot) * SLOT_LENGTH);
    save16(at + SLOT_OFFSET, heap);
    save16(at + SLOT_KEY_LENGTH, (uint16_t)suffix_length);
    save16(at + SLOT_VALUE_LENGTH, (uint16_t)(item->value_length | (item->kind ? SLOT_KIND_BIT : 0)));
    save16(page + NODE_HEAP_START, heap);
    save16(page + NODE_COUNT, (uint16_t)(count + 1));
}

/* The same of an item as it lies in another page with the same prefix, behind the last slot. */
static void append_suffix(uint8_t *page, uint16_t slot, const uint8_t *other, uint16_t other_slot)
{
    const uint8_t *from = slot_at(other, other_slot);
    uint8_t *at = page + NODE_SLOTS + (size_t)slot * SLOT_LENGTH;
    uint32_t length = (uint32_t)load16(from + SLOT_KEY_LENGTH) + (load16(from + SLOT_VALUE_LENGTH) & ~SLOT_KIND_BIT);
    uint16_t heap = (uint16_t)(load16(page + NODE_HEAP_START) - length);
    memcpy(page + heap, other + load16(from + SLOT_OFFSET), length);
    memcpy(at, from, SLOT_LENGTH);
    save16(at + SLOT_OFFSET, heap);
    save16(page + NODE_HEAP_START, heap);
    save16(page + NODE_COUNT, (uint16_t)(slot + 1));
}

static bool has_prefix(const uint8_t *page, const struct page_item *item)
{
    uint16_t prefix_length = load16(page + NODE_PREFIX_LENGTH);
    const uint8_t *prefix = page + load16(page + NODE_PREFIX_OFFSET);
    if (item_key_length(item) < prefix_length)
        return false;
    if (item->prefix_length == 0)
        return prefix_length == 0 || memcmp(item->suffix, prefix, prefix_length) == 0;
    for (uint16_t i = 0; i < prefix_length; i++)
        if (item_key_byte(item, i) != prefix[i])
            return false;
    return true;
}

/* Rewrites the page with the longest prefix that its items and the new one share, when all of it fits. */
static bool rebuild_with(uint8_t *page, uint32_t size, uint16_t slot, const struct page_item *item, uint8_t *scratch)
{
    uint16_t count = page_count(page), old_prefix = load16(page + NODE_PREFIX_LENGTH);
    struct page_item first, last, old;
    page_get(page, 0, &first);
    page_get(page, (uint16_t)(count - 1), &last);
    if (slot == 0)
        first = *item;
    if (slot == count)
        last = *item;
    size_t prefix_length = common_prefix(&first, &last);
    size_t need = NODE_SLOTS + (size_t)(count + 1) * SLOT_LENGTH + prefix_length +
                  (item_key_length(item) - prefix_length) + item->value_length;
    for (uint16_t i = 0; i < count; i++) {
        const uint8_t *at = slot_at(page, i);
        need += (size_t)load16(at + SLOT_KEY_LENGTH) + old_prefix - prefix_length +
                (load16(at + SLOT_VALUE_LENGTH) & ~SLOT_KIND_BIT);
    }
    if (need > size)
        return false;
    page_begin(scratch, size, page_level(page), page_birth(page));
    struct page_item cut = first;
    uint32_t heap = size - (uint32_t)prefix_length;
    for (size_t i = 0; i < prefix_length; i++)
        scratch[heap + i] = item_key_byte(&cut, i);
    save16(scratch + NODE_PREFIX_OFFSET, (uint16_t)heap);
    save16(scratch + NODE_PREFIX_LENGTH, (uint16_t)prefix_length);
    save16(scratch + NODE_HEAP_START, (uint16_t)heap);
    for (uint16_t i = 0, out = 0; i <= count; i++) {
        if (i == slot)
            insert_suffix(scratch, out++, item, prefix_length);
        if (i == count)
            break;
        if (prefix_length == old_prefix) {
            append_suffix(scratch, out++, page, i);
        } else {
            page_get(page, i, &old);
            insert_suffix(scratch, out++, &old, prefix_length);
        }
    }
    page_end(scratch);
    memcpy(page, scratch, size);
    return true;
}

bool page_insert(uint8_t *page, uint32_t size, uint16_t slot, const struct page_item *item, uint8_t *scratch)
{
    if (page_count(page) == 0)
        return page_build(page, size, page_level(page), page_birth(page), item, 1);
    uint16_t prefix_length = load16(page + NODE_PREFIX_LENGTH);
    if (has_prefix(page, item)) {
        size_t need = SLOT_LENGTH + item_key_length(item) - prefix_length + item->value_length;
        if (need <= contiguous_free(page)) {
            insert_suffix(page, slot, item, prefix_length);
            return true;
        }
    }
    return rebuild_with(page, size, slot, item, scratch);
}

void page_delete(uint8_t *page, uint16_t slot)
{
    uint16_t count = page_count(page);
    uint8_t *at = page + NODE_SLOTS + (size_t)slot * SLOT_LENGTH;
    uint32_t length = (uint32_t)load16(at + SLOT_KEY_LENGTH) + (load16(at + SLOT_VALUE_LENGTH) & ~SLOT_KIND_BIT);
    save16(page + NODE_GARBAGE, (uint16_t)(load16(page + NODE_GARBAGE) + length));
    memmove(at, at + SLOT_LENGTH, (size_t)(count - slot - 1) * SLOT_LENGTH);
    save16(page + NODE_COUNT, (uint16_t)(count - 1));
}

void page_overwrite(uint8_t *page, uint16_t slot, const uint8_t *value, uint16_t value_length, uint16_t kind)
{
    uint8_t *at = page + NODE_SLOTS + (size_t)slot * SLOT_LENGTH;
    uint8_t *to = page + load16(at + SLOT_OFFSET) + load16(at + SLOT_KEY_LENGTH);
    if (value_length)
        memcpy(to, value, value_length);
    save16(at + SLOT_VALUE_LENGTH, (uint16_t)(value_length | (kind ? SLOT_KIND_BIT : 0)));
}

size_t page_split_point(const struct page_item *items, size_t count, size_t inserted)
{
    if (inserted == count - 1)
        return count - 1;
    if (inserted == 0 && common_prefix(&items[0], &items[1]) < items[1].prefix_length)
        return 1;
    size_t total = 0, left = 0, shared = common_prefix(&items[0], &items[count - 1]);
    for (size_t i = 0; i < count; i++)
        total += SLOT_LENGTH + item_key_length(&items[i]) - shared + items[i].value_length;
    for (size_t i = 0; i < count - 1; i++) {
        left += SLOT_LENGTH + item_key_length(&items[i]) - shared + items[i].value_length;
        if (left * 2 >= total)
            return i + 1;
    }
    return count - 1;
}
