/* Keys and values of the file system's items; the one owner of each field.
 *
 * Keys are [inode u64 big-endian][type u8][rest], so that all of an inode lies together and in this order:
 *   INODE                              -> struct inode
 *   INLINE  [chunk u8]                 -> bytes of a small file or of a symlink's target
 *   XATTR   [name][0][chunk u8]        -> bytes of the value; a value of no bytes has one empty chunk
 *   BACKREF [parent u64][name]         -> cookie u64 of the entry that names this inode
 *   DIRENT  [cookie u64]               -> child u64, file type u8, name
 *   EXTENT  [logical block u64]        -> encoded struct store_extent
 * Inode number 0 holds what belongs to the volume: INODE -> volume record, ORPHAN [inode u64] -> kinds u8,
 * SHARED [address u64] -> encoded struct store_extent, REFERENCES [address u64] -> u32, see shared.c.
 * Types from ITEM_INDEX_FIRST on are kept for indexed attributes. Numbers in values are little-endian. */
#ifndef COWFS_ITEMS_H
#define COWFS_ITEMS_H

#include <string.h>

#include "filesystem.h"

enum item_type {
    ITEM_INODE = 0x01,
    ITEM_INLINE = 0x02,
    ITEM_XATTR = 0x03,
    ITEM_BACKREF = 0x04,
    ITEM_DIRENT = 0x05,
    ITEM_EXTENT = 0x07,
    ITEM_ORPHAN = 0x08,
    ITEM_SHARED = 0x09,
    ITEM_REFERENCES = 0x0a,
    ITEM_INDEX_FIRST = 0x10,
};

#define VOLUME_INODE 0u
#define INODE_NUMBER_MAX ((UINT64_C(1) << FILESYSTEM_VIEW_SHIFT) - 1)

#define KEY_PREFIX_LENGTH 9u
#define KEY_LENGTH_MAX (KEY_PREFIX_LENGTH + 8u + FILESYSTEM_NAME_LENGTH_MAX)

struct key {
    uint16_t length;
    uint8_t bytes[KEY_LENGTH_MAX];
};

void key_set(struct key *key, uint64_t inode, enum item_type type);
void key_set_chunk(struct key *key, uint64_t inode, enum item_type type, uint8_t chunk);
/* With a number after the type: DIRENT (cookie), EXTENT (logical block), ORPHAN (inode), SHARED and REFERENCES
 * (address). */
void key_set_number(struct key *key, uint64_t inode, enum item_type type, uint64_t number);
/* Chunk 0 of a name; the chunk is the last byte. */
void key_set_xattr(struct key *key, uint64_t inode, struct filesystem_name name, uint8_t chunk);
void key_set_backref(struct key *key, uint64_t inode, uint64_t parent, struct filesystem_name name);

struct key_fields {
    uint64_t inode;
    uint8_t type;
    const uint8_t *rest;
    size_t rest_length;
};
/* -EUCLEAN when shorter than a prefix. */
int key_parse(const struct store_item *item, struct key_fields *out);
/* The number after the type; -EUCLEAN when the length is another. */
int key_number(const struct key_fields *fields, uint64_t *out);
/* The item is one of this inode and type. */
bool key_is_of(const struct store_item *item, uint64_t inode, enum item_type type);

uint64_t load_be64(const uint8_t *bytes);
uint64_t load_le64(const uint8_t *bytes);
uint32_t load_le32(const uint8_t *bytes);
void store_le64(uint8_t *bytes, uint64_t value);

/* ---- volume record ------------------------------------------------------------------------------------------- */

#define VOLUME_RECORD_LENGTH 16u
#define VOLUME_ITEMS_VERSION 2u

struct volume_record {
    uint32_t items_version;
    uint64_t hash_seed; /* of directory cookies */
};
void volume_record_encode(const struct volume_record *record, uint8_t out[VOLUME_RECORD_LENGTH]);
/* -EPROTONOSUPPORT for items of a newer version. */
int volume_record_decode(const struct store_item *item, struct volume_record *out);

/* ---- inode --------------------------------------------------------------------------------------------------- */

#define INODE_LENGTH 112u

