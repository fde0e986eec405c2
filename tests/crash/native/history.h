/* Recorded workloads: what was written and flushed, what there was after each step, and what a failure may leave. */
#ifndef CRASH_HISTORY_H
#define CRASH_HISTORY_H

#include "world.h"

#define STEPS_MAX 1000u
#define BESIDE_MAX 6u

/* Where things are, for whoever reads of a failure. */
struct whereabouts {
    const char *mode;
    uint64_t number;
    size_t cut, events, cut_again;
    unsigned choice;
    char step[100];
    bool print_steps;
};
extern struct whereabouts at;

/* Says what promise was broken, and ends the program. */
_Noreturn void fail(const char *what, const char *detail);

struct claim { /* once so many events are done, this state and what came before is durable */
    size_t events, state;
};

struct history {
    const struct image *before;
    struct event_list preparation, events; /* failures are tried in the latter */
    uint64_t states[STEPS_MAX + 1]; /* after each step; the first is what was there, and durable */
    size_t begun_after[STEPS_MAX + 1];
    struct operation operations[STEPS_MAX + 1];
    size_t state_count;
    struct claim claims[STEPS_MAX + 1];
    size_t claim_count;
    /* while it is recorded */
    struct medium medium;
    struct world world;
    struct chance chance;
    const struct operation *running;
    size_t part_begun_after; /* of the running operation, when it does several things */
    unsigned beside_left;
    bool all_beside; /* at each occasion, each thing durable */
    bool with_states; /* false: only what is there in the end is of interest */
};

/* Of a world that is to be opened over history->medium; the image must stay as it is. */
void history_begin(struct history *history, const struct image *before);
void history_end(struct history *history);
/* What there is now, as the outcome of a step (NULL: the beginning) before which so many events were recorded. */
void history_add_state(struct history *history, const struct operation *operation, size_t begun_after);
void history_step(struct history *history, const struct operation *operation);
/* For the storage: adds what comes between the transactions of one call, and what others do beside checkpoints. */
void history_before_write(void *argument, uint64_t offset_bytes);

bool history_is_possible(const struct history *history, size_t cut, uint64_t state);
_Noreturn void history_fail_impossible(const struct history *history, size_t cut, uint64_t state);
/* Of the states by number: which ones a failure after so many events may leave. */
void history_possible_states(const struct history *history, size_t cut, size_t *first, size_t *last);
/* How many events came before the last group of the journal. */
size_t history_last_group(const struct history *history);
/* The journal never has two groups in doubt: of two, a crash could keep the second alone (journal_write_cut()). */
void history_check_groups(const struct history *history);
/* Each superblock is there twice. */
void history_check_superblocks(const struct history *history);

#endif
