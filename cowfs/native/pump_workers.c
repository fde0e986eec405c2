/* Threads for what would hold up the other requests of a CPU: fsyncs where a flush is slow, large reads, which then go
 * on beside the copying of what was read before, and large writes that are compressed. They give each entry back to its
 * ring when it is answered.
 *
 * Writes may overtake one another, as on /dev/fuse: the kernel sends none that overlaps one under way, but for programs
 * that write the same bytes at the same time. */
#include "pump_internal.h"

#include <errno.h>
#include <stdlib.h>

#define READERS 2u
/* The pieces of each write are compressed by all CPUs (compressors.c): one more write keeps these busy while the first
 * is stored. */
#define WRITERS 2u

struct work_list {
    struct pump_entry *first, *last;
    pthread_cond_t condition;
};

struct pump_workers {
    struct pump *pump;
    pthread_mutex_t mutex; /* guards what follows */
    struct work_list commits, reads, writes;
    bool ending;
};

static void append(struct pump_workers *workers, struct work_list *list, struct pump_entry *entry)
{
    pthread_mutex_lock(&workers->mutex);
    *pump_entry_link(entry) = NULL;
    if (list->last != NULL)
        *pump_entry_link(list->last) = entry;
    else
        list->first = entry;
    list->last = entry;
    pthread_cond_signal(&list->condition);
    pthread_mutex_unlock(&workers->mutex);
}

void pump_workers_commit(struct pump_workers *workers, struct pump_entry *entry)
{
    append(workers, &workers->commits, entry);
}

void pump_workers_read(struct pump_workers *workers, struct pump_entry *entry)
{
    append(workers, &workers->reads, entry);
}

void pump_workers_write(struct pump_workers *workers, struct pump_entry *entry)
{
    append(workers, &workers->writes, entry);
}

/* Waits for work; `all`: takes everything there is, else the oldest. NULL: the end. */
static struct pump_entry *take(struct pump_workers *workers, struct work_list *list, bool all)
{
    pthread_mutex_lock(&workers->mutex);
    while (list->first == NULL && !workers->ending)
        pthread_cond_wait(&list->condition, &workers->mutex);
    struct pump_entry *entry = workers->ending ? NULL : list->first;
    if (entry != NULL) {
        list->first = all ? NULL : *pump_entry_link(entry);
        if (list->first == NULL)
            list->last = NULL;
        if (!all)
            *pump_entry_link(entry) = NULL;
    }
    pthread_mutex_unlock(&workers->mutex);
    return entry;
}

static void answered(struct pump_counters *counters, struct pump_entry *entry)
{
    if (counters != NULL)
        pump_entry_count(entry, counters);
    pump_uring_answered(entry);
}

static void *serve_commits(void *argument)
{
    struct pump_workers *workers = argument;
    struct pump_counters *counters = pump_counters_create(workers->pump);
    struct pump_entry *entry;
    while ((entry = take(workers, &workers->commits, true)) != NULL) {
        for (bool done = false; entry != NULL;) {
            struct pump_entry *next = *pump_entry_link(entry);
            pump_entry_commit(entry, &done);
            answered(counters, entry);
            entry = next;
        }
    }
    return NULL;
}

static void serve(struct pump_workers *workers, struct work_list *list)
{
    struct pump_counters *counters = pump_counters_create(workers->pump);
    struct pump_entry *entry;
    while ((entry = take(workers, list, false)) != NULL) {
        pump_entry_handle(entry);
        answered(counters, entry);
    }
}

static void *serve_reads(void *argument)
{
    struct pump_workers *workers = argument;
    serve(workers, &workers->reads);
    return NULL;
}

static void *serve_writes(void *argument)
{
    struct pump_workers *workers = argument;
    serve(workers, &workers->writes);
    return NULL;
}

int pump_workers_start(struct pump *pump, struct pump_workers **out)
{
    struct pump_workers *workers = calloc(1, sizeof *workers);
    if (workers == NULL)
        return -ENOMEM;
    workers->pump = pump;
    pthread_mutex_init(&workers->mutex, NULL);
    pthread_cond_init(&workers->commits.condition, NULL);
    pthread_cond_init(&workers->reads.condition, NULL);
    pthread_cond_init(&workers->writes.condition, NULL);
    *out = workers;
    int error = pump_thread_start(pump, serve_commits, workers);
    for (uint32_t started = 0; error == 0 && started < READERS; started++)
        error = pump_thread_start(pump, serve_reads, workers);
    for (uint32_t started = 0; error == 0 && started < WRITERS; started++)
        error = pump_thread_start(pump, serve_writes, workers);
    return error;
}

void pump_workers_stop(struct pump_workers *workers)
{
    pthread_mutex_lock(&workers->mutex);
    workers->ending = true;
    pthread_cond_broadcast(&workers->commits.condition);
    pthread_cond_broadcast(&workers->reads.condition);
    pthread_cond_broadcast(&workers->writes.condition);
    pthread_mutex_unlock(&workers->mutex);
}

void pump_workers_destroy(struct pump_workers *workers)
{
    pthread_mutex_destroy(&workers->mutex);
    pthread_cond_destroy(&workers->commits.condition);
    pthread_cond_destroy(&workers->reads.condition);
    pthread_cond_destroy(&workers->writes.condition);
    free(workers);
}
