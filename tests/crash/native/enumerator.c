/* Power failures at every write and flush of recorded workloads, and in the recoveries from them (invariant I3).
 *
 *     enumerator random  --seed N --seeds COUNT      drawn workloads, one for each seed
 *     enumerator bounded --length L --from N --to N  all sequences of L operations with points of persistence
 *     enumerator rot     --seed N --seeds COUNT      flipped bits instead of power failures: the checksums' part
 *
 * and for all: --step N (each Nth seed or sequence), --choices K (images at each cut), --seconds S, --states MAX,
 * --hashes FILE (the digests of all images tried), --log FILE (of the first drawn workload), --mutation NAME, --steps
 * (print them). Writes one line of JSON. Ends with 0; with 1 and a message when a promise was broken. The same
 * arguments give the same bytes again. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "btree/native/internal.h"
#include "btree/native/mutation.h"
#include "history.h"

#define START_NS UINT64_C(1700000000000000000)
#define STEPS_DRAWN 60u
#define STEPS_AFTER 20u
#define REPEATED 3u
#define FLIPS 24u
#define JOURNAL_LEFT_BYTES 12288u

int store_mutation;

static struct settings {
    uint64_t seed, seeds, length, from, to, step, choices, states_max;
    double seconds;
    const char *hashes, *log;
} settings = {.seed = 1, .seeds = 1, .length = 1, .to = UINT64_MAX, .step = 1, .choices = 4,
              .states_max = UINT64_MAX, .seconds = 1e9};

static struct totals {
    uint64_t histories, states, repeated, recoveries_cut, later_cut, flips;
} totals;

static double now_seconds(void)
{
    return (double)clock() / CLOCKS_PER_SEC;
}

static bool is_over(void)
{
    return totals.states >= settings.states_max || now_seconds() >= settings.seconds;
}

/* ---- images that were tried ------------------------------------------------------------------------------------- */

struct seen {
    uint64_t image, state;
};
static struct seen *seen;
static size_t seen_count, seen_capacity;

static struct seen *seen_place(uint64_t image)
{
    size_t index = image & (seen_capacity - 1);
    while (seen[index].image && seen[index].image != image)
        index = (index + 1) & (seen_capacity - 1);
    return &seen[index];
}

/* The entry of an image; its image is 0 when it is a new one. */
static struct seen *seen_find(uint64_t image)
{
    if (seen_count * 2 >= seen_capacity) {
        struct seen *old = seen;
        size_t old_capacity = seen_capacity;
        seen_capacity = seen_capacity ? seen_capacity * 2 : 1u << 16;
        seen = calloc(seen_capacity, sizeof *seen);
        if (!seen)
            abort();
        for (size_t i = 0; i < old_capacity; i++)
            if (old[i].image)
                *seen_place(old[i].image) = old[i];
        free(old);
    }
    return seen_place(image);
}

static void seen_add(uint64_t image, uint64_t state)
{
    *seen_find(image) = (struct seen){image, state};
    seen_count++;
    totals.states++;
}

static void hashes_write(void)
{
    FILE *file = fopen(settings.hashes, "wb");
    bool written = file != NULL;
    for (size_t i = 0; i < seen_capacity && written; i++)
        if (seen[i].image)
            written = fwrite(&seen[i].image, sizeof seen[i].image, 1, file) == 1;
    if (!file || fclose(file) != 0 || !written)
        fail("writing", settings.hashes);
}

/* Those that what can be seen depends on: the same before and after all failures. */
static unsigned habits_of_seed(void)
{
    struct chance chance = chance_from(at.number, 3, 3);
    return strcmp(at.mode, "bounded") != 0 && chance_one_in(&chance, 3) ? HABIT_COMPRESS : 0u;
}

static unsigned draw_habits(struct chance *chance)
{
    struct chance others = chance_from(chance->state, 3, 3);
    bool put_off = chance_one_in(&others, 2);
    return (chance_one_in(chance, 4) ? HABIT_HASTY : 0u) | (chance_one_in(chance, 4) ? HABIT_LAZY : 0u) |
           (chance_one_in(chance, 2) ? HABIT_FIRST_FIT : 0u) | (put_off ? HABIT_PUT_OFF : 0u) | habits_of_seed();
}

