/* Differences of two trees in key order. Two walkers move through them; where both stand before the same subtree
 * (equal pointers) they step over it unread, so the cost follows the differences, not the sizes. */
#include <errno.h>

#include "internal.h"

/* Stands before an entry: of an inner node, or at level 0 an item. The root counts as the only entry of a level above
 * it. */
struct walker {
    struct node *nodes[STORE_TREE_HEIGHT_MAX + 1];
    uint16_t slots[STORE_TREE_HEIGHT_MAX + 1];
    struct tree_root root;
    uint8_t level; /* of the node whose slot it stands before */
    bool end;
    uint8_t key[STORE_KEY_LENGTH_MAX];
    uint16_t key_length;
    uint8_t passed[STORE_KEY_LENGTH_MAX]; /* key of the last item, when there was one */
    uint16_t passed_length;
    bool any_passed;
};

struct diff {
    struct store *store;
    const uint8_t *start;
    size_t start_length;
    struct miss miss;
};

static void walker_load_key(struct walker *walker)
{
    walker->key_length = 0;
    if (!walker->end && walker->level <= walker->root.level)
        walker->key_length = page_copy_key(walker->nodes[walker->level]->page, walker->slots[walker->level],
                                           walker->key);
}

static void walker_begin(struct walker *walker, const struct tree_root *root)
{
    walker->root = *root;
    walker->any_passed = false;
    walker->passed_length = 0;
    walker->level = (uint8_t)(root->level + 1);
    walker->end = root->pointer.address[0] == 0;
    walker_load_key(walker);
}

static void walker_pointer(const struct walker *walker, struct tree_pointer *pointer)
{
    if (walker->level > walker->root.level) {
        *pointer = walker->root.pointer;
        return;
    }
    struct page_item item;
    page_get(walker->nodes[walker->level]->page, walker->slots[walker->level], &item);
    pointer_load(item.value, pointer);
}

/* Past the entry, over all that is below it. */
static void walker_next(struct walker *walker)
{
    while (walker->level <= walker->root.level) {
        if (++walker->slots[walker->level] < page_count(walker->nodes[walker->level]->page)) {
            walker_load_key(walker);
            return;
        }
        walker->level++;
    }
    walker->end = true;
}

/* Into the entry's child, to its first entry that may hold keys >= start. */
static int walker_descend(struct diff *diff, struct walker *walker)
{
    struct tree_pointer pointer;
    walker_pointer(walker, &pointer);
    struct node *node = cache_resolve(diff->store, &pointer, (uint8_t)(walker->level - 1));
    if (!node) {
        diff->miss.pointer = pointer;
        diff->miss.level = (uint8_t)(walker->level - 1);
        return STORE_AGAIN;
    }
    bool exact;
    walker->level--;
    walker->nodes[walker->level] = node;
    walker->slots[walker->level] = walker->level ? page_find_child(node->page, diff->start, diff->start_length)
                                                 : page_find(node->page, diff->start, diff->start_length, &exact);
    if (walker->slots[walker->level] < page_count(node->page)) {
        walker_load_key(walker);
    } else {
        walker->slots[walker->level]--;
        walker_next(walker);
    }
    return 0;
}

static int key_compare(const struct walker *a, const struct walker *b)
{
    uint16_t shared = a->key_length < b->key_length ? a->key_length : b->key_length;
    int order = shared ? memcmp(a->key, b->key, shared) : 0;
    return order ? order : (int)a->key_length - (int)b->key_length;
}

static void walker_item(const struct walker *walker, struct store_item *out)
{
    struct page_item item;
    page_get(walker->nodes[0]->page, walker->slots[0], &item);
    *out = (struct store_item){.key = walker->key,
                               .key_length = walker->key_length,
                               .value = item.value,
                               .value_length = item.value_length,
                               .kind = (enum store_value_kind)item.kind};
}

static int walker_compare(const struct walker *walker, const uint8_t *key, size_t key_length)
{
    size_t shared = walker->key_length < key_length ? walker->key_length : key_length;
    int order = shared ? memcmp(walker->key, key, shared) : 0;
    return order ? order : walker->key_length < key_length ? -1 : walker->key_length > key_length;
}

/* Whether the item before the walker comes after the last one and not before the start, which in a forged tree it need
 * not: without end, when a leaf is met again. */
static bool walker_ascends(const struct diff *diff, struct walker *walker)
{
    if (walker->any_passed ? walker_compare(walker, walker->passed, walker->passed_length) <= 0
                           : walker_compare(walker, diff->start, diff->start_length) < 0)
        return false;
    memcpy(walker->passed, walker->key, walker->key_length);
    walker->passed_length = walker->key_length;
    walker->any_passed = true;
    return true;
}

