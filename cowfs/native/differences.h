/* What changed between two trees of one pool, inode by inode; and where a path leads in a tree. Views are not needed:
 * trees are named by the object ids of the store. */
#ifndef COWFS_DIFFERENCES_H
#define COWFS_DIFFERENCES_H

#include "filesystem.h"

enum filesystem_difference_kinds {
    FILESYSTEM_DIFFERS_CONTENT = 1,  /* bytes or size of a file */
    FILESYSTEM_DIFFERS_METADATA = 2, /* mode, owner, flags, device number */
    FILESYSTEM_DIFFERS_TIMES = 4,    /* mtime or atime */
    FILESYSTEM_DIFFERS_XATTRS = 8,
    FILESYSTEM_DIFFERS_NAMES = 16,
    FILESYSTEM_DIFFERS_ENTRIES = 32, /* of a directory */
};

struct filesystem_byte_range {
    uint64_t offset_bytes;
    uint64_t length_bytes;
};

struct filesystem_name_change {
    bool added;
    uint64_t parent; /* inode */
    uint16_t name_length;
    uint8_t name[FILESYSTEM_NAME_LENGTH_MAX];
};

struct filesystem_difference {
    uint64_t inode;
    unsigned kinds;
    bool in_old;
    bool in_new;
    struct filesystem_attributes old_attributes; /* the node is the inode number */
    struct filesystem_attributes new_attributes;
    /* Of a file that both trees have: which of its bytes differ, in order. Whole blocks (of which a rewrite with the
     * same bytes is none), but for small files, kept in their inode, to the byte; up to the longer size. */
    struct filesystem_byte_range *ranges;
    size_t range_count, range_capacity;
    struct filesystem_name_change *names;
    size_t name_count, name_capacity;
};

struct filesystem_differences {
    struct filesystem_difference *items;
    size_t count, capacity;
};

/* Of inodes from first_inode to last_inode, in their order, at most `limit`; fewer are all there are. The cost follows
 * what differs. Free with filesystem_differences_free(), also after an error. -ENOENT: no such tree. */
int filesystem_diff(struct filesystem *filesystem, uint64_t old_object_id, uint64_t new_object_id, uint64_t first_inode,
                    uint64_t last_inode, size_t limit, struct filesystem_differences *out);
void filesystem_differences_free(struct filesystem_differences *differences);

struct filesystem_trace {
    bool found;
    struct filesystem_attributes attributes; /* the node is the inode number */
    /* Snapshots of the tree's line from this epoch on, up to the tree, have the same at the path, or also nothing. */
    uint64_t birth;
};
/* Where a path (of components separated by slashes, relative to the root; symlinks are not followed) leads. */
int filesystem_trace(struct filesystem *filesystem, uint64_t object_id, struct filesystem_name path,
                     struct filesystem_trace *out);

/* One path of an inode from the root of the tree, "/" for the root itself; free() it. -ENOENT when it has no name. */
int filesystem_object_path(struct filesystem *filesystem, uint64_t object_id, uint64_t inode, char **path,
                           size_t *length);

#endif
