/* How long locks that requests need are held by what is no request, and what requests wait for (stalls.c). */
#ifndef BTREE_STALLS_H
#define BTREE_STALLS_H

#include <stdatomic.h>
#include <stdint.h>

#include "store.h"

struct hold_counter {
    _Atomic uint64_t count, steps_max, held_max_ns, cpu_max_ns;
};

struct wait_counter {
    _Atomic uint64_t count, waited_max_ns;
};

struct stalls {
    struct hold_counter holds[STORE_HOLD_KINDS];
    struct wait_counter waits[STORE_WAIT_KINDS];
};

/* One holding, from when the lock was taken. Its two clocks cost half a microsecond: nothing for each request. */
struct hold {
    enum store_hold kind;
    uint64_t began_ns, began_cpu_ns;
};

void hold_begin(struct hold *hold, enum store_hold kind);
/* Before the lock is given back. */
void hold_end(struct store *store, const struct hold *hold, uint64_t steps);

/* The store lock, with one of these. */
void hold_lock(struct store *store, struct hold *hold, enum store_hold kind);
void hold_unlock(struct store *store, const struct hold *hold, uint64_t steps);

uint64_t monotonic_ns(void);
/* After a wait that began at monotonic_ns() == `began_ns`. */
void wait_note(struct store *store, enum store_wait kind, uint64_t began_ns);
/* The store lock for a request. The clock is looked at only when somebody else has it. */
void request_lock(struct store *store);

#endif
