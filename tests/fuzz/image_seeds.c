/* Pools to start from, and what lies where in them. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>

#include "btree/native/internal.h"
#include "cowfs/native/filesystem.h"
#include "tests/fuzz/image.h"

#define CHAIN_ROOT_AT 24u
#define SNAPSHOT_ROOT_AT 32u

void fuzz_fail(const char *what, int result)
{
    fprintf(stderr, "fuzz: %s: %d %s\n", what, result, strerror(result < 0 ? -result : result));
    abort();
}

/* ---- the same in every run (linked with --wrap) ---------------------------------------------------------------- */

int __real_clock_gettime(clockid_t clock, struct timespec *out);
int __wrap_clock_gettime(clockid_t clock, struct timespec *out);
ssize_t __wrap_getrandom(void *buffer, size_t length, unsigned flags);

int __wrap_clock_gettime(clockid_t clock, struct timespec *out)
{
    static long ticks;
    if (clock != CLOCK_REALTIME)
        return __real_clock_gettime(clock, out);
    *out = (struct timespec){1700000000, ticks++ % 1000000000};
    return 0;
}

ssize_t __wrap_getrandom(void *buffer, size_t length, unsigned flags)
{
    (void)flags;
    memset(buffer, 0x5a, length);
    return (ssize_t)length;
}

/* ---- images ---------------------------------------------------------------------------------------------------- */

static const uint8_t zeros[STORE_BLOCK_SIZE];

uint8_t *image_block(struct image *image, uint64_t block)
{
    if (block >= IMAGE_BLOCKS)
        fuzz_fail("a block outside the image", -EINVAL);
    if (image->blocks[block] == NULL) {
        uint8_t *bytes = malloc(STORE_BLOCK_SIZE);
        if (bytes == NULL)
            fuzz_fail("memory", -ENOMEM);
        const uint8_t *from = image->seed ? image->seed->blocks[block] : NULL;
        memcpy(bytes, from ? from : zeros, STORE_BLOCK_SIZE);
        image->blocks[block] = bytes;
        image->changed[image->changed_count++] = (uint16_t)block;
    }
    return image->blocks[block];
}

static int image_read(struct storage *storage, void *buffer, size_t length, uint64_t offset)
{
    const struct image *image = (struct image *)storage;
    uint8_t *out = buffer;
    if (offset > STORE_POOL_SIZE_MIN_BYTES || length > STORE_POOL_SIZE_MIN_BYTES - offset)
        return -EIO;
    while (length) {
        uint64_t block = offset / STORE_BLOCK_SIZE, at = offset % STORE_BLOCK_SIZE, part = STORE_BLOCK_SIZE - at;
        part = part < length ? part : length;
        const uint8_t *from = image->blocks[block];
        if (from == NULL && image->seed)
            from = image->seed->blocks[block];
        memcpy(out, (from ? from : zeros) + at, part);
        out += part;
        offset += part;
        length -= part;
    }
    return 0;
}

static int image_write(struct storage *storage, const void *buffer, size_t length, uint64_t offset)
{
    struct image *image = (struct image *)storage;
    const uint8_t *from = buffer;
    if (offset > STORE_POOL_SIZE_MIN_BYTES || length > STORE_POOL_SIZE_MIN_BYTES - offset)
        return -EIO;
    while (length) {
        uint64_t at = offset % STORE_BLOCK_SIZE, part = STORE_BLOCK_SIZE - at;
        part = part < length ? part : length;
        memcpy(image_block(image, offset / STORE_BLOCK_SIZE) + at, from, part);
        from += part;
        offset += part;
        length -= part;
    }
    return 0;
}

static int image_flush(struct storage *storage)
{
    (void)storage;
    return 0;
}

static uint64_t image_size(struct storage *storage)
{
    (void)storage;
    return STORE_POOL_SIZE_MIN_BYTES;
}

static void image_close(struct storage *storage)
{
    (void)storage;
}

static const struct storage_operations image_operations = {
    .read = image_read,
    .write = image_write,
    .flush = image_flush,
    .size = image_size,
    .close = image_close,
};

void image_begin(struct image *image, const struct seed *seed)
{
    image->storage.operations = &image_operations;
    image->seed = seed;
    image->changed_count = 0;
}

void image_end(struct image *image)
{
    for (size_t i = 0; i < image->changed_count; i++) {
        free(image->blocks[image->changed[i]]);
        image->blocks[image->changed[i]] = NULL;
    }
    image->changed_count = 0;
}

/* ---- what is in them ------------------------------------------------------------------------------------------- */

static void need(const char *what, int result)
{
    if (result != 0)
        fuzz_fail(what, result);
}

