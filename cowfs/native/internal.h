/* What the verbs share among themselves.
 *
 * Lock order: the store lock (held by transaction bodies and apply hooks), then the view mutex. Nothing that takes the
 * store lock is called with the view mutex held. The contents' mutex, the gatherer's and the compressors' are
 * taken alone. */
#ifndef COWFS_INTERNAL_H
#define COWFS_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "../../btree/native/mutation.h"
#include "compression.h"
#include "items.h"
#include "map.h"

/* In transaction bodies, which hold nothing that has to be given back: hands failures and STORE_AGAIN up. */
#define TRY(expression)                                                                                                \
    do {                                                                                                               \
        int try_status = (expression);                                                                                 \
        if (try_status != 0)                                                                                           \
            return try_status;                                                                                         \
    } while (0)

/* Items that one transaction of a long removal takes at most; keeps the store lock for some 50 us. Bodies take it, or
 * less, from their argument: place_transact_removal() lowers it in a pool too full for so many. */
#define REMOVAL_ITEMS_MAX 64u

struct view {
    uint32_t number;
    bool snapshot;
    bool stale;
    struct compression compression;
    uint64_t object_id;
    uint64_t hash_seed;
    uint64_t generation;
    uint64_t next_inode; /* live volumes */
    uint64_t held;       /* nodes with a lookup count above zero, the mounted root apart */
};

/* Expanded extents that are kept, 128 KiB each, and codecs for whoever needs one. */
#define CONTENT_SLOTS 16u
/* Files of which it is remembered that compressing them failed; two that share a slot forget each other. */
#define ATTEMPTS_SLOTS 256u
struct content_slot {
    uint64_t address; /* 0: empty */
    uint64_t checksum;
    uint8_t blocks;
    uint8_t compression;
    uint32_t readers; /* that copy from it */
    uint64_t used;
    uint8_t *bytes;
};
struct contents {
    pthread_mutex_t mutex;
    uint64_t uses;
    struct content_slot slots[CONTENT_SLOTS];
    struct codec *spare;
    uint32_t spare_count;
    atomic_uint_fast64_t attempts[ATTEMPTS_SLOTS];
    atomic_uint_fast64_t compressed_blocks; /* of content, that were stored compressed */
    atomic_uint_fast64_t stored_blocks;     /* which took so many */
};

/* Where a file is being written from front to back, in small writes. */
#define GATHER_REGIONS 64u
struct gather_region {
    uint64_t node;
    uint64_t start; /* in the unit that is written to now */
    uint64_t end;
    int64_t noted_ns;
    uint32_t writes;
};
#define GATHER_QUEUE 256u
struct gather_request {
    uint64_t node;
    uint64_t first; /* block */
    uint32_t blocks;
};
struct gatherer {
    pthread_t thread;
    bool started;
    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t condition;
    bool ending;
    struct gather_region regions[GATHER_REGIONS];
    struct gather_request queue[GATHER_QUEUE];
    uint32_t head;
    uint32_t count;
    uint64_t current;          /* node that is being compressed, or 0 */
    atomic_bool used;          /* something was noted since the start */
    int64_t ended_ns;          /* when the last was compressed */
};

struct compressors;
struct filesystem {
    struct store *store;
    bool read_only;
    atomic_uint_fast64_t stale_views; /* raised with each view that turns stale */
    atomic_uint_fast64_t handle_serial;
    pthread_mutex_t view_mutex;       /* guards what follows */
    uint32_t mounted_view;
    uint32_t next_view;
    struct map views;   /* number + 1 -> struct view * */
    struct map objects; /* object id -> struct view *, stale views not included */
    struct map lookups; /* node id -> count << 1 | unlinked */
    struct map opens;   /* node id -> how often */
    size_t open_count;  /* of all nodes */
    struct map told;    /* handles that have heard of the store's failure */
    size_t promised;    /* lookups that apply hooks may still insert */
    struct map compressions;      /* volume id -> algorithm << 8 | level */
    uint64_t compression_default; /* the same where none is set */
    struct contents contents;
    struct compressors *compressors;
    struct gatherer gatherer;
};

/* ---- view.c: views, places and lookup counts ------------------------------------------------------------------ */

/* A node id resolved: which inode of which tree. A copy, so it stays usable when the view goes. */
struct place {
    struct filesystem *filesystem;
    uint64_t object_id;
    uint64_t inode;
    uint64_t hash_seed;
    uint64_t generation;
    uint64_t stale_views;
    uint32_t view;
    bool snapshot;
    bool mounted;
    struct compression compression; /* of what is written */
};

