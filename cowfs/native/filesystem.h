/* The file system's verbs over a btree store: what runs once per request, written once for both front ends.
 *
 * Every function is thread-safe, may block on I/O, needs no Python, and returns 0 or a negative errno unless it says
 * otherwise. -ESTALE: the node's tree is gone (rolled back, snapshot deleted) or the inode is; -EROFS: a change to a
 * snapshot or through a read-only mount; -EUCLEAN: an item that cannot be what it claims; -EIO.
 *
 * Node ids. (view << 40) | inode number. A view is one tree as this mount shows it; it answers -ESTALE once that tree
 * is gone and its number is not used again. Node id 1 is always the root of the mounted volume's present view.
 *
 * Access times change only when they are set (noatime). Permissions are the kernel's business. */
#ifndef COWFS_FILESYSTEM_H
#define COWFS_FILESYSTEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../../btree/native/store.h"

#define FILESYSTEM_VIEW_SHIFT 40
#define FILESYSTEM_ROOT_INODE 1u
#define FILESYSTEM_INLINE_LENGTH_MAX 800u
#define FILESYSTEM_NAME_LENGTH_MAX 255u
#define FILESYSTEM_TARGET_LENGTH_MAX 4095u
#define FILESYSTEM_XATTR_LENGTH_MAX 65536u
#define FILESYSTEM_XATTR_LIST_LENGTH_MAX 65536u
#define FILESYSTEM_LINKS_MAX 0x7fffffffu
#define FILESYSTEM_SIZE_MAX (UINT64_C(1) << 60)

struct filesystem;

struct filesystem_time {
    int64_t seconds;      /* since 1970, negative before */
    uint32_t nanoseconds; /* 0 to 999,999,999 */
};

struct filesystem_attributes {
    uint64_t node;
    uint32_t mode;
    uint32_t nlink;
    uint32_t uid;
    uint32_t gid;
    uint64_t rdev;
    uint64_t size_bytes;
    uint64_t blocks_512;
    struct filesystem_time atime;
    struct filesystem_time mtime;
    struct filesystem_time ctime;
    struct filesystem_time birth;
    uint32_t flags; /* FILESYSTEM_IMMUTABLE, FILESYSTEM_APPEND */
};

enum filesystem_flags { FILESYSTEM_IMMUTABLE = 1, FILESYSTEM_APPEND = 2 };

struct filesystem_name {
    const void *bytes;
    size_t length;
};

/* ---- life of a mount ----------------------------------------------------------------------------------------- */

/* Writes the volume record and the root directory of an empty volume. -EEXIST when it has them. */
int filesystem_initialize(struct store *store, uint64_t volume_id, uint32_t uid, uint32_t gid, uint32_t mode);

/* Initializes the volume when it is empty and finishes truncations and removals that a crash interrupted, unless
 * read_only (then an empty volume is -ENOENT). The store stays the caller's and must outlive the file system. */
int filesystem_open(struct store *store, uint64_t volume_id, bool read_only, struct filesystem **out);

/* Frees memory and touches nothing stored. No other call may be under way. */
void filesystem_close(struct filesystem *filesystem);

/* ---- views --------------------------------------------------------------------------------------------------- */

int filesystem_view_of_snapshot(struct filesystem *filesystem, uint64_t snapshot_id, uint64_t *root_node);
int filesystem_view_of_volume(struct filesystem *filesystem, uint64_t volume_id, uint64_t *root_node);
void filesystem_forget_snapshot(struct filesystem *filesystem, uint64_t snapshot_id);
/* Whether any view of it was made: only then can the kernel know its name. */
bool filesystem_snapshot_is_viewed(struct filesystem *filesystem, uint64_t snapshot_id);
struct filesystem_nodes {
    uint64_t *ids; /* free() it */
    size_t count;
    size_t capacity;
};
/* The volume's content was replaced: a new view, and the old one stale. `open` are the old view's nodes that are open,
 * and *old_view is its number, for filesystem_held_nodes(); UINT32_MAX when there was none. Takes as long as there are
 * open nodes, however many are held. */
int filesystem_rolled_back(struct filesystem *filesystem, uint64_t volume_id, struct filesystem_nodes *open,
                           uint32_t *old_view);
/* One step through the nodes of a view whose lookup count is above zero, open ones included: looks at a bounded number
 * of those of all views, and appends what it finds. *cursor is 0 at the beginning and again at the end. A node that is
 * held all the time is found at least once. */
