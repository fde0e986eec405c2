/* The copy-on-write B-tree: descents, changes with path copying, cursors. Under the store lock, on nodes in memory;
 * what is not in memory is reported as a miss and read by the caller with the lock released.
 *
 * Path copying after Rodeh, "B-trees, Shadowing, and Clones" (2008), without reference counts: who owns a block
 * follows from birth epochs and dead buckets (deadlist.c). Invariant I1 is kept by `writable`: only an unwritten
 * node younger than every snapshot and every checkpoint of its chain is changed in place. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

static void page_pointer(const uint8_t *page, uint16_t slot, struct tree_pointer *pointer)
{
    struct page_item item;
    page_get(page, slot, &item);
    pointer_load(item.value, pointer);
}

/* ---- what descents remember ----------------------------------------------------------------------------------- */

/* Narrows the reach to one child. The key of slot 0 bounds nothing: smaller keys lead there too. */
static void reach_narrow(struct reach *reach, const uint8_t *page, uint16_t slot)
{
    if (slot > 0) {
        reach->lower_page = page;
        reach->lower_slot = slot;
    }
    if (slot + 1 < page_count(page)) {
        reach->upper_page = page;
        reach->upper_slot = (uint16_t)(slot + 1);
    }
}

static bool reach_covers(const struct reach *reach, const uint8_t *key, size_t key_length)
{
    struct page_item bound;
    if (reach->lower_page) {
        page_get(reach->lower_page, reach->lower_slot, &bound);
        if (item_compare(&bound, key, key_length) > 0)
            return false;
    }
    if (!reach->upper_page)
        return true;
    page_get(reach->upper_page, reach->upper_slot, &bound);
    return item_compare(&bound, key, key_length) > 0;
}

static struct node *known_leaf(const struct known_leaves *known, const uint8_t *key, size_t key_length)
{
    for (unsigned i = 0; i < known->count; i++)
        if (reach_covers(&known->items[i].reach, key, key_length))
            return known->items[i].leaf;
    return NULL;
}

static void remember(struct known_leaves *known, struct node *leaf, const struct reach *reach)
{
    known->items[known->next].leaf = leaf;
    known->items[known->next].reach = *reach;
    known->next = (known->next + 1) % KNOWN_LEAVES_MAX;
    if (known->count < KNOWN_LEAVES_MAX)
        known->count++;
}

static struct node *descend(struct store *store, const struct tree_root *root, struct known_leaves *known,
                            const uint8_t *key, size_t key_length, struct miss *miss)
{
    struct tree_pointer pointer = root->pointer;
    struct reach reach = {0};
    uint8_t level = root->level;
    struct node *node = known ? known_leaf(known, key, key_length) : NULL;
    if (node)
        return node;
    for (;;) {
        node = cache_resolve(store, &pointer, level);
        if (!node) {
            miss->pointer = pointer;
            miss->level = level;
            return NULL;
        }
        if (level == 0)
            break;
        uint16_t slot = page_find_child(node->page, key, key_length);
        reach_narrow(&reach, node->page, slot);
        page_pointer(node->page, slot, &pointer);
        level--;
    }
    if (known)
        remember(known, node, &reach);
    return node;
}

int tree_get(struct store *store, const struct tree_root *root, struct known_leaves *known, const uint8_t *key,
             size_t key_length, struct page_item *item, struct miss *miss)
{
    if (root->pointer.address[0] == 0)
        return -ENOENT;
    struct node *leaf = descend(store, root, known, key, key_length, miss);
    if (!leaf)
        return STORE_AGAIN;
    bool exact;
    uint16_t slot = page_find(leaf->page, key, key_length, &exact);
    if (!exact)
        return -ENOENT;
    page_get(leaf->page, slot, item);
    return 0;
}

/* A node that was read may have been forged to hold keys that belong elsewhere. It is asked before it is copied for a
 * change: from then on it is this parent's alone, and changes keep it in its place. */