enum inode_flags {
    INODE_IMMUTABLE = FILESYSTEM_IMMUTABLE,
    INODE_APPEND = FILESYSTEM_APPEND,
    /* Content is the inline bytes and zeros after them; there are no extents. */
    INODE_INLINE = 1 << 8,
    /* Extents past the size are still being removed: the size must not grow before that is done. */
    INODE_TRUNCATING = 1 << 9,
    /* Has security.capability, which a write or a change of owner has to remove. */
    INODE_CAPABILITY = 1 << 10,
    /* Made without a name, which it may still get. */
    INODE_UNNAMED = 1 << 11,
    /* For want of room the extent that the size lies in is as long as before, bytes past the size included: it has to
     * be cut before the size grows. */
    INODE_UNCUT = 1 << 12,
};
#define INODE_CANNOT_GROW ((uint32_t)(INODE_TRUNCATING | INODE_UNCUT))
#define INODE_FLAGS_PUBLIC ((uint32_t)(INODE_IMMUTABLE | INODE_APPEND))
#define INODE_FLAGS_KNOWN                                                                                              \
    (INODE_FLAGS_PUBLIC | (uint32_t)(INODE_INLINE | INODE_TRUNCATING | INODE_CAPABILITY | INODE_UNNAMED | INODE_UNCUT))

struct inode {
    uint64_t number; /* in the key */
    uint32_t mode;
    uint32_t uid;
    uint32_t gid;
    uint32_t nlink;      /* directories: 2 and one for each subdirectory; 0: no name left */
    uint64_t size_bytes; /* directories: DIRECTORY_ENTRY_SIZE_BYTES for each entry */
    uint64_t blocks;     /* of the extents */
    struct filesystem_time atime;
    struct filesystem_time mtime;
    struct filesystem_time ctime;
    struct filesystem_time birth;
    uint64_t rdev;
    uint32_t flags;
    uint32_t inline_length;
    uint64_t parent; /* of a directory */
};
#define DIRECTORY_ENTRY_SIZE_BYTES 64u

void inode_encode(const struct inode *inode, uint8_t out[INODE_LENGTH]);
int inode_decode(uint64_t number, const struct store_item *item, struct inode *out);

/* ---- directory entry ----------------------------------------------------------------------------------------- */

#define DIRENT_LENGTH_MAX (9u + FILESYSTEM_NAME_LENGTH_MAX)
#define COOKIE_COLLISION_BITS 7u
#define COOKIE_COLLISIONS_MAX (1u << COOKIE_COLLISION_BITS)

struct dirent_fields {
    uint64_t child;
    uint8_t type;                /* DT_REG and so on: (mode & S_IFMT) >> 12 */
    struct filesystem_name name; /* points into the item */
};
size_t dirent_encode(const struct dirent_fields *dirent, uint8_t out[DIRENT_LENGTH_MAX]);
int dirent_decode(const struct store_item *item, struct dirent_fields *out);

/* The least cookie of a name's hash: 56 bits of hash, never zero, above the collision index. */
uint64_t cookie_base(uint64_t hash_seed, struct filesystem_name name);

/* ---- others -------------------------------------------------------------------------------------------------- */

int backref_decode(const struct store_item *item, uint64_t *cookie);
/* Name of a backref or xattr key, pointing into it; parent or chunk too. */
int backref_key_parse(const struct key_fields *fields, uint64_t *parent, struct filesystem_name *name);
int xattr_key_parse(const struct key_fields *fields, struct filesystem_name *name, uint8_t *chunk);

#define XATTR_CHUNK_LENGTH 512u
#define XATTR_CHUNKS_MAX ((FILESYSTEM_XATTR_LENGTH_MAX + XATTR_CHUNK_LENGTH - 1) / XATTR_CHUNK_LENGTH)
/* What one item has to be able to hold. */
#define ITEM_LENGTH_NEEDED (KEY_PREFIX_LENGTH + 1u + FILESYSTEM_INLINE_LENGTH_MAX)

enum orphan_kinds { ORPHAN_UNLINKED = 1, ORPHAN_TRUNCATING = 2 }; /* bits: a file may be both */
int orphan_decode(const struct store_item *item, uint8_t *kinds);

/* In the flags of an extent: its blocks belong to a SHARED item. The item is then a plain value to the store. */
#define EXTENT_BORROWED 1u

#define REFERENCES_LENGTH 4u
void references_encode(uint32_t count, uint8_t out[REFERENCES_LENGTH]);
int references_decode(const struct store_item *item, uint32_t *count);

#endif
