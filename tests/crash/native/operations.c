/* What workloads do. An operation that cannot be done as things are (no such file, no space) is done with that: what
 * may then have happened is seen in the state that it left. */
#include <errno.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "btree/native/internal.h"
#include "world.h"

#define SNAPSHOTS_MAX 5u
#define AUTOMATIC_MAX 12u
#define LISTED_MAX 64u
#define VOLUMES_MAX 3u
#define REFERENCES_MAX 16u
#define LENGTH_MAX 200000u
/* Zeros in each block of compressible content. */
#define COMPRESSIBLE_FROM 1000u
#define COMPRESSIBLE_BYTES 2500u
#define TRY(expression)                \
    do {                               \
        int try_result = (expression); \
        if (try_result < 0)            \
            return try_result;         \
    } while (0)

const char *const operation_names[OPERATION_KINDS] = {
    "create", "mkdir", "symlink", "unnamed", "write", "append", "truncate", "rename", "exchange", "link", "unlink",
    "unlink held", "release", "rmdir", "setxattr", "removexattr", "setattr", "fsync", "fdatasync", "fsyncdir",
    "snapshot", "snapshot, synced", "snapshot delete", "snapshots", "thin", "annotate", "hold", "rollback", "clone",
    "promote", "destroy", "reflink", "punch", "zero", "allocate", "checkpoint",
};

static const unsigned weights[OPERATION_KINDS] = {
    [OPERATION_CREATE] = 8,        [OPERATION_MKDIR] = 2,           [OPERATION_SYMLINK] = 1,
    [OPERATION_UNNAMED] = 1,       [OPERATION_WRITE] = 16,          [OPERATION_APPEND] = 8,
    [OPERATION_TRUNCATE] = 5,      [OPERATION_RENAME] = 5,          [OPERATION_EXCHANGE] = 1,
    [OPERATION_LINK] = 3,          [OPERATION_UNLINK] = 4,          [OPERATION_UNLINK_HELD] = 3,
    [OPERATION_RELEASE] = 1,       [OPERATION_RMDIR] = 1,           [OPERATION_SETXATTR] = 4,
    [OPERATION_REMOVEXATTR] = 1,   [OPERATION_SETATTR] = 1,         [OPERATION_FSYNC] = 6,
    [OPERATION_FDATASYNC] = 2,     [OPERATION_FSYNCDIR] = 2,        [OPERATION_SNAPSHOT] = 5,
    [OPERATION_SNAPSHOT_SYNC] = 1, [OPERATION_SNAPSHOT_DELETE] = 4, [OPERATION_SNAPSHOTS] = 2,
    [OPERATION_THIN] = 2,          [OPERATION_ANNOTATE] = 1,        [OPERATION_HOLD] = 1,
    [OPERATION_ROLLBACK] = 1,      [OPERATION_CLONE] = 1,           [OPERATION_PROMOTE] = 1,
    [OPERATION_DESTROY] = 1,       [OPERATION_REFLINK] = 5,         [OPERATION_PUNCH] = 4,
    [OPERATION_ZERO] = 1,          [OPERATION_ALLOCATE] = 1,        [OPERATION_CHECKPOINT] = 5,
};

/* ---- names ------------------------------------------------------------------------------------------------------ */

enum { DIRECTORY_ROOT, DIRECTORY_A, DIRECTORY_B, DIRECTORY_A_C, DIRECTORIES };
static const char *const paths[DIRECTORIES][3] = {{NULL}, {"A", NULL}, {"B", NULL}, {"A", "C", NULL}};
enum { NAME_FOO, NAME_BAR, NAME_BAZ, NAME_QUX, NAME_A, NAME_B, NAME_C, NAMES };
static const char *const names[NAMES] = {"foo", "bar", "baz", "qux", "A", "B", "C"};

/* The nodes that one operation has looked up. */
struct references {
    uint64_t nodes[REFERENCES_MAX];
    size_t count;
};

static struct filesystem_name name_of(const char *text)
{
    return (struct filesystem_name){text, strlen(text)};
}

