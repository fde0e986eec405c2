/* Codecs in pairs. What is decoded comes from a pool and is checked before use; what cannot be is -EUCLEAN. */
#include "items.h"

#include <errno.h>
#include <sys/stat.h>
#include <xxhash.h>

#define NANOSECONDS_PER_SECOND 1000000000u

static void store_be64(uint8_t *bytes, uint64_t value)
{
    value = __builtin_bswap64(value);
    memcpy(bytes, &value, sizeof value);
}

uint64_t load_be64(const uint8_t *bytes)
{
    uint64_t value;
    memcpy(&value, bytes, sizeof value);
    return __builtin_bswap64(value);
}

uint64_t load_le64(const uint8_t *bytes)
{
    uint64_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

uint32_t load_le32(const uint8_t *bytes)
{
    uint32_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

void store_le64(uint8_t *bytes, uint64_t value)
{
    memcpy(bytes, &value, sizeof value);
}

static void store_le32(uint8_t *bytes, uint32_t value)
{
    memcpy(bytes, &value, sizeof value);
}

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the codecs are written for little-endian machines");
_Static_assert(KEY_LENGTH_MAX <= STORE_KEY_LENGTH_MAX, "the longest back-reference fits a key");
_Static_assert(KEY_PREFIX_LENGTH + FILESYSTEM_NAME_LENGTH_MAX + 2 + XATTR_CHUNK_LENGTH <= ITEM_LENGTH_NEEDED,
               "an xattr chunk is no longer than an inline chunk");
_Static_assert(XATTR_CHUNKS_MAX <= 256, "chunks are numbered by one byte");
_Static_assert(FILESYSTEM_TARGET_LENGTH_MAX / FILESYSTEM_INLINE_LENGTH_MAX < 256, "chunks are numbered by one byte");

/* ---- keys ---------------------------------------------------------------------------------------------------- */

void key_set(struct key *key, uint64_t inode, enum item_type type)
{
    store_be64(key->bytes, inode);
    key->bytes[8] = (uint8_t)type;
    key->length = KEY_PREFIX_LENGTH;
}

void key_set_chunk(struct key *key, uint64_t inode, enum item_type type, uint8_t chunk)
{
    key_set(key, inode, type);
    key->bytes[key->length++] = chunk;
}

void key_set_number(struct key *key, uint64_t inode, enum item_type type, uint64_t number)
{
    key_set(key, inode, type);
    store_be64(key->bytes + key->length, number);
    key->length = (uint16_t)(key->length + 8);
}

void key_set_xattr(struct key *key, uint64_t inode, struct filesystem_name name, uint8_t chunk)
{
    key_set(key, inode, ITEM_XATTR);
    memcpy(key->bytes + key->length, name.bytes, name.length);
    key->length = (uint16_t)(key->length + name.length);
    key->bytes[key->length++] = 0;
    key->bytes[key->length++] = chunk;
}

void key_set_backref(struct key *key, uint64_t inode, uint64_t parent, struct filesystem_name name)
{
    key_set_number(key, inode, ITEM_BACKREF, parent);
    memcpy(key->bytes + key->length, name.bytes, name.length);
    key->length = (uint16_t)(key->length + name.length);
}

int key_parse(const struct store_item *item, struct key_fields *out)
{
    if (item->key_length < KEY_PREFIX_LENGTH)
        return -EUCLEAN;
    out->inode = load_be64(item->key);
    out->type = item->key[8];
    out->rest = item->key + KEY_PREFIX_LENGTH;
    out->rest_length = item->key_length - KEY_PREFIX_LENGTH;
    return 0;
}

int key_number(const struct key_fields *fields, uint64_t *out)
{
    if (fields->rest_length != 8)
        return -EUCLEAN;
    *out = load_be64(fields->rest);
    return 0;
}

bool key_is_of(const struct store_item *item, uint64_t inode, enum item_type type)
{
    return item->key_length >= KEY_PREFIX_LENGTH && load_be64(item->key) == inode && item->key[8] == type;
}

int backref_key_parse(const struct key_fields *fields, uint64_t *parent, struct filesystem_name *name)
{
    if (fields->rest_length <= 8 || fields->rest_length > 8 + FILESYSTEM_NAME_LENGTH_MAX)
        return -EUCLEAN;
    *parent = load_be64(fields->rest);
    *name = (struct filesystem_name){fields->rest + 8, fields->rest_length - 8};
    return 0;
}

int xattr_key_parse(const struct key_fields *fields, struct filesystem_name *name, uint8_t *chunk)
{
    if (fields->rest_length < 3 || fields->rest_length > 2 + FILESYSTEM_NAME_LENGTH_MAX)
        return -EUCLEAN;
    size_t length = fields->rest_length - 2;
    if (fields->rest[length] != 0 || memchr(fields->rest, 0, length) != NULL)
        return -EUCLEAN;
    *name = (struct filesystem_name){fields->rest, length};
    *chunk = fields->rest[length + 1];
    return 0;
}

/* ---- volume record ------------------------------------------------------------------------------------------- */

void volume_record_encode(const struct volume_record *record, uint8_t out[VOLUME_RECORD_LENGTH])
{
    memset(out, 0, VOLUME_RECORD_LENGTH);
    store_le32(out, record->items_version);
    store_le64(out + 8, record->hash_seed);
}

int volume_record_decode(const struct store_item *item, struct volume_record *out)
{
    if (item->value_length < VOLUME_RECORD_LENGTH || item->kind != STORE_VALUE_PLAIN)
        return -EUCLEAN;
    out->items_version = load_le32(item->value);
    out->hash_seed = load_le64(item->value + 8);
    if (out->items_version > VOLUME_ITEMS_VERSION)
        return -EPROTONOSUPPORT;
    return out->items_version == 0 ? -EUCLEAN : 0;
}

/* ---- inode --------------------------------------------------------------------------------------------------- */

enum inode_offset {
    INODE_AT_MODE = 0,
    INODE_AT_UID = INODE_AT_MODE + 4,
    INODE_AT_GID = INODE_AT_UID + 4,
    INODE_AT_NLINK = INODE_AT_GID + 4,
    INODE_AT_SIZE = INODE_AT_NLINK + 4,
    INODE_AT_BLOCKS = INODE_AT_SIZE + 8,
    INODE_AT_SECONDS = INODE_AT_BLOCKS + 8, /* access, modification, change, birth */
    INODE_AT_NANOSECONDS = INODE_AT_SECONDS + 4 * 8,
    INODE_AT_RDEV = INODE_AT_NANOSECONDS + 4 * 4,
    INODE_AT_FLAGS = INODE_AT_RDEV + 8,
    INODE_AT_INLINE_LENGTH = INODE_AT_FLAGS + 4,
    INODE_AT_PARENT = INODE_AT_INLINE_LENGTH + 4,
    INODE_AT_RESERVED = INODE_AT_PARENT + 8,
    INODE_END = INODE_AT_RESERVED + 8,
};
_Static_assert(INODE_END == INODE_LENGTH, "offsets chain to the length");

static void time_encode(uint8_t *out, unsigned which, struct filesystem_time time)
{
    store_le64(out + INODE_AT_SECONDS + 8 * which, (uint64_t)time.seconds);
    store_le32(out + INODE_AT_NANOSECONDS + 4 * which, time.nanoseconds);
}

static bool time_decode(const uint8_t *value, unsigned which, struct filesystem_time *out)
{
    out->seconds = (int64_t)load_le64(value + INODE_AT_SECONDS + 8 * which);
    out->nanoseconds = load_le32(value + INODE_AT_NANOSECONDS + 4 * which);
    return out->nanoseconds < NANOSECONDS_PER_SECOND;
}

void inode_encode(const struct inode *inode, uint8_t out[INODE_LENGTH])
{
    memset(out, 0, INODE_LENGTH);
    store_le32(out + INODE_AT_MODE, inode->mode);
    store_le32(out + INODE_AT_UID, inode->uid);
    store_le32(out + INODE_AT_GID, inode->gid);
    store_le32(out + INODE_AT_NLINK, inode->nlink);
    store_le64(out + INODE_AT_SIZE, inode->size_bytes);
    store_le64(out + INODE_AT_BLOCKS, inode->blocks);
    time_encode(out, 0, inode->atime);
    time_encode(out, 1, inode->mtime);
    time_encode(out, 2, inode->ctime);
    time_encode(out, 3, inode->birth);
    store_le64(out + INODE_AT_RDEV, inode->rdev);
    store_le32(out + INODE_AT_FLAGS, inode->flags);
    store_le32(out + INODE_AT_INLINE_LENGTH, inode->inline_length);
    store_le64(out + INODE_AT_PARENT, inode->parent);
}

static bool mode_is_valid(uint32_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
    case S_IFDIR:
    case S_IFLNK:
    case S_IFCHR:
    case S_IFBLK:
    case S_IFIFO:
    case S_IFSOCK:
        return (mode & ~(uint32_t)(S_IFMT | 07777)) == 0;
    default:
        return false;
    }
}

int inode_decode(uint64_t number, const struct store_item *item, struct inode *out)
{
    const uint8_t *value = item->value;
    if (item->value_length != INODE_LENGTH || item->kind != STORE_VALUE_PLAIN)
        return -EUCLEAN;
    out->number = number;
    out->mode = load_le32(value + INODE_AT_MODE);
    out->uid = load_le32(value + INODE_AT_UID);
    out->gid = load_le32(value + INODE_AT_GID);
    out->nlink = load_le32(value + INODE_AT_NLINK);
    out->size_bytes = load_le64(value + INODE_AT_SIZE);
    out->blocks = load_le64(value + INODE_AT_BLOCKS);
    out->rdev = load_le64(value + INODE_AT_RDEV);
    out->flags = load_le32(value + INODE_AT_FLAGS);
    out->inline_length = load_le32(value + INODE_AT_INLINE_LENGTH);
    out->parent = load_le64(value + INODE_AT_PARENT);
    bool valid = time_decode(value, 0, &out->atime) && time_decode(value, 1, &out->mtime) &&
                 time_decode(value, 2, &out->ctime) && time_decode(value, 3, &out->birth);
    valid = valid && mode_is_valid(out->mode) && out->nlink <= FILESYSTEM_LINKS_MAX &&
            out->size_bytes <= FILESYSTEM_SIZE_MAX && out->blocks <= FILESYSTEM_SIZE_MAX / STORE_BLOCK_SIZE &&
            (out->flags & ~INODE_FLAGS_KNOWN) == 0 && out->parent <= INODE_NUMBER_MAX;
    uint32_t inline_length_max = S_ISLNK(out->mode)   ? FILESYSTEM_TARGET_LENGTH_MAX
                                 : S_ISREG(out->mode) ? FILESYSTEM_INLINE_LENGTH_MAX
                                                      : 0;
    valid = valid && out->inline_length <= inline_length_max && out->inline_length <= out->size_bytes;
    valid = valid && (S_ISDIR(out->mode) == (out->parent != 0));
    valid = valid && (!S_ISREG(out->mode) || out->inline_length == 0 || (out->flags & INODE_INLINE) != 0);
    return valid ? 0 : -EUCLEAN;
}

/* ---- directory entries and back-references ------------------------------------------------------------------- */

size_t dirent_encode(const struct dirent_fields *dirent, uint8_t out[DIRENT_LENGTH_MAX])
{
    store_le64(out, dirent->child);
    out[8] = dirent->type;
    memcpy(out + 9, dirent->name.bytes, dirent->name.length);
    return 9 + dirent->name.length;
}

int dirent_decode(const struct store_item *item, struct dirent_fields *out)
{
    if (item->value_length <= 9 || item->value_length > DIRENT_LENGTH_MAX || item->kind != STORE_VALUE_PLAIN)
        return -EUCLEAN;
    out->child = load_le64(item->value);
    out->type = item->value[8];
    out->name = (struct filesystem_name){item->value + 9, (size_t)(item->value_length - 9)};
    if (out->child <= FILESYSTEM_ROOT_INODE || out->child > INODE_NUMBER_MAX)
        return -EUCLEAN;
    return mode_is_valid((uint32_t)out->type << 12) ? 0 : -EUCLEAN;
}

uint64_t cookie_base(uint64_t hash_seed, struct filesystem_name name)
{
    uint64_t hash = XXH3_64bits_withSeed(name.bytes, name.length, hash_seed) >> 8;
    return (hash == 0 ? 1 : hash) << COOKIE_COLLISION_BITS;
}

int backref_decode(const struct store_item *item, uint64_t *cookie)
{
    if (item->value_length != 8 || item->kind != STORE_VALUE_PLAIN)
        return -EUCLEAN;
    *cookie = load_le64(item->value);
    return 0;
}

int orphan_decode(const struct store_item *item, uint8_t *kinds)
{
    if (item->value_length != 1 || item->kind != STORE_VALUE_PLAIN)
        return -EUCLEAN;
    *kinds = item->value[0];
    return *kinds == 0 || *kinds > (ORPHAN_UNLINKED | ORPHAN_TRUNCATING) ? -EUCLEAN : 0;
}

void references_encode(uint32_t count, uint8_t out[REFERENCES_LENGTH])
{
    store_le32(out, count);
}

int references_decode(const struct store_item *item, uint32_t *count)
{
    if (item->value_length != REFERENCES_LENGTH || item->kind != STORE_VALUE_PLAIN)
        return -EUCLEAN;
    *count = load_le32(item->value);
    return *count == 0 ? -EUCLEAN : 0;
}
