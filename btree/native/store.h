/* The store: an embedded, ordered, copy-on-write key/value store with O(1) snapshots and writable clones, plus
 * space for data extents. It knows no files and no Python.
 *
 * Every function is thread-safe unless it says otherwise, may block on I/O, and returns 0 or a negative errno.
 * After an I/O error that endangers what was promised the store turns read-only: every later change answers -EROFS,
 * every later commit -EIO, reads go on; store_has_failed() and store_statistics() tell.
 *
 * Objects. A volume is a writable tree; a snapshot is a frozen one. Both are named by one 64-bit object id out of one
 * counter, so that reads take either.
 *
 * Epochs. A pool-wide counter that each snapshot and each checkpoint raises. A block's birth is the epoch in
 * which it came into a tree; a block is in snapshot s (of its chain) only if birth <= s.epoch.
 *
 * Blocks. Space is counted in blocks of STORE_BLOCK_SIZE bytes; an address is a block number from the pool's start. */
#ifndef BTREE_STORE_H
#define BTREE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "storage.h"

#define STORE_BLOCK_SIZE 4096u
#define STORE_KEY_LENGTH_MAX 320u
#define STORE_NAME_LENGTH_MAX 255u
#define STORE_ANNOTATION_LENGTH_MAX 512u
#define STORE_PROPERTY_NAME_LENGTH_MAX 64u
#define STORE_PROPERTY_LENGTH_MAX 512u
#define STORE_PROPERTIES_MAX 256u
#define STORE_EXTENT_BLOCKS_MAX 32u
#define STORE_POOL_SIZE_MIN_BYTES (16u << 20)
#define STORE_FOREVER UINT64_MAX

struct store;
struct transaction;

struct store_failure {
    char message[256]; /* what is wrong and what to do next, for people */
};

/* ---- life of a pool ------------------------------------------------------------------------------------------ */

struct store_parameters { /* chosen at mkfs; 0 means default */
    uint32_t node_size_bytes;   /* 4096, 8192 or 16384; default 4096 */
    uint32_t metadata_copies;   /* 1 or 2; default 2 */
    uint64_t journal_size_bytes; /* default: 1/16 of the pool, 1 to 64 MiB */
    char label[64];             /* NUL-terminated UTF-8 */
    uint8_t uuid[16];           /* all zero: drawn at random */
};

/* Writes an empty pool (no volumes). What the storage held is lost. The storage stays open and the caller's. */
int store_format(struct storage *storage, const struct store_parameters *parameters, struct store_failure *failure);

struct store_options { /* 0 means default */
    size_t cache_bytes_max;  /* clean nodes; default 96 MiB */
    size_t dirty_bytes_max;  /* changed nodes that trigger a checkpoint; default 48 MiB; at twice that writers wait */
    size_t buffer_bytes_max; /* unwritten data; default 32 MiB */
    uint32_t commit_interval_ms; /* default 1000 */
    bool read_only;          /* replays the journal in memory only and writes nothing */
    /* For fsck: what is in use and what is dead is found out by walking, not believed; a journal that has lost a group
     * is no error, but ends there. */
    bool rebuild_space;
    uint64_t sequence_max;   /* of the superblock to open with: an older one than the newest (fsck) */
    bool no_background;      /* no maintenance thread: commits and checkpoints happen only inside calls (tests) */
};

/* Opens and recovers. On success the store owns the storage; on failure the caller still does.
 * -EINVAL no pool, -EPROTONOSUPPORT a newer version, -EIO unreadable or damaged, -EUCLEAN damaged structure. */
int store_open(struct storage *storage, const struct store_options *options, struct store **out,
               struct store_failure *failure);

/* Commits, writes a checkpoint, frees everything (also on error) and closes the storage. */
int store_close(struct store *store);

/* Frees everything and writes nothing, as if the process had been killed. */
void store_abandon(struct store *store);

/* ---- transactions -------------------------------------------------------------------------------------------- */