int filesystem_held_nodes(struct filesystem *filesystem, uint32_t view, uint64_t *cursor,
                          struct filesystem_nodes *nodes);
/* What is written to a volume from now on is compressed so, by one of the algorithms in compression.h (0: not at all).
 * Volume id 0: what is written to those for which nothing was said. Lasts as long as the mount. */
int filesystem_set_compression(struct filesystem *filesystem, uint64_t volume_id, unsigned algorithm, unsigned level);
/* Whether what is written to it is compressed as it comes, where that saves space. */
bool filesystem_compresses(struct filesystem *filesystem, uint64_t node);
bool filesystem_is_read_only_node(struct filesystem *filesystem, uint64_t node);
bool filesystem_is_stale(struct filesystem *filesystem, uint64_t node);

/* Blocks of content that this mount has stored compressed so far, and what they took on the medium. */
void filesystem_compression(struct filesystem *filesystem, uint64_t *content_blocks, uint64_t *stored_blocks);
/* Starts the thread that compresses what came in small writes, after the fact; stop it, or release all, before the
 * store is closed. */
int filesystem_gather_start(struct filesystem *filesystem);
void filesystem_gather_stop(struct filesystem *filesystem);
/* Compresses now what is waiting for that. */
void filesystem_gather(struct filesystem *filesystem);
/* Whether the blocks of a file may be about to become fewer, or have just done so, without the kernel's doing. */
bool filesystem_is_settling(struct filesystem *filesystem, uint64_t node);

/* Of files and directories, by their front ends: what open(2) calls an open file description. Each call of the first
 * that succeeds needs one of the second with the handle that it gave, which is never 0. */
int filesystem_opened(struct filesystem *filesystem, uint64_t node, uint64_t *handle);
void filesystem_closed(struct filesystem *filesystem, uint64_t node, uint64_t handle);
/* How many nodes of any tree are open. */
size_t filesystem_open_nodes(struct filesystem *filesystem);

/* Lowers the lookup count; an unlinked inode that comes to zero is removed with its space. */
int filesystem_forget(struct filesystem *filesystem, uint64_t node, uint64_t count);
uint64_t filesystem_lookup_count(struct filesystem *filesystem, uint64_t node);
/* At unmount: gathers and stops gathering, removes what is unlinked but still open and forgets every lookup count. */
int filesystem_release_all(struct filesystem *filesystem);

/* ---- names --------------------------------------------------------------------------------------------------- */

/* Also "." and "..". This, create and link raise the lookup count of the node that they return by one. */
int filesystem_lookup(struct filesystem *filesystem, uint64_t parent, struct filesystem_name name,
                      struct filesystem_attributes *out);

struct filesystem_creation {
    uint32_t mode; /* with the type; no type: a regular file */
    uint32_t uid;
    uint32_t gid;
    uint64_t rdev;
    struct filesystem_name target; /* symlinks */
};
int filesystem_create(struct filesystem *filesystem, uint64_t parent, struct filesystem_name name,
                      const struct filesystem_creation *creation, struct filesystem_attributes *out);
/* O_TMPFILE: a regular file that no name leads to, gone with its last lookup (or a crash) unless link gives it one. */
int filesystem_create_unnamed(struct filesystem *filesystem, uint64_t parent,
                              const struct filesystem_creation *creation, struct filesystem_attributes *out);
/* -ENOENT for an inode that has lost its names; one made by filesystem_create_unnamed() may get its first. */
int filesystem_link(struct filesystem *filesystem, uint64_t node, uint64_t new_parent, struct filesystem_name new_name,
                    struct filesystem_attributes *out);
int filesystem_unlink(struct filesystem *filesystem, uint64_t parent, struct filesystem_name name);
int filesystem_rmdir(struct filesystem *filesystem, uint64_t parent, struct filesystem_name name);

enum filesystem_rename_flags { FILESYSTEM_RENAME_NOREPLACE = 1, FILESYSTEM_RENAME_EXCHANGE = 2 };
int filesystem_rename(struct filesystem *filesystem, uint64_t old_parent, struct filesystem_name old_name,
                      uint64_t new_parent, struct filesystem_name new_name, uint32_t flags);
/* `target` has room for FILESYSTEM_TARGET_LENGTH_MAX bytes; not NUL-terminated. */
int filesystem_readlink(struct filesystem *filesystem, uint64_t node, void *target, size_t *length);