static int look_up(struct world *world, struct references *references, uint64_t parent, const char *name,
                   struct filesystem_attributes *out)
{
    TRY(filesystem_lookup(world->filesystem, parent, name_of(name), out));
    references->nodes[references->count++] = out->node;
    return 0;
}

static int find_directory(struct world *world, struct references *references, uint64_t root, uint8_t directory,
                          uint64_t *node)
{
    *node = root;
    for (size_t i = 0; paths[directory][i]; i++) {
        struct filesystem_attributes attributes;
        TRY(look_up(world, references, *node, paths[directory][i], &attributes));
        *node = attributes.node;
    }
    return 0;
}

/* The volume that an operation works on: the mounted one in most cases. */
static int find_volume(struct world *world, const struct operation *operation, bool clones_only,
                       struct store_volume *out)
{
    unsigned index = clones_only ? operation->volume % (VOLUMES_MAX - 1) + 1 : operation->volume;
    int result = store_volume_get(world->store, world->main_id, out);
    if (result < 0 || (index == 0 && !clones_only))
        return result;
    struct store_volume volume = {.id = 0};
    while ((result = store_volume_next(world->store, volume.id, &volume)) == 0)
        if (volume.id != world->main_id && --index == 0) {
            *out = volume;
            return 0;
        }
    return result == -ENOENT && !clones_only ? 0 : result;
}

static int find_snapshot(struct world *world, uint64_t volume_id, unsigned index, struct store_snapshot *out)
{
    out->id = 0;
    int result;
    while ((result = store_snapshot_next(world->store, volume_id, out->id, out)) == 0 && index > 0)
        index--;
    return result;
}

/* ---- content ---------------------------------------------------------------------------------------------------- */

static uint8_t bytes[LENGTH_MAX], read_back[LENGTH_MAX];

static int write_bytes(struct world *world, uint64_t node, uint64_t offset_bytes, uint32_t length_bytes,
                       uint64_t content)
{
    struct chance chance = chance_from(content, 1, 2);
    size_t got;
    if (length_bytes > LENGTH_MAX)
        length_bytes = LENGTH_MAX;
    chance_fill(&chance, bytes, length_bytes);
    for (uint32_t at = COMPRESSIBLE_FROM; world->habits & HABIT_COMPRESS && at < length_bytes; at += BLOCK_SIZE)
        memset(bytes + at, 0, length_bytes - at < COMPRESSIBLE_BYTES ? length_bytes - at : COMPRESSIBLE_BYTES);
    TRY(filesystem_write(world->filesystem, node, offset_bytes, bytes, length_bytes));
    TRY(filesystem_read(world->filesystem, node, offset_bytes, read_back, length_bytes, &got));
    if (got != length_bytes || memcmp(bytes, read_back, length_bytes) != 0) {
        (void)snprintf(world->message, sizeof world->message, "what was just written reads differently");
        return -EUCLEAN;
    }
    return 0;
}

#define BALLAST_ROOM_BLOCKS 40u

int world_add_ballast(struct world *world, uint64_t room_blocks, struct chance *chance)
{
    struct filesystem_creation creation = {.mode = S_IFREG | 0600};
    struct filesystem_attributes attributes;
    struct store_statistics space;
    int result = filesystem_create(world->filesystem, FILESYSTEM_ROOT_INODE, name_of("ballast"), &creation,
                                   &attributes);
    for (uint64_t offset = 0; result == 0; offset += 32 * BLOCK_SIZE) {
        store_statistics(world->store, &space);
        if (space.available_blocks <= BALLAST_ROOM_BLOCKS)
            break;
        chance_fill(chance, bytes, 32 * BLOCK_SIZE);
        result = filesystem_write(world->filesystem, attributes.node, offset, bytes, 32 * BLOCK_SIZE);
    }
    for (uint64_t i = 0; (result == 0 || result == -ENOSPC) && i < room_blocks; i++)
        result = filesystem_allocate(world->filesystem, attributes.node, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                     i * 3 * BLOCK_SIZE, BLOCK_SIZE);
    return result < 0 ? result : filesystem_forget(world->filesystem, attributes.node, 1);
}

