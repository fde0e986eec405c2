#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>

#include "btree/native/internal.h"
#include "cowfs/native/compression.h"
#include "world.h"

#define CONTENT_BYTES_MAX ((size_t)256 << 10)
#define NODE_BITS ((UINT64_C(1) << FILESYSTEM_VIEW_SHIFT) - 1)
#define ENTRIES_PER_CALL 32u
#define DEPTH_MAX 16u
#define TRY(expression)              \
    do {                             \
        int try_result = (expression); \
        if (try_result < 0)          \
            return try_result;       \
    } while (0)

/* ---- clock and chance of the code under test, which is linked with --wrap --------------------------------------- */

static uint64_t clock_ns;
static struct chance entropy;

int __wrap_clock_gettime(clockid_t clock, struct timespec *out);
ssize_t __wrap_getrandom(void *buffer, size_t length_bytes, unsigned flags);

int __wrap_clock_gettime(clockid_t clock, struct timespec *out)
{
    (void)clock;
    clock_ns += 1000;
    out->tv_sec = (time_t)(clock_ns / 1000000000u);
    out->tv_nsec = (long)(clock_ns % 1000000000u);
    return 0;
}

ssize_t __wrap_getrandom(void *buffer, size_t length_bytes, unsigned flags)
{
    (void)flags;
    chance_fill(&entropy, buffer, length_bytes);
    return (ssize_t)length_bytes;
}

void world_set_clock(uint64_t since_1970_ns)
{
    clock_ns = since_1970_ns;
}

