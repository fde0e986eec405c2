/* The pieces of large writes, compressed by several threads: whoever writes offers all of them, and takes what came of
 * each in the order of the file. Until then a thread may have compressed it; if none has, the writer does, so that it
 * never waits for one to begin. Nothing but memory is touched here.
 *
 * What this takes is bounded by the number of batches: whoever finds none free compresses alone. */
#define _GNU_SOURCE /* pthread_attr_setaffinity_np */
#include "internal.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>

/* Beside those who write, one for each further CPU. */
#define THREADS_MAX 7u
/* 1.1 MiB each, kept from the first use to the end. More large writes than that at a time use the CPUs anyway. */
#define BATCHES_MAX 4u
/* The kernel's longest write, 1 MiB, wherever it begins. */
#define PIECES_MAX 9u

enum piece_state { PIECE_OFFERED, PIECE_TAKEN, PIECE_DONE };

struct piece {
    enum piece_state state;
    const uint8_t *content;
    uint32_t blocks;
    uint8_t *stored; /* COMPRESSION_BYTES_MAX bytes, once the piece was first used */
    struct compressed compressed;
};

struct batch {
    struct compressors *compressors;
    bool used;
    bool withdrawn; /* nobody but the writer takes pieces */
    struct compression how;
    uint32_t count;
    uint32_t taken; /* by whomever, and not done */
    pthread_cond_t done;
    struct piece pieces[PIECES_MAX];
};

struct compressors {
    cpu_set_t cpus;      /* where the threads may run */
    uint32_t thread_max; /* 0: there is one CPU */
    pthread_mutex_t mutex; /* guards what follows, but not what a piece that is taken points to */
    pthread_cond_t offered;
    bool started, ending;
    uint32_t thread_count;
    pthread_t threads[THREADS_MAX];
    struct batch batches[BATCHES_MAX];
};

/* ---- pieces, with the mutex held ------------------------------------------------------------------------------ */

static struct piece *piece_offered(struct batch *batch)
{
    for (uint32_t at = 0; at < batch->count && !batch->withdrawn; at++)
        if (batch->pieces[at].state == PIECE_OFFERED)
            return &batch->pieces[at];
    return NULL;
}

static struct piece *piece_of(struct batch *batch, const uint8_t *content, uint32_t blocks)
{
    for (uint32_t at = 0; at < batch->count; at++)
        if (batch->pieces[at].content == content && batch->pieces[at].blocks == blocks)
            return &batch->pieces[at];
    return NULL;
}

/* Releases the mutex meanwhile. */
static void piece_compress(struct batch *batch, struct piece *piece, struct codec *codec)
{
    struct compressors *compressors = batch->compressors;
    piece->state = PIECE_TAKEN;
    batch->taken++;
    pthread_mutex_unlock(&compressors->mutex);
    const struct compressed compressed =
        codec_compress(codec, batch->how, piece->content, piece->blocks, piece->stored);
    pthread_mutex_lock(&compressors->mutex);
    piece->compressed = compressed;
    piece->state = PIECE_DONE;
    batch->taken--;
    pthread_cond_signal(&batch->done);
}

/* ---- threads --------------------------------------------------------------------------------------------------- */

/* The first piece of some batch; from the batch on that follows *turn, so that all get their share. */
static struct piece *next_piece(struct compressors *compressors, uint32_t *turn, struct batch **batch)
{
    for (uint32_t at = 1; at <= BATCHES_MAX; at++) {
        *batch = &compressors->batches[(*turn + at) % BATCHES_MAX];
        struct piece *piece = (*batch)->used ? piece_offered(*batch) : NULL;
        if (piece != NULL) {
            *turn = (*turn + at) % BATCHES_MAX;
            return piece;
        }
    }
    return NULL;
}

static void *serve_pieces(void *argument)
{
    struct compressors *compressors = argument;
    struct codec *codec = codec_new();
    struct batch *batch;
    uint32_t turn = 0;
    if (codec == NULL)
        return NULL;
    pthread_mutex_lock(&compressors->mutex);
    while (!compressors->ending) {
        struct piece *piece = next_piece(compressors, &turn, &batch);
        if (piece != NULL)
            piece_compress(batch, piece, codec);
        else
            pthread_cond_wait(&compressors->offered, &compressors->mutex);
    }
    pthread_mutex_unlock(&compressors->mutex);
    codec_free(codec);
    return NULL;
}

