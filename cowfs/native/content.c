/* What compressed extents hold: reading it, with the last few kept expanded for readers of small parts, and storing.
 *
 * An expanded extent is kept under the address and the checksum of what is on the medium: an extent that has both holds
 * these bytes, so nothing has to be told when extents come and go. */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>

/* Codecs kept for later, of 256 KiB and contexts each; more threads than that at a time make their own. */
#define SPARE_CODECS_MAX 4u

void contents_init(struct contents *contents)
{
    pthread_mutex_init(&contents->mutex, NULL);
}

void contents_destroy(struct contents *contents)
{
    for (struct codec *codec = contents->spare, *next; codec != NULL; codec = next) {
        next = codec->next;
        codec_free(codec);
    }
    for (size_t at = 0; at < CONTENT_SLOTS; at++)
        free(contents->slots[at].bytes);
    pthread_mutex_destroy(&contents->mutex);
}

/* ---- codecs -------------------------------------------------------------------------------------------------- */

struct codec *codec_take(struct filesystem *filesystem)
{
    struct contents *contents = &filesystem->contents;
    pthread_mutex_lock(&contents->mutex);
    struct codec *codec = contents->spare;
    if (codec != NULL) {
        contents->spare = codec->next;
        contents->spare_count--;
    }
    pthread_mutex_unlock(&contents->mutex);
    return codec != NULL ? codec : codec_new();
}

void codec_give(struct filesystem *filesystem, struct codec *codec)
{
    struct contents *contents = &filesystem->contents;
    pthread_mutex_lock(&contents->mutex);
    bool keep = contents->spare_count < SPARE_CODECS_MAX;
    if (keep) {
        codec->next = contents->spare;
        contents->spare = codec;
        contents->spare_count++;
    }
    pthread_mutex_unlock(&contents->mutex);
    if (!keep)
        codec_free(codec);
}

/* ---- reading ------------------------------------------------------------------------------------------------- */

int content_fetch(struct filesystem *filesystem, struct codec *codec, const struct block_address *block, uint8_t *out)
{
    int status = store_data_read(filesystem->store, block->address, block->stored_blocks, codec->stored);
    if (status != 0)
        return status;
    if (store_checksum(codec->stored, (size_t)block->stored_blocks * STORE_BLOCK_SIZE) != block->checksum &&
        !MUTATED(CONTENT_CHECKSUM))
        return -EBADMSG;
    status = codec_expand(codec, block->compression, block->stored_blocks, block->blocks, out);
    if (status != -EUCLEAN)
        return status;
    /* It was written like this: the same at every look. */
    store_note_data_mismatch(filesystem->store, block->address);
    return -EIO;
}

/* With the mutex held; NULL when the extent is not kept. */
static struct content_slot *slot_find(struct contents *contents, const struct block_address *block)
{
    for (size_t at = 0; at < CONTENT_SLOTS; at++) {
        struct content_slot *slot = &contents->slots[at];
        if (slot->address == block->address && slot->checksum == block->checksum && slot->blocks == block->blocks &&
            slot->compression == block->compression)
            return slot;
    }
    return NULL;
}

static bool slot_copy(struct contents *contents, const struct block_address *block, uint32_t from, uint32_t length,
                      uint8_t *out)
{
    pthread_mutex_lock(&contents->mutex);
    struct content_slot *slot = slot_find(contents, block);
    if (slot != NULL) {
        slot->used = ++contents->uses;
        slot->readers++;
    }
    pthread_mutex_unlock(&contents->mutex);
    if (slot == NULL)
        return false;
    memcpy(out, slot->bytes + from, length);
    pthread_mutex_lock(&contents->mutex);
    slot->readers--;
    pthread_mutex_unlock(&contents->mutex);
    return true;
}

