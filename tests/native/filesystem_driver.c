/* Drives the verbs from several threads over memory, for builds with sanitizers.
 *
 *     filesystem_driver SECONDS THREADS SEED
 *
 * Rounds: open, let the threads do random things to a few directories, check the trees and the pool, then close or
 * abandon. Files are written in sectors that say which inode and which place they belong to, so that whatever is read,
 * also in a snapshot or after a rollback, shows by itself whether it is right: such a sector, or zeros. Ends with 0, or
 * with 1 and a message. */
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "cowfs/native/filesystem.h"
#include "lasting_storage.h"

#define POOL_SIZE_BYTES (48u << 20)
#define SECTOR 512u
#define TRANSFER_BYTES_MAX (768u << 10)
#define FILE_SECTORS_MAX 4096u
#define NAMES 60u
#define HELD 24u
#define SNAPSHOTS_MAX 12u
#define OPERATIONS_PER_ROUND 2500u

static void fail(const char *what, int result)
{
    fprintf(stderr, "filesystem_driver: %s: %s (%d)\n", what, strerror(result < 0 ? -result : result), result);
    exit(1);
}

/* Everything that a random verb may meet when others work beside it; never EIO or EUCLEAN. */
static int expect(const char *what, int result)
{
    static const int usual[] = {ENOENT, EEXIST, ENOTDIR, EISDIR, ENOTEMPTY, ESTALE, ENOSPC, EINVAL,
                                EPERM,  EBUSY,  EROFS,   EXDEV,  ENODATA,   ERANGE, EMLINK};
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++)
        if (result == -usual[i])
            return result;
    if (result != 0)
        fail(what, result);
    return 0;
}

/* ---- the mount and its workers --------------------------------------------------------------------------------- */

struct mount {
    struct store *store;
    struct filesystem *filesystem;
    uint64_t volume_id;
    pthread_mutex_t rollback_mutex; /* one rollback at a time, as the daemon has it */
    atomic_uint names_made;
};

struct worker {
    pthread_t thread;
    struct mount *mount;
    uint64_t random;
    uint64_t held[HELD]; /* nodes with one lookup each; 0: none */
    uint8_t *bytes;      /* TRANSFER_BYTES_MAX */
};

/* xorshift64* */
static uint32_t draw(struct worker *worker, uint32_t below)
{
    worker->random ^= worker->random >> 12;
    worker->random ^= worker->random << 25;
    worker->random ^= worker->random >> 27;
    return (uint32_t)((worker->random * UINT64_C(2685821657736338717)) >> 33) % below;
}

struct name {
    char text[16];
    struct filesystem_name name;
};

static void some_name(struct worker *worker, struct name *out)
{
    int length = snprintf(out->text, sizeof out->text, "name%u", draw(worker, NAMES));
    out->name = (struct filesystem_name){out->text, (size_t)length};
}

static uint64_t some_node(struct worker *worker)
{
    uint64_t node = worker->held[draw(worker, HELD)];
    return node == 0 ? 1 : node;
}

/* Takes over a lookup. */
static void hold(struct worker *worker, uint64_t node)
{
    uint64_t *place = &worker->held[draw(worker, HELD)];
    if (*place != 0)
        expect("forget", filesystem_forget(worker->mount->filesystem, *place, 1));
    *place = node;
}

/* ---- content --------------------------------------------------------------------------------------------------- */

struct sector {
    uint64_t inode, index, salt;
    uint64_t filling[SECTOR / 8 - 4];
    uint64_t checksum;
};

static void sector_make(struct worker *worker, uint64_t inode, uint64_t index, struct sector *out)
{
    *out = (struct sector){.inode = inode, .index = index, .salt = draw(worker, UINT32_MAX)};
    /* Most of it compresses well, some moderately, some not at all. */
    uint64_t step = out->salt % 8 == 0 ? UINT64_C(0x9e3779b97f4a7c15) : out->salt % 2;
    for (size_t i = 0; i < sizeof out->filling / 8; i++)
        out->filling[i] = (out->salt + i * step) * (out->salt % 8 == 0 ? out->salt * (i + 1) : 1);
    out->checksum = store_checksum(out, sizeof *out - sizeof out->checksum);
}

static void sector_check(uint64_t inode, uint64_t index, const struct sector *sector)
{
    static const struct sector zeros;
    if (memcmp(sector, &zeros, sizeof zeros) == 0)
        return;
    if (sector->checksum != store_checksum(sector, sizeof *sector - sizeof sector->checksum))
        fail("a sector is not what anybody wrote", -EILSEQ);
    if (sector->inode != inode || sector->index != index)
        fail("a sector is at the wrong place", -EILSEQ);
}

