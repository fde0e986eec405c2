/* The ring of superblocks: each checkpoint writes the next slot, at the pool's start and at its end. */
#include <errno.h>

#include "internal.h"

static void superblock_pack(const struct superblock *superblock, uint8_t *block)
{
    memset(block, 0, STORE_BLOCK_SIZE);
    memcpy(block + SUPERBLOCK_MAGIC_AT, SUPERBLOCK_MAGIC, 8);
    save32(block + SUPERBLOCK_VERSION, superblock->version);
    save32(block + SUPERBLOCK_FLAGS, superblock->flags);
    memcpy(block + SUPERBLOCK_UUID, superblock->uuid, 16);
    memcpy(block + SUPERBLOCK_LABEL, superblock->label, 64);
    save64(block + SUPERBLOCK_SEQUENCE, superblock->sequence);
    save64(block + SUPERBLOCK_EPOCH, superblock->epoch);
    save64(block + SUPERBLOCK_SIZE_BLOCKS, superblock->size_blocks);
    save32(block + SUPERBLOCK_NODE_SIZE, superblock->node_size);
    save32(block + SUPERBLOCK_COPIES, superblock->copies);
    save64(block + SUPERBLOCK_JOURNAL_START, superblock->journal_start);
    save64(block + SUPERBLOCK_JOURNAL_BLOCKS, superblock->journal_blocks);
    save64(block + SUPERBLOCK_BITMAP_START, superblock->bitmap_start);
    save64(block + SUPERBLOCK_BITMAP_PAGES, superblock->bitmap_pages);
    save64(block + SUPERBLOCK_JOURNAL_POSITION, superblock->journal_position);
    save64(block + SUPERBLOCK_JOURNAL_SEQUENCE, superblock->journal_sequence);
    save64(block + SUPERBLOCK_NEXT_OBJECT_ID, superblock->next_object_id);
    save64(block + SUPERBLOCK_NEXT_QUEUE_ID, superblock->next_queue_id);
    root_save(block + SUPERBLOCK_ROOT, &superblock->root);
    save64(block + SUPERBLOCK_BITMAP_DIGEST, superblock->bitmap_digest);
    save64(block + SUPERBLOCK_CHECKSUM, store_checksum(block, SUPERBLOCK_CHECKSUM));
}

static void superblock_unpack(const uint8_t *block, struct superblock *superblock)
{
    superblock->version = load32(block + SUPERBLOCK_VERSION);
    superblock->flags = load32(block + SUPERBLOCK_FLAGS);
    memcpy(superblock->uuid, block + SUPERBLOCK_UUID, 16);
    memcpy(superblock->label, block + SUPERBLOCK_LABEL, 64);
    superblock->label[63] = 0;
    superblock->sequence = load64(block + SUPERBLOCK_SEQUENCE);
    superblock->epoch = load64(block + SUPERBLOCK_EPOCH);
    superblock->size_blocks = load64(block + SUPERBLOCK_SIZE_BLOCKS);
    superblock->node_size = load32(block + SUPERBLOCK_NODE_SIZE);
    superblock->copies = load32(block + SUPERBLOCK_COPIES);
    superblock->journal_start = load64(block + SUPERBLOCK_JOURNAL_START);
    superblock->journal_blocks = load64(block + SUPERBLOCK_JOURNAL_BLOCKS);
    superblock->bitmap_start = load64(block + SUPERBLOCK_BITMAP_START);
    superblock->bitmap_pages = load64(block + SUPERBLOCK_BITMAP_PAGES);
    superblock->journal_position = load64(block + SUPERBLOCK_JOURNAL_POSITION);
    superblock->journal_sequence = load64(block + SUPERBLOCK_JOURNAL_SEQUENCE);
    superblock->next_object_id = load64(block + SUPERBLOCK_NEXT_OBJECT_ID);
    superblock->next_queue_id = load64(block + SUPERBLOCK_NEXT_QUEUE_ID);
    root_load(block + SUPERBLOCK_ROOT, &superblock->root);
    superblock->bitmap_digest = load64(block + SUPERBLOCK_BITMAP_DIGEST);
}

/* Everything that later arithmetic relies on (invariant I8). */
static bool superblock_plausible(const struct superblock *superblock)
{
    const uint64_t blocks = superblock->size_blocks;
    if (blocks < STORE_POOL_SIZE_MIN_BYTES / STORE_BLOCK_SIZE || blocks > (UINT64_C(1) << 48))
        return false;
    if (superblock->node_size != 4096 && superblock->node_size != 8192 && superblock->node_size != 16384)
        return false;
    if (superblock->copies != 1 && superblock->copies != 2)
        return false;
    if (superblock->journal_start != SUPERBLOCK_RING_SLOTS ||
        superblock->journal_blocks < JOURNAL_SIZE_MIN_BYTES / STORE_BLOCK_SIZE ||
        superblock->journal_blocks > blocks / 2)
        return false;
    if (superblock->bitmap_start != superblock->journal_start + superblock->journal_blocks ||
        superblock->bitmap_pages != (blocks + BITMAP_BLOCKS_PER_PAGE - 1) / BITMAP_BLOCKS_PER_PAGE ||
        superblock->bitmap_pages * 2 >= blocks / 4)
        return false;
    if (superblock->journal_position % STORE_BLOCK_SIZE != 0 ||
        superblock->journal_position >= superblock->journal_blocks * STORE_BLOCK_SIZE)
        return false;
    return superblock->root.level < STORE_TREE_HEIGHT_MAX && superblock->sequence > 0 && superblock->epoch > 0 &&
           superblock->epoch < UINT64_MAX / 2 && superblock->next_object_id > 0;
}

