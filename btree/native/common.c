/* Small things that every part of the store uses. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "internal.h"

void failure_set(struct store_failure *failure, const char *format, ...)
{
    if (!failure)
        return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(failure->message, sizeof failure->message, format, arguments);
    va_end(arguments);
}

int storage_read(struct store *store, void *buffer, size_t length, uint64_t offset)
{
    atomic_fetch_add(&store->storage_reads, 1);
    atomic_fetch_add(&store->storage_read_bytes, length);
    return store->storage->operations->read(store->storage, buffer, length, offset);
}

int storage_write(struct store *store, const void *buffer, size_t length, uint64_t offset)
{
    if (store->read_only)
        return -EROFS;
    atomic_fetch_add(&store->storage_writes, 1);
    atomic_fetch_add(&store->storage_written_bytes, length);
    return store->storage->operations->write(store->storage, buffer, length, offset);
}

int storage_flush(struct store *store)
{
    atomic_fetch_add(&store->storage_flushes, 1);
    return store->storage->operations->flush(store->storage);
}

bool store_has_failed(const struct store *store)
{
    return atomic_load(&store->failed_errno) != 0;
}

void store_fail(struct store *store, int error)
{
    int expected = 0;
    atomic_compare_exchange_strong(&store->failed_errno, &expected, error < 0 ? -error : error);
}

int array_reserve(void **items, size_t *capacity, size_t count, size_t item_size)
{
    if (count <= *capacity)
        return 0;
    size_t wanted = *capacity ? *capacity * 2 : 16;
    while (wanted < count)
        wanted *= 2;
    void *grown = realloc(*items, wanted * item_size);
    if (!grown)
        return -ENOMEM;
    *items = grown;
    *capacity = wanted;
    return 0;
}

int range_list_add(struct range_list *list, uint64_t address, uint32_t blocks)
{
    if (list->count) {
        struct range *last = &list->items[list->count - 1];
        if (last->address + last->blocks == address && last->blocks < UINT32_MAX - blocks) {
            last->blocks += blocks;
            return 0;
        }
    }
    int result = array_reserve((void **)&list->items, &list->capacity, list->count + 1, sizeof *list->items);
    if (result == 0)
        list->items[list->count++] = (struct range){address, blocks};
    return result;
}

int dead_list_add(struct dead_list *list, uint64_t address, uint64_t birth, uint32_t blocks)
{
    int result = array_reserve((void **)&list->items, &list->capacity, list->count + 1, sizeof *list->items);
    if (result == 0)
        list->items[list->count++] = (struct dead_entry){address, birth, blocks};
    return result;
}

int buffer_reserve(struct byte_buffer *buffer, size_t more)
{
    return array_reserve((void **)&buffer->bytes, &buffer->capacity, buffer->length + more, 1);
}

void pointer_load(const uint8_t *from, struct tree_pointer *pointer)
{
    pointer->address[0] = load64(from + POINTER_ADDRESS);
    pointer->address[1] = load64(from + POINTER_COPY);
    pointer->checksum = load64(from + POINTER_CHECKSUM);
    pointer->birth = load64(from + POINTER_BIRTH);
}

void pointer_save(uint8_t *to, const struct tree_pointer *pointer)
{
    save64(to + POINTER_ADDRESS, pointer->address[0]);
    save64(to + POINTER_COPY, pointer->address[1]);
    save64(to + POINTER_CHECKSUM, pointer->checksum);
    save64(to + POINTER_BIRTH, pointer->birth);
}

void root_load(const uint8_t *from, struct tree_root *root)
{
    pointer_load(from, &root->pointer);
    root->level = from[ROOT_LEVEL];
    root->node_count = load32(from + ROOT_NODE_COUNT);
}

void root_save(uint8_t *to, const struct tree_root *root)
{
    memset(to, 0, ROOT_LENGTH);
    pointer_save(to, &root->pointer);
    to[ROOT_LEVEL] = root->level;
    save32(to + ROOT_NODE_COUNT, root->node_count);
}

uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

size_t store_extent_encode(const struct store_extent *extent, const uint64_t *checksums, uint8_t *out)
{
    save64(out + EXTENT_ADDRESS, extent->address);
    save64(out + EXTENT_BIRTH, extent->birth);
    save16(out + EXTENT_BLOCKS, extent->blocks);
    save16(out + EXTENT_LOGICAL_BLOCKS, extent->logical_blocks);
    out[EXTENT_COMPRESSION] = extent->compression;
    out[EXTENT_FLAGS] = extent->flags;
    save16(out + EXTENT_RESERVED, 0);
    for (uint32_t i = 0; i < extent->checksum_count; i++)
        save64(out + EXTENT_CHECKSUMS + i * 8u, checksums[i]);
    return EXTENT_CHECKSUMS + (size_t)extent->checksum_count * 8u;
}

int store_extent_decode(const void *value, size_t value_length, struct store_extent *out)
{
    const uint8_t *from = value;
    if (value_length < EXTENT_CHECKSUMS || value_length > STORE_EXTENT_LENGTH_MAX || (value_length & 7) != 0)
        return -EUCLEAN;
    out->address = load64(from + EXTENT_ADDRESS);
    out->birth = load64(from + EXTENT_BIRTH);
    out->blocks = load16(from + EXTENT_BLOCKS);
    out->logical_blocks = load16(from + EXTENT_LOGICAL_BLOCKS);
    out->compression = from[EXTENT_COMPRESSION];
    out->flags = from[EXTENT_FLAGS];
    out->checksum_count = (uint16_t)((value_length - EXTENT_CHECKSUMS) / 8);
    if (out->blocks == 0 || out->blocks > STORE_EXTENT_BLOCKS_MAX || out->logical_blocks == 0 ||
        out->logical_blocks > STORE_EXTENT_BLOCKS_MAX || load16(from + EXTENT_RESERVED) != 0)
        return -EUCLEAN;
    if (out->address == 0 || out->address >= (UINT64_C(1) << 52))
        return -EUCLEAN;
    if (out->compression == 0 ? out->checksum_count != out->blocks || out->logical_blocks != out->blocks
                              : out->checksum_count != 1)
        return -EUCLEAN;
    return 0;
}

uint64_t store_extent_checksum(const void *value, uint32_t index)
{
    return load64((const uint8_t *)value + EXTENT_CHECKSUMS + (size_t)index * 8u);
}

uint32_t store_item_length_max(const struct store *store)
{
    return page_item_length_max(store->node_size);
}
