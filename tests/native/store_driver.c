/* Drives the store's C API from several threads over memory, for builds with sanitizers.
 *
 *     store_driver SECONDS THREADS SEED
 *
 * Rounds: open, let the threads do random things, check the pool, then close or abandon. Each value begins with the
 * checksum of its key, and so does each block of an extent, so that content at the wrong place is noticed. Ends with 0,
 * or with 1 and a message. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "btree/native/store.h"
#include "lasting_storage.h"

#define POOL_SIZE_BYTES (24u << 20)
#define VOLUMES_MAX 4
#define SNAPSHOTS_MAX 60
#define KEYS 3000u
#define EXTENTS 40u
#define OPERATIONS_PER_ROUND 1500u

static void fail(const char *what, int result)
{
    fprintf(stderr, "store_driver: %s: %s (%d)\n", what, strerror(result < 0 ? -result : result), result);
    exit(1);
}

/* Errors that a random operation may meet when others work beside it. */
static void expect(const char *what, int result)
{
    switch (result) {
    case 0:
    case -ENOENT:
    case -EEXIST:
    case -EBUSY:
    case -ENOSPC:
        return;
    default:
        fail(what, result);
    }
}

/* ---- a worker ------------------------------------------------------------------------------------------------ */

struct worker {
    pthread_t thread;
    struct store *store;
    uint64_t random;
    uint64_t names_made;
    unsigned number;
};

/* xorshift64* */
static uint32_t draw(struct worker *worker, uint32_t below)
{
    worker->random ^= worker->random >> 12;
    worker->random ^= worker->random << 25;
    worker->random ^= worker->random >> 27;
    return (uint32_t)((worker->random * UINT64_C(2685821657736338717)) >> 33) % below;
}

/* A volume's id, or 0. */
static uint64_t some_volume(struct worker *worker)
{
    char name[16];
    struct store_volume volume;

    (void)snprintf(name, sizeof(name), "v%u", draw(worker, VOLUMES_MAX));
    return store_volume_find(worker->store, name, &volume) == 0 ? volume.id : 0;
}

/* A snapshot's id, or 0. */
static uint64_t some_snapshot(struct worker *worker, uint64_t volume_id)
{
    struct store_snapshot snapshot;
    uint64_t id = 0;

    for (uint32_t steps = draw(worker, SNAPSHOTS_MAX) + 1; steps > 0; steps--) {
        if (store_snapshot_next(worker->store, volume_id, id, &snapshot) != 0) {
            break;
        }
        id = snapshot.id;
    }
    return id;
}

struct change_request {
    char keys[16][32];
    uint8_t values[16][400];
    size_t lengths[16];
    unsigned count;
    bool delete;
};

static int change_body(struct transaction *transaction, void *argument)
{
    struct change_request *request = argument;
    int result = 0;

    for (unsigned index = 0; result == 0 && index < request->count; index++) {
        const char *key = request->keys[index];
        struct store_item item;

        result = transaction_get(transaction, key, strlen(key), &item);
        if (result == -ENOENT) {
            result = 0;
        }
        if (result != 0) {
            break;
        }
        result = request->delete ? transaction_delete(transaction, key, strlen(key))
                                 : transaction_put(transaction, key, strlen(key), request->values[index],
                                                   request->lengths[index], STORE_VALUE_PLAIN, false);
    }
    return result;
}

static void do_change(struct worker *worker)
{
    struct change_request request = {.count = draw(worker, 16) + 1, .delete = draw(worker, 3) == 0};

    for (unsigned index = 0; index < request.count; index++) {
        uint64_t checksum;

        (void)snprintf(request.keys[index], sizeof(request.keys[index]), "key/%06u", draw(worker, KEYS));
        checksum = store_checksum(request.keys[index], strlen(request.keys[index]));
        request.lengths[index] = 8 + draw(worker, 392);
        memset(request.values[index], (int)draw(worker, 256), request.lengths[index]);
        memcpy(request.values[index], &checksum, 8);
    }
    expect("change", store_transact(worker->store, some_volume(worker), request.delete ? STORE_TRANSACT_RESERVE : 0,
                                    change_body, &request));
}

struct scan_request {
    char start[32];
    bool reverse;
    unsigned limit;
    unsigned wrong;
};

