/* Keeps CPUs from halting while requests follow one another closely.
 *
 * Whoever made a request sleeps until it is answered, and the scheduler likes to wake it on another CPU, which is idle,
 * since the thread that answered runs on this one. On a virtual machine an idle CPU is halted and waking it takes 40 to
 * 70 us, several times what a request does. The kernel lets whoever asks for no latency at all have its CPUs poll when
 * they are idle (Documentation/power/pm_qos_interface.rst: as long as /dev/cpu_dma_latency is open). One thread asks
 * for that when requests come closely, and takes it back when none has come for HOLD_NS. */
#include "pump_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define LATENCY_DEVICE "/dev/cpu_dma_latency"
/* Asking costs some microseconds and wakes all CPUs: not for every pause. */
#define HOLD_NS 10000000
/* Requests that follow one another by more than this, smoothed, are no reason to ask. */
#define GAP_NS 300000u

struct pump_awake {
    struct pump *pump;
    atomic_uint_fast64_t last_ns; /* when a request came last, to any thread */
    atomic_bool held;
    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t condition;
    bool wanted;
};

void pump_awake_note(struct pump_awake *awake, const struct pump_gap *gap)
{
    if (gap->smoothed_ns > GAP_NS)
        return;
    atomic_store_explicit(&awake->last_ns, gap->last_ns, memory_order_relaxed);
    if (atomic_load_explicit(&awake->held, memory_order_acquire))
        return;
    pthread_mutex_lock(&awake->mutex);
    awake->wanted = true;
    pthread_cond_signal(&awake->condition);
    pthread_mutex_unlock(&awake->mutex);
}

/* Until no request has come for a while. False: it cannot be had. */
static bool hold(struct pump_awake *awake)
{
    const int32_t none_us = 0;
    int descriptor = open(LATENCY_DEVICE, O_WRONLY | O_CLOEXEC);
    if (descriptor < 0)
        return false;
    bool had = write(descriptor, &none_us, sizeof none_us) == (ssize_t)sizeof none_us;
    atomic_store(&awake->held, had);
    while (had && !atomic_load(&awake->pump->stopping) &&
           pump_now_ns() - atomic_load_explicit(&awake->last_ns, memory_order_relaxed) < HOLD_NS)
        nanosleep(&(struct timespec){.tv_nsec = HOLD_NS}, NULL);
    atomic_store(&awake->held, false);
    close(descriptor);
    return had;
}

static void *keep_awake(void *argument)
{
    struct pump_awake *awake = argument;
    bool can = true;
    while (can && !atomic_load(&awake->pump->stopping)) {
        pthread_mutex_lock(&awake->mutex);
        while (!awake->wanted && !atomic_load(&awake->pump->stopping))
            pthread_cond_wait(&awake->condition, &awake->mutex);
        awake->wanted = false;
        pthread_mutex_unlock(&awake->mutex);
        can = atomic_load(&awake->pump->stopping) || hold(awake);
    }
    atomic_store(&awake->held, true); /* nobody need ask again */
    return NULL;
}

int pump_awake_start(struct pump *pump, struct pump_awake **out)
{
    struct pump_awake *awake = calloc(1, sizeof *awake);
    if (awake == NULL)
        return -ENOMEM;
    awake->pump = pump;
    pthread_mutex_init(&awake->mutex, NULL);
    pthread_cond_init(&awake->condition, NULL);
    *out = awake;
    return pump_thread_start(pump, keep_awake, awake);
}

void pump_awake_stop(struct pump_awake *awake)
{
    pthread_mutex_lock(&awake->mutex);
    pthread_cond_signal(&awake->condition);
    pthread_mutex_unlock(&awake->mutex);
}

void pump_awake_destroy(struct pump_awake *awake)
{
    pthread_mutex_destroy(&awake->mutex);
    pthread_cond_destroy(&awake->condition);
    free(awake);
}
