/* A volume and a clone that go while a checkpoint writes what they had, behind a deletion that takes several
 * checkpoints: what a dead bucket of theirs still names is free by then, and neither the check nor the rebuilding of a
 * damaged bitmap may take it for used.
 *
 *     deletion_driver
 *
 * Ends with 0, or with 1 and a message. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "btree/native/format.h"
#include "btree/native/store.h"
#include "lasting_storage.h"

#define POOL_SIZE_BYTES (64u << 20)
#define BACKLOG_KEYS 12000u
#define KEYS 60u
#define KEYS_PER_CHANGE 20u
#define CHECKPOINTS_MAX 500u

static void fail(const char *what, int64_t result)
{
    fprintf(stderr, "deletion_driver: %s: %s (%lld)\n", what, strerror(result < 0 ? (int)-result : 0),
            (long long)result);
    exit(1);
}

static void need(const char *what, int64_t result)
{
    if (result != 0)
        fail(what, result);
}

/* ---- a storage whose writes can be stopped --------------------------------------------------------------------- */

struct gated_storage {
    struct lasting_storage lasting;
    pthread_mutex_t mutex;
    pthread_cond_t condition;
    bool closed, waiting;
};

static int gated_write(struct storage *storage, const void *buffer, size_t length, uint64_t offset)
{
    struct gated_storage *gated = (struct gated_storage *)storage;
    pthread_mutex_lock(&gated->mutex);
    while (gated->closed) {
        gated->waiting = true;
        pthread_cond_broadcast(&gated->condition);
        pthread_cond_wait(&gated->condition, &gated->mutex);
    }
    pthread_mutex_unlock(&gated->mutex);
    return lasting_write(storage, buffer, length, offset);
}

static void gate_close(struct gated_storage *gated)
{
    pthread_mutex_lock(&gated->mutex);
    gated->closed = true;
    gated->waiting = false;
    pthread_mutex_unlock(&gated->mutex);
}

static void gate_wait(struct gated_storage *gated)
{
    pthread_mutex_lock(&gated->mutex);
    while (!gated->waiting)
        pthread_cond_wait(&gated->condition, &gated->mutex);
    pthread_mutex_unlock(&gated->mutex);
}

static void gate_open(struct gated_storage *gated)
{
    pthread_mutex_lock(&gated->mutex);
    gated->closed = false;
    pthread_cond_broadcast(&gated->condition);
    pthread_mutex_unlock(&gated->mutex);
}

/* ---- the store --------------------------------------------------------------------------------------------------- */

static struct store *open_store(struct gated_storage *gated)
{
    /* the least there is: a checkpoint works off some 680 entries of dead buckets then */
    const struct store_options options = {.dirty_bytes_max = 256u << 10, .no_background = true};
    struct store_failure failure = {{0}};
    struct store *store = NULL;
    int result = store_open(&gated->lasting.base, &options, &store, &failure);
    if (result != 0)
        fail(failure.message, result);
    return store;
}

struct range {
    unsigned first;
    uint8_t value;
};

static int put_body(struct transaction *transaction, void *argument)
{
    const struct range *range = argument;
    uint8_t value[400];
    char key[16];
    int result = 0;
    memset(value, range->value, sizeof value);
    for (unsigned i = range->first; i < range->first + KEYS_PER_CHANGE && result == 0; i++) {
        int length = snprintf(key, sizeof key, "%08u", i);
        result = transaction_put(transaction, key, (size_t)length, value, sizeof value, STORE_VALUE_PLAIN, false);
    }
    return result;
}

static void put_keys(struct store *store, uint64_t volume_id, unsigned count, uint8_t value)
{
    for (struct range range = {0, value}; range.first < count; range.first += KEYS_PER_CHANGE)
        need("change", store_transact(store, volume_id, 0, put_body, &range));
}

static void report(void *argument, const char *message)
{
    fprintf(stderr, "deletion_driver: check %s: %s\n", (const char *)argument, message);
}

static void check(struct store *store, char *when)
{
    need(when, store_check(store, false, report, when));
}

static uint64_t queue_length(struct store *store)
{
    struct store_statistics statistics;
    store_statistics(store, &statistics);
    return statistics.deletion_queue_length;
}