int view_open(struct filesystem *filesystem, uint64_t object_id, bool snapshot, uint32_t *number);
int place_of_node(struct filesystem *filesystem, uint64_t node, struct place *out);
int place_of_view(struct filesystem *filesystem, uint32_t view, uint64_t inode, struct place *out);
/* Both in one tree, or -EXDEV. */
int place_pair(struct filesystem *filesystem, uint64_t node, uint64_t other, struct place *out,
               struct place *out_other);
uint64_t place_node(const struct place *place, uint64_t inode);
void views_free(struct filesystem *filesystem);
bool place_is_writable(const struct place *place);
/* store_transact() on the place's tree: -ESTALE instead when the tree is gone, -EROFS for changes to a snapshot. */
int place_transact(const struct place *place, unsigned flags, transaction_body body, void *argument);
/* The same for a body that frees what it can with up to *items_max items: in a full pool it is run again with fewer. */
int place_transact_removal(const struct place *place, transaction_body body, void *argument, uint32_t *items_max);
/* A number that no inode of the place's tree has had since it was opened. -ENOSPC when they are used up. */
int place_next_inode(const struct place *place, uint64_t *number);

/* What an fsync of this handle answers when the commit failed with `error`: that, or 0. */
int loss_tell(const struct place *place, uint64_t handle, int error);
/* Raises lookup counts by one each, all or none (-ENOMEM). May be called at the end of a READ body. */
int lookups_raise(const struct place *place, const uint64_t *nodes, size_t count);
/* Memory for one lookup that an apply hook will insert; given back when that did not happen. */
int lookups_promise(struct filesystem *filesystem);
void lookups_promise_back(struct filesystem *filesystem);
void lookups_raise_promised(const struct place *place, uint64_t node);
/* The inode has no name left. Whether the kernel holds it, so that removal waits for forget. */
bool lookups_mark_unlinked(struct filesystem *filesystem, uint64_t node);
/* It has its first name. */
void lookups_mark_named(struct filesystem *filesystem, uint64_t node);

/* ---- inode.c ------------------------------------------------------------------------------------------------- */

struct filesystem_time time_now(void);
/* -ESTALE when absent. */
int inode_get(struct transaction *transaction, uint64_t number, struct inode *out);
int inode_put(struct transaction *transaction, const struct inode *inode);
/* -ENOTDIR when it is no directory. */
int inode_get_directory(struct transaction *transaction, uint64_t number, struct inode *out);
void inode_attributes(const struct place *place, const struct inode *inode, struct filesystem_attributes *out);
/* What a change of content or owner takes from a file: security.capability, and setuid and setgid of executables, which
 * `keeps_bits` leaves. */
int inode_drop_privileges(struct transaction *transaction, struct inode *inode, bool keeps_bits);
/* Writes or deletes the orphan record as the inode's state demands. */
int orphan_update(struct transaction *transaction, const struct inode *inode);
/* Removes an inode without names and lookups; nothing happens when it has either. */
int inode_reclaim(const struct place *place);
/* Before the first item that version 1 does not know enters a tree. */
int items_version_raise(struct transaction *transaction);
/* Finishes every removal and truncation that the tree has records of. */
int orphans_finish(struct filesystem *filesystem, uint32_t view);

/* ---- flags.c: -EPERM for what the inode's flags forbid ---------------------------------------------------------- */

/* Any change to it, to its names, or to a name in it. */
int inode_check_change(const struct inode *inode);
/* A write at its end, or a new name in it. */
int inode_check_append(const struct inode *inode);

/* ---- directory.c --------------------------------------------------------------------------------------------- */

struct directory_slot {
    uint64_t cookie; /* of the entry, or a free one for it; 0: as many collisions as a hash can have */
    uint64_t child;
    uint8_t type;
};
/* -ENOENT when absent: then only the cookie is set. */
int directory_find(struct transaction *transaction, uint64_t hash_seed, uint64_t directory, struct filesystem_name name,
                   struct directory_slot *slot);
/* Writes an entry (a new one or in place of another at this cookie) and its back-reference. */
int directory_put(struct transaction *transaction, uint64_t directory, uint64_t cookie, struct filesystem_name name,
                  uint64_t child, uint8_t type);
int directory_delete(struct transaction *transaction, uint64_t directory, uint64_t cookie, struct filesystem_name name,
                     uint64_t child);
