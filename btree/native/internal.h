/* The store's inner structures and who guards them. docs/CONCURRENCY.md has the reasons.
 *
 * Lock order: checkpoint_mutex > commit_mutex > flush_mutex > lock (the store lock) > data_mutex > allocator.mutex.
 * The store lock guards trees, node cache, catalog, dead buckets in memory and gathered journal records; it is held
 * for memory work only. The system tree is changed by the running checkpoint alone, under the store lock too
 * because it shares the cache. */
#ifndef BTREE_INTERNAL_H
#define BTREE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "format.h"
#include "mutation.h"
#include "node.h"
#include "stalls.h"
#include "store.h"

/* ---- nodes in memory ------------------------------------------------------------------------------------------ */

/* While a node has no place on the medium its parent's pointer holds POINTER_TAG | its memory address. Tagged pointers
 * exist only in pages, roots and dead lists in memory; a checkpoint replaces them before anything is written. Who owns
 * an unwritten node follows the same rule as for blocks: a live tree, or exactly one dead bucket. */
#define POINTER_TAG (UINT64_C(1) << 63)

struct tree_pointer {
    uint64_t address[2]; /* second 0: stored once */
    uint64_t checksum;
    uint64_t birth;
};

struct tree_root {
    struct tree_pointer pointer; /* address[0] == 0: empty tree */
    uint8_t level;
    uint32_t node_count; /* nodes of the tree; what the reserve for emptying it is sized by, nothing else */
};

enum node_state { NODE_DIRTY, NODE_CLEAN };

struct node {
    struct node *hash_next;
    struct node *previous, *next; /* dirty list, or clock ring of the cache */
    struct tree_pointer pointer;  /* once written */
    uint64_t birth;
    uint64_t collected; /* sequence of the checkpoint that gathered it */
    uint64_t resolved;  /* of the one since whose pass over it nothing was changed that may bring tagged pointers */
    enum node_state state;
    bool referenced; /* clock bit */
    bool pinned;     /* written by the running checkpoint, tagged pointers to it may exist */
    bool orphaned;   /* pinned, but no longer in the cache */
    bool damaged;    /* the first copy on the medium is to be written again */
    bool system;     /* of the system tree */
    uint8_t level;
    uint8_t page[];
};

struct node_list {
    struct node *head, *tail;
    size_t count;
};

struct range {
    uint64_t address;
    uint32_t blocks;
};

struct range_list {
    struct range *items;
    size_t count, capacity;
};

struct dead_entry {
    uint64_t address; /* tagged: an unwritten node */
    uint64_t birth;
    uint32_t blocks;
};

struct dead_list {
    struct dead_entry *items;
    size_t count, capacity;
};

/* ---- catalog -------------------------------------------------------------------------------------------------- */

struct chain;

struct snapshot {
    uint64_t id;
    uint64_t epoch;
    uint64_t created_ns;
    struct chain *chain;
    struct volume *volume;          /* whose it is by name: mostly the chain's, see promote.c; hidden: NULL */
    struct snapshot *older, *newer; /* in its chain */
    struct snapshot *id_next, *name_next; /* hash buckets */
    struct snapshot *dirty_previous, *dirty_next;
    struct tree_root root;
    struct dead_list dead; /* killed since the last checkpoint's freeze, to go to bucket `id` */
    uint64_t bucket_blocks; /* on the medium */
    uint32_t chain_references; /* chains that begin here */
    uint32_t clone_count;      /* of those, the ones that are another volume's */
    uint32_t hold_count;
    uint16_t annotation_length;
    bool hidden; /* deleted by name, kept as an origin */
    bool saved;  /* the medium (or the running checkpoint) knows it */
    bool dirty;  /* on the store's list of snapshots that the next checkpoint must save */
    uint8_t *annotation;
    char *name;
};

struct volume;

/* A line of snapshots that ends in a head: a volume's live tree, or (after a rollback) a frozen one equal to the
 * newest snapshot. */
struct chain {
    uint64_t id;
    struct volume *volume; /* NULL: its volume is destroyed, snapshots remain as origins */
    struct chain *next;    /* all chains of the store */
    struct snapshot *origin;
    struct snapshot *oldest, *newest;
    struct tree_root head;
    uint64_t last_snapshot_epoch; /* of those taken since the store was opened, deleted ones too */
    uint32_t pinned_nodes; /* at most so many nodes of a live head are shared with snapshots */
    bool live;
    bool foreign; /* its origin belonged to another volume: a clone, not a rollback */
    bool dirty;
    bool saved;
    bool is_system;
};