static uint64_t inode_of(uint64_t node)
{
    return node & ((UINT64_C(1) << FILESYSTEM_VIEW_SHIFT) - 1);
}

/* Mostly small, at times more than one transaction. */
static uint32_t some_sectors(struct worker *worker)
{
    static const uint32_t most[] = {1, 2, 8, 8, 24, 64, 256, TRANSFER_BYTES_MAX / SECTOR};
    return 1 + draw(worker, most[draw(worker, sizeof most / sizeof *most)]);
}

static void do_write(struct worker *worker)
{
    uint64_t node = some_node(worker);
    uint32_t count = some_sectors(worker), first = draw(worker, FILE_SECTORS_MAX);
    if (draw(worker, 2) == 0)
        first = draw(worker, 16);
    if (draw(worker, 3) == 0) {
        first = first / 8 * 8;
        count = (count + 7) / 8 * 8;
    }
    if (count * SECTOR > TRANSFER_BYTES_MAX)
        count = TRANSFER_BYTES_MAX / SECTOR;
    for (uint32_t at = 0; at < count; at++)
        sector_make(worker, inode_of(node), first + at, (struct sector *)worker->bytes + at);
    expect("write", filesystem_write(worker->mount->filesystem, node, (uint64_t)first * SECTOR, worker->bytes,
                                     (size_t)count * SECTOR));
}

static void read_and_check(struct worker *worker, uint64_t node)
{
    uint32_t count = some_sectors(worker), first = draw(worker, draw(worker, 2) ? FILE_SECTORS_MAX : 16);
    size_t got = 0;
    int result = filesystem_read(worker->mount->filesystem, node, (uint64_t)first * SECTOR, worker->bytes,
                                 (size_t)count * SECTOR, &got);
    if (expect("read", result) != 0)
        return;
    if (got > (size_t)count * SECTOR || got % SECTOR != 0)
        fail("a read of a wrong length", -EILSEQ);
    for (uint32_t at = 0; at < got / SECTOR; at++)
        sector_check(inode_of(node), first + at, (struct sector *)worker->bytes + at);
}

static void do_compression(struct worker *worker)
{
    static const uint8_t choices[][2] = {{0, 0}, {1, 0}, {1, 0}, {2, 1}, {2, 3}};
    const uint8_t *choice = choices[draw(worker, sizeof choices / sizeof *choices)];
    int result = filesystem_set_compression(worker->mount->filesystem, worker->mount->volume_id, choice[0], choice[1]);
    if (result != 0)
        fail("compression", result);
}

static void do_truncate(struct worker *worker)
{
    struct filesystem_attributes attributes;
    struct filesystem_change change = {.fields = FILESYSTEM_SET_SIZE};
    change.size_bytes = (uint64_t)draw(worker, draw(worker, 2) ? FILE_SECTORS_MAX : 4) * SECTOR;
    expect("truncate", filesystem_setattr(worker->mount->filesystem, some_node(worker), &change, &attributes));
}

static void copy_all(struct worker *worker, uint64_t from, uint64_t to, uint64_t offset, uint64_t length)
{
    uint64_t copied = 1;
    for (uint64_t done = 0; copied != 0 && done < length; done += copied)
        if (expect("copy", filesystem_copy_range(worker->mount->filesystem, from, offset + done, to, offset + done,
                                                 length - done, &copied)) != 0)
            return;
}

/* A range to a file without a name and back to where it came from: what it shares on the way stays right. */
static void do_copy(struct worker *worker)
{
    struct filesystem_creation creation = {.mode = S_IFREG | 0600};
    struct filesystem_attributes attributes;
    uint64_t node = some_node(worker), offset = (uint64_t)draw(worker, FILE_SECTORS_MAX / 2) * SECTOR;
    uint64_t length = (uint64_t)some_sectors(worker) * SECTOR;
    if (draw(worker, 2) == 0) {
        offset = offset / STORE_BLOCK_SIZE * STORE_BLOCK_SIZE;
        length = (uint64_t)FILE_SECTORS_MAX * SECTOR;
    }
    if (expect("create without a name",
               filesystem_create_unnamed(worker->mount->filesystem, 1, &creation, &attributes)) != 0)
        return;
    copy_all(worker, node, attributes.node, offset, length);
    if (draw(worker, 2) == 0)
        do_write(worker);
    copy_all(worker, attributes.node, node, offset, length);
    expect("forget", filesystem_forget(worker->mount->filesystem, attributes.node, 1));
}