static bool node_in_reach(const struct node *node, const struct reach *reach)
{
    uint8_t first[STORE_KEY_LENGTH_MAX], last[STORE_KEY_LENGTH_MAX];
    if (node->state == NODE_DIRTY)
        return true;
    uint16_t first_length = page_copy_key(node->page, 0, first);
    uint16_t last_length = page_copy_key(node->page, (uint16_t)(page_count(node->page) - 1), last);
    return reach_covers(reach, first, first_length) && reach_covers(reach, last, last_length);
}

int tree_prepare(struct store *store, const struct tree_root *root, struct known_leaves *known, const uint8_t *key,
                 size_t key_length, struct miss *miss)
{
    if (root->pointer.address[0] == 0)
        return 0;
    if (root->level > STORE_TREE_HEIGHT_MAX - 3) /* forged; one batch of changes may make a tree two levels higher */
        return -EUCLEAN;
    struct node *node = known ? known_leaf(known, key, key_length) : NULL;
    if (node && node->state == NODE_DIRTY)
        return 0;
    struct tree_pointer pointer = root->pointer;
    struct reach reach = {0};
    for (uint8_t level = root->level;; level--) {
        node = cache_resolve(store, &pointer, level);
        if (!node) {
            miss->pointer = pointer;
            miss->level = level;
            return STORE_AGAIN;
        }
        if (!node_in_reach(node, &reach))
            return -EUCLEAN;
        if (level == 0)
            break;
        uint16_t slot = page_find_child(node->page, key, key_length);
        reach_narrow(&reach, node->page, slot);
        page_pointer(node->page, slot, &pointer);
    }
    if (known)
        remember(known, node, &reach);
    return 0;
}

/* ---- changes -------------------------------------------------------------------------------------------------- */

/* The system tree is changed while the foreground may raise the epoch: its nodes are of the epoch that the checkpoint's
 * superblock will name. */
static uint64_t birth_now(const struct store *store, const struct chain *chain)
{
    return chain->is_system ? store->checkpoint.frozen_epoch + 1 : store->epoch;
}

static struct node *new_node(struct store *store, struct chain *chain, uint8_t level)
{
    struct node *node = node_allocate(store);
    node->birth = birth_now(store, chain);
    node->level = level;
    node->state = NODE_DIRTY;
    node->system = chain->is_system;
    page_initialize(node->page, store->node_size, level, node->birth);
    dirty_list_add(store, node);
    chain->head.node_count++;
    return node;
}

static bool writable(const struct store *store, const struct chain *chain, const struct node *node)
{
    return node->state == NODE_DIRTY && (node->birth > chain_floor(chain) || MUTATED(COPY_FOR_SNAPSHOT)) &&
           (!store->checkpoint.running || node->birth > store->checkpoint.frozen_epoch ||
            MUTATED(COPY_FOR_CHECKPOINT));
}

static void tagged_pointer(const struct node *node, struct tree_pointer *pointer)
{
    *pointer = (struct tree_pointer){.address = {node_tag(node), 0}, .birth = node->birth};
}

static void set_child(struct node *parent, uint16_t slot, const struct node *child)
{
    struct tree_pointer pointer;
    uint8_t value[POINTER_LENGTH];
    tagged_pointer(child, &pointer);
    pointer_save(value, &pointer);
    page_overwrite(parent->page, slot, value, POINTER_LENGTH, STORE_VALUE_PLAIN);
}

static void set_root(struct chain *chain, const struct node *node)
{
    tagged_pointer(node, &chain->head.pointer);
    chain->head.level = node->level;
}