struct snapshot_slot {
    uint64_t id;
    struct snapshot *snapshot; /* NULL: deleted */
};

struct property {
    uint64_t id; /* of its record */
    struct property *next;
    uint8_t *value;
    uint16_t length; /* at least 1 */
    bool dirty;
    bool saved;
    char *name;
};

struct volume {
    uint64_t id;
    uint64_t created_ns;
    uint64_t generation;
    uint64_t origin_snapshot_id;
    struct chain *head;
    struct snapshot_slot *slots; /* ascending ids, visible snapshots of all its chains */
    size_t slot_count, slot_capacity, slot_live;
    struct property *properties; /* by ascending name */
    uint32_t property_count;
    bool dirty;
    bool saved;
    char *name;
};

struct id_entry {
    uint64_t id;
    void *object;
};

struct id_table {
    struct id_entry *items; /* ascending ids */
    size_t count, capacity;
};

enum queue_kind { QUEUE_MERGE = 1, QUEUE_WALK = 2, QUEUE_DROP = 3 };

/* Work that a deletion leaves for the checkpoint: merge a dead bucket into its predecessor's and free what was born
 * after `floor`; walk a tree that nothing names any more and free what was born after `floor`; forget a bucket. */
struct queue_item {
    uint64_t id;
    enum queue_kind kind;
    uint64_t bucket, target; /* target 0: none */
    uint64_t floor_epoch;
    struct tree_root root; /* on the medium, never tagged */
    bool saved;
    struct queue_item *next;
};

/* Records of the system tree that both the catalog and the deletion queue read or write. */
enum queue_record {
    QUEUE_KIND = 0,
    QUEUE_BUCKET = 8,
    QUEUE_TARGET = 16,
    QUEUE_FLOOR = 24,
    QUEUE_ROOT = 32,
    QUEUE_RECORD_LENGTH = QUEUE_ROOT + ROOT_LENGTH
};
enum bucket_record { BUCKET_STORAGE = 0, BUCKET_ENTRIES = 8, BUCKET_BLOCKS = 16, BUCKET_RECORD_LENGTH = 24 };

/* ---- space ---------------------------------------------------------------------------------------------------- */

struct bitmap_page {
    uint64_t committed[BITMAP_WORDS]; /* part of a tree or bucket; what the medium's bitmap will say */
    uint64_t busy[BITMAP_WORDS];      /* not to be handed out: committed, claimed, or not yet reusable */
    uint64_t *frozen;   /* `committed` as the running checkpoint must write it, when changed since its freeze */
    uint64_t sequence;  /* of the copy on the medium; 0: none */
    uint64_t checksum;
    uint32_t busy_count;
    uint32_t committed_count;
    uint8_t slot;      /* which of the two places holds the current copy */
    bool dirty;        /* changed since the last freeze */
    bool frozen_dirty; /* to be written by the running checkpoint */
};

struct claim_run {
    uint64_t address;
    uint32_t blocks, used;
};

struct allocator {
    pthread_mutex_t mutex;
    struct bitmap_page **pages; /* NULL: all free */
    uint64_t page_count;
    uint64_t size_blocks;
    uint64_t first_block, end_block; /* the data zone */
    uint64_t busy_count;             /* in the data zone */
    uint32_t group_blocks;           /* of a node; the zone is whole groups */
    uint64_t free_group_count;       /* aligned groups without a busy block: places for nodes */
    uint64_t committed_count;
    uint64_t claimed_unused;         /* busy, but still to be used by an open run */
    uint64_t reserve_blocks;
    _Atomic uint64_t metadata_demand_blocks; /* what writing the dirty nodes takes */
    _Atomic uint64_t pinned_nodes; /* of all live heads: each is copied once more when the volumes are emptied */
    _Atomic uint64_t dead_pending; /* dead entries that the system tree does not hold yet */
    _Atomic uint64_t catalog_pending; /* other records that the next checkpoint changes there */
    _Atomic uint64_t system_nodes; /* of the system tree, as of the last checkpoint */
    uint32_t run_blocks;
    bool checkpoint_running;
    uint64_t data_cursor, metadata_cursor[2];
    struct claim_run metadata_run[2];
    uint64_t digest;
};