/* ---- states ----------------------------------------------------------------------------------------------------- */

static void check_world(struct world *world, const char *when)
{
    if (world_check(world) < 0)
        fail(when, world->message);
}

/* Ends a session in one of three ways, opens the pool again and finds what the session left: all of it. */
static void reopen_after(struct history *history, struct chance *chance)
{
    struct world *world = &history->world;
    uint64_t expected, found;
    world->held_count = 0;
    history->medium.before_write = NULL;
    if (world_digest(world, &expected) < 0)
        fail("after twenty more steps", world->message);
    bool close = chance_one_in(chance, 2);
    if (close && world_close(world) < 0)
        fail("after twenty more steps", world->message);
    if (!close) {
        if (store_commit(world->store) < 0)
            fail("after twenty more steps", "nothing can be committed");
        world_abandon(world);
    }
    if (world_open(world, &history->medium.base) < 0 || world_digest(world, &found) < 0)
        fail("after twenty more steps, opened again", world->message);
    if (found != expected)
        fail("after twenty more steps, opened again", "it is not what was there before");
    check_world(world, "after twenty more steps, opened again");
}

/* A second failure on the way: while the pool was being recovered, or in the twenty steps after. */
static void fail_again(const struct history *history, size_t recovery_events, struct chance *chance)
{
    struct failure_point *point = stack_take(sizeof *point);
    struct medium *medium = stack_take(sizeof *medium);
    failure_point_begin(point, history->before, &history->events);
    for (size_t cut = 0; cut <= history->events.count; cut++) {
        failure_point_advance(point, cut);
        if (!chance_one_in(chance, cut <= recovery_events ? 3 : 8))
            continue;
        struct stack_mark mark = stack_mark();
        uint64_t state;
        at.cut_again = cut;
        failure_point_image(point, (unsigned)chance_below(chance, failure_point_choices(point, 4)), chance, medium);
        const struct seen *known = seen_find(medium->image.digest);
        if (known->image) {
            totals.repeated++;
            if (!history_is_possible(history, cut, known->state))
                history_fail_impossible(history, cut, known->state);
        } else {
            struct world *world = stack_take(sizeof *world);
            uint64_t digest = medium->image.digest;
            world->serial = 1000000;
            world->habits = habits_of_seed();
            if (world_open(world, &medium->base) < 0 || world_digest(world, &state) < 0)
                fail("after a second failure", world->message);
            if (world->bitmap_was_found_out)
                fail("after a second failure", "the bitmap did not fit the superblock");
            if (!history_is_possible(history, cut, state))
                history_fail_impossible(history, cut, state);
            check_world(world, "after a second failure");
            world_abandon(world);
            seen_add(digest, state);
            if (cut <= recovery_events)
                totals.recoveries_cut++;
            else
                totals.later_cut++;
        }
        stack_release(mark);
    }
    at.cut_again = 0;
}

/* What was done last before the failure is done again: the same data comes to the same place as then, and must not
 * bring a group of then back to life. */
static void repeat_last(const struct history *history, struct history *session)
{
    struct operation sync = {.kind = OPERATION_FSYNCDIR};
    size_t first = history->state_count > REPEATED ? history->state_count - REPEATED : 1;
    for (size_t i = first; i < history->state_count; i++)
        history_step(session, &history->operations[i]);
    history_step(session, &sync);
}