int world_add_fragments(struct world *world, unsigned count)
{
    struct filesystem_creation creation = {.mode = S_IFREG | 0600};
    struct filesystem_attributes attributes;
    int result = filesystem_create(world->filesystem, FILESYSTEM_ROOT_INODE, name_of(names[NAME_QUX]), &creation,
                                   &attributes);
    if (result == -EEXIST)
        return 0;
    for (uint64_t i = 0; i < count && result == 0; i++)
        result = write_bytes(world, attributes.node, i * 2 * BLOCK_SIZE, BLOCK_SIZE, i);
    return result < 0 ? result : filesystem_forget(world->filesystem, attributes.node, 1);
}

/* ---- snapshots and volumes -------------------------------------------------------------------------------------- */

static int delete_snapshot(struct world *world, const struct store_volume *volume, unsigned index)
{
    struct store_snapshot snapshot;
    TRY(find_snapshot(world, volume->id, index, &snapshot));
    TRY(store_snapshot_delete(world->store, snapshot.id));
    filesystem_forget_snapshot(world->filesystem, snapshot.id);
    return 0;
}

static int destroy_volume(struct world *world, const struct operation *operation)
{
    struct store_volume volume;
    struct store_snapshot snapshot = {.id = 0};
    uint64_t ids[LISTED_MAX];
    size_t count = 0;
    TRY(find_volume(world, operation, true, &volume));
    while (count < LISTED_MAX && store_snapshot_next(world->store, volume.id, snapshot.id, &snapshot) == 0)
        ids[count++] = snapshot.id;
    TRY(store_volume_destroy(world->store, volume.id));
    while (count > 0)
        filesystem_forget_snapshot(world->filesystem, ids[--count]);
    return 0;
}

static int take_snapshot(struct world *world, const struct store_volume *volume, uint64_t root, bool durable)
{
    char name[32];
    if (volume->snapshot_count >= SNAPSHOTS_MAX)
        return delete_snapshot(world, volume, 0);
    (void)snprintf(name, sizeof name, "s%llu", (unsigned long long)world->serial++);
    return filesystem_snapshot(world->filesystem, root, name, durable);
}

static void part_done(struct world *world)
{
    if (world->between)
        world->between(world->between_argument);
}

static bool is_automatic(const struct store_snapshot *snapshot)
{
    return strncmp(snapshot->name, "auto-", 5) == 0;
}

static size_t list_snapshots(struct world *world, uint64_t volume_id, struct store_snapshot *out)
{
    struct store_snapshot snapshot = {.id = 0};
    size_t count = 0;
    while (count < LISTED_MAX && store_snapshot_next(world->store, volume_id, snapshot.id, &snapshot) == 0)
        out[count++] = snapshot;
    return count;
}

/* As thinning does (cowfs/retention.py): of the automatic ones, oldest first, the first of each stretch of time stays,
 * and what is held or has clones. Each goes in a transaction of its own, and none of them is waited for. */
static int thin(struct world *world, uint64_t volume_id, const struct operation *operation)
{
    static struct store_snapshot snapshots[LISTED_MAX];
    uint64_t every_ns = UINT64_C(4000) << operation->content % 5, last = UINT64_MAX;
    size_t count = list_snapshots(world, volume_id, snapshots), kept = 0;
    for (size_t i = 0; i < count; i++) {
        struct store_snapshot *snapshot = &snapshots[i];
        uint64_t stretch = snapshot->created_ns / every_ns;
        bool stays = !is_automatic(snapshot) || stretch != last || snapshot->hold_count || snapshot->clone_count;
        last = is_automatic(snapshot) ? stretch : last;
        if (stays) {
            snapshots[kept++] = *snapshot;
            continue;
        }
        TRY(store_snapshot_delete(world->store, snapshot->id));
        filesystem_forget_snapshot(world->filesystem, snapshot->id);
        part_done(world);
    }
    struct store_snapshot found;
    for (size_t i = 0; i < kept; i++)
        if (store_snapshot_get(world->store, snapshots[i].id, &found) < 0 || found.volume_id != volume_id) {
            (void)snprintf(world->message, sizeof world->message, "thinning took %s, which was to stay",
                           snapshots[i].name);
            return -EUCLEAN;
        }
    return 0;
}

