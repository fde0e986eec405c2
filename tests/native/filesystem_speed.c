/* Times the verbs in process, without a kernel in between: what one request costs the C core.
 *
 *     filesystem_speed POOL [TEST...]
 *
 * Built with -O2 -I. and -lxxhash -llz4 -lzstd from the C files of btree/native and cowfs/native that are neither
 * bindings nor the pump. POOL is a file of at least 3 GiB, best in memory and written through once before, and is
 * formatted. Prints wall and CPU time per operation, the latter also of all threads, so that what is moved to a
 * background thread counts. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cowfs/native/filesystem.h"

#define FILE_BYTES (UINT64_C(512) << 20)
#define BLOCK 4096u
#define MIB (1u << 20)

static struct store *store;
static struct filesystem *filesystem;
static uint64_t volume_id;
static uint64_t big;
static uint8_t buffer[2][MIB] __attribute__((aligned(4096)));
static const char *pool_path;

static void check(const char *what, int result)
{
    if (result != 0) {
        fprintf(stderr, "filesystem_speed: %s: %s\n", what, strerror(-result));
        exit(1);
    }
}

static double clock_now(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static uint64_t random_state = 88172645463325252u;

static uint64_t draw(uint64_t *state, uint64_t below)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state % below;
}

static void mount_pool(void)
{
    const struct store_options options = {0};
    struct store_failure failure;
    struct storage *storage;
    check("open", storage_open_file(pool_path, false, &storage));
    if (store_open(storage, &options, &store, &failure) != 0) {
        fprintf(stderr, "filesystem_speed: %s\n", failure.message);
        exit(1);
    }
    struct store_volume volume;
    if (store_volume_find(store, "main", &volume) == 0)
        volume_id = volume.id;
    else
        check("volume", store_volume_create(store, "main", &volume_id));
    check("file system", filesystem_open(store, volume_id, false, &filesystem));
}

static void unmount_pool(void)
{
    filesystem_close(filesystem);
    check("close", store_close(store));
}

static struct filesystem_name name_of(char *text, const char *format, unsigned number)
{
    int length = snprintf(text, 64, format, number);
    return (struct filesystem_name){text, (size_t)length};
}

static uint64_t make_file(const char *format, unsigned number)
{
    const struct filesystem_creation creation = {.mode = 0100644};
    struct filesystem_attributes attributes;
    char text[64];
    check("create", filesystem_create(filesystem, 1, name_of(text, format, number), &creation, &attributes));
    return attributes.node;
}

static void write_whole(uint64_t node, uint64_t bytes)
{
    for (uint64_t at = 0; at < bytes; at += MIB) {
        *(uint64_t *)buffer[0] = at;
        check("write", filesystem_write(filesystem, node, at, buffer[0], MIB));
    }
}

/* ---- tests: each returns how many operations it did ------------------------------------------------------------ */

static unsigned files_made;

static double test_overwrite(void)
{
    unsigned count = 100000;
    for (unsigned i = 0; i < count; i++) {
        uint64_t at = draw(&random_state, FILE_BYTES / BLOCK) * BLOCK;
        *(uint64_t *)buffer[0] = i;
        check("overwrite", filesystem_write(filesystem, big, at, buffer[0], BLOCK));
    }
    return count;
}

static double test_small_overwrite(void) /* 512 bytes: reads the block */
{
    unsigned count = 30000;
    for (unsigned i = 0; i < count; i++) {
        uint64_t at = draw(&random_state, FILE_BYTES / 512) * 512;
        check("overwrite", filesystem_write(filesystem, big, at, buffer[0], 512));
    }
    return count;
}

static double test_append(void)
{
    uint64_t node = make_file("append%u", files_made++);
    unsigned count = 40000;
    for (unsigned i = 0; i < count; i++)
        check("append", filesystem_write(filesystem, node, (uint64_t)i * BLOCK, buffer[0], BLOCK));
    return count;
}

static double test_write_mib(void)
{
    uint64_t node = make_file("large%u", files_made++);
    write_whole(node, FILE_BYTES / 2);
    return (double)(FILE_BYTES / 2 / MIB);
}