static int scan_body(struct transaction *transaction, void *argument)
{
    struct scan_request *request = argument;
    struct cursor cursor;
    uint8_t previous[STORE_KEY_LENGTH_MAX];
    size_t previous_length = 0;
    int result;

    request->wrong = 0;
    result = request->reverse ? cursor_seek_last(transaction, &cursor, request->start, strlen(request->start))
                              : cursor_seek(transaction, &cursor, request->start, strlen(request->start));
    for (unsigned count = 0; result == 0 && count < request->limit; count++) {
        const struct store_item *item = &cursor.item;

        if (item->kind == STORE_VALUE_PLAIN) {
            uint64_t checksum = store_checksum(item->key, item->key_length);

            request->wrong += item->value_length < 8 || memcmp(item->value, &checksum, 8) != 0;
        }
        if (previous_length > 0) {
            size_t common = previous_length < item->key_length ? previous_length : item->key_length;
            int order = memcmp(previous, item->key, common);

            if (order == 0) {
                order = previous_length < item->key_length ? -1 : 1;
            }
            request->wrong += (order < 0) == request->reverse;
        }
        memcpy(previous, item->key, item->key_length);
        previous_length = item->key_length;
        result = request->reverse ? cursor_previous(transaction, &cursor) : cursor_next(transaction, &cursor);
    }
    return result == -ENOENT ? 0 : result;
}

static void do_scan(struct worker *worker)
{
    struct scan_request request = {.reverse = draw(worker, 2) == 0, .limit = draw(worker, 100) + 1};
    uint64_t volume_id = some_volume(worker);
    uint64_t object_id = draw(worker, 2) == 0 ? volume_id : some_snapshot(worker, volume_id);

    (void)snprintf(request.start, sizeof(request.start), "key/%06u", draw(worker, KEYS));
    expect("scan", store_transact(worker->store, object_id, STORE_TRANSACT_READ, scan_body, &request));
    if (request.wrong > 0) {
        fail("a scan found wrong items", -EILSEQ);
    }
}

/* ---- extents */

struct extent_request {
    char key[32];
    struct store_extent extent;
    uint64_t checksums[STORE_EXTENT_BLOCKS_MAX];
    uint8_t value[STORE_EXTENT_LENGTH_MAX];
    uint16_t value_length;
    bool delete;
    bool found;
};

static int extent_change_body(struct transaction *transaction, void *argument)
{
    struct extent_request *request = argument;
    struct store_extent old;
    struct store_item item;
    uint8_t value[STORE_EXTENT_LENGTH_MAX];
    int result = transaction_get(transaction, request->key, strlen(request->key), &item);

    if (result == 0) {
        result = store_extent_decode(item.value, item.value_length, &old);
        if (result == 0) {
            result = transaction_kill(transaction, old.address, old.blocks, old.birth);
        }
    } else if (result == -ENOENT) {
        result = 0;
    }
    if (result != 0) {
        return result;
    }
    if (request->delete) {
        return transaction_delete(transaction, request->key, strlen(request->key));
    }
    request->extent.birth = transaction_epoch(transaction);
    return transaction_put(transaction, request->key, strlen(request->key), value,
                           store_extent_encode(&request->extent, request->checksums, value), STORE_VALUE_EXTENT, true);
}

static void do_write_extent(struct worker *worker)
{
    struct extent_request request = {.delete = draw(worker, 4) == 0};
    struct store_reservation reservation;
    uint64_t volume_id = some_volume(worker);
    uint64_t key_checksum;
    int result;

    (void)snprintf(request.key, sizeof(request.key), "extent/%03u", draw(worker, EXTENTS));
    if (request.delete) {
        expect("delete extent", store_transact(worker->store, volume_id, STORE_TRANSACT_RESERVE, extent_change_body,
                                               &request));
        return;
    }
    result = store_data_reserve(worker->store, draw(worker, STORE_EXTENT_BLOCKS_MAX) + 1, false, &reservation);
    expect("reserve", result);
    if (result != 0) {
        return;
    }
    key_checksum = store_checksum(request.key, strlen(request.key));
    for (uint32_t block = 0; block < reservation.blocks; block++) {
        uint8_t *memory = reservation.memory + (size_t)block * STORE_BLOCK_SIZE;

        memset(memory, (int)draw(worker, 256), STORE_BLOCK_SIZE);
        memcpy(memory, &key_checksum, 8);
        request.checksums[block] = store_checksum(memory, STORE_BLOCK_SIZE);
    }
    request.extent = (struct store_extent){
        .address = reservation.address,
        .blocks = (uint16_t)reservation.blocks,
        .logical_blocks = (uint16_t)reservation.blocks,
        .checksum_count = (uint16_t)reservation.blocks,
    };
    store_data_complete(worker->store, &reservation);
    result = store_transact(worker->store, volume_id, 0, extent_change_body, &request);
    expect("write extent", result);
    if (result != 0) {
        store_data_release(worker->store, request.extent.address, request.extent.blocks);
    }
}

static int extent_look_body(struct transaction *transaction, void *argument)
{
    struct extent_request *request = argument;
    struct store_item item;
    int result = transaction_get(transaction, request->key, strlen(request->key), &item);

    request->found = result == 0;
    if (result == 0) {
        result = store_extent_decode(item.value, item.value_length, &request->extent);
        memcpy(request->value, item.value, item.value_length);
        request->value_length = item.value_length;
    }
    return result == -ENOENT ? 0 : result;
}