int superblock_write(struct store *store, const struct superblock *superblock)
{
    uint8_t block[STORE_BLOCK_SIZE];
    superblock_pack(superblock, block);
    uint64_t slot = MUTATED(SUPERBLOCK_RING) ? 0 : superblock->sequence % SUPERBLOCK_RING_SLOTS;
    int result = storage_write(store, block, sizeof block, slot * STORE_BLOCK_SIZE);
    if (result == 0 && !MUTATED(SUPERBLOCK_SECOND))
        result = storage_write(store, block, sizeof block,
                               (superblock->size_blocks - SUPERBLOCK_RING_SLOTS + slot) * STORE_BLOCK_SIZE);
    return result;
}

enum slot_state { SLOT_FOREIGN, SLOT_BROKEN, SLOT_NEWER, SLOT_GOOD };

static enum slot_state slot_examine(const uint8_t *block, struct superblock *out)
{
    if (memcmp(block, SUPERBLOCK_MAGIC, 8) != 0)
        return SLOT_FOREIGN;
    if (store_checksum(block, SUPERBLOCK_CHECKSUM) != load64(block + SUPERBLOCK_CHECKSUM) &&
        !MUTATED(SUPERBLOCK_CHECKSUM))
        return SLOT_BROKEN;
    superblock_unpack(block, out);
    if (out->version > FORMAT_VERSION)
        return SLOT_NEWER;
    return out->version == FORMAT_VERSION && superblock_plausible(out) ? SLOT_GOOD : SLOT_BROKEN;
}

uint64_t superblock_sequence(const uint8_t *block)
{
    struct superblock superblock;
    return slot_examine(block, &superblock) == SLOT_GOOD ? superblock.sequence : 0;
}

int superblock_read(struct storage *storage, uint64_t sequence_max, struct superblock *out, uint64_t *newest,
                    struct store_failure *failure)
{
    uint64_t size = storage->operations->size(storage);
    uint64_t ring_bytes = SUPERBLOCK_RING_SLOTS * STORE_BLOCK_SIZE;
    *newest = 0;
    bool found = false, broken = false, newer = false;
    if (size < STORE_POOL_SIZE_MIN_BYTES) {
        /* it may still be the beginning of a pool that was cut short: say so if its first slots are ours */
        if (size < ring_bytes) {
            failure_set(failure, "not a cowfs pool: only %llu bytes long; make one with mkfs.cowfs",
                        (unsigned long long)size);
            return -EINVAL;
        }
    }
    uint64_t starts[2] = {0, size / STORE_BLOCK_SIZE * STORE_BLOCK_SIZE - ring_bytes};
    for (int ring = 0; ring < 2 - MUTATED(SUPERBLOCK_SECOND_READ); ring++) {
        for (uint64_t slot = 0; slot < SUPERBLOCK_RING_SLOTS; slot++) {
            uint8_t block[STORE_BLOCK_SIZE];
            struct superblock candidate;
            int result = storage->operations->read(storage, block, sizeof block,
                                                   starts[ring] + slot * STORE_BLOCK_SIZE);
            if (result < 0) {
                broken = true;
                continue;
            }
            enum slot_state state = slot_examine(block, &candidate);
            broken |= state == SLOT_BROKEN;
            newer |= state == SLOT_NEWER;
            if (state == SLOT_GOOD && candidate.sequence > *newest)
                *newest = candidate.sequence;
            if (state == SLOT_GOOD && candidate.sequence <= sequence_max &&
                (!found || (candidate.sequence > out->sequence && !MUTATED(SUPERBLOCK_NEWEST)))) {
                *out = candidate;
                found = true;
            }
        }
    }
    if (newer) {
        failure_set(failure, "the pool's format is newer than version %u, which this program knows; use a newer cowfs",
                    FORMAT_VERSION);
        return -EPROTONOSUPPORT;
    }
    if (!found) {
        failure_set(failure, broken ? "no superblock of the pool is readable; restore it from a backup"
                                    : "not a cowfs pool; make one with mkfs.cowfs");
        return broken ? -EIO : -EINVAL;
    }
    if (size / STORE_BLOCK_SIZE < out->size_blocks) {
        failure_set(failure, "the pool is truncated: %llu bytes where it was made with %llu; restore its full length",
                    (unsigned long long)size, (unsigned long long)(out->size_blocks * STORE_BLOCK_SIZE));
        return -EIO;
    }
    return 0;
}