struct filesystem_entry {
    struct filesystem_attributes attributes;
    uint64_t cookie; /* where to go on after this entry: positive, 63 bits, never 0 to 2 */
    uint16_t name_length;
    uint8_t name[FILESYSTEM_NAME_LENGTH_MAX];
};
/* Entries after `cookie` (0: from the start), without "." and "..". `entries` has room for `limit`. With `lookup` each
 * entry's lookup count is raised by one. Cookies stay valid while entries come and go. */
int filesystem_readdir(struct filesystem *filesystem, uint64_t node, uint64_t cookie, size_t limit, bool lookup,
                       struct filesystem_entry *entries, size_t *count);
int filesystem_parent(struct filesystem *filesystem, uint64_t node, uint64_t *parent);
/* One path from the root of the tree, "/" for the root itself; free() it. -ENOENT when no name is left. */
int filesystem_path(struct filesystem *filesystem, uint64_t node, char **path, size_t *length);

/* ---- inodes -------------------------------------------------------------------------------------------------- */

int filesystem_getattr(struct filesystem *filesystem, uint64_t node, struct filesystem_attributes *out);

enum filesystem_setattr_fields {
    FILESYSTEM_SET_MODE = 1,
    FILESYSTEM_SET_UID = 2,
    FILESYSTEM_SET_GID = 4,
    FILESYSTEM_SET_SIZE = 8,
    FILESYSTEM_SET_ATIME = 16,
    FILESYSTEM_SET_MTIME = 32,
    FILESYSTEM_SET_CTIME = 64, /* without it the change time becomes now */
    FILESYSTEM_SET_NOW = 128,  /* the times come from the clock, not from a caller: an append-only inode takes them */
    FILESYSTEM_SET_KEEP_BITS = 512, /* a new size takes security.capability away, but not setuid and setgid */
    FILESYSTEM_SET_CACHED = 256, /* MTIME and CTIME are those of writes accepted before: any inode takes them */
};
struct filesystem_change {
    unsigned fields;
    uint32_t mode; /* the type is left alone */
    uint32_t uid;
    uint32_t gid;
    uint64_t size_bytes;
    struct filesystem_time atime;
    struct filesystem_time mtime;
    struct filesystem_time ctime;
};
int filesystem_setattr(struct filesystem *filesystem, uint64_t node, const struct filesystem_change *change,
                       struct filesystem_attributes *out);

/* Replaces FILESYSTEM_IMMUTABLE and FILESYSTEM_APPEND; who may do so the caller has found out. -EOPNOTSUPP for others.
 *
 * What they forbid answers -EPERM, as chattr(1) has it. Immutable: any change to content, attributes, extended
 * attributes and names of the inode, and to the entries of a directory. Append-only: the same, but for writes at the
 * end, for times set to the present, and in directories for new entries. */
int filesystem_setflags(struct filesystem *filesystem, uint64_t node, uint32_t flags);
/* What open(2) has to ask: -EPERM when the flags forbid to open for writing, without O_APPEND, or with O_TRUNC. */
enum filesystem_open_flags { FILESYSTEM_OPEN_WRITE = 1, FILESYSTEM_OPEN_APPEND = 2, FILESYSTEM_OPEN_TRUNCATE = 4 };
int filesystem_may_open(struct filesystem *filesystem, uint64_t node, unsigned flags);

/* Of the volume that the node lies in, under a new name: captures every verb that returned before. -EEXIST. */
int filesystem_snapshot(struct filesystem *filesystem, uint64_t node, const char *name, bool durable);
int filesystem_take_snapshot(struct filesystem *filesystem, uint64_t node, const char *name, bool durable,
                             struct store_snapshot *taken);
/* -ENOENT, -EBUSY (held); -ENOTTY when it has a view, whose names the kernel has to be told to forget. */
int filesystem_destroy_snapshot(struct filesystem *filesystem, uint64_t node, const char *name, bool durable);

/* ---- data ---------------------------------------------------------------------------------------------------- */

/* *got is less than length_bytes at the end of the file. */
int filesystem_read(struct filesystem *filesystem, uint64_t node, uint64_t offset_bytes, void *buffer,
                    size_t length_bytes, size_t *got);
/* All of it or an error, after which a part (up to a multiple of 512 KiB) may have been written. */
int filesystem_write(struct filesystem *filesystem, uint64_t node, uint64_t offset_bytes, const void *bytes,
                     size_t length_bytes);
