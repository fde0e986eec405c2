/* Images for the fuzzer: a seed is a whole pool that was made in memory; an image is a seed and the few blocks that
 * differ from it, so that one input costs what it touches. */
#ifndef TESTS_FUZZ_IMAGE_H
#define TESTS_FUZZ_IMAGE_H

#include <stdbool.h>

#include "btree/native/format.h"
#include "btree/native/node.h"
#include "btree/native/storage.h"
#include "btree/native/store.h"

#define IMAGE_BLOCKS (STORE_POOL_SIZE_MIN_BYTES / STORE_BLOCK_SIZE)
#define SEEDS 4u
#define PARTS_MAX 512u
#define POINTERS_MAX 2048u
#define FIELDS_MAX 60000u

enum part_kind { PART_SUPERBLOCK, PART_JOURNAL, PART_NODE, PART_SYSTEM_NODE, PART_BITMAP };

/* A stretch of blocks with one checksum. */
struct part {
    enum part_kind kind;
    uint8_t level;
    uint32_t size_bytes;
    uint64_t places[2]; /* block numbers; the second may be 0 */
    uint64_t checksum;  /* of a node */
};

/* Where a pointer to a node lies. */
struct pointer_place {
    uint16_t part;
    uint16_t offset;
};

/* What a structure-aware edit changes: a field of a part. */
struct field {
    uint16_t part;
    uint16_t offset;
    uint8_t width;
    bool big; /* endian: it is in a key */
};

struct seed {
    uint8_t *blocks[IMAGE_BLOCKS]; /* NULL: zeros */
    struct part parts[PARTS_MAX];  /* nodes in ascending level, the system tree's behind the volumes' */
    size_t part_count;
    struct pointer_place pointers[POINTERS_MAX]; /* sorted by part */
    size_t pointer_count;
    struct field *fields;
    size_t field_count;
    uint64_t ids_max; /* of objects */
};

struct image {
    struct storage storage; /* close does nothing */
    const struct seed *seed;
    uint8_t *blocks[IMAGE_BLOCKS];
    uint16_t changed[IMAGE_BLOCKS];
    size_t changed_count;
};

void fuzz_fail(const char *what, int result);

void image_begin(struct image *image, const struct seed *seed);
void image_end(struct image *image);
/* Memory of a block that may be changed. */
uint8_t *image_block(struct image *image, uint64_t block);

/* Made at the first call. The same in every run: the clock and the random numbers are the target's own. */
const struct seed *seed_get(unsigned which);

/* An input is a header and edits. */
struct input_header {
    uint8_t seed;
    uint8_t flags; /* enum input_flags */
    uint8_t reserved[6];
};
enum input_flags {
    INPUT_READ_ONLY = 1,
    INPUT_NO_CHANGES = 2,   /* looks only */
    INPUT_CHECK = 4,        /* the checks of store and file system */
    INPUT_AGAIN = 8,        /* opens what was closed once more */
    INPUT_ABANDON = 16,     /* instead of closing */
    INPUT_DIFFERENCES = 32, /* between snapshots and volumes */
    INPUT_REBUILD = 64,     /* opens as fsck.cowfs -y does */
};

enum edit_operation {
    EDIT_SET,
    EDIT_ADD,
    EDIT_FLIP,
    EDIT_COPY,         /* up to 64 bytes from another part */
    EDIT_COPY_PART,    /* all of another part */
    EDIT_REMOVE_ITEM,  /* from a node, which stays valid: so do those below */
    EDIT_INSERT_ITEM,  /* one of another node, with a number in its key */
    EDIT_SHORTEN_ITEM, /* its value */
    EDIT_FORGE_QUEUE,  /* a record of the deletion queue in the system tree */
    EDIT_ONE_COPY,     /* of the node: the bytes change, the checksum does not */
    EDIT_OPERATIONS,
};
#define EDIT_BIG 0x80u /* in `width` */
#define EDITS_MAX 12u

struct edit {
    uint8_t operation;
    uint8_t width;
    uint16_t part;
    uint16_t offset; /* or slot */
    uint16_t other_part;
    uint64_t value; /* for copies: offset in the other part, length << 16 */
};

/* Applies the edits of an input, then makes the checksums of everything above them right. */
void image_edit(struct image *image, const uint8_t *edits, size_t length);

#endif