static void *checkpoint(void *store)
{
    need("checkpoint", store_checkpoint(store));
    return NULL;
}

/* What has to be deleted first: thousands of dead nodes. */
static uint64_t make_backlog(struct store *store)
{
    struct store_snapshot snapshot;
    uint64_t volume_id;
    need("create", store_volume_create(store, "backlog", &volume_id));
    put_keys(store, volume_id, BACKLOG_KEYS, 1);
    need("snapshot", store_snapshot_create(store, volume_id, "s", &snapshot));
    put_keys(store, volume_id, BACKLOG_KEYS, 2);
    need("checkpoint", store_checkpoint(store));
    return snapshot.id;
}

static void delete_beside_checkpoint(struct gated_storage *gated, struct store *store)
{
    struct store_snapshot snapshot;
    pthread_t thread;
    uint64_t backlog_id = make_backlog(store), volume_id, clone_id;
    need("create", store_volume_create(store, "goes", &volume_id));
    put_keys(store, volume_id, KEYS, 1);
    need("snapshot", store_snapshot_create(store, volume_id, "origin", &snapshot));
    put_keys(store, volume_id, KEYS, 2); /* the snapshot's bucket gets the nodes of before */
    need("clone", store_clone(store, snapshot.id, "clone", &clone_id));
    gate_close(gated);
    need("thread", -pthread_create(&thread, NULL, checkpoint, store));
    gate_wait(gated);
    need("delete", store_snapshot_delete(store, backlog_id));
    need("destroy", store_volume_destroy(store, volume_id)); /* the clone keeps the snapshot, whose bucket has to go */
    need("destroy", store_volume_destroy(store, clone_id)); /* and now its unwritten tree */
    gate_open(gated);
    (void)pthread_join(thread, NULL);
    check(store, "beside deletions");
    if (queue_length(store) < 2)
        fail("the deletions were done at once", 0);
}

static void drain(struct store *store)
{
    unsigned count = 0;
    for (; queue_length(store) > 0 && count < CHECKPOINTS_MAX; count++)
        need("checkpoint", store_checkpoint(store));
    check(store, "after the deletions");
    printf("%u checkpoints\n", count);
}

/* Every bitmap page of the medium. */
static void damage_bitmap(struct storage *storage)
{
    uint8_t block[STORE_BLOCK_SIZE];
    unsigned count = 0;
    for (uint64_t at = 0; at < POOL_SIZE_BYTES / 2; at += sizeof block) {
        need("read", storage->operations->read(storage, block, sizeof block, at));
        uint32_t magic = (uint32_t)block[0] | (uint32_t)block[1] << 8 | (uint32_t)block[2] << 16 |
                         (uint32_t)block[3] << 24;
        if (magic != BITMAP_MAGIC)
            continue;
        block[sizeof block - 1] ^= 1;
        need("write", storage->operations->write(storage, block, sizeof block, at));
        count++;
    }
    if (count == 0)
        fail("no bitmap page was found", 0);
}

int main(void)
{
    static const struct storage_operations gated_operations = {
        .read = lasting_read,
        .write = gated_write,
        .flush = lasting_flush,
        .size = lasting_size,
        .close = lasting_close,
    };
    struct gated_storage gated = {.lasting.base.operations = &gated_operations,
                                  .mutex = PTHREAD_MUTEX_INITIALIZER,
                                  .condition = PTHREAD_COND_INITIALIZER};
    struct store_parameters parameters = {0};
    struct store_failure failure = {{0}};
    need("memory", storage_open_memory(POOL_SIZE_BYTES, &gated.lasting.inner));
    need("format", store_format(&gated.lasting.base, &parameters, &failure));
    struct store *store = open_store(&gated);
    delete_beside_checkpoint(&gated, store);
    store_abandon(store);
    damage_bitmap(gated.lasting.inner);
    store = open_store(&gated);
    if (queue_length(store) < 2)
        fail("the deletions were done by opening", 0);
    check(store, "after the bitmap was built anew");
    drain(store);
    need("close", store_close(store));
    gated.lasting.inner->operations->close(gated.lasting.inner);
    return 0;
}