/* With FILESYSTEM_WRITE_APPEND the file was opened with O_APPEND and the kernel chose the offset: append-only
 * files take nothing else but cached writes. */
enum filesystem_write_flags {
    FILESYSTEM_WRITE_APPEND = 1,
    /* The kernel accepted the bytes earlier, whatever the inode's flags say now, and keeps the times and the privilege
     * bits that go with them itself: those stay as they are. */
    FILESYSTEM_WRITE_CACHED = 2,
    /* The writer has CAP_FSETID: setuid and setgid stay. security.capability goes with every write. */
    FILESYSTEM_WRITE_KEEP_BITS = 4,
};
int filesystem_write_flagged(struct filesystem *filesystem, uint64_t node, uint64_t offset_bytes, const void *bytes,
                             size_t length_bytes, unsigned flags);

/* SEEK_DATA, with `hole` SEEK_HOLE. -ENXIO at or past the end of the file, and when no data follows; the end of the
 * file is a hole. Inline bytes are data. */
int filesystem_seek(struct filesystem *filesystem, uint64_t node, uint64_t offset_bytes, bool hole,
                    uint64_t *found);

/* fallocate(2), the values of <linux/falloc.h>: 0, KEEP_SIZE, PUNCH_HOLE with KEEP_SIZE, ZERO_RANGE with or without
 * KEEP_SIZE; -EOPNOTSUPP for others. Every write takes new blocks, so none can be set aside: 0 and KEEP_SIZE change no
 * block, and a later write may still find no space. They answer -ENOSPC when the range certainly does not fit now.
 * After an error a part may have been punched. */
enum filesystem_allocate_modes {
    FILESYSTEM_ALLOCATE_KEEP_SIZE = 0x01,
    FILESYSTEM_ALLOCATE_PUNCH_HOLE = 0x02,
    FILESYSTEM_ALLOCATE_ZERO_RANGE = 0x10,
};
int filesystem_allocate(struct filesystem *filesystem, uint64_t node, unsigned mode, uint64_t offset_bytes,
                        uint64_t length_bytes);

/* copy_file_range(2): whole blocks within one tree are shared, the rest is copied. *copied may be less than the length,
 * and is 0 only at the end of node_in. -EINVAL when the ranges overlap in one file. */
int filesystem_copy_range(struct filesystem *filesystem, uint64_t node_in, uint64_t offset_in, uint64_t node_out,
                          uint64_t offset_out, uint64_t length_bytes, uint64_t *copied);

/* Durable when it returns 0. The store is one journal: this commits everything before it. After a failed write or flush
 * each handle hears -EIO once (opens.c), and 0 is of no meaning any more but for a file none of whose changes was lost;
 * handle 0, nobody's, hears it each time. */
int filesystem_fsync(struct filesystem *filesystem, uint64_t node, uint64_t handle);
/* Whether it can be written no more because a write or flush failed. */
bool filesystem_has_failed(const struct filesystem *filesystem);

/* ---- extended attributes ------------------------------------------------------------------------------------- */

/* -ERANGE when the value is longer than `size`; *length is set in either case. */
int filesystem_getxattr(struct filesystem *filesystem, uint64_t node, struct filesystem_name name, void *value,
                        size_t size, size_t *length);
enum filesystem_xattr_flags { FILESYSTEM_XATTR_CREATE = 1, FILESYSTEM_XATTR_REPLACE = 2 };
int filesystem_setxattr(struct filesystem *filesystem, uint64_t node, struct filesystem_name name, const void *value,
                        size_t length, uint32_t flags);
int filesystem_removexattr(struct filesystem *filesystem, uint64_t node, struct filesystem_name name);
/* NUL-terminated names one after the other. */
int filesystem_listxattr(struct filesystem *filesystem, uint64_t node, char *list, size_t size, size_t *length);

/* ---- the whole ----------------------------------------------------------------------------------------------- */

struct filesystem_space {
    uint64_t blocks; /* of STORE_BLOCK_SIZE */
    uint64_t blocks_free;
    uint64_t blocks_available;
};
void filesystem_statfs(struct filesystem *filesystem, struct filesystem_space *out);

/* Tells `report` of each problem in one tree; a live volume has to be quiet meanwhile. Returns how many, or a negative
 * errno. */
typedef void (*filesystem_report)(void *argument, const char *message);
int64_t filesystem_check(struct filesystem *filesystem, uint64_t object_id, filesystem_report report, void *argument);

#endif