void world_set_random(struct chance chance)
{
    entropy = chance;
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

static int world_fail(struct world *world, int result, const char *what, const char *detail)
{
    (void)snprintf(world->message, sizeof world->message, "%s: %s (%s)", what, detail, strerror(-result));
    return result;
}

int world_format(struct storage *storage, const struct world_options *options, struct world *world)
{
    struct store_parameters parameters = {
        .node_size_bytes = options->node_size_bytes,
        .metadata_copies = options->metadata_copies,
        .label = "crash",
    };
    struct store_options store_options = {.no_background = true};
    struct store_failure failure = {{0}};
    struct store *store;
    uint64_t id;
    memcpy(parameters.uuid, options->uuid, sizeof parameters.uuid);
    int result = store_format(storage, &parameters, &failure);
    if (result == 0 && !medium_is_flushed((const struct medium *)storage))
        return world_fail(world, -EUCLEAN, "making the pool", "it is not durable");
    if (result == 0)
        result = store_open(storage, &store_options, &store, &failure);
    if (result < 0)
        return world_fail(world, result, "making the pool", failure.message);
    result = store_volume_create(store, "main", &id);
    if (result == 0)
        result = filesystem_initialize(store, id, 0, 0, 0755);
    int closed = store_close(store);
    return result < 0 ? result : closed;
}

static int open_world(struct world *world, struct storage *storage, bool rebuild)
{
    /* the commonest pools need far less; what is allocated at opening is paid for by every state */
    struct store_options options = {.no_background = true, .cache_bytes_max = 4u << 20, .buffer_bytes_max = 2u << 20};
    struct store_failure failure = {{0}};
    struct store_volume volume;
    uint64_t serial = world->serial;
    unsigned habits = world->habits;
    options.rebuild_space = rebuild;
    memset(world, 0, sizeof *world);
    world->serial = serial;
    world->habits = habits;
    int result = store_open(storage, &options, &world->store, &failure);
    if (result < 0)
        return world_fail(world, result, "opening", failure.message);
    result = store_volume_find(world->store, "main", &volume);
    if (result == 0)
        result = filesystem_open(world->store, volume.id, false, &world->filesystem);
    if (result < 0) {
        store_abandon(world->store);
        return world_fail(world, result, "opening", "the file system");
    }
    world->main_id = volume.id;
    world->bitmap_was_found_out = world->store->bitmap_damaged;
    if (habits & HABIT_HASTY)
        world->store->journal.pending_bytes_max = 1;
    if (habits & HABIT_PUT_OFF)
        world->store->queue_steps_max = 1;
    world->store->maintenance_started = habits & HABIT_LAZY;
    return habits & HABIT_COMPRESS ? filesystem_set_compression(world->filesystem, 0, COMPRESSION_LZ4, 0) : 0;
}

int world_open(struct world *world, struct storage *storage)
{
    return open_world(world, storage, false);
}

int world_rebuild(struct world *world, struct storage *storage)
{
    return open_world(world, storage, true);
}

int world_close(struct world *world)
{
    int released = filesystem_release_all(world->filesystem);
    world->store->maintenance_started = false; /* there is no thread to wait for */
    filesystem_close(world->filesystem);
    int result = store_close(world->store);
    result = released < 0 ? released : result;
    return result < 0 ? world_fail(world, result, "closing", "the pool") : 0;
}

void world_abandon(struct world *world)
{
    filesystem_close(world->filesystem);
    world->store->maintenance_started = false;
    store_abandon(world->store);
}

/* ---- what can be seen ------------------------------------------------------------------------------------------- */

static void mix(uint64_t *digest, uint64_t value)
{
    struct chance mixed = {*digest ^ value * UINT64_C(0xff51afd7ed558ccd)};
    *digest = chance_draw(&mixed);
}

static void mix_bytes(uint64_t *digest, const void *bytes, size_t length)
{
    mix(digest, store_checksum(bytes, length));
    mix(digest, length);
}

static void mix_time(uint64_t *digest, struct filesystem_time time)
{
    mix(digest, (uint64_t)time.seconds * 1000000000u + time.nanoseconds);
}

/* When content is compressed, how much room it takes is decided again each time that somebody lets go of the file. */
static void mix_attributes(const struct world *world, uint64_t *digest, const struct filesystem_attributes *attributes)
{
    mix(digest, attributes->node & NODE_BITS);
    mix(digest, (uint64_t)attributes->mode << 32 | attributes->nlink);
    mix(digest, (uint64_t)attributes->uid << 32 | attributes->gid);
    mix(digest, attributes->size_bytes);
    mix(digest, world->habits & HABIT_COMPRESS ? 0 : attributes->blocks_512);
    mix_time(digest, attributes->mtime);
    mix_time(digest, attributes->ctime);
    mix_time(digest, attributes->birth);
}

/* All of a small file; of a large one, which is ballast, its ends: fsck verifies the rest. */
static int mix_content(struct world *world, const struct filesystem_attributes *attributes, uint64_t *digest)
{
    static uint8_t buffer[CONTENT_BYTES_MAX];
    size_t got, length = attributes->size_bytes > sizeof buffer ? BLOCK_SIZE : sizeof buffer;
    TRY(filesystem_read(world->filesystem, attributes->node, 0, buffer, length, &got));
    mix_bytes(digest, buffer, got);
    if (attributes->size_bytes <= sizeof buffer)
        return got == attributes->size_bytes ? 0 : -EIO;
    TRY(filesystem_read(world->filesystem, attributes->node, attributes->size_bytes - length, buffer, length, &got));
    mix_bytes(digest, buffer, got);
    return 0;
}

static int mix_xattrs(struct world *world, uint64_t node, uint64_t *digest)
{
    char names[4096];
    uint8_t value[8192];
    size_t length;
    TRY(filesystem_listxattr(world->filesystem, node, names, sizeof names, &length));
    for (size_t at = 0; at < length;) {
        struct filesystem_name name = {names + at, strlen(names + at)};
        size_t got;
        TRY(filesystem_getxattr(world->filesystem, node, name, value, sizeof value, &got));
        mix_bytes(digest, name.bytes, name.length);
        mix_bytes(digest, value, got);
        at += name.length + 1;
    }
    return 0;
}

static int mix_directory(struct world *world, uint64_t node, unsigned depth, uint64_t *digest);

static int mix_node(struct world *world, const struct filesystem_attributes *attributes, unsigned depth,
                    uint64_t *digest)
{
    char target[FILESYSTEM_TARGET_LENGTH_MAX];
    size_t length = sizeof target;
    mix_attributes(world, digest, attributes);
    TRY(mix_xattrs(world, attributes->node, digest));
    if (S_ISDIR(attributes->mode))
        return mix_directory(world, attributes->node, depth + 1, digest);
    if (S_ISREG(attributes->mode))
        return mix_content(world, attributes, digest);
    TRY(filesystem_readlink(world->filesystem, attributes->node, target, &length));
    mix_bytes(digest, target, length);
    return 0;
}

static int mix_directory(struct world *world, uint64_t node, unsigned depth, uint64_t *digest)
{
    struct filesystem_entry *entries = stack_take(ENTRIES_PER_CALL * sizeof *entries);
    uint64_t cookie = 0;
    size_t count;
    if (depth > DEPTH_MAX)
        return -ELOOP;
    do {
        TRY(filesystem_readdir(world->filesystem, node, cookie, ENTRIES_PER_CALL, true, entries, &count));
        int result = 0;
        for (size_t i = 0; i < count; i++) {
            mix_bytes(digest, entries[i].name, entries[i].name_length);
            if (result == 0)
                result = mix_node(world, &entries[i].attributes, depth, digest);
            int forgotten = filesystem_forget(world->filesystem, entries[i].attributes.node, 1);
            result = result < 0 ? result : forgotten;
            cookie = entries[i].cookie;
        }
        TRY(result);
    } while (count == ENTRIES_PER_CALL);
    return 0;
}

static int mix_tree(struct world *world, uint64_t root, uint64_t *digest)
{
    struct filesystem_attributes attributes;
    TRY(filesystem_getattr(world->filesystem, root, &attributes));
    attributes.node = root;
    struct stack_mark mark = stack_mark();
    int result = mix_node(world, &attributes, 0, digest);
    stack_release(mark);
    return result;
}

static int mix_snapshots(struct world *world, uint64_t volume_id, uint64_t *digest)
{
    struct store_snapshot snapshot = {.id = 0};
    int result;
    while ((result = store_snapshot_next(world->store, volume_id, snapshot.id, &snapshot)) == 0) {
        uint64_t root;
        mix(digest, snapshot.id);
        mix(digest, snapshot.epoch);
        mix(digest, snapshot.created_ns);
        mix(digest, (uint64_t)snapshot.clone_count << 32 | snapshot.hold_count);
        mix_bytes(digest, snapshot.name, strlen(snapshot.name));
        mix_bytes(digest, snapshot.annotation, snapshot.annotation_length);
        TRY(filesystem_view_of_snapshot(world->filesystem, snapshot.id, &root));
        TRY(mix_tree(world, root, digest));
    }
    return result == -ENOENT ? 0 : result;
}

int world_digest(struct world *world, uint64_t *digest)
{
    struct store_volume volume = {.id = 0};
    int result;
    *digest = 0;
    while ((result = store_volume_next(world->store, volume.id, &volume)) == 0) {
        uint64_t root;
        mix(digest, volume.id);
        mix(digest, volume.created_ns);
        mix(digest, volume.origin_snapshot_id);
        mix(digest, volume.generation);
        mix(digest, volume.snapshot_count);
        mix_bytes(digest, volume.name, strlen(volume.name));
        result = filesystem_view_of_volume(world->filesystem, volume.id, &root);
        if (result == 0)
            result = mix_tree(world, root, digest);
        if (result == 0)
            result = mix_snapshots(world, volume.id, digest);
        if (result < 0)
            break;
    }
    return result == -ENOENT ? 0 : world_fail(world, result, "reading everything", volume.name);
}

/* ---- checks ----------------------------------------------------------------------------------------------------- */

static void keep_first(void *argument, const char *message)
{
    struct world *world = argument;
    if (!world->message[0])
        (void)snprintf(world->message, sizeof world->message, "fsck: %s", message);
}

/* -ENOENT when the volume has no record of an orphan (docs/FORMAT.md, items of type 8 of inode 0). */
static int first_orphan_body(struct transaction *transaction, void *argument)
{
    static const uint8_t first[9] = {0, 0, 0, 0, 0, 0, 0, 0, 8};
    struct cursor cursor;
    (void)argument;
    int result = cursor_seek(transaction, &cursor, first, sizeof first);
    return result != 0 ? result : memcmp(cursor.key, first, sizeof first) == 0 ? 0 : -ENOENT;
}

static int check_object(struct world *world, uint64_t id, const char *name)
{
    int64_t problems = filesystem_check(world->filesystem, id, keep_first, world);
    if (problems < 0)
        return world_fail(world, (int)problems, "checking the tree of", name);
    return problems ? -EUCLEAN : 0;
}

static int check_space(struct world *world)
{
    struct store_statistics space;
    store_statistics(world->store, &space);
    if (space.free_blocks + space.used_blocks + space.reserved_blocks != space.size_blocks ||
        space.pending_blocks + space.dead_blocks > space.used_blocks)
        return world_fail(world, -EUCLEAN, "space", "free, used and reserved blocks are not the pool's size");
    if (space.checksum_mismatches || space.failed_errno)
        return world_fail(world, -EUCLEAN, "store", "a checksum did not match, or it has failed");
    return 0;
}

int world_check(struct world *world)
{
    struct store_volume volume = {.id = 0};
    world->message[0] = 0;
    int64_t problems = store_check(world->store, true, keep_first, world);
    if (problems != 0)
        return problems > 0 ? -EUCLEAN : world_fail(world, (int)problems, "fsck", "cannot read");
    TRY(check_space(world));
    int result;
    while ((result = store_volume_next(world->store, volume.id, &volume)) == 0) {
        struct store_snapshot snapshot = {.id = 0};
        TRY(check_object(world, volume.id, volume.name));
        while ((result = store_snapshot_next(world->store, volume.id, snapshot.id, &snapshot)) == 0)
            TRY(check_object(world, snapshot.id, snapshot.name));
        result = store_transact(world->store, volume.id, STORE_TRANSACT_READ, first_orphan_body, NULL);
        if (result == 0 && world->held_count == 0)
            return world_fail(world, -EUCLEAN, "orphans left behind in", volume.name);
        if (result < 0 && result != -ENOENT)
            return world_fail(world, result, "looking for orphans in", volume.name);
    }
    return result == -ENOENT ? 0 : result;
}