/* A body runs under the store lock, for memory work only. It must be restartable: when a node it needs is not in
 * memory the reading functions return STORE_AGAIN, which the body passes straight up; the store then reads the node
 * with the lock released and runs the body again from its beginning. So a body touches nothing outside but its own
 * argument, and sets that afresh at each start. Changes are gathered and applied, all of them or none, after the body
 * returned 0; any negative return abandons them and is returned from store_transact(). */
#define STORE_AGAIN 1
typedef int (*transaction_body)(struct transaction *transaction, void *argument);

enum store_transact_flags {
    STORE_TRANSACT_READ = 1,    /* no changes; object may be a snapshot */
    STORE_TRANSACT_RESERVE = 2, /* frees more than it takes: may use the reserve that keeps a full pool emptiable */
};

/* -ENOENT no such object, -EROFS changes to a snapshot or a read-only store, -ENOSPC, -EIO. */
int store_transact(struct store *store, uint64_t object_id, unsigned flags, transaction_body body, void *argument);

enum store_value_kind {
    STORE_VALUE_PLAIN = 0,
    STORE_VALUE_EXTENT = 1, /* the value is an encoded struct store_extent; the blocks it names belong to this item */
};

struct store_item {
    const uint8_t *key;
    const uint8_t *value;
    uint16_t key_length;
    uint16_t value_length;
    enum store_value_kind kind;
};

/* Largest key + value that one item can have in this pool, about a quarter of a node. */
uint32_t store_item_length_max(const struct store *store);

/* Value of a key, gathered changes of this transaction included. -ENOENT when absent. What `item` points to is valid
 * until the body returns or changes that key. */
int transaction_get(struct transaction *transaction, const void *key, size_t key_length, struct store_item *item);

/* Gathers one change; the bytes are copied. `fresh` says that the extent's blocks come from a data reservation and
 * become part of a tree with this change (also when it is an older extent grown by fresh blocks). */
int transaction_put(struct transaction *transaction, const void *key, size_t key_length, const void *value,
                    size_t value_length, enum store_value_kind kind, bool fresh);
/* Deleting an absent key is no error. */
int transaction_delete(struct transaction *transaction, const void *key, size_t key_length);

/* The volume no longer refers to these data blocks (all of one birth). The store frees them or hands them to the
 * dead bucket of the newest snapshot that sees them. Blocks of a replaced or deleted extent item are not freed
 * by themselves: what is no longer referred to is said here. */
int transaction_kill(struct transaction *transaction, uint64_t address, uint32_t blocks, uint64_t birth);

/* Has `function` called once, under the store lock, right before the gathered changes are applied, when nothing can
 * fail any more. At most four per transaction, else -E2BIG. */
int transaction_on_apply(struct transaction *transaction, void (*function)(void *argument), void *argument);

/* The current epoch: the birth to write into fresh extents. */
uint64_t transaction_epoch(const struct transaction *transaction);
/* How often the volume was rolled back (store_volume.generation); 0 for a snapshot. A caller that keeps what it read
 * in an earlier transaction finds out by it whether the volume still has that content's successor. */
uint64_t transaction_generation(const struct transaction *transaction);

/* Raises *birth to the greatest birth of a leaf that holds keys with start <= key < stop, when that is greater, or to
 * an earlier epoch of which no snapshot of the tree's chain tells the difference. Every
 * snapshot of this tree's chain between that epoch and this tree has the same items there, as long as each change of
 * the range changes or removes one of its present items. The cost follows what is younger than *birth. */
int transaction_birth(struct transaction *transaction, const void *start, size_t start_length, const void *stop,
                      size_t stop_length, uint64_t *birth);

