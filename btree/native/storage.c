/* Storage on a file or block device, in memory, and the recorder that tests put in between.
 *
 * Operations may be called from several threads at once. Transfers are checked against the size found at opening,
 * before anything is touched: a transfer past the end is -EIO. */
#define _GNU_SOURCE /* O_DIRECT */
#include "storage.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static bool range_is_inside(uint64_t size_bytes, size_t length_bytes, uint64_t offset_bytes)
{
    return offset_bytes <= size_bytes && length_bytes <= size_bytes - offset_bytes;
}

/* ---- file or block device ------------------------------------------------------------------------------------ */

/* Transfers from this length on go past the page cache, where memory and offset are aligned: what they carry is cached
 * above already, and the kernel reads a device for the page cache in pieces of 128 KiB, with a wait for each. Small
 * ones stay in it, so that one flush writes several at once. */
#define DIRECT_LENGTH_MIN_BYTES (64u << 10)
#define DIRECT_ALIGNMENT_BYTES 4096u

struct file_storage {
    struct storage base;
    int descriptor;
    atomic_int direct_descriptor; /* the same, opened with O_DIRECT; -1: not to be had */
    int opened_direct; /* that descriptor, to be closed, also when it is not used any more */
    bool read_only;
    uint64_t size_bytes;
};

/* Which descriptor a transfer uses. */
static int descriptor_for(struct file_storage *file, const void *buffer, size_t length_bytes, uint64_t offset_bytes)
{
    int direct = atomic_load_explicit(&file->direct_descriptor, memory_order_relaxed);
    bool is_aligned = ((uintptr_t)buffer | length_bytes | offset_bytes) % DIRECT_ALIGNMENT_BYTES == 0;
    return direct >= 0 && is_aligned && length_bytes >= DIRECT_LENGTH_MIN_BYTES ? direct : file->descriptor;
}

/* A file system may take O_DIRECT at opening and refuse it later; the transfer is then made the other way. */
static bool direct_refused(struct file_storage *file, int descriptor, int error)
{
    if (descriptor == file->descriptor || error != EINVAL) {
        return false;
    }
    atomic_store_explicit(&file->direct_descriptor, -1, memory_order_relaxed);
    return true;
}

static int file_read(struct storage *storage, void *buffer, size_t length_bytes, uint64_t offset_bytes)
{
    struct file_storage *file = (struct file_storage *)storage;
    size_t done_bytes = 0;

    if (!range_is_inside(file->size_bytes, length_bytes, offset_bytes)) {
        return -EIO;
    }
    while (done_bytes < length_bytes) {
        char *to = (char *)buffer + done_bytes;
        int descriptor = descriptor_for(file, to, length_bytes - done_bytes, offset_bytes + done_bytes);
        ssize_t count = pread(descriptor, to, length_bytes - done_bytes, (off_t)(offset_bytes + done_bytes));
        if (count < 0 && (errno == EINTR || direct_refused(file, descriptor, errno))) {
            continue;
        }
        if (count < 0) {
            return -errno;
        }
        if (count == 0) { /* the file has been cut since it was opened */
            return -EIO;
        }
        done_bytes += (size_t)count;
    }
    return 0;
}

static int file_write(struct storage *storage, const void *buffer, size_t length_bytes, uint64_t offset_bytes)
{
    struct file_storage *file = (struct file_storage *)storage;
    size_t done_bytes = 0;

    if (file->read_only) {
        return -EROFS;
    }
    if (!range_is_inside(file->size_bytes, length_bytes, offset_bytes)) {
        return -EIO;
    }
    while (done_bytes < length_bytes) {
        const char *from = (const char *)buffer + done_bytes;
        int descriptor = descriptor_for(file, from, length_bytes - done_bytes, offset_bytes + done_bytes);
        ssize_t count = pwrite(descriptor, from, length_bytes - done_bytes, (off_t)(offset_bytes + done_bytes));
        if (count < 0 && (errno == EINTR || direct_refused(file, descriptor, errno))) {
            continue;
        }
        if (count < 0) {
            return -errno;
        }
        if (count == 0) {
            return -EIO;
        }
        done_bytes += (size_t)count;
    }
    return 0;
}

static int file_flush(struct storage *storage)
{
    struct file_storage *file = (struct file_storage *)storage;

    return fdatasync(file->descriptor) == 0 ? 0 : -errno;
}

static uint64_t file_size(struct storage *storage)
{
    return ((struct file_storage *)storage)->size_bytes;
}

