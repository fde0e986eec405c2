/* Memory in place of a medium: images that share what they have in common, a storage over one of them that records
 * what is written, and what a power failure leaves of a recording.
 *
 * All memory comes from one stack, given back in the opposite order: a state costs what it differs by. */
#ifndef CRASH_MEDIUM_H
#define CRASH_MEDIUM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "btree/native/storage.h"

#define BLOCK_SIZE 4096u
#define SECTOR_SIZE 512u
#define POOL_BLOCKS 4096u
#define POOL_SIZE_BYTES ((uint64_t)POOL_BLOCKS * BLOCK_SIZE)

/* ---- memory and chance ------------------------------------------------------------------------------------------ */

struct stack_mark {
    size_t chunk, used;
};
void *stack_take(size_t bytes);
struct stack_mark stack_mark(void);
void stack_release(struct stack_mark mark);

struct chance {
    uint64_t state;
};
struct chance chance_from(uint64_t a, uint64_t b, uint64_t c);
uint64_t chance_draw(struct chance *chance);
uint64_t chance_below(struct chance *chance, uint64_t limit);
/* True in one of `odds` cases. */
bool chance_one_in(struct chance *chance, uint64_t odds);
void chance_fill(struct chance *chance, void *bytes, size_t length_bytes);

/* ---- images ----------------------------------------------------------------------------------------------------- */

struct image {
    const uint8_t *blocks[POOL_BLOCKS]; /* NULL: zeros */
    uint64_t digest;                    /* of all blocks; equal for equal content */
};

struct event {
    uint64_t offset_bytes;
    size_t length_bytes; /* 0: a flush */
    const uint8_t *bytes;
};

struct event_list {
    struct event *items;
    size_t count, capacity;
};
void event_list_free(struct event_list *events);

/* ---- the storage ------------------------------------------------------------------------------------------------ */

struct medium {
    struct storage base;
    struct image image;
    uint64_t owned[POOL_BLOCKS / 64]; /* blocks that only this medium refers to */
    struct event_list *events;        /* NULL: nothing is recorded */
    /* Called before each write that is to be recorded; whoever sets it must bear being called in the middle of it. */
    void (*before_write)(void *argument, uint64_t offset_bytes);
    void *argument;
};

/* Over the image, which must outlive it unchanged. Closing the storage does nothing. */
void medium_open(struct medium *medium, const struct image *image, struct event_list *events);
void medium_write(struct medium *medium, uint64_t offset_bytes, const uint8_t *bytes, size_t length_bytes);
/* Whether everything that was recorded is durable. */
bool medium_is_flushed(const struct medium *medium);
/* Brings the image's digest up to date with what was written. */
void medium_digest(struct medium *medium, const struct image *from);

/* ---- power failures --------------------------------------------------------------------------------------------- */

/* Goes through a recording once, in ascending order of cuts. */
struct failure_point {
    struct medium flushed;
    const struct event_list *events;
    size_t next;            /* events before it happened */
    size_t first_unflushed; /* of these, the ones since the last flush are in doubt */
};
void failure_point_begin(struct failure_point *point, const struct image *before, const struct event_list *events);
void failure_point_advance(struct failure_point *point, size_t cut);
size_t failure_point_unflushed(const struct failure_point *point);
/* How many different choices failure_point_image() offers here: all subsets of a few unflushed writes, of many some
 * that stand out; `drawn` more are torn or random. */
unsigned failure_point_choices(const struct failure_point *point, unsigned drawn);
/* What one failure left. `medium` is opened over it. */
void failure_point_image(const struct failure_point *point, unsigned choice, struct chance *chance,
                         struct medium *medium);

/* Two recordings, the one after the other, as dm-log-writes of Linux would have written them. False when the file
 * cannot be written. */
bool events_write_log(const struct event_list *first, const struct event_list *second, const char *path);

#endif