static void do_range(struct worker *worker)
{
    static const unsigned modes[] = {0, FILESYSTEM_ALLOCATE_ZERO_RANGE,
                                     FILESYSTEM_ALLOCATE_PUNCH_HOLE | FILESYSTEM_ALLOCATE_KEEP_SIZE};
    uint64_t node = some_node(worker), offset = (uint64_t)draw(worker, FILE_SECTORS_MAX / 2) * SECTOR, found;
    int result = filesystem_seek(worker->mount->filesystem, node, offset, draw(worker, 2) == 0, &found);
    if (result != -ENXIO)
        expect("seek", result);
    result = filesystem_allocate(worker->mount->filesystem, node, modes[draw(worker, 3)], offset,
                                 (uint64_t)some_sectors(worker) * SECTOR);
    if (result != -ENODEV)
        expect("allocate", result);
}

/* ---- names ----------------------------------------------------------------------------------------------------- */

static void do_create(struct worker *worker)
{
    struct filesystem_creation creation = {.mode = S_IFREG | 0644};
    struct filesystem_attributes attributes;
    struct name name;
    some_name(worker, &name);
    uint32_t dice = draw(worker, 10);
    if (dice == 0)
        creation.mode = S_IFDIR | 0755;
    if (dice == 1) {
        creation.mode = S_IFLNK | 0777;
        creation.target = name.name;
    }
    int result = filesystem_create(worker->mount->filesystem, some_node(worker), name.name, &creation, &attributes);
    if (expect("create", result) == 0)
        hold(worker, attributes.node);
}

static int lookup(struct worker *worker, uint64_t parent)
{
    struct filesystem_attributes attributes;
    struct name name;
    some_name(worker, &name);
    int result = expect("lookup", filesystem_lookup(worker->mount->filesystem, parent, name.name, &attributes));
    if (result == 0)
        hold(worker, attributes.node);
    return result;
}

static void do_link(struct worker *worker)
{
    struct filesystem_attributes attributes;
    struct name name;
    some_name(worker, &name);
    int result = filesystem_link(worker->mount->filesystem, some_node(worker), some_node(worker), name.name,
                                 &attributes);
    if (expect("link", result) == 0)
        hold(worker, attributes.node);
}

static void do_rename(struct worker *worker)
{
    struct name from, to;
    some_name(worker, &from);
    some_name(worker, &to);
    uint64_t source = some_node(worker), target = draw(worker, 2) ? source : some_node(worker);
    expect("rename", filesystem_rename(worker->mount->filesystem, source, from.name, target, to.name,
                                       draw(worker, 3)));
}

static void do_unlink(struct worker *worker)
{
    struct name name;
    some_name(worker, &name);
    uint64_t parent = draw(worker, 2) ? 1 : some_node(worker);
    if (draw(worker, 4) == 0)
        expect("rmdir", filesystem_rmdir(worker->mount->filesystem, parent, name.name));
    else
        expect("unlink", filesystem_unlink(worker->mount->filesystem, parent, name.name));
}

static void do_list(struct worker *worker)
{
    struct filesystem_entry entries[8];
    uint64_t cookie = 0, node = draw(worker, 2) ? 1 : some_node(worker);
    size_t count;
    do {
        if (expect("list", filesystem_readdir(worker->mount->filesystem, node, cookie, 8, true, entries, &count)) != 0)
            return;
        for (size_t i = 0; i < count; i++) {
            if (entries[i].cookie <= cookie)
                fail("a listing goes backwards", -EILSEQ);
            cookie = entries[i].cookie;
            hold(worker, entries[i].attributes.node);
        }
    } while (count != 0);
}

static void do_attributes(struct worker *worker)
{
    static const struct filesystem_name name = {"user.colour", 11};
    struct filesystem *filesystem = worker->mount->filesystem;
    struct filesystem_attributes attributes;
    uint64_t node = some_node(worker);
    uint8_t value[1500];
    size_t length;
    char *path;
    switch (draw(worker, 6)) {
    case 0:
        memset(value, 7, sizeof value);
        expect("set attribute", filesystem_setxattr(filesystem, node, name, value, draw(worker, sizeof value), 0));
        break;
    case 1:
        if (expect("get attribute", filesystem_getxattr(filesystem, node, name, value, sizeof value, &length)) == 0)
            for (size_t i = 0; i < length; i++)
                if (value[i] != 7)
                    fail("an attribute's value is wrong", -EILSEQ);
        break;
    case 2:
        expect("remove attribute", filesystem_removexattr(filesystem, node, name));
        break;
    case 3:
        if (expect("path", filesystem_path(filesystem, node, &path, &length)) == 0)
            free(path);
        break;
    default:
        expect("attributes", filesystem_getattr(filesystem, node, &attributes));
    }
}

