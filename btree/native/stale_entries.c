/* Entries of dead buckets that no longer say anything: those that the deletion queue will forget. When a head goes, the
 * snapshot below it owns its blocks through its tree, and its bucket waits to be dropped; unwritten nodes of that tree
 * may be freed before that is done. The same holds for what the queue would merge into such a bucket.
 *
 * For who asks what is in use while deletions are still to be worked off. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

struct stale_bucket {
    uint64_t bucket;
    uint64_t storage;   /* 0: nothing of it is on the medium */
    uint64_t birth_max; /* what is not younger is stale */
};

static int compare_buckets(const void *a, const void *b)
{
    const struct stale_bucket *left = a, *right = b;
    return left->bucket < right->bucket ? -1 : left->bucket > right->bucket;
}

static int compare_storages(const void *a, const void *b)
{
    const struct stale_bucket *left = a, *right = b;
    return left->storage < right->storage ? -1 : left->storage > right->storage;
}

static struct stale_bucket *find(const struct stale_entries *stale, const struct stale_bucket *wanted,
                                 int (*compare)(const void *, const void *))
{
    return stale->count ? bsearch(wanted, stale->items, stale->count, sizeof *wanted, compare) : NULL;
}

/* The queue, last item first: each says what becomes of a bucket in terms of what becomes of its target later on. */
static void judge(struct stale_entries *stale, const struct queue_item *newest_first, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const struct queue_item *item = &newest_first[i];
        struct stale_bucket *bucket = find(stale, &(struct stale_bucket){.bucket = item->bucket}, compare_buckets);
        const struct stale_bucket *target = find(stale, &(struct stale_bucket){.bucket = item->target},
                                                 compare_buckets);
        uint64_t birth_max = item->target && target ? target->birth_max : 0;
        if (item->kind == QUEUE_DROP)
            bucket->birth_max = UINT64_MAX;
        else
            bucket->birth_max = birth_max < item->floor_epoch ? birth_max : item->floor_epoch;
    }
}

/* Copies of the items about buckets, last item first. */
static struct queue_item *queue_copy(struct store *store, size_t *count)
{
    pthread_mutex_lock(&store->lock);
    struct queue_item *copies = malloc((store->queue_length + 1) * sizeof *copies);
    size_t left = store->queue_length;
    for (const struct queue_item *item = store->queue_head; copies && item && left > 0; item = item->next)
        if (item->kind != QUEUE_WALK)
            copies[--left] = *item;
    *count = store->queue_length - left;
    if (copies)
        memmove(copies, copies + left, *count * sizeof *copies);
    pthread_mutex_unlock(&store->lock);
    return copies;
}

static int find_storages(struct store *store, struct stale_entries *stale)
{
    struct system_item item;
    int result;
    item.key[0] = SYSTEM_BUCKET;
    item.key_length = 1;
    while ((result = system_seek(store, &item)) == 0 && item.key[0] == SYSTEM_BUCKET) {
        if (item.key_length != 9 || item.value_length != BUCKET_RECORD_LENGTH)
            return -EUCLEAN;
        struct stale_bucket wanted = {.bucket = load64_big(item.key + 1)};
        struct stale_bucket *bucket = find(stale, &wanted, compare_buckets);
        if (bucket)
            bucket->storage = load64(item.value + BUCKET_STORAGE);
        item.key[item.key_length++] = 0;
    }
    return result == -ENOENT ? 0 : result;
}

int stale_entries_load(struct store *store, struct stale_entries *stale)
{
    size_t count;
    *stale = (struct stale_entries){0};
    struct queue_item *items = queue_copy(store, &count);
    stale->items = malloc((count + 1) * sizeof *stale->items);
    int result = items && stale->items ? 0 : -ENOMEM;
    for (size_t i = 0; result == 0 && i < count; i++)
        stale->items[i] = (struct stale_bucket){.bucket = items[i].bucket};
    if (result == 0 && count) {
        qsort(stale->items, count, sizeof *stale->items, compare_buckets);
        for (size_t i = 0; i < count; i++)
            if (stale->count == 0 || stale->items[stale->count - 1].bucket != stale->items[i].bucket)
                stale->items[stale->count++] = stale->items[i];
        judge(stale, items, count);
        result = find_storages(store, stale);
    }
    if (result < 0)
        stale_entries_free(stale); /* without its order by storage it would answer wrongly */
    else if (stale->count)
        qsort(stale->items, stale->count, sizeof *stale->items, compare_storages);
    free(items);
    return result;
}

bool stale_entries_have(const struct stale_entries *stale, uint64_t storage, uint64_t birth)
{
    const struct stale_bucket *bucket = find(stale, &(struct stale_bucket){.storage = storage}, compare_storages);
    return storage && bucket && birth <= bucket->birth_max;
}

void stale_entries_free(struct stale_entries *stale)
{
    free(stale->items);
    *stale = (struct stale_entries){0};
}
