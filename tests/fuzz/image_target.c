/* One input: opens a mutated pool, looks at everything in it, changes a little, checks and closes it. Nothing may
 * crash, hang, grow without bound or answer anything but 0 or a negative errno that a caller can make sense of. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cowfs/native/filesystem.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/image.h"

#define NODES_MAX 24u
#define LISTING 16u
#define READ_BYTES_MAX 65536u
#define OBJECTS_MAX 5u

/* Fails for what no caller could make sense of; -ENOMEM among them: nothing here needs much. */
static int expect(const char *what, int result)
{
    static const int known[] = {
        EIO, EUCLEAN, EINVAL, ENOENT, EEXIST, ENOSPC, EROFS, ESTALE, ENOTDIR, EISDIR, EPERM, ENOTEMPTY, EMLINK, EFBIG,
        ENXIO, ENODATA, EOPNOTSUPP, EPROTONOSUPPORT, EBUSY, ENAMETOOLONG, ERANGE, EOVERFLOW, E2BIG, ENODEV,
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (result == -known[i])
            return result;
    if (result != 0)
        fuzz_fail(what, result);
    return 0;
}

struct walk {
    struct filesystem *filesystem;
    uint64_t nodes[NODES_MAX];
    size_t count;
    uint8_t *bytes; /* READ_BYTES_MAX */
};

static void look_at_node(struct walk *walk, uint64_t node)
{
    struct filesystem *filesystem = walk->filesystem;
    struct filesystem_attributes attributes;
    size_t got = 0, length = 0;
    uint64_t found = 0, parent = 0;
    char *path = NULL;
    if (expect("getattr", filesystem_getattr(filesystem, node, &attributes)) < 0)
        return;
    const uint64_t offsets[] = {0, 90000, attributes.size_bytes > 4096 ? attributes.size_bytes - 4096 : 0};
    if (S_ISREG(attributes.mode)) {
        for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++)
            expect("read", filesystem_read(filesystem, node, offsets[i], walk->bytes, READ_BYTES_MAX, &got));
        expect("seek", filesystem_seek(filesystem, node, 0, true, &found));
        expect("seek", filesystem_seek(filesystem, node, 5000, false, &found));
    }
    if (S_ISLNK(attributes.mode))
        expect("readlink", filesystem_readlink(filesystem, node, walk->bytes, &length));
    char *list = (char *)walk->bytes;
    if (expect("listxattr", filesystem_listxattr(filesystem, node, list, READ_BYTES_MAX, &length)) == 0 && length > 0) {
        uint8_t *value = malloc(READ_BYTES_MAX);
        size_t name_length = strnlen(list, length), value_length;
        if (value == NULL)
            fuzz_fail("memory", -ENOMEM);
        const struct filesystem_name name = {walk->bytes, name_length};
        expect("getxattr", filesystem_getxattr(filesystem, node, name, value, READ_BYTES_MAX, &value_length));
        free(value);
    }
    expect("parent", filesystem_parent(filesystem, node, &parent));
    if (expect("path", filesystem_path(filesystem, node, &path, &length)) == 0)
        free(path);
}

static void list_directory(struct walk *walk, uint64_t node)
{
    struct filesystem_entry *entries = calloc(LISTING, sizeof *entries);
    struct filesystem_attributes found;
    uint64_t cookie = 0;
    size_t count = 0;
    if (entries == NULL)
        fuzz_fail("memory", -ENOMEM);
    for (unsigned round = 0; round < 12; round++) {
        if (expect("readdir", filesystem_readdir(walk->filesystem, node, cookie, LISTING, true, entries, &count)) < 0)
            break;
        if (count > LISTING)
            fuzz_fail("readdir gave more than it was asked for", -EINVAL);
        for (size_t i = 0; i < count; i++) {
            if (entries[i].cookie <= cookie)
                fuzz_fail("cookies do not rise", -EINVAL);
            cookie = entries[i].cookie;
            const struct filesystem_name name = {entries[i].name, entries[i].name_length};
            if (expect("lookup", filesystem_lookup(walk->filesystem, node, name, &found)) == 0)
                expect("forget", filesystem_forget(walk->filesystem, found.node, 1));
            if (walk->count < NODES_MAX)
                walk->nodes[walk->count++] = entries[i].attributes.node;
            else
                expect("forget", filesystem_forget(walk->filesystem, entries[i].attributes.node, 1));
        }
        if (count == 0)
            break;
    }
    free(entries);
}

static void walk_tree(struct walk *walk, uint64_t root)
{
    walk->count = 0;
    list_directory(walk, root);
    look_at_node(walk, root);
    for (size_t i = 0; i < walk->count; i++) {
        struct filesystem_attributes attributes;
        look_at_node(walk, walk->nodes[i]);
        if (filesystem_getattr(walk->filesystem, walk->nodes[i], &attributes) == 0 && S_ISDIR(attributes.mode))
            list_directory(walk, walk->nodes[i]);
    }
}