static struct filesystem_name named(const char *text)
{
    return (struct filesystem_name){text, strlen(text)};
}

static uint64_t make(struct filesystem *filesystem, uint64_t parent, const char *name, uint32_t mode,
                     const char *target)
{
    const struct filesystem_creation creation = {.mode = mode, .uid = 1000, .gid = 1000, .target = named(target)};
    struct filesystem_attributes out;
    need(name, filesystem_create(filesystem, parent, named(name), &creation, &out));
    return out.node;
}

static void fill(struct filesystem *filesystem, uint64_t node, uint64_t offset, size_t length)
{
    uint8_t *bytes = malloc(length);
    if (bytes == NULL)
        fuzz_fail("memory", -ENOMEM);
    for (size_t i = 0; i < length; i++)
        bytes[i] = (uint8_t)((offset + i) * 7 / 256 + i);
    need("write", filesystem_write(filesystem, node, offset, bytes, length));
    free(bytes);
}

static void snapshot(struct store *store, uint64_t volume_id, const char *name)
{
    struct store_snapshot out;
    need(name, store_snapshot_create(store, volume_id, name, &out));
}

static void populate(struct filesystem *filesystem, struct store *store, uint64_t volume_id, unsigned names)
{
    uint64_t folder = make(filesystem, 1, "folder", S_IFDIR | 0755, "");
    uint64_t deep = make(filesystem, folder, "deep", S_IFDIR | 0700, "");
    uint64_t inline_file = make(filesystem, 1, "inline", S_IFREG | 0644, "");
    uint64_t extents = make(filesystem, folder, "extents", S_IFREG | 0644, "");
    uint64_t holes = make(filesystem, deep, "holes", S_IFREG | 0644, "");
    uint64_t shared = make(filesystem, folder, "shared", S_IFREG | 0644, "");
    uint64_t copied, unnamed;
    struct filesystem_attributes out;
    fill(filesystem, inline_file, 0, 300);
    fill(filesystem, extents, 0, 40000);
    fill(filesystem, holes, 0, 100);
    fill(filesystem, holes, 100000, 9000);
    make(filesystem, deep, "link", S_IFLNK | 0777, "../extents");
    make(filesystem, deep, "pipe", S_IFIFO | 0600, "");
    need("link", filesystem_link(filesystem, extents, deep, named("second name"), &out));
    need("xattr", filesystem_setxattr(filesystem, extents, named("user.long"), zeros, 1500, 0));
    need("xattr", filesystem_setxattr(filesystem, folder, named("security.capability"), "abcd", 4, 0));
    need("copy", filesystem_copy_range(filesystem, extents, 0, shared, 0, 32768, &copied));
    snapshot(store, volume_id, "one");
    fill(filesystem, extents, 8192, 5000);
    fill(filesystem, inline_file, 10, 5);
    for (unsigned i = 0; i < names; i++) {
        char text[32];
        (void)snprintf(text, sizeof text, "file number %u", i);
        make(filesystem, folder, text, S_IFREG | 0600, "");
    }
    snapshot(store, volume_id, "two");
    need("checkpoint", store_checkpoint(store));
    unnamed = make(filesystem, 1, "orphan", S_IFREG | 0644, "");
    fill(filesystem, unnamed, 0, 6000);
    need("unlink", filesystem_unlink(filesystem, 1, named("orphan")));
    need("unlink", filesystem_unlink(filesystem, folder, named("shared")));
    fill(filesystem, extents, 20000, 9000);
    snapshot(store, volume_id, "three");
}