#define DATA_RUN_BLOCKS_MAX 256u /* 1 MiB, the size of a segment */
enum segment_limit { SEGMENT_COUNT_MAX = 64, SPARE_BUFFERS_MAX = 8 };

/* A run of free blocks being filled, and its memory. Blocks below `written` are on the medium or on their way and
 * are never changed again. */
struct segment {
    uint64_t address;
    uint32_t blocks, reserved, written;
    uint32_t sealed;    /* blocks below it may be named by a journal group or a checkpoint: not changed in place */
    uint32_t in_flight; /* reservations not completed, and changes in place under way */
    bool frozen;        /* a flush waits for in_flight to become 0: no new reservations */
    uint64_t filled[DATA_RUN_BLOCKS_MAX / 64]; /* bit by bit: completed blocks */
    uint8_t *memory;
};

/* ---- journal -------------------------------------------------------------------------------------------------- */

struct byte_buffer {
    uint8_t *bytes;
    size_t length, capacity;
};

struct journal {
    uint64_t start_byte, size_bytes;
    uint64_t head, tail; /* virtual positions; modulo size the place in the log */
    uint64_t sequence;   /* of the next group */
    uint64_t flushed_sequence, written_sequence, pool_tag;
    size_t pending_bytes_max;
    struct byte_buffer pending; /* records not yet in a group */
    struct byte_buffer writing; /* taken out of `pending` by the holder of commit_mutex */
    uint64_t writing_epoch;
    uint8_t *written; /* under commit_mutex: the last group, while a failing flush could still lose it */
    size_t written_length;
};

/* Room for the largest transaction's record, twice over. */
#define JOURNAL_SIZE_MIN_BYTES (UINT64_C(1) << 20)

/* ---- checkpoint ----------------------------------------------------------------------------------------------- */

struct saved_record {
    uint8_t key[32];
    uint16_t key_length;
    uint16_t value_length; /* 0: delete */
    int16_t root_at;       /* offset of a root to be resolved, or -1 */
    uint8_t *value;
};

struct spilled_bucket {
    uint64_t bucket;
    struct dead_list dead;
};

struct checkpoint {
    bool running;
    uint64_t sequence;
    uint64_t frozen_epoch;
    uint64_t journal_position, journal_sequence, journal_tail;
    uint64_t dead_entries, catalog_records; /* of the allocator's pending ones, those that this checkpoint saves */
    uint64_t next_object_id, next_queue_id;
    struct tree_root *roots;
    size_t root_count, root_capacity;
    struct saved_record *records;
    size_t record_count, record_capacity;
    struct spilled_bucket *spills;
    size_t spill_count, spill_capacity;
    struct queue_item *queue;
    uint64_t queue_steps, queue_first_dirty; /* of the queue's share; the system tree's unwritten nodes before it */
    struct range_list frees;      /* reusable once this checkpoint is durable */
    uint64_t pending_blocks;      /* of those, what free_later() counted */
    struct node **written;        /* pinned until the end */
    size_t written_count, written_capacity;
    struct node **levels[STORE_TREE_HEIGHT_MAX];
    size_t level_count[STORE_TREE_HEIGHT_MAX], level_capacity[STORE_TREE_HEIGHT_MAX];
    struct node **deferred; /* killed while running */
    size_t deferred_count, deferred_capacity;
    uint64_t *saved_snapshots; /* ids whose roots were captured */
    size_t saved_snapshot_count, saved_snapshot_capacity;
};

/* ---- the store ------------------------------------------------------------------------------------------------ */

#define HASH_BUCKETS_MIN 1024u

struct damage_list {
    pthread_mutex_t mutex; /* innermost */
    struct store_damage items[STORE_DAMAGES_MAX];
    size_t count;
    uint64_t sequence, total;
};

struct store {
    struct storage *storage;
    pthread_mutex_t lock, commit_mutex, checkpoint_mutex, flush_mutex, data_mutex;
    pthread_cond_t data_condition;

    /* format */
    uint8_t uuid[16];
    char label[64];
    uint32_t node_size, node_blocks, copies;
    uint64_t size_blocks;
    uint64_t bitmap_start, bitmap_pages;

