/* Store's methods on what snapshots take. */
#include "binding.h"

#include <errno.h>
#include <stdlib.h>

/* A list of ids as an array to be freed; NULL with an exception set. */
static uint64_t *ids_of_list(PyObject *list, size_t *count)
{
    Py_ssize_t length = PyList_GET_SIZE(list);
    uint64_t *ids = malloc((size_t)length * sizeof(*ids) + 1);

    if (ids == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    for (Py_ssize_t index = 0; index < length; index++) {
        if (!binding_convert_u64(PyList_GET_ITEM(list, index), &ids[index])) {
            free(ids);
            return NULL;
        }
    }
    *count = (size_t)length;
    return ids;
}

STORE_METHOD(binding_snapshots_space)
{
    static char *names[] = {"snapshot_ids", NULL};
    PyObject *list = NULL;
    uint64_t *ids;
    uint64_t blocks = 0;
    size_t count = 0;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O!:snapshots_space", names, &PyList_Type, &list)) {
        return NULL;
    }
    ids = ids_of_list(list, &count);
    if (ids == NULL) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        free(ids);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = store_snapshots_space(self->store, ids, count, &blocks);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    free(ids);
    return result < 0 ? binding_raise(result) : PyLong_FromUnsignedLongLong(blocks);
}

static PyObject *blocks_or_none(uint64_t blocks)
{
    if (blocks == UINT64_MAX) {
        Py_RETURN_NONE;
    }
    return PyLong_FromUnsignedLongLong(blocks);
}

STORE_METHOD(binding_snapshots_unique)
{
    static char *names[] = {"snapshot_ids", NULL};
    PyObject *list = NULL;
    PyObject *found = NULL;
    uint64_t *ids;
    uint64_t *blocks;
    size_t count = 0;
    int result = -ENOMEM;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O!:snapshots_unique", names, &PyList_Type, &list)) {
        return NULL;
    }
    ids = ids_of_list(list, &count);
    if (ids == NULL) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        free(ids);
        return NULL;
    }
    blocks = malloc(count * sizeof(*blocks) + 1);
    if (blocks != NULL) {
        Py_BEGIN_ALLOW_THREADS
        result = store_snapshots_unique(self->store, ids, count, blocks);
        Py_END_ALLOW_THREADS
    }
    gate_leave(&self->gate);
    if (result < 0) {
        binding_raise(result);
    } else {
        found = PyList_New(0);
    }
    for (size_t index = 0; found != NULL && index < count; index++) {
        PyObject *number = blocks_or_none(blocks[index]);

        if (number == NULL || PyList_Append(found, number) != 0) {
            Py_CLEAR(found);
        }
        Py_XDECREF(number);
    }
    free(blocks);
    free(ids);
    return found;
}

STORE_METHOD(binding_snapshot_written)
{
    static char *names[] = {"snapshot_id", "items_max", NULL};
    uint64_t snapshot_id = 0;
    uint64_t items_max = 0;
    uint64_t blocks = 0;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&:snapshot_written", names, binding_convert_u64,
                                     &snapshot_id, binding_convert_u64, &items_max)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = store_snapshot_written(self->store, snapshot_id, items_max, &blocks);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    if (result == -E2BIG) {
        Py_RETURN_NONE;
    }
    return result < 0 ? binding_raise(result) : PyLong_FromUnsignedLongLong(blocks);
}
