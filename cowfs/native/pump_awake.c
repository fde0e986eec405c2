/* Keeps the CPUs that requests come from out of their idle state while requests follow one another closely.
 *
 * Whoever made a request sleeps until it is answered, and the scheduler likes to wake it on another CPU, which is idle,
 * since the thread that answered runs on this one. On a virtual machine an idle CPU is halted and waking it takes 40 to
 * 70 us, several times what a request does. So each CPU has a thread of the policy SCHED_IDLE that spins for a moment
 * after a request: to the scheduler such a CPU counts as idle, and whatever else is to run there takes it at once, but
 * it is not halted. Only CPUs that have just made requests, and only while the next comes soon. */
#define _GNU_SOURCE /* SCHED_IDLE, CPU_SET */
#include "pump_internal.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>

/* Long enough to bridge what a program does between requests; 200 us left one small file in two to a halted CPU. */
#define SPIN_NS 1000000u
/* Requests that follow one another by more than this, smoothed, are no reason to spin. */
#define GAP_NS 300000u
#define GAP_SMOOTHING 8u

struct pump_awake {
    struct pump *pump;
    uint16_t cpu;
    atomic_uint_fast64_t last_ns;
    uint64_t gap_ns; /* of the thread that answers alone */
    pthread_mutex_t mutex;
    pthread_cond_t condition;
    atomic_bool sleeping;
};

static void pause_processor(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

void pump_awake_note(struct pump_awake *awake, uint64_t now_ns)
{
    uint64_t gap_ns = now_ns - atomic_load_explicit(&awake->last_ns, memory_order_relaxed);
    gap_ns = gap_ns < 16 * GAP_NS ? gap_ns : 16 * GAP_NS;
    awake->gap_ns = awake->gap_ns - awake->gap_ns / GAP_SMOOTHING + gap_ns / GAP_SMOOTHING;
    atomic_store_explicit(&awake->last_ns, now_ns, memory_order_relaxed);
    if (awake->gap_ns > GAP_NS || !atomic_load_explicit(&awake->sleeping, memory_order_acquire))
        return;
    pthread_mutex_lock(&awake->mutex);
    atomic_store(&awake->sleeping, false);
    pthread_cond_signal(&awake->condition);
    pthread_mutex_unlock(&awake->mutex);
}

/* With lazy preemption (Linux 6.12) a thread in user space gives way at the next tick, milliseconds away; one that
 * comes into the kernel gives way there. */
static void spin(const struct pump_awake *awake)
{
    while (!atomic_load_explicit(&awake->pump->stopping, memory_order_relaxed) &&
           pump_now_ns() - atomic_load_explicit(&awake->last_ns, memory_order_relaxed) < SPIN_NS) {
        pause_processor();
        sched_yield();
    }
}

static void *keep_awake(void *argument)
{
    struct pump_awake *awake = argument;
    struct sched_param parameters = {0};
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(awake->cpu, &only);
    /* Without the one or the other it would be in the way. */
    if (sched_setaffinity(0, sizeof only, &only) < 0 || sched_setscheduler(0, SCHED_IDLE, &parameters) < 0)
        return NULL;
    while (!atomic_load(&awake->pump->stopping)) {
        spin(awake);
        pthread_mutex_lock(&awake->mutex);
        atomic_store(&awake->sleeping, true);
        while (atomic_load(&awake->sleeping) && !atomic_load(&awake->pump->stopping))
            pthread_cond_wait(&awake->condition, &awake->mutex);
        pthread_mutex_unlock(&awake->mutex);
    }
    return NULL;
}

int pump_awake_start(struct pump *pump, uint16_t cpu, struct pump_awake **out)
{
    struct pump_awake *awake = calloc(1, sizeof *awake);
    if (awake == NULL)
        return -ENOMEM;
    awake->pump = pump;
    awake->cpu = cpu;
    awake->gap_ns = 16 * GAP_NS;
    pthread_mutex_init(&awake->mutex, NULL);
    pthread_cond_init(&awake->condition, NULL);
    *out = awake;
    return pump_thread_start(pump, keep_awake, awake);
}

void pump_awake_stop(struct pump_awake *awake)
{
    pthread_mutex_lock(&awake->mutex);
    atomic_store(&awake->sleeping, false);
    pthread_cond_signal(&awake->condition);
    pthread_mutex_unlock(&awake->mutex);
}

void pump_awake_destroy(struct pump_awake *awake)
{
    pthread_mutex_destroy(&awake->mutex);
    pthread_cond_destroy(&awake->condition);
    free(awake);
}