/* 0 when empty, else -ENOTEMPTY. */
int directory_check_empty(struct transaction *transaction, uint64_t directory);
/* 0 for a name that an entry can have; "." and ".." are not looked at. */
int entry_name_check(struct filesystem_name name);
/* 1 for ".", 2 for "..", else 0. */
int name_dots(struct filesystem_name name);

/* ---- namespace.c --------------------------------------------------------------------------------------------- */

/* The directory gained (or, negative, lost) so many entries. */
void directory_touch(struct inode *directory, int entries, struct filesystem_time now);

/* ---- extent.c: where a file's blocks are ---------------------------------------------------------------------- */

struct block_address {
    uint64_t address;  /* 0: a hole; of a compressed block: where its extent begins */
    uint64_t checksum; /* of a compressed block: of its extent */
    union {
        struct {
            uint8_t compression;
            /* and only of a compressed one: */
            uint8_t index; /* which block of the extent's content it is */
            uint8_t stored_blocks;
            uint8_t blocks; /* of content */
        };
        uint32_t compressed; /* all four; 0: stored as it is */
    };
};
/* What a body answers in which a compressed extent would have to be cut. Never leaves this directory. */
#define EXTENT_SPLIT (-EXFULL)
/* To the first extent that may lie at the block or behind it, or to whatever item comes then; -ENOENT at the end. */
int extent_seek(struct transaction *transaction, struct cursor *cursor, uint64_t inode, uint64_t block);
/* Where blocks [first, first + count) are. */
int extent_map(struct transaction *transaction, uint64_t inode, uint64_t first, uint32_t count,
               struct block_address *out);
/* Decodes the item at a cursor: -ENOENT when it is no extent of this inode. */
int extent_of_item(const struct store_item *item, uint64_t inode, uint64_t *logical, struct store_extent *out);

struct extent_piece {
    uint64_t logical;
    struct store_extent extent; /* no blocks: no piece */
    uint64_t checksums[STORE_EXTENT_BLOCKS_MAX];
};
/* The whole extent that a block lies in; -ENOENT for a hole. */
int extent_find(struct transaction *transaction, uint64_t inode, uint64_t block, struct extent_piece *out);
/* The part [from, to) of an extent that begins at `logical`; a compressed one must be wanted whole. */
void extent_piece_of(struct extent_piece *piece, const struct store_item *item, const struct store_extent *extent,
                     uint64_t logical, uint64_t from, uint64_t to);
/* Takes [first, last] out of the file: splits, shortens, deletes extents and kills exactly the blocks in the range.
 * Takes no more than `items_max` extents; *more tells that some, or a part of one, are left. `before` becomes the
 * piece that ends at `first`, as it is afterwards. The tree must not have gathered changes to extents of this inode.
 * EXTENT_SPLIT: a compressed extent lies in the range with a part of it only. */
int extent_cut(struct transaction *transaction, struct inode *inode, uint64_t first, uint64_t last, uint32_t items_max,
               struct extent_piece *before, bool *more);
/* The same, for a body that changes references otherwise too: what it gathers is still to be applied. */
struct shared_changes;
int extent_cut_gathering(struct transaction *transaction, struct inode *inode, uint64_t first, uint64_t last,
                         uint32_t items_max, struct extent_piece *before, struct shared_changes *changes, bool *more);
int extent_put(struct transaction *transaction, uint64_t inode, const struct extent_piece *piece, bool fresh);
/* The first block from `block` on that is mapped (-ENOENT when there is none), or with `hole` is not. After `items_max`
 * extents *more tells to go on at *found. */
int extent_seek_edge(struct transaction *transaction, uint64_t inode, uint64_t block, bool hole, uint32_t items_max,
                     uint64_t *found, bool *more);
/* Puts freshly written consecutive blocks; grows `before` by them when they follow it on the medium too, and leaves
 * in it the last piece put. */
int extent_add(struct transaction *transaction, struct inode *inode, uint64_t logical, uint64_t address,
               uint32_t blocks, const uint64_t *checksums, struct extent_piece *before);
/* The same with a compressed extent, of which address, blocks and compression are set. */
int extent_add_compressed(struct transaction *transaction, struct inode *inode, uint64_t logical,
                          const struct store_extent *extent, uint64_t checksum, struct extent_piece *before);

/* ---- shared.c: blocks that several extents refer to ------------------------------------------------------------ */