/* With its last records in the journal, or closed. */
static void build(struct storage *storage, unsigned which)
{
    const struct store_parameters parameters = {
        .node_size_bytes = which == 2 ? 16384 : 4096,
        .metadata_copies = which == 0 ? 1 : 2,
        .journal_size_bytes = 1 << 20,
        .uuid = {1, 2, 3},
    };
    const struct store_options options = {.no_background = true};
    struct store_failure failure;
    struct store *store;
    struct filesystem *filesystem, *other_filesystem;
    struct store_snapshot one, guard;
    uint64_t volume_id, clone_id, doomed_id;
    need("format", store_format(storage, &parameters, &failure));
    need("open", store_open(storage, &options, &store, &failure));
    need("volume", store_volume_create(store, "main", &volume_id));
    need("volume", store_volume_create(store, "doomed", &doomed_id));
    need("file system", filesystem_open(store, volume_id, false, &filesystem));
    populate(filesystem, store, volume_id, which == 3 ? 150 : 4);
    need("find", store_snapshot_find(store, volume_id, "one", &one));
    need("clone", store_clone(store, one.id, "clone", &clone_id));
    need("annotate", store_snapshot_annotate(store, one.id, 1, "note", 4));
    need("file system", filesystem_open(store, clone_id, false, &other_filesystem));
    make(other_filesystem, 1, "only in the clone", S_IFREG | 0644, "");
    filesystem_close(other_filesystem);
    need("checkpoint", store_checkpoint(store));
    if (which != 1) {
        snapshot(store, volume_id, "four");
        uint64_t late = make(filesystem, 1, "late", S_IFREG | 0644, "");
        fill(filesystem, late, 0, 10000);
        need("commit", store_commit(store));
        need("find", store_snapshot_find(store, volume_id, "two", &one));
        need("delete", store_snapshot_delete(store, one.id));
        fill(filesystem, late, 0, 3000);
        need("commit", store_commit(store));
        need("find", store_snapshot_find(store, volume_id, "three", &one));
        need("rollback", store_rollback(store, volume_id, one.id, "guard", &guard));
        need("destroy", store_volume_destroy(store, doomed_id));
        need("volume", store_volume_create(store, "later", &doomed_id));
        need("clone", store_clone(store, one.id, "late clone", &clone_id));
        need("annotate", store_snapshot_annotate(store, one.id, 0, "text", 4));
        need("commit", store_commit(store));
    }
    filesystem_close(filesystem);
    if (which == 1)
        need("close", store_close(store));
    else
        store_abandon(store);
}

/* ---- what lies where ------------------------------------------------------------------------------------------- */

static const uint8_t *bytes_at(const struct seed *seed, uint64_t block)
{
    return seed->blocks[block] ? seed->blocks[block] : zeros;
}

static size_t part_add(struct seed *seed, struct part part)
{
    if (seed->part_count == PARTS_MAX)
        fuzz_fail("too many parts in a seed", -E2BIG);
    seed->parts[seed->part_count] = part;
    return seed->part_count++;
}

static uint8_t *part_read(const struct seed *seed, const struct part *part)
{
    uint8_t *bytes = malloc(part->size_bytes);
    if (bytes == NULL)
        fuzz_fail("memory", -ENOMEM);
    for (uint32_t at = 0; at < part->size_bytes; at += STORE_BLOCK_SIZE)
        memcpy(bytes + at, bytes_at(seed, part->places[0] + at / STORE_BLOCK_SIZE), STORE_BLOCK_SIZE);
    return bytes;
}

static void find_nodes(struct seed *seed, const uint8_t *pointer, uint8_t level, uint32_t size, bool system);

/* Offset of a root in the value of an item of the system tree; 0: none. */
static uint32_t root_offset(const struct page_item *item)
{
    uint8_t key[STORE_KEY_LENGTH_MAX];
    (void)item_copy_key(item, key);
    return key[0] == SYSTEM_CHAIN      ? CHAIN_ROOT_AT
           : key[0] == SYSTEM_SNAPSHOT ? SNAPSHOT_ROOT_AT
           : key[0] == SYSTEM_QUEUE    ? QUEUE_ROOT
                                       : 0;
}

static void find_children(struct seed *seed, const uint8_t *page, uint8_t level, uint32_t size, bool system)
{
    for (uint16_t slot = 0; slot < page_count(page); slot++) {
        struct page_item item;
        page_get(page, slot, &item);
        if (level > 0)
            find_nodes(seed, item.value, (uint8_t)(level - 1), size, system);
        else if (system && root_offset(&item))
            find_nodes(seed, item.value + root_offset(&item), item.value[root_offset(&item) + ROOT_LEVEL], size, false);
    }
}

static void find_nodes(struct seed *seed, const uint8_t *pointer, uint8_t level, uint32_t size, bool system)
{
    struct part part = {
        .kind = system ? PART_SYSTEM_NODE : PART_NODE,
        .level = level,
        .size_bytes = size,
        .places = {load64(pointer + POINTER_ADDRESS), load64(pointer + POINTER_COPY)},
        .checksum = load64(pointer + POINTER_CHECKSUM),
    };
    if (part.places[0] == 0)
        return;
    for (size_t i = 0; i < seed->part_count; i++)
        if (seed->parts[i].places[0] == part.places[0])
            return;
    uint8_t *page = part_read(seed, &part);
    if (store_checksum(page, size) != part.checksum)
        fuzz_fail("a seed's node", -EUCLEAN);
    find_children(seed, page, level, size, system);
    (void)part_add(seed, part);
    free(page);
}

