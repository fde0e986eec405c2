/* Store's methods on extents. */
#include "binding.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* A pool so broken up that this many free runs in a row are too short for an extent counts as full for it. */
#define SHORT_RUNS_MAX 256u

/* Reserves exactly so many consecutive blocks. Runs that turn out too short are kept until the end, so that each try
 * gets another one. -ENOSPC when no run is long enough. */
static int reserve_whole(struct store *store, uint32_t blocks, struct store_reservation *out)
{
    struct store_reservation *short_runs = NULL;
    size_t short_count = 0;
    int result;

    for (;;) {
        result = store_data_reserve(store, blocks, false, out);
        if (result != 0 || out->blocks >= blocks) {
            break;
        }
        memset(out->memory, 0, (size_t)out->blocks * STORE_BLOCK_SIZE);
        store_data_complete(store, out);
        if (short_runs == NULL) {
            short_runs = calloc(SHORT_RUNS_MAX, sizeof(*short_runs));
        }
        if (short_runs == NULL || short_count == SHORT_RUNS_MAX) {
            store_data_release(store, out->address, out->blocks);
            result = short_runs == NULL ? -ENOMEM : -ENOSPC;
            break;
        }
        short_runs[short_count++] = *out;
    }
    for (size_t index = 0; index < short_count; index++) {
        store_data_release(store, short_runs[index].address, short_runs[index].blocks);
    }
    free(short_runs);
    return result;
}

struct write_extent_request {
    const char *key;
    Py_ssize_t key_length;
    struct store_extent extent;
    uint64_t checksums[STORE_EXTENT_BLOCKS_MAX];
};

static int write_extent_body(struct transaction *transaction, void *argument)
{
    struct write_extent_request *request = argument;
    uint8_t value[STORE_EXTENT_LENGTH_MAX];
    size_t value_length;
    int result = binding_kill_extent(transaction, request->key, (size_t)request->key_length);

    if (result != 0) {
        return result;
    }
    request->extent.birth = transaction_epoch(transaction);
    value_length = store_extent_encode(&request->extent, request->checksums, value);
    return transaction_put(transaction, request->key, (size_t)request->key_length, value, value_length,
                           STORE_VALUE_EXTENT, true);
}

static int write_extent_run(struct store *store, uint64_t volume_id, struct write_extent_request *request,
                            const void *data, size_t length)
{
    uint32_t blocks = (uint32_t)((length + STORE_BLOCK_SIZE - 1) / STORE_BLOCK_SIZE);
    struct store_reservation reservation;
    int result = reserve_whole(store, blocks, &reservation);

    if (result != 0) {
        return result;
    }
    memcpy(reservation.memory, data, length);
    memset(reservation.memory + length, 0, (size_t)blocks * STORE_BLOCK_SIZE - length);
    for (uint32_t block = 0; block < blocks; block++) {
        request->checksums[block] =
            store_checksum(reservation.memory + (size_t)block * STORE_BLOCK_SIZE, STORE_BLOCK_SIZE);
    }
    request->extent = (struct store_extent){
        .address = reservation.address,
        .blocks = (uint16_t)blocks,
        .logical_blocks = (uint16_t)blocks,
        .checksum_count = (uint16_t)blocks,
    };
    store_data_complete(store, &reservation);
    result = store_transact(store, volume_id, 0, write_extent_body, request);
    if (result != 0) {
        store_data_release(store, request->extent.address, blocks);
    }
    return result;
}

STORE_METHOD(binding_write_extent)
{
    static char *names[] = {"volume_id", "key", "data", NULL};
    struct write_extent_request request = {0};
    PyObject *answer = NULL;
    uint64_t volume_id = 0;
    Py_buffer data;
    int result = -EINVAL;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&y#y*:write_extent", names, binding_convert_u64,
                                     &volume_id, &request.key, &request.key_length, &data)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        goto done;
    }
    if (data.len > 0 && (size_t)data.len <= STORE_EXTENT_BLOCKS_MAX * STORE_BLOCK_SIZE) {
        Py_BEGIN_ALLOW_THREADS
        result = write_extent_run(self->store, volume_id, &request, data.buf, (size_t)data.len);
        Py_END_ALLOW_THREADS
    }
    gate_leave(&self->gate);
    answer = binding_none(result);
done:
    PyBuffer_Release(&data);
    return answer;
}

struct read_extent_request {
    const char *key;
    Py_ssize_t key_length;
    bool found;
    uint8_t value[STORE_EXTENT_LENGTH_MAX];
    uint16_t value_length;
    struct store_extent extent;
    uint8_t *data; /* of the size that the extent says */
};