/* A position in the tree as it was when the body began (gathered changes are not seen). Valid within the body. */
#define STORE_TREE_HEIGHT_MAX 16
struct cursor {
    void *nodes[STORE_TREE_HEIGHT_MAX];
    uint16_t slots[STORE_TREE_HEIGHT_MAX];
    uint16_t depth;
    uint8_t key[STORE_KEY_LENGTH_MAX]; /* the key in full */
    struct store_item item;            /* item.key points at `key`; value into the node */
};
/* First item with key >= the given one; -ENOENT when there is none. */
int cursor_seek(struct transaction *transaction, struct cursor *cursor, const void *key, size_t key_length);
/* Last item with key <= the given one (key NULL: last of all); -ENOENT when there is none. */
int cursor_seek_last(struct transaction *transaction, struct cursor *cursor, const void *key, size_t key_length);
int cursor_next(struct transaction *transaction, struct cursor *cursor);
int cursor_previous(struct transaction *transaction, struct cursor *cursor);

/* ---- data extents -------------------------------------------------------------------------------------------- */

struct store_extent {
    uint64_t address;        /* first block */
    uint64_t birth;          /* epoch */
    uint16_t blocks;         /* blocks on the medium */
    uint16_t logical_blocks; /* blocks of content they hold: equal to `blocks` when stored plain */
    uint8_t compression;     /* 0: plain */
    uint8_t flags;
    uint16_t checksum_count; /* one per block when plain, one in all when compressed */
};
#define STORE_EXTENT_HEADER_LENGTH 24u
#define STORE_EXTENT_LENGTH_MAX (STORE_EXTENT_HEADER_LENGTH + 8u * STORE_EXTENT_BLOCKS_MAX)

/* Pair of codecs for extent items. decode checks every field (lengths, ranges) and returns -EUCLEAN otherwise;
 * checksums stay in the encoded bytes and are read with store_extent_checksum(). */
size_t store_extent_encode(const struct store_extent *extent, const uint64_t *checksums, uint8_t *out);
int store_extent_decode(const void *value, size_t value_length, struct store_extent *out);
uint64_t store_extent_checksum(const void *value, uint32_t index);
/* XXH3-64 of bytes. */
uint64_t store_checksum(const void *bytes, size_t length_bytes);

/* Space for new data: consecutive blocks and the page-aligned memory that will be written there. The caller fills
 * `memory`, calls store_data_complete(), and puts extent items for all of the blocks (fresh) in a transaction, or
 * gives the blocks back with store_data_release() after completing. May return fewer blocks than wanted, at least
 * one. -ENOSPC when there is no room (checkpoints that could free some have been tried). Blocks while more than
 * buffer_bytes_max are unwritten. */
struct store_reservation {
    uint64_t address;
    uint32_t blocks;
    uint8_t *memory;
    void *segment;
};
int store_data_reserve(struct store *store, uint32_t blocks_wanted, bool use_reserve, struct store_reservation *out);
void store_data_complete(struct store *store, struct store_reservation *reservation);
void store_data_release(struct store *store, uint64_t address, uint32_t blocks);

/* Reads blocks, from the write buffer or the medium, unverified: the caller compares checksums. The mapping may
 * have changed since the caller looked it up, so a mismatch is an error only if looking it up again gives the same. */
int store_data_read(struct store *store, uint64_t address, uint32_t blocks, void *buffer);

/* Inside a body: memory of one block that this volume alone refers to and that has not been written yet, so that a
 * small write may change it in place (and put the extent again, fresh, with the new checksum); otherwise NULL. */
uint8_t *transaction_data_in_place(struct transaction *transaction, uint64_t address, uint64_t birth);
/* Inside a body: no snapshot of this volume has blocks of this birth that the volume refers to. */
bool transaction_owns(const struct transaction *transaction, uint64_t birth);
/* The change itself, within that block and in an apply hook; no bytes: zeros. */
void store_data_change(struct store *store, uint8_t *memory, const void *bytes, size_t length_bytes);

/* Counts and logs a checksum mismatch in data that stayed the same over two looks. */
void store_note_data_mismatch(struct store *store, uint64_t address);