/* With the mutex held. Who starts them may be pinned to a CPU and take no signals: they run anywhere, and take none. */
static void start(struct compressors *compressors)
{
    pthread_attr_t attributes;
    sigset_t all, before;
    compressors->started = true;
    if (pthread_attr_init(&attributes) != 0)
        return;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_attr_setaffinity_np(&attributes, sizeof compressors->cpus, &compressors->cpus);
    while (error == 0 && compressors->thread_count < compressors->thread_max) {
        pthread_t *thread = &compressors->threads[compressors->thread_count];
        error = pthread_create(thread, &attributes, serve_pieces, compressors);
        if (error != 0)
            break;
        pthread_setname_np(*thread, "cowfs-compress");
        compressors->thread_count++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

int compressors_create(struct compressors **out)
{
    struct compressors *compressors = calloc(1, sizeof *compressors);
    if (compressors == NULL)
        return -ENOMEM;
    if (sched_getaffinity(0, sizeof compressors->cpus, &compressors->cpus) == 0)
        compressors->thread_max = (uint32_t)CPU_COUNT(&compressors->cpus) - 1;
    if (compressors->thread_max > THREADS_MAX)
        compressors->thread_max = THREADS_MAX;
    pthread_mutex_init(&compressors->mutex, NULL);
    pthread_cond_init(&compressors->offered, NULL);
    for (size_t at = 0; at < BATCHES_MAX; at++) {
        compressors->batches[at].compressors = compressors;
        pthread_cond_init(&compressors->batches[at].done, NULL);
    }
    *out = compressors;
    return 0;
}

void compressors_destroy(struct compressors *compressors)
{
    pthread_mutex_lock(&compressors->mutex);
    compressors->ending = true;
    pthread_cond_broadcast(&compressors->offered);
    pthread_mutex_unlock(&compressors->mutex);
    for (uint32_t at = 0; at < compressors->thread_count; at++)
        pthread_join(compressors->threads[at], NULL);
    for (size_t at = 0; at < BATCHES_MAX; at++) {
        for (size_t piece = 0; piece < PIECES_MAX; piece++)
            free(compressors->batches[at].pieces[piece].stored);
        pthread_cond_destroy(&compressors->batches[at].done);
    }
    pthread_cond_destroy(&compressors->offered);
    pthread_mutex_destroy(&compressors->mutex);
    free(compressors);
}

/* ---- batches --------------------------------------------------------------------------------------------------- */

struct batch *batch_begin(struct compressors *compressors, struct compression how)
{
    struct batch *batch = NULL;
    pthread_mutex_lock(&compressors->mutex);
    if (!compressors->started)
        start(compressors);
    for (size_t at = 0; at < BATCHES_MAX && compressors->thread_count != 0 && batch == NULL; at++)
        if (!compressors->batches[at].used)
            batch = &compressors->batches[at];
    if (batch != NULL) {
        batch->used = true;
        batch->withdrawn = false;
        batch->how = how;
        batch->count = batch->taken = 0;
    }
    pthread_mutex_unlock(&compressors->mutex);
    return batch;
}

bool batch_add(struct batch *batch, const uint8_t *content, uint32_t blocks)
{
    struct compressors *compressors = batch->compressors;
    if (batch->count == PIECES_MAX)
        return false;
    struct piece *piece = &batch->pieces[batch->count];
    if (piece->stored == NULL)
        piece->stored = aligned_alloc(STORE_BLOCK_SIZE, COMPRESSION_BYTES_MAX);
    if (piece->stored == NULL)
        return false;
    pthread_mutex_lock(&compressors->mutex);
    piece->state = PIECE_OFFERED;
    piece->content = content;
    piece->blocks = blocks;
    batch->count++;
    pthread_cond_signal(&compressors->offered);
    pthread_mutex_unlock(&compressors->mutex);
    return true;
}

struct compressed batch_compress(struct batch *batch, struct codec *codec, struct compression how,
                                 const uint8_t *content, uint32_t blocks)
{
    struct piece *piece = batch == NULL ? NULL : piece_of(batch, content, blocks);
    if (piece == NULL)
        return codec_compress(codec, how, content, blocks, codec->stored);
    pthread_mutex_lock(&batch->compressors->mutex);
    while (piece->state != PIECE_DONE) {
        struct piece *mine = piece->state == PIECE_OFFERED ? piece : piece_offered(batch);
        if (mine != NULL)
            piece_compress(batch, mine, codec);
        else
            pthread_cond_wait(&batch->done, &batch->compressors->mutex);
    }
    const struct compressed compressed = piece->compressed;
    pthread_mutex_unlock(&batch->compressors->mutex);
    return compressed;
}

void batch_withdraw(struct batch *batch)
{
    if (batch == NULL)
        return;
    pthread_mutex_lock(&batch->compressors->mutex);
    batch->withdrawn = true;
    pthread_mutex_unlock(&batch->compressors->mutex);
}

void batch_end(struct batch *batch)
{
    if (batch == NULL)
        return;
    pthread_mutex_lock(&batch->compressors->mutex);
    batch->withdrawn = true;
    while (batch->taken != 0)
        pthread_cond_wait(&batch->done, &batch->compressors->mutex);
    batch->used = false;
    pthread_mutex_unlock(&batch->compressors->mutex);
}