static int read_extent_body(struct transaction *transaction, void *argument)
{
    struct read_extent_request *request = argument;
    struct store_item item;
    int result = transaction_get(transaction, request->key, (size_t)request->key_length, &item);

    request->found = result == 0;
    if (result != 0) {
        return result == -ENOENT ? 0 : result;
    }
    if (item.kind != STORE_VALUE_EXTENT) {
        return -EINVAL;
    }
    result = store_extent_decode(item.value, item.value_length, &request->extent);
    if (result == 0 && request->extent.compression != 0) {
        result = -EOPNOTSUPP;
    }
    if (result == 0) {
        memcpy(request->value, item.value, item.value_length);
        request->value_length = item.value_length;
    }
    return result;
}

/* 0, or -EBADMSG when a block is not what its checksum says, with its number in *block. */
static int verify_extent(const struct read_extent_request *request, uint32_t *block)
{
    for (*block = 0; *block < request->extent.blocks; (*block)++) {
        uint64_t checksum = store_checksum(request->data + (size_t)*block * STORE_BLOCK_SIZE, STORE_BLOCK_SIZE);

        if (checksum != store_extent_checksum(request->value, *block)) {
            return -EBADMSG;
        }
    }
    return 0;
}

/* What is read may belong to someone else by now if the extent was replaced after it was looked up: only when two
 * looks in a row found the same extent is a failure one of the medium. */
static int read_extent_run(struct store *store, uint64_t object_id, struct read_extent_request *request)
{
    uint8_t seen[STORE_EXTENT_LENGTH_MAX];
    uint16_t seen_length = 0;
    uint32_t bad_block = 0;
    int result;

    for (;;) {
        result = store_transact(store, object_id, STORE_TRANSACT_READ, read_extent_body, request);
        if (result != 0 || !request->found) {
            return result;
        }
        free(request->data);
        request->data = malloc((size_t)request->extent.blocks * STORE_BLOCK_SIZE);
        if (request->data == NULL) {
            return -ENOMEM;
        }
        result = store_data_read(store, request->extent.address, request->extent.blocks, request->data);
        if (result == 0) {
            result = verify_extent(request, &bad_block);
        }
        if (result == 0) {
            return 0;
        }
        if (seen_length == request->value_length && memcmp(seen, request->value, seen_length) == 0) {
            break;
        }
        memcpy(seen, request->value, request->value_length);
        seen_length = request->value_length;
    }
    if (result == -EBADMSG) {
        store_note_data_mismatch(store, request->extent.address + bad_block);
        result = -EIO;
    }
    return result;
}

STORE_METHOD(binding_read_extent)
{
    static char *names[] = {"object_id", "key", NULL};
    struct read_extent_request request = {0};
    PyObject *data = NULL;
    uint64_t object_id = 0;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&y#:read_extent", names, binding_convert_u64, &object_id,
                                     &request.key, &request.key_length)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = read_extent_run(self->store, object_id, &request);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    if (result < 0) {
        binding_raise(result);
    } else if (!request.found) {
        data = Py_NewRef(Py_None);
    } else {
        data = PyBytes_FromStringAndSize((const char *)request.data,
                                         (Py_ssize_t)request.extent.blocks * STORE_BLOCK_SIZE);
    }
    free(request.data);
    return data;
}

struct delete_extent_request {
    const char *key;
    Py_ssize_t key_length;
};

static int delete_extent_body(struct transaction *transaction, void *argument)
{
    const struct delete_extent_request *request = argument;
    struct store_item item;
    int result = transaction_get(transaction, request->key, (size_t)request->key_length, &item);

    if (result != 0) {
        return result == -ENOENT ? 0 : result;
    }
    if (item.kind != STORE_VALUE_EXTENT) {
        return -EINVAL;
    }
    result = binding_kill_extent(transaction, request->key, (size_t)request->key_length);
    return result != 0 ? result : transaction_delete(transaction, request->key, (size_t)request->key_length);
}

STORE_METHOD(binding_delete_extent)
{
    static char *names[] = {"volume_id", "key", NULL};
    struct delete_extent_request request = {0};
    uint64_t volume_id = 0;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&y#:delete_extent", names, binding_convert_u64,
                                     &volume_id, &request.key, &request.key_length)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = store_transact(self->store, volume_id, STORE_TRANSACT_RESERVE, delete_extent_body, &request);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    return binding_none(result);
}