    /* options */
    size_t cache_bytes_max, dirty_bytes_max, buffer_bytes_max;
    uint64_t queue_steps_max; /* of the deletion queue in one checkpoint */
    uint32_t commit_interval_ms;
    bool read_only, replaying;
    _Atomic int failed_errno;

    uint64_t epoch;
    uint64_t next_object_id, next_queue_id;
    uint64_t checkpoint_sequence;
    bool clean_superblock;

    /* node cache */
    struct node **hash;
    size_t hash_size;
    struct node_list clock;
    struct node *clock_hand;
    size_t cached_count;
    int cache_holds;
    struct node_list dirty_leaves, dirty_inner; /* made since the last freeze */
    size_t dirty_count;                         /* all unwritten nodes */
    size_t system_dirty_count;                  /* of those, the system tree's */
    size_t dead_bytes;
    struct node *spare;
    size_t spare_count;
    uint8_t *scratch_page;
    struct page_item *scratch_items;

    /* catalog */
    struct id_table volume_table, chain_table;
    struct volume **volume_names; /* those of volume_table by ascending name */
    size_t volume_names_capacity;
    struct chain *chains;
    struct chain system_chain;
    struct snapshot **snapshot_by_id, **snapshot_by_name;
    size_t snapshot_hash_size, snapshot_hash_half; /* the greatest power of two up to the size */
    size_t snapshot_by_id_capacity, snapshot_by_name_capacity, snapshot_count;
    struct snapshot *dirty_snapshots;
    struct queue_item *queue_head, *queue_tail;
    size_t queue_length;
    uint64_t *removed_records; /* triples: system key type, id, 0 */
    size_t removed_count, removed_capacity;
    bool catalog_dirty;
    uint64_t bucket_blocks_total; /* dead blocks in buckets on the medium */
    uint64_t dead_pending_blocks;

    struct allocator allocator;
    struct range_list pending_free;
    uint64_t pending_free_blocks;
    struct journal journal;
    struct checkpoint checkpoint;

    struct segment *segments[SEGMENT_COUNT_MAX]; /* the last one is being filled */
    size_t segment_count;
    size_t buffer_bytes;
    uint8_t *spare_buffers[SPARE_BUFFERS_MAX]; /* of whole runs */
    size_t spare_buffer_count;

    /* flush thread, under data_mutex */
    pthread_t flush_thread;
    pthread_cond_t flush_condition;
    bool flush_thread_started, flush_stopping, flush_wanted;

    /* maintenance thread */
    pthread_t maintenance_thread;
    bool maintenance_started;
    pthread_mutex_t maintenance_mutex;
    pthread_cond_t maintenance_condition;
    bool stopping, maintenance_wanted;
    _Atomic bool pressed; /* at the last change there was something for store_throttle() to do */

    struct store_statistics counters;
    struct stalls stalls;
    _Atomic uint64_t storage_reads, storage_writes, storage_flushes, storage_read_bytes, storage_written_bytes;
    _Atomic uint64_t data_written_bytes, journal_written_bytes, metadata_written_bytes;
    _Atomic uint64_t checksum_mismatches, repairs;
    struct damage_list damage;
    bool accept_journal_loss, journal_damaged;
    bool forget_buckets; /* the next checkpoint replaces all of the medium's */
    bool bitmap_damaged; /* what is in use was found out by walking */
};

/* ---- common.c ------------------------------------------------------------------------------------------------- */
void failure_set(struct store_failure *failure, const char *format, ...) __attribute__((format(printf, 2, 3)));
int storage_read(struct store *store, void *buffer, size_t length, uint64_t offset);
int storage_write(struct store *store, const void *buffer, size_t length, uint64_t offset);
int storage_flush(struct store *store);
/* After an error that endangers a promise: no more changes. */
void store_fail(struct store *store, int error);
int range_list_add(struct range_list *list, uint64_t address, uint32_t blocks);
int dead_list_add(struct dead_list *list, uint64_t address, uint64_t birth, uint32_t blocks);
int buffer_reserve(struct byte_buffer *buffer, size_t more);
void pointer_load(const uint8_t *from, struct tree_pointer *pointer);
void pointer_save(uint8_t *to, const struct tree_pointer *pointer);
void root_load(const uint8_t *from, struct tree_root *root);
void root_save(uint8_t *to, const struct tree_root *root);
uint64_t now_ns(void);
/* Grows an array by doubling; keeps it and returns -ENOMEM on failure. */
int array_reserve(void **items, size_t *capacity, size_t count, size_t item_size);