/* One image: it opens, what is there is possible, both fscks find nothing, and work goes on. */
static void visit(const struct history *history, const struct failure_point *point, unsigned choice)
{
    struct chance chance = chance_from(at.number, point->next, choice);
    struct medium *medium = stack_take(sizeof *medium);
    at.choice = choice;
    failure_point_image(point, choice, &chance, medium);
    const struct seen *known = seen_find(medium->image.digest);
    if (known->image) {
        totals.repeated++;
        if (!history_is_possible(history, point->next, known->state))
            history_fail_impossible(history, point->next, known->state);
        return;
    }
    struct history *session = stack_take(sizeof *session);
    struct world *world = &session->world;
    bool again = chance_one_in(&chance, 12);
    history_begin(session, &medium->image);
    session->with_states = again;
    session->chance = chance;
    world->serial = 1000000;
    world->habits = draw_habits(&chance);
    bool repeats = again && chance_one_in(&chance, 2);
    if (repeats) /* the same allocations as then, too */
        world->habits = history->world.habits;
    if (world_open(world, &session->medium.base) < 0)
        fail("after a failure", world->message);
    if (world->bitmap_was_found_out)
        fail("after a failure", "the bitmap did not fit the superblock");
    size_t recovery_events = session->events.count;
    uint64_t state;
    if (world_digest(world, &state) < 0)
        fail("after a failure", world->message);
    if (!history_is_possible(history, point->next, state))
        history_fail_impossible(history, point->next, state);
    check_world(world, "after a failure");
    history_add_state(session, NULL, 0);
    session->medium.before_write = history_before_write;
    if (repeats)
        repeat_last(history, session);
    while (session->state_count <= STEPS_AFTER) {
        struct operation operation = operation_draw(&chance);
        history_step(session, &operation);
    }
    seen_add(medium->image.digest, state);
    if (again) {
        history_check_groups(session);
        world_abandon(world);
        fail_again(session, recovery_events, &chance);
    } else {
        reopen_after(session, &chance);
        world_abandon(world);
    }
    event_list_free(&session->events);
}

/* All images of a recording, or so many drawn ones at each cut. */
static void visit_all(struct history *history, size_t first_cut, bool all)
{
    struct failure_point *point = stack_take(sizeof *point);
    struct chance chance = chance_from(at.number, 7, 7);
    at.events = history->events.count;
    at.step[0] = 0;
    totals.histories++;
    failure_point_begin(point, history->before, &history->events);
    for (size_t cut = first_cut; cut <= history->events.count && !is_over(); cut++) {
        failure_point_advance(point, cut);
        at.cut = cut;
        unsigned drawn = failure_point_unflushed(point) ? (unsigned)settings.choices : 0;
        unsigned choices = failure_point_choices(point, drawn);
        for (unsigned choice = 0; choice < choices; choice++) {
            if (!all && choices > settings.choices && !chance_one_in(&chance, choices / settings.choices))
                continue;
            struct stack_mark mark = stack_mark();
            visit(history, point, choice);
            stack_release(mark);
        }
    }
}

/* ---- drawn workloads -------------------------------------------------------------------------------------------- */

/* There is hardly room for one more group. */
static bool journal_is_full(const struct world *world)
{
    const struct journal *journal = &world->store->journal;
    return journal->head - journal->tail + JOURNAL_LEFT_BYTES >= journal->size_bytes;
}

static void fill_journal(struct world *world)
{
    bool durable;
    for (uint64_t i = 0; !journal_is_full(world); i++) {
        const struct operation operation = {.kind = OPERATION_SETATTR, .from = {0, (uint8_t)(i % 4)}, .content = i};
        if (operation_run(world, &operation, &durable) < 0 || store_commit(world->store) < 0)
            fail("preparing", world->message);
    }
}

/* Some pools lie on what another one left, some are nearly full, some were closed cleanly, and the journal's end, which
 * wraps, is anywhere. */