/* Automatic ones, each after a small change. When there are many already, they are thinned. */
static int take_snapshots(struct world *world, const struct store_volume *volume, uint64_t root,
                          const struct operation *operation)
{
    if (volume->snapshot_count >= AUTOMATIC_MAX)
        return thin(world, volume->id, operation);
    for (uint64_t i = 0; i < 2 + operation->content % 5; i++) {
        struct filesystem_change change = {.fields = FILESYSTEM_SET_UID, .uid = (uint32_t)(operation->content + i)};
        struct filesystem_attributes attributes;
        char name[32];
        TRY(filesystem_setattr(world->filesystem, root, &change, &attributes));
        part_done(world);
        (void)snprintf(name, sizeof name, "auto-%llu", (unsigned long long)world->serial++);
        TRY(filesystem_snapshot(world->filesystem, root, name, false));
        part_done(world);
    }
    return 0;
}

/* Takes a hold of what has none, and releases one that there is. */
static int hold(struct world *world, const struct store_volume *volume, unsigned index)
{
    struct store_snapshot snapshot;
    TRY(find_snapshot(world, volume->id, index, &snapshot));
    return store_snapshot_annotate(world->store, snapshot.id, !snapshot.hold_count, snapshot.annotation,
                                   snapshot.annotation_length);
}

/* A clone in most cases; the mounted volume becomes one when a clone of it was promoted. */
static int promote(struct world *world, const struct operation *operation)
{
    struct store_volume volume;
    TRY(find_volume(world, operation, operation->content % 4 > 0, &volume));
    return store_promote(world->store, volume.id);
}

static int roll_back(struct world *world, const struct store_volume *volume, unsigned index)
{
    struct store_snapshot snapshot, guard;
    struct filesystem_nodes open;
    uint32_t old_view;
    char name[32];
    TRY(find_snapshot(world, volume->id, index, &snapshot));
    (void)snprintf(name, sizeof name, "g%llu", (unsigned long long)world->serial++);
    TRY(store_rollback(world->store, volume->id, snapshot.id, name, &guard));
    if (volume->id == world->main_id)
        world->held_count = 0;
    int result = filesystem_rolled_back(world->filesystem, volume->id, &open, &old_view);
    free(open.ids);
    return result;
}

