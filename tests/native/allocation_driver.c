/* Makes the n-th allocation of a workload fail, for n = 1, 2, 3 … until the workload completes; each once alone, and
 * once with all later ones. For builds with AddressSanitizer, linked so that malloc and its kin come here.
 *
 *     allocation_driver STEP
 *
 * STEP is the distance between the values of n: 1 for all. What a verb may answer is -ENOMEM, or, when the store has
 * stopped, -EROFS and -EIO; then the pool is opened again with all memory there is: it is sound, and holds what was
 * acknowledged as durable. Ends with 0, or with 1 and a message. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cowfs/native/filesystem.h"
#include "failing_allocations.h"
#include "lasting_storage.h"

#define POOL_SIZE_BYTES (16u << 20)
#define FILES 24u
#define LARGE_BYTES (300u << 10)

/* ---- what is expected ------------------------------------------------------------------------------------------ */

static unsigned long current_index;

static void fail(const char *what, int result)
{
    fprintf(stderr, "allocation_driver: allocation %lu%s: %s: %s (%d)\n", current_index,
            for_ever ? " and all later" : "", what, strerror(result < 0 ? -result : result), result);
    exit(1);
}

/* Whether it succeeded. */
static bool expect(const char *what, int result)
{
    if (result != 0 && (!has_failed || (result != -ENOMEM && result != -EROFS && result != -EIO)))
        fail(what, result);
    return result == 0;
}

static void report(void *argument, const char *message)
{
    (void)argument;
    fprintf(stderr, "allocation_driver: check: %s\n", message);
}

/* ---- the workload ---------------------------------------------------------------------------------------------- */

struct life {
    struct store *store;
    struct filesystem *filesystem;
    uint64_t volume_id;
    /* By number of the file: content[0] of what was last acknowledged, and of what was durable; 0: not there. */
    uint8_t acknowledged[FILES], durable[FILES];
    bool failed[FILES];  /* its last change: it may be there, not at all, or in part */
    bool changed[FILES]; /* since the last commit: either may be found */
};

static uint8_t large[LARGE_BYTES], found[LARGE_BYTES];

static struct filesystem_name name_of(unsigned number, char text[16])
{
    int length = snprintf(text, 16, "file %u", number);
    return (struct filesystem_name){text, (size_t)length};
}

static size_t length_of(unsigned number)
{
    return number % 4 == 0 ? 100 : number % 4 == 1 ? 5000 : number % 4 == 2 ? 20000 : LARGE_BYTES;
}

static bool life_open(struct storage *storage, struct life *life)
{
    const struct store_options options = {.no_background = true};
    struct store_failure failure = {{0}};
    struct store_volume volume;
    if (!expect("open", store_open(storage, &options, &life->store, &failure)))
        return false;
    int result = store_volume_find(life->store, "main", &volume);
    if (result == 0)
        result = filesystem_open(life->store, volume.id, false, &life->filesystem);
    life->volume_id = volume.id;
    if (expect("mount", result)) {
        expect("compression", filesystem_set_compression(life->filesystem, 0, 1, 0));
        return true;
    }
    store_abandon(life->store);
    return false;
}

static void life_end(struct life *life, bool clean)
{
    filesystem_close(life->filesystem);
    if (clean)
        expect("close", store_close(life->store));
    else
        store_abandon(life->store);
}

static void make(struct life *life, unsigned number, uint8_t content)
{
    char text[16];
    struct filesystem_name name = name_of(number, text);
    const struct filesystem_creation creation = {.mode = S_IFREG | 0644};
    struct filesystem_attributes attributes;
    life->failed[number] = true;
    int result = filesystem_lookup(life->filesystem, 1, name, &attributes);
    if (result == -ENOENT)
        result = filesystem_create(life->filesystem, 1, name, &creation, &attributes);
    if (!expect("make", result))
        return;
    memset(large, content, length_of(number));
    if (expect("write", filesystem_write(life->filesystem, attributes.node, 0, large, length_of(number)))) {
        life->acknowledged[number] = content;
        life->failed[number] = false;
        life->changed[number] = true;
    }
    expect("forget", filesystem_forget(life->filesystem, attributes.node, 1));
}

static void take_away(struct life *life, unsigned number)
{
    char text[16];
    bool there = life->acknowledged[number] && !life->failed[number];
    int result = filesystem_unlink(life->filesystem, 1, name_of(number, text));
    if (result == -ENOENT && !there)
        return;
    life->failed[number] = life->changed[number] = true;
    if (expect("unlink", result)) {
        life->acknowledged[number] = 0;
        life->failed[number] = false;
    }
}

static void commit(struct life *life, int result)
{
    if (!expect("commit", result))
        return;
    memcpy(life->durable, life->acknowledged, sizeof life->durable);
    memset(life->changed, 0, sizeof life->changed);
}