static void do_read_extent(struct worker *worker)
{
    struct extent_request request = {.found = false};
    uint8_t seen[STORE_EXTENT_LENGTH_MAX];
    uint16_t seen_length = 0;
    uint64_t volume_id = some_volume(worker);
    uint64_t object_id = draw(worker, 2) == 0 ? volume_id : some_snapshot(worker, volume_id);
    uint8_t *data = malloc((size_t)STORE_EXTENT_BLOCKS_MAX * STORE_BLOCK_SIZE);

    if (data == NULL) {
        fail("memory", -ENOMEM);
    }
    (void)snprintf(request.key, sizeof(request.key), "extent/%03u", draw(worker, EXTENTS));
    for (;;) {
        uint64_t key_checksum = store_checksum(request.key, strlen(request.key));
        unsigned wrong = 0;
        int result = store_transact(worker->store, object_id, STORE_TRANSACT_READ, extent_look_body, &request);

        expect("look up extent", result);
        if (result != 0 || !request.found) {
            break;
        }
        result = store_data_read(worker->store, request.extent.address, request.extent.blocks, data);
        if (result != 0) {
            fail("read extent", result);
        }
        for (uint32_t block = 0; block < request.extent.blocks; block++) {
            const uint8_t *memory = data + (size_t)block * STORE_BLOCK_SIZE;

            wrong += store_checksum(memory, STORE_BLOCK_SIZE) != store_extent_checksum(request.value, block)
                     || memcmp(memory, &key_checksum, 8) != 0;
        }
        if (wrong == 0) {
            break;
        }
        if (seen_length == request.value_length && memcmp(seen, request.value, seen_length) == 0) {
            fail("an extent's data is not what was written", -EILSEQ);
        }
        memcpy(seen, request.value, request.value_length);
        seen_length = request.value_length;
    }
    free(data);
}

/* ---- snapshots and volumes */

static void make_name(struct worker *worker, char *name, size_t size)
{
    (void)snprintf(name, size, "s%u-%llu", worker->number, (unsigned long long)worker->names_made++);
}

static void do_snapshot(struct worker *worker)
{
    struct store_snapshot snapshot;
    struct store_volume volume;
    uint64_t volume_id = some_volume(worker);
    char name[48];
    int result;

    make_name(worker, name, sizeof(name));
    if (store_volume_get(worker->store, volume_id, &volume) == 0 && volume.snapshot_count > SNAPSHOTS_MAX / 4) {
        expect("delete snapshot", store_snapshot_delete(worker->store, some_snapshot(worker, volume_id)));
        return;
    }
    result = store_snapshot_create(worker->store, volume_id, name, &snapshot);
    expect("snapshot", result);
    if (result == 0 && draw(worker, 4) == 0) {
        expect("annotate", store_snapshot_annotate(worker->store, snapshot.id, draw(worker, 2), name, strlen(name)));
    }
}

static void do_snapshot_delete(struct worker *worker)
{
    uint64_t snapshot_id = some_snapshot(worker, some_volume(worker));

    expect("release", store_snapshot_annotate(worker->store, snapshot_id, 0, NULL, 0));
    expect("delete snapshot", store_snapshot_delete(worker->store, snapshot_id));
}

static int difference(void *argument, const struct store_item *old_item, const struct store_item *new_item)
{
    unsigned *count = argument;

    if (old_item == NULL && new_item == NULL) {
        return -EILSEQ;
    }
    return ++*count >= 200 ? 1 : 0;
}

static void do_diff(struct worker *worker)
{
    uint64_t volume_id = some_volume(worker);
    unsigned count = 0;
    int result = store_diff(worker->store, some_snapshot(worker, volume_id), volume_id, NULL, 0, difference, &count);

    expect("diff", result == 1 ? 0 : result);
}

static void do_clone_or_destroy(struct worker *worker)
{
    uint64_t volume_id = some_volume(worker);
    uint64_t id;
    char name[16];

    (void)snprintf(name, sizeof(name), "v%u", draw(worker, VOLUMES_MAX));
    if (draw(worker, 3) == 0) {
        expect("destroy", store_volume_destroy(worker->store, volume_id));
        expect("create", store_volume_create(worker->store, name, &id));
    } else {
        expect("clone", store_clone(worker->store, some_snapshot(worker, volume_id), name, &id));
    }
}

static void do_rollback(struct worker *worker)
{
    struct store_snapshot guard;
    uint64_t volume_id = some_volume(worker);
    char name[48];

    make_name(worker, name, sizeof(name));
    expect("rollback",
           store_rollback(worker->store, volume_id, some_snapshot(worker, volume_id), name, &guard));
}