static inline bool pointer_is_tagged(const struct tree_pointer *pointer)
{
    return (pointer->address[0] & POINTER_TAG) != 0;
}

static inline struct node *tagged_node(uint64_t address)
{
    return (struct node *)(uintptr_t)(address & ~POINTER_TAG);
}

static inline uint64_t node_tag(const struct node *node)
{
    return POINTER_TAG | (uint64_t)(uintptr_t)node;
}

/* ---- cache.c -------------------------------------------------------------------------------------------------- */
int cache_create(struct store *store);
void cache_destroy(struct store *store);
struct node *cache_find(struct store *store, uint64_t address);
void cache_insert(struct store *store, struct node *node);
void cache_remove(struct store *store, struct node *node);
/* A pinned node is found but not on the clock; unpinned it is like any other, or freed when it is orphaned. */
void cache_unpin(struct store *store, struct node *node);
/* Some steps towards the cache's limit; whether there is more to drop. */
bool cache_trim(struct store *store);
/* For a transaction that has read so many nodes that the cache may be too small to keep them together: while one holds,
 * nothing is dropped, or it would never be ready. Takes the store lock. */
#define CACHE_MISSES_BEFORE_HOLD 64u
void cache_hold(struct store *store, bool hold);
/* Reads and verifies a node, from either copy, with the lock released by the caller; puts it in the cache under the
 * lock. 0, -EIO, -ENOMEM. Without the lock the pointer may have gone stale and its blocks be used for something else,
 * unless the caller knows better (`failed` NULL). So with `failed` a failure only is one when the caller, having
 * looked again, comes with the same pointer: before that it is noted there and 0 returned. */
int cache_load(struct store *store, const struct tree_pointer *pointer, uint8_t level, struct tree_pointer *failed);
/* One copy, read from the medium and verified against the pointer. */
int node_read_copy(struct store *store, const struct tree_pointer *pointer, int copy, uint8_t level, uint8_t *page);
/* A copy of a node's page, read in when it is not in memory. Takes the store lock. */
int cache_copy_page(struct store *store, const struct tree_pointer *pointer, uint8_t level, uint8_t *page);
/* Node behind a pointer of a present tree, or NULL when it must be read first, or when it is of another level than
 * the tree says: reading reports that. */
struct node *cache_resolve(struct store *store, const struct tree_pointer *pointer, uint8_t level);
/* Whether a pointer from the medium leads to places where nodes can be. */
bool pointer_in_zone(const struct store *store, const struct tree_pointer *pointer);
struct node *node_allocate(struct store *store); /* from the spares, which spares_fill() has made sure of */
int spares_fill(struct store *store, size_t count);
/* Gives back what a large transaction did not need. */
void spares_trim(struct store *store);
void node_release(struct store *store, struct node *node);
void dirty_list_add(struct store *store, struct node *node);
void dirty_list_remove(struct store *store, struct node *node);
/* The first of the inner ones becomes the last. */
void dirty_inner_rotate(struct store *store);

/* ---- tree.c --------------------------------------------------------------------------------------------------- */
struct miss {
    struct tree_pointer pointer;
    uint8_t level;
};

/* Which keys lead to a leaf: those from the separator at `lower` on and before the one at `upper`, both in inner pages
 * above the leaf; no page: no bound. Good as long as no page above is split, joined or freed. */
struct reach {
    const uint8_t *lower_page, *upper_page;
    uint16_t lower_slot, upper_slot;
};

/* Leaves that descents of one tree came to since the lock was taken and while nothing was changed. The keys of a
 * transaction mostly lead to two or three. */
#define KNOWN_LEAVES_MAX 4u
struct known_leaves {
    struct {
        struct node *leaf;
        struct reach reach;
    } items[KNOWN_LEAVES_MAX];
    unsigned count, next;
};

/* The last way down for a change: the next change of the same holding of the lock may lead to the same leaf. */
struct path {
    bool valid;
    bool writable; /* its nodes may be changed in place */
    struct reach reach;
    struct node *nodes[STORE_TREE_HEIGHT_MAX]; /* by level */
    uint16_t slots[STORE_TREE_HEIGHT_MAX];     /* slot of nodes[level] in nodes[level + 1] */
    uint8_t height;                            /* level of the root */
};