/* ---- durability ---------------------------------------------------------------------------------------------- */

/* When it returns 0, everything that returned before the call is durable: data and journal written, one flush, none
 * when nothing was outstanding. */
int store_commit(struct store *store);
bool store_has_failed(const struct store *store);
/* Whether all changes of the volume's items whose keys begin so are durable: without a doubt, that is. Takes as long as
 * looking through what is not, some megabytes. */
bool store_is_durable(struct store *store, uint64_t volume_id, const void *key, size_t key_length);
/* Commits and writes a checkpoint, after which the journal is empty and freed space is reusable. */
int store_checkpoint(struct store *store);

/* ---- volumes, snapshots, clones ------------------------------------------------------------------------------ */

struct store_volume {
    uint64_t id;
    uint64_t created_ns; /* since 1970 */
    uint64_t origin_snapshot_id; /* 0: not a clone */
    uint64_t generation; /* raised by each rollback */
    uint64_t snapshot_count;
    char name[STORE_NAME_LENGTH_MAX + 1];
};

struct store_snapshot {
    uint64_t id;
    uint64_t volume_id;
    uint64_t epoch;
    uint64_t created_ns;
    uint32_t clone_count;
    uint32_t hold_count;
    uint16_t annotation_length;
    char name[STORE_NAME_LENGTH_MAX + 1];
    uint8_t annotation[STORE_ANNOTATION_LENGTH_MAX];
};

/* Names: 1 to 255 bytes without NUL or '/', not "." or "..": else -EINVAL or -ENAMETOOLONG. -EEXIST when taken. */
int store_volume_create(struct store *store, const char *name, uint64_t *id);
int store_volume_find(struct store *store, const char *name, struct store_volume *out); /* -ENOENT */
int store_volume_get(struct store *store, uint64_t volume_id, struct store_volume *out);
/* First volume with id > after_id; -ENOENT at the end. */
int store_volume_next(struct store *store, uint64_t after_id, struct store_volume *out);
/* The volume and all its snapshots; snapshots that are origins of clones stay, hidden. -EBUSY when one is held. */
int store_volume_destroy(struct store *store, uint64_t volume_id);

/* A frozen root: captures every transaction that returned before, none that begins after. Cost does not depend on
 * the number of snapshots or the size of the volume. Not durable before store_commit(). */
int store_snapshot_create(struct store *store, uint64_t volume_id, const char *name, struct store_snapshot *out);
/* 1 when the volume may have changed since a snapshot of it was last taken (also when that is deleted by now), 0 when
 * not; -ENOENT. One comparison of two epochs. */
int store_volume_changed(struct store *store, uint64_t volume_id);
int store_snapshot_find(struct store *store, uint64_t volume_id, const char *name, struct store_snapshot *out);
int store_snapshot_get(struct store *store, uint64_t snapshot_id, struct store_snapshot *out);
/* Snapshot of this volume with the least id > after_id; -ENOENT at the end. Cost does not depend on the count. */
int store_snapshot_next(struct store *store, uint64_t volume_id, uint64_t after_id, struct store_snapshot *out);
/* Id of the newest snapshot of the volume taken at or before a time (since 1970); -ENOENT. Cost does not depend on the
 * count, nor does that of the next two. */
int store_snapshot_at(struct store *store, uint64_t volume_id, uint64_t time_ns, uint64_t *id);
/* Id of the oldest snapshot between an epoch and the object (a snapshot, itself included, or a volume) with no rollback
 * or clone between it and the object: each block of the object born up to that epoch is in it. -ENOENT. */
int store_snapshot_since(struct store *store, uint64_t object_id, uint64_t epoch, uint64_t *id);
/* With the greatest id < before_id. */
int store_snapshot_previous(struct store *store, uint64_t volume_id, uint64_t before_id, struct store_snapshot *out);
/* The name is free at once, space comes back in the background. -EBUSY when held. A snapshot with clones is hidden
 * and goes with its last clone. */
