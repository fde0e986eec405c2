#include "history.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "btree/native/internal.h"

/* Room that work beside a checkpoint needs, so that it never has to wait for one. */
#define BESIDE_ROOM_BLOCKS 700u

struct whereabouts at;

_Noreturn void fail(const char *what, const char *detail)
{
    fprintf(stderr, "enumerator: %s: %s\n"
                    "  %s %llu, after event %zu of %zu, choice %u, again after event %zu; step: %s\n",
            what, detail, at.mode, (unsigned long long)at.number, at.cut, at.events, at.choice, at.cut_again, at.step);
    exit(1);
}

void history_begin(struct history *history, const struct image *before)
{
    history->world.habits = 0;
    history->running = NULL;
    memset(&history->preparation, 0, sizeof history->preparation);
    memset(&history->events, 0, sizeof history->events);
    history->before = before;
    history->state_count = history->claim_count = 0;
    history->beside_left = 0;
    history->all_beside = false;
    history->with_states = true;
    medium_open(&history->medium, before, &history->events);
    history->medium.argument = history;
}

void history_add_state(struct history *history, const struct operation *operation, size_t begun_after)
{
    size_t index = history->state_count++;
    if (index >= STEPS_MAX)
        fail("recording", "too many steps");
    history->begun_after[index] = begun_after;
    if (operation)
        history->operations[index] = *operation;
    history->states[index] = 0;
    if (history->with_states && world_digest(&history->world, &history->states[index]) < 0)
        fail("reading what was done", history->world.message);
}

static void history_claim(struct history *history, size_t state)
{
    history->claims[history->claim_count++] = (struct claim){history->events.count, state};
}

static void note_step(const struct operation *operation)
{
    (void)snprintf(at.step, sizeof at.step, "%s (%u %u) (%u %u) volume %u snapshot %u, %u bytes at %u",
                   operation_names[operation->kind], operation->from.directory, operation->from.name,
                   operation->to.directory, operation->to.name, operation->volume, operation->snapshot,
                   operation->length_bytes, operation->offset_bytes);
    if (at.print_steps)
        fprintf(stderr, "  %s\n", at.step);
}

/* A part of the running operation is done, which a failure may leave without those that follow. */
static void history_add_part(void *argument)
{
    struct history *history = argument;
    history_add_state(history, history->running, history->part_begun_after);
    history->part_begun_after = history->events.count;
}

void history_step(struct history *history, const struct operation *operation)
{
    size_t begun_after = history->events.count, state = history->state_count - 1;
    bool durable;
    note_step(operation);
    history->running = operation;
    history->part_begun_after = begun_after;
    history->world.between = history_add_part;
    history->world.between_argument = history;
    if (operation_run(&history->world, operation, &durable) < 0)
        fail("working", history->world.message);
    history->running = NULL;
    history->world.between = NULL;
    if (operation->kind != OPERATION_CHECKPOINT) {
        history_add_state(history, operation, begun_after);
        state = history->state_count - 1;
    }
    if (durable)
        history_claim(history, state);
}

static bool is_free(pthread_mutex_t *mutex)
{
    return pthread_mutex_trylock(mutex) == 0 && pthread_mutex_unlock(mutex) == 0;
}

static bool is_in_journal(const struct history *history, uint64_t offset_bytes)
{
    const struct journal *journal = &history->world.store->journal;
    return offset_bytes >= journal->start_byte && offset_bytes - journal->start_byte < journal->size_bytes;
}

static bool is_group(const struct history *history, const struct event *event)
{
    return event->length_bytes > 0 && is_in_journal(history, event->offset_bytes);
}

/* Calls that change content may be cut short between two transactions. All others are done, or not at all. */
static bool may_be_halved(const struct operation *operation)
{
    static const bool halved[OPERATION_KINDS] = {
        [OPERATION_WRITE] = true, [OPERATION_APPEND] = true, [OPERATION_UNNAMED] = true,  [OPERATION_PUNCH] = true,
        [OPERATION_ZERO] = true,  [OPERATION_REFLINK] = true, [OPERATION_ALLOCATE] = true,
    };
    return operation && halved[operation->kind];
}