/* Keeps what the codec holds, in exchange for the content used longest ago. */
static void slot_fill(struct contents *contents, const struct block_address *block, struct codec *codec)
{
    pthread_mutex_lock(&contents->mutex);
    struct content_slot *slot = NULL;
    for (size_t at = 0; at < CONTENT_SLOTS; at++) {
        struct content_slot *other = &contents->slots[at];
        if (other->readers == 0 && (slot == NULL || other->used < slot->used))
            slot = other;
    }
    if (slot != NULL && slot_find(contents, block) == NULL) {
        uint8_t *bytes = slot->bytes;
        *slot = (struct content_slot){.address = block->address,
                                      .checksum = block->checksum,
                                      .blocks = block->blocks,
                                      .compression = block->compression,
                                      .used = ++contents->uses,
                                      .bytes = codec->content};
        codec->content = bytes;
    }
    pthread_mutex_unlock(&contents->mutex);
}

int content_read(struct filesystem *filesystem, const struct block_address *block, uint32_t from, uint32_t length,
                 uint8_t *out)
{
    struct contents *contents = &filesystem->contents;
    bool whole = from == 0 && length == block->blocks * STORE_BLOCK_SIZE;
    if (slot_copy(contents, block, from, length, out))
        return 0;
    struct codec *codec = codec_take(filesystem);
    if (codec == NULL)
        return -ENOMEM;
    int status = content_fetch(filesystem, codec, block, whole ? out : codec->content);
    if (status == 0 && !whole) {
        memcpy(out, codec->content + from, length);
        slot_fill(contents, block, codec);
    }
    if (codec->content == NULL)
        codec->content = aligned_alloc(STORE_BLOCK_SIZE, COMPRESSION_BYTES_MAX);
    if (codec->content == NULL)
        codec_free(codec);
    else
        codec_give(filesystem, codec);
    return status;
}

/* ---- whom to compress for ------------------------------------------------------------------------------------- */

/* The first failure skips 2 units of the file, each further one twice as many, up to 64: 8 MiB. */
#define SKIPS_SHIFT_MAX 6u

/* Of what is remembered: 32 bits of the file, then how often it failed, then how many units are still skipped. */
static atomic_uint_fast64_t *attempts_slot(struct filesystem *filesystem, const struct place *place, uint64_t *file)
{
    uint64_t hash = (place->inode * UINT64_C(0x9e3779b97f4a7c15)) ^ (place->object_id * UINT64_C(0xc2b2ae3d27d4eb4f));
    *file = hash & ~UINT64_C(0xffffffff);
    return &filesystem->contents.attempts[(hash >> 16) % ATTEMPTS_SLOTS];
}

bool attempts_allowed(struct filesystem *filesystem, const struct place *place)
{
    uint64_t file;
    atomic_uint_fast64_t *slot = attempts_slot(filesystem, place, &file);
    uint64_t value = atomic_load_explicit(slot, memory_order_relaxed);
    if (value >> 32 != file >> 32 || (value & 0xffff) == 0)
        return true;
    atomic_store_explicit(slot, value - 1, memory_order_relaxed);
    return false;
}

bool attempts_promise(struct filesystem *filesystem, const struct place *place)
{
    uint64_t file;
    uint64_t value = atomic_load_explicit(attempts_slot(filesystem, place, &file), memory_order_relaxed);
    return value == 0 || value >> 32 != file >> 32;
}

void attempts_note(struct filesystem *filesystem, const struct place *place, bool saved)
{
    uint64_t file;
    atomic_uint_fast64_t *slot = attempts_slot(filesystem, place, &file);
    uint64_t value = atomic_load_explicit(slot, memory_order_relaxed);
    bool same = value >> 32 == file >> 32;
    uint64_t failures = same ? value >> 16 & 0xffff : 0;
    if (saved && same && value != 0)
        atomic_store_explicit(slot, 0, memory_order_relaxed);
    if (saved)
        return;
    failures += failures < SKIPS_SHIFT_MAX ? 1 : 0;
    atomic_store_explicit(slot, file | failures << 16 | UINT64_C(1) << failures, memory_order_relaxed);
}

/* ---- storing ------------------------------------------------------------------------------------------------- */

