/* What the bytes of a pool mean. docs/FORMAT.md is the prose; each field has its one owner here. All integers are
 * little-endian. Offsets chain sizes; nothing below is read before its checksum and its ranges were checked. */
#ifndef BTREE_FORMAT_H
#define BTREE_FORMAT_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define FORMAT_VERSION 1u

static inline uint16_t load16(const void *from)
{
    uint16_t value;
    memcpy(&value, from, sizeof value);
    return le16toh(value);
}

static inline uint32_t load32(const void *from)
{
    uint32_t value;
    memcpy(&value, from, sizeof value);
    return le32toh(value);
}

static inline uint64_t load64(const void *from)
{
    uint64_t value;
    memcpy(&value, from, sizeof value);
    return le64toh(value);
}

static inline void save16(void *to, uint16_t value)
{
    value = htole16(value);
    memcpy(to, &value, sizeof value);
}

static inline void save32(void *to, uint32_t value)
{
    value = htole32(value);
    memcpy(to, &value, sizeof value);
}

static inline void save64(void *to, uint64_t value)
{
    value = htole64(value);
    memcpy(to, &value, sizeof value);
}

/* Keys sort as bytes, so numbers in keys are big-endian. */
static inline uint64_t load64_big(const void *from)
{
    uint64_t value;
    memcpy(&value, from, sizeof value);
    return be64toh(value);
}

static inline void save64_big(void *to, uint64_t value)
{
    value = htobe64(value);
    memcpy(to, &value, sizeof value);
}

/* ---- superblock: one block, 16 slots in a ring at the pool's start and again at its end ----------------------- */
#define SUPERBLOCK_RING_SLOTS 16u
#define SUPERBLOCK_MAGIC "COWFSPL1"
enum superblock_offset {
    SUPERBLOCK_MAGIC_AT = 0,
    SUPERBLOCK_VERSION = SUPERBLOCK_MAGIC_AT + 8,
    SUPERBLOCK_FLAGS = SUPERBLOCK_VERSION + 4,
    SUPERBLOCK_UUID = SUPERBLOCK_FLAGS + 4,
    SUPERBLOCK_LABEL = SUPERBLOCK_UUID + 16,
    SUPERBLOCK_SEQUENCE = SUPERBLOCK_LABEL + 64,
    SUPERBLOCK_EPOCH = SUPERBLOCK_SEQUENCE + 8,
    SUPERBLOCK_SIZE_BLOCKS = SUPERBLOCK_EPOCH + 8,
    SUPERBLOCK_NODE_SIZE = SUPERBLOCK_SIZE_BLOCKS + 8,
    SUPERBLOCK_COPIES = SUPERBLOCK_NODE_SIZE + 4,
    SUPERBLOCK_JOURNAL_START = SUPERBLOCK_COPIES + 4,
    SUPERBLOCK_JOURNAL_BLOCKS = SUPERBLOCK_JOURNAL_START + 8,
    SUPERBLOCK_BITMAP_START = SUPERBLOCK_JOURNAL_BLOCKS + 8,
    SUPERBLOCK_BITMAP_PAGES = SUPERBLOCK_BITMAP_START + 8,
    SUPERBLOCK_JOURNAL_POSITION = SUPERBLOCK_BITMAP_PAGES + 8,
    SUPERBLOCK_JOURNAL_SEQUENCE = SUPERBLOCK_JOURNAL_POSITION + 8,
    SUPERBLOCK_NEXT_OBJECT_ID = SUPERBLOCK_JOURNAL_SEQUENCE + 8,
    SUPERBLOCK_NEXT_QUEUE_ID = SUPERBLOCK_NEXT_OBJECT_ID + 8,
    SUPERBLOCK_ROOT = SUPERBLOCK_NEXT_QUEUE_ID + 8,
    SUPERBLOCK_BITMAP_DIGEST = SUPERBLOCK_ROOT + 40,
    SUPERBLOCK_CHECKSUM = 4096 - 8,
};
#define SUPERBLOCK_FLAG_CLEAN 1u

/* ---- pointers to nodes ---------------------------------------------------------------------------------------- */
enum pointer_offset { POINTER_ADDRESS = 0, POINTER_COPY = 8, POINTER_CHECKSUM = 16, POINTER_BIRTH = 24 };
#define POINTER_LENGTH 32u
#define ROOT_LEVEL POINTER_LENGTH /* one byte after the pointer, then three zeros */
#define ROOT_NODE_COUNT (ROOT_LEVEL + 4u)
#define ROOT_LENGTH 40u