static void prepare_drawn(struct history *history, struct image *image)
{
    struct chance *chance = &history->chance;
    struct world *world = &history->world;
    bool reused = chance_one_in(chance, 3), full = chance_one_in(chance, 6);
    struct world_options options = {.metadata_copies = 1 + (uint32_t)chance_below(chance, 2)};
    options.node_size_bytes = 4096u << (chance_one_in(chance, 2) ? chance_below(chance, 3) : 0);
    world->habits = draw_habits(chance);
    bool lazy = world->habits & HABIT_LAZY;
    uint64_t commits = lazy ? 200 + chance_below(chance, 100) : chance_below(chance, 300);
    bool durable;
    for (int round = reused ? 0 : 1; round < 2; round++) {
        world_set_clock(START_NS);
        chance_fill(chance, options.uuid, sizeof options.uuid);
        if (world_format(&history->medium.base, &options, world) < 0 || world_open(world, &history->medium.base) < 0)
            fail("preparing", world->message);
        for (uint64_t i = 0; i < commits; i++) {
            struct operation operation = operation_draw(chance);
            if (i >= 30)
                operation = (struct operation){.kind = i < 34 ? OPERATION_CREATE : OPERATION_SETATTR,
                                               .from = {0, (uint8_t)(i % 4)},
                                               .content = i};
            if (operation.kind == OPERATION_CHECKPOINT && i % 4)
                continue;
            if (operation_run(world, &operation, &durable) < 0 || store_commit(world->store) < 0)
                fail("preparing", world->message);
        }
        unsigned fragments = chance_one_in(chance, 3) ? 70 + 40 * (unsigned)chance_below(chance, 3) : 0;
        if (round == 1 && fragments && world_add_fragments(world, fragments) < 0)
            fail("preparing", "a fragmented file");
        if (round == 1 && full && world_add_ballast(world, 100 + chance_below(chance, 300), chance) < 0)
            fail("preparing", "a full pool");
        if (round == 0)
            world_abandon(world);
    }
    if (!lazy && chance_one_in(chance, 2) &&
        (world_close(world) < 0 || world_open(world, &history->medium.base) < 0))
        fail("preparing", world->message);
    else if (!lazy && chance_one_in(chance, 2) && store_checkpoint(world->store) < 0)
        fail("preparing", "no checkpoint");
    if (store_commit(world->store) < 0)
        fail("preparing", "no commit");
    if (lazy && chance_one_in(chance, 2))
        fill_journal(world);
    /* a bit that flips in the journal must not lead to a state of before the recording, which is not known */
    if (strcmp(at.mode, "rot") == 0 && store_checkpoint(world->store) < 0)
        fail("preparing", "no checkpoint");
    struct image *nothing = stack_take(sizeof *nothing);
    memset(nothing, 0, sizeof *nothing);
    medium_digest(&history->medium, nothing);
    *image = history->medium.image;
    memset(history->medium.owned, 0, sizeof history->medium.owned); /* later writes must not change the image */
    history->beside_left = BESIDE_MAX;
}

static void record_drawn(struct history *history, uint64_t seed)
{
    struct image *image = stack_take(sizeof *image);
    at.number = seed;
    at.cut = at.events = at.cut_again = 0;
    memset(image, 0, sizeof *image);
    history_begin(history, image);
    history->chance = chance_from(seed, 0, 0);
    history->world.serial = 0;
    world_set_random(chance_from(seed, 1, 1));
    prepare_drawn(history, image);
    history->preparation = history->events;
    memset(&history->events, 0, sizeof history->events);
    history_add_state(history, NULL, 0);
    history->medium.before_write = history_before_write;
    for (unsigned step = 0; step < STEPS_DRAWN; step++) {
        struct operation operation = operation_draw(&history->chance);
        /* Work beside this one would have to wait for it, or overwrite what it still needs. */
        history->all_beside = step == 0 && journal_is_full(&history->world);
        if (history->all_beside)
            operation = (struct operation){.kind = OPERATION_CHECKPOINT};
        history_step(history, &operation);
    }
    history->medium.before_write = NULL;
    history_check_groups(history);
    history_check_superblocks(history);
}

static void write_log(const struct history *history)
{
    if (settings.log && totals.histories == 0 &&
        !events_write_log(&history->preparation, &history->events, settings.log))
        fail("writing", settings.log);
}

static void run_drawn(void)
{
    for (uint64_t seed = settings.seed; seed < settings.seed + settings.seeds && !is_over(); seed += settings.step) {
        struct stack_mark mark = stack_mark();
        struct history *history = stack_take(sizeof *history);
        record_drawn(history, seed);
        world_abandon(&history->world);
        write_log(history);
        visit_all(history, 0, false);
        history_end(history);
        stack_release(mark);
    }
}