#define SHARED_RUNS_MAX 64u
struct shared_run {
    struct store_extent extent;
    uint32_t count; /* in the tree */
    uint32_t counts[STORE_EXTENT_BLOCKS_MAX];
};
/* What one transaction changes of references. */
struct shared_changes {
    uint32_t extents_left;
    uint32_t runs_max;
    uint32_t run_count;
    struct shared_run runs[SHARED_RUNS_MAX];
};
/* For a body that takes up to `items_max` items; UINT32_MAX: that has to take all, or -E2BIG. */
void shared_begin(struct shared_changes *changes, uint32_t items_max);
/* How many of a further extent's blocks surely fit the transaction. */
uint32_t shared_room(const struct shared_changes *changes, uint32_t blocks);
/* One extent more (`taken`) or less refers to these blocks. -E2BIG when there is no room. */
int shared_change(struct transaction *transaction, struct shared_changes *changes, uint64_t address, uint32_t blocks,
                  bool taken);
/* Once in a body, at its end. */
int shared_apply(struct transaction *transaction, const struct shared_changes *changes);
/* Moves what blocks [first, last] of a file own to the volume, the first `items_max` extents of them. */
int extent_lend(struct transaction *transaction, uint64_t inode, uint64_t first, uint64_t last, uint32_t items_max);
int shared_decode(const struct store_item *item, struct store_extent *out);

/* ---- damage.c ------------------------------------------------------------------------------------------------ */

/* Passes a status on, and notes -EIO with where in the file it was met (block 0 when it was not in its data). */
int damage_note(const struct place *place, uint64_t block, int status);

/* ---- read.c, write.c, setattr.c, allocate.c --------------------------------------------------------------------- */

/* Looks at one mapping that may give a wrong checksum before that is an error: a block may be freed, used again or
 * changed in place between look-up and read, and even look the same again: a block that is rewritten all the time with
 * one of two contents, at every look. */
#define MISMATCHES_MAX 8u
struct mismatch {
    struct block_address block; /* address 0: none */
    uint32_t count;
};
/* After a read of `block` did not verify: 0 to look its mapping up again, -EIO (counted and logged) when that has been
 * done often enough. */
int mismatch_note(struct store *store, struct mismatch *mismatch, const struct block_address *block);
/* Reads one block and verifies it; -EBADMSG on a mismatch. */
int block_fetch(struct filesystem *filesystem, const struct block_address *block, uint8_t *out);
bool block_address_equal(const struct block_address *a, const struct block_address *b);
/* Inline bytes of a file into `out`, which has room for FILESYSTEM_INLINE_LENGTH_MAX. */
int inline_get(struct transaction *transaction, const struct inode *inode, uint8_t *out);
/* Replaces them; no bytes: no item. Sets the length in the inode, which the caller puts. */
int inline_put(struct transaction *transaction, struct inode *inode, const uint8_t *bytes, uint32_t length);
/* Memory of a mapped block that may be changed in place, else NULL. */
uint8_t *extent_in_place(struct transaction *transaction, const struct extent_piece *piece, uint64_t block);
/* Removes the extents that a truncation left past the size. Nothing happens when there are none. */
int truncate_finish(const struct place *place);
/* The same, and cuts the last extent: of an inode with INODE_CANNOT_GROW, which afterwards can. */
int truncate_for_growth(const struct place *place);
/* Moves inline bytes to block 0. */
int write_move_inline(const struct place *place);
/* Zeros in place of what one block has there; nothing happens to a hole, nor to the size. */
int write_zeros(const struct place *place, uint64_t offset, uint32_t length);
/* Makes [offset, end) read as zeros, up to the end of the file. */
int range_punch(const struct place *place, uint64_t offset, uint64_t end);
/* The same, and the file ends no earlier than the range. */
int range_zero(const struct place *place, uint64_t offset, uint64_t end);

/* ---- content.c: what compressed extents hold ------------------------------------------------------------------- */

void contents_init(struct contents *contents);
void contents_destroy(struct contents *contents);
/* NULL: no memory. */
struct codec *codec_take(struct filesystem *filesystem);
void codec_give(struct filesystem *filesystem, struct codec *codec);
/* All of the extent that a compressed block lies in. -EBADMSG: its checksum is another. */
int content_fetch(struct filesystem *filesystem, struct codec *codec, const struct block_address *block, uint8_t *out);
/* The same, `length` bytes from `from` on, and keeps the rest for the next reader. */
int content_read(struct filesystem *filesystem, const struct block_address *block, uint32_t from, uint32_t length,
                 uint8_t *out);

/* Whether to try to compress a further unit of the file, and how that ended. */
bool attempts_allowed(struct filesystem *filesystem, const struct place *place);
/* Whether the last one of the file saved space, or none was made: the next ones are likely to. */
bool attempts_promise(struct filesystem *filesystem, const struct place *place);
void attempts_note(struct filesystem *filesystem, const struct place *place, bool saved);

