/* Makes the n-th allocation of a workload fail, for drivers that are linked so that malloc and its kin come here:
 * --wrap=NAME for each of them. */
#ifndef TESTS_FAILING_ALLOCATIONS_H
#define TESTS_FAILING_ALLOCATIONS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

/* Threads work beside the workload's own: who comes in the same moment as the one that fails may pass. */
static atomic_long allocations_left; /* until one fails */
static atomic_bool armed, for_ever, has_failed;

static bool fails(void)
{
    if (!atomic_load(&armed))
        return false;
    if (atomic_load(&has_failed))
        return atomic_load(&for_ever);
    bool now = atomic_fetch_sub(&allocations_left, 1) == 1;
    if (now)
        atomic_store(&has_failed, true);
    return now;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__real_reallocarray(void *old, size_t count, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
char *__real_strdup(const char *text);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_reallocarray(void *old, size_t count, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
char *__wrap_strdup(const char *text);

void *__wrap_malloc(size_t size)
{
    return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
    return fails() ? NULL : __real_realloc(old, size);
}

void *__wrap_reallocarray(void *old, size_t count, size_t size)
{
    return fails() ? NULL : __real_reallocarray(old, count, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return fails() ? NULL : __real_aligned_alloc(alignment, size);
}

char *__wrap_strdup(const char *text)
{
    return fails() ? NULL : __real_strdup(text);
}

static void arm(unsigned long index, bool later_ones_too)
{
    atomic_store(&allocations_left, (long)index);
    atomic_store(&for_ever, later_ones_too);
    atomic_store(&has_failed, false);
    atomic_store(&armed, true);
}

/* From now on nothing fails any more, and nothing that failed excuses an error. */
static void disarm(void)
{
    atomic_store(&armed, false);
    atomic_store(&has_failed, false);
}

#endif