int store_snapshot_delete(struct store *store, uint64_t snapshot_id);
/* Blocks that come free when these snapshots (ids without repetition) are deleted, exactly, those of trees included:
 * origins of clones stay. Writes a checkpoint. -ENOENT when one is not there. */
int store_snapshots_space(struct store *store, const uint64_t *snapshot_ids, size_t count, uint64_t *blocks);
/* The same for each of them alone, without a checkpoint: nodes that are not written yet do not count. UINT64_MAX for
 * what is not there or not known before the next checkpoint. */
int store_snapshots_unique(struct store *store, const uint64_t *snapshot_ids, size_t count, uint64_t *blocks);
/* Blocks of data that the snapshot has and the one before did not; -E2BIG when more than so many items differ. */
int store_snapshot_written(struct store *store, uint64_t snapshot_id, uint64_t items_max, uint64_t *blocks);
/* Replaces hold count and annotation (bytes the store does not look into). */
int store_snapshot_annotate(struct store *store, uint64_t snapshot_id, uint32_t hold_count, const void *annotation,
                            size_t annotation_length);
/* A new volume whose content is the snapshot's. */
int store_clone(struct store *store, uint64_t snapshot_id, const char *name, uint64_t *volume_id);
/* A clone's origin and the snapshots before it become the clone's own, and the volume that they belonged to becomes a
 * clone of that origin. -EINVAL: it is no clone, or they are its own already; -EEXIST: it has a snapshot of the
 * same name as one of them. */
int store_promote(struct store *store, uint64_t volume_id);
/* The volume's content becomes the snapshot's (one of its own), after a guard snapshot of what it was. Newer snapshots
 * stay. Constant time. */
int store_rollback(struct store *store, uint64_t volume_id, uint64_t snapshot_id, const char *guard_name,
                   struct store_snapshot *guard);

/* ---- properties of volumes ----------------------------------------------------------------------------------- */

/* Small named values that belong to a volume and not to its content: a rollback leaves them, a clone gets a copy. */
struct store_property {
    uint16_t length;
    char name[STORE_PROPERTY_NAME_LENGTH_MAX + 1];
    uint8_t value[STORE_PROPERTY_LENGTH_MAX];
};
/* No bytes: removed, which is no error when it was not there. -EINVAL or -ENAMETOOLONG for a name not of 1 to 64
 * bytes, -EMSGSIZE for a value above 512, -E2BIG when the volume has 256 already. Not durable before store_commit(). */
int store_volume_property_set(struct store *store, uint64_t volume_id, const char *name, const void *value,
                              size_t length);
/* -ENOENT: no such volume; -ENODATA: no such property. */
int store_volume_property_get(struct store *store, uint64_t volume_id, const char *name, struct store_property *out);
/* First property whose name comes after `after` ("": of all); -ENODATA at the end. */
int store_volume_property_next(struct store *store, uint64_t volume_id, const char *after, struct store_property *out);

/* What a volume's content began as: the volume itself, made empty or as a clone, and each rollback since. */
struct store_head {
    uint64_t id;
    uint64_t origin_snapshot_id; /* 0: empty */
    uint64_t guard_snapshot_id;  /* what the rollback took first; 0: the volume's first head */
};
/* The volume's head with the least id > after_id; -ENOENT at the end. A head of which no snapshot is left is gone. */
int store_head_next(struct store *store, uint64_t volume_id, uint64_t after_id, struct store_head *out);

/* ---- differences, checking, figures -------------------------------------------------------------------------- */

/* Called for each key whose value differs, in key order; old or new is NULL where absent. Non-zero stops the walk and
 * is returned. Runs under the store lock, may see restarts only between keys (never the same key twice). */
typedef int (*store_difference)(void *argument, const struct store_item *old_item, const struct store_item *new_item);
/* Old object 0: an empty tree. Keys >= start (may be NULL). Subtrees that both share are skipped unread. */
int store_diff(struct store *store, uint64_t old_object_id, uint64_t new_object_id, const void *start,
               size_t start_length, store_difference callback, void *argument);