static void look_around(struct life *life)
{
    struct filesystem_entry entries[4];
    struct filesystem_attributes attributes;
    struct filesystem_name colour = {"user.colour", 11};
    uint64_t cookie = 0, root, copied, place;
    size_t count = 1, length;
    char *path;
    while (count && expect("list", filesystem_readdir(life->filesystem, 1, cookie, 4, false, entries, &count)))
        for (size_t i = 0; i < count; i++)
            cookie = entries[i].cookie;
    char text[16], other[16];
    int result = filesystem_lookup(life->filesystem, 1, name_of(3, text), &attributes);
    if (result == -ENOENT || !expect("lookup", result))
        return;
    memset(found, 0, sizeof found);
    if (expect("read", filesystem_read(life->filesystem, attributes.node, 0, found, sizeof found, &length)))
        for (size_t at = 1; at < length && !life->failed[3]; at++)
            if (found[at] != found[0])
                fail("wrong bytes", -EILSEQ);
    expect("set attribute", filesystem_setxattr(life->filesystem, attributes.node, colour, large, 900, 0));
    if (expect("path", filesystem_path(life->filesystem, attributes.node, &path, &length)))
        free(path);
    result = filesystem_seek(life->filesystem, attributes.node, 0, true, &place);
    if (result != -ENXIO) /* its write may have failed */
        expect("seek", result);
    uint64_t node = attributes.node;
    const struct filesystem_creation creation = {.mode = S_IFREG | 0600};
    if (expect("create unnamed", filesystem_create_unnamed(life->filesystem, 1, &creation, &attributes))) {
        expect("copy", filesystem_copy_range(life->filesystem, node, 0, attributes.node, 0, LARGE_BYTES, &copied));
        expect("forget copy", filesystem_forget(life->filesystem, attributes.node, 1));
    }
    expect("forget", filesystem_forget(life->filesystem, node, 1));
    result = filesystem_rename(life->filesystem, 1, name_of(4, text), 1, name_of(4, other), 0);
    if (result != -ENOENT)
        expect("rename", result);
    struct store_snapshot snapshot;
    result = store_snapshot_find(life->store, life->volume_id, "s0", &snapshot);
    if (result != -ENOENT && expect("find", result) &&
        expect("view", filesystem_view_of_snapshot(life->filesystem, snapshot.id, &root)))
        expect("list view", filesystem_readdir(life->filesystem, root, 0, 4, false, entries, &count));
}

/* Volumes, holds, a rollback and what it makes stale, a file that is truncated and one that is unlinked while open. */
static void administer(struct life *life)
{
    struct store_snapshot snapshot, guard;
    struct filesystem_attributes attributes;
    struct filesystem_change change = {.fields = FILESYSTEM_SET_SIZE, .size_bytes = 12345};
    const struct filesystem_creation directory = {.mode = S_IFDIR | 0755};
    char text[16];
    struct filesystem_nodes open, held = {0};
    uint64_t clone, root, cursor = 0;
    uint32_t old_view;
    int result = filesystem_lookup(life->filesystem, 1, name_of(2, text), &attributes);
    if (result != -ENOENT && expect("lookup", result)) {
        uint64_t node = attributes.node;
        life->failed[2] = true; /* not looked at any more */
        expect("truncate", filesystem_setattr(life->filesystem, node, &change, &attributes));
        result = filesystem_unlink(life->filesystem, 1, name_of(2, text));
        expect("unlink while open", result);
        expect("forget", filesystem_forget(life->filesystem, node, 1));
    }
    static const struct filesystem_name directory_name = {"directory", 9};
    if (expect("mkdir", filesystem_create(life->filesystem, 1, directory_name, &directory, &attributes))) {
        expect("forget", filesystem_forget(life->filesystem, attributes.node, 1));
        expect("rmdir", filesystem_rmdir(life->filesystem, 1, directory_name));
    }
    if (store_snapshot_find(life->store, life->volume_id, "s2", &snapshot) != 0)
        return;
    expect("annotate", store_snapshot_annotate(life->store, snapshot.id, 0, "note", 4));
    if (expect("clone", store_clone(life->store, snapshot.id, "clone", &clone))) {
        if (expect("view", filesystem_view_of_volume(life->filesystem, clone, &root)) &&
            expect("create", filesystem_create(life->filesystem, root, directory_name, &directory, &attributes)))
            expect("forget", filesystem_forget(life->filesystem, attributes.node, 1));
        expect("commit", store_commit(life->store));
        expect("destroy", store_volume_destroy(life->store, clone));
    }
    /* To a snapshot that is as the tree is: what the files hold stays. */
    if (expect("snapshot", store_snapshot_create(life->store, life->volume_id, "now", &snapshot)) &&
        expect("rollback", store_rollback(life->store, life->volume_id, snapshot.id, "guard", &guard)) &&
        expect("rolled back", filesystem_rolled_back(life->filesystem, life->volume_id, &open, &old_view))) {
        free(open.ids);
        do
            result = filesystem_held_nodes(life->filesystem, old_view, &cursor, &held);
        while (expect("held nodes", result) && cursor != 0);
        free(held.ids);
    }
}