static int make_clone(struct world *world, const struct operation *operation, const struct store_volume *volume)
{
    struct store_volume any = {.id = 0};
    struct store_snapshot snapshot;
    unsigned count = 0;
    uint64_t id;
    char name[32];
    while (store_volume_next(world->store, any.id, &any) == 0)
        count++;
    if (count >= VOLUMES_MAX)
        return destroy_volume(world, operation);
    TRY(find_snapshot(world, volume->id, operation->snapshot, &snapshot));
    (void)snprintf(name, sizeof name, "c%llu", (unsigned long long)world->serial++);
    return store_clone(world->store, snapshot.id, name, &id);
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

static int make(struct world *world, uint64_t parent, const char *name, uint32_t mode)
{
    struct filesystem_creation creation = {.mode = mode};
    struct filesystem_attributes attributes;
    if (S_ISLNK(mode))
        creation.target = name_of("where/it leads");
    TRY(filesystem_create(world->filesystem, parent, name_of(name), &creation, &attributes));
    return filesystem_forget(world->filesystem, attributes.node, 1);
}

/* O_TMPFILE, some bytes, and a name in the end, as programs replace files. */
static int make_unnamed(struct world *world, uint64_t parent, const char *name, const struct operation *operation)
{
    struct filesystem_creation creation = {.mode = S_IFREG | 0600};
    struct filesystem_attributes attributes, linked;
    TRY(filesystem_create_unnamed(world->filesystem, parent, &creation, &attributes));
    int result = write_bytes(world, attributes.node, 0, operation->length_bytes, operation->content);
    if (result == 0 && operation->content % 2)
        result = filesystem_link(world->filesystem, attributes.node, parent, name_of(name), &linked);
    if (result == 0 && operation->content % 2)
        result = filesystem_forget(world->filesystem, linked.node, 1);
    int forgotten = filesystem_forget(world->filesystem, attributes.node, 1);
    return result < 0 ? result : forgotten;
}

static int hold_and_unlink(struct world *world, uint64_t parent, const char *name)
{
    struct filesystem_attributes attributes;
    if (world->held_count == HELD_MAX)
        return filesystem_forget(world->filesystem, world->held[--world->held_count], 1);
    TRY(filesystem_lookup(world->filesystem, parent, name_of(name), &attributes));
    int result = filesystem_unlink(world->filesystem, parent, name_of(name));
    if (result < 0) {
        TRY(filesystem_forget(world->filesystem, attributes.node, 1));
        return result;
    }
    world->held[world->held_count++] = attributes.node;
    return 0;
}

static int work_on_node(struct world *world, const struct operation *operation,
                        const struct filesystem_attributes *attributes, struct references *references, uint64_t root)
{
    struct filesystem *filesystem = world->filesystem;
    uint64_t node = attributes->node, parent, copied;
    uint32_t offset = operation->offset_bytes, length = operation->length_bytes;
    struct filesystem_attributes out;
    struct filesystem_change change = {.fields = FILESYSTEM_SET_SIZE, .size_bytes = offset};
    struct filesystem_name xattr = name_of(operation->content % 3 ? "user.one" : "user.another");
    bool of_data = operation->kind == OPERATION_WRITE || operation->kind == OPERATION_APPEND ||
                   operation->kind == OPERATION_TRUNCATE || operation->kind == OPERATION_PUNCH ||
                   operation->kind == OPERATION_ZERO || operation->kind == OPERATION_ALLOCATE;
    if (of_data && !S_ISREG(attributes->mode))
        return 0; /* the kernel would not ask for it */
    uint32_t block_offset = offset / BLOCK_SIZE * BLOCK_SIZE, block_length = (length / BLOCK_SIZE + 1) * BLOCK_SIZE;
    switch (operation->kind) {
    case OPERATION_WRITE:
        return write_bytes(world, node, offset, length, operation->content);
    case OPERATION_APPEND:
        return attributes->size_bytes + length > LENGTH_MAX
                   ? 0
                   : write_bytes(world, node, attributes->size_bytes, length, operation->content);
    case OPERATION_SETATTR:
        change = (struct filesystem_change){.fields = FILESYSTEM_SET_MODE | FILESYSTEM_SET_UID,
                                            .mode = operation->content & 0777,
                                            .uid = operation->content >> 9 & 0xff};
        return filesystem_setattr(filesystem, node, &change, &out);
    case OPERATION_TRUNCATE:
        return filesystem_setattr(filesystem, node, &change, &out);
    case OPERATION_SETXATTR: {
        struct chance chance = chance_from(operation->content, 3, 4);
        size_t value_length = length % 3000;
        chance_fill(&chance, bytes, value_length);
        return filesystem_setxattr(filesystem, node, xattr, bytes, value_length, 0);
    }
    case OPERATION_REMOVEXATTR:
        return filesystem_removexattr(filesystem, node, xattr);
    case OPERATION_LINK: {
        TRY(find_directory(world, references, root, operation->to.directory, &parent));
        TRY(filesystem_link(filesystem, node, parent, name_of(names[operation->to.name]), &out));
        return filesystem_forget(filesystem, out.node, 1);
    }
    case OPERATION_REFLINK:
        TRY(find_directory(world, references, root, operation->to.directory, &parent));
        TRY(look_up(world, references, parent, names[operation->to.name], &out));
        if (!S_ISREG(out.mode) || !S_ISREG(attributes->mode) || out.node == node || attributes->size_bytes == 0 ||
            attributes->size_bytes > LENGTH_MAX || out.size_bytes > LENGTH_MAX)
            return 0;
        return filesystem_copy_range(filesystem, node, 0, out.node, 0, attributes->size_bytes, &copied);
    case OPERATION_PUNCH:
        return filesystem_allocate(filesystem, node, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, block_offset,
                                   block_length);
    case OPERATION_ZERO:
        return filesystem_allocate(filesystem, node, FALLOC_FL_ZERO_RANGE, offset, length ? length : 1);
    case OPERATION_ALLOCATE:
        return filesystem_allocate(filesystem, node, 0, offset, length ? length : 1);
    default:
        return -EUCLEAN;
    }
}

static int work_on_name(struct world *world, const struct operation *operation, struct references *references,
                        uint64_t root, uint64_t parent, bool *durable)
{
    struct filesystem *filesystem = world->filesystem;
    const char *name = names[operation->from.name];
    struct filesystem_attributes attributes;
    uint64_t new_parent;
    int result;
    switch (operation->kind) {
    case OPERATION_CREATE:
        return make(world, parent, name, S_IFREG | 0644);
    case OPERATION_MKDIR:
        return make(world, parent, name, S_IFDIR | 0755);
    case OPERATION_SYMLINK:
        return make(world, parent, name, S_IFLNK | 0777);
    case OPERATION_UNNAMED:
        return make_unnamed(world, parent, name, operation);
    case OPERATION_UNLINK:
        return filesystem_unlink(filesystem, parent, name_of(name));
    case OPERATION_UNLINK_HELD:
        return hold_and_unlink(world, parent, name);
    case OPERATION_RMDIR:
        return filesystem_rmdir(filesystem, parent, name_of(name));
    case OPERATION_RENAME:
    case OPERATION_EXCHANGE:
        TRY(find_directory(world, references, root, operation->to.directory, &new_parent));
        return filesystem_rename(filesystem, parent, name_of(name), new_parent, name_of(names[operation->to.name]),
                                 operation->kind == OPERATION_EXCHANGE ? FILESYSTEM_RENAME_EXCHANGE : 0);
    case OPERATION_FSYNCDIR:
        result = filesystem_fsync(filesystem, parent, 0);
        *durable = result == 0;
        return result;
    case OPERATION_FSYNC:
    case OPERATION_FDATASYNC:
        TRY(look_up(world, references, parent, name, &attributes));
        result = filesystem_fsync(filesystem, attributes.node, 0);
        *durable = result == 0;
        return result;
    default:
        TRY(look_up(world, references, parent, name, &attributes));
        return work_on_node(world, operation, &attributes, references, root);
    }
}

/* ---- all of them ------------------------------------------------------------------------------------------------ */

static int run(struct world *world, const struct operation *operation, struct references *references, bool *durable)
{
    struct store_volume volume;
    struct store_snapshot snapshot;
    uint64_t root, parent;
    int result;
    TRY(find_volume(world, operation, false, &volume));
    TRY(filesystem_view_of_volume(world->filesystem, volume.id, &root));
    switch (operation->kind) {
    case OPERATION_CHECKPOINT:
        result = store_checkpoint(world->store);
        *durable = result == 0;
        return result;
    case OPERATION_SNAPSHOT:
    case OPERATION_SNAPSHOT_SYNC:
        result = take_snapshot(world, &volume, root, operation->kind == OPERATION_SNAPSHOT_SYNC);
        *durable = result == 0 && operation->kind == OPERATION_SNAPSHOT_SYNC && volume.snapshot_count < SNAPSHOTS_MAX;
        return result;
    case OPERATION_SNAPSHOT_DELETE:
        return delete_snapshot(world, &volume, operation->snapshot);
    case OPERATION_SNAPSHOTS:
        return take_snapshots(world, &volume, root, operation);
    case OPERATION_THIN:
        return thin(world, volume.id, operation);
    case OPERATION_ANNOTATE:
        TRY(find_snapshot(world, volume.id, operation->snapshot, &snapshot));
        return store_snapshot_annotate(world->store, snapshot.id, snapshot.hold_count, &operation->content,
                                       sizeof operation->content);
    case OPERATION_HOLD:
        return hold(world, &volume, operation->snapshot);
    case OPERATION_ROLLBACK:
        return roll_back(world, &volume, operation->snapshot);
    case OPERATION_CLONE:
        return make_clone(world, operation, &volume);
    case OPERATION_PROMOTE:
        return promote(world, operation);
    case OPERATION_DESTROY:
        return destroy_volume(world, operation);
    case OPERATION_RELEASE:
        return world->held_count ? filesystem_forget(world->filesystem, world->held[--world->held_count], 1) : 0;
    default:
        TRY(find_directory(world, references, root, operation->from.directory, &parent));
        return work_on_name(world, operation, references, root, parent, durable);
    }
}

int operation_run(struct world *world, const struct operation *operation, bool *durable)
{
    static const int usual[] = {ENOENT, EEXIST, ENOTDIR, EISDIR, ENOTEMPTY, ENOSPC, EINVAL, EPERM, EBUSY, ENODATA};
    struct references references = {.count = 0};
    *durable = false;
    world->message[0] = 0;
    if (world->habits & HABIT_FIRST_FIT) {
        pthread_mutex_lock(&world->store->allocator.mutex);
        world->store->allocator.data_cursor = world->store->allocator.first_block;
        pthread_mutex_unlock(&world->store->allocator.mutex);
    }
    int result = run(world, operation, &references, durable);
    while (references.count > 0) {
        int forgotten = filesystem_forget(world->filesystem, references.nodes[--references.count], 1);
        result = forgotten < 0 ? forgotten : result;
    }
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++)
        if (result == -usual[i])
            return 0;
    if (result < 0 && !world->message[0])
        (void)snprintf(world->message, sizeof world->message, "%s: %s", operation_names[operation->kind],
                       strerror(-result));
    return result;
}