static bool same_subtree(const struct walker *a, const struct walker *b)
{
    struct tree_pointer left, right;
    if (a->level == 0 || a->level != b->level)
        return false;
    walker_pointer(a, &left);
    walker_pointer(b, &right);
    return left.address[0] == right.address[0] && left.birth == right.birth;
}

/* One step of the two; emits at most one difference. `emitted` takes the key. */
static int diff_step(struct diff *diff, struct walker *a, struct walker *b, store_difference callback,
                     void *argument, uint8_t *emitted, uint16_t *emitted_length)
{
    if (!a->end && !b->end && same_subtree(a, b)) {
        walker_next(a);
        walker_next(b);
        return 0;
    }
    int order = a->end ? 1 : b->end ? -1 : key_compare(a, b);
    if (order <= 0 && a->level > 0 && (order < 0 || a->level >= b->level))
        return walker_descend(diff, a);
    if (order >= 0 && b->level > 0)
        return walker_descend(diff, b);
    if (order == 0 && a->level > 0)
        return walker_descend(diff, a);
    struct store_item old_item, new_item;
    const struct walker *source = order <= 0 ? a : b;
    int result = 0;
    if (order <= 0)
        walker_item(a, &old_item);
    if (order >= 0)
        walker_item(b, &new_item);
    if ((order <= 0 && !walker_ascends(diff, a)) || (order >= 0 && !walker_ascends(diff, b)))
        return -EUCLEAN;
    bool equal = order == 0 && old_item.kind == new_item.kind && old_item.value_length == new_item.value_length &&
                 memcmp(old_item.value, new_item.value, old_item.value_length) == 0;
    memcpy(emitted, source->key, source->key_length);
    *emitted_length = source->key_length;
    if (!equal)
        result = callback(argument, order <= 0 ? &old_item : NULL, order >= 0 ? &new_item : NULL);
    if (order <= 0)
        walker_next(a);
    if (order >= 0)
        walker_next(b);
    return result;
}

/* Steps in one holding of the lock, so that a long walk does not stop the foreground. */
#define STEPS_PER_LOCK 2000u

/* Goes on from `next_key`, which it moves on; 0 when done, STORE_AGAIN when there is more. */
static int diff_some(struct diff *diff, uint64_t old_id, uint64_t new_id, store_difference callback, void *argument,
                     uint8_t *next_key, size_t *next_length, int *stopped)
{
    struct walker a, b;
    struct chain *chain;
    uint8_t emitted[STORE_KEY_LENGTH_MAX];
    uint16_t emitted_length = 0;
    int result = 0;
    bool any = false;
    static const struct tree_root empty;
    const struct tree_root *old_root = old_id ? object_root(diff->store, old_id, &chain) : &empty;
    const struct tree_root *new_root = object_root(diff->store, new_id, &chain);
    if (!old_root || !new_root)
        return -ENOENT;
    walker_begin(&a, old_root);
    walker_begin(&b, new_root);
    for (unsigned step = 0; result == 0 && !(a.end && b.end); step++) {
        emitted_length = 0;
        if (step >= STEPS_PER_LOCK && any) {
            result = STORE_AGAIN;
            diff->miss.pointer.address[0] = 0;
            break;
        }
        result = diff_step(diff, &a, &b, callback, argument, emitted, &emitted_length);
        if (emitted_length) {
            any = true;
            memcpy(next_key, emitted, emitted_length);
            next_key[emitted_length] = 0; /* the least key after it */
            *next_length = emitted_length + 1u;
            if (result != 0) {
                *stopped = result;
                return 0;
            }
        }
    }
    return result;
}

int store_diff(struct store *store, uint64_t old_object_id, uint64_t new_object_id, const void *start,
               size_t start_length, store_difference callback, void *argument)
{
    uint8_t next_key[STORE_KEY_LENGTH_MAX + 1], start_key[STORE_KEY_LENGTH_MAX + 1];
    struct tree_pointer failed = {0};
    size_t next_length = start_length;
    if (start_length > STORE_KEY_LENGTH_MAX)
        return -EINVAL;
    if (start_length)
        memcpy(next_key, start, start_length);
    for (;;) {
        int stopped = 0;
        struct diff diff = {.store = store, .start = start_key, .start_length = next_length};
        memcpy(start_key, next_key, next_length);
        pthread_mutex_lock(&store->lock);
        int result = diff_some(&diff, old_object_id, new_object_id, callback, argument, next_key, &next_length,
                               &stopped);
        pthread_mutex_unlock(&store->lock);
        if (stopped)
            return stopped;
        if (result != STORE_AGAIN)
            return result;
        if (diff.miss.pointer.address[0]) {
            result = cache_load(store, &diff.miss.pointer, diff.miss.level, &failed);
            if (result < 0)
                return result;
        }
    }
}