static void work(struct life *life)
{
    struct store_snapshot snapshot;
    char name[16];
    for (unsigned number = 0; number < FILES; number++) {
        make(life, number, (uint8_t)(number + 1));
        if (number % 8 == 7) {
            snprintf(name, sizeof name, "s%u", number / 8);
            int result = store_snapshot_create(life->store, life->volume_id, name, &snapshot);
            expect("snapshot", result == -EEXIST ? 0 : result);
            commit(life, filesystem_fsync(life->filesystem, 1, 0));
            look_around(life);
        }
        if (number == 12)
            commit(life, store_checkpoint(life->store));
    }
    for (unsigned number = 0; number < FILES; number += 3)
        take_away(life, number);
    commit(life, store_checkpoint(life->store));
    if (store_snapshot_find(life->store, life->volume_id, "s1", &snapshot) == 0)
        expect("delete", store_snapshot_delete(life->store, snapshot.id));
    for (unsigned number = 1; number < FILES; number += 5)
        make(life, number, (uint8_t)(number + 101));
    commit(life, filesystem_fsync(life->filesystem, 1, 0));
    administer(life);
    commit(life, store_commit(life->store)); /* the root may be stale */
}

static unsigned long verified; /* files found as they had to be */

/* With all memory there is. */
static void verify(struct storage *storage, const struct life *before)
{
    struct life life = {0};
    disarm();
    if (!life_open(storage, &life))
        return;
    for (unsigned number = 0; number < FILES; number++) {
        char text[16];
        struct filesystem_attributes attributes;
        size_t length = 0;
        int result = filesystem_lookup(life.filesystem, 1, name_of(number, text), &attributes);
        if (before->failed[number] || before->changed[number] || (result == -ENOENT && before->durable[number] == 0))
            continue;
        expect("a durable file", result);
        result = filesystem_read(life.filesystem, attributes.node, 0, found, sizeof found, &length);
        expect("its content", result);
        if (length != length_of(number) || found[0] != before->durable[number])
            fail("a durable file has another content", -EILSEQ);
        verified++;
    }
    int64_t problems = filesystem_check(life.filesystem, life.volume_id, report, NULL);
    if (problems == 0)
        problems = store_check(life.store, true, report, NULL);
    if (problems != 0)
        fail("the pool is not sound", -EUCLEAN);
    life_end(&life, true);
}

static void begin(struct storage *storage)
{
    const struct store_parameters parameters = {.journal_size_bytes = 1u << 20};
    struct store_failure failure = {{0}};
    uint64_t volume_id;
    const struct store_options options = {.no_background = true};
    struct store *store;
    expect("format", store_format(storage, &parameters, &failure));
    expect("open", store_open(storage, &options, &store, &failure));
    expect("volume", store_volume_create(store, "main", &volume_id));
    expect("initialize", filesystem_initialize(store, volume_id, 0, 0, 0755));
    expect("close", store_close(store));
}

/* One failure and two lives: one in which it happens, one that must not have suffered from it. True when it did. */
static bool run(unsigned long index, bool later_ones_too)
{
    struct lasting_storage storage = {.base.operations = &lasting_operations};
    struct life life = {0};
    current_index = index;
    if (storage_open_memory(POOL_SIZE_BYTES, &storage.inner) != 0)
        fail("memory", -ENOMEM);
    begin(&storage.base);
    arm(index, later_ones_too);
    if (life_open(&storage.base, &life)) {
        work(&life);
        life_end(&life, index % 2 == 0);
    }
    bool happened = has_failed;
    verify(&storage.base, &life);
    storage.inner->operations->close(storage.inner);
    return happened;
}

int main(int argument_count, char **arguments)
{
    unsigned long step = argument_count == 2 ? strtoul(arguments[1], NULL, 10) : 0, failures = 0;
    if (step == 0) {
        fprintf(stderr, "usage: allocation_driver STEP\n");
        return 2;
    }
    for (int later_ones_too = 0; later_ones_too < 2; later_ones_too++)
        for (unsigned long index = 1; run(index, later_ones_too); index += step)
            failures++;
    printf("%lu allocations failed, %lu durable files verified\n", failures, verified);
    return 0;
}
