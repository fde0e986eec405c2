/* A pool opened in-process with its file system, what can be seen of it as one number, and operations on it. */
#ifndef CRASH_WORLD_H
#define CRASH_WORLD_H

#include "cowfs/native/filesystem.h"
#include "medium.h"

#define HELD_MAX 4u
#define MESSAGE_LENGTH 512u

/* What a store does in a few cases only, so that it does it all the time. Kept when a world is opened again. */
enum habits {
    HABIT_HASTY = 1,     /* every transaction is a group of its own: failures fall between those of one operation */
    HABIT_LAZY = 2,      /* nobody writes checkpoints in time: the journal runs full */
    HABIT_FIRST_FIT = 4, /* freed blocks are used again as soon as they can be */
    HABIT_COMPRESS = 8,  /* content is compressible, and compressed */
    HABIT_PUT_OFF = 16,  /* deletions take many checkpoints */
};

struct world {
    struct store *store;
    struct filesystem *filesystem;
    uint64_t main_id;
    uint64_t held[HELD_MAX]; /* nodes looked up and not forgotten: unlinked, they are orphans */
    size_t held_count;
    unsigned habits;
    bool bitmap_was_found_out; /* at opening, by walking: for damage, never needed after a power failure */
    uint64_t serial; /* of names of snapshots and volumes made through this world */
    void (*between)(void *argument); /* called by operations that do several things, after each; may be NULL */
    void *between_argument;
    char message[MESSAGE_LENGTH]; /* what went wrong last */
};

/* The time that the store and the verbs are told: it goes on by a microsecond with each question, so that a seed gives
 * the same bytes each time. */
void world_set_clock(uint64_t since_1970_ns);
/* What getrandom(2) gives from now on. */
void world_set_random(struct chance chance);

struct world_options {
    uint32_t node_size_bytes, metadata_copies;
    uint8_t uuid[16];
};
int world_format(struct storage *storage, const struct world_options *options, struct world *world);
int world_open(struct world *world, struct storage *storage);
/* As fsck.cowfs -y does it: finds out anew what is in use, and goes on without lost groups of the journal. */
int world_rebuild(struct world *world, struct storage *storage);
int world_close(struct world *world);
/* As a killed process leaves it. */
void world_abandon(struct world *world);

/* Volumes, snapshots and everything visible in each of their trees: names, attributes, times, content. The same number
 * means the same state. */
int world_digest(struct world *world, uint64_t *digest);
/* Both fscks, with all data read; sums of space; no orphan left that nobody holds. 0, or an errno and a message. */
int world_check(struct world *world);

enum operation_kind {
    OPERATION_CREATE, OPERATION_MKDIR, OPERATION_SYMLINK, OPERATION_UNNAMED, OPERATION_WRITE, OPERATION_APPEND,
    OPERATION_TRUNCATE, OPERATION_RENAME, OPERATION_EXCHANGE, OPERATION_LINK, OPERATION_UNLINK, OPERATION_UNLINK_HELD,
    OPERATION_RELEASE, OPERATION_RMDIR, OPERATION_SETXATTR, OPERATION_REMOVEXATTR, OPERATION_SETATTR,
    OPERATION_FSYNC, OPERATION_FDATASYNC, OPERATION_FSYNCDIR, OPERATION_SNAPSHOT, OPERATION_SNAPSHOT_SYNC,
    OPERATION_SNAPSHOT_DELETE, OPERATION_SNAPSHOTS, OPERATION_THIN, OPERATION_ANNOTATE, OPERATION_HOLD,
    OPERATION_ROLLBACK, OPERATION_CLONE, OPERATION_PROMOTE, OPERATION_DESTROY, OPERATION_REFLINK, OPERATION_PUNCH,
    OPERATION_ZERO, OPERATION_ALLOCATE, OPERATION_CHECKPOINT, OPERATION_KINDS
};
extern const char *const operation_names[OPERATION_KINDS];

struct place {
    uint8_t directory, name;
};

struct operation {
    enum operation_kind kind;
    struct place from, to;
    uint8_t volume, snapshot; /* which one of those that there are */
    uint32_t offset_bytes, length_bytes;
    uint64_t content; /* where the bytes come from */
};

/* A file of so many single blocks with holes between them, for which truncation takes more than one transaction. */
int world_add_fragments(struct world *world, unsigned count);
/* Fills a file that no workload touches until so many blocks are left, most of them between two that are not free. */
int world_add_ballast(struct world *world, uint64_t room_blocks, struct chance *chance);
struct operation operation_draw(struct chance *chance);
/* 0 when it was done, or could not be as things were (no such file, no space); *durable tells whether everything before
 * it is durable now. */
int operation_run(struct world *world, const struct operation *operation, bool *durable);
/* The operations whose sequences are gone through exhaustively, over bounded_prepare()'s files. */
size_t bounded_count(void);
const struct operation *bounded_operation(size_t index);
int bounded_prepare(struct world *world);

#endif