/* The node of a path at `level`, copied first where it may not be changed in place. */
static struct node *make_writable(struct store *store, struct chain *chain, const struct tree_pointer *pointer,
                                  struct node *node)
{
    if (writable(store, chain, node))
        return node;
    struct node *copy = node_allocate(store);
    memcpy(copy->page, node->page, store->node_size);
    copy->birth = birth_now(store, chain);
    copy->level = node->level;
    copy->state = NODE_DIRTY;
    copy->system = chain->is_system;
    save64(copy->page + NODE_BIRTH, copy->birth);
    dirty_list_add(store, copy);
    chain->head.node_count++;
    store->counters.nodes_copied++;
    kill_node(store, chain, pointer);
    return copy;
}

/* The way down to the leaf of key, unless the path leads there already. The tree is not empty. */
static void path_find(struct store *store, const struct chain *chain, const uint8_t *key, size_t key_length,
                      struct path *path)
{
    if (path->valid && reach_covers(&path->reach, key, key_length))
        return;
    struct tree_pointer pointer = chain->head.pointer;
    path->valid = true;
    path->writable = false;
    path->reach = (struct reach){0};
    path->height = chain->head.level;
    for (uint8_t level = path->height;; level--) {
        struct node *node = path->nodes[level] = cache_resolve(store, &pointer, level);
        if (level == 0)
            return;
        uint16_t slot = path->slots[level - 1] = page_find_child(node->page, key, key_length);
        reach_narrow(&path->reach, node->page, slot);
        page_pointer(node->page, slot, &pointer);
    }
}

/* Copies what may not be changed in place, from the root on. */
static void path_make_writable(struct store *store, struct chain *chain, struct path *path)
{
    if (path->writable)
        return;
    path->writable = true;
    path->reach = (struct reach){0};
    for (uint8_t level = path->height;; level--) {
        struct tree_pointer pointer = chain->head.pointer;
        struct node *parent = level == path->height ? NULL : path->nodes[level + 1], *present = path->nodes[level];
        if (parent)
            page_pointer(parent->page, path->slots[level], &pointer);
        struct node *node = path->nodes[level] = make_writable(store, chain, &pointer, present);
        node->resolved = 0; /* joining it with a neighbour would bring that one's tagged pointers */
        if (!parent)
            set_root(chain, node);
        else if (node != present)
            set_child(parent, path->slots[level], node);
        if (level == 0)
            return;
        reach_narrow(&path->reach, node->page, path->slots[level - 1]);
    }
}

static void descend_writable(struct store *store, struct chain *chain, const uint8_t *key, size_t key_length,
                             struct path *path)
{
    path_find(store, chain, key, key_length, path);
    path_make_writable(store, chain, path);
}

/* Shortest key that is greater than every key on the left and not greater than the first on the right; inner nodes
 * keep their full separators. */
static uint16_t separator(const uint8_t *left, const uint8_t *right, uint8_t *out)
{
    uint8_t last[STORE_KEY_LENGTH_MAX];
    uint16_t length = page_copy_key(right, 0, out);
    if (page_level(left) > 0)
        return length;
    uint16_t last_length = page_copy_key(left, (uint16_t)(page_count(left) - 1), last);
    uint16_t shared = 0;
    while (shared < last_length && shared < length && last[shared] == out[shared])
        shared++;
    return (uint16_t)(shared < length ? shared + 1 : length);
}

/* Cuts a full node in two with the new item in its place; the new right sibling is returned. */
static struct node *split_insert(struct store *store, struct chain *chain, struct node *node,
                                 uint16_t slot, const struct page_item *item)
{
    struct page_item *items = store->scratch_items;
    uint16_t count = page_count(node->page);
    for (uint16_t i = 0; i < count; i++)
        page_get(node->page, i, &items[i < slot ? i : i + 1]);
    items[slot] = *item;
    size_t cut = page_split_point(items, (size_t)count + 1, slot);
    struct node *right = new_node(store, chain, node->level);
    /* an item is at most a quarter of a node, so halves fit; going on with lost items would be worse than ending */
    if (!page_build(right->page, store->node_size, node->level, right->birth, items + cut, (size_t)count + 1 - cut) ||
        !page_build(store->scratch_page, store->node_size, node->level, page_birth(node->page), items, cut))
        abort();
    memcpy(node->page, store->scratch_page, store->node_size);
    return right;
}