/* ---- bounded workloads ------------------------------------------------------------------------------------------ */

/* After each operation but the last: nothing, a commit or a checkpoint. After the last: a commit or a checkpoint. */
enum persistence { PERSIST_COMMIT, PERSIST_CHECKPOINT, PERSIST_NOTHING };

static uint64_t bounded_sequences(void)
{
    uint64_t count = 2;
    for (uint64_t i = 0; i < settings.length; i++)
        count *= bounded_count() * (i ? 3 : 1);
    return count;
}

static void persist(struct history *history, enum persistence how)
{
    struct operation operation = {.kind = how == PERSIST_COMMIT ? OPERATION_FSYNCDIR : OPERATION_CHECKPOINT};
    if (how != PERSIST_NOTHING)
        history_step(history, &operation);
}

/* Returns where the last operation begins: failures before it are those of a shorter sequence. */
static size_t record_bounded(struct history *history, uint64_t number)
{
    size_t last_begun = 0;
    enum persistence at_end = (enum persistence)(number % 2);
    number /= 2;
    for (uint64_t i = 0; i < settings.length; i++) {
        last_begun = history->events.count;
        history_step(history, bounded_operation(number % bounded_count()));
        number /= bounded_count();
        if (i + 1 == settings.length)
            break;
        persist(history, (enum persistence)(number % 3));
        number /= 3;
    }
    persist(history, at_end);
    return last_begun;
}

static void run_bounded(void)
{
    struct history *history = stack_take(sizeof *history);
    struct image *image = stack_take(sizeof *image), *nothing = stack_take(sizeof *nothing);
    struct world_options options = {.node_size_bytes = 4096, .metadata_copies = 1};
    memset(nothing, 0, sizeof *nothing);
    history_begin(history, nothing);
    world_set_clock(START_NS);
    world_set_random(chance_from(1, 1, 1));
    memset(options.uuid, 7, sizeof options.uuid);
    history->world.serial = 0;
    if (world_format(&history->medium.base, &options, &history->world) < 0 ||
        world_open(&history->world, &history->medium.base) < 0 || bounded_prepare(&history->world) < 0)
        fail("preparing", history->world.message);
    world_abandon(&history->world);
    medium_digest(&history->medium, nothing);
    *image = history->medium.image;
    event_list_free(&history->events);
    uint64_t count = bounded_sequences();
    for (uint64_t number = settings.from; number < count && number < settings.to && !is_over();
         number += settings.step) {
        struct stack_mark mark = stack_mark();
        at.number = number;
        at.cut = at.events = at.cut_again = 0;
        history_begin(history, image);
        world_set_clock(START_NS + UINT64_C(1000000000));
        history->world.serial = 100;
        if (world_open(&history->world, &history->medium.base) < 0)
            fail("opening", history->world.message);
        history_add_state(history, NULL, 0);
        size_t first_cut = record_bounded(history, number);
        history_check_groups(history);
        world_abandon(&history->world);
        visit_all(history, first_cut, true);
        event_list_free(&history->events);
        stack_release(mark);
    }
}

/* ---- rot -------------------------------------------------------------------------------------------------------- */

/* Whether a block that holds a node's first copy has a second one. */
static bool is_first_of_two(const struct history *history, uint64_t block)
{
    struct store *store = history->world.store;
    uint64_t address = block / store->node_blocks * store->node_blocks;
    const struct node *node = store->copies == 2 ? cache_find(store, address) : NULL;
    return node && memcmp(node->page + (block - address) * BLOCK_SIZE, history->medium.image.blocks[block],
                          BLOCK_SIZE) == 0;
}

/* What fsck.cowfs -y opens: what is in use and what belongs to which bucket is found out anew. Where a group of the
 * journal is damaged and those behind it are whole, they must never come back, once somebody has gone on without them,
 * as the successors of new groups in the place of the damaged one. */