struct operation operation_draw(struct chance *chance)
{
    static const uint32_t lengths[] = {1, 100, 700, 4096, 9000, 20000, 60000};
    unsigned total = 0, kind = 0;
    for (unsigned i = 0; i < OPERATION_KINDS; i++)
        total += weights[i];
    for (uint64_t at = chance_below(chance, total); at >= weights[kind]; kind++)
        at -= weights[kind];
    struct operation operation = {
        .kind = (enum operation_kind)kind,
        .from = {(uint8_t)chance_below(chance, DIRECTORIES), (uint8_t)chance_below(chance, NAME_A)},
        .to = {(uint8_t)chance_below(chance, DIRECTORIES), (uint8_t)chance_below(chance, NAME_A)},
        .volume = (uint8_t)(chance_one_in(chance, 5) ? 1 + chance_below(chance, VOLUMES_MAX - 1) : 0),
        .snapshot = (uint8_t)chance_below(chance, SNAPSHOTS_MAX),
        .content = chance_draw(chance),
    };
    bool of_directories = kind == OPERATION_MKDIR || kind == OPERATION_RMDIR ||
                          (kind == OPERATION_RENAME && chance_one_in(chance, 4));
    if (of_directories) {
        operation.from.name = (uint8_t)(NAME_A + chance_below(chance, NAMES - NAME_A));
        operation.to.name = (uint8_t)(NAME_A + chance_below(chance, NAMES - NAME_A));
    }
    if (chance_one_in(chance, 2)) /* most work meets in a few places */
        operation.from.directory = operation.to.directory = 0;
    uint64_t length = lengths[chance_below(chance, sizeof lengths / sizeof *lengths)];
    operation.length_bytes = (uint32_t)(chance_one_in(chance, 2) ? length : 1 + chance_below(chance, length));
    operation.offset_bytes = chance_one_in(chance, 3) ? 0 : (uint32_t)chance_below(chance, 60000);
    return operation;
}

