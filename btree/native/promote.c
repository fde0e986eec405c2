/* Promotion of a clone: the snapshots up to its origin become its own. Only whose they are by name changes. Chains,
 * which say whose the blocks are, stay as they are: a chain may hold snapshots of several volumes. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

/* The volume that a clone was made of, NULL when there is nothing to promote. */
static struct volume *former_owner(const struct snapshot *origin, const struct volume *volume)
{
    struct volume *owner = !origin ? NULL : origin->volume ? origin->volume : origin->chain->volume;
    return owner == volume ? NULL : owner;
}

/* The next snapshot back from one, in its line: across rollbacks and clones. */
static struct snapshot *before_in_line(const struct snapshot *snapshot)
{
    return snapshot->older ? snapshot->older : snapshot->chain->origin;
}

/* Merges two runs of ascending ids: the volume's own slots and those moved, which come newest first. */
static void slots_merge(struct volume *volume, struct snapshot_slot *slots, struct snapshot *const *moved, size_t count)
{
    size_t total = 0, own = 0, left = count;
    while (own < volume->slot_count || left) {
        bool take_own = own < volume->slot_count && (!left || volume->slots[own].id < moved[left - 1]->id);
        slots[total++] = take_own ? volume->slots[own++]
                                  : (struct snapshot_slot){moved[left - 1]->id, moved[left - 1]};
        if (!take_own)
            left--;
    }
    free(volume->slots);
    volume->slots = slots;
    volume->slot_count = volume->slot_capacity = total;
    volume->slot_live += count;
}

/* Which chains are clones of another volume's snapshot, after snapshots changed hands. */
static void origins_renew(struct store *store)
{
    for (struct chain *chain = store->chains; chain; chain = chain->next) {
        struct snapshot *origin = chain->origin;
        bool foreign = origin && origin->volume && chain->volume ? origin->volume != chain->volume : chain->foreign;
        if (foreign == chain->foreign)
            continue;
        chain->foreign = foreign;
        origin->clone_count += foreign ? 1u : UINT32_MAX; /* or one less */
        mark_chain_dirty(store, chain);
        mark_snapshot_dirty(store, origin);
    }
}

int apply_promote(struct store *store, uint64_t volume_id)
{
    struct volume *volume = volume_by_id(store, volume_id);
    struct snapshot *origin = volume ? snapshot_by_id(store, volume->origin_snapshot_id) : NULL;
    struct volume *former = volume ? former_owner(origin, volume) : NULL;
    struct snapshot **moved = NULL;
    size_t count = 0, capacity = 0;
    int result = volume ? former ? 0 : -EINVAL : -ENOENT;
    for (struct snapshot *snapshot = origin; result == 0 && snapshot; snapshot = before_in_line(snapshot)) {
        if (snapshot->volume != former)
            continue;
        if (snapshot_by_name(store, volume, snapshot->name))
            result = -EEXIST;
        else
            result = array_reserve((void **)&moved, &capacity, count + 1, sizeof *moved);
        if (result == 0)
            moved[count++] = snapshot;
    }
    struct snapshot_slot *slots = result == 0 ? malloc((volume->slot_count + count + 1) * sizeof *slots) : NULL;
    if (result == 0 && !slots)
        result = -ENOMEM;
    if (result == 0) {
        for (size_t i = 0; i < count; i++)
            snapshot_give(store, moved[i], volume);
        slots_merge(volume, slots, moved, count);
        volume->origin_snapshot_id = former->origin_snapshot_id;
        former->origin_snapshot_id = origin->id;
        volume->dirty = former->dirty = true;
        store->catalog_dirty = true;
        origins_renew(store);
    }
    free(moved);
    return result;
}

/* RECORD_PROMOTE: [volume id] */
int store_promote(struct store *store, uint64_t volume_id)
{
    int result = catalog_begin_change(store, 8, &(struct space_need){.claim_class = CLAIM_RESERVE});
    if (result < 0)
        return result;
    result = apply_promote(store, volume_id);
    if (result == 0)
        save64(journal_record(store, RECORD_PROMOTE, 8), volume_id);
    return catalog_end_change(store, result);
}