static void insert_at(struct store *store, struct chain *chain, struct path *path, uint8_t level, uint16_t slot,
                      const struct page_item *item)
{
    struct node *node = path->nodes[level];
    if (page_insert(node->page, store->node_size, slot, item, store->scratch_page))
        return;
    path->valid = false;
    struct node *right = split_insert(store, chain, node, slot, item);
    uint8_t key[STORE_KEY_LENGTH_MAX], value[POINTER_LENGTH];
    struct tree_pointer pointer;
    tagged_pointer(right, &pointer);
    pointer_save(value, &pointer);
    struct page_item entry = {.suffix = key, .value = value, .value_length = POINTER_LENGTH};
    entry.suffix_length = separator(node->page, right->page, key);
    if (level < path->height) {
        insert_at(store, chain, path, (uint8_t)(level + 1), (uint16_t)(path->slots[level] + 1), &entry);
        return;
    }
    struct node *root = new_node(store, chain, (uint8_t)(level + 1));
    uint8_t left_key[STORE_KEY_LENGTH_MAX], left_value[POINTER_LENGTH];
    tagged_pointer(node, &pointer);
    pointer_save(left_value, &pointer);
    struct page_item items[2] = {{.suffix = left_key, .value = left_value, .value_length = POINTER_LENGTH}, entry};
    items[0].suffix_length = 0;
    page_build(root->page, store->node_size, root->level, root->birth, items, 2);
    set_root(chain, root);
}

/* Smaller keys lead to slot 0 too. Where its node took the place of one that went, they may be smaller than all keys
 * of inner nodes on the way: these then get the bound that their parent has for them, or what the leaf is split by
 * would be less than the key before it. False when that has split a node: the path leads nowhere then. */
static bool path_lower(struct store *store, struct chain *chain, struct path *path, const uint8_t *key,
                       size_t key_length)
{
    for (uint8_t level = path->height; level > 0; level--) {
        uint8_t *page = path->nodes[level]->page, bound[STORE_KEY_LENGTH_MAX], value[POINTER_LENGTH];
        struct page_item first;
        page_get(page, 0, &first);
        if (path->slots[level - 1] > 0 || item_compare(&first, key, key_length) <= 0)
            continue;
        struct page_item lowered = {.suffix = bound, .value = value, .value_length = POINTER_LENGTH};
        if (level < path->height)
            lowered.suffix_length = page_copy_key(path->nodes[level + 1]->page, path->slots[level], bound);
        memcpy(value, first.value, POINTER_LENGTH);
        page_delete(page, 0);
        insert_at(store, chain, path, level, 0, &lowered);
        if (!path->valid)
            return false;
    }
    return true;
}

void tree_put(struct store *store, struct chain *chain, struct path *path, const uint8_t *key, size_t key_length,
              const uint8_t *value, uint16_t value_length, enum store_value_kind kind)
{
    struct page_item item = {.suffix = key,
                             .value = value,
                             .suffix_length = (uint16_t)key_length,
                             .value_length = value_length,
                             .kind = (uint16_t)kind};
    if (chain->head.pointer.address[0] == 0) {
        struct node *leaf = new_node(store, chain, 0);
        page_build(leaf->page, store->node_size, 0, leaf->birth, &item, 1);
        set_root(chain, leaf);
        return;
    }
    do
        descend_writable(store, chain, key, key_length, path);
    while (!path_lower(store, chain, path, key, key_length));
    uint8_t *page = path->nodes[0]->page;
    bool exact;
    uint16_t slot = page_find(page, key, key_length, &exact);
    if (exact) {
        struct page_item old;
        page_get(page, slot, &old);
        if (old.value_length == value_length) {
            page_overwrite(page, slot, value, value_length, (uint16_t)kind);
            return;
        }
        page_delete(page, slot);
    }
    insert_at(store, chain, path, 0, slot, &item);
}