/* Walks everything: node structure, checksums of nodes (data too when asked), key order, births, space: free + used +
 * reserved + dead = size. Needs a store opened read_only, or quiet. `report` is told of each problem;
 * returns the number of problems, or a negative errno. */
typedef void (*store_report)(void *argument, const char *message);
int64_t store_check(struct store *store, bool read_data, store_report report, void *argument);

/* ---- damage and scrub ---------------------------------------------------------------------------------------- */

enum store_damage_kind {
    STORE_DAMAGE_SUPERBLOCK = 1,
    STORE_DAMAGE_BITMAP = 2,
    STORE_DAMAGE_NODE_COPY = 3, /* one copy of a node; the other is good */
    STORE_DAMAGE_NODE = 4,      /* every copy: what lies below cannot be reached */
    STORE_DAMAGE_DATA = 5,
    STORE_DAMAGE_READ = 6, /* a call of the file system failed at this key; what is damaged is said by another entry */
    STORE_DAMAGE_JOURNAL = 7, /* what was committed after the last checkpoint is lost from some point on */
};
#define STORE_DAMAGE_KEY_LENGTH_MAX 32u
#define STORE_DAMAGES_MAX 256u
struct store_damage {
    enum store_damage_kind kind;
    bool repaired;
    uint8_t copy; /* 1 or 2 for a copy of a node */
    uint16_t key_length, end_length; /* 0: not known; as far as they go */
    uint32_t blocks;
    uint32_t extent_block; /* of data: which block of its extent */
    uint64_t address;      /* 0: not known */
    uint64_t object_id;    /* the tree it was met in, 0: not known, or the system tree */
    uint64_t count;        /* how often it was met */
    uint64_t sequence;     /* in the order of first being met, from 1 */
    uint64_t first_ns, last_ns;
    uint8_t key[STORE_DAMAGE_KEY_LENGTH_MAX]; /* of the item; of a node: least key that it can have */
    uint8_t end[STORE_DAMAGE_KEY_LENGTH_MAX]; /* of a node: keys before this one are in it */
};
void store_note_damage(struct store *store, const struct store_damage *damage);
/* The last STORE_DAMAGES_MAX places, those with a sequence above the given one; `out` has room for all. Returns how
 * many; *total counts every time that damage was met. */
size_t store_damages(struct store *store, uint64_t after_sequence, struct store_damage *out, uint64_t *total);
typedef void (*store_damage_report)(void *argument, const struct store_damage *damage);

/* Where a scrub has come to; all zero: the beginning. It stays good when trees change and over closing and opening. */
struct scrub_position {
    uint32_t phase;
    uint16_t key_length;
    uint64_t chain_id, floor_epoch, object_id;
    uint8_t key[STORE_KEY_LENGTH_MAX];
};
struct scrub_result {
    bool finished;
    uint64_t bytes; /* read and compared */
    uint64_t nodes, data_blocks;
    uint64_t damaged, repaired;
};
/* Reads and verifies some `bytes_max` bytes from the position on, and moves it: superblocks, bitmap pages, every copy
 * of every node, and all data that volumes and snapshots refer to. Repairs what has a good copy. Damage is noted,
 * reported and no error; errors are -EINVAL (no such position) and -ENOMEM. One caller at a time. */
int store_scrub(struct store *store, struct scrub_position *position, uint64_t bytes_max, struct scrub_result *result,
                store_damage_report report, void *argument);