static void file_close(struct storage *storage)
{
    struct file_storage *file = (struct file_storage *)storage;

    if (file->opened_direct >= 0) {
        (void)close(file->opened_direct);
    }
    (void)close(file->descriptor); /* releases the lock; what had to be durable was flushed before */
    free(file);
}

static const struct storage_operations file_operations = {
    .read = file_read,
    .write = file_write,
    .flush = file_flush,
    .size = file_size,
    .close = file_close,
};

/* -EINVAL for what is neither a regular file nor a block device. */
static int file_measure(int descriptor, uint64_t *size_bytes)
{
    struct stat status;

    if (fstat(descriptor, &status) != 0) {
        return -errno;
    }
    if (S_ISREG(status.st_mode)) {
        *size_bytes = (uint64_t)status.st_size;
        return 0;
    }
    if (S_ISBLK(status.st_mode)) {
        return ioctl(descriptor, BLKGETSIZE64, size_bytes) == 0 ? 0 : -errno;
    }
    return S_ISDIR(status.st_mode) ? -EISDIR : -EINVAL;
}

/* Through /proc, so that it is the very file that is locked. */
static void file_open_direct(struct file_storage *file)
{
    char name[32];

    (void)snprintf(name, sizeof(name), "/proc/self/fd/%d", file->descriptor);
    file->opened_direct = open(name, (file->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK | O_DIRECT);
    atomic_init(&file->direct_descriptor, file->opened_direct);
}

int storage_open_file(const char *path, bool read_only, struct storage **out)
{
    struct stat status;
    struct file_storage *file = NULL;
    /* O_NONBLOCK: opening a FIFO by mistake must not hang; it changes nothing for files and block devices. */
    int flags = (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK;
    int result;

    *out = NULL;
    if (stat(path, &status) != 0) {
        return -errno;
    }
    if (S_ISDIR(status.st_mode)) {
        return -EISDIR;
    }
    if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) {
        return -EINVAL;
    }
    if (S_ISBLK(status.st_mode)) {
        flags |= O_EXCL; /* without O_CREAT: refuses a device that is mounted or claimed otherwise */
    }
    file = calloc(1, sizeof(*file));
    if (file == NULL) {
        return -ENOMEM;
    }
    file->base.operations = &file_operations;
    file->read_only = read_only;
    file->descriptor = open(path, flags);
    if (file->descriptor < 0) {
        result = -errno;
        goto done;
    }
    if (flock(file->descriptor, (read_only ? LOCK_SH : LOCK_EX) | LOCK_NB) != 0) {
        result = errno == EWOULDBLOCK ? -EBUSY : -errno;
        goto done;
    }
    result = file_measure(file->descriptor, &file->size_bytes);
    if (result == 0) {
        file_open_direct(file);
        *out = &file->base;
        file = NULL;
    }
done:
    if (file != NULL) {
        if (file->descriptor >= 0) {
            (void)close(file->descriptor);
        }
        free(file);
    }
    return result;
}

/* ---- memory -------------------------------------------------------------------------------------------------- */

struct memory_storage {
    struct storage base;
    uint64_t size_bytes;
    unsigned char *bytes;
    pthread_rwlock_t lock; /* a medium tears no more than sectors; memcpy without a lock would tear anywhere */
};

static int memory_read(struct storage *storage, void *buffer, size_t length_bytes, uint64_t offset_bytes)
{
    struct memory_storage *memory = (struct memory_storage *)storage;

    if (!range_is_inside(memory->size_bytes, length_bytes, offset_bytes)) {
        return -EIO;
    }
    if (length_bytes > 0) {
        pthread_rwlock_rdlock(&memory->lock);
        memcpy(buffer, memory->bytes + offset_bytes, length_bytes);
        pthread_rwlock_unlock(&memory->lock);
    }
    return 0;
}

static int memory_write(struct storage *storage, const void *buffer, size_t length_bytes, uint64_t offset_bytes)
{
    struct memory_storage *memory = (struct memory_storage *)storage;

    if (!range_is_inside(memory->size_bytes, length_bytes, offset_bytes)) {
        return -EIO;
    }
    if (length_bytes > 0) {
        pthread_rwlock_wrlock(&memory->lock);
        memcpy(memory->bytes + offset_bytes, buffer, length_bytes);
        pthread_rwlock_unlock(&memory->lock);
    }
    return 0;
}

static int memory_flush(struct storage *storage)
{
    (void)storage;
    return 0;
}

static uint64_t memory_size(struct storage *storage)
{
    return ((struct memory_storage *)storage)->size_bytes;
}

static void memory_close(struct storage *storage)
{
    struct memory_storage *memory = (struct memory_storage *)storage;

    (void)munmap(memory->bytes, memory->size_bytes);
    pthread_rwlock_destroy(&memory->lock);
    free(memory);
}

static const struct storage_operations memory_operations = {
    .read = memory_read,
    .write = memory_write,
    .flush = memory_flush,
    .size = memory_size,
    .close = memory_close,
};

int storage_open_memory(uint64_t size_bytes, struct storage **out)
{
    struct memory_storage *memory = NULL;
    int result = -ENOMEM;

    *out = NULL;
    if (size_bytes == 0 || size_bytes > SIZE_MAX) {
        return -EINVAL;
    }
    memory = calloc(1, sizeof(*memory));
    if (memory == NULL) {
        return -ENOMEM;
    }
    memory->base.operations = &memory_operations;
    memory->size_bytes = size_bytes;
    /* Mapped, not allocated: pages that nobody writes cost nothing. */
    memory->bytes = mmap(NULL, (size_t)size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                         -1, 0);
    if (memory->bytes == MAP_FAILED) {
        result = -errno;
        goto done;
    }
    result = -pthread_rwlock_init(&memory->lock, NULL);
    if (result != 0) {
        (void)munmap(memory->bytes, (size_t)size_bytes);
        goto done;
    }
    *out = &memory->base;
    memory = NULL;
done:
    free(memory);
    return result;
}

/* ---- recorder ------------------------------------------------------------------------------------------------ */

struct recorder {
    struct storage base;
    struct storage *inner;
    bool record;
    /* Guards all below, and is held across writes and flushes of the inner storage: so a write that is recorded
     * before a flush was complete before that flush began. */
    pthread_mutex_t mutex;
    struct storage_event **events; /* each allocated by itself, so that a pointer handed out stays valid */
    size_t event_count;
    size_t event_capacity;
    uint64_t reads;
    uint64_t writes;
    uint64_t flushes;
    unsigned fault_mask; /* 0: none armed */
    uint64_t fault_countdown;
    int fault_error;
    bool fault_forever;
};

/* What the fault in force says to this operation: 0, or the negative errno it has to fail with. Mutex held. */
static int recorder_fault(struct recorder *recorder, unsigned kind)
{
    if ((recorder->fault_mask & kind) == 0) {
        return 0;
    }
    if (recorder->fault_countdown > 0) {
        recorder->fault_countdown--;
        return 0;
    }
    if (!recorder->fault_forever) {
        recorder->fault_mask = 0;
    }
    return -recorder->fault_error;
}

/* Room for one more event and the event itself, not yet counted; NULL without memory. Mutex held. */
static struct storage_event *recorder_prepare_event(struct recorder *recorder, size_t length_bytes)
{
    struct storage_event *event;

    if (recorder->event_count == recorder->event_capacity) {
        size_t capacity = recorder->event_capacity > 0 ? 2 * recorder->event_capacity : 256;
        struct storage_event **events = realloc(recorder->events, capacity * sizeof(*events));

        if (events == NULL) {
            return NULL;
        }
        recorder->events = events;
        recorder->event_capacity = capacity;
    }
    event = calloc(1, sizeof(*event));
    if (event != NULL && length_bytes > 0) {
        event->bytes = malloc(length_bytes);
        if (event->bytes == NULL) {
            free(event);
            event = NULL;
        }
    }
    return event;
}

static void event_free(struct storage_event *event)
{
    if (event != NULL) {
        free(event->bytes);
        free(event);
    }
}

/* Unlocks: what happened is recorded, what failed is not. */
static int recorder_end(struct recorder *recorder, struct storage_event *event, int result)
{
    if (result == 0 && event != NULL) {
        recorder->events[recorder->event_count++] = event;
        event = NULL;
    }
    pthread_mutex_unlock(&recorder->mutex);
    event_free(event);
    return result;
}

static int recorder_read(struct storage *storage, void *buffer, size_t length_bytes, uint64_t offset_bytes)
{
    struct recorder *recorder = (struct recorder *)storage;
    int result;

    pthread_mutex_lock(&recorder->mutex);
    recorder->reads++;
    result = recorder_fault(recorder, STORAGE_FAULT_READ);
    pthread_mutex_unlock(&recorder->mutex);
    if (result != 0) {
        return result;
    }
    return recorder->inner->operations->read(recorder->inner, buffer, length_bytes, offset_bytes);
}

static int recorder_write(struct storage *storage, const void *buffer, size_t length_bytes, uint64_t offset_bytes)
{
    struct recorder *recorder = (struct recorder *)storage;
    struct storage_event *event = NULL;
    int result;

    pthread_mutex_lock(&recorder->mutex);
    recorder->writes++;
    result = recorder_fault(recorder, STORAGE_FAULT_WRITE);
    if (result != 0) {
        goto done;
    }
    if (recorder->record) {
        event = recorder_prepare_event(recorder, length_bytes);
        if (event == NULL) {
            result = -ENOMEM;
            goto done;
        }
        event->kind = STORAGE_EVENT_WRITE;
        event->offset_bytes = offset_bytes;
        event->length_bytes = length_bytes;
        if (length_bytes > 0) {
            memcpy(event->bytes, buffer, length_bytes);
        }
        buffer = event->bytes; /* the medium gets what the record has, even if the caller's memory changes meanwhile */
    }
    result = recorder->inner->operations->write(recorder->inner, buffer, length_bytes, offset_bytes);
done:
    return recorder_end(recorder, event, result);
}

static int recorder_flush(struct storage *storage)
{
    struct recorder *recorder = (struct recorder *)storage;
    struct storage_event *event = NULL;
    int result;

    pthread_mutex_lock(&recorder->mutex);
    recorder->flushes++;
    result = recorder_fault(recorder, STORAGE_FAULT_FLUSH);
    if (result != 0) {
        goto done;
    }
    if (recorder->record) {
        event = recorder_prepare_event(recorder, 0);
        if (event == NULL) {
            result = -ENOMEM;
            goto done;
        }
        event->kind = STORAGE_EVENT_FLUSH;
    }
    result = recorder->inner->operations->flush(recorder->inner);
done:
    return recorder_end(recorder, event, result);
}

static uint64_t recorder_size(struct storage *storage)
{
    struct recorder *recorder = (struct recorder *)storage;

    return recorder->inner->operations->size(recorder->inner);
}

static void recorder_close(struct storage *storage)
{
    struct recorder *recorder = (struct recorder *)storage;

    recorder->inner->operations->close(recorder->inner);
    for (size_t index = 0; index < recorder->event_count; index++) {
        event_free(recorder->events[index]);
    }
    free(recorder->events);
    pthread_mutex_destroy(&recorder->mutex);
    free(recorder);
}

static const struct storage_operations recorder_operations = {
    .read = recorder_read,
    .write = recorder_write,
    .flush = recorder_flush,
    .size = recorder_size,
    .close = recorder_close,
};

int storage_open_recorder(struct storage *inner, bool record, struct storage **out)
{
    struct recorder *recorder = calloc(1, sizeof(*recorder));
    int result;

    *out = NULL;
    if (recorder == NULL) {
        return -ENOMEM;
    }
    result = -pthread_mutex_init(&recorder->mutex, NULL);
    if (result != 0) {
        free(recorder);
        return result;
    }
    recorder->base.operations = &recorder_operations;
    recorder->inner = inner;
    recorder->record = record;
    *out = &recorder->base;
    return 0;
}

void storage_recorder_fail(struct storage *storage, unsigned kinds_mask, int64_t index, int error, bool forever)
{
    struct recorder *recorder = (struct recorder *)storage;

    pthread_mutex_lock(&recorder->mutex);
    recorder->fault_mask = index < 0 ? 0 : kinds_mask;
    recorder->fault_countdown = index < 0 ? 0 : (uint64_t)index;
    recorder->fault_error = error;
    recorder->fault_forever = forever;
    pthread_mutex_unlock(&recorder->mutex);
}

size_t storage_recorder_event_count(struct storage *storage)
{
    struct recorder *recorder = (struct recorder *)storage;
    size_t count;

    pthread_mutex_lock(&recorder->mutex);
    count = recorder->event_count;
    pthread_mutex_unlock(&recorder->mutex);
    return count;
}

const struct storage_event *storage_recorder_event(struct storage *storage, size_t index)
{
    struct recorder *recorder = (struct recorder *)storage;
    const struct storage_event *event;

    pthread_mutex_lock(&recorder->mutex);
    event = index < recorder->event_count ? recorder->events[index] : NULL;
    pthread_mutex_unlock(&recorder->mutex);
    return event;
}

void storage_recorder_counts(struct storage *storage, uint64_t *reads, uint64_t *writes, uint64_t *flushes)
{
    struct recorder *recorder = (struct recorder *)storage;

    pthread_mutex_lock(&recorder->mutex);
    *reads = recorder->reads;
    *writes = recorder->writes;
    *flushes = recorder->flushes;
    pthread_mutex_unlock(&recorder->mutex);
}

bool storage_is_recorder(struct storage *storage)
{
    return storage->operations == &recorder_operations;
}