/* As they are, `run->blocks` of the blocks. */
static void run_fill(const struct store_reservation *reservation, const uint8_t *content, struct stored_run *run,
                     uint64_t *checksums)
{
    memcpy(reservation->memory, content, (size_t)run->blocks * STORE_BLOCK_SIZE);
    for (uint32_t at = 0; at < run->blocks; at++)
        checksums[at] = store_checksum(reservation->memory + (size_t)at * STORE_BLOCK_SIZE, STORE_BLOCK_SIZE);
}

int run_store(struct store *store, const uint8_t *content, uint32_t blocks, bool use_reserve, struct stored_run *run,
              uint64_t *checksums)
{
    struct store_reservation reservation;
    int status = store_data_reserve(store, blocks, use_reserve, &reservation);
    if (status != 0)
        return status;
    *run = (struct stored_run){
        .address = reservation.address, .blocks = reservation.blocks, .content_blocks = reservation.blocks};
    run_fill(&reservation, content, run, checksums);
    store_data_complete(store, &reservation);
    return 0;
}

int run_store_compressed(struct store *store, const struct compressed *compressed, const uint8_t *content,
                         uint32_t blocks, bool use_reserve, struct stored_run *run, uint64_t *checksums)
{
    struct store_reservation reservation;
    run->content_blocks = 0;
    if (compressed->blocks == 0)
        return 0;
    int status = store_data_reserve(store, compressed->blocks, use_reserve, &reservation);
    if (status != 0)
        return status;
    *run = (struct stored_run){.address = reservation.address, .blocks = reservation.blocks};
    if (reservation.blocks < compressed->blocks) {
        run->content_blocks = reservation.blocks;
        run_fill(&reservation, content, run, checksums);
    } else {
        run->content_blocks = blocks;
        run->compression = compressed->algorithm;
        memcpy(reservation.memory, compressed->bytes, (size_t)compressed->blocks * STORE_BLOCK_SIZE);
        run->checksum = store_checksum(reservation.memory, (size_t)compressed->blocks * STORE_BLOCK_SIZE);
    }
    store_data_complete(store, &reservation);
    return 0;
}

void runs_release(struct store *store, const struct stored_run *runs, uint32_t *count)
{
    for (; *count != 0; (*count)--)
        store_data_release(store, runs[*count - 1].address, runs[*count - 1].blocks);
}

void runs_count(struct filesystem *filesystem, const struct stored_run *runs, uint32_t count)
{
    struct contents *contents = &filesystem->contents;
    for (uint32_t at = 0; at < count; at++) {
        if (runs[at].compression == COMPRESSION_OFF)
            continue;
        atomic_fetch_add_explicit(&contents->compressed_blocks, runs[at].content_blocks, memory_order_relaxed);
        atomic_fetch_add_explicit(&contents->stored_blocks, runs[at].blocks, memory_order_relaxed);
    }
}

void filesystem_compression(struct filesystem *filesystem, uint64_t *content_blocks, uint64_t *stored_blocks)
{
    *content_blocks = atomic_load_explicit(&filesystem->contents.compressed_blocks, memory_order_relaxed);
    *stored_blocks = atomic_load_explicit(&filesystem->contents.stored_blocks, memory_order_relaxed);
}

int runs_put(struct transaction *transaction, struct inode *inode, uint64_t logical, const struct stored_run *runs,
             uint32_t count, const uint64_t *checksums, struct extent_piece *before)
{
    for (uint32_t run = 0, at = 0; run < count; at += runs[run++].content_blocks) {
        if (runs[run].compression == COMPRESSION_OFF) {
            TRY(extent_add(transaction, inode, logical + at, runs[run].address, runs[run].blocks, checksums + at,
                           before));
            continue;
        }
        const struct store_extent extent = {.address = runs[run].address,
                                            .blocks = (uint16_t)runs[run].blocks,
                                            .logical_blocks = (uint16_t)runs[run].content_blocks,
                                            .compression = runs[run].compression};
        TRY(extent_add_compressed(transaction, inode, logical + at, &extent, runs[run].checksum, before));
    }
    return 0;
}