static double test_rewrite_mib(void)
{
    write_whole(big, FILE_BYTES / 2);
    return (double)(FILE_BYTES / 2 / MIB);
}

static double test_fsync(void)
{
    uint64_t node = make_file("sync%u", files_made++);
    unsigned count = 5000;
    for (unsigned i = 0; i < count; i++) {
        check("write", filesystem_write(filesystem, node, (uint64_t)(i % 256) * BLOCK, buffer[0], BLOCK));
        check("fsync", filesystem_fsync(filesystem, node, 0));
    }
    return count;
}

static double test_getattr(void)
{
    struct filesystem_attributes attributes;
    unsigned count = 1000000;
    for (unsigned i = 0; i < count; i++)
        check("getattr", filesystem_getattr(filesystem, big, &attributes));
    return count;
}

#define NAMES 50000u
static uint64_t nodes[NAMES];

static double test_create(void)
{
    for (unsigned i = 0; i < NAMES; i++)
        nodes[i] = make_file("file-%08u", i);
    return NAMES;
}

static double test_lookup(void)
{
    struct filesystem_attributes attributes;
    char text[64];
    unsigned count = 300000;
    for (unsigned i = 0; i < count; i++) {
        unsigned number = (unsigned)draw(&random_state, NAMES);
        check("lookup", filesystem_lookup(filesystem, 1, name_of(text, "file-%08u", number), &attributes));
        nodes[number] = attributes.node;
    }
    return count;
}

static double test_getattr_random(void)
{
    struct filesystem_attributes attributes;
    unsigned count = 300000;
    for (unsigned i = 0; i < count; i++)
        check("getattr", filesystem_getattr(filesystem, nodes[draw(&random_state, NAMES)], &attributes));
    return count;
}

static double test_unlink(void)
{
    char text[64];
    for (unsigned i = 0; i < NAMES; i++) {
        check("unlink", filesystem_unlink(filesystem, 1, name_of(text, "file-%08u", i)));
        check("forget", filesystem_forget(filesystem, nodes[i], 1 << 20));
    }
    return NAMES;
}

static double test_read_cold(void)
{
    size_t got;
    filesystem_close(filesystem);
    check("close", store_close(store));
    mount_pool();
    struct filesystem_attributes attributes;
    check("lookup", filesystem_lookup(filesystem, 1, (struct filesystem_name){"big", 3}, &attributes));
    big = attributes.node;
    for (uint64_t at = 0; at < FILE_BYTES; at += MIB / 8)
        check("read", filesystem_read(filesystem, big, at, buffer[0], MIB / 8, &got));
    return (double)(FILE_BYTES / (MIB / 8));
}

static double test_read_random(void)
{
    size_t got;
    unsigned count = 200000;
    for (unsigned i = 0; i < count; i++)
        check("read", filesystem_read(filesystem, big, draw(&random_state, FILE_BYTES / BLOCK) * BLOCK, buffer[0],
                                      BLOCK, &got));
    return count;
}

/* ---- two threads ----------------------------------------------------------------------------------------------- */

struct pair {
    uint64_t node;
    unsigned index;
    int kind;
};

static void *pair_work(void *argument)
{
    const struct pair *pair = argument;
    uint64_t state = 1234567 + pair->index;
    struct filesystem_attributes attributes;
    size_t got;
    uint8_t *bytes = buffer[pair->index];
    for (unsigned i = 0; i < (pair->kind == 1 ? 128u : 50000u); i++) {
        uint64_t at = draw(&state, (UINT64_C(128) << 20) / BLOCK) * BLOCK;
        if (pair->kind == 0)
            check("overwrite", filesystem_write(filesystem, pair->node, at, bytes, BLOCK));
        else if (pair->kind == 1)
            check("write", filesystem_write(filesystem, pair->node, (uint64_t)i * MIB, bytes, MIB));
        else if (pair->kind == 2)
            check("getattr", filesystem_getattr(filesystem, pair->node, &attributes));
        else
            check("read", filesystem_read(filesystem, pair->node, at, bytes, BLOCK, &got));
    }
    return NULL;
}

