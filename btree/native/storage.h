/* Storage: the only way the store touches a medium.
 *
 * Five operations, small enough to fake. Assumptions about the medium: a write is durable only after a later
 * flush() returned 0; unflushed writes may be lost, reordered among each other or torn at 512-byte boundaries;
 * a flush that failed leaves every write since the previous good flush in doubt, and is not retried.
 *
 * All functions return 0 or a negative errno. Transfers are whole or they fail. */
#ifndef BTREE_STORAGE_H
#define BTREE_STORAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct storage;

struct storage_operations {
    int (*read)(struct storage *storage, void *buffer, size_t length_bytes, uint64_t offset_bytes);
    int (*write)(struct storage *storage, const void *buffer, size_t length_bytes, uint64_t offset_bytes);
    int (*flush)(struct storage *storage);
    uint64_t (*size)(struct storage *storage);
    void (*close)(struct storage *storage);
};

/* First member of every implementation. */
struct storage {
    const struct storage_operations *operations;
};

/* A regular file or block device. Takes a BSD lock on it (exclusive, or shared when read_only) and, on a block
 * device, O_EXCL: -EBUSY when another process holds the pool. */
int storage_open_file(const char *path, bool read_only, struct storage **out);

/* Zero-filled memory of a fixed size. */
int storage_open_memory(uint64_t size_bytes, struct storage **out);

/* The test double: passes everything on to `inner` (which it owns), counts every operation and, when `record` is
 * set, keeps a copy of each write and the place of each flush. */
int storage_open_recorder(struct storage *inner, bool record, struct storage **out);

enum storage_event_kind { STORAGE_EVENT_WRITE = 1, STORAGE_EVENT_FLUSH = 2 };

struct storage_event {
    enum storage_event_kind kind;
    uint64_t offset_bytes;
    size_t length_bytes;
    unsigned char *bytes; /* owned by the recorder; NULL for a flush */
};

enum storage_fault_kind { STORAGE_FAULT_READ = 1, STORAGE_FAULT_WRITE = 2, STORAGE_FAULT_FLUSH = 4 };

/* From now on the operation number `index` (counted from 0 over the kinds in the mask, starting at this call) fails
 * with `error` (a positive errno); with `forever` all later ones of these kinds fail too. index < 0 clears. */
void storage_recorder_fail(struct storage *recorder, unsigned kinds_mask, int64_t index, int error, bool forever);
size_t storage_recorder_event_count(struct storage *recorder);
const struct storage_event *storage_recorder_event(struct storage *recorder, size_t index);
void storage_recorder_counts(struct storage *recorder, uint64_t *reads, uint64_t *writes, uint64_t *flushes);
bool storage_is_recorder(struct storage *storage);

#endif