/* ---- snapshots ------------------------------------------------------------------------------------------------- */

/* A snapshot's id, or 0. */
static uint64_t some_snapshot(struct worker *worker, uint32_t *present)
{
    struct store_snapshot snapshot;
    uint64_t id = 0, chosen = 0;
    for (*present = 0; store_snapshot_next(worker->mount->store, worker->mount->volume_id, id, &snapshot) == 0;) {
        id = snapshot.id;
        if (draw(worker, ++*present) == 0)
            chosen = id;
    }
    return chosen;
}

static void snapshot_name(struct worker *worker, char name[32])
{
    (void)snprintf(name, 32, "snapshot%u", atomic_fetch_add(&worker->mount->names_made, 1));
}

static void do_snapshot(struct worker *worker)
{
    struct mount *mount = worker->mount;
    struct store_snapshot snapshot;
    char name[32];
    uint32_t present;
    uint64_t id = some_snapshot(worker, &present);
    if (present >= SNAPSHOTS_MAX || (id != 0 && draw(worker, 3) == 0)) {
        if (expect("delete snapshot", store_snapshot_delete(mount->store, id)) == 0)
            filesystem_forget_snapshot(mount->filesystem, id);
        return;
    }
    snapshot_name(worker, name);
    expect("snapshot", store_snapshot_create(mount->store, mount->volume_id, name, &snapshot));
}

static void do_look_into_snapshot(struct worker *worker)
{
    uint32_t present;
    uint64_t id = some_snapshot(worker, &present), root;
    if (id == 0 || expect("view", filesystem_view_of_snapshot(worker->mount->filesystem, id, &root)) != 0)
        return;
    for (int tries = 0; tries < 8; tries++)
        if (lookup(worker, root) == 0)
            break;
}

static void do_rollback(struct worker *worker)
{
    struct mount *mount = worker->mount;
    struct store_snapshot guard;
    struct filesystem_nodes open = {0}, held = {0};
    uint64_t cursor = 0;
    char name[32];
    uint32_t present, old_view;
    uint64_t id = some_snapshot(worker, &present);
    snapshot_name(worker, name);
    pthread_mutex_lock(&mount->rollback_mutex);
    if (expect("rollback", store_rollback(mount->store, mount->volume_id, id, name, &guard)) == 0) {
        expect("rolled back", filesystem_rolled_back(mount->filesystem, mount->volume_id, &open, &old_view));
        free(open.ids);
        do
            expect("held nodes", filesystem_held_nodes(mount->filesystem, old_view, &cursor, &held));
        while (cursor != 0);
        free(held.ids);
    }
    pthread_mutex_unlock(&mount->rollback_mutex);
}

static void *work(void *argument)
{
    struct worker *worker = argument;
    struct filesystem_space space;
    for (unsigned operation = 0; operation < OPERATIONS_PER_ROUND; operation++) {
        uint32_t dice = draw(worker, 1000);
        if (dice < 240)
            do_write(worker);
        else if (dice < 260)
            do_copy(worker);
        else if (dice < 270)
            do_range(worker);
        else if (dice < 400)
            read_and_check(worker, some_node(worker));
        else if (dice < 430)
            do_truncate(worker);
        else if (dice < 530)
            do_create(worker);
        else if (dice < 650)
            (void)lookup(worker, draw(worker, 2) ? 1 : some_node(worker));
        else if (dice < 670)
            do_link(worker);
        else if (dice < 730)
            do_rename(worker);
        else if (dice < 810)
            do_unlink(worker);
        else if (dice < 840)
            do_list(worker);
        else if (dice < 920)
            do_attributes(worker);
        else if (dice < 940)
            do_snapshot(worker);
        else if (dice < 970)
            do_look_into_snapshot(worker);
        else if (dice < 972)
            do_rollback(worker);
        else if (dice < 995)
            expect("fsync", filesystem_fsync(worker->mount->filesystem, some_node(worker), 0));
        else if (dice < 998)
            filesystem_statfs(worker->mount->filesystem, &space);
        else if (dice < 999)
            expect("checkpoint", store_checkpoint(worker->mount->store));
        else
            do_compression(worker);
    }
    for (unsigned at = 0; at < HELD; at++) {
        if (worker->held[at] != 0)
            expect("forget", filesystem_forget(worker->mount->filesystem, worker->held[at], 1));
        worker->held[at] = 0;
    }
    return NULL;
}

/* ---- rounds ---------------------------------------------------------------------------------------------------- */