static double pair_run(int kind, unsigned threads)
{
    static uint64_t files[2];
    pthread_t thread[2];
    struct pair pairs[2];
    for (unsigned i = 0; i < 2; i++) {
        if (files[i] == 0) {
            files[i] = make_file("pair%u", i);
            write_whole(files[i], UINT64_C(128) << 20);
        }
        pairs[i] = (struct pair){files[i], i, kind};
    }
    double start = clock_now(CLOCK_MONOTONIC);
    for (unsigned i = 0; i < threads; i++)
        pthread_create(&thread[i], NULL, pair_work, &pairs[i]);
    for (unsigned i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
    double count = threads * (kind == 1 ? 128.0 : 50000.0);
    return count / (clock_now(CLOCK_MONOTONIC) - start);
}

static double test_pairs(void)
{
    static const char *const kinds[] = {"overwrite", "write_mib", "getattr", "read"};
    for (int kind = 0; kind < 4; kind++) {
        double one = pair_run(kind, 1), two = pair_run(kind, 2);
        printf("  two threads, %-10s %8.0f -> %8.0f operations a second: %.2f times\n", kinds[kind], one, two,
               two / one);
    }
    return 1;
}

static const struct {
    const char *name;
    double (*run)(void);
} tests[] = {
    {"write_mib", test_write_mib},
    {"rewrite_mib", test_rewrite_mib},
    {"overwrite", test_overwrite},
    {"small_overwrite", test_small_overwrite},
    {"append", test_append},
    {"fsync", test_fsync},
    {"getattr", test_getattr},
    {"create", test_create},
    {"lookup", test_lookup},
    {"getattr_random", test_getattr_random},
    {"unlink", test_unlink},
    {"read_random", test_read_random},
    {"read_cold", test_read_cold},
    {"pairs", test_pairs},
};

int main(int argument_count, char **arguments)
{
    const struct store_parameters parameters = {0};
    struct store_failure failure;
    struct storage *storage;
    if (argument_count < 2) {
        fprintf(stderr, "usage: filesystem_speed POOL [TEST...]\n");
        return 2;
    }
    pool_path = arguments[1];
    check("open", storage_open_file(pool_path, false, &storage));
    check("format", store_format(storage, &parameters, &failure));
    storage->operations->close(storage);
    mount_pool();
    big = make_file("big", 0);
    write_whole(big, FILE_BYTES);
    check("checkpoint", store_checkpoint(store));
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        bool wanted = argument_count == 2;
        for (int at = 2; at < argument_count; at++)
            wanted = wanted || strcmp(arguments[at], tests[i].name) == 0;
        if (!wanted)
            continue;
        struct store_statistics before, after;
        store_statistics(store, &before);
        double wall = clock_now(CLOCK_MONOTONIC), cpu = clock_now(CLOCK_PROCESS_CPUTIME_ID);
        double thread = clock_now(CLOCK_THREAD_CPUTIME_ID);
        double count = tests[i].run();
        wall = clock_now(CLOCK_MONOTONIC) - wall;
        cpu = clock_now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
        thread = clock_now(CLOCK_THREAD_CPUTIME_ID) - thread;
        store_commit(store);
        store_statistics(store, &after);
        printf("%-16s wall %9.3f us  thread %9.3f us  process %9.3f us", tests[i].name, wall / count * 1e6,
               thread / count * 1e6, cpu / count * 1e6);
        if (after.transactions > before.transactions)
            printf("  journal %6.0f bytes",
                   (double)(after.journal_written_bytes - before.journal_written_bytes) / count);
        printf("  nodes %5.1f\n", (double)(after.nodes_touched > before.nodes_touched ? after.nodes_touched -
                                                                                            before.nodes_touched
                                                                                      : after.nodes_touched) / count);
        fflush(stdout);
    }
    unmount_pool();
    return 0;
}