static void give_up(struct store *store, struct chain *chain, struct node *node)
{
    struct tree_pointer pointer;
    tagged_pointer(node, &pointer);
    kill_node(store, chain, &pointer);
}

/* Whether all keys of the left page are less than those of the right one, which a forged neighbour may belie. */
static bool pages_ascend(const uint8_t *left, const uint8_t *right)
{
    uint8_t key[STORE_KEY_LENGTH_MAX];
    struct page_item last;
    if (page_count(left) == 0 || page_count(right) == 0)
        return true;
    page_get(left, (uint16_t)(page_count(left) - 1), &last);
    return item_compare(&last, key, page_copy_key(right, 0, key)) < 0;
}

/* Joins a sparse node with a neighbour under the same parent when that one is in memory and both fit in one page. */
static bool merge_with_neighbour(struct store *store, struct chain *chain, struct path *path, uint8_t level)
{
    struct node *parent = path->nodes[level + 1], *node = path->nodes[level];
    uint16_t slot = path->slots[level];
    for (int side = 0; side < 2; side++) {
        if (side == 0 ? slot == 0 : slot + 1 >= page_count(parent->page))
            continue;
        uint16_t other_slot = (uint16_t)(side == 0 ? slot - 1 : slot + 1);
        struct tree_pointer pointer;
        page_pointer(parent->page, other_slot, &pointer);
        struct node *other = cache_resolve(store, &pointer, level);
        if (!other)
            continue;
        struct node *left = side == 0 ? other : node, *right = side == 0 ? node : other;
        uint16_t left_count = page_count(left->page), right_count = page_count(right->page);
        if (page_used(left->page, store->node_size) + page_used(right->page, store->node_size) >
                store->node_size - store->node_size / 8 ||
            !pages_ascend(left->page, right->page))
            continue;
        struct page_item *items = store->scratch_items;
        for (uint16_t i = 0; i < left_count; i++)
            page_get(left->page, i, &items[i]);
        for (uint16_t i = 0; i < right_count; i++)
            page_get(right->page, i, &items[left_count + i]);
        if (!page_build(store->scratch_page, store->node_size, level, page_birth(node->page), items,
                        (size_t)left_count + right_count))
            continue;
        memcpy(node->page, store->scratch_page, store->node_size);
        kill_node(store, chain, &pointer);
        /* the left slot's separator stays and names the joined node */
        set_child(parent, (uint16_t)(side == 0 ? other_slot : slot), node);
        page_delete(parent->page, (uint16_t)(side == 0 ? slot : other_slot));
        return true;
    }
    return false;
}

/* Takes a child out of its parent. The key of slot 0 bounds the whole node from below and therefore stays. */
static void remove_child(struct node *parent, uint16_t slot)
{
    if (slot == 0 && page_count(parent->page) > 1) {
        struct page_item next;
        page_get(parent->page, 1, &next);
        page_overwrite(parent->page, 0, next.value, POINTER_LENGTH, STORE_VALUE_PLAIN);
        slot = 1;
    }
    page_delete(parent->page, slot);
}

static void shrink_root(struct store *store, struct chain *chain, struct path *path)
{
    for (uint8_t level = path->height; level > 0; level--) {
        struct node *root = path->nodes[level];
        if (page_count(root->page) != 1)
            return;
        struct tree_pointer pointer;
        page_pointer(root->page, 0, &pointer);
        chain->head.pointer = pointer;
        chain->head.level = (uint8_t)(level - 1);
        give_up(store, chain, root);
        if (!path->nodes[level - 1] || !pointer_is_tagged(&pointer) ||
            tagged_node(pointer.address[0]) != path->nodes[level - 1])
            return;
    }
}