/* Fewer blocks are not compressed as they come. They may be gathered later, when more of the file is there. */
#define COMPRESS_BLOCKS_MIN 4u
/* How often one unit is compressed, when the room at one place is too short for it again and again. */
#define COMPRESS_TRIES_MAX 3u
/* Blocks of content on the medium, not yet in a tree. */
struct stored_run {
    uint64_t address;
    uint64_t checksum; /* of a compressed run; those of plain blocks are kept beside it */
    uint32_t blocks;
    uint32_t content_blocks;
    uint8_t compression;
};
/* The first blocks, at least one, as they are. */
int run_store(struct store *store, const uint8_t *content, uint32_t blocks, bool use_reserve, struct stored_run *run,
              uint64_t *checksums);
/* All blocks compressed. Where the room that the store has at one place is too short for that, it is filled with the
 * first blocks as they are. run->content_blocks is 0 when compressing saves nothing: nothing was stored. */
int run_store_compressed(struct store *store, const struct compressed *compressed, const uint8_t *content,
                         uint32_t blocks, bool use_reserve, struct stored_run *run, uint64_t *checksums);
void runs_release(struct store *store, const struct stored_run *runs, uint32_t *count);
/* Adds those that are in a tree now to the figures. */
void runs_count(struct filesystem *filesystem, const struct stored_run *runs, uint32_t count);
/* Puts the runs one after the other from block `logical` on; `checksums` has one for each block of content. */
int runs_put(struct transaction *transaction, struct inode *inode, uint64_t logical, const struct stored_run *runs,
             uint32_t count, const uint64_t *checksums, struct extent_piece *before);

/* ---- compressors.c: threads that compress pieces of large writes ----------------------------------------------- */

/* The threads are started by the first batch, and may run on the CPUs that the caller of this may run on. */
int compressors_create(struct compressors **out);
/* No batch may be left. */
void compressors_destroy(struct compressors *compressors);

struct batch;
/* NULL: whoever writes has to compress alone, since there is no other CPU, no thread, or no batch left. */
struct batch *batch_begin(struct compressors *compressors, struct compression how);
/* Offers blocks to the threads; they must stay as they are to the batch's end. False: it can hold no more. */
bool batch_add(struct batch *batch, const uint8_t *content, uint32_t blocks);
/* What a thread has made of these blocks or is about to, else as codec_compress(); while it waits for a thread it
 * compresses others of the batch. Good until the batch ends and the codec is used again. */
struct compressed batch_compress(struct batch *batch, struct codec *codec, struct compression how,
                                 const uint8_t *content, uint32_t blocks);
/* Nobody begins with a piece before it is asked for. */
void batch_withdraw(struct batch *batch);
/* Waits for what is under way. These three take NULL, too. */
void batch_end(struct batch *batch);

/* ---- gather.c: compressing what came in small writes ------------------------------------------------------------ */

int gatherer_init(struct gatherer *gatherer);
void gatherer_destroy(struct gatherer *gatherer);
/* These bytes of a file that is to be compressed were written. */
void gather_note(struct filesystem *filesystem, uint64_t node, uint64_t offset, uint64_t length);

/* ---- rewrite.c ----------------------------------------------------------------------------------------------- */

/* Afterwards no compressed extent lies across the beginning of block `first` or of block `end`. */
int rewrite_split(const struct place *place, uint64_t first, uint64_t end, bool use_reserve);

/* Compresses what blocks of one unit hold, with what lies beside them in it and no snapshot has. */
int rewrite_gather(const struct place *place, uint64_t first, uint32_t blocks);

/* What a compressed extent is cut down to, stored and not yet in a tree. */
struct stored_prefix {
    struct block_address of;
    uint32_t run_count;
    struct stored_run runs[STORE_EXTENT_BLOCKS_MAX];
    uint64_t checksums[STORE_EXTENT_BLOCKS_MAX];
};
/* The first bytes of the extent that a compressed block lies in, and zeros up to a whole block. */
int prefix_store(const struct place *place, const struct block_address *block, uint32_t length,
                 struct stored_prefix *out);

/* ---- xattr.c ------------------------------------------------------------------------------------------------- */

/* Deletes chunks from `chunk` on; *found tells whether there were any. */
int xattr_delete_chunks(struct transaction *transaction, uint64_t inode, struct filesystem_name name, uint8_t chunk,
                        bool *found);
extern const struct filesystem_name xattr_capability_name;

#endif