/* The item of a key: 0, -ENOENT, or STORE_AGAIN with `miss` set. */
int tree_get(struct store *store, const struct tree_root *root, struct known_leaves *known, const uint8_t *key,
             size_t key_length, struct page_item *item, struct miss *miss);
/* 0 when every node that a change of this key will visit is in memory. */
int tree_prepare(struct store *store, const struct tree_root *root, struct known_leaves *known, const uint8_t *key,
                 size_t key_length, struct miss *miss);
/* Apply one change. The nodes are in memory (tree_prepare) and spares exist for 3 * height + 6 nodes. */
void tree_put(struct store *store, struct chain *chain, struct path *path, const uint8_t *key, size_t key_length,
              const uint8_t *value, uint16_t value_length, enum store_value_kind kind);
/* True when that left the leaf sparse or empty: after the last change of the same holding of the lock, tree_tidy() must
 * be called for this key. Not before: an empty leaf's range goes to a neighbour that need not be in memory. */
bool tree_delete(struct store *store, struct chain *chain, struct path *path, const uint8_t *key, size_t key_length);
void tree_tidy(struct store *store, struct chain *chain, const uint8_t *key, size_t key_length);
int tree_cursor_seek(struct store *store, const struct tree_root *root, struct known_leaves *known,
                     struct cursor *cursor, const uint8_t *key, size_t key_length, struct miss *miss);
int tree_cursor_seek_last(struct store *store, const struct tree_root *root, struct known_leaves *known,
                          struct cursor *cursor, const uint8_t *key, size_t key_length, struct miss *miss);
int tree_cursor_step(struct store *store, struct cursor *cursor, bool forward, struct miss *miss);

/* ---- travel.c ------------------------------------------------------------------------------------------------- */
struct key_range {
    const uint8_t *start, *stop;
    size_t start_length, stop_length;
};
/* See transaction_birth(). STORE_AGAIN with `miss` set. */
int tree_range_birth(struct store *store, const struct tree_root *root, const struct key_range *range, uint64_t *birth,
                     struct miss *miss);

/* ---- deadlist.c ----------------------------------------------------------------------------------------------- */
/* Epoch up to which the chain's blocks are shared with a snapshot. */
uint64_t chain_floor(const struct chain *chain);
/* To be called when what the chain shares with snapshots has changed other than by changes of its tree. */
void chain_count_pinned(struct store *store, struct chain *chain);
void kill_node(struct store *store, struct chain *chain, const struct tree_pointer *pointer);
void kill_blocks(struct store *store, struct chain *chain, uint64_t address, uint32_t blocks, uint64_t birth);
/* Adds to a snapshot's bucket. */
void bury(struct store *store, struct snapshot *snapshot, uint64_t address, uint64_t birth, uint32_t blocks);
/* Frees an entry that no tree refers to any more. */
void free_entry(struct store *store, const struct dead_entry *entry);
void free_later(struct store *store, uint64_t address, uint32_t blocks);
/* The same of what the state that is being written no longer needs: free as soon as that is durable. For the thread
 * that writes the checkpoint. */
int free_by_checkpoint(struct store *store, uint64_t address, uint32_t blocks);
/* Frees what was born after `floor_epoch` in a tree that nothing names any more. */
void drop_tree(struct store *store, const struct tree_pointer *pointer, uint8_t level, uint64_t floor_epoch);
/* Snapshot leaves its chain: its entries in memory are freed or go to its predecessor. */
void dead_hand_over(struct store *store, struct snapshot *snapshot, struct snapshot *predecessor, uint64_t floor_epoch);

/* ---- allocator.c ---------------------------------------------------------------------------------------------- */
int allocator_create(struct store *store);
void allocator_destroy(struct store *store);
int allocator_load(struct store *store, uint64_t digest, uint64_t sequence_max, struct store_failure *failure);
/* A run of free blocks becomes busy. Ordinary claims leave the reserve, and what pinned and dirty nodes need; blocks
 * zeroed in a new place may take the reserve's first eighth, deletions all but the last, which is the checkpoint's. */
enum claim_class { CLAIM_DATA, CLAIM_ZEROES, CLAIM_RESERVE, CLAIM_METADATA };
int allocator_claim(struct store *store, uint32_t blocks_min, uint32_t blocks_max, uint64_t *cursor,
                    enum claim_class claim_class, uint64_t *address, uint32_t *blocks);