struct store_statistics {
    uint8_t uuid[16];
    char label[64];
    uint32_t format_version;
    uint32_t node_size_bytes;
    uint32_t metadata_copies;
    bool read_only;
    int32_t failed_errno; /* 0, or why the store turned read-only */
    uint64_t epoch;
    uint64_t checkpoint_sequence;
    uint64_t size_blocks;
    uint64_t free_blocks;     /* allocatable now, the reserve included */
    uint64_t used_blocks;     /* allocated, in trees of volumes or snapshots */
    uint64_t reserved_blocks; /* superblocks, journal, bitmaps */
    uint64_t dead_blocks;     /* part of used: only snapshots refer to them */
    uint64_t pending_blocks;  /* part of used: free after the next checkpoint */
    uint64_t available_blocks; /* what ordinary writes can still take, pending blocks included */
    uint64_t volume_count;
    uint64_t snapshot_count;
    uint64_t deletion_queue_length;
    uint64_t cache_bytes;
    uint64_t dirty_bytes;
    uint64_t buffer_bytes;
    uint64_t journal_used_bytes;
    uint64_t journal_size_bytes;
    /* counters since opening */
    uint64_t transactions;
    uint64_t nodes_read;
    uint64_t nodes_written;
    uint64_t nodes_copied;
    uint64_t nodes_touched; /* nodes visited in descents */
    uint64_t commits;
    uint64_t checkpoints;
    uint64_t storage_reads;
    uint64_t storage_writes;
    uint64_t storage_flushes;
    uint64_t storage_read_bytes;
    uint64_t storage_written_bytes;
    uint64_t data_written_bytes;
    uint64_t journal_written_bytes;
    uint64_t metadata_written_bytes;
    uint64_t checksum_mismatches;
    uint64_t repairs;
    uint64_t replayed_groups;
    uint64_t snapshots_created;
    uint64_t snapshots_deleted;
};
void store_statistics(struct store *store, struct store_statistics *out);

/* ---- stalls -------------------------------------------------------------------------------------------------- */

/* What holds, in the background or for one caller among many, a lock that every request needs. */
enum store_hold {
    STORE_HOLD_FREEZE,  /* a checkpoint begins; steps: records of the catalog */
    STORE_HOLD_ENTER,   /* written nodes enter the cache; steps: nodes */
    STORE_HOLD_RESOLVE, /* places on the medium instead of memory addresses, beside the foreground; steps: nodes */
    STORE_HOLD_FINISH,  /* the last of these, and the checkpoint ends; steps: nodes and dead entries looked at */
    STORE_HOLD_RELEASE, /* written nodes may be dropped again; steps: nodes */
    STORE_HOLD_BITMAP,  /* a checkpoint gives back its copies of the bitmap; steps: pages */
    STORE_HOLD_DELETE,  /* a snapshot is deleted, or a volume with all of its; steps: dead entries, and snapshots */
    STORE_HOLD_SUM,     /* what deleting snapshots would free; steps: snapshots */
    STORE_HOLD_SEGMENTS, /* written segments are dropped; steps: segments */
    STORE_HOLD_KINDS
};
struct store_hold_figures {
    uint64_t count;
    uint64_t steps_max;   /* of one holding */
    uint64_t held_max_ns; /* the longest without a pause */
    uint64_t cpu_max_ns;  /* the same in CPU time of the thread, which other processes do not add to */
};
/* What requests wait for. */
enum store_wait {
    STORE_WAIT_LOCK,      /* the store, when somebody else has it */
    STORE_WAIT_UNWRITTEN, /* nodes, dead entries and records that a checkpoint has yet to write are too many */
    STORE_WAIT_JOURNAL,   /* the journal is full, or what is to go there is too much */
    STORE_WAIT_SPACE,     /* no room before a checkpoint has freed some */
    STORE_WAIT_BUFFERS,   /* data that has yet to be written is too much */
    STORE_WAIT_KINDS
};
struct store_wait_figures {
    uint64_t count;
    uint64_t waited_max_ns;
};
struct store_stalls {
    struct store_hold_figures holds[STORE_HOLD_KINDS];
    struct store_wait_figures waits[STORE_WAIT_KINDS];
};
void store_stalls(struct store *store, struct store_stalls *out); /* since opening; takes no lock */

#endif