/* What others do while a checkpoint is being written: between two of its writes, in the same thread, so that a seed
 * gives the same order each time. Only where no lock but the checkpoint's is held, and where nothing has to wait for a
 * checkpoint. */
static void work_beside(struct history *history)
{
    struct store *store = history->world.store;
    const struct journal *journal = &store->journal;
    struct store_statistics space;
    struct operation operation;
    if (history->beside_left == 0 || !history->running || history->running->kind != OPERATION_CHECKPOINT ||
        !store->checkpoint.running || !(history->all_beside || chance_one_in(&history->chance, 3)) ||
        !is_free(&store->commit_mutex) || !is_free(&store->flush_mutex) || !is_free(&store->lock) ||
        !is_free(&store->data_mutex) || journal->head - journal->tail > journal->size_bytes / 4)
        return;
    store_statistics(store, &space);
    if (space.available_blocks < space.pending_blocks + BESIDE_ROOM_BLOCKS)
        return;
    history->beside_left--;
    do {
        operation = operation_draw(&history->chance);
    } while (operation.kind == OPERATION_CHECKPOINT);
    const struct operation *running = history->running;
    history_step(history, &operation);
    operation = (struct operation){.kind = OPERATION_FSYNCDIR};
    if (history->all_beside || chance_one_in(&history->chance, 2))
        history_step(history, &operation);
    history->running = running;
}

void history_before_write(void *argument, uint64_t offset_bytes)
{
    struct history *history = argument;
    if (history->with_states && may_be_halved(history->running) &&
        is_in_journal(history, offset_bytes)) {
        history->medium.before_write = NULL;
        history_add_state(history, history->running, history->events.count); /* what the group brings */
        history->medium.before_write = history_before_write;
    } else {
        work_beside(history);
    }
}

void history_check_groups(const struct history *history)
{
    size_t groups = 0;
    for (size_t i = 0; i < history->events.count; i++) {
        const struct event *event = &history->events.items[i];
        groups = event->length_bytes == 0 ? 0 : groups + is_group(history, event);
        if (groups > 1)
            fail("recording", "two groups of the journal are in doubt at one time");
    }
}

size_t history_last_group(const struct history *history)
{
    size_t index = history->events.count;
    while (index > 0 && !is_group(history, &history->events.items[index - 1]))
        index--;
    return index > 0 ? index - 1 : 0;
}

void history_check_superblocks(const struct history *history)
{
    uint64_t slot = history->world.store->checkpoint_sequence % SUPERBLOCK_RING_SLOTS;
    const uint8_t *first = history->medium.image.blocks[slot];
    const uint8_t *second = history->medium.image.blocks[POOL_BLOCKS - SUPERBLOCK_RING_SLOTS + slot];
    if (!first || !second || memcmp(first, second, BLOCK_SIZE) != 0)
        fail("recording", "the newest superblock is not there twice");
}

void history_possible_states(const struct history *history, size_t cut, size_t *first, size_t *last)
{
    *first = *last = 0;
    for (size_t i = 0; i < history->claim_count; i++)
        if (history->claims[i].events <= cut && history->claims[i].state > *first)
            *first = history->claims[i].state;
    for (size_t i = 1; i < history->state_count; i++)
        if (history->begun_after[i] < cut)
            *last = i;
    if (*last < *first)
        *last = *first;
}

bool history_is_possible(const struct history *history, size_t cut, uint64_t state)
{
    size_t first, last;
    history_possible_states(history, cut, &first, &last);
    for (size_t i = first; i <= last; i++)
        if (history->states[i] == state)
            return true;
    return false;
}

_Noreturn void history_fail_impossible(const struct history *history, size_t cut, uint64_t state)
{
    char detail[200];
    size_t first, last, found = SIZE_MAX;
    history_possible_states(history, cut, &first, &last);
    for (size_t i = 0; i < history->state_count; i++)
        if (history->states[i] == state)
            found = i;
    (void)snprintf(detail, sizeof detail, "states %zu to %zu are possible, it is %s%zu", first, last,
                   found == SIZE_MAX ? "none of 0 to " : "", found == SIZE_MAX ? history->state_count - 1 : found);
    fail("what is there after recovery", detail);
}

void history_end(struct history *history)
{
    event_list_free(&history->preparation);
    event_list_free(&history->events);
}