static int part_compare(const void *a, const void *b)
{
    const struct part *left = a, *right = b;
    if (left->kind != right->kind)
        return left->kind < right->kind ? -1 : 1;
    return left->level != right->level ? left->level - right->level : left->places[0] < right->places[0] ? -1 : 1;
}

static void pointer_add(struct seed *seed, size_t part, size_t offset)
{
    if (seed->pointer_count == POINTERS_MAX)
        fuzz_fail("too many pointers in a seed", -E2BIG);
    seed->pointers[seed->pointer_count++] = (struct pointer_place){(uint16_t)part, (uint16_t)offset};
}

static void field_add(struct seed *seed, size_t part, size_t offset, uint8_t width, bool big)
{
    if (seed->field_count < FIELDS_MAX)
        seed->fields[seed->field_count++] = (struct field){(uint16_t)part, (uint16_t)offset, width, big};
}

/* Words one after the other, and what is left. */
static void fields_of_bytes(struct seed *seed, size_t part, size_t offset, size_t length, bool big)
{
    for (; length >= 8; offset += 8, length -= 8)
        field_add(seed, part, offset, 8, big);
    for (; length > 0; offset++, length--)
        field_add(seed, part, offset, 1, big);
}

static void describe_node(struct seed *seed, size_t index)
{
    const struct part *part = &seed->parts[index];
    uint8_t *page = part_read(seed, part);
    field_add(seed, index, NODE_LEVEL, 1, false);
    for (size_t offset = NODE_COUNT; offset < NODE_BIRTH; offset += 2)
        field_add(seed, index, offset, 2, false);
    field_add(seed, index, NODE_BIRTH, 8, false);
    for (uint16_t slot = 0; slot < page_count(page); slot++) {
        struct page_item item;
        page_get(page, slot, &item);
        for (uint32_t at = 0; at < SLOT_LENGTH; at += 2)
            field_add(seed, index, NODE_SLOTS + slot * SLOT_LENGTH + at, 2, false);
        size_t suffix = (size_t)(item.suffix - page), value = (size_t)(item.value - page);
        fields_of_bytes(seed, index, suffix, item.suffix_length, true);
        fields_of_bytes(seed, index, value, item.value_length > 128 ? 128 : item.value_length, false);
        if (part->level > 0)
            pointer_add(seed, index, value);
        else if (part->kind == PART_SYSTEM_NODE && root_offset(&item))
            pointer_add(seed, index, value + root_offset(&item));
        if (part->level == 0 && part->kind == PART_NODE && item.value_length == 112) /* an inode's short fields */
            for (size_t at = 0; at < 16; at += 4) {
                field_add(seed, index, value + at, 4, false);
                field_add(seed, index, value + 80 + at, 4, false);
            }
    }
    free(page);
}

/* Everything in records, which are not aligned, down to the changes of a transaction. */
static void describe_group(struct seed *seed, size_t index)
{
    const struct part *part = &seed->parts[index];
    uint8_t *bytes = part_read(seed, part);
    size_t end = JOURNAL_PAYLOAD + load32(bytes + JOURNAL_PAYLOAD_LENGTH), at = JOURNAL_PAYLOAD;
    field_add(seed, index, JOURNAL_PAYLOAD_LENGTH, 4, false);
    for (size_t offset = JOURNAL_SEQUENCE; offset <= JOURNAL_EPOCH; offset += 8)
        field_add(seed, index, offset, 8, false);
    while (at + 8 <= end) {
        size_t length = load32(bytes + at + 4), next = at + 8 + length;
        field_add(seed, index, at, 4, false);
        field_add(seed, index, at + 4, 4, false);
        if (load32(bytes + at) == RECORD_TRANSACTION) {
            size_t change = at + 8 + 12;
            field_add(seed, index, at + 8, 8, false);
            field_add(seed, index, at + 16, 4, false);
            while (change + 6 <= next) {
                size_t key = load16(bytes + change + 2), value = load16(bytes + change + 4);
                bool kill = bytes[change] == CHANGE_KILL;
                field_add(seed, index, change, 1, false);
                field_add(seed, index, change + 1, 1, false);
                field_add(seed, index, change + 2, 2, false);
                field_add(seed, index, change + 4, 2, false);
                fields_of_bytes(seed, index, change + 6, kill ? 20 : key, !kill);
                if (!kill)
                    fields_of_bytes(seed, index, change + 6 + key, value > 128 ? 128 : value, false);
                change += 6 + (kill ? 20 : key + value);
            }
        } else {
            fields_of_bytes(seed, index, at + 8, length, false);
        }
        at = next;
    }
    free(bytes);
}