static void *work(void *argument)
{
    struct worker *worker = argument;
    struct store_statistics statistics;

    for (unsigned operation = 0; operation < OPERATIONS_PER_ROUND; operation++) {
        uint32_t dice = draw(worker, 1000);

        if (dice < 400) {
            do_change(worker);
        } else if (dice < 520) {
            do_scan(worker);
        } else if (dice < 680) {
            do_write_extent(worker);
        } else if (dice < 800) {
            do_read_extent(worker);
        } else if (dice < 890) {
            do_snapshot(worker);
        } else if (dice < 950) {
            do_snapshot_delete(worker);
        } else if (dice < 970) {
            do_diff(worker);
        } else if (dice < 977) {
            do_clone_or_destroy(worker);
        } else if (dice < 983) {
            do_rollback(worker);
        } else if (dice < 995) {
            expect("commit", store_commit(worker->store));
        } else if (dice < 997) {
            expect("checkpoint", store_checkpoint(worker->store));
        } else {
            store_statistics(worker->store, &statistics);
        }
    }
    return NULL;
}

/* ---- rounds -------------------------------------------------------------------------------------------------- */

static void report(void *argument, const char *message)
{
    (void)argument;
    fprintf(stderr, "store_driver: check: %s\n", message);
}

static void check(struct store *store)
{
    int64_t problems = store_check(store, true, report, NULL);

    if (problems != 0) {
        fail("the pool is not sound", problems < 0 ? (int)problems : -EUCLEAN);
    }
}

static struct store *open_store(struct storage *storage, bool no_background)
{
    /* Small limits, so that eviction, flushing and checkpoints happen all the time. */
    const struct store_options options = {
        .cache_bytes_max = 256u << 10,
        .dirty_bytes_max = 512u << 10,
        .buffer_bytes_max = 1u << 20,
        .commit_interval_ms = 3,
        .no_background = no_background,
    };
    struct store_failure failure = {{0}};
    struct store *store = NULL;
    int result = store_open(storage, &options, &store, &failure);

    if (result != 0) {
        fail(failure.message, result);
    }
    return store;
}

static void run_round(struct storage *storage, struct worker *workers, unsigned worker_count, unsigned round)
{
    struct store *store = open_store(storage, worker_count == 1 && round % 2 == 0);
    uint64_t id;
    int result;

    check(store);
    expect("create", store_volume_create(store, "v0", &id));
    for (unsigned index = 0; index < worker_count; index++) {
        workers[index].store = store;
        result = pthread_create(&workers[index].thread, NULL, work, &workers[index]);
        if (result != 0) {
            fail("thread", -result);
        }
    }
    for (unsigned index = 0; index < worker_count; index++) {
        (void)pthread_join(workers[index].thread, NULL);
    }
    check(store);
    if (draw(&workers[0], 2) == 0) {
        store_abandon(store);
    } else {
        result = store_close(store);
        if (result != 0) {
            fail("close", result);
        }
    }
}

int main(int argument_count, char **arguments)
{
    struct lasting_storage storage = {.base.operations = &lasting_operations};
    struct store_parameters parameters = {0};
    struct store_failure failure = {{0}};
    struct worker workers[16] = {{0}};
    unsigned worker_count;
    unsigned rounds = 0;
    double seconds;
    time_t end;
    int result;

    if (argument_count != 4) {
        fprintf(stderr, "usage: store_driver SECONDS THREADS SEED\n");
        return 2;
    }
    seconds = strtod(arguments[1], NULL);
    worker_count = (unsigned)strtoul(arguments[2], NULL, 10);
    if (worker_count == 0 || worker_count > sizeof(workers) / sizeof(workers[0])) {
        fprintf(stderr, "store_driver: 1 to 16 threads\n");
        return 2;
    }
    for (unsigned index = 0; index < worker_count; index++) {
        workers[index].number = index;
        workers[index].random = (strtoull(arguments[3], NULL, 10) + index + 1) * UINT64_C(0x9e3779b97f4a7c15) | 1;
    }
    result = storage_open_memory(POOL_SIZE_BYTES, &storage.inner);
    if (result != 0) {
        fail("memory", result);
    }
    parameters.node_size_bytes = 4096u << draw(&workers[0], 3);
    parameters.metadata_copies = 1 + draw(&workers[0], 2);
    result = store_format(&storage.base, &parameters, &failure);
    if (result != 0) {
        fail(failure.message, result);
    }
    end = time(NULL) + (time_t)seconds;
    do {
        run_round(&storage.base, workers, worker_count, rounds);
        rounds++;
    } while (time(NULL) < end);
    storage.inner->operations->close(storage.inner);
    printf("%u rounds of %u operations by %u threads\n", rounds, OPERATIONS_PER_ROUND, worker_count);
    return 0;
}