/* ---- nodes ---------------------------------------------------------------------------------------------------- */
#define NODE_MAGIC 0x444e5442u /* "BTND" */
enum node_offset {
    NODE_MAGIC_AT = 0,
    NODE_LEVEL = NODE_MAGIC_AT + 4, /* one byte, 0 for leaves; one byte zero */
    NODE_COUNT = NODE_LEVEL + 2,
    NODE_PREFIX_OFFSET = NODE_COUNT + 2,
    NODE_PREFIX_LENGTH = NODE_PREFIX_OFFSET + 2,
    NODE_HEAP_START = NODE_PREFIX_LENGTH + 2,
    NODE_GARBAGE = NODE_HEAP_START + 2,
    NODE_BIRTH = NODE_GARBAGE + 2,
    NODE_SLOTS = NODE_BIRTH + 8,
};
enum slot_offset { SLOT_OFFSET = 0, SLOT_KEY_LENGTH = 2, SLOT_VALUE_LENGTH = 4 };
#define SLOT_LENGTH 6u
#define SLOT_KIND_BIT 0x8000u /* in the value length: the value is an extent */

/* ---- extents -------------------------------------------------------------------------------------------------- */
enum extent_offset {
    EXTENT_ADDRESS = 0,
    EXTENT_BIRTH = 8,
    EXTENT_BLOCKS = 16,
    EXTENT_LOGICAL_BLOCKS = 18,
    EXTENT_COMPRESSION = 20,
    EXTENT_FLAGS = 21,
    EXTENT_RESERVED = 22, /* two bytes, zero */
    EXTENT_CHECKSUMS = 24,
};

/* ---- free space ----------------------------------------------------------------------------------------------- */
#define BITMAP_MAGIC 0x4d425443u /* "CTBM" */
enum bitmap_offset {
    BITMAP_MAGIC_AT = 0,
    BITMAP_PAGE_NUMBER = 4,
    BITMAP_SEQUENCE = 8,
    BITMAP_CHECKSUM = 16,
    BITMAP_USED = 24, /* bits set; four bytes zero after it */
    BITMAP_BITS = 32,
};
#define BITMAP_WORDS ((4096u - BITMAP_BITS) / 8u)
#define BITMAP_BLOCKS_PER_PAGE (BITMAP_WORDS * 64u)

/* ---- journal -------------------------------------------------------------------------------------------------- */
#define JOURNAL_MAGIC 0x4e4a5443u /* "CTJN" */
enum journal_offset {
    JOURNAL_MAGIC_AT = 0,
    JOURNAL_PAYLOAD_LENGTH = 4,
    JOURNAL_SEQUENCE = 8,
    JOURNAL_FLUSHED_SEQUENCE = 16,
    JOURNAL_POOL_TAG = 24,
    JOURNAL_CHECKSUM = 32,
    JOURNAL_EPOCH = 40, /* when the group was cut off: no birth in it is younger */
    JOURNAL_PAYLOAD = 64,
};
enum journal_record_type {
    RECORD_TRANSACTION = 1,
    RECORD_SNAPSHOT = 2,
    RECORD_SNAPSHOT_DELETE = 3,
    RECORD_ANNOTATE = 4,
    RECORD_VOLUME_CREATE = 5,
    RECORD_VOLUME_DESTROY = 6,
    RECORD_CLONE = 7,
    RECORD_ROLLBACK = 8,
    RECORD_PROPERTY = 9,
    RECORD_PROMOTE = 10,
};
enum journal_change_type { CHANGE_PUT = 1, CHANGE_DELETE = 2, CHANGE_KILL = 3 };
#define CHANGE_FLAG_EXTENT 1u
#define CHANGE_FLAG_FRESH 2u

/* ---- the system tree: everything a checkpoint knows beside the volumes' own trees ------------------------------ */
enum system_key_type {
    SYSTEM_VOLUME = 1,   /* [1][volume id] */
    SYSTEM_CHAIN = 2,    /* [2][chain id] */
    SYSTEM_SNAPSHOT = 3, /* [3][snapshot id] */
    SYSTEM_DEAD = 4,     /* [4][bucket storage id][birth][address] -> blocks u32 */
    SYSTEM_QUEUE = 5,    /* [5][queue id] */
    SYSTEM_BUCKET = 6,   /* [6][bucket id] -> storage id, entries, blocks */
    SYSTEM_PROPERTY = 7, /* [7][property id] -> volume id, name, value */
};

/* ---- bounds by which space is set aside ------------------------------------------------------------------------ */

/* A dead entry in the system tree: what its key does not share with its neighbours, its value, its slot; and any other
 * record there, the longest names and annotations aside. Upper bounds, by which space is set aside. */
#define DEAD_ENTRY_BYTES 45u
#define CATALOG_RECORD_BYTES 512u
/* What moving one dead entry may dirty: two paths, their splits, and the records of two buckets. */
#define QUEUE_STEP_NODES 24u

#endif
