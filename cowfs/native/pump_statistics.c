/* How often each opcode came and how long its answer took. Each thread counts for itself; whoever asks adds up. */
#include "pump_internal.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Class 4 * octave + quarter; the octave below FIRST_OCTAVE is one class. */
enum { FIRST_OCTAVE = 8, QUARTERS = 4 };

uint64_t pump_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint32_t class_of(uint64_t elapsed_ns)
{
    if (elapsed_ns < UINT64_C(1) << FIRST_OCTAVE)
        return 0;
    uint32_t octave = 63u - (uint32_t)__builtin_clzll(elapsed_ns);
    uint32_t quarter = (uint32_t)(elapsed_ns >> (octave - 2)) & 3u;
    uint32_t index = 1 + (octave - FIRST_OCTAVE) * QUARTERS + quarter;
    return index < PUMP_LATENCY_CLASSES ? index : PUMP_LATENCY_CLASSES - 1;
}

uint64_t pump_latency_class_ns(uint32_t index)
{
    if (index == 0)
        return UINT64_C(1) << FIRST_OCTAVE;
    uint32_t octave = FIRST_OCTAVE + (index - 1) / QUARTERS, quarter = (index - 1) % QUARTERS;
    return (UINT64_C(1) << octave) + (UINT64_C(1) << (octave - 2)) * (quarter + 1);
}

struct pump_counters *pump_counters_create(struct pump *pump)
{
    struct pump_counters *counters = calloc(1, sizeof *counters);
    if (counters == NULL)
        return NULL;
    pthread_mutex_lock(&pump->counters_mutex);
    struct pump_counters **grown =
        reallocarray(pump->counters, pump->counters_count + 1, sizeof *pump->counters);
    if (grown != NULL) {
        pump->counters = grown;
        pump->counters[pump->counters_count++] = counters;
    }
    pthread_mutex_unlock(&pump->counters_mutex);
    if (grown == NULL) {
        free(counters);
        counters = NULL;
    }
    return counters;
}

/* The one writer needs no read-modify-write that others see whole. */
static void add64(_Atomic uint64_t *to, uint64_t value)
{
    atomic_store_explicit(to, atomic_load_explicit(to, memory_order_relaxed) + value, memory_order_relaxed);
}

void pump_count(struct pump_counters *counters, uint32_t opcode, bool forwarded, uint64_t elapsed_ns)
{
    if (opcode >= PUMP_OPCODE_COUNT)
        return;
    struct pump_counter *counter = forwarded ? &counters->forwarded[opcode] : &counters->answered[opcode];
    _Atomic uint32_t *class = &counter->classes[class_of(elapsed_ns)];
    add64(&counter->count, 1);
    add64(&counter->total_ns, elapsed_ns);
    atomic_store_explicit(class, atomic_load_explicit(class, memory_order_relaxed) + 1, memory_order_relaxed);
}

void pump_latency(struct pump *pump, uint32_t opcode, bool forwarded, struct pump_latency *out)
{
    memset(out, 0, sizeof *out);
    if (opcode >= PUMP_OPCODE_COUNT)
        return;
    pthread_mutex_lock(&pump->counters_mutex);
    for (size_t at = 0; at < pump->counters_count; at++) {
        const struct pump_counters *counters = pump->counters[at];
        const struct pump_counter *counter = forwarded ? &counters->forwarded[opcode] : &counters->answered[opcode];
        out->count += atomic_load_explicit(&counter->count, memory_order_relaxed);
        out->total_ns += atomic_load_explicit(&counter->total_ns, memory_order_relaxed);
        for (uint32_t class = 0; class < PUMP_LATENCY_CLASSES; class++)
            out->classes[class] += atomic_load_explicit(&counter->classes[class], memory_order_relaxed);
    }
    pthread_mutex_unlock(&pump->counters_mutex);
}