/* Gives back what walk_tree() holds. */
static void leave_tree(struct walk *walk)
{
    for (size_t i = 0; i < walk->count; i++)
        expect("forget", filesystem_forget(walk->filesystem, walk->nodes[i], 1));
    walk->count = 0;
}

static struct filesystem_name named(const char *text)
{
    return (struct filesystem_name){text, strlen(text)};
}

static void change_file(struct walk *walk, uint64_t node, unsigned which)
{
    struct filesystem *filesystem = walk->filesystem;
    struct filesystem_attributes out;
    const struct filesystem_change shorter = {.fields = FILESYSTEM_SET_SIZE, .size_bytes = 5000};
    const struct filesystem_change owner = {.fields = FILESYSTEM_SET_UID | FILESYSTEM_SET_MODE, .uid = 7, .mode = 0600};
    uint64_t copied;
    switch (which % 6) {
    case 0:
        expect("write", filesystem_write(filesystem, node, 4000, walk->bytes, 9000));
        break;
    case 1:
        expect("truncate", filesystem_setattr(filesystem, node, &shorter, &out));
        expect("write", filesystem_write(filesystem, node, 300, walk->bytes, 20));
        break;
    case 2:
        expect("punch", filesystem_allocate(filesystem, node, FILESYSTEM_ALLOCATE_PUNCH_HOLE |
                                                                  FILESYSTEM_ALLOCATE_KEEP_SIZE, 4096, 100000));
        break;
    case 3:
        expect("setattr", filesystem_setattr(filesystem, node, &owner, &out));
        expect("setxattr", filesystem_setxattr(filesystem, node, named("user.long"), walk->bytes, 700, 0));
        break;
    case 4:
        expect("copy", filesystem_copy_range(filesystem, node, 0, node, 1 << 20, 50000, &copied));
        break;
    default:
        expect("removexattr", filesystem_removexattr(filesystem, node, named("user.long")));
        expect("fsync", filesystem_fsync(filesystem, node, 0));
        break;
    }
}

static void change_names(struct walk *walk)
{
    struct filesystem *filesystem = walk->filesystem;
    struct filesystem_attributes made, found;
    const struct filesystem_creation file = {.mode = S_IFREG | 0644}, folder = {.mode = S_IFDIR | 0755};
    if (expect("create", filesystem_create(filesystem, 1, named("new"), &file, &made)) == 0) {
        expect("write", filesystem_write(filesystem, made.node, 0, walk->bytes, 20000));
        if (expect("link", filesystem_link(filesystem, made.node, 1, named("linked"), &found)) == 0)
            expect("forget", filesystem_forget(filesystem, found.node, 1));
        expect("forget", filesystem_forget(filesystem, made.node, 1));
    }
    if (expect("mkdir", filesystem_create(filesystem, 1, named("new folder"), &folder, &made)) == 0)
        expect("forget", filesystem_forget(filesystem, made.node, 1));
    expect("rename", filesystem_rename(filesystem, 1, named("inline"), 1, named("renamed"), 0));
    expect("rename", filesystem_rename(filesystem, 1, named("folder"), 1, named("new"), FILESYSTEM_RENAME_EXCHANGE));
    expect("unlink", filesystem_unlink(filesystem, 1, named("renamed")));
    expect("rmdir", filesystem_rmdir(filesystem, 1, named("new folder")));
    expect("unlink", filesystem_unlink(filesystem, 1, named("late")));
}

static void report(void *argument, const char *message)
{
    size_t *length = argument;
    *length += strlen(message);
}

static void check_volume(struct filesystem *filesystem, uint64_t object_id)
{
    size_t length = 0;
    int64_t problems = filesystem_check(filesystem, object_id, report, &length);
    if (problems < 0)
        expect("check of a file system", (int)problems);
    else if ((problems > 0) != (length > 0))
        fuzz_fail("problems without words", -EINVAL);
}

static int count_difference(void *argument, const struct store_item *old_item, const struct store_item *new_item)
{
    unsigned *count = argument;
    if (old_item == NULL && new_item == NULL)
        fuzz_fail("a difference of nothing", -EINVAL);
    return ++*count > 10000 ? -E2BIG : 0;
}