static void report(void *argument, const char *message)
{
    (void)argument;
    fprintf(stderr, "filesystem_driver: check: %s\n", message);
}

static void check(const struct mount *mount)
{
    struct store_snapshot snapshot = {0};
    int64_t problems = filesystem_check(mount->filesystem, mount->volume_id, report, NULL);
    while (problems == 0 &&
           store_snapshot_next(mount->store, mount->volume_id, snapshot.id, &snapshot) == 0)
        problems = filesystem_check(mount->filesystem, snapshot.id, report, NULL);
    if (problems == 0)
        problems = store_check(mount->store, true, report, NULL);
    if (problems != 0)
        fail("the pool is not sound", problems < 0 ? (int)problems : -EUCLEAN);
}

static void mount_open(struct storage *storage, bool no_background, struct mount *out)
{
    /* Small limits, so that eviction, flushing and checkpoints happen all the time. */
    const struct store_options options = {
        .cache_bytes_max = 1u << 20,
        .dirty_bytes_max = 512u << 10,
        .buffer_bytes_max = 2u << 20,
        .commit_interval_ms = 3,
        .no_background = no_background,
    };
    struct store_failure failure = {{0}};
    struct store_volume volume;
    int result = store_open(storage, &options, &out->store, &failure);
    if (result != 0)
        fail(failure.message, result);
    expect("volume", store_volume_create(out->store, "main", &out->volume_id));
    result = store_volume_find(out->store, "main", &volume);
    if (result == 0)
        result = filesystem_open(out->store, volume.id, false, &out->filesystem);
    if (result != 0)
        fail("mount", result);
    out->volume_id = volume.id;
    result = filesystem_gather_start(out->filesystem);
    if (result != 0)
        fail("gather", result);
}

static void run_round(struct storage *storage, struct worker *workers, unsigned worker_count, unsigned round)
{
    static struct mount mount = {.rollback_mutex = PTHREAD_MUTEX_INITIALIZER};
    mount_open(storage, worker_count == 1 && round % 2 == 0, &mount);
    workers[0].mount = &mount;
    do_compression(&workers[0]);
    check(&mount);
    for (unsigned index = 0; index < worker_count; index++) {
        workers[index].mount = &mount;
        int error = pthread_create(&workers[index].thread, NULL, work, &workers[index]);
        if (error != 0)
            fail("thread", -error);
    }
    for (unsigned index = 0; index < worker_count; index++)
        (void)pthread_join(workers[index].thread, NULL);
    expect("release", filesystem_release_all(mount.filesystem));
    check(&mount);
    filesystem_close(mount.filesystem);
    if (draw(&workers[0], 2) == 0) {
        store_abandon(mount.store);
    } else {
        int result = store_close(mount.store);
        if (result != 0)
            fail("close", result);
    }
}

int main(int argument_count, char **arguments)
{
    struct lasting_storage storage = {.base.operations = &lasting_operations};
    const struct store_parameters parameters = {0};
    struct store_failure failure = {{0}};
    struct worker workers[16] = {{0}};
    unsigned worker_count, rounds = 0;
    if (argument_count != 4) {
        fprintf(stderr, "usage: filesystem_driver SECONDS THREADS SEED\n");
        return 2;
    }
    double seconds = strtod(arguments[1], NULL);
    worker_count = (unsigned)strtoul(arguments[2], NULL, 10);
    if (worker_count == 0 || worker_count > sizeof workers / sizeof *workers) {
        fprintf(stderr, "filesystem_driver: 1 to 16 threads\n");
        return 2;
    }
    for (unsigned index = 0; index < worker_count; index++) {
        workers[index].random = (strtoull(arguments[3], NULL, 10) + index + 1) * UINT64_C(0x9e3779b97f4a7c15) | 1;
        workers[index].bytes = malloc(TRANSFER_BYTES_MAX);
        if (workers[index].bytes == NULL)
            fail("memory", -ENOMEM);
    }
    int result = storage_open_memory(POOL_SIZE_BYTES, &storage.inner);
    if (result != 0)
        fail("memory", result);
    result = store_format(&storage.base, &parameters, &failure);
    if (result != 0)
        fail(failure.message, result);
    time_t end = time(NULL) + (time_t)seconds;
    do {
        run_round(&storage.base, workers, worker_count, rounds);
        rounds++;
    } while (time(NULL) < end);
    storage.inner->operations->close(storage.inner);
    for (unsigned index = 0; index < worker_count; index++)
        free(workers[index].bytes);
    printf("%u rounds of %u operations by %u threads\n", rounds, OPERATIONS_PER_ROUND, worker_count);
    return 0;
}
