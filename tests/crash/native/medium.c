#include "medium.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "btree/native/format.h"
#include "btree/native/store.h"

/* ---- memory and chance ------------------------------------------------------------------------------------------ */

#define CHUNK_BYTES ((size_t)32 << 20)
#define CHUNKS_MAX 64u

static uint8_t *chunks[CHUNKS_MAX];
static struct stack_mark top;

void *stack_take(size_t bytes)
{
    bytes = (bytes + 63) / 64 * 64;
    if (bytes > CHUNK_BYTES)
        abort();
    if (!chunks[top.chunk] || top.used + bytes > CHUNK_BYTES) {
        if (chunks[top.chunk]) {
            top.chunk++;
            top.used = 0;
        }
        if (top.chunk == CHUNKS_MAX)
            abort();
        if (!chunks[top.chunk])
            chunks[top.chunk] = aligned_alloc(BLOCK_SIZE, CHUNK_BYTES);
        if (!chunks[top.chunk])
            abort();
    }
    uint8_t *taken = chunks[top.chunk] + top.used;
    top.used += bytes;
    return taken;
}

struct stack_mark stack_mark(void)
{
    return top;
}

void stack_release(struct stack_mark mark)
{
    top = mark;
}

/* SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014). */
uint64_t chance_draw(struct chance *chance)
{
    uint64_t mixed = chance->state += UINT64_C(0x9e3779b97f4a7c15);
    mixed = (mixed ^ mixed >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    mixed = (mixed ^ mixed >> 27) * UINT64_C(0x94d049bb133111eb);
    return mixed ^ mixed >> 31;
}

struct chance chance_from(uint64_t a, uint64_t b, uint64_t c)
{
    struct chance chance = {a};
    chance.state = chance_draw(&chance) ^ b;
    chance.state = chance_draw(&chance) ^ c;
    return chance;
}

uint64_t chance_below(struct chance *chance, uint64_t limit)
{
    return chance_draw(chance) % limit;
}

bool chance_one_in(struct chance *chance, uint64_t odds)
{
    return chance_below(chance, odds) == 0;
}

void chance_fill(struct chance *chance, void *bytes, size_t length_bytes)
{
    uint8_t *to = bytes;
    while (length_bytes) {
        uint64_t drawn = chance_draw(chance);
        size_t part = length_bytes < sizeof drawn ? length_bytes : sizeof drawn;
        memcpy(to, &drawn, part);
        to += part;
        length_bytes -= part;
    }
}

/* ---- the storage ------------------------------------------------------------------------------------------------ */

static const uint8_t zeros[BLOCK_SIZE];

void event_list_free(struct event_list *events)
{
    free(events->items);
    memset(events, 0, sizeof *events);
}

static void event_add(struct event_list *events, uint64_t offset_bytes, const uint8_t *bytes, size_t length_bytes)
{
    if (events->count == events->capacity) {
        events->capacity = events->capacity ? events->capacity * 2 : 64;
        events->items = realloc(events->items, events->capacity * sizeof *events->items);
        if (!events->items)
            abort();
    }
    events->items[events->count++] = (struct event){offset_bytes, length_bytes, bytes};
}

static bool is_owned(const struct medium *medium, uint64_t block)
{
    return medium->owned[block / 64] >> block % 64 & 1;
}

void medium_write(struct medium *medium, uint64_t offset_bytes, const uint8_t *bytes, size_t length_bytes)
{
    while (length_bytes) {
        uint64_t block = offset_bytes / BLOCK_SIZE;
        size_t from = offset_bytes % BLOCK_SIZE, part = BLOCK_SIZE - from;
        if (part > length_bytes)
            part = length_bytes;
        if (!is_owned(medium, block)) {
            uint8_t *copy = stack_take(BLOCK_SIZE);
            if (part < BLOCK_SIZE)
                memcpy(copy, medium->image.blocks[block] ? medium->image.blocks[block] : zeros, BLOCK_SIZE);
            medium->image.blocks[block] = copy;
            medium->owned[block / 64] |= UINT64_C(1) << block % 64;
        }
        memcpy((uint8_t *)(uintptr_t)medium->image.blocks[block] + from, bytes, part);
        offset_bytes += part;
        bytes += part;
        length_bytes -= part;
    }
}

static bool is_inside(uint64_t offset_bytes, size_t length_bytes)
{
    return offset_bytes <= POOL_SIZE_BYTES && length_bytes <= POOL_SIZE_BYTES - offset_bytes;
}

static int storage_read_blocks(struct storage *storage, void *buffer, size_t length_bytes, uint64_t offset_bytes)
{
    const struct medium *medium = (const struct medium *)storage;
    uint8_t *to = buffer;
    if (!is_inside(offset_bytes, length_bytes))
        return -EIO;
    while (length_bytes) {
        const uint8_t *block = medium->image.blocks[offset_bytes / BLOCK_SIZE];
        size_t from = offset_bytes % BLOCK_SIZE, part = BLOCK_SIZE - from;
        if (part > length_bytes)
            part = length_bytes;
        memcpy(to, (block ? block : zeros) + from, part);
        offset_bytes += part;
        to += part;
        length_bytes -= part;
    }
    return 0;
}

static int storage_write_blocks(struct storage *storage, const void *buffer, size_t length_bytes, uint64_t offset_bytes)
{
    struct medium *medium = (struct medium *)storage;
    if (!is_inside(offset_bytes, length_bytes))
        return -EIO;
    if (medium->before_write)
        medium->before_write(medium->argument, offset_bytes);
    medium_write(medium, offset_bytes, buffer, length_bytes);
    if (medium->events) {
        uint8_t *copy = stack_take(length_bytes);
        memcpy(copy, buffer, length_bytes);
        event_add(medium->events, offset_bytes, copy, length_bytes);
    }
    return 0;
}

static int storage_flush_nothing(struct storage *storage)
{
    struct medium *medium = (struct medium *)storage;
    if (medium->events)
        event_add(medium->events, 0, NULL, 0);
    return 0;
}

static uint64_t storage_pool_size(struct storage *storage)
{
    (void)storage;
    return POOL_SIZE_BYTES;
}

static void storage_close_nothing(struct storage *storage)
{
    (void)storage;
}

static const struct storage_operations medium_operations = {
    .read = storage_read_blocks,
    .write = storage_write_blocks,
    .flush = storage_flush_nothing,
    .size = storage_pool_size,
    .close = storage_close_nothing,
};

void medium_open(struct medium *medium, const struct image *image, struct event_list *events)
{
    medium->base.operations = &medium_operations;
    medium->image = *image;
    memset(medium->owned, 0, sizeof medium->owned);
    medium->events = events;
    medium->before_write = NULL;
}

bool medium_is_flushed(const struct medium *medium)
{
    const struct event_list *events = medium->events;
    return events->count == 0 || events->items[events->count - 1].length_bytes == 0;
}

static uint64_t block_digest(uint64_t block, const uint8_t *bytes)
{
    if (!bytes || memcmp(bytes, zeros, BLOCK_SIZE) == 0)
        return 0;
    struct chance mixed = chance_from(store_checksum(bytes, BLOCK_SIZE), block, 0);
    return chance_draw(&mixed);
}

void medium_digest(struct medium *medium, const struct image *from)
{
    medium->image.digest = from->digest;
    for (uint64_t word = 0; word < POOL_BLOCKS / 64; word++) {
        for (uint64_t bits = medium->owned[word]; bits; bits &= bits - 1) {
            uint64_t block = word * 64 + (uint64_t)__builtin_ctzll(bits);
            medium->image.digest ^= block_digest(block, from->blocks[block]);
            medium->image.digest ^= block_digest(block, medium->image.blocks[block]);
        }
    }
}

/* ---- power failures --------------------------------------------------------------------------------------------- */

#define SUBSETS_OF_MAX 3u
#define SINGLES_MAX 12u

void failure_point_begin(struct failure_point *point, const struct image *before, const struct event_list *events)
{
    medium_open(&point->flushed, before, NULL);
    point->events = events;
    point->next = point->first_unflushed = 0;
}

void failure_point_advance(struct failure_point *point, size_t cut)
{
    size_t first = point->first_unflushed;
    for (; point->next < cut; point->next++)
        if (point->events->items[point->next].length_bytes == 0)
            point->first_unflushed = point->next + 1;
    struct image before;
    if (first < point->first_unflushed) {
        before = point->flushed.image;
        memset(point->flushed.owned, 0, sizeof point->flushed.owned);
    }
    for (size_t i = first; i < point->first_unflushed; i++) {
        const struct event *event = &point->events->items[i];
        medium_write(&point->flushed, event->offset_bytes, event->bytes, event->length_bytes);
    }
    if (first < point->first_unflushed)
        medium_digest(&point->flushed, &before);
}

size_t failure_point_unflushed(const struct failure_point *point)
{
    return point->next - point->first_unflushed;
}

unsigned failure_point_choices(const struct failure_point *point, unsigned drawn)
{
    size_t count = failure_point_unflushed(point);
    if (count == 0)
        return 1;
    if (count <= SUBSETS_OF_MAX)
        return (1u << count) + drawn;
    return 2 + 2 * (unsigned)(count < SINGLES_MAX ? count : SINGLES_MAX) + drawn;
}

/* A part of a write, in whole sectors: its beginning, or any of its sectors. */
static void write_torn(struct medium *medium, const struct event *event, struct chance *chance)
{
    size_t sectors = event->length_bytes / SECTOR_SIZE;
    if (chance_one_in(chance, 2)) {
        medium_write(medium, event->offset_bytes, event->bytes, chance_below(chance, sectors + 1) * SECTOR_SIZE);
        return;
    }
    uint64_t odds = 1 + chance_below(chance, 7);
    bool kept = chance_one_in(chance, 2);
    for (size_t sector = 0; sector < sectors; sector++) {
        bool other = chance_one_in(chance, odds);
        if (kept != other)
            medium_write(medium, event->offset_bytes + sector * SECTOR_SIZE, event->bytes + sector * SECTOR_SIZE,
                         SECTOR_SIZE);
    }
}

/* Any of the unflushed writes, in any order, some of them torn. */
static void write_drawn(struct medium *medium, const struct event *events, size_t count, struct chance *chance)
{
    static const unsigned kept_of_20[] = {0, 4, 10, 16, 19, 20, 20, 20}, torn_of_20[] = {0, 2, 10, 20};
    unsigned kept = kept_of_20[chance_below(chance, 8)], torn = torn_of_20[chance_below(chance, 4)];
    size_t only = chance_one_in(chance, 3) ? chance_below(chance, count) : SIZE_MAX;
    size_t *order = stack_take(count * sizeof *order);
    for (size_t i = 0; i < count; i++) {
        size_t at = chance_below(chance, i + 1);
        order[i] = order[at];
        order[at] = i;
    }
    if (chance_one_in(chance, 2))
        for (size_t i = 0; i < count; i++)
            order[i] = i;
    for (size_t i = 0; i < count; i++) {
        const struct event *event = &events[order[i]];
        if (only != SIZE_MAX ? order[i] == only : chance_below(chance, 20) < torn)
            write_torn(medium, event, chance);
        else if (only != SIZE_MAX || chance_below(chance, 20) < kept)
            medium_write(medium, event->offset_bytes, event->bytes, event->length_bytes);
    }
}

/* Which of the writes number `index` of `count` survives in a choice that is not drawn. */
static bool survives(size_t index, size_t count, unsigned choice, struct chance *chance)
{
    if (count <= SUBSETS_OF_MAX)
        return choice >> index & 1;
    if (choice < 2)
        return choice;
    size_t single = (choice - 2) / 2;
    if (count > SINGLES_MAX) /* the writes at the end, among them superblocks, matter more than all the nodes */
        single = single < SINGLES_MAX / 2 ? count - 1 - single : chance->state % count;
    return (index == single) == (choice % 2 == 0);
}

void failure_point_image(const struct failure_point *point, unsigned choice, struct chance *chance,
                         struct medium *medium)
{
    const struct event *events = &point->events->items[point->first_unflushed];
    size_t count = failure_point_unflushed(point);
    medium_open(medium, &point->flushed.image, NULL);
    if (choice >= failure_point_choices(point, 0)) {
        write_drawn(medium, events, count, chance);
    } else {
        for (size_t i = 0; i < count; i++)
            if (survives(i, count, choice, chance))
                medium_write(medium, events[i].offset_bytes, events[i].bytes, events[i].length_bytes);
    }
    medium_digest(medium, &point->flushed.image);
}

/* ---- dm-log-writes ---------------------------------------------------------------------------------------------- */

/* drivers/md/dm-log-writes.c of Linux: a superblock of one sector, then for each entry a sector that describes it and
 * the data written. All numbers are little-endian, places and lengths in sectors. A flush is an entry of no length. */
#define LOG_MAGIC UINT64_C(0x6a736677736872)
#define LOG_VERSION 1u
#define LOG_FLAG_FLUSH 1u

static bool log_entry_write(FILE *file, const struct event *event)
{
    uint8_t sector[SECTOR_SIZE] = {0};
    save64(sector, event->offset_bytes / SECTOR_SIZE);
    save64(sector + 8, event->length_bytes / SECTOR_SIZE);
    save64(sector + 16, event->length_bytes ? 0 : LOG_FLAG_FLUSH);
    if (fwrite(sector, sizeof sector, 1, file) != 1)
        return false;
    return event->length_bytes == 0 || fwrite(event->bytes, event->length_bytes, 1, file) == 1;
}

bool events_write_log(const struct event_list *first, const struct event_list *second, const char *path)
{
    FILE *file = fopen(path, "wb");
    uint8_t sector[SECTOR_SIZE] = {0};
    if (!file)
        return false;
    save64(sector, LOG_MAGIC);
    save64(sector + 8, LOG_VERSION);
    save64(sector + 16, first->count + second->count);
    save32(sector + 24, SECTOR_SIZE);
    bool written = fwrite(sector, sizeof sector, 1, file) == 1;
    for (size_t i = 0; i < first->count && written; i++)
        written = log_entry_write(file, &first->items[i]);
    for (size_t i = 0; i < second->count && written; i++)
        written = log_entry_write(file, &second->items[i]);
    return fclose(file) == 0 && written;
}