bool tree_delete(struct store *store, struct chain *chain, struct path *path, const uint8_t *key, size_t key_length)
{
    if (chain->head.pointer.address[0] == 0)
        return false;
    bool exact;
    path_find(store, chain, key, key_length, path);
    uint16_t slot = page_find(path->nodes[0]->page, key, key_length, &exact);
    if (!exact) /* nothing is copied for an absent key */
        return false;
    path_make_writable(store, chain, path);
    uint8_t *page = path->nodes[0]->page;
    page_delete(page, slot);
    return page_used(page, store->node_size) < store->node_size / 4;
}

void tree_tidy(struct store *store, struct chain *chain, const uint8_t *key, size_t key_length)
{
    struct miss miss;
    if (chain->head.pointer.address[0] == 0)
        return;
    const struct node *leaf = descend(store, &chain->head, NULL, key, key_length, &miss);
    if (!leaf || !writable(store, chain, leaf)) /* an earlier call gave this key's range to another leaf */
        return;
    struct path path = {.valid = false};
    descend_writable(store, chain, key, key_length, &path);
    for (uint8_t level = 0; level < path.height; level++) {
        struct node *node = path.nodes[level];
        if (page_count(node->page) == 0) {
            remove_child(path.nodes[level + 1], path.slots[level]);
            give_up(store, chain, node);
            path.nodes[level] = NULL;
            continue;
        }
        if (page_used(node->page, store->node_size) >= store->node_size / 4 ||
            !merge_with_neighbour(store, chain, &path, level))
            break;
    }
    struct node *root = path.nodes[path.height];
    if (page_count(root->page) == 0) {
        give_up(store, chain, root);
        chain->head = (struct tree_root){0};
        return;
    }
    shrink_root(store, chain, &path);
}

/* ---- cursors -------------------------------------------------------------------------------------------------- */

static void cursor_fill(struct cursor *cursor)
{
    struct page_item item;
    const struct node *leaf = cursor->nodes[0];
    page_get(leaf->page, cursor->slots[0], &item);
    cursor->item.key_length = item_copy_key(&item, cursor->key);
    cursor->item.key = cursor->key;
    cursor->item.value = item.value;
    cursor->item.value_length = item.value_length;
    cursor->item.kind = (enum store_value_kind)item.kind;
}

/* Fills the levels below `level` with the first or last way down. */
static int cursor_descend_edge(struct store *store, struct cursor *cursor, uint16_t level, bool first,
                               struct miss *miss)
{
    for (; level > 0; level--) {
        struct tree_pointer pointer;
        page_pointer(((struct node *)cursor->nodes[level])->page, cursor->slots[level], &pointer);
        struct node *node = cache_resolve(store, &pointer, (uint8_t)(level - 1));
        if (!node) {
            miss->pointer = pointer;
            miss->level = (uint8_t)(level - 1);
            return STORE_AGAIN;
        }
        cursor->nodes[level - 1] = node;
        cursor->slots[level - 1] = (uint16_t)(first ? 0 : page_count(node->page) - 1);
    }
    return 0;
}

/* To the neighbouring item. Within a page keys ascend; where one leaf follows another they need not, in a forged tree,
 * and whoever went on from such a key would never come to an end. */
static int cursor_move(struct store *store, struct cursor *cursor, bool forward, const uint8_t *from,
                       size_t from_length, struct miss *miss)
{
    for (uint16_t level = 0; level < cursor->depth; level++) {
        const struct node *node = cursor->nodes[level];
        if (forward ? cursor->slots[level] + 1 < page_count(node->page) : cursor->slots[level] > 0) {
            cursor->slots[level] = (uint16_t)(forward ? cursor->slots[level] + 1 : cursor->slots[level] - 1);
            int result = cursor_descend_edge(store, cursor, level, forward, miss);
            if (result)
                return result;
            struct page_item item;
            page_get(((struct node *)cursor->nodes[0])->page, cursor->slots[0], &item);
            int order = item_compare(&item, from, from_length);
            cursor_fill(cursor);
            return (forward ? order < 0 : order > 0) ? -EUCLEAN : 0;
        }
    }
    return -ENOENT;
}