void allocator_unclaim(struct store *store, uint64_t address, uint32_t blocks);
/* Place for one node in each of the pool's copies. */
int allocator_claim_node(struct store *store, uint64_t address[2]);
/* Blocks become part of a tree. `by_checkpoint`: of the running checkpoint's own state too. */
void allocator_commit(struct store *store, uint64_t address, uint32_t blocks, bool by_checkpoint);
void allocator_freeze(struct store *store);
/* In the running checkpoint's image (and live) these blocks are free; still busy. */
void allocator_clear(struct store *store, uint64_t address, uint32_t blocks);
int allocator_write(struct store *store, uint64_t sequence);
void allocator_thaw(struct store *store);
/* Freed blocks may be handed out again. */
void allocator_release(struct store *store, uint64_t address, uint32_t blocks);
/* Whether so many blocks, in places for nodes, are there beside what the class leaves alone. A snapshot or clone says
 * how many nodes it makes shared. */
bool allocator_room(struct store *store, uint64_t blocks, enum claim_class claim_class, uint64_t newly_pinned_nodes);
uint64_t allocator_withheld(const struct store *store, enum claim_class claim_class, uint64_t newly_pinned_nodes);
/* What is left beside the unwritten nodes, every reserve included. */
uint64_t allocator_spare_blocks(struct store *store);
bool allocator_in_zone(const struct allocator *allocator, uint64_t address, uint64_t blocks);
/* All is free, and every page that the medium may have is written with the next checkpoint. */
int allocator_start_over(struct store *store);
/* Between checkpoints: whether the current copy of a bitmap page is on the medium as it was written. If not, the next
 * checkpoint writes it again. */
bool allocator_page_intact(struct store *store, uint64_t index, uint64_t *address);

/* ---- segment.c ------------------------------------------------------------------------------------------------ */
/* All that is reserved. -EIO, also when an earlier flush failed. */
int segments_flush(struct store *store);
/* The thread that writes full segments. */
int segments_start(struct store *store);
void segments_stop(struct store *store);
/* Under the store lock, when gathered records are cut off into a group: what they name is not changed any more. */
void segments_seal(struct store *store);
/* Memory of an unsealed block, with a hold on its segment to be given back by segment_unpin(); NULL if none. */
uint8_t *segment_pin(struct store *store, uint64_t address, struct segment **segment);
void segment_unpin(struct store *store, struct segment *segment);
void segments_destroy(struct store *store);

/* ---- journal.c ------------------------------------------------------------------------------------------------ */
int journal_create(struct store *store);
bool journal_has_room(const struct store *store, size_t record_bytes);
/* Reserves room for a record and returns where to write it; NULL: out of memory. */
uint8_t *journal_record(struct store *store, enum journal_record_type type, size_t body_bytes);
/* Writes a group at the head; advances it. Called with commit_mutex held, without the store lock. */
int journal_write_group(struct store *store, const struct byte_buffer *payload);
/* Under the store lock: moves the gathered records to `writing` and seals the data they name. */
void journal_cut(struct store *store);
/* With commit_mutex held: writes the data and the records in `writing`; does not flush. */
int journal_write_cut(struct store *store);

/* ---- journal_scan.c ------------------------------------------------------------------------------------------- */
/* 1 when the group of this sequence was flushed, though it cannot be read; 0 when nothing proves that. */
int journal_lost(struct store *store, uint64_t sequence);

/* ---- recovery.c ----------------------------------------------------------------------------------------------- */
int journal_replay(struct store *store, uint64_t position, uint64_t sequence, struct store_failure *failure);

/* ---- superblock.c --------------------------------------------------------------------------------------------- */
struct superblock {
    uint8_t uuid[16];
    char label[64];
    uint32_t version, flags, node_size, copies;
    uint64_t sequence, epoch, size_blocks, journal_start, journal_blocks, bitmap_start, bitmap_pages;
    uint64_t journal_position, journal_sequence, next_object_id, next_queue_id, bitmap_digest;
    struct tree_root root;
};
int superblock_write(struct store *store, const struct superblock *superblock);
/* The newest good one with a sequence up to `sequence_max`; *newest is the sequence of the newest of all. */
int superblock_read(struct storage *storage, uint64_t sequence_max, struct superblock *out, uint64_t *newest,
                    struct store_failure *failure);