/* ---- the bounded set -------------------------------------------------------------------------------------------- */

#define ROOT_FOO {DIRECTORY_ROOT, NAME_FOO}
#define A_BAR {DIRECTORY_A, NAME_BAR}
#define B_FOO {DIRECTORY_B, NAME_FOO}

/* After Mohan et al., "Finding crash-consistency bugs with bounded black-box crash testing" (2018): few files, in few
 * directories, with all that can be done to them. */
static const struct operation bounded[] = {
    {.kind = OPERATION_WRITE, .from = ROOT_FOO, .length_bytes = 4096, .content = 11},
    {.kind = OPERATION_WRITE, .from = ROOT_FOO, .offset_bytes = 6000, .length_bytes = 9000, .content = 12},
    {.kind = OPERATION_WRITE, .from = A_BAR, .length_bytes = 50, .content = 13},
    {.kind = OPERATION_APPEND, .from = A_BAR, .length_bytes = 5000, .content = 14},
    {.kind = OPERATION_CREATE, .from = B_FOO},
    {.kind = OPERATION_TRUNCATE, .from = ROOT_FOO},
    {.kind = OPERATION_TRUNCATE, .from = ROOT_FOO, .offset_bytes = 5000},
    {.kind = OPERATION_TRUNCATE, .from = A_BAR, .offset_bytes = 20000},
    {.kind = OPERATION_RENAME, .from = ROOT_FOO, .to = A_BAR},
    {.kind = OPERATION_RENAME, .from = A_BAR, .to = B_FOO},
    {.kind = OPERATION_RENAME, .from = {DIRECTORY_ROOT, NAME_A}, .to = {DIRECTORY_ROOT, NAME_B}},
    {.kind = OPERATION_EXCHANGE, .from = ROOT_FOO, .to = A_BAR},
    {.kind = OPERATION_LINK, .from = ROOT_FOO, .to = B_FOO},
    {.kind = OPERATION_LINK, .from = A_BAR, .to = {DIRECTORY_A, NAME_FOO}},
    {.kind = OPERATION_UNLINK, .from = ROOT_FOO},
    {.kind = OPERATION_UNLINK, .from = A_BAR},
    {.kind = OPERATION_UNLINK_HELD, .from = ROOT_FOO},
    {.kind = OPERATION_MKDIR, .from = {DIRECTORY_A, NAME_C}},
    {.kind = OPERATION_RMDIR, .from = {DIRECTORY_ROOT, NAME_B}},
    {.kind = OPERATION_SETXATTR, .from = ROOT_FOO, .length_bytes = 2000, .content = 15},
    {.kind = OPERATION_REMOVEXATTR, .from = A_BAR, .content = 16},
    {.kind = OPERATION_SNAPSHOT},
    {.kind = OPERATION_SNAPSHOT_DELETE},
    {.kind = OPERATION_SNAPSHOTS, .content = 2},
    {.kind = OPERATION_THIN, .content = 4},
    {.kind = OPERATION_HOLD, .snapshot = 1},
    {.kind = OPERATION_ROLLBACK},
    {.kind = OPERATION_CLONE},
    {.kind = OPERATION_PROMOTE, .content = 1},
    {.kind = OPERATION_DESTROY, .volume = 0},
    {.kind = OPERATION_REFLINK, .from = ROOT_FOO, .to = A_BAR},
    {.kind = OPERATION_PUNCH, .from = ROOT_FOO, .offset_bytes = 4096, .length_bytes = 1},
};