static void go_on_rebuilt(struct medium *medium, struct chance *chance)
{
    const struct operation sync = {.kind = OPERATION_FSYNCDIR};
    struct world *world = stack_take(sizeof *world);
    struct operation operation;
    uint64_t before, after;
    bool durable;
    world->serial = 1000000;
    world->habits = habits_of_seed();
    if (world_rebuild(world, &medium->base) < 0)
        fail("opening to rebuild", world->message);
    do {
        operation = operation_draw(chance);
    } while (operation.kind == OPERATION_CHECKPOINT);
    if (operation_run(world, &operation, &durable) < 0 || operation_run(world, &sync, &durable) < 0 ||
        world_digest(world, &before) < 0)
        fail("working after it was rebuilt", world->message);
    world_abandon(world);
    if (world_open(world, &medium->base) < 0 || world_digest(world, &after) < 0)
        fail("opening after it was rebuilt", world->message);
    check_world(world, "after it was rebuilt");
    world_abandon(world);
    if (before != after)
        fail("opening after it was rebuilt", "what was lost is back");
}

/* One flipped bit in what was flushed: whatever is read is right, or an error. The journal's last group, and what that
 * names, may be taken for torn: then the journal ends before it. */
static void flip(const struct history *history, struct chance *chance)
{
    const struct journal *journal = &history->world.store->journal;
    struct medium *medium = stack_take(sizeof *medium);
    uint64_t journal_first = journal->start_byte / BLOCK_SIZE;
    uint64_t journal_end = journal_first + journal->size_bytes / BLOCK_SIZE;
    uint64_t block, limit = chance_one_in(chance, 2) ? POOL_BLOCKS : journal_end + 2;
    do {
        block = chance_below(chance, limit);
    } while (!history->medium.image.blocks[block]);
    if (chance_one_in(chance, 4)) /* the superblock that counts */
        block = history->world.store->checkpoint_sequence % SUPERBLOCK_RING_SLOTS;
    uint64_t offset = block * BLOCK_SIZE + chance_below(chance, chance_one_in(chance, 2) ? BLOCK_SIZE : 320);
    medium_open(medium, &history->medium.image, NULL);
    uint8_t byte = history->medium.image.blocks[block][offset % BLOCK_SIZE];
    byte ^= (uint8_t)(1u << chance_below(chance, 8));
    medium_write(medium, offset, &byte, 1);
    at.cut_again = offset;
    totals.flips++;
    struct superblock newest;
    uint64_t state, sequence;
    if (superblock_read(&medium->base, UINT64_MAX, &newest, &sequence, NULL) < 0 ||
        newest.sequence != history->world.store->checkpoint_sequence)
        fail("opening after a bit flipped", "the newest superblock is not found");
    struct world *world = stack_take(sizeof *world);
    world->serial = 1000000;
    world->habits = habits_of_seed();
    int result = world_open(world, &medium->base);
    bool twice = block < journal_first || block >= POOL_BLOCKS - journal_first || is_first_of_two(history, block);
    bool in_journal = block >= journal_first && block < journal_end;
    if (result < 0 && strstr(world->message, "of the journal is damaged")) {
        if (!in_journal)
            fail("opening after a bit flipped", "what a group names is not the journal");
        go_on_rebuilt(medium, chance);
        return;
    }
    if ((result == -EIO || result == -EUCLEAN) && !twice)
        return;
    if (result < 0)
        fail("opening after a bit flipped", world->message);
    result = world_digest(world, &state);
    size_t durable, unused;
    history_possible_states(history, history_last_group(history), &durable, &unused);
    bool found = (result == -EIO || result == -EUCLEAN) && !twice;
    bool in_bitmap = block >= journal_end && block < journal_end + 2;
    if (result == 0 && in_bitmap)
        check_world(world, "after a bit of the bitmap flipped");
    for (size_t i = durable; i < history->state_count && !found; i++)
        found = history->states[i] == state;
    world_abandon(world);
    if (result < 0 && !found)
        fail("reading after a bit flipped", world->message);
    if (!found)
        fail("reading after a bit flipped", "wrong data, without an error");
}

