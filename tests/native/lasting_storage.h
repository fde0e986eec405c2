/* A storage that outlives the store on it, for drivers that close and open again: close does nothing. */
#ifndef TESTS_LASTING_STORAGE_H
#define TESTS_LASTING_STORAGE_H

#include "btree/native/storage.h"

struct lasting_storage {
    struct storage base;
    struct storage *inner;
};

static int lasting_read(struct storage *storage, void *buffer, size_t length, uint64_t offset)
{
    struct storage *inner = ((struct lasting_storage *)storage)->inner;
    return inner->operations->read(inner, buffer, length, offset);
}

static int lasting_write(struct storage *storage, const void *buffer, size_t length, uint64_t offset)
{
    struct storage *inner = ((struct lasting_storage *)storage)->inner;
    return inner->operations->write(inner, buffer, length, offset);
}

static int lasting_flush(struct storage *storage)
{
    struct storage *inner = ((struct lasting_storage *)storage)->inner;
    return inner->operations->flush(inner);
}

static uint64_t lasting_size(struct storage *storage)
{
    struct storage *inner = ((struct lasting_storage *)storage)->inner;
    return inner->operations->size(inner);
}

static void lasting_close(struct storage *storage)
{
    (void)storage;
}

static const struct storage_operations lasting_operations = {
    .read = lasting_read,
    .write = lasting_write,
    .flush = lasting_flush,
    .size = lasting_size,
    .close = lasting_close,
};

#endif