static uint64_t newest_superblock(const struct seed *seed)
{
    uint64_t newest = 0, sequence = 0;
    for (uint64_t slot = 0; slot < SUPERBLOCK_RING_SLOTS; slot++)
        if (load64(bytes_at(seed, slot) + SUPERBLOCK_SEQUENCE) > sequence) {
            sequence = load64(bytes_at(seed, slot) + SUPERBLOCK_SEQUENCE);
            newest = slot;
        }
    return newest;
}

static void find_groups(struct seed *seed, const uint8_t *superblock)
{
    uint64_t block = load64(superblock + SUPERBLOCK_JOURNAL_START) +
                     load64(superblock + SUPERBLOCK_JOURNAL_POSITION) / STORE_BLOCK_SIZE;
    uint64_t sequence = load64(superblock + SUPERBLOCK_JOURNAL_SEQUENCE);
    for (;; sequence++) {
        const uint8_t *header = bytes_at(seed, block);
        if (load32(header) != JOURNAL_MAGIC || load64(header + JOURNAL_SEQUENCE) != sequence)
            return;
        uint32_t blocks = (JOURNAL_PAYLOAD + load32(header + JOURNAL_PAYLOAD_LENGTH) + STORE_BLOCK_SIZE - 1) /
                          STORE_BLOCK_SIZE;
        (void)part_add(seed, (struct part){.kind = PART_JOURNAL,
                                           .size_bytes = blocks * STORE_BLOCK_SIZE,
                                           .places = {block, 0}});
        block += blocks;
    }
}

static void find_bitmaps(struct seed *seed, const uint8_t *superblock)
{
    uint64_t start = load64(superblock + SUPERBLOCK_BITMAP_START), newest = start;
    for (uint64_t block = start; block < start + 2 * load64(superblock + SUPERBLOCK_BITMAP_PAGES); block++)
        if (load64(bytes_at(seed, block) + BITMAP_SEQUENCE) > load64(bytes_at(seed, newest) + BITMAP_SEQUENCE))
            newest = block;
    (void)part_add(seed, (struct part){.kind = PART_BITMAP, .size_bytes = STORE_BLOCK_SIZE, .places = {newest, 0}});
}

static void describe(struct seed *seed)
{
    uint64_t slot = newest_superblock(seed);
    const uint8_t *superblock = bytes_at(seed, slot);
    (void)part_add(seed, (struct part){.kind = PART_SUPERBLOCK,
                                       .size_bytes = STORE_BLOCK_SIZE,
                                       .places = {slot, IMAGE_BLOCKS - SUPERBLOCK_RING_SLOTS + slot}});
    seed->ids_max = load64(superblock + SUPERBLOCK_NEXT_OBJECT_ID);
    find_groups(seed, superblock);
    find_bitmaps(seed, superblock);
    find_nodes(seed, superblock + SUPERBLOCK_ROOT, superblock[SUPERBLOCK_ROOT + ROOT_LEVEL],
               load32(superblock + SUPERBLOCK_NODE_SIZE), true);
    qsort(seed->parts, seed->part_count, sizeof *seed->parts, part_compare);
    seed->fields = calloc(FIELDS_MAX, sizeof *seed->fields);
    if (seed->fields == NULL)
        fuzz_fail("memory", -ENOMEM);
    pointer_add(seed, 0, SUPERBLOCK_ROOT);
    for (size_t index = 0; index < seed->part_count; index++) {
        enum part_kind kind = seed->parts[index].kind;
        if (kind == PART_SUPERBLOCK) {
            for (size_t at = SUPERBLOCK_VERSION; at < SUPERBLOCK_BITMAP_DIGEST + 8; at += 4)
                field_add(seed, index, at, at % 8 || at == SUPERBLOCK_NODE_SIZE ? 4 : 8, false);
        } else if (kind == PART_JOURNAL) {
            describe_group(seed, index);
        } else if (kind == PART_BITMAP) {
            fields_of_bytes(seed, index, BITMAP_PAGE_NUMBER, BITMAP_BITS + 128, false);
        } else {
            describe_node(seed, index);
        }
    }
}

const struct seed *seed_get(unsigned which)
{
    static struct seed *seeds[SEEDS];
    which %= SEEDS;
    if (seeds[which] == NULL) {
        struct seed *seed = calloc(1, sizeof *seed);
        struct image *image = calloc(1, sizeof *image);
        if (seed == NULL || image == NULL)
            fuzz_fail("memory", -ENOMEM);
        image_begin(image, NULL);
        build(&image->storage, which);
        memcpy(seed->blocks, image->blocks, sizeof seed->blocks); /* which are the seed's from now on */
        free(image);
        describe(seed);
        seeds[which] = seed;
    }
    return seeds[which];
}