int tree_cursor_step(struct store *store, struct cursor *cursor, bool forward, struct miss *miss)
{
    uint8_t key[STORE_KEY_LENGTH_MAX];
    uint16_t length = cursor->item.key_length;
    const struct node *leaf = cursor->nodes[0];
    if (forward ? cursor->slots[0] + 1 < page_count(leaf->page) : cursor->slots[0] > 0) {
        cursor->slots[0] = (uint16_t)(forward ? cursor->slots[0] + 1 : cursor->slots[0] - 1);
        cursor_fill(cursor);
        return 0;
    }
    memcpy(key, cursor->key, length); /* the cursor's own is overwritten */
    int result = cursor_move(store, cursor, forward, key, length, miss);
    bool same = result == 0 && cursor->item.key_length == length && memcmp(cursor->key, key, length) == 0;
    return same ? -EUCLEAN : result;
}

/* Positions on the leaf slot where key is or would be, which may be one past the leaf's last. */
static int cursor_place(struct store *store, const struct tree_root *root, struct known_leaves *known,
                        struct cursor *cursor, const uint8_t *key, size_t key_length, bool *exact, struct miss *miss)
{
    if (root->pointer.address[0] == 0)
        return -ENOENT;
    struct tree_pointer pointer = root->pointer;
    struct reach reach = {0};
    cursor->depth = (uint16_t)(root->level + 1);
    for (uint16_t level = root->level;; level--) {
        struct node *node = cache_resolve(store, &pointer, (uint8_t)level);
        if (!node) {
            miss->pointer = pointer;
            miss->level = (uint8_t)level;
            return STORE_AGAIN;
        }
        cursor->nodes[level] = node;
        if (level == 0) {
            cursor->slots[0] = page_find(node->page, key, key_length, exact);
            if (known)
                remember(known, node, &reach);
            return 0;
        }
        cursor->slots[level] = page_find_child(node->page, key, key_length);
        reach_narrow(&reach, node->page, cursor->slots[level]);
        page_pointer(node->page, cursor->slots[level], &pointer);
    }
}

int tree_cursor_seek(struct store *store, const struct tree_root *root, struct known_leaves *known,
                     struct cursor *cursor, const uint8_t *key, size_t key_length, struct miss *miss)
{
    bool exact;
    int result = cursor_place(store, root, known, cursor, key, key_length, &exact, miss);
    if (result)
        return result;
    const struct node *leaf = cursor->nodes[0];
    if (cursor->slots[0] < page_count(leaf->page)) {
        cursor_fill(cursor);
        return 0;
    }
    cursor->slots[0]--;
    return cursor_move(store, cursor, true, key, key_length, miss);
}

int tree_cursor_seek_last(struct store *store, const struct tree_root *root, struct known_leaves *known,
                          struct cursor *cursor, const uint8_t *key, size_t key_length, struct miss *miss)
{
    bool exact = false;
    if (!key) {
        if (root->pointer.address[0] == 0)
            return -ENOENT;
        struct node *node = cache_resolve(store, &root->pointer, root->level);
        if (!node) {
            miss->pointer = root->pointer;
            miss->level = root->level;
            return STORE_AGAIN;
        }
        cursor->depth = (uint16_t)(root->level + 1);
        cursor->nodes[root->level] = node;
        cursor->slots[root->level] = (uint16_t)(page_count(node->page) - 1);
        int result = cursor_descend_edge(store, cursor, root->level, false, miss);
        if (result == 0)
            cursor_fill(cursor);
        return result;
    }
    int result = cursor_place(store, root, known, cursor, key, key_length, &exact, miss);
    if (result)
        return result;
    if (exact) {
        cursor_fill(cursor);
        return 0;
    }
    if (cursor->slots[0] > 0) {
        cursor->slots[0]--;
        cursor_fill(cursor);
        return 0;
    }
    return cursor_move(store, cursor, false, key, key_length, miss);
}