static void use_volume(struct store *store, uint64_t volume_id, unsigned flags, uint8_t *bytes)
{
    struct walk walk = {.bytes = bytes};
    struct store_snapshot snapshot = {0};
    bool read_only = flags & INPUT_READ_ONLY;
    if (expect("open a file system", filesystem_open(store, volume_id, read_only, &walk.filesystem)) < 0)
        return;
    for (unsigned count = 0; count < (flags & INPUT_NO_CHANGES ? 2 : OBJECTS_MAX); count++) {
        uint64_t root;
        unsigned differences = 0;
        if (expect("next snapshot", store_snapshot_next(store, volume_id, snapshot.id, &snapshot)) < 0)
            break;
        if (expect("view", filesystem_view_of_snapshot(walk.filesystem, snapshot.id, &root)) == 0) {
            walk_tree(&walk, root);
            leave_tree(&walk);
        }
        if (flags & INPUT_DIFFERENCES)
            expect("differences",
                   store_diff(store, snapshot.id, volume_id, NULL, 0, count_difference, &differences));
        if (flags & INPUT_CHECK)
            check_volume(walk.filesystem, snapshot.id);
    }
    walk_tree(&walk, 1);
    if (!read_only && !(flags & INPUT_NO_CHANGES)) {
        for (size_t i = 0; i < walk.count && i < 12; i++)
            change_file(&walk, walk.nodes[i], (unsigned)i);
        change_names(&walk);
    }
    leave_tree(&walk);
    expect("release", filesystem_release_all(walk.filesystem));
    if (flags & INPUT_CHECK)
        check_volume(walk.filesystem, volume_id);
    filesystem_close(walk.filesystem);
}

static void change_catalog(struct store *store, uint64_t volume_id)
{
    struct store_snapshot snapshot, guard;
    uint64_t clone_id;
    expect("snapshot", store_snapshot_create(store, volume_id, "fuzzed", &snapshot));
    if (expect("find", store_snapshot_find(store, volume_id, "one", &snapshot)) == 0) {
        expect("rollback", store_rollback(store, volume_id, snapshot.id, "fuzzed guard", &guard));
        expect("clone", store_clone(store, snapshot.id, "fuzzed clone", &clone_id));
        expect("delete", store_snapshot_delete(store, snapshot.id));
    }
    expect("commit", store_commit(store));
    if (expect("find", store_snapshot_find(store, volume_id, "three", &snapshot)) == 0)
        expect("delete", store_snapshot_delete(store, snapshot.id));
    expect("checkpoint", store_checkpoint(store));
}

static int use_pool(struct image *image, unsigned flags)
{
    const struct store_options options = {
        .cache_bytes_max = 1,
        .dirty_bytes_max = 1,
        .buffer_bytes_max = 1,
        .no_background = true,
        .read_only = flags & INPUT_READ_ONLY,
        .rebuild_space = flags & INPUT_REBUILD && !(flags & INPUT_READ_ONLY),
    };
    struct store_failure failure = {{0}};
    struct store_volume volume = {0};
    struct store *store;
    size_t length = 0;
    int result = expect("open", store_open(&image->storage, &options, &store, &failure));
    if (result < 0) {
        if (failure.message[0] == 0)
            fuzz_fail("refused without a word", result);
        return result;
    }
    uint8_t *bytes = calloc(1, READ_BYTES_MAX);
    if (bytes == NULL)
        fuzz_fail("memory", -ENOMEM);
    uint64_t ids[OBJECTS_MAX];
    size_t count = 0;
    while (count < OBJECTS_MAX && expect("next volume", store_volume_next(store, volume.id, &volume)) == 0)
        ids[count++] = volume.id;
    for (size_t i = 0; i < count; i++) {
        use_volume(store, ids[i], flags, bytes);
        if (!(flags & (INPUT_READ_ONLY | INPUT_NO_CHANGES)))
            change_catalog(store, ids[i]);
    }
    if (!(flags & (INPUT_READ_ONLY | INPUT_NO_CHANGES)) && count > 0)
        expect("destroy", store_volume_destroy(store, ids[count - 1]));
    if (flags & INPUT_CHECK) {
        if (!(flags & INPUT_READ_ONLY))
            expect("checkpoint", store_checkpoint(store));
        int64_t problems = store_check(store, true, report, &length);
        if (problems < 0)
            expect("check of the store", (int)problems);
    }
    free(bytes);
    if (flags & INPUT_ABANDON)
        store_abandon(store);
    else
        expect("close", store_close(store));
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
    static struct image image;
    struct input_header header;
    if (length < sizeof header)
        return 0;
    memcpy(&header, bytes, sizeof header);
    image_begin(&image, seed_get(header.seed));
    image_edit(&image, bytes + sizeof header, length - sizeof header);
    if (use_pool(&image, header.flags) == 0 && (header.flags & INPUT_AGAIN))
        (void)use_pool(&image, header.flags | INPUT_CHECK);
    image_end(&image);
    return 0;
}