static void run_rot(void)
{
    for (uint64_t seed = settings.seed; seed < settings.seed + settings.seeds && !is_over(); seed += settings.step) {
        struct stack_mark mark = stack_mark();
        struct history *history = stack_take(sizeof *history);
        struct chance chance = chance_from(seed, 5, 5);
        record_drawn(history, seed);
        totals.histories++;
        for (unsigned i = 0; i < FLIPS; i++) {
            struct stack_mark inner = stack_mark();
            if (i == 0) {
                struct medium *medium = stack_take(sizeof *medium);
                medium_open(medium, &history->medium.image, NULL);
                go_on_rebuilt(medium, &chance);
            }
            flip(history, &chance);
            stack_release(inner);
        }
        world_abandon(&history->world);
        history_end(history);
        stack_release(mark);
    }
}

/* ---- arguments -------------------------------------------------------------------------------------------------- */

static void set_mutation(const char *name)
{
#ifdef COWFS_MUTATIONS
    static const char *const mutations[] = {
#define MUTATION_NAME(name, promise) #name,
        MUTATIONS(MUTATION_NAME)
    };
    size_t count = sizeof mutations / sizeof *mutations;
    for (size_t i = 0; i < count; i++) {
        if (strcmp(name, "list") == 0)
            printf("%s\n", mutations[i]);
        else if (strcmp(name, mutations[i]) == 0)
            store_mutation = (int)i + 1;
    }
    if (strcmp(name, "list") == 0)
        exit(0);
#endif
    if (!store_mutation)
        fail("no such mutation", name);
}

static void parse(int count, char **arguments)
{
    static const struct option options[] = {
        {"seed", 1, NULL, 's'},     {"seeds", 1, NULL, 'n'},    {"length", 1, NULL, 'l'}, {"from", 1, NULL, 'f'},
        {"to", 1, NULL, 't'},       {"step", 1, NULL, 'p'},     {"choices", 1, NULL, 'c'}, {"seconds", 1, NULL, 'S'},
        {"states", 1, NULL, 'x'},   {"hashes", 1, NULL, 'h'},   {"log", 1, NULL, 'L'},    {"mutation", 1, NULL, 'm'},
        {"steps", 0, NULL, 'v'},    {NULL, 0, NULL, 0},
    };
    int option;
    while ((option = getopt_long(count, arguments, "", options, NULL)) != -1) {
        uint64_t number = optarg ? strtoull(optarg, NULL, 10) : 0;
        switch (option) {
        case 's': settings.seed = number; break;
        case 'n': settings.seeds = number; break;
        case 'l': settings.length = number; break;
        case 'f': settings.from = number; break;
        case 't': settings.to = number; break;
        case 'p': settings.step = number; break;
        case 'c': settings.choices = number; break;
        case 'S': settings.seconds = (double)number; break;
        case 'x': settings.states_max = number; break;
        case 'h': settings.hashes = optarg; break;
        case 'L': settings.log = optarg; break;
        case 'm': set_mutation(optarg); break;
        case 'v': at.print_steps = true; break;
        default: exit(2);
        }
    }
    if (settings.step == 0 || settings.choices == 0 || optind != count - 1)
        exit(2);
    at.mode = arguments[optind];
}

int main(int count, char **arguments)
{
    parse(count, arguments);
    if (strcmp(at.mode, "random") == 0)
        run_drawn();
    else if (strcmp(at.mode, "bounded") == 0)
        run_bounded();
    else if (strcmp(at.mode, "rot") == 0)
        run_rot();
    else
        return 2;
    if (settings.hashes)
        hashes_write();
    printf("{\"histories\": %llu, \"states\": %llu, \"repeated\": %llu, \"recoveries_cut\": %llu, \"later_cut\": %llu, "
           "\"flips\": %llu, \"seconds\": %.2f}\n",
           (unsigned long long)totals.histories, (unsigned long long)totals.states, (unsigned long long)totals.repeated,
           (unsigned long long)totals.recoveries_cut, (unsigned long long)totals.later_cut,
           (unsigned long long)totals.flips, now_seconds());
    return 0;
}