size_t bounded_count(void)
{
    return sizeof bounded / sizeof *bounded;
}

const struct operation *bounded_operation(size_t index)
{
    return &bounded[index];
}

int bounded_prepare(struct world *world)
{
    static const struct operation made[] = {
        {.kind = OPERATION_MKDIR, .from = {DIRECTORY_ROOT, NAME_A}},
        {.kind = OPERATION_MKDIR, .from = {DIRECTORY_ROOT, NAME_B}},
        {.kind = OPERATION_CREATE, .from = ROOT_FOO},
        {.kind = OPERATION_WRITE, .from = ROOT_FOO, .length_bytes = 13000, .content = 1},
        {.kind = OPERATION_CREATE, .from = A_BAR},
        {.kind = OPERATION_WRITE, .from = A_BAR, .length_bytes = 100, .content = 2},
        {.kind = OPERATION_SETXATTR, .from = A_BAR, .length_bytes = 200, .content = 16},
        {.kind = OPERATION_SNAPSHOT},
        {.kind = OPERATION_WRITE, .from = ROOT_FOO, .offset_bytes = 4096, .length_bytes = 4096, .content = 3},
        {.kind = OPERATION_CLONE},
        {.kind = OPERATION_SNAPSHOTS, .content = 1},
        {.kind = OPERATION_HOLD, .snapshot = 2},
        {.kind = OPERATION_CHECKPOINT},
    };
    bool durable;
    for (size_t i = 0; i < sizeof made / sizeof *made; i++)
        TRY(operation_run(world, &made[i], &durable));
    return 0;
}
