/* Moving through history: snapshots by time, by neighbourhood and by epoch, and births of key ranges, by which whoever
 * looks for changes steps over all snapshots that cannot differ. */
#include <errno.h>

#include "internal.h"

/* ---- snapshots ------------------------------------------------------------------------------------------------ */

/* The slot of the newest snapshot before slot `end`, or `end` when there is none. */
static size_t slot_before(const struct volume *volume, size_t end)
{
    for (size_t at = end; at-- > 0;)
        if (volume->slots[at].snapshot)
            return at;
    return end;
}

/* How many slots from the first on hold snapshots taken at or before a time. Times ascend as ids do, unless the clock
 * was set back; then the answer is one of those where a snapshot of before the time precedes one of after it. */
static size_t slots_until(const struct volume *volume, uint64_t time_ns)
{
    size_t low = 0, high = volume->slot_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2, probe = middle;
        while (probe < high && !volume->slots[probe].snapshot)
            probe++;
        if (probe < high && volume->slots[probe].snapshot->created_ns <= time_ns)
            low = probe + 1;
        else
            high = middle;
    }
    return low;
}

static int found_before(const struct volume *volume, size_t end, uint64_t *id)
{
    size_t at = slot_before(volume, end);
    if (at == end)
        return -ENOENT;
    *id = volume->slots[at].id;
    return 0;
}

int store_snapshot_at(struct store *store, uint64_t volume_id, uint64_t time_ns, uint64_t *id)
{
    pthread_mutex_lock(&store->lock);
    const struct volume *volume = volume_by_id(store, volume_id);
    int result = volume ? found_before(volume, slots_until(volume, time_ns), id) : -ENOENT;
    pthread_mutex_unlock(&store->lock);
    return result;
}

/* The first slot whose snapshot is of this chain and has at least this epoch. Epochs ascend as ids do. */
static size_t slot_since(const struct volume *volume, const struct chain *chain, uint64_t epoch)
{
    size_t low = chain->oldest ? volume_slot(volume, chain->oldest->id) : volume->slot_count;
    size_t high = volume->slot_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2, probe = middle;
        while (probe < high && !volume->slots[probe].snapshot)
            probe++;
        if (probe < high && volume->slots[probe].snapshot->epoch < epoch)
            low = probe + 1;
        else
            high = middle;
    }
    while (low < volume->slot_count &&
           (!volume->slots[low].snapshot || volume->slots[low].snapshot->chain != chain))
        low++;
    return low;
}

int store_snapshot_since(struct store *store, uint64_t object_id, uint64_t epoch, uint64_t *id)
{
    int result = -ENOENT;
    pthread_mutex_lock(&store->lock);
    const struct volume *volume = volume_by_id(store, object_id);
    const struct snapshot *snapshot = volume ? NULL : snapshot_by_id(store, object_id);
    const struct chain *chain = volume ? volume->head : snapshot && !snapshot->hidden ? snapshot->chain : NULL;
    if (chain) {
        const struct volume *owner = volume ? volume : snapshot->volume;
        size_t at = slot_since(owner, chain, epoch);
        if (at < owner->slot_count && (volume || owner->slots[at].id <= object_id)) {
            *id = owner->slots[at].id;
            result = 0;
        }
    }
    pthread_mutex_unlock(&store->lock);
    return result;
}

int store_head_next(struct store *store, uint64_t volume_id, uint64_t after_id, struct store_head *out)
{
    const struct chain *found = NULL;
    pthread_mutex_lock(&store->lock);
    const struct volume *volume = volume_by_id(store, volume_id);
    for (const struct chain *chain = volume ? store->chains : NULL; chain; chain = chain->next)
        if (chain->volume == volume && chain->id > after_id && (!found || chain->id < found->id))
            found = chain;
    if (found)
        *out = (struct store_head){.id = found->id,
                                   .origin_snapshot_id = found->origin ? found->origin->id : 0,
                                   .guard_snapshot_id = found->id != volume_id + 1 ? found->id - 1 : 0};
    pthread_mutex_unlock(&store->lock);
    return found ? 0 : -ENOENT;
}

/* ---- births --------------------------------------------------------------------------------------------------- */

/* Key of slot < stop. */
static bool slot_before_stop(const uint8_t *page, uint16_t slot, const struct key_range *range)
{
    struct page_item item;
    page_get(page, slot, &item);
    return item_compare(&item, range->stop, range->stop_length) < 0;
}

static int node_birth(struct store *store, const struct tree_pointer *pointer, uint8_t level,
                      const struct key_range *range, uint64_t *birth, struct miss *miss)
{
    const struct node *node = cache_resolve(store, pointer, level);
    bool exact;
    if (!node) {
        *miss = (struct miss){.pointer = *pointer, .level = level};
        return STORE_AGAIN;
    }
    uint16_t count = page_count(node->page);
    if (level == 0) {
        uint16_t slot = page_find(node->page, range->start, range->start_length, &exact);
        if (slot < count && slot_before_stop(node->page, slot, range) && node->birth > *birth)
            *birth = node->birth;
        return 0;
    }
    /* No snapshot of this tree's line came between a node's birth and that of anything younger below it: the node could
     * have been changed in place still. So what is below an old node needs no look. The youngest child first: mostly
     * its birth is the answer. */
    uint16_t first = page_find_child(node->page, range->start, range->start_length), youngest = first;
    struct tree_pointer child, best = {0};
    for (uint16_t slot = first; slot < count && (slot == first || slot_before_stop(node->page, slot, range)); slot++) {
        struct page_item item;
        page_get(node->page, slot, &item);
        pointer_load(item.value, &child);
        if (slot == first || child.birth > best.birth) {
            youngest = slot;
            best = child;
        }
    }
    int result = best.birth > *birth ? node_birth(store, &best, (uint8_t)(level - 1), range, birth, miss) : 0;
    for (uint16_t slot = first; result == 0 && slot < count && best.birth > *birth; slot++) {
        struct page_item item;
        if (slot != first && !slot_before_stop(node->page, slot, range))
            break;
        page_get(node->page, slot, &item);
        pointer_load(item.value, &child);
        if (slot != youngest && child.birth > *birth)
            result = node_birth(store, &child, (uint8_t)(level - 1), range, birth, miss);
    }
    return result;
}

int tree_range_birth(struct store *store, const struct tree_root *root, const struct key_range *range, uint64_t *birth,
                     struct miss *miss)
{
    if (root->pointer.address[0] == 0 || root->pointer.birth <= *birth)
        return 0;
    return root->level >= STORE_TREE_HEIGHT_MAX ? -EUCLEAN
                                                : node_birth(store, &root->pointer, root->level, range, birth, miss);
}