void superblock_describe(struct store *store, struct superblock *out);
/* Of a block that is a good superblock; 0: it is none. */
uint64_t superblock_sequence(const uint8_t *block);

/* ---- stale_entries.c ------------------------------------------------------------------------------------------ */
/* Entries of the medium's dead buckets that the deletion queue will forget: nothing follows from them. None when
 * loading fails. The system tree must not change meanwhile. */
struct stale_entries {
    struct stale_bucket *items;
    size_t count;
};
int stale_entries_load(struct store *store, struct stale_entries *stale);
bool stale_entries_have(const struct stale_entries *stale, uint64_t storage, uint64_t birth);
void stale_entries_free(struct stale_entries *stale);

/* ---- check_buckets.c ------------------------------------------------------------------------------------------ */
/* How many dead buckets hold something else than they have to; negative errno. */
int64_t check_buckets(struct store *store, store_report report, void *argument);

/* ---- rebuild.c ------------------------------------------------------------------------------------------------ */
/* What is in use, by walking all trees; with `buckets` also what is in which dead bucket, and nothing is left of the
 * deletion queue. While opening, before the journal is replayed. */
int space_rebuild(struct store *store, bool buckets, struct store_failure *failure);
/* Inside a checkpoint: the medium's buckets and queue go when they were built anew. */
int buckets_forget(struct store *store);

/* ---- damage.c ------------------------------------------------------------------------------------------------- */
void damage_set_key(struct store_damage *damage, const void *key, size_t length);

/* ---- system.c ------------------------------------------------------------------------------------------------- */
/* The system tree, for the checkpoint (changes) and for opening. Each takes the store lock by itself. */
int system_put(struct store *store, const uint8_t *key, size_t key_length, const uint8_t *value, size_t value_length);
int system_delete(struct store *store, const uint8_t *key, size_t key_length);
struct system_item {
    uint8_t key[STORE_KEY_LENGTH_MAX];
    uint16_t key_length, value_length;
    uint8_t value[2048];
};
/* First item with key >= item->key; -ENOENT when there is none. */
int system_seek(struct store *store, struct system_item *item);
size_t system_key(uint8_t *key, enum system_key_type type, uint64_t id);

/* ---- transaction.c -------------------------------------------------------------------------------------------- */
struct change {
    enum journal_change_type type;
    uint16_t flags;
    uint16_t key_length;
    uint16_t value_length;
    uint32_t at; /* key and value in the arena; for a kill: address, birth, blocks */
    bool sparse; /* a delete that left its leaf to tree_tidy() */
};
#define CHANGES_MAX 512u
#define ARENA_BYTES_MAX (160u << 10)

/* Applies changes whose nodes are in memory and whose journal record is written. */
void changes_apply(struct store *store, struct chain *chain, struct change *changes, size_t count,
                   const uint8_t *arena);
int changes_prepare(struct store *store, struct chain *chain, struct known_leaves *known, const struct change *changes,
                    size_t count, const uint8_t *arena, struct miss *miss);

/* ---- checkpoint.c --------------------------------------------------------------------------------------------- */
int checkpoint_run(struct store *store, bool clean);
/* For who has found no room: writes a checkpoint; -ENOSPC when the last one made none. `tries` begins at zero. */
struct space_tries {
    unsigned count;
    uint64_t free_blocks;
};
int checkpoint_for_space(struct store *store, struct space_tries *tries);

/* ---- checkpoint_queue.c --------------------------------------------------------------------------------------- */
/* Inside a checkpoint: dead entries into their buckets, and the deletion queue, in the system tree. */
int queue_spill(struct store *store, const struct spilled_bucket *spill);
int queue_work(struct store *store);
/* [4][storage id][birth][address] */
#define DEAD_KEY_LENGTH 25u
void dead_key(uint8_t *key, uint64_t storage, uint64_t birth, uint64_t address);
void checkpoint_destroy(struct store *store);
/* ---- maintenance.c -------------------------------------------------------------------------------------------- */
int maintenance_start(struct store *store);
void maintenance_stop(struct store *store);
/* Before a change, without locks: commits or checkpoints when memory, journal or space ask for it. */
int store_throttle(struct store *store);
/* Under the store lock, with each record: whether store_throttle() has to look closer. Mostly it needs no lock then. */
void pressure_note(struct store *store);

#include "catalog.h"

#endif
